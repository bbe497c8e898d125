"""The demonstration's picture: the rate against its limit, and the episodes above it. Needs matplotlib."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

BELOW, ABOVE, LINE, TEXT = "#8fb3d9", "#e4572e", "#1f2933", "#52606d"
INCHES, DOTS_PER_INCH = (10, 4.8), 160


class Episode(NamedTuple):
    """One overload: its times in seconds, its rate in MB/s."""

    started_at: float
    ended_at: float
    seconds_over: float
    peak: float


def draw(path: Path, edges: Sequence[float], rates: Sequence[float], limit: float, episodes: list[Episode]) -> None:
    """Write a PNG. Each rate (MB/s) holds from one edge (in seconds) to the next: there is one edge more than rates."""
    figure = Figure(figsize=INCHES, dpi=DOTS_PER_INCH, layout="constrained")
    axes = figure.add_subplot()
    top = 1.25 * max(limit, *rates)
    axes.stairs([min(rate, limit) for rate in rates], edges, fill=True, color=BELOW)
    axes.stairs([max(rate, limit) for rate in rates], edges, baseline=limit, fill=True, color=ABOVE)
    axes.stairs(rates, edges, color=LINE, linewidth=1.2)
    axes.axhline(limit, color=LINE, linewidth=1.2, linestyle=(0, (5, 3)))
    for episode in episodes:
        began = episode.started_at - 1  # a warning is raised at the end of its second
        axes.axvspan(began, episode.ended_at, color=ABOVE, alpha=0.12, linewidth=0, zorder=0)
        label = f"{episode.seconds_over:.0f} s over\npeak {episode.peak:.0f} MB/s"
        middle = (began + episode.ended_at) / 2
        axes.text(middle, 0.97 * top, label, color=LINE, fontsize=10, ha="center", va="top", linespacing=1.4)
    said = f"limit\n{limit:g} MB/s"
    axes.annotate(said, (1, limit), (6, 0), ("axes fraction", "data"), "offset points", color=LINE, va="center")
    axes.set_xlim(edges[0], max(edges[-1], *(episode.ended_at for episode in episodes), edges[0] + 1))
    axes.set_ylim(0, top)
    axes.set_xlabel("seconds", color=TEXT)
    axes.set_ylabel("MB/s, sent plus received", color=TEXT)
    below = "a warning for each second above the limit; shaded: the episodes that PostgreSQL makes of them"
    axes.set_title(
        "Bandwidth of loopback against its limit", loc="left", color=LINE, fontsize=13, fontweight="bold", pad=30
    )
    axes.annotate(below, (0, 1), (0, 12), "axes fraction", "offset points", color=TEXT, fontsize=10)
    axes.tick_params(colors=TEXT, length=3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(TEXT)
    figure.savefig(path, format="png")
