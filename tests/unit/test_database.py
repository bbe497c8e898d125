"""What of a batch's connection needs no server: its deadline, and its end."""

import math
import socket
import time

import pytest

from eventkafkapostgres.database import DATABASE_STALL_SECONDS, Database


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
