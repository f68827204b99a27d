"""Plots of a conditioning: fan charts, donor effects, P(pass) by day, a map of the design space and what medium buys.

Every function takes plain values, by the names and units of the JSON answer of ``celltwin condition``, and returns a figure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from service.report.data import Band, Limit
from service.report.plots import (
    BLUE,
    FAINT,
    FRACTIONS,
    GREEN,
    INK,
    ORANGE,
    PURPLE,
    RED,
    SERIES,
    SKY,
    STYLE,
    days_axis,
    new_figure,
    pretty_unit,
    title,
)

FANNED = ("viable_density", "viability", "car_fraction", "exhausted_fraction", "glucose", "lactate")
"""Quantities of the fan chart, in order."""

SETTINGS: Mapping[str, str] = {
    "inoculation": "inoculation", "cspr_pl_per_cell_d": "perfusion per cell", "perfusion_max": "highest perfusion",
    "perfusion": "perfusion", "gain": "gain on lactate", "setpoint": "lactate setpoint", "days": "day of step",
    "densities": "density of step", "feed": "feed", "cytokine_dose": "cytokine dose", "harvest_cells": "harvest at counted cells",
    "harvest_latest": "latest harvest",
}  # fmt: skip

TOLD: Mapping[str, str] = {"informed": BLUE, "weakly": SKY, "not observable yet": FAINT}
"""Colour of a donor parameter by what the data say of it."""


class Readings(NamedTuple):
    """Readings of one channel with their standard error, in its unit."""

    t: np.ndarray  # [d]
    value: np.ndarray
    sd: np.ndarray


def setting_label(name: str, unit: str) -> str:
    """A setting's name and unit as a person writes them."""
    key, _, place = name.partition("[")
    place = f" {int(place[:-1]) + 1}" if place else ""
    shown = {"VVD": "vessel volumes/d", "VVD/mM": "vessel volumes/d per mM"}.get(unit, pretty_unit(unit))
    return f"{SETTINGS.get(key, key)}{place} [{shown}]"


def fan(
    past: Mapping[str, Band],
    future: Mapping[str, Band],
    readings: Mapping[str, Readings],
    limits: Mapping[str, Sequence[Limit]],
    units: Mapping[str, str],
    *,
    now: float,
    harvest: tuple[float, float, float] | None,
    heading: str,
) -> Figure:
    """Bands (90 %) of the past, smoothed, and of the future, forecast from day `now`, with readings, limits and harvest.

    `harvest` are the 5, 50 and 95 % quantiles of its day [d]; None once it is over. `past` and `future` may each be empty.
    """
    shown = [n for n in FANNED if n in past or n in future]
    figure, axes = new_figure(-(-len(shown) // 2), 2, 2.05, 9.6)
    with mpl.rc_context(STYLE):
        for a, name in zip(axes, shown, strict=False):
            _fanned(a, name, past.get(name), future.get(name), readings.get(name), now)
            a.set_title(title(name))
            if unit := pretty_unit(units.get(name, "")):
                a.set_title(unit, loc="right", fontsize=8, fontweight="normal", color=FAINT)
            _within(a, limits.get(name, ()))
            if harvest is not None:
                _harvest(a, harvest)
        until = max(float(b.t[-1]) for b in (*past.values(), *future.values()))
        days_axis(axes[: len(shown)], until)
        for a in axes[: len(shown)]:
            a.set_xlim(left=-0.012 * until)  # room for what was read at inoculation
        for a in axes[len(shown) :]:
            a.set_visible(False)
        for a in axes[max(0, len(shown) - 2) : len(shown)]:
            a.set_xlabel("days since inoculation")
        handles: dict[str, Any] = {}
        for a in axes[: len(shown)]:
            handles |= {
                label: h for h, label in zip(*a.get_legend_handles_labels(), strict=True) if label not in handles
            }
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles))
        figure.suptitle(heading, x=0.01, ha="left", fontsize=11, fontweight="bold", color=INK)
    return figure


