"""The discrepancy by visit and level: the posterior of its Gaussian process, and a filter that carries it exactly."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twin.backtest import discrepancy as discrepancies
from twin.backtest.discrepancy import Discrepancy, Evidence, corrected, fitted, kernel, posterior, shares
from twin.backtest.learn import Counting, Learnt, effective, run
from twin.backtest.steps import rmse
from twin.batch import believe_at
from twin.config import load_config
from twin.donors.prior import preset_prior
from twin.evidence import Measurement
from twin.records import RecordedBatch

EDGES = np.array([0.0, 1.0, 2.0, 3.5, 5.0])
LINE = np.linspace(-9.0, 9.0, 181)


def record(name: str, values: list[tuple[float, float]]) -> RecordedBatch:
    readings = tuple(Measurement(f"viable_density@{t!r}", "viable_density", v, t, t) for t, v in values)
    return RecordedBatch(name, name, name, "cho", None, readings, ())


def test_it_is_the_posterior_of_its_gaussian_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two routes at known sizes and lengths: the kernel, and the precision of all effects as one joint Gaussian."""
    rng = np.random.default_rng(3)
    tau, omega, days, length, n, p = 0.2, 0.3, 1.5, 0.7, 7, 9
    groups = ["a", "a", "b", "b", "c", "c", "c"]
    visit, level = rng.integers(0, 4, p), rng.normal(1.0, 0.8, p)
    weight, drift, noise = rng.uniform(0.0, 1.0, (n, p)), rng.normal(0.0, 0.3, n), rng.uniform(0.01, 0.05, n)
    monkeypatch.setattr(discrepancies, "SIZES", (tau,))
    monkeypatch.setattr(discrepancies, "DAYS", (days,))
    monkeypatch.setattr(discrepancies, "LEVELS", (length,))
    found = posterior(EDGES, Evidence(visit, level, weight, drift, noise, groups), (omega,))

    new, at = 2, found.levels.size // 2
    visits, levels = np.append(visit, new), np.append(level, found.levels[at])
    when = (EDGES[:-1] + EDGES[1:]) / 2
    prior = np.zeros((p + 1 + 12, p + 1 + 12))  # f at the parts and at the new point, u of 3 groups at 4 visits
    apart = when[visits][:, None] - when[visits]
    prior[: p + 1, : p + 1] = tau**2 * kernel(days, length, apart, levels[:, None] - levels)
    prior[p + 1 :, p + 1 :] = omega**2 * np.eye(12)
    design = np.zeros((n, p + 1 + 12))
    design[:, :p] = weight
    for i, g in enumerate(groups):
        for j in range(p):
            design[i, p + 1 + 4 * "abc".index(g) + visit[j]] += weight[i, j]
    cov = np.linalg.inv(np.linalg.inv(prior) + design.T @ (design / noise[:, None]))
    assert found.drift[new, at] == pytest.approx((cov @ design.T @ (drift / noise))[p], rel=1e-6)
    assert found.variance[new, at] == pytest.approx(cov[p, p] + omega**2, rel=1e-6)


def told(z: np.ndarray, drift: np.ndarray, sd: float) -> Evidence:
    """Drifts read one by one at levels z, all in the second interval, every one of a group of its own."""
    n = z.size
    return Evidence(np.ones(n, dtype=int), z, np.eye(n), drift, np.full(n, sd**2), [str(i) for i in range(n)])


def test_what_goes_by_level_is_learnt_where_data_are_and_forgotten_where_none_are() -> None:
    rng = np.random.default_rng(4)
    z = rng.uniform(-1.0, 1.0, 60)
    found = posterior(EDGES, told(z, -0.4 * z + 0.05 * rng.standard_normal(60), 0.05))
    at = np.array([-0.8, 0.0, 0.8])
    assert np.interp(at, found.levels, found.drift[1]) == pytest.approx(-0.4 * at, abs=0.06)
    far, near = np.argmin(found.levels), np.argmin(np.abs(found.levels))
    assert found.variance[1, far] > 4 * found.variance[1, near]
    assert abs(found.drift[1, far]) < 0.12  # of 0.4 at the edge of the data, and of 1.5 were the line drawn on
    nothing = posterior(EDGES, told(z, 0.05 * rng.standard_normal(60), 0.05))
    assert np.abs(nothing.drift).max() < 0.03


