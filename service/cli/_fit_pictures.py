"""Pictures of `celltwin fit --plots DIR`: which values of the fit go into which plot, and the files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from service.cli.console import console, fail, progress
from service.report.donor_plots import Kinetic, donor_forest, shrinkage
from twin.backtest.left_out import bioreactor_alone, donor_moments, unpooled
from twin.donors.data import COUNTS, FitError, prepare_one
from twin.donors.fit import Fit
from twin.donors.model import population
from twin.donors.target import Target
from twin.donors.update import posterior
from twin.process import Process
from twin.records import RecordedBatch


def writable(folder: Path) -> None:
    """Make the folder before the fit runs; ends the program where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fail(f"--plots {folder}: cannot be made: {error.strerror}")


def draw(result: Fit, records: Sequence[RecordedBatch], process: Process, folder: Path) -> list[Path]:
    """Write the shrinkage plot and the forest of donor effects as PNG and SVG; the paths of the PNGs."""
    import matplotlib as mpl

    kinetics = values(result, records, process)
    n = len(result.data.donors)
    figures = {
        "shrinkage": shrinkage([k for k in kinetics if k.learnt], f"What pooling {n} donors makes of each one's own estimate"),
        "donors": donor_forest(kinetics, result.data.donors, f"{n} donors in their population"),
    }  # fmt: skip
    written: list[Path] = []
    with mpl.rc_context({"savefig.facecolor": "white", "svg.hashsalt": "celltwin"}):
        for name, figure in figures.items():
            path = folder / f"{name}.png"
            figure.savefig(path, dpi=150)
            figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
            written.append(path)
    console.print(f"wrote {', '.join(p.name for p in written)} (and .svg) to {folder}", soft_wrap=True)
    return written


def values(result: Fit, records: Sequence[RecordedBatch], process: Process) -> list[Kinetic]:
    """Every parameter of the fit over donors, and each donor's own estimate by the preset's population and his bioreactor batch.

    Of several batches of a donor, the one with the most counts; NaN where its importance weights cannot be trusted.
    """
    names, donors = result.prior.names, result.data.donors
    batches = {b.donor: b for b in sorted(bioreactor_alone(records), key=lambda b: sum(m.channel == COUNTS for m in b.final))}  # fmt: skip
    alone, own = unpooled(process, names), np.full((len(donors), len(names)), np.nan)
    with progress("each donor by himself", len(donors)) as advance:
        for d, donor in enumerate(donors):
            try:
                found = posterior(Target(alone, prepare_one(batches[donor], process), process))
            except FitError:  # fits beside others, but not alone
                continue
            finally:
                advance(1)
            if np.isfinite(found.khat):
                own[d] = np.exp(found.mean[: len(names)])
    pooled = np.exp(donor_moments(result.posterior, result.data))
    centre = np.exp(np.quantile(result.draws, (0.05, 0.5, 0.95), axis=0))
    learnt = population(names)[0]
    return [
        Kinetic(n, (float(centre[0, k]), float(centre[1, k]), float(centre[2, k])), pooled[:, k], own[:, k], n in learnt)
        for k, n in enumerate(names)
    ]  # fmt: skip
