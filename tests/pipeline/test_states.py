"""What both scripts use while something is away, silent, refused or gone: hardly any CPU time, and no more memory."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path

import pytest
from pipeline import Pipeline, Side, new_pipeline, warnings
from scripts import uses_hardly_anything

from servers import Mode, Servers

pytestmark = pytest.mark.long

BACKLOG = 20_000  # several batches, which wait for PostgreSQL

State = Callable[[Pipeline], AbstractContextManager[object]]


def once(deed: Callable[[Pipeline], object]) -> State:
    """What the end of each pipeline undoes."""

    def change(pipeline: Pipeline) -> AbstractContextManager[object]:
        deed(pipeline)
        return nullcontext()

    return change


def network(side: Side, mode: Mode) -> State:
    return once(lambda pipeline: setattr(pipeline.proxy(side), "mode", mode))


@contextmanager
def no_rights(pipeline: Pipeline) -> Iterator[None]:
    """Of Kafka's user; the others' come back at the end."""
    kafka = pipeline.servers.kafka
    kafka.disallow("service")
    try:
        yield
    finally:
        for kind in ("topic", "group", "transactional_id"):
            kafka.allow("service", "ALL", **{kind: "*"})


def sql(statement: str, undo: str = "") -> State:
    """A superuser's statement about the pipeline's database, and what undoes it where that outlives the database."""

    @contextmanager
    def change(pipeline: Pipeline) -> Iterator[None]:
        pipeline.sql(statement.format(database=pipeline.database))
        try:
            yield
        finally:
            if undo:
                pipeline.sql(undo)

    return change


@contextmanager
def locked(pipeline: Pipeline) -> Iterator[None]:
    """Somebody's transaction holds the table."""
    with closing(pipeline.servers.postgres.connect("postgres", dbname=pipeline.database)) as connection:
        connection.cursor().execute("lock table bandwidth_exceeds")
        yield


STATES: dict[str, tuple[State, str]] = {  # and who notices it
    "Kafka refuses connections": (network("kafka", "refuse"), "both"),
    "Kafka is silent": (network("kafka", "black hole"), "both"),
    "Kafka was killed": (once(lambda pipeline: pipeline.servers.kafka.kill()), "both"),
    "the topic was deleted": (once(lambda pipeline: pipeline.delete_topic()), "both"),
    "no rights in Kafka": (no_rights, "both"),
    "PostgreSQL refuses connections": (network("postgres", "refuse"), "kconsumer"),
    "PostgreSQL is silent": (network("postgres", "black hole"), "kconsumer"),
    "PostgreSQL was killed": (once(lambda pipeline: pipeline.servers.postgres.kill()), "kconsumer"),
    "no rights in PostgreSQL": (sql("revoke insert on bandwidth_exceeds from events"), "kconsumer"),
    "the table is gone, and another has its name": (
        sql("alter table bandwidth_exceeds rename to mine; create view bandwidth_exceeds as select 1"), "kconsumer"),
    "the database is read-only": (
        sql('alter database "{database}" set default_transaction_read_only = on'), "kconsumer"),
    "no connection is free": (
        sql("alter role events connection limit 0", "alter role events connection limit -1"), "kconsumer"),
    "the table is locked": (locked, "kconsumer"),
}  # fmt: skip


@pytest.mark.parametrize("name", STATES)
def test_a_script_that_can_not_go_on_uses_hardly_anything(
    guarded: Servers, tmp_path: Path, name: str, figures: list[str]
) -> None:
    """The state is begun, noticed and then measured for ten seconds, in which nothing is to be done."""
    begin, noticed_by = STATES[name]
    with new_pipeline(guarded, tmp_path) as pipeline:
        environment = pipeline.environment(proxied=True)
        consumer = pipeline.consumer(environment=environment)
        producer = pipeline.producer("--interval", "1", "--forever", environment=environment)
        pipeline.has_rows(2)
        with begin(pipeline):
            if noticed_by == "both":
                assert producer.says("WARNING Kafka: ")
            else:
                pipeline.send(warnings(BACKLOG))
            assert consumer.says("WARNING (Kafka|PostgreSQL): ")
            uses_hardly_anything(figures, name, consumer, producer)
            assert consumer.process.poll() is producer.process.poll() is None