def difference(delta: Mapping[str, Band], units: Mapping[str, str], *, heading: str) -> Figure:
    """Paired differences (90 %) that an edit makes, over time, by quantity."""
    shown = [n for n in FANNED if n in delta]
    figure, axes = new_figure(-(-len(shown) // 2), 2, 1.9, 9.6)
    with mpl.rc_context(STYLE):
        for a, name in zip(axes, shown, strict=False):
            band = delta[name]
            a.axhline(0.0, color=FAINT, linewidth=0.9)
            a.fill_between(band.t, band.low, band.high, color=PURPLE, alpha=0.20, linewidth=0)
            a.plot(band.t, band.mid, color=PURPLE, linewidth=1.7)
            if max(np.abs(band.low).max(), np.abs(band.high).max()) < 1e-6:  # rounding is no difference
                a.set_ylim(-0.01, 0.01)
            a.set_title(title(name))
            if unit := pretty_unit(units.get(name, "")):
                a.set_title(unit, loc="right", fontsize=8, fontweight="normal", color=FAINT)
        days_axis(axes[: len(shown)], max(float(delta[n].t[-1]) for n in shown))
        for a in axes[: len(shown)]:
            a.set_xlim(left=min(float(delta[n].t[0]) for n in shown))
        for a in axes[max(0, len(shown) - 2) : len(shown)]:
            a.set_xlabel("days since inoculation")
        for a in axes[len(shown) :]:
            a.set_visible(False)
        figure.suptitle(heading, x=0.01, ha="left", fontsize=11, fontweight="bold", color=INK)
    return figure


def _fanned(a: Axes, name: str, past: Band | None, future: Band | None, told: Readings | None, now: float) -> None:
    if past is not None:
        a.fill_between(past.t, past.low, past.high, color=BLUE, alpha=0.20, linewidth=0)
        a.plot(past.t, past.mid, color=BLUE, linewidth=1.7, label="believed, 90 %")
    if future is not None:
        a.fill_between(future.t, future.low, future.high, color=ORANGE, alpha=0.22, linewidth=0)
        a.plot(future.t, future.mid, color=ORANGE, linewidth=1.7, linestyle=(0, (4, 2)), label="forecast, 90 %")
    if past is not None and future is not None:
        a.axvline(now, color=FAINT, linewidth=0.9)
    if told is not None and told.t.size:
        few = told.t.size <= 60
        a.errorbar(
            told.t, told.value, yerr=1.645 * told.sd if few else None, fmt="o", markersize=3.2 if few else 1.4, color=INK,
            ecolor=FAINT, elinewidth=0.8, markeredgecolor="white", markeredgewidth=0.4 if few else 0.0, zorder=3,
            label="readings, 90 %" if few else "readings",
        )  # fmt: skip
    if name in FRACTIONS:
        low, high = a.get_ylim()
        a.set_ylim(max(low, -0.02), min(high, 1.04))
    elif a.get_ylim()[0] < 0.0:
        a.set_ylim(bottom=0.0)


def _harvest(a: Axes, harvest: tuple[float, float, float]) -> None:
    low, middle, high = harvest
    a.axvspan(low, max(high, low + 0.02), color=GREEN, alpha=0.10, linewidth=0)
    a.axvline(middle, color=GREEN, linewidth=1.2, linestyle=(0, (1, 1.4)), label="harvest, 90 %")


def _within(a: Axes, limits: Sequence[Limit]) -> None:
    """Limits that lie near the data, labelled at the left where bands are narrow."""
    for limit in limits:
        low, high = a.get_ylim()
        room = high - low
        if not low - 0.4 * room <= limit.value <= high + 0.4 * room:
            continue
        a.set_ylim(min(low, limit.value - 0.06 * room), max(high, limit.value + 0.14 * room))
        a.axhline(limit.value, color=RED, linewidth=1.0, linestyle=(0, (5, 3)), zorder=1.5)
        a.annotate(
            limit.label, (0.0, limit.value), xycoords=("axes fraction", "data"), xytext=(3, 2), textcoords="offset points",
            ha="left", va="bottom", fontsize=7, color=RED, zorder=4,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.6},
        )  # fmt: skip


class Effect(NamedTuple):
    """One donor parameter, before and after the data, as multiples of the population's median."""

    name: str
    before: tuple[float, float]  # 90 % interval over donors
    after: tuple[float, float, float]  # 5 %, median, 95 %
    told: str  # informed, weakly, not observable yet
    channels: tuple[str, ...]  # that told most of it


def forest(effects: Sequence[Effect], heading: str) -> Figure:
    """Where the donor lies in the population, parameter by parameter, and what the data say of each (at least one)."""
    figure, (a,) = new_figure(1, 1, 1.35 + 0.3 * len(effects), 9.6)
    with mpl.rc_context(STYLE):
        for row, e in enumerate(reversed(effects)):
            colour = TOLD.get(e.told, FAINT)
            a.plot(e.before, (row, row), color="#c9d1d8", linewidth=8, solid_capstyle="butt", zorder=1)
            a.plot((e.after[0], e.after[2]), (row, row), color=colour, linewidth=2.4, zorder=2)
            a.plot(
                e.after[1],
                row,
                "o",
                markersize=5.5,
                color=colour,
                markeredgecolor="white",
                markeredgewidth=0.8,
                zorder=3,
            )
            by = f"{e.told}: {', '.join(_channel(c) for c in e.channels)}" if e.channels else e.told
            a.annotate(by, (1.015, row), xycoords=("axes fraction", "data"), va="center", fontsize=8,
                       color=INK if e.told == "informed" else FAINT)  # fmt: skip
        a.set_yticks(range(len(effects)), [title(e.name) for e in reversed(effects)])
        a.set_ylim(-0.7, len(effects) - 0.3)
        a.set_xscale("log")
        ends = np.array([[*e.before, *e.after] for e in effects])
        low, high = ends.min() / 1.06, ends.max() * 1.06
        a.set_xlim(low, high)
        _ticks(a, low, high, "×")
        a.axvline(1.0, color=INK, linewidth=0.9, zorder=1.5)
        a.grid(visible=False, axis="y")
        a.set_xlabel("donor over population median (log scale)")
        a.plot([], [], color="#c9d1d8", linewidth=8, label="population, 90 % of donors")
        for told, colour in TOLD.items():
            if any(e.told == told for e in effects):
                a.plot(
                    [], [], color=colour, linewidth=2.4, marker="o", markersize=5.5, label=f"this donor, 90 %: {told}"
                )
        figure.legend(loc="outside lower center", ncols=4)
        figure.suptitle(heading, x=0.01, ha="left", fontsize=11, fontweight="bold", color=INK)
        a.annotate("what the data say of it, and what told most", (1.015, 1.0), xycoords="axes fraction", xytext=(0, 4),
                   textcoords="offset points", fontsize=8, fontweight="bold", color=INK, va="bottom")  # fmt: skip
    return figure


def _channel(name: str) -> str:
    shown = title(name)
    return shown if shown[1:2].isupper() else shown[0].lower() + shown[1:]


def _ticks(a: Axes, low: float, high: float, mark: str = "") -> None:
    """Round ticks of a short logarithmic axis."""
    steps = np.array([0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 7.0])
    nice = [s * 10.0**k for k in range(-3, 4) for s in steps if low <= s * 10.0**k <= high]
    a.xaxis.set_major_locator(FixedLocator(sorted({round(v, 6) for v in nice})))
    a.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{mark}{v:g}"))
    a.xaxis.set_minor_locator(NullLocator())
    a.xaxis.set_minor_formatter(NullFormatter())


def by_day(
    days: np.ndarray, p_pass: Mapping[str, np.ndarray], p_release: np.ndarray, heading: str, ended: float | None
) -> Figure:
    """P(pass) of every CQA and of release, as it was on each day `days` [d] given what was known by then."""
    figure, (a,) = new_figure(1, 1, 3.0, 9.6)
    with mpl.rc_context(STYLE):
        styles = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (5, 2, 1, 2)), (0, (3, 1, 1, 1, 1, 1)))
        for (name, p), colour, style in zip(p_pass.items(), (ORANGE, GREEN, PURPLE, SKY, RED), styles, strict=False):
            a.plot(days, p, color=colour, linestyle=style, linewidth=1.5, label=title(name))
        a.plot(days, p_release, color=BLUE, linewidth=2.6, marker="o", markersize=4, label="Release (all of them)")
        if ended is not None:
            a.axvline(ended, color=GREEN, linewidth=1.2, linestyle=(0, (1, 1.4)), label="harvest")
        a.set_ylim(-0.03, 1.03)
        a.set_yticks([0, 0.25, 0.5, 0.75, 1])
        a.set_ylabel("probability to pass")
        a.set_xlabel("days since inoculation: forecast from what was known by then")
        days_axis([a], max(float(days[-1]), ended or 0.0))
        figure.legend(loc="outside right upper")
        figure.suptitle(heading, x=0.01, ha="left", fontsize=11, fontweight="bold", color=INK)
    return figure


