"""The backtest: baselines as published, nothing of the left-out group leaks, and the twin beats persistence."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from twin.backtest import Backtest, BacktestError, backtest, differences
from twin.backtest import learn as learning
from twin.backtest.learn import Counting, Learnt, Pooling, begun, effective, first_visits, matched, run
from twin.backtest.steps import expected_increment, mean_increments, rmse, scored_channels, steps
from twin.batch import assimilate
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


def test_the_initial_state_is_that_of_the_training_groups() -> None:
    training = [record(f"b{k}", [(0.0, v), (1.0, 2 * v)]) for k, v in enumerate((0.2, 0.3, 0.45))]
    process = first_visits(load_config("cho"), training)
    noise = process.sensors["viable_density"].sd ** 2
    assert process.initial.viable == pytest.approx(0.3, rel=1e-9)
    expected = np.var(np.log([0.2, 0.3, 0.45]), ddof=1) * (1 + 1 / 3)  # of a fourth, the mean of three being a guess
    assert process.initial_sd.viable == pytest.approx(np.sqrt(expected - noise))
    twins = [replace(b, id=f"{b.id}{r}") for b in training for r in range(3)]
    assert first_visits(load_config("cho"), twins).initial_sd == process.initial_sd  # replicates are no groups


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


def test_a_record_told_at_once_is_believed_as_reading_by_reading() -> None:
    process, names = effective(load_config("cho"), ("viable_density", "viability", "glucose", "lactate"))
    learnt = Learnt(process, preset_prior(process, names), Counting(0.06, 0.06), float("nan"))
    record = read_batches(EXAMPLE)[0]
    batch = begun(learnt, record)
    for m in learnt.counting.applied(record).final:
        batch = assimilate(batch, m)
    told = run(learnt, record)
    assert told.belief == batch.belief and told.innovations == batch.innovations and told.evidence == batch.evidence


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
def outcome(path: str, hole: float = 0.0, pooling: Pooling = "partial") -> Backtest:
    records = measured(path)
    return backtest(holed(records, hole) if hole else records, load_config("cho"), pooling=pooling)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("path", "days"), [(NISTCHO, 0.625), (NISTCHO, 3.0), (CLONALYZER, 0.625), (CLONALYZER, 3.0)])
def test_a_hole_in_the_samples_of_measured_batches_breaks_nothing(path: str, days: float) -> None:
    a_hole_breaks_nothing(outcome(path), outcome(path, days))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("path", "persistence", "group_mean", "owed"), [(NISTCHO, 0.505, 0.179, 0.165), (CLONALYZER, 0.555, 0.304, 0.29)]
)
def test_the_twin_beats_both_simple_forecasts_on_measured_batches(
    path: str, persistence: float, group_mean: float, owed: float
) -> None:
    density = next(s for s in outcome(path).one_step if s.channel == "viable_density")
    assert density.persistence == pytest.approx(persistence, abs=6e-4)
    assert density.group_mean == pytest.approx(group_mean, abs=6e-4)
    assert density.rmse <= owed < group_mean and density.rmse < density.balances
    assert 0.80 <= density.coverage90 <= 0.97


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("path", "other"), [(NISTCHO, "complete"), (NISTCHO, "none"), (CLONALYZER, "none")])
def test_partial_pooling_is_ahead_on_measured_batches(path: str, other: Pooling) -> None:
    found = differences(outcome(path), {other: outcome(path, pooling=other)})
    density = next(d for d in found if d.channel == "viable_density")
    assert density.difference > 0 and density.better > density.groups / 2
