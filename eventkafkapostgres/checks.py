"""--check: a line for each thing that is needed, with what to do where it is wrong. Nothing is changed."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sqlite3
import sys
import tempfile
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient, OffsetSpec
from kafka.errors import CoordinatorNotAvailableError, GroupAuthorizationFailedError, KafkaError

from eventkafkapostgres.bandwidth import Interfaces, bandwidth, check_intervals, read_counters
from eventkafkapostgres.console import is_writable
from eventkafkapostgres.outages import KafkaLog, SettingsError, counted, explain_kafka_error
from eventkafkapostgres.outbox import outbox_path
from eventkafkapostgres.positions import topic_key
from eventkafkapostgres.rates import format_rate
from eventkafkapostgres.settings import make_client
from eventkafkapostgres.tls import Certificates, expiry_text
from eventkafkapostgres.topic import Topic, config_problems, describe_topic, make_admin

logger = logging.getLogger(__name__)

CHECK_SECONDS = 13.0  # what has not answered by then does not answer
KAFKA_SECONDS = 7.0  # the same for the first answer of Kafka: a TLS handshake may take 5 s more than that
WRITTEN_BYTES = 1 << 16  # what a disk must have room for: a warning, and what SQLite keeps beside its file
MEASURED_SECONDS = 1.0  # for the rate of the moment


class CheckResult(NamedTuple):
    """One line of --check, which says what to do where something is wrong."""

    ok: bool
    text: str


Check = Callable[[], Iterable[CheckResult] | None]  # None where there is nothing to say; SettingsError is a result


@dataclass
class Found:
    """What the lag is computed from."""

    stored: dict[UUID, dict[int, int]] | None = None  # next offsets by topic id and partition, if PostgreSQL answers
    topic_id: UUID | None = None
    offsets: dict[int, tuple[int, int]] = field(default_factory=dict)  # of each partition: where it begins and ends


def print_results(results: Iterable[CheckResult]) -> int:
    """Print a line for each result as soon as it is there; the exit status. Where nobody reads, the checks go on."""
    marks = "✓✗"
    try:
        marks.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        marks = "+x"
    status, is_read = 0, True
    for ok, text in results:
        status |= not ok
        try:
            if is_read and not is_writable(sys.stdout):
                raise TimeoutError(errno.ETIMEDOUT, "nobody reads them")
            if is_read:
                print(marks[not ok], " ".join(text.split()), flush=True)
        except BrokenPipeError:
            is_read = False
        except OSError as error:
            logger.error("can't print the results: %s", error.strerror)
            status, is_read = 1, False
    return status


# What each script needs


def check_producer(
    settings: Namespace, options: Callable[[], dict[str, Any]], kafka_log: KafkaLog
) -> Iterator[CheckResult]:
    """Everything that the producer needs; `options` makes those of its KafkaProducer."""
    checks: dict[str, Check] = {
        "intervals": lambda: check_intervals(settings.interval, settings.flush_interval),
        "bandwidth": lambda: check_bandwidth(settings.interface, settings.limit, settings.host),
        "outbox": lambda: [check_outbox(settings.outbox or outbox_path(os.environ))],
        "Kafka": lambda: check_kafka(KafkaProducer, options(), kafka_log, settings.topic, "WRITE", Found()),
    }
    yield from run_checks(checks, kafka_log)


def check_consumer(
    settings: Namespace,
    options: Callable[[], dict[str, Any]],
    check_postgres: Callable[[Found], Iterable[CheckResult]],
    kafka_log: KafkaLog,
) -> Iterator[CheckResult]:
    """Everything that the consumer needs; `options` makes those of its KafkaConsumer."""
    found = Found()
    checks: dict[str, Check] = {
        "PostgreSQL": lambda: check_postgres(found),
        "Kafka": lambda: check_kafka(KafkaConsumer, options(), kafka_log, settings.topic, "READ", found),
    }
    yield from run_checks(checks, kafka_log)
    if found.stored is not None and found.topic_id:
        stored = found.stored.get(found.topic_id, {})
        behind = sum(max(0, end - max(begin, stored.get(at, 0))) for at, (begin, end) in found.offsets.items())
        yield CheckResult(True, f"lag: {counted(behind, 'message')} not recorded yet")


def run_checks(checks: Mapping[str, Check], kafka_log: KafkaLog) -> Iterator[CheckResult]:
    """The results of checks that run side by side, in order.

    A wrong setting is a result like any other, and so is that a check has not ended in time.
    """

    def collect(check: Check, results: list[CheckResult]) -> None:
        try:
            for result in check() or ():
                results.append(result)
        except SettingsError as error:
            results.append(CheckResult(False, str(error)))

    ends_at = time.monotonic() + CHECK_SECONDS
    pool = ThreadPoolExecutor(len(checks))
    lists: dict[str, list[CheckResult]] = {name: [] for name in checks}
    jobs = {name: pool.submit(collect, check, lists[name]) for name, check in checks.items()}
    for name, job in jobs.items():
        wait([job], timeout=max(0.0, ends_at - time.monotonic()))
        if job.done():
            job.result()  # raises what the check has raised
        else:
            cause = (kafka_log.cause if name == "Kafka" else "") or "no answer"
            lists[name] = [*lists[name], CheckResult(False, f"{name}: {cause}; given up after {CHECK_SECONDS:.0f} s")]
        yield from lists[name]


# The producer's host


def check_bandwidth(wanted: Sequence[str], limit: float, host: str) -> Iterator[CheckResult]:
    """What is measured, and its rate in this second."""
    try:
        before, began_at = read_counters(), time.monotonic()
        time.sleep(MEASURED_SECONDS)
        after, seconds = read_counters(), time.monotonic() - began_at
    except OSError as error:
        yield CheckResult(False, f"bandwidth: can't read the interfaces' counters: {error.strerror}")
        return
    interfaces = Interfaces(wanted)
    interfaces.choose(after)
    measured = {name: before[name] for name in interfaces.measured if name in before}
    yield CheckResult(len(measured) >= max(1, len(interfaces.wanted)), interfaces.describe(after))
    rate = format_rate(sum(bandwidth(measured, after, seconds)))
    yield CheckResult(True, f"bandwidth of {host}: {rate} now, the limit is {format_rate(limit)}")


def check_outbox(path: Path) -> CheckResult:
    """Whether the outbox can be used, and what waits in it."""
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            return CheckResult(False, f"outbox {path}: not a regular file; give another --outbox")
        if path.exists():
            return check_outbox_file(path)
        parent = next(folder for folder in path.absolute().parents if folder.exists())
        write_some(parent)
    except OSError as error:
        return CheckResult(False, f"outbox {path}: can't be written: {error.strerror}; give another --outbox")
    return CheckResult(True, f"outbox {path}: will be made")


def write_some(folder: Path) -> None:
    """Write a file that is gone afterwards. OSError where the folder, or its disk, takes none."""
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(WRITTEN_BYTES))
        file.flush()


def check_outbox_file(path: Path) -> CheckResult:
    """The same for an outbox that is there. OSError where its folder can't be written."""
    write_some(path.absolute().parent)  # SQLite makes files beside it
    try:
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=0)) as outbox:
            outbox.isolation_level = None
            outbox.execute("pragma locking_mode = exclusive")  # so that no file is made for sharing it
            outbox.execute("begin immediate")  # fails where the file can't be written; closing rolls it back
            if (damage := outbox.execute("pragma quick_check(1)").fetchone()[0]) != "ok":
                return CheckResult(False, f"outbox {path}: damaged ({damage}): it will be set aside")
            made = outbox.execute("select count(*) from sqlite_master where name = 'warnings'").fetchone()[0]
            waiting = outbox.execute("select count(*) from warnings").fetchone()[0] if made else 0
            return CheckResult(True, f"outbox {path}: {counted(waiting, 'warning')} waiting")
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY:
            return CheckResult(True, f"outbox {path}: in use by a producer that runs")
        return CheckResult(False, f"outbox {path}: {error}; give another --outbox")


