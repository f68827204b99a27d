"""The backtest: baselines as published, nothing of the left-out group leaks, and the twin beats persistence."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twin.backtest import Backtest, BacktestError, backtest
from twin.backtest import calendar as calendars
from twin.backtest import learn as learning
from twin.backtest.calendar import Calendar, corrected, fitted, posterior, shares
from twin.backtest.learn import Counting, Learnt, effective, first_visits, matched, run
from twin.backtest.steps import expected_increment, mean_increments, rmse, scored_channels, steps
from twin.batch import believe_at
from twin.config import load_config
from twin.donors.prior import preset_prior
from twin.estimation.screen import Innovation
from twin.evidence import Measurement
from twin.records import RecordedBatch, read_batches

DATA = Path(os.environ.get("CELLTWIN_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "data" / "synthetic_fedbatch.csv"


def measured(path: str) -> list[RecordedBatch]:
    if not (DATA / path).is_file():
        pytest.skip(f"measured data not at {DATA}; set CELLTWIN_DATA")
    return read_batches(DATA / path)


NISTCHO, CLONALYZER = "nistcho_fedbatch/vicell.csv", "clonalyzer_cho_fedbatch/runs_tidy.csv"


@pytest.mark.parametrize(
    ("path", "n", "persistence", "group_mean"), [(NISTCHO, 174, 0.505, 0.179), (CLONALYZER, 90, 0.555, 0.304)]
)
def test_the_baselines_are_the_published_ones(path: str, n: int, persistence: float, group_mean: float) -> None:
    batches = measured(path)
    all_steps = [s for b in batches for s in steps(b, "viable_density")]
    assert len(all_steps) == n
    assert rmse(s.increment for s in all_steps) == pytest.approx(persistence, abs=6e-4)
    errors = []
    for s in all_steps:
        others = mean_increments(t for t in all_steps if t.group != s.group)
        errors.append(s.increment - expected_increment(s, others))
    assert rmse(errors) == pytest.approx(group_mean, abs=6e-4)


def record(name: str, values: list[tuple[float, float]]) -> RecordedBatch:
    readings = tuple(Measurement(f"viable_density@{t!r}", "viable_density", v, t, t) for t, v in values)
    return RecordedBatch(name, name, name, "cho", None, readings, ())


def test_a_second_reading_of_one_visit_is_no_step() -> None:
    found = steps(record("b", [(0.0, 1.0), (1.0, 2.0), (1.02, 1.8), (2.0, 3.6)]), "viable_density")
    assert [(s.number, s.start, s.end) for s in found] == [(0, 0.0, 1.0), (1, 1.02, 2.0)]
    assert [s.increment for s in found] == pytest.approx([np.log(2.0), np.log(2.0)])
    assert scored_channels([record("b", [(0.0, 1.0)])]) == ()


def test_beyond_the_last_step_of_the_others_their_last_one_stands() -> None:
    means = mean_increments(steps(record("b", [(0.0, 1.0), (1.0, 2.0), (2.0, 2.0)]), "viable_density"))
    long = steps(record("c", [(0.0, 1.0), (1.0, 1.0), (2.0, 1.0), (3.0, 1.0)]), "viable_density")
    assert [expected_increment(s, means) for s in long] == pytest.approx([np.log(2.0), 0.0, 0.0])


def test_what_is_not_measured_does_not_limit() -> None:
    process = load_config("cho")
    blind, names = effective(process, ("viable_density", "viability"))
    assert not {"a_G", "m_G", "a_Q"} & set(names)  # `PD_max` alone stops the growth
    assert max(blind.theta.cell.a_G, blind.theta.cell.a_Q, blind.theta.cell.Y_AQ) < 1e-6
    seeing, names = effective(process, ("viable_density", "glucose", "lactate", "glutamine"))
    assert {"a_G", "m_G", "Y_LG", "a_Q"} <= set(names)
    assert seeing.theta.cell.a_G == process.theta.cell.a_G and seeing.theta.cell.K_Q < 1e-6


def test_the_initial_state_is_that_of_the_training_batches() -> None:
    training = [record(f"b{k}", [(0.0, v), (1.0, 2 * v)]) for k, v in enumerate((0.2, 0.3, 0.45))]
    process = first_visits(load_config("cho"), training)
    assert process.initial.viable == pytest.approx(0.3, rel=1e-9)
    expected = np.std(np.log([0.2, 0.3, 0.45]), ddof=1)
    assert process.initial_sd.viable == pytest.approx(np.sqrt(expected**2 - process.sensors["viable_density"].sd ** 2))


def test_sensor_noise_follows_the_innovations() -> None:
    process = load_config("cho")
    sd = process.sensors["viability"].sd

    def drawn(scale: float) -> list[Innovation]:
        rng = np.random.default_rng(1)
        s = 2 * sd**2
        return [
            Innovation(0.0, "viability", r, s, r * r / s, abs(r) / (8 * np.sqrt(s)), "accepted")
            for r in scale * np.sqrt(s) * rng.standard_normal(400)
        ]

    assert matched(process, process, drawn(1.0)).sensors["viability"].sd == pytest.approx(sd, rel=0.1)
    assert matched(process, process, drawn(1.5)).sensors["viability"].sd > 1.3 * sd
    assert matched(process, process, drawn(0.3)).sensors["viability"].sd == sd  # never narrowed


def test_counting_noise_is_poisson_above_a_floor() -> None:
    noise = Counting(0.05, 0.12)
    assert noise.variance(1.0) == pytest.approx(0.05**2 + 0.12**2)
    assert noise.variance(1e6) == pytest.approx(0.05**2, rel=1e-3)
    noted = noise.applied(record("b", [(0.0, 4.0)])).measurements[0]
    assert noted.sd == pytest.approx(4.0 * np.sqrt(0.05**2 + 0.06**2))


@pytest.fixture
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    """One pass of learning: enough to test the bookkeeping."""
    monkeypatch.setattr(learning, "ITERATIONS", 2)
    monkeypatch.setattr(learning, "NOISE_LEVELS", (0.10,))
    monkeypatch.setattr(learning, "COUNTING", ((0.08, 0.0),))


def test_nothing_of_the_left_out_group_leaks(brisk: None) -> None:
    def short(b: RecordedBatch) -> RecordedBatch:
        kept = tuple(m for m in b.measurements if m.channel in ("viable_density", "viability") and m.sampled_at <= 9.0)
        return replace(b, measurements=kept)

    batches, process = [short(b) for b in read_batches(EXAMPLE)[:3]], load_config("cho")
    victim = batches[0]
    spoilt = replace(
        victim,
        measurements=tuple(
            replace(m, value=m.value * 3.0) if m.channel == "viable_density" and m.sampled_at > 6.5 else m
            for m in victim.measurements
        ),
    )
    ticks: list[tuple[int, int]] = []
    honest = backtest(batches, process, tick=lambda done, total: ticks.append((done, total)))
    changed = backtest([spoilt, *batches[1:]], process)
    assert honest.priors[victim.group].mean.tobytes() == changed.priors[victim.group].mean.tobytes()
    assert honest.priors[victim.group].cov.tobytes() == changed.priors[victim.group].cov.tobytes()
    assert honest.priors[batches[1].group].mean.tobytes() != changed.priors[batches[1].group].mean.tobytes()

    def foretold(result: Backtest, until: float) -> list[tuple[str, float, float, float]]:
        return [
            (p.step.channel, p.step.end, p.mean, p.sd)
            for p in result.predictions
            if p.step.batch == victim.id and p.step.end <= until
        ]

    assert foretold(honest, 7.0) == foretold(changed, 7.0)  # the reading of day 7 is not seen before it is predicted
    assert foretold(honest, 8.0) != foretold(changed, 8.0)
    assert all(p.since < p.step.end for p in honest.predictions)
    assert ticks[-1][0] == ticks[-1][1] and [t[0] for t in ticks] == sorted(t[0] for t in ticks)

    density = next(s for s in honest.one_step if s.channel == "viable_density")
    assert density.n == 3 * 9 and density.rmse < density.persistence
    assert 0.75 <= density.coverage90 <= 1.0
    assert {s.channel for s in honest.one_step} == {"viable_density", "viability"}
    assert all(0.0 <= h.coverage90 <= 1.0 and h.n >= 4 for h in honest.horizon) and honest.horizon


def test_records_that_cannot_be_backtested_are_refused_in_one_line() -> None:
    batches, process = read_batches(EXAMPLE), load_config("cho")
    with pytest.raises(BacktestError, match="needs two or more"):
        backtest(batches[:1], process)
    uncounted = [replace(b, measurements=tuple(m for m in b.measurements if m.channel == "glucose")) for b in batches]
    with pytest.raises(BacktestError, match="viable_density"):
        backtest(uncounted, process)


# --- the calendar ------------------------------------------------------------------------------------------------------

EDGES = np.array([0.0, 1.0, 2.0, 3.5, 5.0])


def test_the_calendar_is_the_posterior_of_its_linear_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two independent routes at known tau and omega: the day effects alone, and all effects of a joint Gaussian."""
    rng = np.random.default_rng(3)
    tau, omega, groups = 0.2, 0.3, ["a", "a", "b", "b", "c", "c", "c"]
    share, drift, noise = rng.uniform(0.0, 1.0, (7, 4)), rng.normal(0.0, 0.3, 7), rng.uniform(0.01, 0.05, 7)
    monkeypatch.setattr(calendars, "LEVELS", (tau,))
    same = posterior(EDGES, share, drift, noise, groups)  # tau = omega: the only pair of the grid
    design = np.hstack([share, *(share * (np.array(groups) == g)[:, None] for g in "abc")])
    precision = design.T @ (design / noise[:, None]) + np.eye(16) / tau**2
    cov = np.linalg.inv(precision)
    assert same.drift == pytest.approx((cov @ design.T @ (drift / noise))[:4], rel=1e-9)
    assert same.variance == pytest.approx(np.diag(cov)[:4] + tau**2, rel=1e-9)
    monkeypatch.setattr(calendars, "LEVELS", (tau, omega))
    mixed = posterior(EDGES, share, drift, noise, groups)
    assert same.drift.shape == mixed.drift.shape and not np.allclose(same.drift, mixed.drift)


