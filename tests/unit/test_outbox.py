import errno
import logging
import os
import shutil
import sqlite3
import stat
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest
from fakes import damage, fill_disk, logged, put, values

from eventkafkapostgres import outbox as outbox_module
from eventkafkapostgres.outbox import MAX_IN_MEMORY, UNREADABLE_SECONDS, Outbox, outbox_path
from eventkafkapostgres.outbox_file import OutboxFile

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
FAT = "x" * 8000  # needs a page of its own: a full disk has no room for it


def reopened(outbox, path=None):
    """What the next run finds: a copy of what is on the disk at this moment, with nothing closed."""
    killed = outbox.path.parent / f"killed-{len([*outbox.path.parent.glob('killed-*')])}"
    killed.mkdir()
    for file in (path or outbox.path).parent.glob(f"{outbox.path.name}*"):
        shutil.copy(file, killed)
    after_kill = Outbox(killed / outbox.path.name)
    found = values(after_kill)
    after_kill.close()
    return found


# On a disk that is well


def test_it_gives_back_what_was_stored_oldest_first(outbox):
    put(outbox, "c", "a")
    put(outbox, "b")
    first, second, third = outbox.after(0, 10)
    assert [first.value, second.value, third.value] == [b"c", b"a", b"b"]
    assert first.position < second.position < third.position
    assert first.key == b"web-1"
    assert outbox.after(first.position, 1) == [second]
    assert outbox.after(third.position, 10) == []
    assert len(outbox) == 3


def test_what_is_removed_is_gone_and_the_rest_stays(outbox):
    put(outbox, "a", "b", "c")
    _, second, _ = outbox.after(0, 10)
    outbox.remove([second.position])
    assert (values(outbox), len(outbox)) == ([b"a", b"c"], 2)


def test_it_survives_a_kill(outbox):
    put(outbox, "a", "b")
    outbox.remove([outbox.after(0, 1)[0].position])
    put(outbox, "c")
    assert reopened(outbox) == [b"b", b"c"]


def test_it_waits_for_the_disk_at_each_change(outbox):
    assert outbox.file.connection.execute("pragma synchronous").fetchone() == (2,)  # full


def test_the_next_run_goes_on_behind_the_last_position(outbox, clock):
    put(outbox, "a", "b")
    last = outbox.after(0, 10)[-1].position
    outbox.close()
    again = Outbox(outbox.path, clock)
    put(again, "c")
    assert values(again) == [b"a", b"b", b"c"]
    assert again.after(last, 10)[0].value == b"c"
    again.close()


def test_a_second_producer_is_refused_since_the_outbox_is_in_use(outbox, monkeypatch):
    monkeypatch.setattr(outbox_module, "LOCK_SECONDS", 0)
    with pytest.raises(ValueError, match=r"outbox.sqlite is in use: one producer per outbox, give this .* --outbox"):
        Outbox(outbox.path)
    put(outbox, "a")  # and the first one goes on
    assert values(outbox) == [b"a"]


@pytest.mark.parametrize(
    ("environ", "path"),
    [
        ({"STATE_DIRECTORY": "/s", "XDG_STATE_HOME": "/x"}, "/s/outbox.sqlite"),
        ({"STATE_DIRECTORY": "/s:/t"}, "/s/outbox.sqlite"),
        ({"XDG_STATE_HOME": "/x"}, "/x/eventKafkaPostgres/outbox.sqlite"),
        ({}, os.path.expanduser("~/.local/state/eventKafkaPostgres/outbox.sqlite")),
    ],
)
def test_it_is_where_systemd_or_xdg_expects(environ, path):
    assert str(outbox_path(environ)) == path


def test_a_user_without_a_home_is_asked_for_a_file(monkeypatch):
    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(outbox_module.Path, "home", home)
    with pytest.raises(ValueError, match="HOME is not set, and this user has none: give --outbox FILE"):
        outbox_path({})


def test_it_makes_the_folders_that_are_missing_and_nobody_else_may_read_it(tmp_path):
    umask = os.umask(0)
    try:
        outbox = Outbox(tmp_path / "a" / "b" / "outbox.sqlite")
        put(outbox, "a")
    finally:
        os.umask(umask)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "a" / "b").iterdir()}
    assert modes == {"outbox.sqlite": 0o600, "outbox.sqlite-wal": 0o600}
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o700
    outbox.close()


