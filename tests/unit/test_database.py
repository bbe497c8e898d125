"""What of a batch's connection needs no server: its deadline, and its end."""

import math
import socket
import threading
import time
from unittest.mock import MagicMock
from uuid import UUID

import psycopg2
import pytest

from eventkafkapostgres import database as module
from eventkafkapostgres.database import DATABASE_STALL_SECONDS, Database, connect


@pytest.fixture
def database() -> Database:
    return Database("postgres://somewhere/db", {"client_encoding": "LATIN1", "sslmode": "require"}, "group", "topic")


def test_what_is_sent_is_utf8_whatever_the_settings_say(database: Database) -> None:
    assert database.options == {"client_encoding": "UTF8", "sslmode": "require"}


def test_there_is_no_deadline_until_something_is_asked(database: Database) -> None:
    assert database.deadline == math.inf
    before = time.monotonic()
    database.extend_deadline()
    assert before + DATABASE_STALL_SECONDS <= database.deadline <= time.monotonic() + DATABASE_STALL_SECONDS


def test_a_connection_that_is_not_there_yet_can_be_aborted(database: Database) -> None:
    database.abort_connection()
    assert database.aborted
    assert database.deadline == math.inf


def test_aborting_shuts_the_socket_that_the_other_thread_waits_for(database: Database) -> None:
    near, far = socket.socketpair()
    with near, far:
        database.connection = near
        database.abort_connection()
        assert near.recv(1) == far.recv(1) == b""


def test_a_refusal_in_another_encoding_is_an_error_of_postgresql() -> None:
    def refuse() -> None:
        connected, _ = listener.accept()
        connected.recv(4096)
        text = b"SFATAL\0C57P03\0M" + "das Datenbanksystem fährt herunter".encode("latin-1") + b"\0\0"
        connected.sendall(b"E" + (len(text) + 4).to_bytes(4, "big") + text)
        connected.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=refuse, daemon=True).start()
        with pytest.raises(psycopg2.OperationalError, match=r"das Datenbanksystem f.hrt herunter"):
            connect(f"postgres://u:p@127.0.0.1:{listener.getsockname()[1]}/d?sslmode=disable", {})


def test_what_a_silent_host_took_of_the_time_is_not_blamed_on_the_next_one(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect(url: str, options: object) -> MagicMock:
        database.abort_connection()  # the deadline passed while the first host was tried
        connected = MagicMock(**{"info.server_version": 160000})
        connected.cursor().__enter__().connection = connected
        connected.cursor().__enter__().execute.side_effect = psycopg2.OperationalError("no right")
        return connected

    monkeypatch.setattr(module, "connect", connect)
    with pytest.raises(psycopg2.OperationalError, match="no right"):
        database.next_offsets(UUID(int=1))
