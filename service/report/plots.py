"""The report's plots. Every function takes values and returns a `matplotlib.figure.Figure`; nothing is shown or written.

Colours are Okabe and Ito's (2008), which colour-blind readers tell apart; shape and line style carry the same distinctions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from service.report.data import Band, Curve, Limit, ReportData

INK, FAINT, GRID = "#1c2b36", "#6b7a86", "#e6eaee"
BLUE, ORANGE, GREEN, RED, PURPLE, SKY = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#aa4499", "#56b4e9"
SERIES = (BLUE, ORANGE, GREEN, PURPLE, RED, SKY)

STYLE: Any = {
    "font.family": "sans-serif", "font.sans-serif": ["Inter", "Helvetica Neue", "Arial", "DejaVu Sans"], "font.size": 9,
    "axes.edgecolor": FAINT, "axes.labelcolor": FAINT, "axes.titlecolor": INK, "axes.titlesize": 10,
    "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.titlepad": 8, "axes.linewidth": 0.8,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True,
    "grid.color": GRID, "grid.linewidth": 0.8, "xtick.color": FAINT, "ytick.color": FAINT,
    "xtick.major.size": 0, "ytick.major.size": 0, "xtick.labelsize": 8, "ytick.labelsize": 8,
    "legend.frameon": False, "legend.fontsize": 8, "legend.labelcolor": INK, "figure.facecolor": "none",
    "axes.facecolor": "none", "lines.solid_capstyle": "round", "svg.fonttype": "none", "figure.constrained_layout.use": True,
}  # fmt: skip

TITLES: Mapping[str, str] = {
    "viable_density": "Viable cell density", "viable_cells": "Viable cells", "viability": "Viability",
    "dead": "Dead cells", "dead_density": "Dead cells", "total_density": "Total cell density", "glucose": "Glucose",
    "lactate": "Lactate", "glutamine": "Glutamine", "ammonia": "Ammonia", "cytokine": "Cytokine", "ph": "pH",
    "do": "Dissolved oxygen", "car_fraction": "CAR⁺ fraction", "exhausted_fraction": "Exhausted fraction",
    "exhausted": "Exhausted fraction", "doublings": "Population doublings", "volume": "Volume",
    "oxygen_uptake": "Oxygen uptake", "capacitance": "Capacitance", "raman_glucose": "Raman glucose",
    "raman_lactate": "Raman lactate", "perfusion": "Perfusion", "feed": "Feed", "bleed": "Bleed",
    "cytokine_dose": "Cytokine dosing", "mu_max": "Growth rate",
    "tau_lag": "Lag time", "K_L": "Lactate inhibition", "K_A": "Ammonia inhibition", "PD_max": "Replicative limit",
    "Y_LG": "Lactate yield", "Y_AQ": "Ammonia yield", "a_G": "Glucose per growth", "m_G": "Glucose upkeep",
    "a_Q": "Glutamine per growth", "k_Q": "Glutamine decay", "k_d0": "Basal death", "ph_offset": "pH offset",
    "do_offset": "DO offset", "p_release": "Release", "k_lys": "Lysis", "k_C": "Cytokine decay", "v_C": "Cytokine uptake",
    "q_O2": "Oxygen per cell", "car_fraction_offset": "CAR⁺ fraction offset",
}  # fmt: skip

SHOWN = (
    "viable_density", "viability", "glucose", "lactate", "ammonia", "glutamine", "cytokine", "car_fraction",
    "exhausted_fraction", "ph",
)  # fmt: skip
"""Quantities of the estimates page, in order; those without data are left out."""


MOST = 600
"""Most points of a band that are drawn."""

FRACTIONS = ("viability", "car_fraction", "exhausted_fraction", "exhausted")


def title(name: str) -> str:
    """A quantity's name as a person writes it."""
    return TITLES.get(name, name.replace("_", " ").capitalize())


def pretty_unit(unit: str) -> str:
    """A canonical unit as a person writes it; nothing for dimensionless numbers."""
    return {
        "1e6 cells/mL": "10⁶ cells/mL", "1e9 cells": "10⁹ cells", "dimensionless": "", "pH": "",
    }.get(unit, unit)  # fmt: skip