def test_a_file_that_others_may_read_is_closed_to_them(outbox):
    outbox.close()
    outbox.path.chmod(0o644)
    Outbox(outbox.path).close()
    assert stat.S_IMODE(outbox.path.stat().st_mode) == 0o600


@pytest.mark.parametrize("where", ["file/outbox.sqlite", "file/deeper/outbox.sqlite", "folder", "folder/" + "x" * 300])
def test_an_outbox_that_cannot_be_there_is_reported_with_what_to_do(tmp_path, where):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=r"the outbox .* can't be used: .*; give another --outbox"):
        Outbox(tmp_path / where)


def test_what_is_no_file_is_refused_and_left_as_it_is(tmp_path):
    os.mkfifo(tmp_path / "pipe", 0o622)
    mode = (tmp_path / "pipe").stat().st_mode
    with pytest.raises(ValueError, match=r"the outbox .* can't be used: not a regular file; give another --outbox"):
        Outbox(tmp_path / "pipe")
    assert (tmp_path / "pipe").stat().st_mode == mode


# A disk that refuses


def test_a_full_disk_is_logged_once_and_what_it_refuses_is_still_there(outbox, clock, caplog):
    fill_disk(outbox)
    for n in range(5):
        put(outbox, f"{n}{FAT}")
        clock.now += 1
    assert [value[:1] for value in values(outbox)] == [b"0", b"1", b"2", b"3", b"4"]
    assert len(outbox) == 5
    (line,) = logged(caplog)
    assert f"Outbox: {outbox.path} can't be written: database or disk is full" in line


def test_a_disk_that_has_room_again_gets_what_waited_and_it_is_logged_once(outbox, clock, caplog):
    caplog.set_level(logging.INFO)
    put(outbox, "on disk")
    fill_disk(outbox)
    put(outbox, f"0{FAT}", f"1{FAT}")
    assert reopened(outbox) == [b"on disk"]
    fill_disk(outbox, False)
    for _ in range(3):
        clock.now += 1
        outbox.maintain()
    assert [value[:1] for value in reopened(outbox)] == [b"o", b"0", b"1"]
    assert len(outbox) == 3
    assert logged(caplog)[1:] == ["Outbox: works again"]


def test_positions_stay_the_same_when_memory_goes_to_the_disk(outbox, clock):
    fill_disk(outbox)
    put(outbox, f"0{FAT}", f"1{FAT}")
    before = outbox.after(0, 10)
    fill_disk(outbox, False)
    clock.now += 1
    outbox.maintain()
    assert (outbox.memory.unsaved, outbox.after(0, 10)) == ({}, before)
    outbox.remove([before[0].position])
    assert [value[:1] for value in reopened(outbox)] == [b"1"]


def test_memory_holds_at_most_a_thousand_and_each_loss_is_logged(outbox, clock, caplog):
    fill_disk(outbox)
    put(outbox, *(f"{n:04}{FAT}" for n in range(MAX_IN_MEMORY + 2)))
    assert (outbox.lost, len(outbox), len(outbox.memory.unsaved)) == (2, MAX_IN_MEMORY, MAX_IN_MEMORY)
    assert outbox.after(0, 1)[0].value.startswith(b"0002")  # the oldest are lost
    assert len([line for line in logged(caplog, "ERROR") if "1 warning is lost" in line]) == 2


def test_what_is_lost_from_memory_and_was_acknowledged_after_all_changes_no_count(outbox):
    fill_disk(outbox)
    put(outbox, f"0{FAT}")
    (oldest,) = outbox.after(0, 1)
    put(outbox, *(f"{n:04}{FAT}" for n in range(MAX_IN_MEMORY)))
    outbox.remove([oldest.position])
    assert (outbox.lost, len(outbox)) == (1, MAX_IN_MEMORY)


