import os
import shutil
import sqlite3
from datetime import UTC, datetime
from uuid import UUID

import pytest
from fakes import put, values

from eventkafkapostgres.outbox import open_outbox, outbox_path

OBSERVED_AT = datetime(2026, 11, 23, 16, 22, 4, 796005, tzinfo=UTC)


EVENT_ID = UUID("01a20b20-7007-7b5a-b044-fec6a3afb754")


# The outbox


def test_the_outbox_gives_back_what_was_stored_oldest_first(outbox):
    put(outbox, "c", "a")
    put(outbox, "b")
    assert outbox.after(0, 10) == [(1, b"h", b"c"), (2, b"h", b"a"), (3, b"h", b"b")]
    assert outbox.after(1, 1) == [(2, b"h", b"a")]
    assert outbox.after(3, 10) == []
    assert outbox.count() == 3


def test_what_is_removed_is_gone_and_the_rest_stays(outbox):
    put(outbox, "a", "b", "c")
    outbox.change([], [2])
    assert values(outbox) == [b"a", b"c"]


def test_the_outbox_survives_a_kill(outbox, tmp_path):
    put(outbox, "a", "b")
    outbox.change([(b"h", b"c")], [1])
    killed = tmp_path / "killed"  # what is on the disk at this moment, with nothing closed
    killed.mkdir()
    for path in tmp_path.glob("outbox.sqlite*"):
        shutil.copy(path, killed)
    after_kill = open_outbox(killed / "outbox.sqlite")
    assert values(after_kill) == [b"b", b"c"]
    after_kill.connection.close()


def test_the_outbox_waits_for_the_disk_at_each_change(outbox):
    assert outbox.connection.execute("pragma synchronous").fetchone() == (2,)  # full


def test_a_position_is_never_used_again(outbox):
    put(outbox, "a", "b")
    outbox.change([], [1, 2])
    path = outbox.path
    outbox.connection.close()
    again = open_outbox(path)
    put(again, "c")
    assert again.after(0, 10) == [(3, b"h", b"c")]
    again.connection.close()


def test_a_change_is_stored_as_a_whole_or_not_at_all(outbox):
    put(outbox, "a")
    with pytest.raises(sqlite3.Error):
        outbox.change([(b"h", b"b"), (b"h", object())], [1])
    assert values(outbox) == [b"a"]
    outbox.change([(b"h", b"b")], [1])
    assert values(outbox) == [b"b"]


def test_a_second_producer_is_told_that_the_outbox_is_in_use(outbox, monkeypatch):
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda path, **options: connect(path, **{**options, "timeout": 0}))
    with pytest.raises(ValueError, match=r"outbox.sqlite is in use: one producer per outbox, give this .* --outbox"):
        open_outbox(outbox.path)
    put(outbox, "a")  # and the first one goes on


@pytest.mark.parametrize("begins", [b"no database at all" * 100, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_damaged_outbox_is_set_aside_and_a_new_one_begins(tmp_path, caplog, begins):
    path = tmp_path / "outbox.sqlite"
    path.write_bytes(begins)
    outbox = open_outbox(path)
    put(outbox, "a")
    assert values(outbox) == [b"a"]
    (aside,) = tmp_path.glob("outbox.sqlite.damaged-*")
    assert aside.read_bytes() == begins
    (said,) = caplog.messages
    assert str(path) in said
    assert str(aside) in said
    outbox.connection.close()


def test_the_outbox_makes_the_folders_that_are_missing(tmp_path):
    outbox = open_outbox(tmp_path / "a" / "b" / "outbox.sqlite")
    assert outbox.count() == 0
    outbox.connection.close()


@pytest.mark.parametrize("where", ["file/outbox.sqlite", "file/deeper/outbox.sqlite", "folder"])
def test_an_outbox_that_cannot_be_there_is_said_with_what_to_do(tmp_path, where):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=r"the outbox .* can't be (made|used): .*; give another --outbox"):
        open_outbox(tmp_path / where)


@pytest.mark.parametrize(
    ("environ", "path"),
    [
        ({"STATE_DIRECTORY": "/s", "XDG_STATE_HOME": "/x"}, "/s/outbox.sqlite"),
        ({"STATE_DIRECTORY": "/s:/t"}, "/s/outbox.sqlite"),
        ({"XDG_STATE_HOME": "/x"}, "/x/eventKafkaPostgres/outbox.sqlite"),
        ({}, os.path.expanduser("~/.local/state/eventKafkaPostgres/outbox.sqlite")),
    ],
)
def test_the_outbox_is_where_systemd_or_xdg_says(environ, path):
    assert str(outbox_path(environ)) == path
