"""Compare kconsumer.py with its ceilings and with other systems, on real servers.

$ python -m bench
"""

import argparse
import os
from statistics import median

from bench.load import load
from bench.systems import SYSTEMS, Result, empty, make_tables
from demo.servers import servers

# The default of Kafka: several consumers that start together get their partitions together.
PROPERTIES = {"group.initial.rebalance.delay.ms": "1000"}
# The demo's Kafka starts fast, with half a compiler, and then spends five times the CPU time on TLS: this one wins.
JAVA = "-XX:TieredStopAtLevel=4"
SETTINGS = {"track_commit_timestamp": "on"}


def line(name: str, results: list[Result], ratios: list[float]) -> str:
    cpu = median(each.cpu_seconds * 100_000 / each.rows for each in results)
    rate, peak = median(each.rows_per_second for each in results), median(each.peak_bytes for each in results)
    ratio = f"{median(ratios):.2f}" if ratios else ""
    process = median(each.process_seconds for each in results)
    return f"| {name} | {rate:,.0f} | {cpu:.2f} | {peak / 1e6:.0f} | {ratio} | {process:.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--messages", type=int, default=300_000, metavar="N")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--partitions", type=int, default=4, metavar="N")
    parser.add_argument("--only", action="append", choices=SYSTEMS, metavar="NAME")
    settings = parser.parse_args()
    chosen = settings.only or list(SYSTEMS)
    os.environ.setdefault("_JAVA_OPTIONS", JAVA)
    results: dict[str, list[Result]] = {name: [] for name in chosen}
    with servers(print, properties=PROPERTIES, settings=SETTINGS) as running:
        make_tables(running)
        load(running, settings.messages, settings.partitions)
        for number in range(settings.rounds):
            for name in chosen:
                empty(running)
                result = SYSTEMS[name](running, settings.messages)
                results[name].append(result)
                print(f"{number + 1}: {name}: {result.rows_per_second:,.0f} rows/s", flush=True)
    copies = results.get("plain COPY", [])
    print("| system | rows/s | CPU s/100k | peak MB | of COPY | process s |\n|---|---|---|---|---|---|")
    for name, runs in results.items():
        ratios = [one.rows_per_second / copy.rows_per_second for one, copy in zip(runs, copies, strict=False)]
        print(line(name, runs, ratios))


if __name__ == "__main__":
    main()
