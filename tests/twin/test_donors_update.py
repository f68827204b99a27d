"""The fast update of one donor: exact where the answer is known, the graph's density, its gradient, the gate, the refusals."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pytest
from scipy import stats

pytest.importorskip("pymc", reason="the update smooths its weights with the donors extra")

from simulators.recording import record
from simulators.study.update import contradicted
from twin.config import configs_dir, load_config
from twin.donors.artefact import Artefact, load_artefact, load_prior, save_prior
from twin.donors.conditional import conditional_nuts
from twin.donors.data import FitData, FitError, prepare_one
from twin.donors.model import _observe, drift_prior, grid, seed_prior
from twin.donors.prior import preset_prior
from twin.donors.sample import import_arviz
from twin.donors.target import COMPONENTS, SEED, Population, Target, normal_scores, population_of
from twin.donors.update import KHAT, Settings, Update, pareto_smoothed, posterior, update
from twin.evidence import ControlApplied, Measurement
from twin.records import RecordedBatch

PROCESS = load_config("car_nk")
ARTEFACT = load_artefact(configs_dir() / "priors" / "car_nk")
QUICK = Settings(stages=(1024, 1024, 2048))


def recorded(seed: int, days: float = 14.0) -> RecordedBatch:
    told = record(PROCESS, seed, seed=seed, days=days, online=False).facts
    readings = tuple(f for f in told if isinstance(f, Measurement))
    actions = tuple(f for f in told if isinstance(f, ControlApplied))
    return RecordedBatch("B", "D", "D", "car_nk", None, readings, actions)


BATCH = recorded(5)


def target(until: float, population: Population | None = None) -> Target:
    return Target(population or population_of(ARTEFACT, PROCESS), prepare_one(BATCH, PROCESS, until), PROCESS)


def single() -> Population:
    """One Gaussian with the moments of the fitted population."""
    fitted = population_of(ARTEFACT, PROCESS)
    mean, cov = fitted.moments
    return replace(fitted, mean=mean[None], cov=cov[None])


def mixture() -> Population:
    """Three different populations of equal weight."""
    one, rng = single(), np.random.default_rng(2)
    mean = one.mean + 0.1 * rng.standard_normal((3, one.mean.shape[1]))
    return replace(one, mean=mean, cov=one.cov * np.array([0.5, 1.0, 1.5])[:, None, None])


@dataclass(frozen=True, eq=False)
class Linear(Target):
    """Readings that are linear in the coordinates: the posterior is Gaussian and known."""

    @cached_property
    def answer(self) -> tuple[np.ndarray, np.ndarray]:
        mean, cov = self.prior
        design = np.random.default_rng(1).standard_normal((12, mean.size))
        read = design @ (mean + 0.7 * np.sqrt(np.diagonal(cov)))
        noise = 0.3**2
        inverse = np.linalg.inv(cov) + design.T @ design / noise
        return np.linalg.solve(inverse, np.linalg.solve(cov, mean) + design.T @ read / noise), inverse

    def log_density(self, u: np.ndarray) -> np.ndarray:
        off = u - self.answer[0]
        return -0.5 * np.einsum("mi,ij,mj->m", off, self.answer[1], off)

    def value_and_gradient(self, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.log_density(u), -(u - self.answer[0]) @ self.answer[1]


def test_a_linear_gaussian_donor_has_the_closed_form() -> None:
    linear = Linear(population_of(ARTEFACT, PROCESS), prepare_one(BATCH, PROCESS, 6.0), PROCESS)
    found = posterior(linear)
    mean, inverse = linear.answer
    cov = np.linalg.inv(inverse)
    sd = np.sqrt(np.diagonal(cov))
    assert np.abs((found.mean - mean) / sd).max() < 0.05
    np.testing.assert_allclose(np.sqrt(np.diagonal(found.cov)) / sd, 1.0, atol=0.05)
    np.testing.assert_allclose(found.cov / np.outer(sd, sd), cov / np.outer(sd, sd), atol=0.06)
    assert found.khat < KHAT
    assert found.ess > 0.5 * len(found.weights)


def test_gradient_is_that_of_the_density() -> None:
    t = target(8.0, mixture())
    centre, cov = t.prior
    u = centre + 0.3 * np.sqrt(np.diagonal(cov)) * np.random.default_rng(0).standard_normal((4, centre.size))
    value, gradient = t.value_and_gradient(u)
    np.testing.assert_allclose(value, t.log_density(u), rtol=1e-12)
    for k in range(centre.size):
        step = 1e-5 * np.eye(centre.size)[k]
        slope = (t.log_density(u + step) - t.log_density(u - step)) / 2e-5
        np.testing.assert_allclose(gradient[:, k], slope, rtol=1e-5, atol=1e-5)


def test_density_is_that_of_the_fitted_model() -> None:
    """Two routes: this module's columns, and the graph that the population is fitted with."""
    t = target(6.0, single())
    graph = _graph(t.data, t.population)
    centre, cov = t.prior
    points = centre + 0.3 * np.sqrt(np.diagonal(cov)) * np.random.default_rng(3).standard_normal((5, centre.size))
    p = len(t.population.names)
    first = p + len(SEED)
    theirs = [graph({"theta": u[:p], **dict(zip(SEED, u[p:first], strict=True)), "q_log__": u[first:]}) for u in points]
    np.testing.assert_allclose(t.log_density(points), theirs, rtol=1e-7)