# Kafka


def check_kafka(
    client: Any, options: dict[str, Any], kafka_log: KafkaLog, topic: str, privilege: str, found: Found
) -> Iterator[CheckResult]:
    """The certificates, the broker, the topic with this user's privilege on it ("READ" or "WRITE"), the group."""
    certificates = Certificates(options)
    for setting, count, days in certificates.expiries(datetime.now(UTC)):
        several = f"{count} certificates, the " + ("first" if setting.endswith("CERTFILE") else "last")
        yield CheckResult(days >= 0, f"{setting}: {f'{several} ' if count > 1 else ''}{expiry_text(days)}")
    try:
        made = make_client(client, certificates.context, options)
        threading.Thread(target=made.close, args=(0,), daemon=True).start()  # it may wait for a broker that is silent
    except SettingsError as error:
        yield CheckResult(False, str(error))
    servers, protocol = options["bootstrap_servers"], options["security_protocol"]
    note = "" if protocol.endswith("SSL") else ": plain text, anybody on the way can read and change it"
    try:
        with contextlib.closing(make_admin(options, certificates.context, KAFKA_SECONDS)) as admin:
            described = describe_topic(admin, topic)
            yield CheckResult(True, f"Kafka: {servers} answers, {protocol}{note}")
            yield from check_topic(described, privilege)
            if group := options.get("group_id"):
                yield check_group(admin, group)
                if described.partitions and not described.without_leader:
                    found.offsets = partition_offsets(admin, described)
                    found.topic_id = topic_key(described.topic_id, admin.describe_cluster()["cluster_id"], topic)
    except KafkaError as error:
        yield CheckResult(False, f"Kafka: {servers}: {kafka_log.cause or explain_kafka_error(str(error))}")


