"""Is the filter as sure as it may be? Reactors that obey the very model: NIS and NEES must then be what chi-square says.

The one study on matched data: truth is drawn from the filter's own prior and carried by its own model and noise
(`simulators.matched`). It tests the arithmetic of the filter, not its worth; every other study is on the mismatched plant.

Twice: donors as unlike each other as the prior says, and steady donors within a third of that, the filter told so. Over the
narrow range the model is nearly straight, and what a Gaussian filter then misses is a mistake; over the full range posteriors are
curved (a replicative limit not yet met only says "later"), and what it misses besides is the price of being Gaussian.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from scipy.stats import chi2

from simulators.matched import matched_run, told
from simulators.study.base import Figure, Row, Study
from twin.batch import believe_at
from twin.config import load_config
from twin.donors.prior import DonorPrior, preset_prior

DAYS = 21
NARROW = 0.3
"""Spread of the donors over which the model is nearly straight, over that of the prior."""


class Job(NamedTuple):
    """One matched reactor."""

    seed: int
    process: str
    prior: DonorPrior | None
    filter_name: str = "ukf"
    spread: float = 1.0  # of the donors, over that of the prior


def jobs(batches: int, first: int, process: str, prior: DonorPrior | None) -> Sequence[Job]:
    """Two jobs a reactor: a donor from all of the prior, and one from its middle."""
    whole = prior or preset_prior(load_config(process))
    return [Job(first + k, process, whole, spread=spread) for spread in (1.0, NARROW) for k in range(batches)]


def run(job: Job) -> Row:
    """NIS of every reading taken in, NEES at the end of every day."""
    process = load_config(job.process)
    prior = job.prior or preset_prior(process)
    if job.spread != 1.0:
        prior = replace(prior, cov=prior.cov * job.spread**2)
        process = replace(process, parameter_walk=job.spread * process.parameter_walk, restless={})
    reactor = matched_run(process, job.seed, DAYS, job.filter_name, prior=prior)
    batch = told(reactor)
    nees: list[float] = []
    for day in range(1, DAYS + 1):
        belief = believe_at(batch, float(day))
        error = belief.mean - reactor.truth[24 * day]
        nees.append(float(error @ np.linalg.solve(belief.cov, error)))
    taken = [i.nis for i in batch.innovations if i.accepted]
    return {
        "seed": job.seed,
        "spread": job.spread,
        "nis_sum": float(np.sum(taken)),
        "nis_n": len(taken),
        "rejected": len(batch.innovations) - len(taken),
        "nees": nees,
        "size": batch.layout.size,
        "repairs": batch.belief.repairs,
    }


def figures(rows: Sequence[Row]) -> tuple[Figure, ...]:
    """Means and the tail, of all donors and of those from the middle."""
    size, readings = int(rows[0]["size"]), int(sum(r["nis_n"] for r in rows))
    found = [
        Figure("NIS, mean over readings", sum(r["nis_sum"] for r in rows) / readings, low=0.95, high=1.05, n=readings)
    ]
    for spread, donors in (
        (1.0, "donors of the whole prior"),
        (NARROW, f"steady donors within {NARROW:g} of its spread"),
    ):
        nees = np.array([v for r in rows if r["spread"] == spread for v in r["nees"]])
        if not nees.size:
            continue
        beyond = float(np.mean(nees > chi2.ppf(0.99, size)))
        note = f"{nees.size // DAYS} reactors, {DAYS} d, n = {size}"
        found += [
            Figure(
                f"{donors}: NEES/n, mean over reactor-days", float(nees.mean()) / size, low=0.90, high=1.05, n=nees.size
            ),
            Figure(f"{donors}: P(NEES > chi2 .99)", beyond, high=0.02, n=nees.size, note=note),
        ]
    return (*found, Figure("readings not taken in", sum(r["rejected"] for r in rows) / readings, n=readings))


STUDY = Study("Matched reactors: is the filter as sure as it may be?", 100, jobs, run, figures)