def _graph(data: FitData, population: Population) -> Any:
    """One donor in PyMC through the fit's own likelihood; q's own prior is exchanged for the update's."""
    import pymc as pm
    import pytensor.tensor as pt

    from twin.donors.op import Trajectory

    x0, steps, names = data.initial, grid(data), population.names
    with pm.Model(coords={"channel": list(data.samples)}) as model:
        theta = pm.MvNormal("theta", population.mean[0], population.cov[0], shape=len(names))
        viable = pt.exp(pm.Normal("viable0", np.log(x0.viable[0]), 0.3))
        dead = pt.exp(pm.Normal("dead0", np.log(x0.dead[0]), 0.4))
        centre, spread = seed_prior(PROCESS)
        odds = pt.exp(pm.Normal("car_odds0", centre[0], spread[0]))
        exhausted = pt.exp(pm.Normal("exhausted0", centre[1], spread[1]))
        share = odds / (1.0 + odds)
        start = x0._replace(
            car_positive=viable * share, car_negative=viable * (1.0 - share), dead=dead, exhausted=exhausted
        )
        path = Trajectory(data.controls(steps, 1 / 6), PROCESS.theta, names, 1 / 6)(
            pt.stack([pt.reshape(pt.as_tensor(v), (1,)) for v in start]), pt.exp(theta)[:, None]
        )
        _observe(data, path, steps, 1 / 6)
        q, mean = model["q"], np.array([population.drift[c] for c in data.samples])
        own = np.array([drift_prior(c) for c in data.samples])
        pm.Potential(
            "exchanged",
            pt.sum(
                pm.logp(pm.LogNormal.dist(mean[:, 0], mean[:, 1]), q)
                - pm.logp(pm.LogNormal.dist(own[:, 0], own[:, 1]), q)
            ),
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return model.compile_logp(mode="FAST_COMPILE")


def test_order_of_the_samples_is_nothing() -> None:
    shuffled = list(BATCH.measurements)
    np.random.default_rng(4).shuffle(shuffled)  # pyright: ignore[reportArgumentType]
    one = update(ARTEFACT, PROCESS, BATCH, 5.0, QUICK)
    other = update(ARTEFACT, PROCESS, replace(BATCH, measurements=tuple(shuffled)), 5.0, QUICK)
    assert one.mean.tobytes() == other.mean.tobytes()
    assert one.khat == other.khat


def test_what_comes_later_is_not_known_yet() -> None:
    cut = replace(BATCH, measurements=tuple(m for m in BATCH.measurements if m.received_at <= 4.0))
    early = update(ARTEFACT, PROCESS, BATCH, 4.0, QUICK)
    np.testing.assert_array_equal(early.mean, update(ARTEFACT, PROCESS, cut, None, QUICK).mean)


def test_more_days_say_more() -> None:
    few, many = (update(ARTEFACT, PROCESS, BATCH, day, QUICK) for day in (3.0, 10.0))
    growth = few.names.index("mu_max")
    assert many.cov[growth, growth] < few.cov[growth, growth] < ARTEFACT.prior.cov[growth, growth]


def test_hand_over_is_a_donor_prior_with_correlations() -> None:
    found = update(ARTEFACT, PROCESS, BATCH, 6.0, QUICK)
    prior = found.hand_over()
    assert prior.names == ARTEFACT.prior.names
    assert np.linalg.eigvalsh(prior.cov).min() > 0
    correlation = prior.cov / np.sqrt(np.outer(np.diagonal(prior.cov), np.diagonal(prior.cov)))
    assert np.abs(correlation - np.eye(len(prior.names))).max() > 0.3
    assert prior.provenance["artefact"] == ARTEFACT.manifest["sha256"]
    np.testing.assert_allclose(found.weights.sum(), 1.0)
    np.testing.assert_allclose(found.weights @ found.draws, found.mean)


def test_khat_is_the_tail_index_of_the_weights() -> None:
    """Weights with Pareto tail of shape k have k-hat k; too few that count at all have none."""
    uniform = (np.arange(20_000) + 0.5) / 20_000
    for k in (0.3, 0.9):
        assert pareto_smoothed(-k * np.log(uniform))[1] == pytest.approx(k, abs=0.1)
    nothing = np.full(1000, -np.inf)
    assert pareto_smoothed(nothing)[1] == np.inf
    weights, khat = pareto_smoothed(np.where(np.arange(1000) < 3, 0.0, -np.inf))
    assert khat == np.inf and weights.sum() == pytest.approx(1.0)


def test_the_gate_asks_for_a_refit_where_weights_cannot_be_trusted() -> None:
    sound = Update(("mu_max",), np.zeros(1), np.eye(1), np.zeros((1, 1)), np.ones(1), 0.4, 1.0, {"all": 0.3}, 0.5, {})
    assert not sound.refit_due
    for khat in (0.71, np.inf, np.nan):
        assert "k-hat" in replace(sound, khat=khat).reasons[0]
    assert "unlike" in replace(sound, share=0.995).reasons[0]
    assert "contradict" in replace(sound, agreement={"glucose": 1e-5, "all": 0.2}).reasons[0]


def test_the_gate_fires_where_data_contradict_the_model_and_not_else() -> None:
    found = update(ARTEFACT, PROCESS, BATCH, 8.0, QUICK)
    assert not found.contradicted
    against = update(ARTEFACT, PROCESS, contradicted(BATCH), 8.0, QUICK)
    assert against.contradicted and against.refit_due


def test_residuals_of_a_true_model_have_normal_scores() -> None:
    r = np.vstack([stats.t(4).rvs((4000, 1), random_state=1), stats.norm.rvs(size=(4000, 1), random_state=2)])
    z = normal_scores(r, np.arange(8000)[:, None] < 4000)
    assert stats.kstest(z[:4000, 0], "norm").pvalue > 0.05
    np.testing.assert_array_equal(z[4000:], r[4000:])
    far = normal_scores(np.array([[-1e6], [1e6]]), np.ones((2, 1), dtype=bool))
    assert far[0] == -far[1] and far[1] > 8


@pytest.mark.parametrize(
    ("measurements", "says"),
    [
        ((), "'B' has no viable_density sample by day 5"),
        (tuple(m for m in BATCH.measurements if m.channel != "viable_density"), "no viable_density sample"),
        ((replace(BATCH.measurements[0], channel="viable_density", value=-1.0, received_at=1.0),), "outside 0..500"),
        ((replace(BATCH.measurements[0], channel="viable_density", value=np.nan, received_at=1.0),), "outside 0..500"),
    ],
)
def test_unusable_readings_are_refused_by_name(measurements: tuple[Measurement, ...], says: str) -> None:
    with pytest.raises(FitError, match=says):
        update(ARTEFACT, PROCESS, replace(BATCH, measurements=measurements), 5.0)


def test_a_batch_without_actions_is_refused() -> None:
    with pytest.raises(FitError, match="no perfusion, feed or cytokine_dose"):
        update(ARTEFACT, PROCESS, replace(BATCH, actions=()), 5.0)


def test_a_retracted_reading_informs_nothing() -> None:
    wrong = Measurement("extra", "glucose", 300.0, 2.0, 2.1)
    void = replace(wrong, version=2, retracted=True)
    data = [
        prepare_one(replace(BATCH, measurements=(*BATCH.measurements, *more)), PROCESS, 5.0)
        for more in ((), (wrong, void))
    ]
    np.testing.assert_array_equal(data[0].samples["glucose"].value, data[1].samples["glucose"].value)


def test_draws_of_the_population_are_kept_and_read(tmp_path: Any) -> None:
    """A fit that keeps m and L gives the mixture; its moments are those of a new donor."""
    rng = np.random.default_rng(6)
    prior = preset_prior(PROCESS)
    m = prior.mean[[0, 1, 3, 4, 5]] + 0.05 * rng.standard_normal((300, 5))
    root = np.tile(0.1 * np.eye(5), (300, 1, 1))
    save_prior(tmp_path / "p", prior, np.zeros((3, 8)), {}, {"process": "car_nk"}, population={"m": m, "root": root})
    found = population_of(load_artefact(tmp_path / "p"), PROCESS)
    assert found.mean.shape == (COMPONENTS, 8)
    mean, cov = found.moments
    np.testing.assert_allclose(mean, prior.mean, atol=0.02)
    np.testing.assert_allclose(cov[0, 0], 0.1**2 + 0.05**2, rtol=0.2)
    np.testing.assert_allclose(cov[2, 2], PROCESS.donor_sd["k_d0"] ** 2)
    assert load_prior(tmp_path / "p").names == prior.names


def test_without_a_fit_noise_has_the_models_own_prior() -> None:
    bare = Artefact(preset_prior(PROCESS), np.zeros((1, 8)), {}, {})
    mean, sd = population_of(bare, PROCESS).drift["glucose"]
    assert (mean, sd) == drift_prior("glucose")


@pytest.mark.slow
def test_nuts_says_the_same() -> None:
    t = target(10.0)
    fast = posterior(t)
    chains = conditional_nuts(t, fast.mean, fast.cov, draws=700, tune=150, chains=2, seed=3)
    az = import_arviz()
    ess = az.ess(az.convert_to_dataset(chains))["x"].to_numpy()
    sd = chains.std(axis=(0, 1))
    tolerance = 4.0 * np.sqrt(1.0 / ess + 1.0 / fast.ess)
    assert fast.khat < KHAT and ess.min() > 100
    assert (np.abs(fast.mean - chains.mean(axis=(0, 1))) / sd < tolerance).all()
    assert (np.abs(np.sqrt(np.diagonal(fast.cov)) / sd - 1.0) < tolerance).all()
