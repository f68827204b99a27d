"""Pictures of `celltwin study NAME --plots DIR`: which values of a study's rows go into which plot, and the files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from service.cli.console import fail
from service.report import release_plots
from service.report.release_plots import Chances, Course
from simulators.study import release
from simulators.study.base import Row
from twin.scores import Z95, logistic_calibration

HANDFUL = 6
"""So many donors of either outcome are drawn singly: the first."""


def of_release(rows: Sequence[Row]) -> dict[str, Any]:
    """Reliability, PIT, P(release) by day, warnings; what the rows do not suffice for is left out."""
    chances = {day: Chances(*release.chances(rows, release.RELEASE, day)) for day in release.DAYS if day}
    chances = {day: c for day, c in chances.items() if c.p.size > 1 and np.ptp(c.p) > 0.0}
    fits = {day: logistic_calibration(c.p, c.passed, release.FUTURES) for day, c in chances.items()}
    figures: dict[str, Any] = {}
    if chances:
        slopes = {day: (fit.slope, Z95 * fit.slope_sd) for day, fit in fits.items()}
        figures["reliability"] = release_plots.reliability(chances, slopes)
    told = {name: release.pits(rows, name, release.OWED) for name in release.QUANTITIES}
    if all(v.size for v in told.values()):
        named = {NAMES.get(name, name): v for name, v in told.items()}
        figures["pit"] = release_plots.pit_histograms(named, release.OWED)
    every = [
        Course(str(r["seed"]), [d["day"] for d in r["days"]], [d["p"][release.RELEASE] for d in r["days"]],
               r["truth"]["day"], r["met"][release.RELEASE])
        for r in rows
    ]  # fmt: skip
    figures["p_release"] = release_plots.courses(
        [c for passed in (True, False) for c in [e for e in every if e.passed is passed][:HANDFUL]]
    )
    said = release.warned_of(rows)
    mixed = {day: c for day, c in chances.items() if 0 < c.passed.sum() < c.passed.size}
    if said is not None and mixed:
        failed = np.array([not r["met"][release.RELEASE] for r in rows])
        lead = (np.array([r["truth"]["day"] for r in rows]) - said.first)[failed]
        figures["warnings"] = release_plots.warnings(mixed, lead, said.false_alarms)
    return figures


NAMES: Mapping[str, str] = {
    release.CAR_CELLS: "Viable CAR⁺ cells", "viability": "Viability", "viable_cells": "Viable cells",
    "car_fraction": "CAR⁺ fraction", "exhausted_fraction": "Exhausted fraction", "day": "Day of harvest",
}  # fmt: skip

PICTURES: Mapping[str, Callable[[Sequence[Row]], dict[str, Any]]] = {"release": of_release}
"""Studies that have pictures, by name."""


def writable(name: str, folder: Path) -> None:
    """Make the folder before anything runs; ends the program where there is nothing to draw or nowhere to put it."""
    if name not in PICTURES:
        fail(f"--plots: study {name!r} has no pictures; there are some of: {', '.join(PICTURES)}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fail(f"--plots {folder}: cannot be made: {error.strerror}")


def draw(name: str, rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write every picture as PNG and SVG; the paths of the PNGs."""
    import matplotlib as mpl

    written: list[Path] = []
    with mpl.rc_context({"savefig.facecolor": "white", "svg.hashsalt": "celltwin"}):
        for picture, figure in PICTURES[name](rows).items():
            path = folder / f"{name}_{picture}.png"
            figure.savefig(path, dpi=150)
            figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
            written.append(path)
    return written