def drawn(shared: np.ndarray, own: float, groups: int, each: int, seed: int) -> Calendar:
    """The calendar from batches that drift by `shared`, their group's own drift and noise in every interval."""
    rng, k = np.random.default_rng(seed), shared.size
    names = [g for g in range(groups) for _ in range(each * k)]
    drifts = [
        shared + own_drift + 0.1 * rng.standard_normal(k)
        for own_drift in own * rng.standard_normal((groups, k))
        for _ in range(each)
    ]
    share = np.tile(np.eye(k), (groups * each, 1))
    edges = np.arange(k + 1.0)
    return posterior(edges, share, np.concatenate(drifts), np.full(share.shape[0], 0.01), [str(n) for n in names])


def test_what_groups_share_is_learnt_and_what_they_do_not_share_is_not() -> None:
    shared = np.tile([0.3, -0.4, 0.0, 0.2, -0.1], 2)
    found = drawn(shared, 0.0, groups=8, each=2, seed=1)
    assert np.abs(found.drift - shared).max() < 0.08
    nothing = [drawn(np.zeros(10), 0.0, groups=5, each=3, seed=s) for s in range(20)]
    assert np.sqrt(np.mean([c.drift**2 for c in nothing])) < 0.01  # of a noise of 0.1/sqrt(15) = 0.026 in the means
    private = [drawn(np.zeros(10), 0.3, groups=3, each=2, seed=s) for s in range(20)]
    assert np.sqrt(np.mean([c.drift**2 for c in private])) < 0.1  # the means of three groups: 0.17
    assert 0.2 < np.sqrt(np.mean([c.variance for c in private])) < 0.45  # and a new group is expected to differ


