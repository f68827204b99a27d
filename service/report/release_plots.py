"""Plots of how sure forecasts of release were, over many batches: reliability, PIT, P(release) by day, warnings.

Every function takes plain values and returns a `matplotlib.figure.Figure`; nothing is shown or written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import binom, kstest

from service.report.plots import BLUE, FAINT, GREEN, INK, ORANGE, PURPLE, RED, SKY, STYLE, days_axis, new_figure
from twin.scores import Z95, roc

BINS = 8
"""Bins of a reliability diagram."""
PIT_BINS = 10
BY_DAY = (SKY, ORANGE, BLUE, PURPLE, GREEN)


class Chances(NamedTuple):
    """P(release) of every batch on one day, and what became of it."""

    p: np.ndarray  # [n]
    passed: np.ndarray  # bool [n]


def reliability(by_day: Mapping[int, Chances], slopes: Mapping[int, tuple[float, float]]) -> Figure:
    """Share released against P(release), one panel a day; `slopes` are the calibration slope and its +/- by day."""
    figure, axes = new_figure(1, len(by_day), 3.5, 2.75 * len(by_day))
    with mpl.rc_context(STYLE):
        for a, (day, chances) in zip(axes, by_day.items(), strict=True):
            _reliable(a, chances)
            a.set_title(f"From day {day}")
            slope, half = slopes[day]
            note = f"slope {slope:.2f} ± {half:.2f}\n{chances.p.size} batches"
            a.text(0.97, 0.03, note, transform=a.transAxes, ha="right", va="bottom", fontsize=8, color=FAINT)
            a.set_xlabel("P(release), as forecast")
        axes[0].set_ylabel("share that was released")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)
        figure.suptitle(
            "Does P(release) mean what it says?", x=0.01, ha="left", fontsize=11, fontweight="bold", color=INK
        )
    return figure


def _reliable(a: Axes, chances: Chances) -> None:
    p, met = chances
    place = np.minimum((p * BINS).astype(int), BINS - 1)
    width = 1.0 / BINS
    for k in range(BINS):
        mine = place == k
        n = int(mine.sum())
        if not n:
            continue
        mean, share = float(p[mine].mean()), float(met[mine].mean())
        low, high = binom.ppf([0.025, 0.975], n, mean) / n
        a.fill_between([k * width, (k + 1) * width], low, high, color=FAINT, alpha=0.18, linewidth=0)
        inside = low - 1e-9 <= share <= high + 1e-9
        a.plot(mean, share, marker="o" if inside else "D", color=BLUE if inside else RED, markersize=3.5 + 1.1 * np.sqrt(n) / 2,
               linestyle="none", zorder=3)  # fmt: skip
        a.annotate(str(n), (mean, share), xytext=(0, -13 if share > 0.15 else 8), textcoords="offset points", ha="center", fontsize=7, color=INK)  # fmt: skip
    a.plot([], [], marker="o", color=BLUE, linestyle="none", markersize=6, label="batches of one bin; how many")
    a.plot([], [], marker="D", color=RED, linestyle="none", markersize=6, label="outside the grey")
    a.fill_between([], [], [], color=FAINT, alpha=0.18, linewidth=0, label="95 % of shares if it does (binomial)")
    a.plot([0, 1], [0, 1], color=INK, linewidth=0.9, linestyle=(0, (3, 2)), label="perfect", zorder=1.5)
    a.set_xlim(-0.02, 1.02)
    a.set_ylim(-0.04, 1.04)
    a.set_xticks([0, 0.25, 0.5, 0.75, 1])
    a.set_yticks([0, 0.25, 0.5, 0.75, 1])
    a.set_aspect("equal")


def pit_histograms(by_quantity: Mapping[str, np.ndarray], day: int) -> Figure:
    """Where the truth lay in the forecast, one panel a quantity: flat where bands are as wide as they should be."""
    columns = 3
    rows = -(-len(by_quantity) // columns)
    figure, axes = new_figure(rows, columns, 2.0, 9.6)
    with mpl.rc_context(STYLE):
        for a, (name, values) in zip(axes, by_quantity.items(), strict=False):
            n = values.size
            counts, edges = np.histogram(values, PIT_BINS, (0.0, 1.0))
            low, high = binom.ppf([0.025, 0.975], n, 1.0 / PIT_BINS) / n * PIT_BINS
            a.fill_between(
                [0, 1], low, high, color=FAINT, alpha=0.18, linewidth=0, label="95 % of bars if flat (binomial)"
            )
            a.bar(
                edges[:-1],
                counts / n * PIT_BINS,
                width=0.94 / PIT_BINS,
                align="edge",
                color=BLUE,
                alpha=0.85,
                label="batches",
            )
            a.axhline(1.0, color=INK, linewidth=0.9, linestyle=(0, (3, 2)))
            a.set_title(name)
            a.set_title(f"p {kstest(values, 'uniform').pvalue:.2f}, n {n}", loc="right", fontsize=8, fontweight="normal", color=FAINT)  # fmt: skip
            a.set_ylim(0.0, max(2.0, 1.05 * float(counts.max()) / n * PIT_BINS))
            a.set_xticks([0, 0.5, 1], ["lowest", "middle", "highest"])
            a.grid(visible=False, axis="x")
        for a in axes[len(by_quantity) :]:
            a.set_visible(False)
        for a in axes[::columns]:
            a.set_ylabel("batches over expected")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2)
        figure.suptitle(f"Where the harvest lay within its forecast from day {day}: flat if bands are as wide as they should be", x=0.01, ha="left", fontsize=11, fontweight="bold", color=INK)  # fmt: skip
    return figure


class Course(NamedTuple):
    """P(release) of one batch by day of the forecast."""

    name: str
    days: Sequence[float]
    p: Sequence[float]
    harvest: float  # [d]
    passed: bool


def courses(shown: Sequence[Course]) -> Figure:
    """P(release) against day, batches that were released left and those that were not right."""
    figure, axes = new_figure(1, 2, 3.0, 9.6)
    until = max(c.harvest for c in shown)
    with mpl.rc_context(STYLE):
        for a, passed, colour, heading in ((axes[0], True, GREEN, "Released"), (axes[1], False, RED, "Not released")):
            mine = [c for c in shown if c.passed is passed]
            for c, style in zip(mine, _styles(len(mine)), strict=True):
                a.plot(c.days, c.p, color=colour, linewidth=1.5, linestyle=style, alpha=0.9)
                a.plot([c.days[-1], c.harvest], [c.p[-1], float(passed)], color=colour, linewidth=0.8, alpha=0.35)
                a.plot(c.harvest, float(passed), marker="o" if passed else "X", color=colour, markersize=6, linestyle="none", clip_on=False)  # fmt: skip
            a.set_title(heading)
            a.set_title(f"{len(mine)} donors; {'●' if passed else '✖'} at harvest", loc="right", fontsize=8, fontweight="normal", color=FAINT)  # fmt: skip
            a.set_ylim(-0.04, 1.04)
            a.set_yticks([0, 0.25, 0.5, 0.75, 1])
            a.set_xlabel("day of the forecast")
        axes[0].set_ylabel("P(release)")
        days_axis(axes, until)
        figure.suptitle(
            "P(release) by day of the forecast, the first donors of either outcome",
            x=0.01,
            ha="left",
            fontsize=11,
            fontweight="bold",
            color=INK,
        )
    return figure


def _styles(n: int) -> list[tuple[float, tuple[float, ...]] | str]:
    known: list[tuple[float, tuple[float, ...]] | str] = [
        "-",
        (0.0, (5.0, 2.0)),
        (0.0, (1.0, 1.3)),
        (0.0, (6.0, 1.5, 1.0, 1.5)),
        (0.0, (3.0, 1.0)),
    ]
    return [known[k % len(known)] for k in range(n)]


def warnings(by_day: Mapping[int, Chances], leads: np.ndarray, false_alarms: float) -> Figure:
    """Left: failing batches told from passing ones, by day. Right: days from the first warning to harvest of failing ones.

    `leads` [d] is NaN where there was no warning; `false_alarms` is the share of passing batches that were warned of.
    """
    figure, axes = new_figure(1, 2, 3.6, 9.6)
    left, right = axes
    with mpl.rc_context(STYLE):
        for colour, (day, chances) in zip(BY_DAY, by_day.items(), strict=False):
            curve = roc(1.0 - chances.p, ~chances.passed)
            left.plot(curve.false_alarms, curve.hits, color=colour, linewidth=1.8, label=f"from day {day}: area {curve.auc:.2f}, n {chances.p.size}")  # fmt: skip
        left.plot([0, 1], [0, 1], color=FAINT, linewidth=0.9, linestyle=(0, (3, 2)))
        left.axvline(0.05, color=RED, linewidth=0.9, linestyle=(0, (5, 3)))
        left.annotate("5 %", (0.05, 0.02), xytext=(3, 0), textcoords="offset points", fontsize=7, color=RED)
        left.set_aspect("equal")
        left.set_xlim(-0.01, 1.01)
        left.set_ylim(-0.01, 1.01)
        left.set_xlabel("false alarms: share of released batches")
        left.set_ylabel("hits: share of failing batches")
        left.set_title("Failing batches told from released ones by P(fail)")
        left.legend(loc="lower right")
        seen = leads[np.isfinite(leads)]
        edges = np.arange(0.0, max(14.0, float(seen.max(initial=0.0))) + 1.0).tolist()
        right.hist(seen, edges, color=BLUE, alpha=0.85, rwidth=0.94)
        missed = leads.size - seen.size
        right.bar(-2.0, missed, width=0.94, color=RED, alpha=0.85)
        middle = float(np.median(np.nan_to_num(leads)))
        right.axvline(middle, color=INK, linewidth=1.0, linestyle=(0, (3, 2)))
        half = Z95 * np.sqrt(false_alarms * (1 - false_alarms) / max(1, _passing(by_day)))
        note = f"{leads.size} failing batches, median {middle:.1f} d (dashed)\nfalse alarms {100 * false_alarms:.1f} ± {100 * half:.1f} %"
        right.text(
            0.5, 0.98, note, transform=right.transAxes, ha="center", va="top", fontsize=8, color=FAINT,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
        )  # fmt: skip
        right.set_ylim(0.0, 1.25 * right.get_ylim()[1])
        right.set_xticks([-2, 0, 2, 4, 6, 8, 10, 12], ["never", "0", "2", "4", "6", "8", "10", "12"])
        right.set_xlabel("days from first warning to harvest")
        right.set_ylabel("failing batches")
        right.grid(visible=False, axis="x")
        right.set_title("How early failing batches were warned of")
    return figure


def _passing(by_day: Mapping[int, Chances]) -> int:
    return max((int(c.passed.sum()) for c in by_day.values()), default=1)
