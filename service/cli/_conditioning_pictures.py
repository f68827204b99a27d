"""Pictures of `celltwin condition --plots DIR`: which values of the answer go into which plot, and the files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from service.cli.console import console
from service.report.conditioning_plots import (
    FANNED,
    Effect,
    Readings,
    by_day,
    design_space,
    fan,
    forest,
    front,
)
from service.report.data import Band, Limit
from twin.history import Batch
from twin.sensors import CHANNELS
from twin.units import CANONICAL


def draw(folder: Path, known: Batch, report: Mapping[str, Any], past: Mapping[str, Any], closed: bool) -> list[Path]:
    """Write every picture that the answer has values for, as PNG and SVG; the paths of the PNGs.

    `past` are the smoothed bands by name (empty where nothing was measured).
    """
    import matplotlib as mpl

    h, at = report["harvest"], float(report["at"])
    who = f"{report['batch']} ({report['donor']})"
    figures: dict[str, Any] = {
        "fan": fan(
            _bands(past), {} if closed else _bands(report["bands"]), _readings(known), _limits(known), CANONICAL, now=at,
            harvest=None if closed else (h["q05"], h["q50"], h["q95"]),
            heading=f"{who}: as it was" if closed else f"{who}: from day {at:.3g}, P(release) {report['p_release']:.2f}",
        )
    }  # fmt: skip
    if past:
        figures["donor"] = forest(_effects(known, report["donor_parameters"]), f"{who}: the donor on day {at:.3g}")
    if days := report.get("by_day"):
        day = np.asarray(days["day"], dtype=float)
        p_pass = {k: np.asarray(v, dtype=float) for k, v in days["p_pass"].items()}
        figures["p_pass"] = by_day(
            day, p_pass, np.asarray(days["p_release"]), f"{who}: probability to pass", at if closed else None
        )
    if drawn := report.get("map"):
        figures["design_space"] = design_space(drawn, "Design space", _marks(report, drawn))
    if (found := report.get("search")) and found["front"]:
        figures["medium"] = front(found["front"], found["present"], "What medium buys")
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    with mpl.rc_context({"savefig.facecolor": "white"}):
        for name, figure in figures.items():
            figure.savefig(folder / f"{name}.png", dpi=150)
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
            written.append(folder / f"{name}.png")
    console.print(f"wrote {', '.join(p.name for p in written)} (and .svg) to {folder}", soft_wrap=True)
    return written


def _bands(bands: Mapping[str, Any]) -> dict[str, Band]:
    return {
        k: Band(*(np.asarray(b[q], dtype=float) for q in ("t", "q05", "q50", "q95")))
        for k, b in bands.items()
        if k in FANNED
    }


def _readings(known: Batch) -> dict[str, Readings]:
    """Readings as they are known, with the standard errors that the filter takes them with."""
    found: dict[str, list[tuple[float, float, float]]] = {}
    for m in known.evidence:
        if m.channel in FANNED and (sensor := known.process.sensors.get(m.channel)) is not None:
            stated = sensor.sd * (m.value if CHANNELS[m.channel].scale == "log" else 1.0)
            found.setdefault(m.channel, []).append((m.sampled_at, m.value, m.sd if m.sd is not None else stated))
    return {k: Readings(*np.array(v, dtype=float).T) for k, v in found.items()}


def _limits(known: Batch) -> dict[str, list[Limit]]:
    """Release criteria and operating limits of what is drawn; the dose as the density that holds it."""
    limits, found = known.process.limits, dict[str, list[Limit]]()
    for t in known.process.targets:
        if t.cqa == "viable_cells":
            density = t.value / float(known.process.initial.volume)
            found["viable_density"] = [Limit(t.sense, density, f"dose {t.value:g}×10⁹")]
        else:
            found[t.cqa] = [Limit(t.sense, t.value, "release")]
    found["glucose"] = [Limit("at_least", limits.glucose_min, "lowest")]
    found["lactate"] = [Limit("at_most", limits.lactate_soft, "soft"), Limit("at_most", limits.lactate_hard, "hard")]
    return found


def _effects(known: Batch, learnt: Mapping[str, Any]) -> list[Effect]:
    prior, found = known.donor_prior, list[Effect]()
    for k, name in enumerate(prior.names):
        m, centre, spread = learnt[name], float(np.exp(prior.mean[k])), 1.645 * float(np.sqrt(prior.cov[k, k]))
        after = np.array([m["q05"], np.sqrt(m["q05"] * m["q95"]), m["q95"]]) / centre
        told = () if m["data"] == "not observable yet" else tuple(list(m["channels"])[:2])
        found.append(
            Effect(name, (float(np.exp(-spread)), float(np.exp(spread))), tuple(after.tolist()), m["data"], told)
        )
    return found


def _marks(report: Mapping[str, Any], drawn: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Where the present and the found plan lie on the map, if it is a map of their policy."""
    found = report.get("search")
    plans = {"present recipe": found["present"] if found else drawn["held"], "found": found}
    x, y = drawn["x"]["name"], drawn["y"]["name"]
    return {
        label: (float(plan["settings"][x]), float(plan["settings"][y]))
        for label, plan in plans.items()
        if plan is not None and plan["policy"] == drawn["held"]["policy"] and {x, y} <= set(plan["settings"])
    }
