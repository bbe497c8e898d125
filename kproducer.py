"""Send a warning to Apache Kafka for each second in which this host uses more bandwidth than its limit.

$ python kproducer.py --limit 1MB/s
"""

from __future__ import annotations

import eventkafkapostgres.signals  # noqa: F401 (first: Ctrl-C during what follows shows no traceback)

# isort: split
import argparse
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from typing import NoReturn

from kafka import KafkaProducer

from eventkafkapostgres import __version__
from eventkafkapostgres.bandwidth import Interfaces, Sample, check_intervals, interface_name, samples
from eventkafkapostgres.checks import check_producer, print_results
from eventkafkapostgres.console import (
    OneLineParser,
    Stop,
    argument,
    printable,
    run_command,
    run_process,
    seconds,
    topic_name,
)
from eventkafkapostgres.delivery import Delivery, InFlight, answer_seconds
from eventkafkapostgres.log import Terminal
from eventkafkapostgres.message import heartbeat, to_json, uuid7, warning
from eventkafkapostgres.outages import KafkaLog, counted
from eventkafkapostgres.outbox import Outbox, outbox_path
from eventkafkapostgres.rates import format_rate, parse_rate
from eventkafkapostgres.settings import make_client, producer_options
from eventkafkapostgres.tls import Certificates
from eventkafkapostgres.workarounds import PRODUCER_CLIENT, end_producer
from simpleEvents import EventSystem

logger = logging.getLogger("kproducer")

FLUSH_SECONDS = 10.0  # how long the end of an interval waits for the last acknowledgements
STOP_SECONDS = 3.0  # the same after SIGINT or SIGTERM


def bandwidth_exceed_event_system(
    samples: Iterator[Sample | None],
    bandwidth_exceeds: EventSystem[InFlight],
    outbox: Outbox,
    delivery: Delivery,
    settings: argparse.Namespace,
    stop: Stop,
    show: Callable[[str, bool], None] = lambda line, alert: None,
    clock: Callable[[], float] = time.monotonic,
) -> bool:
    """One flush interval: a warning for each second above the limit, registered and sent at once; flush; break out.

    Whether another one follows: with --forever, until one is flushed after the stop.
    `samples` has None between two samples whenever the delivery has something to do.
    """
    ends_at = clock() + settings.flush_interval
    key, half_a_tick = settings.host.encode(), settings.interval / 2
    sampled, raised, acknowledged_before, stopped = 0, 0, delivery.acknowledgements, False
    for sample in samples:
        if sample and sample.bytes_per_second > settings.limit:
            raised += 1
            event_id = uuid7(sample.observed_at.timestamp(), secrets.randbits(74))
            episode_started_at = outbox.episodes.started_at(settings.host, sample.observed_at, settings.interval)
            bandwidth_exceed = warning(sample, settings.host, settings.limit, event_id, episode_started_at)
            outbox.put(key, to_json(bandwidth_exceed).encode())
            logger.warning("%s (%s)", bandwidth_exceed["message"], event_id)
        for event in delivery.due():  # oldest first
            bandwidth_exceeds.add_event(event)
            delivery.send(event)
        for event in delivery.acknowledged():
            bandwidth_exceeds.remove_event(event)
        if sample:
            sampled += 1
            if settings.heartbeat and clock() >= delivery.heartbeat_at:
                beat = to_json(heartbeat(settings.host, sample.observed_at)).encode()
                delivery.send_heartbeat(key, beat, settings.heartbeat)
            rates = f"{format_rate(sample.bytes_per_second)} of {format_rate(settings.limit)}"
            show(f"{rates}, {raised} warnings raised, {len(outbox)} waiting", sample.bytes_per_second > settings.limit)
        # the tick at the end belongs to the interval; without a sample, half a tick later, it is over as well
        stopped = stop.is_set()
        if stopped or clock() + (half_a_tick if sample else -half_a_tick) >= ends_at:
            delivery.flush(flush_seconds(settings, stopped, outbox))
            break
    logger.info("interval over: %d samples, %d warnings raised, %d acknowledged, %d left",
                sampled, raised, delivery.acknowledgements - acknowledged_before, len(outbox))  # fmt: skip
    return settings.forever and not stopped


def flush_seconds(settings: argparse.Namespace, stopped: bool, outbox: Outbox) -> float:
    """How long a flush may take. With --forever it must not delay the next sample."""
    if stopped:
        return STOP_SECONDS if len(outbox) else 0.0
    return min(FLUSH_SECONDS, settings.interval / 2) if settings.forever else FLUSH_SECONDS


def check(settings: argparse.Namespace, kafka_log: KafkaLog) -> int:
    """--check: everything that the producer needs."""
    return print_results(check_producer(settings, partial(producer_options, os.environ), kafka_log))


