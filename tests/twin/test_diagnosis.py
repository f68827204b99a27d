"""Explanations of the last days: what is said of pumps, bags and cells is right, and nothing is said of a sound batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from controllers.recipes import recipe_control
from simulators.matched import Run, matched_run, told
from tests.twin.retold import reported
from twin.batch import apply, assimilate, believe_at, latest, start
from twin.bioreactor import Control
from twin.config import load_config
from twin.donors.prior import preset_prior
from twin.estimation.diagnosis import (
    Diagnosis,
    _moved,
    diagnose,
    heeded,
    make_bank,
    onsets,
    weigh,
)
from twin.estimation.model import BioreactorModel
from twin.estimation.pumps import corrected, pump_alarms, readback_alarms
from twin.evidence import ControlApplied, Event, Measurement
from twin.history import Batch, replay
from twin.inputs import Drive, course

PROCESS = load_config("car_nk")
TAU = 8.0
"""When something goes wrong [d]."""


def announced(batch: Batch, factor: float) -> Batch:
    """The batch when the bag connected at `TAU` holds `factor` times the glucose and glutamine that were announced."""
    medium = PROCESS.theta.medium
    event = Event("bag", "medium", TAU, {n: getattr(medium, n) / factor for n in ("glucose", "glutamine")})
    changed = replace(batch, events=(event,), course=course(medium, batch.applied, (event,)))
    return replay(replace(changed, checkpoints=(), innovations=()), 0)


@pytest.fixture(scope="module")
def run() -> Run:
    return matched_run(PROCESS, 3, 11, every=2)


@pytest.fixture(scope="module")
def sound(run: Run) -> Batch:
    return told(run)


@pytest.mark.parametrize("name", ["car_nk", "t_cell", "cho"])
def test_without_readings_the_posterior_is_the_prior(name: str) -> None:
    process = load_config(name)
    empty = start("x", process, preset_prior(process))
    bank, found = make_bank(empty, 0.0, 4.0), weigh(empty, 4.0, 0.0)
    assert bank.weight.sum() == pytest.approx(1.0, abs=1e-12)
    assert found.readings == 0
    assert found.best.kind == "nothing"
    assert found.best.posterior == pytest.approx(bank.weight[0] + bank.weight[bank.minor].sum(), abs=1e-12)
    for e in found.ranked[1:]:
        mine = [p.kind == e.kind and p.target == e.target for p in bank.priors]
        columns = (bank.owner == mine.index(True)) & ~bank.minor
        assert e.posterior == pytest.approx(bank.weight[columns].sum(), abs=1e-12)


@pytest.mark.slow
def test_posteriors_are_a_distribution_ranked_and_the_batch_is_not_touched(sound: Batch) -> None:
    before = sound.belief
    first, again = diagnose(sound, 10.0), diagnose(sound, 10.0)
    assert first == again
    assert sound.belief == before
    assert sum(e.posterior for e in first.ranked) == pytest.approx(1.0, abs=1e-12)
    assert list(first.ranked) == sorted(first.ranked, key=lambda e: -e.posterior)


def test_an_empty_window_is_refused() -> None:
    with pytest.raises(ValueError, match="window from day 3"):
        weigh(start("x", PROCESS, preset_prior(PROCESS)), 3.0, 3.0)


def test_onsets_stay_put_as_time_goes_on() -> None:
    early, late = onsets(1.0, 5.0), onsets(1.1, 5.1)
    assert set(late[:-1]) <= set(early) | {5.0}
    assert early.min() >= 1.25
    assert early.max() < 5.0


def _column(bank: object, kind: str, target: str, size: float) -> int:
    rows = [i for i, p in enumerate(bank.priors) if (p.kind, p.target) == (kind, target)]  # type: ignore[attr-defined]
    return int(np.flatnonzero((bank.owner == rows[0]) & (bank.size == size))[0])  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("kind", "target", "size", "changed"),
    [
        ("delivery", "perfusion", 0.3, lambda c, m: Drive(c._replace(perfusion=0.3 * c.perfusion), m)),
        ("delivery", "cytokine_dose", 1.5, lambda c, m: Drive(c._replace(cytokine_dose=1.5 * c.cytokine_dose), m)),
        ("stuck_on", "perfusion", 1.5, lambda c, m: Drive(c._replace(perfusion=1.5), m)),
        (
            "bag", "medium", 0.5,
            lambda c, m: Drive(c, m._replace(glucose=0.5 * m.glucose, glutamine=0.5 * m.glutamine)),
        ),
    ],
)  # fmt: skip
def test_a_hypothesis_moves_as_the_model_does_under_the_changed_inputs(
    kind: str, target: str, size: float, changed: Callable[[Control, object], Drive]
) -> None:
    """Two routes: the bank's column against the filter's model under a changed drive from the onset on."""
    batch = apply(start("x", PROCESS, preset_prior(PROCESS)), ControlApplied("p", 0.0, "perfusion", 0.8))
    batch = apply(batch, ControlApplied("c", 0.0, "cytokine_dose", 300.0))
    bank, model = make_bank(batch, 0.0, 2.0), BioreactorModel(PROCESS, batch.layout)
    k, mean = _column(bank, kind, target, size), batch.prior.mean[:, None]
    moved = _moved(batch, model, bank, mean, 0.0, 2.0)
    drive, onset = batch.course.at(0.0), float(bank.onset[k])
    until = model.advance(mean, drive, onset)
    other = model.advance(until, changed(drive.control, drive.medium), 2.0 - onset)
    np.testing.assert_allclose(moved[:, k], other[:, 0], rtol=0.0, atol=1e-6)
    np.testing.assert_allclose(moved[:, 0], model.advance(mean, drive, 2.0)[:, 0], rtol=0.0, atol=1e-6)
    assert np.abs(moved[:, k] - moved[:, 0]).max() > 0.05


def test_a_pump_that_does_not_run_cannot_be_judged() -> None:
    batch = start("x", PROCESS, preset_prior(PROCESS))
    for day, glucose in enumerate((25.0, 24.0, 23.0), start=1):
        batch = assimilate(batch, Measurement(f"g{day}", "glucose", glucose, float(day), float(day)))
    found = diagnose(batch, 3.5)
    mine = next(e for e in found.ranked if (e.kind, e.target) == ("delivery", "perfusion"))
    assert found.readings == 3
    assert mine.gain == pytest.approx(0.0, abs=1e-9)
    assert next(e for e in found.ranked if e.kind == "stuck_on").gain != 0.0


def test_what_the_screen_holds_back_and_what_comes_later_does_not_speak() -> None:
    batch = start("x", PROCESS, preset_prior(PROCESS))
    batch = assimilate(batch, Measurement("late", "glucose", 24.0, 1.0, 3.0))
    batch = assimilate(batch, Measurement("slip", "glucose", 24.0 * 0.180156, 1.5, 1.5))
    batch = assimilate(batch, Measurement("good", "glucose", 24.0, 2.0, 2.0))
    assert [m.id for m in heeded(batch, 0.0, 2.5)] == ["good"]
    assert [m.id for m in heeded(batch, 0.0, 3.0)] == ["late", "good"]


@pytest.mark.slow
def test_a_clogged_pump_is_named_with_its_factor_and_its_onset(run: Run) -> None:
    found = diagnose(told(reported(run, 0.3, TAU)), 11.0)
    assert (found.best.kind, found.best.target) == ("delivery", "perfusion")
    assert 0.15 <= found.best.factor <= 0.45
    assert abs(found.best.since - TAU) <= 0.5
    (alarm,) = pump_alarms(found)
    assert (alarm.code, alarm.channel) == ("pump_clogged", "perfusion")
    assert alarm.since == found.best.since


@pytest.mark.slow
def test_a_wrong_bag_is_told_from_a_pump(sound: Batch) -> None:
    found = diagnose(announced(sound, 0.5), 11.0)
    assert found.best.kind == "bag"
    assert abs(found.best.since - TAU) <= 0.5
    assert [a.code for a in pump_alarms(found)] == ["wrong_medium"]


@pytest.mark.slow
def test_a_standing_diagnosis_is_not_forgotten_when_its_onset_leaves_the_window(run: Run) -> None:
    batch = told(reported(run, 0.3, TAU))
    standing = diagnose(batch, 10.5)
    fresh, followed = diagnose(batch, 11.0, window=2.0), diagnose(batch, 11.0, standing, window=2.0)
    assert followed.after == pytest.approx(standing.best.since - 1.0)
    assert followed.posterior("delivery") > 0.9
    assert fresh.posterior("delivery") < followed.posterior("delivery")


@pytest.mark.slow
@pytest.mark.parametrize("seed", [11, 12, 13, 14])
def test_nothing_is_announced_of_a_sound_reactor(seed: int) -> None:
    batch = told(matched_run(PROCESS, seed, 10, every=3))
    for now in (4.0, 7.0, 10.0):
        found = diagnose(batch, now)
        assert found.readings > 50
        assert pump_alarms(found) == ()


@pytest.mark.slow
def test_a_corrected_batch_is_the_batch_that_was_told_the_truth(run: Run) -> None:
    """Two routes to one belief: a lying read-back corrected, and the true one told."""
    lied = told(reported(run, 0.3, TAU))
    found = diagnose(lied, 11.0).best
    mended = corrected(lied, found._replace(factor=0.3, since=TAU))
    np.testing.assert_allclose(mended.belief.mean, told(run).belief.mean, rtol=0.0, atol=1e-9)
    np.testing.assert_allclose(mended.belief.cov, told(run).belief.cov, rtol=0.0, atol=1e-9)
    assert corrected(lied, found._replace(kind="growth")) is lied


# --- what the pumps say --------------------------------------------------------------------------------------------------


def pumped(*said: tuple[float, float], cmd: str | None = None, recipe: str = "cspr") -> Batch:
    """A batch whose perfusion pump has said these rates at these times."""
    process = replace(PROCESS, recipe=replace(PROCESS.recipe, policy=recipe))  # type: ignore[arg-type]
    batch = start("x", process, preset_prior(process))
    for n, (at, rate) in enumerate(said):
        batch = apply(batch, ControlApplied(f"p{n}", at, "perfusion", rate, cmd))
    return batch


def codes(batch: Batch, now: float, **more: object) -> list[tuple[str, str]]:
    return [(a.code, a.channel) for a in readback_alarms(batch, now, **more)]  # type: ignore[arg-type]


def test_a_silent_pump_is_lost_only_while_others_talk() -> None:
    batch = pumped((0.0, 0.5), (0.25, 0.5))
    assert codes(batch, 2.0) == []  # the whole line is silent: another alarm's business
    batch = assimilate(batch, Measurement("g", "glucose", 20.0, 1.9, 1.9))
    assert codes(batch, 2.0) == [("readback_lost", "readback_perfusion")]
    assert readback_alarms(batch, 2.0)[0].since == pytest.approx(0.75)
    assert codes(apply(batch, ControlApplied("again", 1.95, "perfusion", 0.5)), 2.0) == []


def test_a_restless_pump_says_garbage_and_an_operators_hand_does_not() -> None:
    assert codes(pumped((0.0, 0.2), (1.0, 1.2), (1.5, 0.2)), 1.6) == []
    restless = pumped((0.0, 0.2), (1.0, 1.2), (1.25, 0.4), (1.5, 1.9))
    assert codes(restless, 1.6) == [("readback_garbage", "readback_perfusion")]
    assert codes(restless, 3.0) == []
    overrides = pumped((0.0, 0.2), (1.0, 1.2), (1.25, 0.4), (1.5, 1.9), cmd="c")
    assert codes(overrides, 1.6) == []


def test_a_recipe_may_move_the_pump_whenever_a_count_comes_in() -> None:
    batch = pumped((0.0, 0.2), (1.0, 1.2), (1.25, 0.4), (1.5, 1.9))
    for at in (1.0, 1.25, 1.5):
        batch = assimilate(batch, Measurement(f"v{at}", "viable_density", 5.0, at - 0.1, at - 0.02))
    assert codes(batch, 1.6) == []
    held = replace(batch, process=replace(batch.process, recipe=replace(batch.process.recipe, policy="constant")))
    assert codes(held, 1.6) == [("readback_garbage", "readback_perfusion")]


def test_a_rate_beyond_the_pump_is_garbage_at_once() -> None:
    assert codes(pumped((0.0, 0.5), (1.0, 24.0 * 0.5)), 1.1) == [("readback_garbage", "readback_perfusion")]


def test_a_readback_that_sticks_is_seen_against_the_recipe() -> None:
    batch = pumped((0.55, 0.3), (1.0, 0.3), (1.25, 0.3), (1.5, 0.3))
    for day, count in ((0.5, 3.0), (0.98, 9.0)):
        batch = assimilate(batch, Measurement(f"v{day}", "viable_density", count, day - 0.05, day))

    def asked(t: float) -> Control:
        return recipe_control(batch.process.recipe, t, latest(batch, t))

    (alarm,) = readback_alarms(batch, 1.6, asked)
    assert (alarm.code, alarm.severity, alarm.since) == ("readback_unasked", "information", 1.0)
    assert readback_alarms(batch, 1.6) == ()
    moved = apply(batch, ControlApplied("moves", 1.55, "perfusion", 0.9))
    assert readback_alarms(moved, 1.6, asked) == ()


def test_a_diagnosis_below_the_threshold_announces_nothing() -> None:
    empty = start("x", PROCESS, preset_prior(PROCESS))
    found: Diagnosis = diagnose(empty, 2.0)
    assert pump_alarms(found) == ()
    assert believe_at(empty, 2.0).finite
