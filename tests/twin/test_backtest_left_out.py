"""Donors pooled three ways: evidence and leaving out have their closed forms where all is Gaussian; one set of kinetics is one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pytest
from scipy import stats
from scipy.special import logsumexp

pytest.importorskip("pymc", reason="the update smooths its weights with the donors extra")

from simulators.history import synthetic_history
from twin.backtest.left_out import (
    bioreactor_alone,
    common,
    densities,
    evidence_by_draw,
    last_count,
    left_out,
    unpooled,
    without,
)
from twin.config import configs_dir, load_config
from twin.donors.artefact import load_artefact
from twin.donors.data import COUNTS, prepare, prepare_one
from twin.donors.fit import Settings
from twin.donors.model import FIT_PARAMETERS, build, preset_population
from twin.donors.sample import density
from twin.donors.target import Population, Target, population_of
from twin.donors.update import KHAT, posterior, smoothed_mean

PROCESS = load_config("car_nk")
ARTEFACT = load_artefact(configs_dir() / "priors" / "car_nk")
HISTORY = synthetic_history(PROCESS, 5, seed=3001)
BATCHES = bioreactor_alone(HISTORY)
NOISE = 0.6


def mixture(k: int) -> Population:
    """Populations that differ by a little of a donor spread."""
    one, rng = population_of(ARTEFACT, PROCESS), np.random.default_rng(2)
    mean, cov = one.moments
    off = 0.15 * np.sqrt(np.diagonal(cov)) * rng.standard_normal((k, mean.size))
    return replace(one, mean=mean + off, cov=cov * rng.uniform(0.8, 1.2, k)[:, None, None])


@dataclass(frozen=True, eq=False)
class Linear(Target):
    """Readings that are linear in the coordinates, under the target's own prior: evidence is known."""

    @cached_property
    def design(self) -> np.ndarray:
        return np.random.default_rng(1).standard_normal((9, len(self.names)))

    @cached_property
    def read(self) -> np.ndarray:
        mean, cov = self.prior
        return self.design @ (mean + 0.4 * np.sqrt(np.diagonal(cov)))

    def log_density(self, u: np.ndarray) -> np.ndarray:
        return self._prior(u)[0] + stats.norm(0.0, NOISE).logpdf(self.read - u @ self.design.T).sum(axis=1)

    def value_and_gradient(self, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        off = (self.read - u @ self.design.T) / NOISE**2
        return self.log_density(u), self._prior(u)[1] + off @ self.design

    def evidence(self, population: Population) -> np.ndarray:
        """ln p(readings) under every component by itself."""
        mean, cov = self.prior
        p, out = len(population.names), []
        for m, c in zip(population.mean, population.cov, strict=True):
            centre, spread = mean.copy(), cov.copy()
            centre[:p], spread[:p, :p] = m, c
            whole = self.design @ spread @ self.design.T + NOISE**2 * np.eye(len(self.read))
            out.append(stats.multivariate_normal(self.design @ centre, whole).logpdf(self.read))
        return np.array(out)


def test_evidence_of_a_linear_gaussian_donor_has_the_closed_form() -> None:
    """Of a mixture, through the coordinates that are sampled in; by component from the same draws, also one not sampled under."""
    known, asked = mixture(3), mixture(8)
    linear = Linear(known, prepare_one(BATCHES[0], PROCESS, 6.0), PROCESS)
    found = posterior(linear)
    closed = linear.evidence(known)
    assert found.khat < KHAT
    assert found.log_evidence == pytest.approx(logsumexp(closed) - np.log(3), abs=0.05)
    np.testing.assert_allclose(evidence_by_draw(linear, found, asked), linear.evidence(asked), atol=0.15)
    by_draw = evidence_by_draw(linear, found, known)
    np.testing.assert_allclose(by_draw, closed, atol=0.1)
    assert logsumexp(by_draw) - np.log(3) == pytest.approx(found.log_evidence, abs=1e-9)


def test_component_densities_are_those_of_the_gaussians() -> None:
    population = mixture(60)  # more than are taken at once
    theta = population.mean[:4] + 0.1
    told = np.stack([stats.multivariate_normal(m, c).logpdf(theta) for m, c in zip(population.mean, population.cov, strict=True)], axis=1)  # fmt: skip
    np.testing.assert_allclose(densities(population, theta), told, rtol=1e-8)


def test_leaving_a_donor_out_by_weights_is_the_closed_form_of_a_conjugate_population() -> None:
    """y_d ~ N(m, s^2), m ~ N(0, t^2): draws of m given all; without donor d by weights, and in closed form."""
    rng, s, t, n = np.random.default_rng(7), 0.5, 2.0, 12
    y = 0.7 + s * rng.standard_normal(n)
    draws = stats.norm(*_known(y, s, t)).rvs(20_000, random_state=rng)
    for d in range(n):
        centre, sd = _known(np.delete(y, d), s, t)
        found = left_out(stats.norm(draws, s).logpdf(y[d]))
        assert found.khat < KHAT
        assert found.log_density == pytest.approx(stats.norm(centre, np.hypot(sd, s)).logpdf(y[d]), abs=0.02)
        assert found.weights.sum() == pytest.approx(1.0)
        assert found.weights @ draws == pytest.approx(centre, abs=0.02)


def _known(y: np.ndarray, s: float, t: float) -> tuple[float, float]:
    precision = y.size / s**2 + 1.0 / t**2
    return float(y.sum() / s**2 / precision), float(precision**-0.5)


def test_the_mean_of_weights_is_that_of_their_distribution() -> None:
    """Lognormal weights have a known mean; no weight that counts at all is no evidence."""
    ln = 0.4 * np.random.default_rng(0).standard_normal(40_000) - 3.0
    weights, khat, mean = smoothed_mean(ln)
    assert mean == pytest.approx(-3.0 + 0.08, abs=0.01)
    assert khat < 0.5 and weights.sum() == pytest.approx(1.0)
    assert smoothed_mean(np.full(100, -np.inf))[2] == -np.inf


def test_a_population_without_a_donor_holds_its_draws_by_their_weights() -> None:
    population, weights = mixture(4), np.array([0.5, 0.25, 0.25, 0.0])
    mean = without(population, weights, 200).mean
    shares = [np.mean((mean == m).all(axis=1)) for m in population.mean]
    np.testing.assert_allclose(shares, weights, atol=0.005)


def test_nothing_learnt_is_the_preset() -> None:
    mean, cov = unpooled(PROCESS, FIT_PARAMETERS).moments
    median, spread = preset_population(PROCESS, FIT_PARAMETERS)
    np.testing.assert_allclose(mean, median)
    np.testing.assert_allclose(cov, np.diag(spread**2), atol=1e-15)


def test_bioreactor_alone_leaves_nothing_that_knows_the_donor_elsewhere() -> None:
    data = prepare(BATCHES, PROCESS)
    assert data.static is None and data.chain is None
    assert data.donors == prepare(HISTORY, PROCESS).donors


def test_without_a_spread_all_donors_share_one_set_of_kinetics() -> None:
    flat = density(build(prepare(BATCHES, PROCESS), PROCESS, spread_donors=False))
    q = flat.start + 0.1 * np.random.default_rng(1).standard_normal(flat.start.size)
    theta = flat.expand(q)[flat.names.index("theta")]
    assert theta.shape == (5, len(FIT_PARAMETERS))
    assert np.ptp(theta, axis=0).max() == 0.0
    value, gradient = flat.value_and_gradient(q)
    step = 1e-5 * np.random.default_rng(2).standard_normal(q.size)
    slope = flat.value_and_gradient(q + step)[0] - flat.value_and_gradient(q - step)[0]
    assert np.isfinite(value)
    assert slope == pytest.approx(2.0 * gradient @ step, rel=1e-4)


def test_the_last_count_lies_where_its_residual_does() -> None:
    """All weight on one draw: the predictive probability is that of Student's t at the residual."""
    alone = unpooled(PROCESS, FIT_PARAMETERS)
    early, whole = (Target(alone, prepare_one(BATCHES[1], PROCESS, day), PROCESS) for day in (6.0, None))
    found = posterior(early)
    sure = replace(found, weights=np.eye(len(found.weights))[int(np.argmax(found.weights))])
    told = last_count(whole, sure, n=4)
    counts = whole.data.samples[COUNTS]
    assert told.day == counts.time.max() > 6.0
    assert told.density == counts.value[np.argmax(counts.time)]
    assert 0.0 < told.below < 1.0
    higher = counts._replace(value=counts.value * 2.0)
    more = Target(alone, replace(whole.data, samples={**whole.data.samples, COUNTS: higher}), PROCESS)
    assert last_count(more, sure, n=4).below > told.below
    assert told.within(1.0) and not told.within(0.0)


@pytest.mark.slow
def test_one_set_of_kinetics_is_known_better_than_a_donors_own() -> None:
    known, diagnostics = common(BATCHES, PROCESS, settings=Settings(draws=60, tune=60, chains=2, cores=1))
    growth = known.names.index("mu_max")
    assert known.mean.shape == (1, len(FIT_PARAMETERS))
    assert known.cov[0, growth, growth] < 0.25 * PROCESS.donor_sd["mu_max"] ** 2
    assert diagnostics.draws == 120