def test_a_new_group_lies_within_the_band_of_the_calendar() -> None:
    """Calibration over seeds: the drift of a group not seen, 90 % interval."""
    rng, inside = np.random.default_rng(11), []
    for seed in range(40):
        shared = 0.15 * rng.standard_normal(10)
        found = drawn(shared, 0.15, groups=4, each=2, seed=100 + seed)
        unseen = shared + 0.15 * rng.standard_normal(10)
        inside.append(np.mean(np.abs(unseen - found.drift) <= 1.645 * np.sqrt(found.variance)))
    assert 0.85 <= np.mean(inside) <= 0.96


@given(st.lists(st.floats(0.0, 9.0), min_size=3, max_size=3).map(sorted))
def test_drift_and_variance_of_adjoining_spans_add_up(times: list[float]) -> None:
    a, b, c = times
    calendar = Calendar(EDGES, np.array([0.1, -0.2, 0.3, 0.05]), np.array([0.01, 0.02, 0.03, 0.04]), 0.05)
    left, right, whole = calendar.between(a, b), calendar.between(b, c), calendar.between(a, c)
    assert np.add(left, right) == pytest.approx(np.array(whole), abs=1e-12)
    assert calendar.between(0.0, 5.0) == pytest.approx((0.25, 0.1))
    assert calendar.between(5.0, 7.0) == pytest.approx((0.0, 0.1))
    assert shares(EDGES, 2.5, 4.25) == pytest.approx([0.0, 0.0, 2 / 3, 0.5])


