"""Is the filter as sure as it may be? Reactors that obey the very model: NIS and NEES must then be what chi-square says.

The one study on matched data: truth is drawn from the filter's own prior and carried by its own model and noise
(`simulators.matched`). It tests the arithmetic of the filter, not its worth; every other study is on the mismatched plant.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import chi2

from simulators.matched import matched_run, told
from simulators.study.base import Figure, Row, Study
from twin.batch import believe_at
from twin.config import load_config
from twin.donors.prior import DonorPrior

DAYS = 21


class Job(NamedTuple):
    """One matched reactor."""

    seed: int
    process: str
    prior: DonorPrior | None
    filter_name: str = "ukf"


def jobs(batches: int, first: int, process: str, prior: DonorPrior | None) -> Sequence[Job]:
    """One job a reactor."""
    return [Job(first + k, process, prior) for k in range(batches)]


def run(job: Job) -> Row:
    """NIS of every reading taken in, NEES at the end of every day."""
    reactor = matched_run(load_config(job.process), job.seed, DAYS, job.filter_name, prior=job.prior)
    batch = told(reactor)
    nees: list[float] = []
    for day in range(1, DAYS + 1):
        belief = believe_at(batch, float(day))
        error = belief.mean - reactor.truth[24 * day]
        nees.append(float(error @ np.linalg.solve(belief.cov, error)))
    taken = [i.nis for i in batch.innovations if i.accepted]
    return {
        "seed": job.seed,
        "nis_sum": float(np.sum(taken)),
        "nis_n": len(taken),
        "rejected": len(batch.innovations) - len(taken),
        "nees": nees,
        "size": batch.layout.size,
        "repairs": batch.belief.repairs,
    }


def figures(rows: Sequence[Row]) -> tuple[Figure, ...]:
    """Means and the tail."""
    nees = np.array([v for r in rows for v in r["nees"]])
    size, n = int(rows[0]["size"]), len(rows)
    readings = int(sum(r["nis_n"] for r in rows))
    beyond = float(np.mean(nees > chi2.ppf(0.99, size)))
    return (
        Figure("NIS, mean over readings", sum(r["nis_sum"] for r in rows) / readings, low=0.95, high=1.05, n=readings),
        Figure("NEES/n, mean over reactor-days", float(nees.mean()) / size, low=0.90, high=1.05, n=nees.size),
        Figure("P(NEES > chi2 .99)", beyond, high=0.02, n=nees.size, note=f"{n} reactors, {DAYS} d, n = {size}"),
        Figure("readings not taken in", sum(r["rejected"] for r in rows) / readings, n=readings),
    )


STUDY = Study("Matched reactors: is the filter as sure as it may be?", 100, jobs, run, figures)
