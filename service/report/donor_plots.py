"""Plots of a donor fit: what pooling does to every donor's estimate, and where the donors lie in their population.

All values are kinetics over the population's median: axes are logarithmic and shared, so that spreads can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from service.report.plots import BLUE, FAINT, INK, ORANGE, STYLE, new_figure, title

BAND = "#dfe5ea"
"""Of the population."""
COLUMNS = 4
_NAMES = {"delta": "CAR⁺ handicap", "k_E": "Exhaustion by age", "e_L": "Exhaustion by lactate"}


class Kinetic(NamedTuple):
    """One parameter over donors, in its own unit; 5, 50 and 95 % points."""

    name: str
    population: tuple[float, float, float]  # a donor not yet seen
    donors: Float[np.ndarray, "d 3"]  # partial pooling
    own: Float[np.ndarray, " d"]  # by the donor's own batch alone; NaN where it told nothing
    learnt: bool  # whether the fit learnt the population, or the preset gives it


def shrinkage(kinetics: Sequence[Kinetic], heading: str) -> Figure:
    """Every donor's own estimate (across) beside the one that pooling makes of it (up): an arrow a donor, at least one parameter.

    A donor who stays where he was lies on the diagonal; one of whom the data tell nothing lands on the population's median. The
    own estimate leans on the preset's population, and the pooled one may rest on further stages: arrows can point outwards.
    """
    figure, axes = _panels(len(kinetics), 2.55)
    with mpl.rc_context(STYLE):
        for a, k in zip(axes, kinetics, strict=False):
            centre = k.population[1]
            own, pooled = k.own / centre, k.donors[:, 1] / centre
            low, high = _ends(np.concatenate([own, pooled, [k.population[0] / centre, k.population[2] / centre]]))
            a.axhspan(k.population[0] / centre, k.population[2] / centre, color=BAND, alpha=0.6, linewidth=0)
            a.axhline(1.0, color=INK, linewidth=0.9)
            a.plot((low, high), (low, high), color=FAINT, linewidth=0.9, linestyle=(0, (4, 3)))
            for x, y in zip(own, pooled, strict=True):
                if np.isfinite(x):
                    a.annotate(
                        "", (x, y), (x, x),
                        arrowprops={"arrowstyle": "-|>,head_length=0.28,head_width=0.14", "color": ORANGE, "linewidth": 1.0, "shrinkA": 0, "shrinkB": 2.5},
                    )  # fmt: skip
            a.plot(own, own, "o", markersize=3.4, markerfacecolor="white", markeredgecolor=FAINT, linestyle="none")
            a.plot(own, pooled, "o", markersize=5, color=BLUE, markeredgecolor="white", markeredgewidth=0.6)
            a.set_xlim(low, high)
            a.set_ylim(low, high)
            a.set_box_aspect(1.0)
            _ratio(a, low, high, both=True)
            _titled(a, k)
        _below(axes, len(kinetics), "own batch alone")
        for a in axes[:: min(len(kinetics), COLUMNS)]:
            a.set_ylabel("pooled")
        a = axes[0]
        a.plot(
            [],
            [],
            "o",
            markersize=3.4,
            markerfacecolor="white",
            markeredgecolor=FAINT,
            label="own bioreactor batch alone",
        )
        a.plot(
            [],
            [],
            "o",
            markersize=5,
            color=BLUE,
            markeredgecolor="white",
            label="pooled with the others (arrow: what that moves)",
        )
        _legend(figure, a, all(k.learnt for k in kinetics))
        figure.suptitle(f"{heading} (all over the population's median)", x=0.01, ha="left", fontsize=11, fontweight="bold", color=INK)  # fmt: skip
    return figure


def donor_forest(kinetics: Sequence[Kinetic], donors: Sequence[str], heading: str) -> Figure:
    """90 % intervals of every donor and parameter, the population behind (at least one parameter)."""
    figure, axes = _panels(len(kinetics), 0.75 + 0.145 * len(donors))
    rows = np.arange(len(donors))[::-1]
    with mpl.rc_context(STYLE):
        for i, (a, k) in enumerate(zip(axes, kinetics, strict=False)):
            centre = k.population[1]
            shown = k.donors / centre
            low, high = _ends(np.concatenate([shown.ravel(), np.array(k.population) / centre]))
            a.axvspan(k.population[0] / centre, k.population[2] / centre, color=BAND, alpha=0.75, linewidth=0)
            a.axvline(1.0, color=INK, linewidth=0.9)
            a.hlines(rows, shown[:, 0], shown[:, 2], color=BLUE, linewidth=1.7)
            a.plot(shown[:, 1], rows, "o", markersize=4.2, color=BLUE, markeredgecolor="white", markeredgewidth=0.6)
            a.set_yticks(rows, list(donors) if i % COLUMNS == 0 else [""] * len(donors), fontsize=7)
            a.set_ylim(-0.7, len(donors) - 0.3)
            a.set_xlim(low, high)
            a.grid(visible=False, axis="y")
            _ratio(a, low, high)
            _titled(a, k)
        _below(axes, len(kinetics), "over the population's median")
        a = axes[0]
        a.plot([], [], color=BLUE, linewidth=1.7, marker="o", markersize=4.2, label="donor: median and 90 %")
        _legend(figure, a, all(k.learnt for k in kinetics))
        figure.suptitle(heading, x=0.01, ha="left", fontsize=11, fontweight="bold", color=INK)
    return figure


def _panels(n: int, height: float) -> tuple[Figure, list[Axes]]:
    columns = min(n, COLUMNS)
    figure, axes = new_figure(-(-n // columns), columns, height, 2.6 * columns)
    for a in axes[n:]:
        a.set_visible(False)
    return figure, axes


def _below(axes: Sequence[Axes], n: int, label: str) -> None:
    """A label under the lowest panel of every column."""
    for a in axes[max(0, n - min(n, COLUMNS)) : n]:
        a.set_xlabel(label, fontsize=8)


def _titled(a: Axes, k: Kinetic) -> None:
    a.set_title(_NAMES.get(k.name, title(k.name)), color=INK if k.learnt else FAINT, fontsize=9)
    if not k.learnt:
        a.set_title("given", loc="right", fontsize=7, fontweight="normal", color=FAINT)


def _legend(figure: Figure, a: Axes, learnt: bool) -> None:
    population = "population: median and 90 % of donors" + ("" if learnt else " (title grey: given by the preset)")
    handles: list[Any] = [mpl.patches.Patch(facecolor=BAND, edgecolor=INK, linewidth=0.8, label=population)]  # pyright: ignore[reportAttributeAccessIssue]
    figure.legend(handles=[*a.get_legend_handles_labels()[0], *handles], loc="outside lower center", ncols=3)


def _ends(values: np.ndarray) -> tuple[float, float]:
    seen = values[np.isfinite(values) & (values > 0.0)]
    return float(seen.min()) / 1.08, float(seen.max()) * 1.08


def _ratio(a: Axes, low: float, high: float, *, both: bool = False) -> None:
    """Logarithmic axes of ratios with a few round ticks."""
    steps = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0) if high / low > 2.2 else (0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.4, 1.6) if high / low > 1.3 else (0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.15)  # fmt: skip
    decades = range(-2, 3) if high / low > 2.2 else (0,)
    nice = sorted({round(s * 10.0**k, 6) for k in decades for s in steps if low <= s * 10.0**k <= high})
    while len(nice) > 4:
        place = nice.index(1.0) if 1.0 in nice else 0
        nice = nice[place % 2 :: 2]
    for axis, scale in ((a.xaxis, a.set_xscale), (a.yaxis, a.set_yscale))[: 2 if both else 1]:
        scale("log")
        axis.set_major_locator(FixedLocator(nice))
        axis.set_major_formatter(FuncFormatter(lambda v, _: f"×{v:g}"))
        axis.set_minor_locator(NullLocator())
        axis.set_minor_formatter(NullFormatter())