def design_space(
    drawn: Mapping[str, Any], heading: str, marks: Mapping[str, tuple[float, float]] | None = None
) -> Figure:
    """P(all CQA within the medium budget) over two settings, its contours, and the region of at least `level`.

    `drawn` is the answer's ``map``; `marks` are points to show, by label, in the settings' units.
    """
    x, y, p = drawn["x"], drawn["y"], np.asarray(drawn["p"], dtype=float)
    xs, ys, level = np.asarray(x["values"], dtype=float), np.asarray(y["values"], dtype=float), float(drawn["level"])
    figure, (a,) = new_figure(1, 1, 5.0, 7.4)
    with mpl.rc_context(STYLE):
        top_shade = max(0.2, np.ceil(10.0 * p.max() - 1e-9) / 10.0)
        shades = np.linspace(0.0, top_shade, round(20 * top_shade) + 1)
        filled = a.contourf(xs, ys, p, levels=shades, cmap="cividis", antialiased=True)
        steps = [v for v in np.arange(0.1, top_shade, 0.1) if abs(v - level) > 1e-9]
        inks = ["white" if v < 0.55 * top_shade else INK for v in steps]
        lines = a.contour(xs, ys, p, levels=steps, colors=inks, linewidths=0.8, alpha=0.85)
        a.clabel(lines, fmt="%.1f", fontsize=8)
        for line in drawn["boundary"]:
            a.plot(*np.asarray(line, dtype=float).T, color=RED, linewidth=2.4)
        bar = figure.colorbar(filled, ax=a, ticks=np.arange(0.0, top_shade + 0.01, 0.1), pad=0.02)
        bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
        bar.set_label("P(all CQA within the medium budget)", color=FAINT)
        for (label, (u, v)), shape in zip((marks or {}).items(), ("X", "*", "D"), strict=False):
            if xs[0] <= u <= xs[-1] and ys[0] <= v <= ys[-1]:
                a.plot(u, v, shape, markersize=12 if shape == "*" else 9, color=ORANGE, markeredgecolor=INK, label=label, zorder=5,
                       linestyle="none", clip_on=False)  # fmt: skip
        for axis, given, values in ((a.xaxis, x, xs), (a.yaxis, y, ys)):
            if given["log"]:
                (a.set_xscale if axis is a.xaxis else a.set_yscale)("log")
                axis.set_major_locator(FixedLocator(_round(values[0], values[-1])))
                axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
                axis.set_minor_locator(NullLocator())
        a.grid(visible=False)
        a.set_xlabel(setting_label(x["name"], x["unit"]))
        a.set_ylabel(setting_label(y["name"], y["unit"]))
        top = np.unravel_index(int(p.argmax()), p.shape)
        region = f"{100 * drawn['share']:.0f} % of the map reaches {level:g}" if drawn["boundary"] or drawn["share"] else (
            f"nowhere {level:g}: at most {p.max():.2f}"
        )  # fmt: skip
        error = float(np.asarray(drawn["mc_error"], dtype=float)[top])
        a.set_title(
            f"{region}; Monte Carlo error ±{error:.2f} (sd, {drawn['n']} futures)",
            fontsize=8.5,
            fontweight="normal",
            color=FAINT,
        )
        if drawn["boundary"]:
            a.plot([], [], color=RED, linewidth=2.4, label=f"P = {level:g}")
        if a.get_legend_handles_labels()[0]:
            figure.legend(loc="outside lower center", ncols=4)
        figure.suptitle(heading, x=0.01, ha="left", fontsize=11, fontweight="bold", color=INK)
    return figure


