"""schema.sql, as kconsumer and its checks read it."""

import re
from importlib.resources import files

from eventkafkapostgres.message import COLUMNS
from eventkafkapostgres.schema import PRIVILEGES, STATEMENTS, TABLES

TEXT = files("eventkafkapostgres").joinpath("schema.sql").read_text(encoding="utf-8")


def test_every_statement_is_found_in_order() -> None:
    assert [*STATEMENTS] == [
        "bandwidth_exceeds",
        "bandwidth_exceeds_host_episode",
        "bandwidth_exceeds_times",
        "rejected_messages",
        "consumed_offsets",
        "heartbeats",
        "bandwidth_episodes",
    ]
    assert len(STATEMENTS) == len(re.findall(r";$", TEXT, re.MULTILINE)) == TEXT.count("\ncreate ")
    assert all(statement.endswith(";") and "--" not in statement for statement in STATEMENTS.values())


def test_every_statement_can_be_run_again() -> None:
    assert all(
        re.match("create (?:(?:table|index) if not exists|or replace view) ", statement)
        for statement in STATEMENTS.values()
    )


def test_every_statement_has_a_comment_for_who_reads_it() -> None:
    assert len(re.findall(r"^-- .*\ncreate ", TEXT, re.MULTILINE)) == len(STATEMENTS)


def test_the_columns_of_the_tables_are_read() -> None:
    assert [*TABLES["bandwidth_exceeds"]] == [*COLUMNS[:-1], "recorded_at", "extra"]
    assert TABLES["bandwidth_exceeds"]["seconds"] == "double precision"
    assert TABLES["bandwidth_exceeds"]["interfaces"] == "text[]"
    assert TABLES["consumed_offsets"] == {
        "consumer_group": "text",
        "topic_id": "uuid",
        "partition": "integer",
        "topic": "text",
        "next_offset": "bigint",
    }
    assert PRIVILEGES.keys() == TABLES.keys()


def test_the_key_of_what_is_rejected_and_consumed_is_the_topics_id() -> None:
    assert 'primary key (topic_id, partition, "offset")' in STATEMENTS["rejected_messages"]
    assert "primary key (consumer_group, topic_id, partition)" in STATEMENTS["consumed_offsets"]
