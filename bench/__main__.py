"""Compare kconsumer.py with its ceilings and with other systems, on real servers; see bench/README.md.

$ python -m bench
"""

import argparse
import os
import time
from dataclasses import asdict, replace
from typing import Any

from bench import report
from bench.growth import growth
from bench.latency import latency
from bench.load import TOPIC, load, messages
from bench.measure import foreign_seconds
from bench.producer import MODES, cost
from bench.services import Service, kconsumer, others
from bench.systems import System, ceiling, empty, make_tables, sent_twice, systems
from servers import Servers, servers

# The default of Kafka: several consumers that start together get their partitions together.
PROPERTIES = {"group.initial.rebalance.delay.ms": "1000"}
# The demo's Kafka starts fast, with half a compiler, and then spends five times the CPU time on TLS: this one wins.
JAVA = "-XX:TieredStopAtLevel=4"
SETTINGS = {"track_commit_timestamp": "on", "max_wal_size": "8GB"}
PARTS = ("rates", "latency", "twice", "producer", "growth")
LATENCIES = {  # a name for the table: which service, and what is set for it
    "kconsumer": ("kconsumer", {}),
    "Telegraf, 1 s": ("Telegraf, no key", {"TELEGRAF_FLUSH": "1s"}),
    "Telegraf, 0.1 s": ("Telegraf, no key", {"TELEGRAF_FLUSH": "100ms"}),
    "Debezium JDBC": ("Debezium JDBC, upsert", {}),
}


def say(line: str) -> None:
    print(line, flush=True)


def measure_rates(running: Servers, chosen: dict[str, System], settings: argparse.Namespace) -> dict[str, Any]:
    """Rounds of all systems, in turn, each into an empty table."""
    load(running, TOPIC, settings.partitions, messages(settings.messages))
    ceiling("poll_only")(running, settings.messages)  # Kafka compiles what all that follow need
    rates: dict[str, list[dict[str, Any]]] = {name: [] for name in chosen}
    for number in range(settings.rounds):
        for name, run in chosen.items():
            empty(running)
            begun, foreign = time.perf_counter(), foreign_seconds(running)
            result = run(running, settings.messages)
            result.foreign_cores = (foreign_seconds(running) - foreign) / (time.perf_counter() - begun)
            per_row = {"rows_per_second": result.rows_per_second,
                       "cpu_seconds_per_100_000": result.cpu_seconds_per_100_000}  # fmt: skip
            rates[name].append(asdict(result) | per_row)
            say(f"{number + 1}: {name}: {result.rows_per_second:,.0f} rows/s, others {result.foreign_cores:.2f} cores")
    return rates


def measure_latency(running: Servers, services: dict[str, Service], seconds: int) -> dict[str, Any]:
    """Each service alone, one after the other."""
    found = {}
    for name, (which, variables) in LATENCIES.items():
        if which in services:
            service = replace(services[which], variables=variables)
            say(f"Latency of {name}, {seconds + 40} s ...")
            found[name] = asdict(latency(running, service, 10 * seconds))
    return found


def measure_twice(running: Servers, services: dict[str, Service]) -> dict[str, Any]:
    """Two thirds of the messages, then the last two thirds."""
    there = list(messages(15_000))
    load(running, "twice", 4, there[:10_000] + there[5_000:])
    found = {}
    for name, service in services.items():
        say(f"Messages sent twice: {name} ...")
        found[name] = asdict(sent_twice(running, service, "twice", len(there)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    add = parser.add_argument
    add("--messages", type=int, default=300_000, metavar="N")
    add("--rounds", type=int, default=3, metavar="N")
    add("--partitions", type=int, default=4, metavar="N")
    add("--seconds", type=int, default=60, metavar="N", help="how long to watch for latency and producer (default: 60)")
    add("--part", action="append", choices=PARTS, help="may be repeated (default: all but growth)")
    add("--only", action="append", metavar="NAME", help="one system of the rates; may be repeated")
    add("--growth", action="append_const", dest="part", const="growth", help="the same as --part growth")
    add("--growth-rows", type=int, default=20_000_000, metavar="N", help="(default: 20,000,000)")
    add("--save", action="store_true", help="write results.json and results.png")
    settings = parser.parse_args()
    parts = settings.part or PARTS[:-1]
    services = others(say)
    chosen = systems(services)
    if unknown := set(settings.only or ()) - chosen.keys():
        parser.error(f"there is no {', '.join(unknown)}; there are: {', '.join(chosen)}")
    chosen = {name: chosen[name] for name in settings.only or chosen}
    services = {"kconsumer": Service(kconsumer), **services}
    os.environ.setdefault("_JAVA_OPTIONS", JAVA)
    results: dict[str, Any] = {"machine": report.machine(), "messages": settings.messages, "rounds": settings.rounds}
    with servers(say, properties=PROPERTIES, settings=SETTINGS) as running:
        make_tables(running)
        if "rates" in parts:
            results["rates"] = measure_rates(running, chosen, settings)
        if "latency" in parts:
            results["latency"] = measure_latency(running, services, settings.seconds)
        if "twice" in parts:
            results["twice"] = measure_twice(running, services)
        if "producer" in parts:
            results["producer"] = {}
            for state in MODES:
                say(f"Producer, broker {state}, {settings.seconds + 15} s ...")
                results["producer"][state] = asdict(cost(running, state, settings.seconds))
        if "growth" in parts:
            grown = growth(running, settings.growth_rows, settings.messages, settings.rounds, settings.partitions, say)
            results["growth"] = [asdict(each) for each in grown]
    say("\n" + report.text(results))
    if settings.save:
        report.save(results)


if __name__ == "__main__":
    main()