def new_figure(rows: int, columns: int, height: float, width: float) -> tuple[Figure, list[Axes]]:
    """A figure of the report's style and its axes in reading order; sizes in inches."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height * rows))
        figure.get_layout_engine().set(h_pad=0.07, w_pad=0.08)  # type: ignore[union-attr]
        axes = figure.subplots(rows, columns, squeeze=False)
    return figure, [a for row in axes for a in row]


def _label(axes: Axes, name: str, unit: str) -> None:
    axes.set_title(title(name))
    if text := "vessel volumes/d" if name in ("perfusion", "feed", "bleed") else pretty_unit(unit):
        axes.set_title(text, loc="right", fontsize=8, fontweight="normal", color=FAINT)


def _band(axes: Axes, band: Band, colour: str, label: str | None = None, **line: Any) -> None:
    if band.t.size > MOST:  # more than the eye or the page has use for
        band = Band(*(column[np.linspace(0, band.t.size - 1, MOST).round().astype(int)] for column in band))
    axes.fill_between(band.t, band.low, band.high, color=colour, alpha=0.18, linewidth=0)
    look: Any = {"linewidth": 1.8, **line}
    axes.plot(band.t, band.mid, color=colour, label=label, **look)


def _limits(axes: Axes, limits: Iterable[Limit]) -> None:
    """Limits as dashed lines; drawn last, and only where they do not squeeze the data flat."""
    for limit in limits:
        low, high = axes.get_ylim()
        pad = 0.06 * (high - low)
        if low - 10 * pad <= limit.value <= high + 10 * pad:
            axes.set_ylim(min(low, limit.value - pad), max(high, limit.value + 2 * pad))
            axes.axhline(limit.value, color=RED, linewidth=1.0, linestyle=(0, (5, 3)), zorder=1.5)
            axes.annotate(
                limit.label, (1.0, limit.value), xycoords=("axes fraction", "data"), xytext=(-2, 2),
                textcoords="offset points", ha="right", va="bottom", fontsize=7, color=RED,
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 0.8}, zorder=1.4,
            )  # fmt: skip


def days_axis(axes: Sequence[Axes], until: float) -> None:
    """Days from inoculation to `until` on every one of `axes`."""
    for a in axes:
        a.set_xlim(0.0, max(until, 0.5) * 1.01)
        a.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=until >= 4))


def estimates(data: ReportData, names: Sequence[str] = SHOWN, columns: int = 2) -> Figure | None:
    """Belief with its 90 % band against the truth (simulations) and the samples. None when there is nothing to draw."""
    shown = [n for n in names if n in data.estimates or n in data.samples]
    if not shown:
        return None
    rows = -(-len(shown) // columns)
    figure, axes = new_figure(rows, columns, 2.05, 9.6)
    with mpl.rc_context(STYLE):
        for a, name in zip(axes, shown, strict=False):
            _estimate(a, data, name)
        days_axis(axes[: len(shown)], data.until)
        for a in axes[len(shown) :]:
            a.set_visible(False)
        figure.supxlabel("days since inoculation", fontsize=9, color=FAINT)
        handles: dict[str, Any] = {}
        for a in axes[: len(shown)]:
            for handle, label in zip(*a.get_legend_handles_labels(), strict=True):
                handles.setdefault(label, handle)
        if handles:
            figure.legend(handles.values(), handles.keys(), loc="outside upper left", ncols=len(handles))
    return figure


def _estimate(a: Axes, data: ReportData, name: str) -> None:
    _label(a, name, data.units.get(name, ""))
    if (band := data.estimates.get(name)) is not None:
        _band(a, band, BLUE, "belief, 90 % band")
    if (true := data.truth.get(name)) is not None:
        a.plot(true.t, true.value, color=INK, linewidth=1.2, linestyle=(0, (1, 1.4)), label="truth (simulated)")
    if (probe := data.samples.get(f"raman_{name}")) is not None:
        a.plot(
            probe.t,
            probe.value,
            linestyle="none",
            marker=".",
            markersize=1.6,
            color=SKY,
            label="in-line probe",
            zorder=1,
        )
    if (s := data.samples.get(name)) is not None:
        few = s.t.size <= 60
        look: dict[str, Any] = {"linestyle": "none", "marker": "o", "markersize": 4 if few else 1.6}
        a.plot(s.t[s.used], s.value[s.used], **look, markerfacecolor=ORANGE, markeredgecolor="white",
               markeredgewidth=0.6 if few else 0.0, label="samples", zorder=3)  # fmt: skip
        rings: tuple[tuple[np.ndarray | None, str, str, str], ...] = (
            (s.late, "o", PURPLE, "came late"),
            (s.corrected, "D", GREEN, "corrected"),
        )
        for marked, shape, colour, label in rings:
            if marked is not None and (chosen := marked & s.used).any():
                a.plot(s.t[chosen], s.value[chosen], linestyle="none", marker=shape, markersize=8, markerfacecolor="none",
                       markeredgecolor=colour, markeredgewidth=0.9, label=label, zorder=2.8)  # fmt: skip
        if not s.used.all():
            a.plot(s.t[~s.used], s.value[~s.used], linestyle="none", marker="x", markersize=5, color=RED,
                   label="samples retracted or refused", zorder=3)  # fmt: skip
    if name in FRACTIONS:
        low, high = a.get_ylim()
        a.set_ylim(max(low, -0.02), min(high, 1.02))
    _limits(a, data.limits.get(name, ()))


def inputs(data: ReportData) -> Figure | None:
    """What the pumps did, by their own read-backs, and what the recipe alone would have done."""
    order = ("perfusion", "feed", "cytokine_dose", "bleed")
    shown = [n for n in order if n in data.inputs and (np.any(data.inputs[n].value > 0) or n == "perfusion")]
    if not shown:
        return None
    figure, axes = new_figure(len(shown), 1, 1.55, 9.6)
    with mpl.rc_context(STYLE):
        for a, name, colour in zip(axes, shown, (BLUE, GREEN, PURPLE, ORANGE), strict=False):
            _label(a, name, data.units.get(name, ""))
            t, value = _held(data.inputs[name], data.until)
            a.fill_between(t, 0.0, value, step="post", color=colour, alpha=0.15, linewidth=0)
            a.step(t, value, where="post", color=colour, linewidth=1.6, label="as pumped")
            if (recipe := data.recipe_inputs.get(name)) is not None:
                a.step(*_held(recipe, data.until), where="post", color=INK, linewidth=1.1, linestyle=(0, (3, 2)),
                       label="recipe alone")  # fmt: skip
                a.legend(loc="upper left", ncols=2)
            a.set_ylim(bottom=0.0)
            _limits(a, data.limits.get(name, ()))
        days_axis(axes, data.until)
        axes[-1].set_xlabel("days since inoculation")
    return figure


def _held(curve: Curve, until: float) -> tuple[np.ndarray, np.ndarray]:
    """A rate that holds until the next instant, drawn up to `until`."""
    return np.append(curve.t, max(until, curve.t[-1])), np.append(curve.value, curve.value[-1])


def probabilities(data: ReportData) -> Figure | None:
    """P(pass) of every CQA and of release, as forecast on each day."""
    if data.p_release is None and not data.p_pass:
        return None
    figure, (a,) = new_figure(1, 1, 2.7, 9.6)
    with mpl.rc_context(STYLE):
        styles = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (5, 2, 1, 2)), (0, (3, 1, 1, 1, 1, 1)))
        for (name, curve), colour, style in zip(
            data.p_pass.items(), (ORANGE, GREEN, PURPLE, SKY, RED), styles, strict=False
        ):
            a.plot(curve.t, curve.value, color=colour, linestyle=style, linewidth=1.5, label=title(name))
        if data.p_release is not None:
            a.plot(data.p_release.t, data.p_release.value, color=BLUE, linewidth=2.6, label="Release (all of them)")
        a.set_title("Probability to pass, as forecast on each day")
        a.set_ylim(-0.03, 1.03)
        a.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "¼", "½", "¾", "1"])
        a.set_xlabel("day of the forecast")
        days_axis([a], data.until)
        figure.legend(loc="outside right upper")
    return figure


def forecast(data: ReportData, names: Sequence[str] = ("viable_density", "viability", "lactate")) -> Figure | None:
    """One forecast made early, and what was believed (or true) later."""
    shown = [n for n in names if n in data.forecast]
    if not shown or data.forecast_from is None:
        return None
    figure, axes = new_figure(1, len(shown), 2.5, 9.6)
    with mpl.rc_context(STYLE):
        for a, name in zip(axes, shown, strict=True):
            _label(a, name, data.units.get(name, ""))
            _band(a, data.forecast[name], ORANGE, f"forecast on day {data.forecast_from:.3g}", linestyle=(0, (4, 2)))
            later = data.truth.get(name)
            if later is not None:
                a.plot(later.t, later.value, color=INK, linewidth=1.4, label="what happened (truth)")
            elif (band := data.estimates.get(name)) is not None:
                a.plot(band.t, band.mid, color=BLUE, linewidth=1.4, label="what was believed later")
            a.axvline(data.forecast_from, color=FAINT, linewidth=0.8)
            a.set_xlabel("days since inoculation")
            _limits(a, data.limits.get(name, ()))
        days_axis(axes, max(data.until, max(float(data.forecast[n].t[-1]) for n in shown)))
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=2)
    return figure


def parameters(data: ReportData) -> Figure | None:
    """How the donor's parameters were learnt, relative to where they started."""
    shown = [n for n, b in data.parameters.items() if b.t.size > 1]
    if not shown:
        return None
    columns = min(4, len(shown))
    rows = -(-len(shown) // columns)
    figure, axes = new_figure(rows, columns, 1.7, 9.6)
    with mpl.rc_context(STYLE):
        for a, name in zip(axes, shown, strict=False):
            unit = data.units.get(name, "")
            a.set_title(
                f"{title(name)} [{unit}]" if unit not in ("", "dimensionless", "pH") else title(name), fontsize=8.5
            )
            _band(a, data.parameters[name], GREEN)
            if (true := data.truth.get(name)) is not None:
                a.plot(true.t, true.value, color=INK, linewidth=1.2, linestyle=(0, (1, 1.4)))
        for a in axes[len(shown) :]:
            a.set_visible(False)
        days_axis(axes[: len(shown)], data.until)
    return figure
