"""Reactors stepped together get the numbers of reactors stepped one by one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twin.batch import start
from twin.bioreactor import Control
from twin.config import load_config
from twin.donors.prior import preset_prior
from twin.estimation import fleet as module
from twin.estimation.belief import Belief
from twin.estimation.conditioning import condition
from twin.estimation.filters import Filter, ukf
from twin.estimation.fleet import (
    Beliefs,
    Fleet,
    Innovations,
    Outlooks,
    fuse_fleet,
    look_fleet,
    predict_fleet,
    stack,
)
from twin.estimation.model import BioreactorModel
from twin.inputs import Drive
from twin.native.columns import Columns
from twin.process import Process
from twin.transition import step_function

CAR_NK = load_config("car_nk")
LEAKY = replace(
    CAR_NK,
    theta=CAR_NK.theta._replace(
        vessel=CAR_NK.theta.vessel._replace(leak=0.02, kLa=6.0), cell=CAR_NK.theta.cell._replace(K_G=1.1)
    ),
    parameter_walk=0.03,
)
PRIOR = start("fleet", CAR_NK, preset_prior(CAR_NK)).prior
LAYOUT = start("fleet", CAR_NK, preset_prior(CAR_NK)).layout
PROBES = ("capacitance", "raman_glucose", "raman_lactate", "ph", "do", "oxygen_uptake", "weight")
LABS = ("viable_density", "viability", "glucose", "lactate", "glutamine", "ammonia", "cytokine", "car_fraction")
CHANNELS = PROBES + LABS
R = np.square([CAR_NK.sensors[c].sd for c in CHANNELS])
GATE = np.array([CAR_NK.sensors[c].gate for c in CHANNELS])


def processes(count: int) -> list[Process]:
    return [LEAKY if i % 3 == 2 else CAR_NK for i in range(count)]


def singles(count: int) -> list[Filter]:
    return [ukf(BioreactorModel(p, LAYOUT), LAYOUT.size) for p in processes(count)]


def donors(count: int, rng: np.random.Generator) -> list[Belief]:
    lower = np.linalg.cholesky(PRIOR.cov)
    return [Belief(0.0, PRIOR.mean + 0.7 * lower @ rng.standard_normal(LAYOUT.size), PRIOR.cov) for _ in range(count)]


def drives(count: int, rng: np.random.Generator) -> list[Drive]:
    medium = CAR_NK.theta.medium
    return [
        Drive(
            Control(rng.uniform(0.0, 1.5), rng.uniform(0.0, 0.03), rng.uniform(0.0, 0.1), rng.uniform(100.0, 500.0)),
            medium._replace(glucose=rng.uniform(10.0, 40.0), strong_ion=rng.uniform(28.0, 36.0)),
        )
        for _ in range(count)
    ]


def alone(algorithm: Filter, belief: Belief, drive: Drive, y: np.ndarray) -> tuple[Belief, np.ndarray]:
    """One reactor, one reading after the other within one joint Gaussian; also which were believed."""
    taken = np.zeros(y.size, dtype=bool)
    if np.isnan(y).all():
        return belief, taken
    joint, n = algorithm.look(belief, CHANNELS, drive), LAYOUT.size
    for j in np.flatnonzero(~np.isnan(y)):
        s = joint.cov[n + j, n + j] + R[j]
        taken[j] = abs(y[j] - joint.mean[n + j]) <= GATE[j] * np.sqrt(s)
        if taken[j]:
            joint = condition(joint, n + int(j), float(y[j]), float(R[j]))
    cov = joint.cov[:n, :n]
    return Belief(belief.time, joint.mean[:n], (cov + cov.T) / 2.0, belief.repairs), taken


def apart(together: Beliefs, one_by_one: list[Belief]) -> float:
    """Largest difference of means and covariances, in standard deviations."""
    worst = 0.0
    for i, b in enumerate(one_by_one):
        sd = np.sqrt(np.diagonal(b.cov))
        worst = max(worst, float(np.max(np.abs(together.mean[i] - b.mean) / sd)))
        worst = max(worst, float(np.max(np.abs(together.cov[i] - b.cov) / np.outer(sd, sd))))
    return worst


def read(outlooks: Outlooks, rng: np.random.Generator, labs: bool) -> np.ndarray:
    """Readings as they may come: some absent, a few far off."""
    sd = np.sqrt(np.diagonal(outlooks.cov, 0, 1, 2) + R)
    y = outlooks.mean + sd * rng.standard_normal(outlooks.mean.shape)
    y[rng.random(y.shape) < 0.02] += 10.0
    y[rng.random(y.shape) < 0.3] = np.nan
    y[:, len(PROBES) :] = y[:, len(PROBES) :] if labs else np.nan
    return y


@pytest.mark.slow
def test_days_of_steps_are_those_of_reactors_one_by_one() -> None:
    """Ten reactors, three days of half hours: own donors, processes, pumps and media, absent and rejected readings, one
    covariance that loses definiteness on the way."""
    count, rng = 10, np.random.default_rng(1)
    fleet, one, each = Fleet(processes(count), LAYOUT), donors(count, rng), singles(count)
    together, driven, worst, rejected = stack(one), drives(count, rng), 0.0, 0
    for k in range(1, 145):
        if k % 24 == 1:
            driven = drives(count, rng)
        if k == 60:
            values, vectors = np.linalg.eigh(one[4].cov)
            values[0] = -1e-7
            broken = Belief(one[4].time, one[4].mean, vectors @ np.diag(values) @ vectors.T, one[4].repairs)
            one[4], together = broken, together.replaced(4, broken)
        together = predict_fleet(fleet, together, driven, k / 48.0)
        one = [f.predict(b, d, k / 48.0) for f, b, d in zip(each, one, driven, strict=True)]
        outlooks = look_fleet(fleet, together, CHANNELS)
        y = read(outlooks, rng, labs=k % 24 == 0)
        together, innovations = fuse_fleet(together, outlooks, y, R[None], GATE[None])
        believed: list[np.ndarray] = []
        for i in range(count):
            one[i], taken = alone(each[i], one[i], driven[i], y[i])
            believed.append(taken)
        np.testing.assert_array_equal(innovations.accepted, believed)
        rejected += int((~innovations.accepted & ~np.isnan(y)).sum())
        worst = max(worst, apart(together, one))
    assert worst < 1e-10
    assert rejected > 50  # the gates had something to do
    assert together.repairs.tolist() == [b.repairs for b in one] and together.repairs[4] == 1
    assert together.time.tolist() == [b.time for b in one] and together.time[0] == 3.0


def day(fleet: Fleet, together: Beliefs, driven: list[Drive], y: list[np.ndarray]) -> tuple[Beliefs, list[Innovations]]:
    said: list[Innovations] = []
    for k, row in enumerate(y, start=1):
        together = predict_fleet(fleet, together, driven, k / 24.0)
        together, new = fuse_fleet(together, look_fleet(fleet, together, CHANNELS), row, R[None], GATE[None])
        said.append(new)
    return together, said


def test_a_reactor_that_is_not_a_number_poisons_no_other() -> None:
    count, rng = 6, np.random.default_rng(2)
    fleet, sound, driven = Fleet(processes(count), LAYOUT), stack(donors(count, rng)), drives(count, rng)
    y = [read(look_fleet(fleet, sound, CHANNELS), rng, labs=False) for _ in range(5)]
    mean, cov = sound.mean.copy(), sound.cov.copy()
    mean[1] = np.nan
    cov[3] = np.nan
    cov[5] = 1e12 * np.eye(LAYOUT.size)  # finite, but its points are not: exp overflows
    ill = Beliefs(sound.time, mean, cov, sound.repairs)
    healthy, _ = day(fleet, sound, driven, y)
    after, said = day(fleet, ill, driven, y)
    well = [0, 2, 4]
    assert after.finite.tolist() == [i in well for i in range(count)]
    np.testing.assert_allclose(after.mean[well], healthy.mean[well], rtol=0, atol=1e-12)
    np.testing.assert_allclose(after.cov[well], healthy.cov[well], rtol=0, atol=1e-12)
    assert not any(i.accepted[[1, 3, 5]].any() for i in said)


def test_reactors_step_by_their_own_spans_and_rest_where_no_time_passes() -> None:
    count, rng = 6, np.random.default_rng(3)
    before, driven = donors(count, rng), drives(count, rng)
    before = [replace(b, time=t) for b, t in zip(before, (0.0, 0.25, 0.0, 1.0, 0.25, 2.0), strict=True)]
    until = np.array([0.5, 0.5, 1 / 96, 1.0, 0.75, 1.5])
    after = predict_fleet(Fleet(processes(count), LAYOUT), stack(before), driven, until)
    one = [f.predict(b, d, float(t)) for f, b, d, t in zip(singles(count), before, driven, until, strict=True)]
    assert apart(after, one) < 1e-10
    assert after.time.tolist() == [b.time for b in one]
    assert after[3] == before[3] and after[5] == before[5]


def test_without_a_compiler_the_numbers_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    count, rng = 4, np.random.default_rng(4)
    before, driven = stack(donors(count, rng)), drives(count, rng)
    fast = predict_fleet(Fleet(processes(count), LAYOUT), before, driven, 0.5)
    monkeypatch.setattr(module, "_steps", lambda: Columns(step_function(), (), {0: 0}, compiled=False))
    slow = predict_fleet(Fleet(processes(count), LAYOUT), before, driven, 0.5)
    assert apart(fast, list(slow)) < 1e-10


@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 5),
    k=st.integers(1, 5),
    present=st.lists(st.booleans(), min_size=15, max_size=15),
    gate=st.sampled_from([0.5, 2.0, 1e6]),
)
def test_what_is_fused_is_the_vector_update_by_the_accepted_readings(
    seed: int, n: int, k: int, present: list[bool], gate: float
) -> None:
    """Kalman 1960 with the accepted readings stacked, for three reactors of a linear model; the rest leaves no trace."""
    rng = np.random.default_rng(seed)
    h, mean = rng.normal(size=(3, k, n)), rng.normal(size=(3, n))
    factor = rng.normal(size=(3, n, n))
    cov = factor @ factor.transpose(0, 2, 1) + 0.1 * np.eye(n)
    r = rng.uniform(0.05, 2.0, size=(3, k))
    outlooks = Outlooks(np.einsum("rkn,rn->rk", h, mean), h @ cov @ h.transpose(0, 2, 1), cov @ h.transpose(0, 2, 1))
    y = outlooks.mean + 2.0 * rng.normal(size=(3, k))
    y[~np.array(present).reshape(3, 5)[:, :k]] = np.nan
    before = Beliefs(np.zeros(3), mean, cov, np.zeros(3, dtype=int))
    after, said = fuse_fleet(before, outlooks, y, r, np.full((1, k), gate))
    for i in range(3):
        rows = np.flatnonzero(said.accepted[i])
        s = h[i, rows] @ cov[i] @ h[i, rows].T + np.diag(r[i, rows])
        gain = cov[i] @ h[i, rows].T @ np.linalg.inv(s) if rows.size else np.zeros((n, 0))
        expected = mean[i] + gain @ (y[i, rows] - outlooks.mean[i, rows])
        np.testing.assert_allclose(after.mean[i], expected, rtol=0, atol=1e-9)
        np.testing.assert_allclose(after.cov[i], cov[i] - gain @ s @ gain.T, rtol=0, atol=1e-9)
    absent = np.isnan(y)
    assert np.isnan(said.s[absent]).all() and np.isnan(said.residual[absent]).all() and not said.accepted[absent].any()
    np.testing.assert_array_equal(said.accepted[~absent], said.ratio[~absent] <= 1.0)


def test_what_does_not_fit_together_is_refused() -> None:
    rng = np.random.default_rng(5)
    two, driven = stack(donors(2, rng)), drives(2, rng)
    with pytest.raises(ValueError, match="a fleet of 3, 2 beliefs and 2 drives do not match"):
        predict_fleet(Fleet(processes(3), LAYOUT), two, driven, 1.0)
    with pytest.raises(ValueError, match="a fleet of 1, 2 beliefs"):
        look_fleet(Fleet(processes(1), LAYOUT), two, CHANNELS)
    with pytest.raises(ValueError, match="one reactor or more"):
        Fleet([], LAYOUT)
    plain = replace(CAR_NK, name="plain", sensors={"glucose": replace(CAR_NK.sensors["glucose"], error=None)})
    with pytest.raises(ValueError, match="process 'plain': its sensors have other errors than"):
        Fleet([CAR_NK, plain], LAYOUT)
    with pytest.raises(ValueError, match=r"beliefs of one size are expected, got sizes \[2, 3\]"):
        stack([Belief(0.0, np.zeros(2), np.eye(2)), Belief(0.0, np.zeros(3), np.eye(3))])
    with pytest.raises(KeyError, match="smell"):
        look_fleet(Fleet(processes(2), LAYOUT), two, ("smell",))
