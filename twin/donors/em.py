"""The population by the filter itself: expectation-maximisation over batches with all their sensors.

E-step: every donor's batch through the filter under the present population; its posterior of the donor's kinetics is what
the filter believes at the end. M-step: the population's mean is the mean of the donors' means, its covariance the mean of
their covariances plus the covariance of their means (Dempster, Laird and Rubin 1977), drawn towards its diagonal because
few donors say little about correlations. It learns the parameters that a population fitted to laboratory values alone
(`celltwin fit`) has to leave at the literature's spread, and the values that are best for a model that is not the plant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from twin.batch import start, tell
from twin.donors.prior import DonorPrior, considering
from twin.estimation.belief import N_STATE
from twin.evidence import Fact, Refused
from twin.process import Process

SHRINK = 0.2
"""Correlations are taken this much towards none."""
ROUNDS = 8  # at most
LEAST = 0.1
"""Share of a parameter's variance that is spread between donors at the least."""


class DonorPosterior(NamedTuple):
    """What one batch says of its donor: mean and covariance of ln kinetics, and the log-likelihood of its readings."""

    mean: Float[np.ndarray, " p"]
    cov: Float[np.ndarray, "p p"]
    walked: Float[np.ndarray, " p"]  # variance that the parameters' own walk has brought since inoculation
    log_likelihood: float


class Job(NamedTuple):
    """One donor's batch under a population."""

    process: Process
    prior: DonorPrior
    facts: Sequence[Fact]


def posterior(job: Job) -> DonorPosterior:
    """The E-step of one donor. Facts that the twin refuses say nothing."""
    batch = start("em", job.process, job.prior)
    for fact in job.facts:
        try:
            batch = tell(batch, fact)
        except Refused:
            continue
    rows = slice(N_STATE, batch.layout.error_start)
    process, names = job.process, batch.layout.parameters
    walked = batch.belief.time * np.square([process.restless.get(n, process.parameter_walk) for n in names])
    cov = batch.belief.cov[rows, rows]
    taken = [i for i in batch.innovations if i.accepted]
    likelihood = -0.5 * sum(float(np.log(2.0 * np.pi * i.s)) + i.nis for i in taken)
    return DonorPosterior(batch.belief.mean[rows], cov, walked, likelihood)


def population(
    process: Process,
    prior: DonorPrior,
    batches: Sequence[Sequence[Fact]],
    rounds: int = ROUNDS,
    spread: Callable[[Callable[[Job], DonorPosterior], Iterable[Job]], Iterable[DonorPosterior]] = map,
    tick: Callable[[int], None] = lambda done: None,
) -> tuple[DonorPrior, tuple[float, ...]]:
    """The population after at most `rounds`, and the log-likelihood at the beginning of each. `spread` is `map` or a pool's.

    It ends with the round that began with a likelihood less than a nat above that of the round before.

    Raises ValueError for fewer than three donors: their spread says nothing.
    """
    if len(batches) < 3:
        raise ValueError(f"a population needs at least three donors, not {len(batches)}")
    prior, said = considering(prior, process), list[float]()
    for _ in range(rounds):
        found: list[DonorPosterior] = []
        for one in spread(posterior, [Job(process, prior, facts) for facts in batches]):
            found.append(one)
            tick(1)
        means = np.array([f.mean for f in found])
        cov = np.mean([f.cov for f in found], axis=0) + np.cov(means.T)
        variance = np.diagonal(cov)
        owed = np.maximum(variance - np.mean([f.walked for f in found], axis=0), LEAST * variance)
        shrunk = np.sqrt(owed / variance)  # what a walk has added is no spread between donors
        cov = cov * np.outer(shrunk, shrunk)
        cov = (1.0 - SHRINK) * cov + SHRINK * np.diag(np.diagonal(cov))
        said.append(float(sum(f.log_likelihood for f in found)))
        prior = DonorPrior(
            prior.names, means.mean(axis=0), cov, {"basis": f"{len(batches)} batches through the filter"}
        )
        if len(said) > 1 and said[-1] < said[-2] + 1.0:
            break
    return prior, tuple(said)
