"""Plots of the sensors' health: what became of every reading, whether innovations are of the stated size, revisions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from service.report.data import Consistency, Judged, ReportData
from service.report.plots import BLUE, FAINT, GREEN, ORANGE, PURPLE, RED, SKY, STYLE, days_axis, new_figure, title

LOOKS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "accepted": ("taken in", {"marker": "|", "markersize": 7, "color": SKY, "markeredgewidth": 0.8}),
    "widened": ("taken in, belief widened", {"marker": "^", "markersize": 5, "color": BLUE}),
    "rejected": ("rejected", {"marker": "x", "markersize": 5, "color": RED, "markeredgewidth": 1.2}),
    "quarantined": ("quarantined", {"marker": "s", "markersize": 3.5, "color": PURPLE}),
    "unit_slip": ("unit slip", {"marker": "D", "markersize": 5, "color": ORANGE}),
}
"""What every verdict looks like; shape says it as well as colour."""

MOST = 8.0
"""Mean squared innovations beyond this are drawn at the edge."""


def verdicts(data: ReportData) -> Figure | None:
    """One strip a channel over time, and below the size of every revision. None when nothing was judged."""
    if not data.judged:
        return None
    channels = sorted(data.judged, key=lambda c: (-len(data.judged[c].verdict), c))
    figure, (a, b) = new_figure(2, 1, 1.0, 9.6)
    with mpl.rc_context(STYLE):
        figure.set_size_inches(9.6, 1.6 + 0.26 * len(channels) + (1.2 if data.revisions is not None else 0.0))
        grid: Any = a.get_gridspec()
        grid.set_height_ratios([0.5 + 0.26 * len(channels), 1.2 if data.revisions is not None else 0.01])
        for row, channel in enumerate(reversed(channels)):
            _strip(a, data.judged[channel], row)
        a.set_yticks(range(len(channels)), [title(c) for c in reversed(channels)])
        a.set_ylim(-0.7, len(channels) - 0.3)
        a.grid(visible=False, axis="x")
        handles = [
            a.plot([], [], linestyle="none", label=label, **look)[0]
            for name, (label, look) in LOOKS.items()
            if any(name in j.verdict for j in data.judged.values())
        ]
        figure.legend(handles=handles, loc="outside upper left", ncols=len(handles))
        if data.revisions is not None:
            b.vlines(data.revisions.t, 0.0, data.revisions.value, color=GREEN, linewidth=1.4)
            b.plot(data.revisions.t, data.revisions.value, linestyle="none", marker="o", markersize=3, color=GREEN)
            b.set_title("Revisions: jump of the belief by late and corrected facts")
            b.set_title("standard deviations", loc="right", fontsize=8, fontweight="normal", color=FAINT)
            b.set_ylim(bottom=0.0)
        else:
            b.set_visible(False)
        days_axis([a, b], data.until)
        (b if data.revisions is not None else a).set_xlabel("days since inoculation")
    return figure


def _strip(a: Axes, judged: Judged, row: int) -> None:
    said = np.array(judged.verdict)
    for name, (_, look) in LOOKS.items():
        t = judged.t[said == name]
        if t.size:
            a.plot(t, np.full(t.size, row), linestyle="none", zorder=2 + (name != "accepted"), **look)


def consistency(data: ReportData, columns: int = 3) -> Figure | None:
    """Windowed NIS by channel within its bounds. None when no channel has enough readings."""
    shown = {c: s for c, s in data.consistency.items() if s.t.size > 1}
    if not shown:
        return None
    columns = min(columns, len(shown))
    figure, axes = new_figure(-(-len(shown) // columns), columns, 1.6, 9.6)
    with mpl.rc_context(STYLE):
        for a, (channel, series) in zip(axes, shown.items(), strict=False):
            _bounded(a, series)
            a.set_title(title(channel), fontsize=8.5)
        for a in axes[len(shown) :]:
            a.set_visible(False)
        days_axis(axes[: len(shown)], data.until)
        figure.supxlabel("days since inoculation", fontsize=9, color=FAINT)
    return figure


def _bounded(a: Axes, s: Consistency) -> None:
    a.fill_between(s.t, s.low, np.minimum(s.high, MOST), color=FAINT, alpha=0.18, linewidth=0)
    a.axhline(1.0, color=FAINT, linewidth=0.8, linestyle=(0, (3, 2)))
    nis = np.minimum(s.nis, MOST)
    a.plot(s.t, nis, color=BLUE, linewidth=1.5)
    beyond = s.nis > s.high
    a.plot(s.t[beyond], nis[beyond], linestyle="none", marker="o", markersize=2.5, color=RED)
    a.set_ylim(0.0, max(2.5, 1.1 * float(np.max(nis))))
