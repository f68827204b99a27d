"""Predictive checks of a fit: where the readings lie in what the model expected before it saw them, and after.

For every reading the predictive distribution is the mixture over draws of the model's own noise about each draw's
trajectory; its value at the reading is the probability integral transform (PIT). Before: kinetics of donors, state at inoculation
and noise from their priors. After: from the posterior, which has seen the reading (so that too few lie outside, not too many).
A prior that leaves readings outside its 90 % interval too often excludes what happened; a posterior that does has a model that
cannot follow them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import ndtr, stdtr

from twin.donors.data import FitData
from twin.donors.fit import Fit
from twin.donors.model import NU, WELL_INFORMED, drift_prior, preset_population
from twin.donors.prior import DonorPrior
from twin.donors.target import Population, Target
from twin.process import Process
from twin.sensors import CHANNELS

DRAWS = 200
LEAST = 0.75
"""Share of a channel's readings inside 90 % intervals below which it is called out."""


class Check(NamedTuple):
    """One channel over all batches."""

    n: int
    before: float  # share of readings inside the prior predictive 90 % interval
    after: float  # the same, posterior

    @property
    def verdict(self) -> str:
        """Empty where nothing is wrong."""
        said = []
        if self.before < LEAST:
            said.append("the prior excludes it")
        if self.after < LEAST:
            said.append("the model cannot follow it")
        return "; ".join(said)


def one_batch(data: FitData, column: int) -> FitData:
    """One column of a fit's data."""
    samples = {
        c: s._replace(**{k: getattr(s, k)[s.column == column] for k in ("time", "value", "sd")}, column=np.zeros(int((s.column == column).sum()), dtype=int))
        for c, s in data.samples.items()
        if (s.column == column).any()
    }  # fmt: skip
    return replace(
        data, donors=(data.donors[data.donor_of[column]],), batches=(data.batches[column],), donor_of=np.zeros(1, dtype=int),
        horizon=float(max(s.time.max() for s in samples.values())), applied=(data.applied[column],),
        initial=type(data.initial)(*(np.asarray(v)[[column]] for v in data.initial)), samples=samples, static=None, chain=None,
        covariates={},
    )  # fmt: skip


def pit(target: Target, u: Float[np.ndarray, "m d"]) -> tuple[Float[np.ndarray, " n"], tuple[str, ...]]:
    """PIT of every reading under the mixture over rows of `u`, and its channel. Draws that cannot be integrated are left out."""
    r, student, channel = target.standardised(u)
    good = np.isfinite(r).all(axis=0)
    r = r[:, good]
    below = np.where(student, stdtr(NU, r), ndtr(r)).mean(axis=1)
    return below, tuple(target.channels[k] for k in channel)


def predictive_checks(fit: Fit, process: Process, seed: int = 1) -> Mapping[str, Check]:
    """By channel of the bioreactor."""
    rng = np.random.default_rng([seed, 11])
    known = fit.posterior["posterior"]
    names = fit.prior.names
    flat = {
        k: np.asarray(known[k]).reshape(-1, *np.shape(known[k])[2:])
        for k in ("theta", "ln_viable0", "ln_dead0", "ln_car_odds0", "ln_exhausted0", "q", "doublings0")
    }
    rows = rng.choice(len(flat["q"]), size=min(DRAWS, len(flat["q"])), replace=False)
    channels = list(fit.data.samples)
    median, spread = preset_population(process, names)
    learnt = np.array([n in WELL_INFORMED for n in names])  # theirs is the uncertainty of the centre too
    loose = DonorPrior(names, median, np.diag(spread**2 + learnt * np.maximum(spread, 0.15) ** 2))
    population = Population(names, loose.mean[None], loose.cov[None], {c: drift_prior(c) for c in CHANNELS})
    found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {c: [] for c in channels}
    for column, donor in enumerate(fit.data.donor_of):
        data = one_batch(fit.data, column)
        target = Target(population, data, process)
        entered = np.array([flat["doublings0"][:, column].mean()])
        known_start = Target(population, replace(data, initial=data.initial._replace(doublings=entered)), process)
        seeds = [flat[f"ln_{k}"][rows, column] for k in ("viable0", "dead0", "car_odds0", "exhausted0")]
        noise = np.log(flat["q"][rows][:, [channels.index(c) for c in target.channels]])
        after = np.column_stack([flat["theta"][rows, donor], *seeds, noise])
        centre, cov = target.prior
        before = rng.multivariate_normal(centre, cov, size=DRAWS)
        a, channel = pit(target, before)
        b, _ = pit(known_start, after)
        for c in target.channels:
            own = np.array([k == c for k in channel])
            found[c].append((a[own], b[own]))
    return {
        c: Check(sum(a.size for a, _ in pairs), *(float(np.mean(np.abs(np.concatenate(p) - 0.5) <= 0.45)) for p in zip(*pairs, strict=True)))
        for c, pairs in found.items()
        if pairs
    }  # fmt: skip
