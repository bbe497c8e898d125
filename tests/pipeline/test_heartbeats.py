"""Heartbeats, and an overload, on their way through both scripts."""

from datetime import UTC, datetime, timedelta

import pytest
from pipeline import Pipeline, encoded, wait_until, warnings

START = datetime(2026, 11, 24, tzinfo=UTC)


def test_the_warnings_of_a_run_are_one_episode(pipeline: Pipeline) -> None:
    producer = pipeline.producer("--flush-interval", "2")
    assert producer.ends() == 0
    pipeline.drain()
    rows = pipeline.assert_recorded()
    (episode,) = pipeline.sql("select * from bandwidth_episodes")
    assert episode["host"] == "web-1"
    assert (episode["started_at"], episode["ended_at"]) == (rows[0]["observed_at"], rows[-1]["observed_at"])
    assert episode["warnings"] == len(rows)
    assert episode["seconds_over"] == pytest.approx(0.1 * len(rows), rel=0.5)


def beat(host: str, at: datetime) -> bytes:
    return encoded({"host": host, "heartbeat_at": at.isoformat(timespec="microseconds")})


def heartbeats(pipeline: Pipeline) -> dict[str, datetime]:
    return {row["host"]: row["heartbeat_at"] for row in pipeline.table("heartbeats", "host")}


def test_a_producer_that_has_nothing_to_warn_of_sends_heartbeats(pipeline: Pipeline) -> None:
    consumer = pipeline.consumer()
    quiet = ("--forever", "--flush-interval", "1", "--heartbeat", "1", "--limit", "1000GB/s")
    producers = [pipeline.producer(*quiet, host=host) for host in ("web-1", "web-2")]
    pipeline.has_rows(0)
    first = wait_for_beats(pipeline, {})
    second = wait_for_beats(pipeline, first)
    assert first.keys() == second.keys() == {"web-1", "web-2"}
    assert all(abs(datetime.now(UTC) - at) < timedelta(minutes=10) for at in second.values())
    for script in (*producers, consumer):
        assert script.stop() == 0
        assert script.complaints() == []
    assert pipeline.rows() == pipeline.rejected() == []
    assert pipeline.sent() >= 4


def wait_for_beats(pipeline: Pipeline, before: dict[str, datetime]) -> dict[str, datetime]:
    """A later heartbeat of both hosts than `before`."""

    def later() -> dict[str, datetime]:
        found = heartbeats(pipeline)
        return found if len(found) == 2 and all(at > before.get(host, START) for host, at in found.items()) else {}

    return wait_until(later, f"later than {before}")


def test_heartbeats_and_warnings_go_their_own_ways(pipeline: Pipeline) -> None:
    producer = pipeline.producer("--flush-interval", "2", "--heartbeat", "0.1")
    assert producer.ends() == 0
    pipeline.drain()
    assert len(pipeline.assert_recorded()) == len(producer.raised())
    assert [*heartbeats(pipeline)] == ["web-1"]
    assert pipeline.rejected() == []
    assert pipeline.sent() > len(producer.raised())


def test_without_the_flag_there_are_no_heartbeats(pipeline: Pipeline) -> None:
    producer = pipeline.producer("--flush-interval", "1")
    assert producer.ends() == 0
    pipeline.drain()
    assert heartbeats(pipeline) == {}
    assert pipeline.sent() == len(producer.raised())


def test_an_old_heartbeat_never_overwrites_a_newer_one(pipeline: Pipeline) -> None:
    consumer = pipeline.consumer()
    for count, seconds in enumerate((10, 5, 10, 20, 0), 1):
        pipeline.send([beat("web-1", START + timedelta(seconds=seconds))])
        wait_until(lambda count=count: pipeline.consumed() == {0: count}, f"{count} consumed")
    assert heartbeats(pipeline) == {"web-1": START + timedelta(seconds=20)}
    assert consumer.stop() == 0


def test_an_old_heartbeat_never_overwrites_a_newer_one_of_the_same_batch(pipeline: Pipeline) -> None:
    pipeline.send([beat("web-1", START + timedelta(seconds=seconds)) for seconds in (5, 20, 0)])
    pipeline.drain()
    assert heartbeats(pipeline) == {"web-1": START + timedelta(seconds=20)}


@pytest.mark.parametrize(
    "at",
    ["2026-W47-2T00:00:00+00:00", "2026-11-24T00:00:00+23:00"],
    ids=["a week", "an offset of 23 hours"],
)
def test_a_heartbeat_that_postgresql_refuses_holds_up_nothing(pipeline: Pipeline, at: str) -> None:
    pipeline.send([encoded({"host": "web-1", "heartbeat_at": at}), *warnings(3)])
    pipeline.drain()
    assert pipeline.count() == 3
    assert len(pipeline.rejected()) == 1