def test_what_only_memory_holds_at_the_end_is_lost_and_logged(outbox, caplog):
    put(outbox, "on disk")
    fill_disk(outbox)
    put(outbox, *(f"{n}{FAT}" for n in range(40)))
    outbox.close()
    assert outbox.lost == 40
    assert "40 warnings are lost" in logged(caplog, "ERROR")[0]
    assert reopened(outbox) == [b"on disk"]


def test_what_the_disk_has_room_for_at_the_end_is_not_lost(outbox, caplog):
    fill_disk(outbox)
    put(outbox, FAT)
    fill_disk(outbox, False)
    outbox.close()
    assert (outbox.lost, reopened(outbox)) == (0, [FAT.encode()])


def test_what_is_acknowledged_while_the_disk_is_read_only_comes_not_again(outbox, clock):
    put(outbox, "a", "b")
    outbox.file.connection.execute("pragma query_only = on")
    outbox.remove([outbox.after(0, 1)[0].position])
    assert (values(outbox), len(outbox)) == ([b"b"], 1)
    outbox.file.connection.execute("pragma query_only = off")
    clock.now += 1
    outbox.maintain()
    assert reopened(outbox) == [b"b"]


def test_what_was_acknowledged_while_the_disk_is_read_only_hides_nothing_behind_it(outbox):
    put(outbox, "a", "b", "c", "d")
    outbox.file.connection.execute("pragma query_only = on")
    outbox.remove([warning.position for warning in outbox.after(0, 3)])
    assert [warning.value for warning in outbox.after(0, 2)] == [b"d"]


def refuse_files(monkeypatch, number):
    """Let the disk refuse to open any file."""

    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", refuse)


@pytest.mark.parametrize(("content", "left_behind"), [("of an earlier run", True), (None, False)])
def test_what_an_earlier_run_left_and_this_one_could_not_read_is_left_behind(
    tmp_path, clock, monkeypatch, content, left_behind
):
    path = tmp_path / "outbox.sqlite"
    if content:
        before = Outbox(path, clock)
        put(before, content)
        before.close()
    else:
        path.touch()  # a full disk has room for the name of a file
    refuse_files(monkeypatch, errno.EROFS)
    outbox = Outbox(path, clock)
    outbox.close()
    assert (len(outbox), outbox.lost, outbox.left_behind) == (0, 0, left_behind)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO])
def test_without_a_file_at_the_start_the_work_goes_on_in_memory_and_then_on_the_disk(
    tmp_path, clock, monkeypatch, caplog, number
):
    caplog.set_level(logging.INFO)
    path = tmp_path / "outbox.sqlite"
    before = Outbox(path, clock)
    put(before, "of an earlier run")
    before.close()
    with monkeypatch.context() as broken:
        refuse_files(broken, number)
        outbox = Outbox(path, clock)
        put(outbox, *(f"{n:04}" for n in range(MAX_IN_MEMORY + 3)))
        clock.now += 5
        outbox.maintain()
        assert (len(outbox), outbox.lost) == (MAX_IN_MEMORY, 3)
        in_flight = outbox.after(0, 2)
    assert [warning.value for warning in in_flight] == [b"0003", b"0004"]
    clock.now += 1
    outbox.maintain()
    assert len(outbox) == MAX_IN_MEMORY + 1
    assert values(outbox)[-1] == b"of an earlier run"  # behind the positions that were handed out
    outbox.remove(warning.position for warning in in_flight)
    assert reopened(outbox)[:1] == [b"0005"]
    assert logged(caplog)[0].endswith(f"can't be used ([Errno {number}] {os.strerror(number)}): at most 1,000 warnings "
                                      "wait in memory; trying again")  # fmt: skip
    assert logged(caplog)[-1] == "Outbox: works again"
    outbox.close()


# A file that is damaged