def test_a_visit_that_tells_nothing_keeps_the_prior(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discrepancies, "DAYS", (0.0,))
    found = posterior(EDGES, told(np.zeros(5), np.full(5, 0.3), 0.05))
    assert found.drift[[0, 2, 3]] == pytest.approx(0.0, abs=1e-12)
    assert found.variance[0] == pytest.approx(found.outside * 5.0 / 4)
    assert found.drift[1, np.argmin(np.abs(found.levels))] == pytest.approx(0.3, abs=0.05)


def drawn(shared: np.ndarray, own: float, groups: int, each: int, seed: int) -> Discrepancy:
    """From batches that drift by `shared`, their group's own drift and noise in every interval, all at one level."""
    rng, k = np.random.default_rng(seed), shared.size
    names = [str(g) for g in range(groups) for _ in range(each * k)]
    drifts = [
        shared + own_drift + 0.1 * rng.standard_normal(k)
        for own_drift in own * rng.standard_normal((groups, k))
        for _ in range(each)
    ]
    n = groups * each * k
    visit = np.tile(np.arange(k), groups * each)
    evidence = Evidence(visit, np.zeros(n), np.eye(n), np.concatenate(drifts), np.full(n, 0.01), names)
    return posterior(np.arange(k + 1.0), evidence)


def at_nought(found: Discrepancy) -> tuple[np.ndarray, np.ndarray]:
    at = np.argmin(np.abs(found.levels))
    return found.drift[:, at], found.variance[:, at]


def test_what_groups_share_is_learnt_and_what_they_do_not_share_is_not() -> None:
    shared = np.tile([0.3, -0.4, 0.0, 0.2, -0.1], 2)
    assert np.abs(at_nought(drawn(shared, 0.0, groups=8, each=2, seed=1))[0] - shared).max() < 0.08
    nothing = [at_nought(drawn(np.zeros(10), 0.0, groups=5, each=3, seed=s))[0] for s in range(5)]
    assert np.sqrt(np.mean(np.square(nothing))) < 0.013  # of a noise of 0.1/sqrt(15) = 0.026 in the means
    private = [at_nought(drawn(np.zeros(10), 0.3, groups=3, each=2, seed=s)) for s in range(8)]
    assert np.sqrt(np.mean([m**2 for m, _ in private])) < 0.12  # the means of three groups: 0.17
    assert 0.2 < np.sqrt(np.mean([v for _, v in private])) < 0.45  # and a new group is expected to differ


def test_a_new_group_lies_within_its_band() -> None:
    """Calibration over seeds: the drift of a group not seen, 90 % interval."""
    rng, inside = np.random.default_rng(11), []
    for seed in range(20):
        shared = 0.15 * rng.standard_normal(10)
        mean, variance = at_nought(drawn(shared, 0.15, groups=4, each=2, seed=100 + seed))
        unseen = shared + 0.15 * rng.standard_normal(10)
        inside.append(np.mean(np.abs(unseen - mean) <= 1.645 * np.sqrt(variance)))
    assert 0.85 <= np.mean(inside) <= 0.96


@given(st.lists(st.floats(0.0, 9.0), min_size=3, max_size=3).map(sorted))
def test_drift_and_variance_of_adjoining_spans_add_up(times: list[float]) -> None:
    a, b, c = times
    rows = np.ones(LINE.size)
    found = Discrepancy(
        EDGES, LINE, np.outer([0.1, -0.2, 0.3, 0.05], rows), np.outer([0.01, 0.02, 0.03, 0.04], rows), 0.05
    )
    left, right, whole = found.within(a, b, 1.0, 0.3), found.within(b, c, 1.0, 0.3), found.within(a, c, 1.0, 0.3)
    assert np.add(left, right) == pytest.approx(np.array(whole), abs=1e-9)
    assert found.within(0.0, 5.0, -2.0, 0.1) == pytest.approx((0.25, 0.0, 0.1))
    assert found.within(5.0, 7.0, 0.0, 0.1) == pytest.approx((0.0, 0.0, 0.1))
    assert shares(EDGES, 2.5, 4.25) == pytest.approx([0.0, 0.0, 2 / 3, 0.5])