def check_topic(topic: Topic, privilege: str) -> Iterator[CheckResult]:
    """Whether the topic is there, with the privilege and without trouble."""
    partitions = f"topic {topic.name}: {counted(len(topic.partitions), 'partition')}"
    if not topic.partitions:
        problem = "missing, or not visible to this user; create it and grant DESCRIBE on it"
        yield CheckResult(False, f"topic {topic.name}: {problem}")
        return
    if privilege in topic.operations:
        yield CheckResult(True, f"{partitions}, {privilege} is granted")
    else:
        yield CheckResult(False, f"{partitions}, but no right to {privilege}: grant it to this user")
    if topic.without_leader:
        numbers = ", ".join(map(str, topic.without_leader))
        yield CheckResult(False, f"topic {topic.name}: no leader for partition {numbers}: are all brokers running?")
    for problem in config_problems(topic, reads=privilege == "READ"):
        yield CheckResult(False, problem)


def check_group(admin: KafkaAdminClient, group: str) -> CheckResult:
    """Whether this user may join the consumer group."""
    for pause_seconds in (1, 1, 1, 1, 0):
        try:
            described = admin.describe_groups([group])[group]
            if "READ" in (described["authorized_operations"] or "READ"):  # none are told of a group that is new
                return CheckResult(True, f"group {group}: may be joined")
            break
        except GroupAuthorizationFailedError:
            break
        except CoordinatorNotAvailableError:  # a new Kafka makes its topic of offsets when it is first asked
            if not pause_seconds:
                raise
            time.sleep(pause_seconds)
    return CheckResult(False, f"group {group}: no right to READ: grant it to this user")


def partition_offsets(admin: KafkaAdminClient, topic: Topic) -> dict[int, tuple[int, int]]:
    """Where each partition of the topic begins and ends."""
    partitions = [TopicPartition(topic.name, number) for number in topic.partitions]
    begins = admin.list_partition_offsets(dict.fromkeys(partitions, OffsetSpec.EARLIEST))
    ends = admin.list_partition_offsets(dict.fromkeys(partitions, OffsetSpec.LATEST))
    return {at.partition: (begins[at].offset, ends[at].offset) for at in partitions}
