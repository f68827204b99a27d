"""Partial pooling beside complete and none: what each knows of a new group, and how the three are compared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from twin.backtest import ALTERNATIVES, Backtest, backtest, differences
from twin.backtest import learn as learning
from twin.backtest.learn import Counting, Learnt, effective, learn, run
from twin.backtest.run import ChannelScore, Prediction
from twin.backtest.steps import Step
from twin.config import load_config
from twin.donors.prior import preset_prior
from twin.records import RecordedBatch, read_batches

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "data" / "synthetic_fedbatch.csv"


@pytest.fixture
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    """One pass of learning: enough to test the bookkeeping."""
    monkeypatch.setattr(learning, "ITERATIONS", 2)
    monkeypatch.setattr(learning, "NOISE_LEVELS", (0.10,))
    monkeypatch.setattr(learning, "COUNTING", ((0.08, 0.0),))


def counts(until: float) -> list[RecordedBatch]:
    return [
        replace(
            b, measurements=tuple(m for m in b.measurements if m.channel == "viable_density" and m.sampled_at <= until)
        )
        for b in read_batches(EXAMPLE)[:3]
    ]


def predicted(means: dict[str, list[float]], sd: float) -> Backtest:
    """Readings of 0, predicted at `means` by group."""
    predictions = tuple(
        Prediction(Step(g, g, "viable_density", n, n, n + 1.0, 0.0, 0.0), m, sd, 0.0, 0.0, float(n))
        for g, values in means.items()
        for n, m in enumerate(values)
    )
    score = ChannelScore("viable_density", "ln", len(predictions), *[0.0] * 6)
    return Backtest((score,), (), {}, predictions, {})


def test_the_difference_is_paired_over_groups() -> None:
    """By hand: densities of a Gaussian, the mean of the groups' means, a paired t test of them."""
    ours, theirs = {"a": [0.1], "b": [0.2, 0.0, 0.4], "c": [0.3]}, {"a": [0.3], "b": [0.2, 0.2, 0.2], "c": [0.5]}
    (found,) = differences(predicted(ours, 0.2), {"none": predicted(theirs, 0.3)})
    here = [np.mean(stats.norm.logpdf(0.0, v, 0.2)) for v in ours.values()]
    there = [np.mean(stats.norm.logpdf(0.0, v, 0.3)) for v in theirs.values()]
    assert (found.partial, found.alternative) == pytest.approx((np.mean(here), np.mean(there)))
    test = stats.ttest_rel(here, there)
    assert found.difference / found.se == pytest.approx(test.statistic)
    assert found.interval95 == pytest.approx(tuple(test.confidence_interval(0.95)))
    assert (found.readings, found.groups, found.other) == (5, 3, "none")
    assert found.better == sum(h > t for h, t in zip(here, there, strict=True))


def test_only_equal_readings_are_compared() -> None:
    with pytest.raises(ValueError, match="pooling complete predicted other readings"):
        differences(predicted({"a": [0.0]}, 1.0), {"complete": predicted({"a": [0.0, 0.0]}, 1.0)})


def test_pooled_completely_a_new_group_has_the_kinetics_of_the_others(brisk: None) -> None:
    process, names = effective(load_config("cho"), ("viable_density",))
    batches = counts(9.0)
    partial, complete = (learn(process, batches, names, pooling=how) for how in ("partial", "complete"))
    assert (np.diag(complete.prior.cov) <= np.diag(partial.prior.cov) * (1 + 1e-9)).all()
    mu = names.index("mu_max")
    assert complete.prior.cov[mu, mu] < 0.5 * partial.prior.cov[mu, mu]
    one = learn(process, batches[:1], names, pooling="complete")
    assert complete.prior.cov[mu, mu] < one.prior.cov[mu, mu]  # more batches, one set of kinetics: better known


def test_of_one_batch_complete_pooling_is_the_posterior_of_that_batch(
    brisk: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning, "ITERATIONS", 1)
    process, names = effective(load_config("cho"), ("viable_density",))
    (batch, *_) = counts(9.0)
    learnt = learn(process, [batch], names, pooling="complete")
    before = Learnt(learnt.process, preset_prior(process, names), learnt.counting, float("nan"))
    belief = run(before, batch).belief
    where = slice(learning.N_STATE, learning.N_STATE + len(names))
    assert learnt.prior.mean == pytest.approx(belief.mean[where], abs=1e-9)
    assert learnt.prior.cov == pytest.approx(learning.limited(belief.cov[where, where]), abs=1e-9)


def test_not_pooled_is_the_preset_alone() -> None:
    batches, process = counts(6.0), load_config("cho")
    prepared, names = effective(process, ("viable_density",))
    nothing = backtest(batches, process, pooling="none")
    preset = backtest(batches, prepared, preset_prior(prepared, names))
    assert [(p.mean, p.sd) for p in nothing.predictions] == [(p.mean, p.sd) for p in preset.predictions]
    assert learn(prepared, batches, names, pooling="none").counting == Counting(
        process.sensors["viable_density"].sd, 0.0
    )
    assert nothing.one_step[0].rmse == pytest.approx(nothing.one_step[0].balances, rel=1e-12)
    assert set(ALTERNATIVES) == {"complete", "none"}