def test_an_uncertain_level_is_carried_to_second_order() -> None:
    """Exact for a line; of a parabola b z^2 the regression on z ~ N(m, s^2) has slope 2 b m and leaves 2 b^2 s^4."""
    m, s2, b = 0.5, 0.04, -0.3
    fine = np.linspace(-3.0, 3.0, 20001)
    line = Discrepancy(np.array([0.0, 1.0]), fine, b * fine[None, :], np.full((1, fine.size), 0.01), 0.0)
    assert line.within(0.0, 1.0, m, s2) == pytest.approx((b * m, b, 0.01), abs=1e-6)
    bent = Discrepancy(np.array([0.0, 1.0]), fine, b * np.square(fine)[None, :], np.full((1, fine.size), 0.01), 0.0)
    assert bent.within(0.0, 1.0, m, s2) == pytest.approx(
        (b * (m**2 + s2), 2 * b * m, 0.01 + 2 * b**2 * s2**2), abs=1e-6
    )
    assert line.within(0.0, 0.5, m, 0.0).mean == pytest.approx(b * m / 2, abs=1e-6)


def begun() -> tuple[Learnt, RecordedBatch]:
    process, names = effective(load_config("cho"), ("viable_density",))
    return Learnt(process, preset_prior(process, names), Counting(0.02, 0.0), float("nan")), record("b", [(0.0, 0.35)])


def test_the_filter_carries_a_drift_that_is_linear_in_the_level_exactly() -> None:
    """In regression on the level before, only its own gain moves: that of the filter without the drift, and the slope."""
    plain, first = begun()
    batch = run(plain, first)
    drive, row = batch.course.at(0.0), 0
    slope, variance = -0.3, 0.02
    found = Discrepancy(np.array([0.0, 2.0]), LINE, slope * LINE[None, :], np.full((1, LINE.size), variance), 0.0)
    bent = corrected(batch.filter, {"viable": found})
    after, cross = bent.transit(batch.belief, drive, 1.0)
    straight = batch.filter.predict(batch.belief, drive, 1.0)
    level = batch.belief.cov[row, row]
    gain = batch.filter.transit(batch.belief, drive, 1.0)[1][row] / level
    expected = straight.cov.copy()
    moved = gain.copy()
    moved[row] += slope / 2
    expected += level * (np.outer(moved, moved) - np.outer(gain, gain))
    expected[row, row] += variance / 2
    assert after.cov == pytest.approx(expected, abs=1e-9)
    assert after.mean - straight.mean == pytest.approx(
        [slope / 2 * batch.belief.mean[0], *[0.0] * (after.mean.size - 1)]
    )
    assert cross[row] == pytest.approx(level * moved, abs=1e-9)
    assert np.linalg.eigvalsh(after.cov).min() > -1e-12
    assert bent.predict(batch.belief, drive, 1.0) == after
    assert corrected(batch.filter, {}) is batch.filter


def test_innovations_give_the_drift_back() -> None:
    """Batches that the model itself made, but for a drift of their days: learnt from innovations, it makes them small."""
    plain, first = begun()
    drift = np.array([0.0, 0.3, -0.25, 0.2, 0.0, -0.3])
    batch = run(plain, first)
    curve = [float(believe_at(batch, float(day)).mean[0]) for day in range(7)] + np.cumsum([0.0, *drift])

    def grown(seed: int) -> RecordedBatch:
        noise = 0.02 * np.random.default_rng(seed).standard_normal(7)
        return record(f"g{seed}", [(float(day), float(v)) for day, v in enumerate(np.exp(curve + noise))])

    groups, trained, used = [str(g) for g in range(5)], [grown(s) for s in range(5)], {}
    for _ in range(4):
        used = fitted([run(replace(plain, discrepancy=used), r) for r in trained], groups, used)
    found = used["viable"]
    learnt = [np.interp(z, found.levels, row) for z, row in zip(curve[:-1], found.drift, strict=True)]
    assert np.corrcoef(learnt, drift)[0, 1] > 0.9

    def missed(learnt: Learnt) -> float:
        return rmse(i.residual for i in run(learnt, grown(99)).innovations if i.time > 0)

    assert missed(replace(plain, discrepancy=used)) < 0.5 * missed(plain)