def build_parser(prog: str) -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog=prog,
        description="Warn through Apache Kafka of each second in which this host uses more bandwidth than its limit.",
        epilog="Environment: KAFKA_BOOTSTRAP_SERVERS, KAFKA_SSL_CAFILE, KAFKA_SSL_CERTFILE, KAFKA_SSL_KEYFILE, and "
        "KAFKA_<OPTION> for each option of kafka-python. Exit status: 0 done; 1 failed, or warnings are left in the "
        "outbox; 2 wrong usage or settings.",
    )
    add = parser.add_argument
    add("--limit", type=argument(parse_rate), default="1MB/s", metavar="RATE",
        help="bytes a second, sent plus received: 1000000, 1MB/s, 80Mbit/s, 1MiB/s (default: 1MB/s)")  # fmt: skip
    add("--interval", type=argument(seconds), default=1.0, metavar="SECONDS",
        help="time between two samples (default: 1)")  # fmt: skip
    add("--flush-interval", type=argument(seconds), default=120.0, metavar="SECONDS",
        help="time until the flush, and the end (default: 120)")  # fmt: skip
    add("--interface", type=argument(interface_name), action="append", default=[], metavar="NAME",
        help="an interface to measure; may be repeated (default: those that carry the host's traffic to others, "
        "each byte once)")  # fmt: skip
    add("--topic", type=argument(topic_name), default="bandwidth_exceeds", metavar="NAME",
        help="Kafka's topic (default: bandwidth_exceeds)")  # fmt: skip
    add("--host", type=argument(printable), default=socket.gethostname(), metavar="NAME",
        help="the name in the warnings (default: this host's name)")  # fmt: skip
    add("--outbox", type=Path, metavar="FILE",
        help="where warnings wait for Kafka (default: outbox.sqlite in $STATE_DIRECTORY, else in eventKafkaPostgres "
        "under $XDG_STATE_HOME or ~/.local/state)")  # fmt: skip
    add("--heartbeat", type=argument(seconds), metavar="SECONDS",
        help="record this often in the table heartbeats that this host is watched (default: never)")  # fmt: skip
    add("--forever", action="store_true", help="start the next interval instead of ending")
    add("--check", action="store_true", help="try everything that is needed, change nothing, and say what to do")
    add("-v", "--verbose", action="store_true", help="log more, and tracebacks")
    add("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Sample, warn and send until the interval is over, or for ever; the exit status."""

    def run(settings: argparse.Namespace, stop: Stop, kafka_log: KafkaLog, terminal: Terminal) -> int:
        check_intervals(settings.interval, settings.flush_interval)
        options = producer_options(os.environ)
        certificates = Certificates(options)
        certificates.renew()
        outbox = Outbox(settings.outbox or outbox_path(os.environ))
        new_producer = partial(make_client, KafkaProducer, certificates.context, options | PRODUCER_CLIENT)
        kproducer = new_producer()
        bandwidth_exceeds: EventSystem[InFlight] = EventSystem()
        delivery = Delivery(kproducer, new_producer, settings.topic, outbox, bandwidth_exceeds, kafka_log,
                            answer_seconds(options))  # fmt: skip
        logger.info("started: limit %s, topic %s, %s waiting in %s", format_rate(settings.limit), settings.topic,
                    counted(len(outbox), "warning"), outbox.path)  # fmt: skip
        ticks = samples(settings.interval, Interfaces(settings.interface), stop.wait, delivery.pause)
        rounds = chain(ticks, repeat(None))  # SIGINT and SIGTERM end the ticks: one more round, for the flush
        show = terminal.set_status
        while bandwidth_exceed_event_system(rounds, bandwidth_exceeds, outbox, delivery, settings, stop, show):
            certificates.renew()
        terminal.set_status("")
        return end(outbox, delivery, stop)

    return run_command(build_parser("kproducer"), argv, run, check)


def end(outbox: Outbox, delivery: Delivery, stop: Stop) -> int:
    """The exit status. Each reason for a 1 is in the log."""
    end_producer(delivery.kproducer)
    outbox.close()
    never_reached = not delivery.was_reached and not stop.is_set()
    if (len(outbox) or never_reached) and not delivery.outage.causes:
        logger.error("Kafka: %s", delivery.kafka_log.cause or "no answer yet")
    if len(outbox):
        logger.error("%s left in %s: the next run sends them", counted(len(outbox), "warning"), outbox.path)
    return 1 if len(outbox) or outbox.lost or outbox.left_behind or never_reached else 0


def command() -> NoReturn:
    """Run main() and end at once: kafka-python's threads would hold up the end of a process whose broker is away."""
    run_process(main)


if __name__ == "__main__":
    command()
