"""Is the filter as sure as it may be? Reactors that obey the very model: NIS and NEES must then be what chi-square says.

The one study on matched data: truth is drawn from the filter's own prior and carried by its own model and noise
(`simulators.matched`). It tests the arithmetic of the filter, not its worth; every other study is on the mismatched plant.

Twice: with the four kinetics that routine data inform best, each as unlike between donors as published, and with all that the
process learns, as it ships. The first asks for mistakes in the arithmetic. With all of them posteriors are curved (a replicative
limit not yet met only says "later"), and one Gaussian misses besides what it cannot hold. Chi-square is owed of both.
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
INFORMED = ("mu_max", "tau_lag", "a_G", "Y_LG")
"""Growth, lag, uptake and yield: informed from the first days on."""


class Job(NamedTuple):
    """One matched reactor."""

    seed: int
    process: str
    prior: DonorPrior | None
    filter_name: str = "ukf"
    whole: bool = True  # all kinetics that the process learns; else `INFORMED`


def jobs(batches: int, first: int, process: str, prior: DonorPrior | None) -> Sequence[Job]:
    """Two jobs a reactor: few kinetics learnt, and all."""
    return [Job(first + k, process, prior, whole=whole) for whole in (False, True) for k in range(batches)]


def run(job: Job) -> Row:
    """NIS of every reading taken in, NEES at the end of every day."""
    process = load_config(job.process)
    prior = job.prior or preset_prior(process)
    if not job.whole:
        process, prior = replace(process, considered=()), preset_prior(process, INFORMED)
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
        "whole": job.whole,
        "nis_sum": float(np.sum(taken)),
        "nis_n": len(taken),
        "rejected": len(batch.innovations) - len(taken),
        "nees": nees,
        "size": batch.layout.size,
        "repairs": batch.belief.repairs,
    }


def figures(rows: Sequence[Row]) -> tuple[Figure, ...]:
    """Means and the tail, with few kinetics learnt and with all."""
    found: list[Figure] = []
    for whole, learnt in ((False, "four kinetics learnt"), (True, "all learnt")):
        mine = [r for r in rows if r["whole"] == whole]
        if not mine:
            continue
        nees, size = np.array([v for r in mine for v in r["nees"]]), int(mine[0]["size"])
        readings = int(sum(r["nis_n"] for r in mine))
        nis = sum(r["nis_sum"] for r in mine) / readings
        mean, beyond = float(nees.mean()) / size, float(np.mean(nees > chi2.ppf(0.99, size)))
        note = f"{len(mine)} reactors, {DAYS} d, n = {size}"
        found += [
            Figure(f"{learnt}: NIS, mean over readings", nis, low=0.95, high=1.05, n=readings),
            Figure(f"{learnt}: NEES/n, mean over reactor-days", mean, low=0.90, high=1.05, n=nees.size, note=note),
            Figure(f"{learnt}: P(NEES > chi2 .99)", beyond, high=0.02, n=nees.size),
            Figure(f"{learnt}: readings not taken in", sum(r["rejected"] for r in mine) / readings, n=readings),
        ]
    return tuple(found)


STUDY = Study("Matched reactors: is the filter as sure as it may be?", 100, jobs, run, figures)
