"""The smoother against one dense least-squares solve, and on reactors whose truth is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from simulators import record
from simulators.matched import matched_run
from simulators.matched import told as whole_batch
from tests.twin.linear import LAYOUT, PROCESS, SENSORS, Everything, Linear, N, linear_batch, prior
from twin.batch import believe_at, start
from twin.bioreactor import Coordinates
from twin.donors.prior import preset_prior
from twin.estimation import smooth
from twin.estimation.belief import N_STATE, Belief, marginals
from twin.estimation.filters import FILTERS
from twin.estimation.smooth import Move, Take, backwards, smoothed, within
from twin.estimation.tune import prepared
from twin.evidence import ControlApplied, Event, Measurement
from twin.history import Batch, replay
from twin.inputs import course
from twin.process import Process

TIMES = (0.0, 0.3, 0.31, 0.9, 1.1, 2.0, 2.6)
FACTS = (
    ControlApplied("p1", 0.2, "perfusion", 1.0),
    ControlApplied("p2", 0.95, "perfusion", 0.3),
    Event("c1", "calibration", 0.7, {"channel": "do"}),
    Event("c2", "calibration", 1.2, {"channel": "raman_glucose"}),
)


def readings(rng: np.random.Generator, at_zero: bool = True) -> list[Measurement]:
    """Several at one instant, one at a calibration, one at inoculation."""
    when = {"raman_glucose": (0.1, 0.25, 0.5, 1.2, 1.6), "raman_lactate": (0.25, 0.8, 1.6, 2.0), "do": (0.5, 0.7, 1.3)}
    told = [
        Measurement(f"{c}{t}", c, float(rng.normal(0.0, 2.0)), t, t, confirmed=True)
        for c, times in when.items()
        for t in times
    ]
    return [*told, Measurement("first", "do", 0.4, 0.0, 0.0, confirmed=True)] if at_zero else told


def told(filter_name: str, seed: int = 1) -> tuple[Batch, Linear]:
    rng = np.random.default_rng(seed)
    model = Linear(rng)
    return linear_batch(model, prior(rng), readings(rng), FACTS, filter_name), model


@pytest.mark.parametrize("name", FILTERS)
def test_on_a_linear_model_it_is_the_least_squares_solution_of_the_whole_batch(name: str) -> None:
    batch, model = told(name)
    whole = Everything(batch, model, TIMES)
    found = smoothed(batch, TIMES)
    assert list(found.times) == sorted({*TIMES, *(m.sampled_at for m in batch.evidence)})
    for belief in found.beliefs:
        mean, cov = whole.at(belief.time)
        np.testing.assert_allclose(belief.mean, mean, rtol=0, atol=1e-9)
        np.testing.assert_allclose(belief.cov, cov, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", FILTERS)
def test_a_belief_that_was_widened_is_smoothed_with_what_widened_it_as_noise(name: str) -> None:
    """A state that leaps, and a channel that then stands alone: the dense solve is told what the screen did and no more."""
    rng = np.random.default_rng(5)
    model = Linear(rng, noise=0.02)
    gated = {c: replace(s, gate=4.0) for c, s in SENSORS.items()}
    process = replace(PROCESS, sensors=gated)
    smooth_truth, leap = prior(rng), 12.0
    believed = replace(smooth_truth, cov=smooth_truth.cov * 0.01)
    truth, told, t = believed.mean.copy(), list[Measurement](), 0.0
    for k in range(1, 16):
        transition, _, _ = model.discrete(0.2)
        truth, t = transition @ truth, round(0.2 * k, 10)
        if k == 7:
            truth[:13] += leap * rng.normal(size=13)
        for c in SENSORS:
            told.append(Measurement(f"{c}{t}", c, float(model.H[c] @ truth + gated[c].sd * rng.normal()), t, t))
    batch = linear_batch(model, believed, told, (), name, process)
    verdicts = {f"{i.channel}{i.time}": i.verdict for i in batch.innovations}
    assert {"widened", "rejected"} <= set(verdicts.values())
    jumps: dict[str, np.ndarray] = {}
    for stop in backwards(batch):
        steps = within(batch, stop)
        for step, after in pairwise(steps):
            if isinstance(step, Move) and isinstance(after, Take):
                jumps[f"{after.channel}{stop.after.time}"] = step.after.cov - step.before.cov
    without = [k for k, v in verdicts.items() if v not in ("accepted", "widened")]
    assert set(jumps) == {k for k, v in verdicts.items() if v == "widened"}
    whole = Everything(batch, model, (), jumps, without)
    for belief in smoothed(batch).beliefs:
        mean, cov = whole.at(belief.time)
        np.testing.assert_allclose(belief.mean, mean, rtol=0, atol=1e-8 * np.abs(mean).max())
        np.testing.assert_allclose(belief.cov, cov, rtol=0, atol=1e-8 * np.abs(cov).max())


def test_what_is_learnt_after_a_calibration_says_nothing_of_the_error_before_it() -> None:
    """The error of a sensor that is read on both sides of its calibration, everything else known."""
    rng = np.random.default_rng(2)
    model = Linear(rng, noise=1e-12)
    certain = Belief(0.0, np.zeros(N), np.diag([1e-12] * 14 + [0.49, 0.49]))
    after = [Measurement(f"b{k}", "do", 2.0, 0.5 + 0.1 * k, 1.0, confirmed=True) for k in range(1, 5)]
    before = Measurement("a", "do", -1.0, 0.2, 0.2, confirmed=True)
    calibration = Event("c", "calibration", 0.5, {"channel": "do"})
    i = LAYOUT.index("do_offset")
    alone = smoothed(linear_batch(model, certain, [before], [calibration]), [0.3]).at(0.3)
    told = smoothed(linear_batch(model, certain, [before, *after], [calibration]), [0.3]).at(0.3)
    tied = smoothed(linear_batch(model, certain, [before, *after]), [0.3]).at(0.3)
    assert told.mean[i] == pytest.approx(alone.mean[i], abs=1e-6)
    assert told.cov[i, i] == pytest.approx(alone.cov[i, i], rel=1e-6)
    assert tied.mean[i] > alone.mean[i] + 0.5 and tied.cov[i, i] < 0.5 * alone.cov[i, i]


@pytest.fixture(scope="module")
def bioreactor() -> Batch:
    return whole_batch(matched_run(PROCESS, seed=3, days=3, every=2))


def test_at_the_newest_evidence_it_is_the_filter_and_after_it_the_prediction(bioreactor: Batch) -> None:
    found = smoothed(bioreactor, [3.5, 4.0])
    assert found.at(bioreactor.belief.time) == bioreactor.belief
    assert found.at(3.5) == believe_at(bioreactor, 3.5)
    assert found.at(4.0) == believe_at(bioreactor, 4.0)


def test_nothing_is_less_certain_once_all_is_known(bioreactor: Batch) -> None:
    between = (0.0, 0.51, 1.99)  # on a way of their own, whose sigma points are not those of the filter's one step
    for belief in smoothed(bioreactor, between).beliefs:
        filtered, slack = believe_at(bioreactor, belief.time), 1e-3 if belief.time in between else 1e-9
        assert (np.diagonal(belief.cov) <= np.diagonal(filtered.cov) * (1.0 + slack)).all()
        assert np.linalg.eigvalsh(belief.cov)[0] > 0.0


def test_checkpoints_bound_the_memory_and_change_nothing(bioreactor: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once = smoothed(replace(bioreactor, checkpoints=bioreactor.checkpoints[-1:]), [0.7])
    monkeypatch.setattr(smooth, "SEGMENT", 12)
    assert smoothed(bioreactor, [0.7]).beliefs == at_once.beliefs
    assert smoothed(bioreactor, [0.7], only=True).beliefs == (at_once.at(0.7),)


def test_times_are_checked_and_named(bioreactor: Batch) -> None:
    for bad in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="expected days from 0 on"):
            smoothed(bioreactor, [bad])
    with pytest.raises(KeyError, match=r"0\.123 d was not smoothed"):
        smoothed(bioreactor).at(0.123)
    empty = replace(bioreactor, evidence=(), checkpoints=(), innovations=())
    assert smoothed(empty, [0.0, 1.0]).beliefs == (bioreactor.prior, believe_at(empty, 1.0))
    assert smoothed(empty).beliefs == ()


def nees(belief: Belief, truth: np.ndarray) -> float:
    error = belief.mean - truth
    return float(error @ np.linalg.solve(belief.cov, error)) / truth.size


@pytest.mark.slow
@pytest.mark.parametrize("name", FILTERS)
def test_on_matched_reactors_errors_are_as_small_as_it_says_and_smaller_than_the_filters(name: str) -> None:
    """Twenty reactors of seven days whose truth the very model drew. Measured: UKF 1.06 (filter 1.06), EKF 1.14 (1.09)."""
    honest: list[tuple[float, float]] = []
    squared = np.zeros((2, N_STATE))
    for seed in range(20):
        run = matched_run(PROCESS, seed, 7, name, every=2)
        batch = whole_batch(run)
        days = [float(d) for d in range(1, 7)]
        found = smoothed(batch, days, only=True)
        for day in days:
            truth = run.truth[round(24 * day)]
            honest.append((nees(believe_at(batch, day), truth), nees(found.at(day), truth)))
            squared[0] += np.square(believe_at(batch, day).mean - truth)[:N_STATE]
            squared[1] += np.square(found.at(day).mean - truth)[:N_STATE]
    filtered, after = np.mean(honest, axis=0)
    assert 0.9 < after < 1.2 and abs(after - filtered) < 0.1
    ratio = dict(zip(Coordinates._fields, np.sqrt(squared[1] / squared[0]), strict=True))
    assert max(ratio.values()) < 1.05
    assert max(ratio[c] for c in ("viable", "car_odds", "lactate", "dead")) < 0.95


@pytest.mark.slow
def test_on_a_plant_that_is_not_the_model_it_prints_what_it_gains() -> None:
    found = gain(range(1000, 1004))
    assert found["glucose"][1] < found["glucose"][0]
    assert found["exhausted_fraction"][1] < found["exhausted_fraction"][0]


def gain(seeds: Sequence[int], process: Process = PROCESS) -> dict[str, tuple[float, float]]:
    """RMSE of the filter and of the smoother on a plant that is not the model, every half day of 14: relative, the
    exhausted fraction absolute."""
    errors: dict[str, list[tuple[float, float]]] = {n: [] for n in ("viable_density", "glucose", "exhausted_fraction")}
    for seed in seeds:
        heard = record(process, seed, seed=seed, days=14.0)
        applied = [f for f in heard.facts if isinstance(f, ControlApplied)]
        evidence = [f for f in heard.facts if isinstance(f, Measurement)]
        empty = start("b", process, preset_prior(process))
        inputs = course(process.theta.medium, applied, ())
        batch = replace(empty, course=inputs, evidence=tuple(sorted(evidence, key=lambda m: (m.sampled_at, m.channel))))
        batch = replay(prepared(batch), 0)
        times = [k / 2 - 0.25 for k in range(1, 29)]
        found = smoothed(batch, times, only=True)
        for t in times:
            for name, misses in errors.items():
                truth = float(np.interp(t, heard.truth["time"], heard.truth[name]))
                unit = 1.0 if name == "exhausted_fraction" else truth
                both = (marginals(b, batch.layout)[name].mean for b in (believe_at(batch, t), found.at(t)))
                before, after = ((m - truth) / unit for m in both)
                misses.append((before, after))
    return {n: tuple(float(v) for v in np.sqrt(np.mean(np.square(e), axis=0))) for n, e in errors.items()}  # type: ignore[misc]


if __name__ == "__main__":
    for quantity, (filtered, after) in gain(range(1000, 1020)).items():
        print(  # noqa: T201 - what this module prints when it is run
            f"{quantity:20} filtered {filtered:.4f}  smoothed {after:.4f}  {100 * (after / filtered - 1):+.0f} %"
        )