@pytest.mark.parametrize("content", [b"no database at all" * 100, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_damaged_outbox_is_set_aside_and_a_new_one_begins(tmp_path, caplog, content):
    path = tmp_path / "outbox.sqlite"
    path.write_bytes(content)
    outbox = Outbox(path)
    put(outbox, "a")
    assert values(outbox) == [b"a"]
    (aside,) = tmp_path.glob("outbox.sqlite.damaged-*")
    assert aside.read_bytes() == content
    assert outbox.left_behind
    first, second = caplog.messages
    assert str(path) in first
    assert str(aside) in first
    assert "what could not be read of it is still in" in second
    outbox.close()


@pytest.mark.parametrize("position", [-5, 2**63 - 1])
def test_a_position_that_nobody_gave_is_damage_and_the_rest_goes_on(outbox, tmp_path, position):
    put(outbox, "a", "b")
    outbox.close()
    with closing(sqlite3.connect(outbox.path)) as file, file:
        file.execute("update warnings set position = ? where position = 2", (position,))
    again = Outbox(outbox.path)
    put(again, "c")
    assert values(again) == [b"a", b"c"]
    assert len([*tmp_path.glob("*.damaged-*[0-9]")]) == 1
    again.close()


def test_an_outbox_that_is_damaged_while_running_is_set_aside_and_what_is_in_flight_is_kept(outbox, tmp_path):
    put(outbox, "a", "b")
    (sent,) = outbox.after(0, 1)
    damage(outbox)
    put(outbox, "c")
    assert len([*tmp_path.glob("*.damaged-*[0-9]")]) == 1
    assert values(outbox) == [b"a", b"c"]  # b was nowhere but in the file
    assert outbox.left_behind
    outbox.remove([sent.position])
    assert reopened(outbox) == [b"c"]


def test_a_file_that_could_not_be_read_once_is_read_again_and_everything_goes_on(outbox, monkeypatch, tmp_path, clock):
    put(outbox, *map(str, range(300)))
    sent = outbox.after(0, 100)
    outbox.remove([sent[0].position])

    def malformed(self, position, limit):
        monkeypatch.undo()
        raise sqlite3.DatabaseError("database disk image is malformed")

    monkeypatch.setattr(OutboxFile, "after", malformed)
    assert outbox.after(0, 10) == []
    assert (len(outbox), outbox.left_behind) == (299, False)
    assert values(outbox) == [str(n).encode() for n in range(1, 300)]
    assert [warning.position for warning in outbox.after(0, 99)] == [warning.position for warning in sent[1:]]
    assert reopened(outbox) == [str(n).encode() for n in range(1, 300)]


def with_a_bad_page(folder):
    """An outbox with a hundred warnings, of which a page in the middle can't be read."""
    path = folder / "outbox.sqlite"
    first = Outbox(path)
    put(first, *(f"{n:03}{FAT}" for n in range(100)))
    first.close()
    content = bytearray(path.read_bytes())
    at = content.index(b"050xxx") // 4096 * 4096
    content[at : at + 4096] = b"\xff" * 4096
    path.write_bytes(content)
    return path


def test_of_a_file_with_a_bad_page_what_stands_before_and_behind_it_goes_on(tmp_path, caplog):
    path = with_a_bad_page(tmp_path)
    outbox = Outbox(path)
    found = [value[:3] for value in values(outbox)]
    assert found[0] == b"000"
    assert found[-1] == b"099"
    assert found == sorted(found)
    assert 90 <= len(found) < 100
    assert outbox.left_behind
    assert "still in" in logged(caplog, "ERROR")[-1]
    put(outbox, "new")
    assert values(outbox)[-1] == b"new"
    outbox.close()


def test_a_disk_that_cannot_be_read_for_a_while_skips_nothing(outbox, monkeypatch, clock, caplog, tmp_path):
    put(outbox, "a", "b")

    def unreadable(self, position, limit):
        raise sqlite3.OperationalError("disk I/O error")

    with monkeypatch.context() as broken:
        broken.setattr(OutboxFile, "after", unreadable)
        assert outbox.after(0, 10) == []
        clock.now += UNREADABLE_SECONDS
        assert outbox.after(0, 10) == []
    assert values(outbox) == [b"a", b"b"]
    assert [*tmp_path.glob("*.damaged-*[0-9]")] == []
    assert len(logged(caplog)) == 1


def test_a_disk_that_cannot_be_read_for_long_is_given_up(outbox, monkeypatch, clock, tmp_path):
    put(outbox, "a", "b")

    def unreadable(self, position, limit):
        raise sqlite3.OperationalError("disk I/O error")

    with monkeypatch.context() as broken:
        broken.setattr(OutboxFile, "after", unreadable)
        outbox.after(0, 10)
        clock.now += UNREADABLE_SECONDS + 1
        outbox.after(0, 10)
    assert len([*tmp_path.glob("*.damaged-*[0-9]")]) == 1
    assert values(outbox) == [b"a", b"b"]


def test_a_disk_that_cannot_be_read_once_after_an_hour_of_quiet_is_not_given_up(outbox, monkeypatch, clock, tmp_path):
    put(outbox, "a")
    assert values(outbox) == [b"a"]
    clock.now += 3600
    with monkeypatch.context() as broken:
        broken.setattr(OutboxFile, "after", lambda self, position, limit: self.connection.execute("nonsense"))
        assert outbox.after(0, 10) == []
    assert values(outbox) == [b"a"]
    assert [*tmp_path.glob("*.damaged-*[0-9]")] == []


@pytest.mark.parametrize(
    "change",
    [
        "update warnings set value = cast(value as text)",  # one bit of the file says which it is
        "update warnings set key = cast(key as text)",
        "insert into episodes values (cast(x'ff' as text), 'when', 'when')",
    ],
)
def test_a_bit_that_is_wrong_holds_nothing_up(outbox, change):
    put(outbox, "a", "b")
    outbox.close()
    with closing(sqlite3.connect(outbox.path)) as connection, connection:
        connection.execute(change)
    again = Outbox(outbox.path)
    assert values(again) == [b"a", b"b"]
    assert {type(warning.key) for warning in again.after(0, 10)} == {bytes}
    again.close()


# A file that is gone


def test_a_file_that_was_removed_is_noticed_and_a_new_one_holds_what_waits(outbox, clock, caplog):
    put(outbox, "a", "b", "c")
    sent = outbox.after(0, 2)
    outbox.path.unlink()
    outbox.maintain()
    assert logged(caplog) == [f"Outbox: {outbox.path} was removed or replaced; a new file holds what waits"]
    put(outbox, "d")
    outbox.remove([sent[0].position])
    assert reopened(outbox) == values(outbox) == [b"b", b"c", b"d"]


def test_what_can_not_be_read_of_a_file_that_was_removed_is_logged(outbox, caplog):
    put(outbox, "a", FAT)
    damage(outbox)
    outbox.path.unlink()
    outbox.maintain()
    (line,) = logged(caplog)
    assert line.endswith("was removed or replaced; a new file holds what could be read of it, and the rest is lost")
    assert outbox.left_behind


def test_a_write_ahead_log_or_a_folder_that_was_removed_is_noticed_too(tmp_path, clock):
    outbox = Outbox(tmp_path / "state" / "outbox.sqlite", clock)
    put(outbox, "a")
    (tmp_path / "state" / "outbox.sqlite-wal").unlink()
    outbox.maintain()
    assert reopened(outbox) == [b"a"]
    shutil.rmtree(tmp_path / "state")
    clock.now += 2
    outbox.maintain()
    assert reopened(outbox) == [b"a"]
    outbox.close()


def test_a_file_that_was_replaced_by_another_outbox_goes_on_with_both(outbox, tmp_path, clock):
    other = Outbox(tmp_path / "other.sqlite", clock)
    put(other, "x", "y", "z")
    other.close()
    put(outbox, "a", "b")
    sent = outbox.after(0, 1)
    os.replace(other.path, outbox.path)
    outbox.maintain()
    assert values(outbox) == [b"a", b"b", b"x", b"y", b"z"]
    outbox.remove([sent[0].position])
    put(outbox, "c")
    assert reopened(outbox) == [b"b", b"x", b"y", b"z", b"c"]


def test_a_file_that_was_replaced_by_nonsense_is_set_aside(outbox, tmp_path, clock):
    put(outbox, "a")
    (tmp_path / "nonsense").write_bytes(b"nonsense" * 1000)
    os.replace(tmp_path / "nonsense", outbox.path)
    for _ in range(3):
        outbox.maintain()
        clock.now += 1
    assert reopened(outbox) == [b"a"]


def test_after_a_removal_a_second_producer_is_refused_all_the_same(outbox, clock, monkeypatch):
    monkeypatch.setattr(outbox_module, "LOCK_SECONDS", 0)
    outbox.path.unlink()
    outbox.maintain()
    with pytest.raises(ValueError, match="in use"):
        Outbox(outbox.path, clock)


def test_where_another_producer_was_faster_it_is_logged_and_what_is_not_sent_until_the_end_is_lost(
    outbox, clock, monkeypatch, caplog
):
    monkeypatch.setattr(outbox_module, "LOCK_SECONDS", 0)
    put(outbox, "a", "b")
    outbox.path.unlink()
    faster = Outbox(outbox.path, clock)
    for _ in range(3):
        clock.now += 1
        outbox.maintain()
    assert logged(caplog) == [
        f"Outbox: {outbox.path} was removed, and no new file can be used: another producer uses it; trying again"
    ]
    outbox.remove([outbox.after(0, 1)[0].position])
    assert values(outbox) == [b"b"]
    outbox.close()
    assert (outbox.lost, values(faster)) == (1, [])
    faster.close()


# Overloads


@pytest.mark.parametrize(
    ("interval", "seconds", "starts"),
    [
        (1, [0, 1, 2, 7, 12.1], [0, 0, 0, 0, 12.1]),
        (10, [0, 20, 40.1], [0, 0, 40.1]),
        (1, [0, 1, -3600, -3599], [0, 0, -3600, -3600]),  # the clock was set back
        (1, [3600, 3601, 2, 3], [3600, 3600, 2, 2]),
        (1, [0, 1, 0.5, 2], [0, 0, 0, 0]),  # slewed
    ],
)
def test_an_overload_goes_on_while_one_warning_follows_another(outbox, interval, seconds, starts):
    times = [NOON + timedelta(seconds=second) for second in seconds]
    begun = [outbox.episodes.started_at("web-1", at, interval) for at in times]
    assert begun == [NOON + timedelta(seconds=start) for start in starts]


def test_an_overload_goes_on_over_a_kill_and_each_host_has_its_own(outbox):
    outbox.episodes.started_at("web-1", NOON, 1)
    put(outbox, "a")
    outbox.episodes.started_at("web-1", NOON + timedelta(seconds=4), 1)
    put(outbox, "b")
    killed = outbox.path.parent / "killed"
    killed.mkdir()
    for path in outbox.path.parent.glob("outbox.sqlite*"):
        shutil.copy(path, killed)
    again = Outbox(killed / "outbox.sqlite")
    assert again.episodes.started_at("web-1", NOON + timedelta(seconds=9), 1) == NOON
    assert again.episodes.started_at("web-2", NOON + timedelta(seconds=9), 1) == NOON + timedelta(seconds=9)
    again.close()


def test_an_overload_is_stored_with_its_warning_or_not_at_all(outbox, clock):
    outbox.episodes.started_at("web-1", NOON, 1)
    fill_disk(outbox)
    put(outbox, FAT)
    outbox.close()
    again = Outbox(outbox.path, clock)
    assert again.episodes == {}
    again.close()


def test_an_overload_goes_on_in_the_new_file(outbox, clock):
    outbox.episodes.started_at("web-1", NOON, 1)
    put(outbox, "a")
    outbox.path.unlink()
    outbox.maintain()
    outbox.close()
    again = Outbox(outbox.path, clock)
    assert again.episodes == {"web-1": (NOON, NOON)}
    again.close()


def test_a_file_that_turns_out_to_be_damaged_when_the_disk_is_back_hides_nothing_that_memory_holds(
    tmp_path, clock, monkeypatch
):
    path = with_a_bad_page(tmp_path)
    with monkeypatch.context() as broken:
        refuse_files(broken, errno.EIO)
        outbox = Outbox(path, clock)
        put(outbox, "new 0", "new 1", "new 2")
        sent = outbox.after(0, 2)
    clock.now += 2
    outbox.maintain()
    outbox.remove(warning.position for warning in sent)
    found = [value[:5] for value in values(outbox)]
    assert found[:2] == [b"new 2", b"000xx"]
    assert found[-1] == b"099xx"
    outbox.close()
