"""What was measured, as tables of at most 80 columns, as JSON and as a picture."""

import json
import os
import platform
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from servers import KAFKA, POSTGRES

JSON, PNG = Path(__file__).parent / "results.json", Path(__file__).parent / "results.png"
COPY = "ceiling: plain COPY"
Runs = Sequence[dict[str, Any]]  # of one system, each with the fields of systems.Result and its two rates


def machine() -> dict[str, Any]:
    """What everything runs on."""
    cpu = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).exists():
        names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0] if names else cpu
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "cores": os.cpu_count(),
        "cpu": cpu,
        "python": platform.python_version(),
        "servers": [KAFKA, POSTGRES],
    }


def of_copy(rates: dict[str, Runs], name: str) -> float | None:
    """The median of the ratios to plain COPY, each within one round."""
    pairs = zip(rates[name], rates.get(COPY, []), strict=False)
    ratios = [one["rows_per_second"] / copy["rows_per_second"] for one, copy in pairs]
    return median(ratios) if ratios else None


def middle(runs: Runs, field: str) -> float:
    return float(median(run[field] for run in runs))


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table that Markdown and people can read."""
    every = [head, *rows]
    widths = [max(map(len, column)) for column in zip(*every, strict=True)]
    aligned = [
        "| "
        + " | ".join(t.rjust(w) if n else t.ljust(w) for n, (t, w) in enumerate(zip(row, widths, strict=True)))
        + " |"
        for row in every
    ]
    rule = "|" + "|".join("-" * (w + 1) + (":" if n else "-") for n, w in enumerate(widths)) + "|"
    return "\n".join([title, "", aligned[0], rule, *aligned[1:], ""])


def rate_table(rates: dict[str, Runs]) -> str:
    rows = []
    for name, runs in rates.items():
        ratio = of_copy(rates, name)
        rows.append([
            name, f"{middle(runs, 'rows_per_second'):,.0f}", f"{ratio:.2f}" if ratio else "",
            f"{middle(runs, 'cpu_seconds_per_100_000'):.2f}", f"{middle(runs, 'peak_bytes') / 1e6:.0f}",
            f"{middle(runs, 'foreign_cores'):.2f}",
        ])  # fmt: skip
    head = ["system", "rows/s", "of COPY", "CPU s/100k", "MB", "others"]
    return table("Rate, medians. others: cores that other programs used meanwhile", head, rows)


def latency_table(latencies: dict[str, dict[str, Any]]) -> str:
    rows = [
        [name, f"{each['median_ms']:.1f}", f"{each['p99_ms']:.1f}", f"{each['error_p99_ms']:.1f}",
         f"{each['idle_cpu_percent']:.2f}", f"{each['idle_bytes'] / 1e6:.0f}", f"{each['cpu_ms_per_message']:.1f}",
         f"{each['foreign_cores']:.2f}"]
        for name, each in latencies.items()
    ]  # fmt: skip
    head = ["system", "ms", "99th", "error", "idle CPU %", "MB", "CPU ms", "others"]
    return table("Sent to visible at 10 a second. error: by how much the times may be too high", head, rows)


def twice_table(twice: dict[str, dict[str, int]]) -> str:
    rows = [
        [name, f"{each['events']:,}", f"{each['rows']:,}", f"{each['lost']:,}", f"{each['repeated']:,}"]
        for name, each in twice.items()
    ]
    return table("Some messages sent twice", ["system", "events", "rows", "lost", "stored twice"], rows)


def producer_table(costs: dict[str, dict[str, Any]]) -> str:
    rows = [
        [name, f"{each['samples']}", f"{each['missed']}", f"{each['cpu_ms_per_sample']:.1f}",
         f"{each['memory_bytes'] / 1e6:.0f}", f"{each['late_p99_ms']:.0f}", f"{each['late_max_ms']:.0f}"]
        for name, each in costs.items()
    ]  # fmt: skip
    head = ["kproducer, broker", "samples", "missed", "CPU ms/s", "MB", "late 99th ms", "max"]
    return table("Producer, a warning each second", head, rows)


def growth_table(grown: Sequence[dict[str, Any]]) -> str:
    rows = []
    for keys in sorted({each["keys"] for each in grown}, reverse=True):
        stored = sorted({each["stored"] for each in grown})
        runs = {n: [each for each in grown if (each["keys"], each["stored"]) == (keys, n)] for n in stored}
        for n in stored:
            pairs = zip(runs[n], runs[stored[0]], strict=True)
            ratio = median(full["rows_per_second"] / none["rows_per_second"] for full, none in pairs)
            rows.append([f"UUID {keys}", f"{n:,}", f"{middle(runs[n], 'rows_per_second'):,.0f}", f"{ratio:.2f}",
                         f"{middle(runs[n], 'wal_bytes_per_row'):,.0f}"])  # fmt: skip
    return table("Growth", ["keys", "rows stored", "rows/s", "of empty", "WAL bytes/row"], rows)


TABLES = {
    "rates": rate_table, "latency": latency_table, "twice": twice_table, "producer": producer_table,
    "growth": growth_table,
}  # fmt: skip


def text(results: dict[str, Any]) -> str:
    """Every table that there are results for."""
    return "\n".join(make(results[part]) for part, make in TABLES.items() if results.get(part))  # type: ignore[operator]


def save(results: dict[str, Any]) -> None:
    """Into results.json; parts that were not measured this time stay as they are there. Then the picture."""
    stored = json.loads(JSON.read_text()) if JSON.exists() else {}
    JSON.write_text(json.dumps(stored | results, indent=1) + "\n")
    draw(stored | results, PNG)


def draw(results: dict[str, Any], path: Path) -> None:
    """Bars: rows a second, CPU time, and the latency below."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    ours, theirs, edge, ink = "#0f766e", "#94a3b8", "#cbd5e1", "#1e293b"
    pyplot.rcParams.update({"font.size": 10, "text.color": ink, "axes.labelcolor": ink, "ytick.color": ink})
    rates, late = results["rates"], results.get("latency", {})
    names = sorted(rates, key=lambda name: ("ceiling" in name, -middle(rates[name], "rows_per_second")))
    heights = [len(names), max(1.6, 1.0 * len(late))]
    figure = pyplot.figure(figsize=(8, 1.9 + 0.31 * sum(heights)), layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=heights, width_ratios=[1.25, 1])

    def colour(name: str) -> str:
        return ours if "kconsumer" in name else edge if "ceiling" in name else theirs

    def bars(axes: Any, labels: Sequence[str], values: Sequence[float], form: str, most: float) -> None:
        axes.barh(labels, [min(value, most) for value in values], color=[colour(name) for name in labels], height=0.72)
        for place, value in enumerate(values):
            weight = "bold" if "kconsumer" in labels[place] else "normal"
            label, at, side = form.format(value), value + most * 0.02, "left"
            if value > most:
                label, at, side = label + " →", most * 0.98, "right"
            axes.text(at, place, label, va="center", ha=side, weight=weight)
        axes.set_xlim(0, most * 1.0 if most < max(values) else most * 1.22)
        axes.invert_yaxis()
        axes.tick_params(length=0)
        axes.set_xticks([])
        axes.spines[:].set_visible(False)

    left, right = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[0, 1])
    speeds = [middle(rates[name], "rows_per_second") for name in names]
    bars(left, names, speeds, "{:,.0f}", max(speeds))
    left.set_title("Rows a second", loc="left", weight="bold")
    seconds = [middle(rates[name], "cpu_seconds_per_100_000") for name in names]
    bars(right, names, seconds, "{:.2f}", 8)
    right.set_yticks([])
    right.set_title("CPU s per 100,000 rows", loc="left", weight="bold")
    if late:
        axes = figure.add_subplot(grid[1, :])
        for place, (name, each) in enumerate(late.items()):
            axes.plot(
                [each["median_ms"], each["p99_ms"]], [place, place], color=colour(name), lw=7, solid_capstyle="round"
            )
            label = f"{each['median_ms']:,.0f} to {each['p99_ms']:,.0f} ms"
            weight = "bold" if "kconsumer" in name else "normal"
            axes.text(each["p99_ms"] * 1.15, place, label, va="center", weight=weight)
        axes.set_yticks(range(len(late)), list(late))
        axes.set_ylim(len(late) - 0.5, -0.5)
        axes.set_xscale("log")
        axes.set_xlim(min(each["median_ms"] for each in late.values()) / 1.3,
                      max(each["p99_ms"] for each in late.values()) * 2.5)  # fmt: skip
        axes.set_xticks([10, 100, 1000], ["10 ms", "100 ms", "1 s"])
        axes.minorticks_off()
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.grid(axis="x", color="#e2e8f0")
        axes.set_axisbelow(True)
        axes.set_title("Sent to visible at 10 messages a second: median to 99th", loc="left", weight="bold")
    there = results["machine"]
    figure.supxlabel(f"{there['cores']} cores, {', '.join(there['servers'])}, TLS, {results['messages']:,} messages",
                     fontsize=9, color="#64748b", ha="left", x=0.01)  # fmt: skip
    figure.savefig(path, dpi=200)
    pyplot.close(figure)
