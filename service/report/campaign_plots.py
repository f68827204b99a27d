"""Plots of campaigns: who passes, at what price, when, and what a fault does to that.

Every function takes plain values and returns a `matplotlib.figure.Figure`; nothing is shown or written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from service.report.plots import BLUE, FAINT, GREEN, INK, ORANGE, PURPLE, RED, SKY, STYLE, new_figure

COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, RED, INK, FAINT)
MARKS = "osD^vPX*"
MOST = 50.0
"""Differences under faults beyond this are drawn alike [%]."""


def _titled(figure: Figure, title: str) -> None:
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold", color=INK)


def _looks(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    return {n: (COLOURS[i % len(COLOURS)], MARKS[i % len(MARKS)]) for i, n in enumerate(names)}


def pass_rates(policies: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Share of batches that passed with its 95 % interval, one line a policy; `policies` as `simulate` reports them."""
    names = list(policies)
    figure, (a,) = new_figure(1, 1, 0.32 * len(names) + 0.9, 6.4)
    with mpl.rc_context(STYLE):
        for i, name in enumerate(names):
            s = policies[name]
            low, high = s["pass_ci"]
            a.plot([low, high], [i, i], color=BLUE, linewidth=2.0, alpha=0.55, solid_capstyle="butt")
            a.plot(s["pass"], i, "o", color=BLUE, markersize=6)
            a.annotate(
                f"{s['pass']:.2f}  n={s['n']}", (1.04, i), va="center", fontsize=8, color=INK, annotation_clip=False
            )
        a.set_yticks(range(len(names)), names)
        a.set_ylim(len(names) - 0.5, -0.5)
        a.set_xlim(-0.02, 1.02)
        a.set_xlabel("share of batches that passed, 95 % interval")
        _titled(figure, "Who passes")
    return figure


def price(policies: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Pass rate against medium, with 95 % intervals of both: up and to the left is better."""
    figure, (a,) = new_figure(1, 1, 3.6, 6.4)
    with mpl.rc_context(STYLE):
        for name, (colour, mark) in _looks(list(policies)).items():
            s = policies[name]
            if s["medium_vv"] is None:
                continue
            across = np.array(s["medium_vv_ci"] or (s["medium_vv"], s["medium_vv"]))
            a.plot(across, [s["pass"]] * 2, color=colour, linewidth=1.3, alpha=0.6)
            a.plot([s["medium_vv"]] * 2, s["pass_ci"], color=colour, linewidth=1.3, alpha=0.6)
            a.plot(s["medium_vv"], s["pass"], mark, color=colour, markersize=7, label=name)
        a.set_ylim(-0.03, 1.03)
        a.set_xlabel("medium a batch [vessel volumes], mean and 95 % interval")
        a.set_ylabel("share that passed")
        figure.legend(loc="outside right center")
        _titled(figure, "Passes, and the medium they take")
    return figure


def harvest_days(days: Mapping[str, Sequence[float]], passed: Mapping[str, Sequence[bool]]) -> Figure:
    """When batches were harvested, one panel a policy, in whole days; those that passed stand out."""
    names = list(days)
    columns = min(4, len(names))
    figure, axes = new_figure(-(-len(names) // columns), columns, 2.3, max(4.8, 2.4 * columns))
    every = [d for own in days.values() for d in own] or [0.0, 1.0]
    edges = np.arange(np.floor(min(every)), np.floor(max(every)) + 2.0)
    with mpl.rc_context(STYLE):
        for k, (a, name) in enumerate(zip(axes, names, strict=False)):
            own, met = np.array(days[name], dtype=float), np.array(passed[name], dtype=bool)
            drawn = ((own[met], BLUE, "passed"), (own[~met], FAINT, "did not pass"))
            a.hist([v for v, _, _ in drawn], bins=list(edges), stacked=True, color=[c for _, c, _ in drawn],
                   label=[n for _, _, n in drawn], rwidth=0.9)  # fmt: skip
            a.set_title(name)
            a.set_xlabel("day of harvest")
            a.xaxis.set_major_locator(MaxNLocator(integer=True))
            if k % columns == 0:
                a.set_ylabel("batches")
        for a in axes[len(names) :]:
            a.set_visible(False)
        top = max(a.get_ylim()[1] for a in axes[: len(names)])
        for a in axes[: len(names)]:
            a.set_ylim(0.0, top)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
        _titled(figure, "When they are harvested")
    return figure


def fault_map(table: Sequence[Mapping[str, Any]], base: str, allowance: float) -> Figure:
    """Pass rate and cells less those of `base` under each fault, target by mode, one row of panels a policy.

    `table` as `simulators.comparison.by_fault` gives it; a cell that is worse by more than `allowance` carries a mark.
    """
    names = list(dict.fromkeys(str(r["policy"]) for r in table))
    spots = [str(r["fault"]).partition("/") for r in table]
    faulty = [(r, target, mode) for r, (target, _, mode) in zip(table, spots, strict=True) if r["fault"] != "none"]
    rows, columns = sorted({t for _, t, _ in faulty}), sorted({m for _, _, m in faulty})
    days = {c.rpartition("@")[2] for c in columns}
    shown_as = [c.rpartition("@")[0] if len(days) == 1 else c for c in columns]
    height = max(2.6, 0.17 * len(rows) + 1.7)
    figure, axes = new_figure(len(names), 2, height, max(7.5, 3.6 + 0.5 * len(columns)))
    with mpl.rc_context(STYLE):
        for i, name in enumerate(names):
            for a, (key, title) in zip(
                axes[2 * i :],
                (("pass_difference", "pass rate"), ("cells_difference", "cells up to the dose")),
                strict=False,
            ):
                values = np.full((len(rows), len(columns)), np.nan)
                for r, target, mode in faulty:
                    if r["policy"] == name:
                        values[rows.index(target), columns.index(mode)] = 100.0 * float(r[key])
                drawn = a.imshow(values, cmap="RdBu", vmin=-MOST, vmax=MOST, aspect="auto", interpolation="nearest")
                worse = np.argwhere(values < -100.0 * allowance - 1e-9)
                a.plot(worse[:, 1], worse[:, 0], "x", color=INK, markersize=4, markeredgewidth=1.0)
                without = [100.0 * float(r[key]) for r in table if r["policy"] == name and r["fault"] == "none"]
                a.set_title(
                    f"{name}: {title}" + (f", {without[0]:+.0f} % without a fault" if without else ""), fontsize=9
                )
                a.set_xticks(range(len(columns)), shown_as, rotation=50, ha="right", rotation_mode="anchor", fontsize=7)
                a.set_yticks(range(len(rows)), rows if key.startswith("pass") else [""] * len(rows), fontsize=7)
                a.grid(visible=False)
                figure.colorbar(drawn, ax=a, extend="both", label="% points" if key.startswith("pass") else "%")
        _titled(figure, f"Under each fault{f' from day {days.pop()}' if len(days) == 1 else ''}, against {base}")
        figure.supxlabel(f"x: worse by more than {allowance:.0%}", fontsize=8, color=FAINT)
    return figure