def _round(low: float, high: float) -> list[float]:
    """Round values of a logarithmic axis, few enough to read."""
    for steps in ((1.0, 1.5, 2.0, 3.0, 5.0, 7.0), (1.0, 2.0, 5.0), (1.0,)):
        found = [s * 10.0**k for k in range(-6, 7) for s in steps if low * 0.999 <= s * 10.0**k <= high * 1.001]
        if len(found) <= 9:
            return found
    return [low, high]


def front(plans: Sequence[Mapping[str, Any]], present: Mapping[str, Any] | None, heading: str) -> Figure:
    """What medium buys: P of the best plan for each budget, with its Monte Carlo error (90 %), and the present recipe."""
    figure, (a,) = new_figure(1, 1, 3.4, 7.4)
    with mpl.rc_context(STYLE):
        budget, p = np.array([q["budget"] for q in plans]), np.array([q["p"] for q in plans])
        a.plot(budget, p, color=FAINT, linewidth=1.0, zorder=1)
        policies = list(dict.fromkeys(str(q["policy"]) for q in plans))
        for policy, colour, shape in zip(policies, SERIES, "osD^vP", strict=False):
            own = [q for q in plans if q["policy"] == policy]
            a.errorbar(
                [q["budget"] for q in own], [q["p"] for q in own], yerr=[1.645 * q["mc_error"] for q in own], fmt=shape, color=colour,
                markersize=6, elinewidth=1.0, markeredgecolor="white", label=f"best plan: {policy}", zorder=3,
            )  # fmt: skip
        if present is not None:
            a.plot(present["budget"], present["p"], "X", color=RED, markersize=9, markeredgecolor="white", label="present recipe", zorder=4,
                   linestyle="none")  # fmt: skip
        a.set_ylim(0.0, 1.0)
        a.set_xlim(left=0.0)
        a.set_xlabel("medium budget of a batch [vessel volumes]")
        a.set_ylabel("P(all CQA within the budget)")
        a.legend(loc="upper left")
        figure.suptitle(heading, x=0.01, ha="left", fontsize=11, fontweight="bold", color=INK)
    return figure