def test_the_filter_carries_the_calendar_and_the_innovations_give_it_back() -> None:
    """Batches that the model itself made, but for a drift of their days: learnt from innovations, it makes them small."""
    process, names = effective(load_config("cho"), ("viable_density",))
    plain = Learnt(process, preset_prior(process, names), Counting(0.02, 0.0), float("nan"))
    drift = np.array([0.0, 0.3, -0.25, 0.2, 0.0, -0.3])
    calendar = Calendar(np.arange(7.0), drift, np.full(6, 1e-4), 0.0)
    batch = run(plain, record("b", [(0.0, 0.35)]))
    bent = corrected(batch.filter, {"viable": calendar})
    drive = batch.course.at(0.0)
    straight, moved = batch.filter.predict(batch.belief, drive, 2.0), bent.predict(batch.belief, drive, 2.0)
    assert moved.mean - straight.mean == pytest.approx([0.3, *[0.0] * (straight.mean.size - 1)])
    assert (moved.cov - straight.cov)[0, 0] == pytest.approx(2e-4)
    assert bent.transit(batch.belief, drive, 2.0)[0] == moved
    assert corrected(batch.filter, {}) is batch.filter

    curve = [float(believe_at(batch, float(day)).mean[0]) for day in range(7)] + np.cumsum([0.0, *drift])

    def grown(seed: int) -> RecordedBatch:
        noise = 0.02 * np.random.default_rng(seed).standard_normal(7)
        return record(f"g{seed}", [(float(day), float(v)) for day, v in enumerate(np.exp(curve + noise))])

    groups, trained, used = [str(g) for g in range(5)], [grown(s) for s in range(5)], {}
    for _ in range(6):
        used = fitted([run(replace(plain, calendar=used), r) for r in trained], groups, used)
    found = used["viable"].drift
    assert np.corrcoef(found, drift)[0, 1] > 0.9

    def missed(learnt: Learnt) -> float:
        return rmse(i.residual for i in run(learnt, grown(99)).innovations if i.time > 0)

    assert missed(replace(plain, calendar=used)) < 0.5 * missed(plain)


# --- holes in the record -----------------------------------------------------------------------------------------------


def holed(records: Sequence[RecordedBatch], days: float) -> list[RecordedBatch]:
    """Every batch without its samples of so many days, from day 3.8, 4.8 or 5.8 on."""
    found: list[RecordedBatch] = []
    for i, r in enumerate(records):
        start = 3.8 + i % 3
        found.append(
            replace(r, measurements=tuple(m for m in r.measurements if not start <= m.sampled_at < start + days))
        )
    return found


def a_hole_breaks_nothing(whole: Backtest, pierced: Backtest) -> None:
    """Finite, within its bands, wider across the hole, and soon after it as good as if there had been none."""
    for score in whole.one_step:
        before = {
            (p.step.batch, p.step.start, p.step.end): p for p in whole.predictions if p.step.channel == score.channel
        }
        after = {(p.step.batch, p.step.start, p.step.end): p for p in pierced.predictions if p.step.channel == score.channel}  # fmt: skip
        same, across = [k for k in after if k in before], [k for k in after if k not in before]
        assert len(same) >= 0.6 * len(before) and len(across) >= 3
        assert all(np.isfinite((p.mean, p.sd, p.crps)).all() and p.sd > 0 for p in after.values())
        ends = {batch: end for batch, _, end in across}
        later = [k for k in same if k[1] > ends.get(k[0], np.inf)]  # from the second visit after the hole on
        assert len(later) >= 10
        assert rmse(after[k].error for k in later) < 1.15 * rmse(before[k].error for k in later)
        assert rmse(after[k].error for k in same) < 1.25 * rmse(before[k].error for k in same)
        assert np.mean([after[k].covered for k in same]) >= 0.80
        assert np.median([after[k].sd for k in across]) > np.median([after[k].sd for k in same])


@pytest.mark.parametrize("days", [0.625, 3.0])
def test_a_hole_in_the_samples_of_simulated_batches_breaks_nothing(days: float) -> None:
    process, names = effective(load_config("cho"), ("viable_density", "viability", "glucose", "lactate"))
    batches, prior = read_batches(EXAMPLE), preset_prior(process, names)
    a_hole_breaks_nothing(backtest(batches, process, prior), backtest(holed(batches, days), process, prior))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_nor_does_it_break_what_is_learnt(brisk: None) -> None:
    batches, process = read_batches(EXAMPLE), load_config("cho")
    a_hole_breaks_nothing(backtest(batches, process), backtest(holed(batches, 3.0), process))


@cache
def outcome(path: str, hole: float = 0.0) -> Backtest:
    records = measured(path)
    return backtest(holed(records, hole) if hole else records, load_config("cho"))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("path", "days"), [(NISTCHO, 0.625), (NISTCHO, 3.0), (CLONALYZER, 0.625), (CLONALYZER, 3.0)])
def test_a_hole_in_the_samples_of_measured_batches_breaks_nothing(path: str, days: float) -> None:
    a_hole_breaks_nothing(outcome(path), outcome(path, days))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("path", "persistence", "group_mean"), [(NISTCHO, 0.505, 0.179), (CLONALYZER, 0.555, 0.304)])
def test_the_twin_beats_both_simple_forecasts_on_measured_batches(
    path: str, persistence: float, group_mean: float
) -> None:
    density = next(s for s in outcome(path).one_step if s.channel == "viable_density")
    assert density.persistence == pytest.approx(persistence, abs=6e-4)
    assert density.group_mean == pytest.approx(group_mean, abs=6e-4)
    assert density.rmse <= group_mean and density.rmse < density.balances
    assert 0.80 <= density.coverage90 <= 0.97
