"""A finished batch looked back upon: edits, paths and reruns, and causes that were put there are named."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulators.matched import Run, matched_run, told
from tests.twin.retold import reported
from twin.batch import apply, assimilate, start
from twin.bioreactor import Control, Kinetics, State, to_coordinates
from twin.config import load_config
from twin.donors.prior import preset_prior
from twin.estimation.belief import N_STATE
from twin.estimation.diagnosis import heeded
from twin.estimation.model import BioreactorModel
from twin.estimation.smooth import smoothed
from twin.evidence import ControlApplied, Measurement
from twin.history import Batch
from twin.inputs import Course, altered, begin, course
from twin.retrospect.attribution import EXCUSED, OWNED, attribute, early_growth, effect_of, weighed
from twin.retrospect.causes import BENIGN, CAUSES, bank, families, rises
from twin.retrospect.edits import edited
from twin.retrospect.paths import UNSEEN, Change, compared, paths, rerun
from twin.retrospect.recorded import deviations
from twin.whatif.edits import parse_edits

PROCESS = load_config("car_nk")
TAU = 5.0
"""When something goes wrong [d]."""
DAYS = 9


@pytest.fixture(scope="module")
def run() -> Run:
    return matched_run(PROCESS, 3, DAYS, every=3)


@pytest.fixture(scope="module")
def sound(run: Run) -> Batch:
    return told(run)


def pumped(*said: tuple[str, float, float]) -> Course:
    facts = [ControlApplied(f"{a}{t}", t, a, r) for a, t, r in said]  # type: ignore[arg-type]
    return course(PROCESS.theta.medium, sorted(facts, key=lambda c: c.at), ())


# --- edits ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("perfusion*2 from 8", ("perfusion", "*", 2.0, 8.0, None, inf)),
        ("feed*1.1 for 6h", ("feed", "*", 1.1, None, None, 0.25)),
        ("cytokine_dose = 300 from 3 to 5", ("cytokine_dose", "=", 300.0, 3.0, 5.0, inf)),
        ("bleed+.1 from 2d for 1.5d", ("bleed", "+", 0.1, 2.0, None, 1.5)),
        ("perfusion-0.25 to 4", ("perfusion", "-", 0.25, None, 4.0, inf)),
    ],
)
def test_an_edit_is_read_as_it_is_written(text: str, expected: tuple[object, ...]) -> None:
    assert tuple(parse_edits(text)[0]) == expected
    assert len(parse_edits(f"{text}; {text}")) == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("perfusion2 from 8", "is not understood; expected ACTUATOR*NUMBER"),
        ("perfusion*2 after 8", "is not understood"),
        ("perfusion*-2", "is not understood"),
        ("perfusion*2 from 8 to 9 for 1d", "is not understood"),
        ("perfusion*2 for 6", "is not understood"),
        ("pump*2 from 8", "unknown actuator 'pump'; known: perfusion, feed, bleed, cytokine_dose"),
        ("perfusion*1e999", "expected finite numbers"),
        ("perfusion*2 from 300", "expected days since inoculation, 0 to 100"),
        ("perfusion*2 from 8 to 8", "expected an end after the beginning"),
        ("perfusion*2 for 0h", "expected an end after the beginning"),
        ("perfusion*2 from 8; nonsense", "edit 'nonsense'"),
    ],
)
def test_what_is_no_edit_is_refused_with_what_was_expected(text: str, words: str) -> None:
    with pytest.raises(ValueError, match="edit") as refused:
        parse_edits(text)
    assert words in str(refused.value)


def test_an_edit_holds_in_its_window_and_an_actuator_does_no_more_than_it_can() -> None:
    given_ = pumped(("perfusion", 0.0, 0.5), ("perfusion", 6.0, 1.5))
    found = edited(given_, parse_edits("perfusion*2 from 4 to 8"), PROCESS.limits)
    rates = [found.course.at(t).control.perfusion for t in (3.9, 4.0, 5.9, 6.0, 7.9, 8.0)]
    assert rates == [0.5, 1.0, 1.0, PROCESS.limits.perfusion_max, PROCESS.limits.perfusion_max, 1.5]
    assert found.capped == ("perfusion",)
    assert edited(given_, parse_edits("perfusion-1 from 4"), PROCESS.limits).course.at(5.0).control.perfusion == 0.0
    later = edited(given_, parse_edits("perfusion*1.1 for 6h"), PROCESS.limits, now=5.0).course
    assert [later.at(t).control.perfusion for t in (4.9, 5.1, 5.3)] == [0.5, pytest.approx(0.55), 0.5]
    with pytest.raises(ValueError, match="ends on day 2, before it begins on day 5"):
        edited(given_, parse_edits("perfusion*1.1 to 2"), PROCESS.limits, now=5.0)


@given(
    since=st.floats(0.0, 10.0), span=st.floats(0.01, 10.0), at=st.floats(0.0, 20.0),
    turns=st.lists(st.floats(0.0, 10.0), max_size=5, unique=True),
)  # fmt: skip
def test_a_course_is_altered_in_its_window_alone(since: float, span: float, at: float, turns: list[float]) -> None:
    before = pumped(*(("perfusion", t, 0.1 + 0.01 * k) for k, t in enumerate(sorted(turns))))
    after = altered(before, since, since + span, lambda d: d._replace(control=d.control._replace(perfusion=9.0)))
    inside = since <= at < since + span
    assert after.at(at).control.perfusion == (9.0 if inside else before.at(at).control.perfusion)
    assert list(after.since) == sorted(set(after.since))
    assert altered(begin(PROCESS.theta.medium), 0.0, inf, lambda d: d).at(at) == begin(PROCESS.theta.medium).at(at)


# --- paths ---------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_paths_have_the_moments_of_the_smoother(sound: Batch) -> None:
    """Two routes to one posterior: sampled backwards, and in closed form."""
    drawn = paths(sound, float(DAYS), 1500, 1)
    times = drawn.t[:: drawn.t.size // 6]
    exact = smoothed(sound, times, only=True)
    for t in times:
        belief, points = exact.at(float(t)), drawn.points[int(np.flatnonzero(drawn.t == t)[0])]
        n = points.shape[0]
        sd = np.sqrt(np.diagonal(belief.cov)[:n])
        assert np.abs((points.mean(axis=1) - belief.mean[:n]) / sd).max() < 5.0 / np.sqrt(1500)
        assert np.abs(points.std(axis=1) / sd - 1.0).max() < 0.12


@pytest.mark.slow
def test_a_rerun_without_a_change_is_the_batch_and_an_edit_that_is_taken_back_changes_no_bit(sound: Batch) -> None:
    drawn = paths(sound, float(DAYS), 60, 2)
    own = [n in UNSEEN and n not in sound.layout.parameters for n in Kinetics._fields]
    np.testing.assert_array_equal(drawn.unseen.std(axis=1) > 0.0, own)
    was = rerun(sound, drawn)
    ln = np.log(np.array([to_coordinates(State(*x)) for x in was]))
    np.testing.assert_allclose(ln, drawn.points[:, :N_STATE], rtol=0.0, atol=1e-9)
    back = edited(sound.course, parse_edits("perfusion*0.5 from 4; perfusion*2 from 4"), PROCESS.limits)
    assert rerun(sound, drawn, Change(course=back.course)).tobytes() == was.tobytes()
    same = compared(was, rerun(sound, drawn, Change(cells=lambda t, c: c, start=lambda x: x)), PROCESS.targets)
    assert all(v == (0.0, 0.0, 0.0) for v in same.delta.values())
    assert same.p_release[0] == same.p_release[1]
    half = rerun(sound, drawn, Change(course=edited(sound.course, parse_edits("perfusion*0.5 from 4"), PROCESS.limits).course))  # fmt: skip
    before = drawn.t <= 4.0
    assert half[before].tobytes() == was[before].tobytes()
    found = compared(was, half, PROCESS.targets)
    assert found.delta["viable_cells"][2] < 0.0 < found.delta["lactate"][0]


def true_difference(run: Run, before: Course, after: Course) -> float:
    """What other inputs would have changed in the viable density at the end, with the shocks that the truth really had."""
    model, hour = BioreactorModel(PROCESS, run.empty.layout), float(run.times[1])
    x = run.truth[0][:, None]
    for k, t in enumerate(run.times[:-1]):
        as_it_went = model.advance(run.truth[k][:, None], before.at(float(t) + 1e-6), hour)
        x = model.advance(x, after.at(float(t) + 1e-6), hour) + run.truth[k + 1][:, None] - as_it_went
    return float(np.exp(x[0, 0]) - np.exp(run.truth[-1, 0]))


@pytest.mark.slow
def test_on_reactors_that_are_the_model_the_difference_is_the_true_one() -> None:
    """Paired with the true shocks: the intervals hold the truth, and their middles are near it."""
    held, middles, truths = [], [], []
    for seed in range(21, 29):
        run = matched_run(PROCESS, seed, 8, every=4)
        batch = told(run)
        less = edited(batch.course, parse_edits("perfusion*0.4 from 4"), PROCESS.limits).course
        drawn = paths(batch, 8.0, 150, seed)
        a, b = (State(*rerun(batch, drawn, change)[-1]).viable for change in (Change(), Change(course=less)))
        low, middle, high = np.quantile(b - a, [0.02, 0.5, 0.98])
        truth = true_difference(run, batch.course, less)
        held.append(low <= truth <= high)
        middles.append(middle)
        truths.append(truth)
    assert sum(held) >= 7
    assert np.corrcoef(middles, truths)[0, 1] > 0.9


# --- causes --------------------------------------------------------------------------------------------------------------


def test_priors_are_a_distribution_and_what_is_benign_has_its_share(sound: Batch) -> None:
    known = families(sound, float(DAYS), heeded(sound, 0.0, float(DAYS)))
    columns = bank(sound, float(DAYS), known)
    assert {f.cause for f in known} == set(CAUSES) - {"slow_donor", "poor_seed"}
    assert "feed" not in {f.target for f in known}  # that pump never ran
    assert columns.weight.sum() == pytest.approx(1.0, abs=1e-12)
    assert columns.weight[columns.minor].sum() / columns.weight[0] == pytest.approx(BENIGN / (1.0 - BENIGN))
    benign = columns.weight[0] + columns.weight[columns.minor].sum()
    for cause in ("clogged_pump", "cytokine_missed"):
        mine = np.isin(columns.owner, [i for i, f in enumerate(known) if f.cause == cause])
        share = sum(f.probability for f in known if f.cause == cause)
        assert columns.weight[mine].sum() / benign == pytest.approx(share)
    assert (np.diff(columns.onset[1:]) >= 0.0).all()


def test_early_growth_is_the_growth_of_the_lagged_model() -> None:
    """Closed form against the sum over time of mu_max times what has woken."""
    mu, tau = 0.8, 1.5
    t = np.linspace(0.0, 5.0, 200_001)
    fold = np.trapezoid(mu * (1.0 - np.exp(-t / tau)), t)
    assert early_growth(np.log(mu), np.log(tau)) == pytest.approx(np.log(fold), abs=1e-8)  # type: ignore[arg-type]


def test_a_batch_without_readings_has_no_causes() -> None:
    with pytest.raises(ValueError, match="expected readings of at least a day, got 0"):
        weighed(start("x", PROCESS, preset_prior(PROCESS)), 5.0)


def recipe_of(rate: float) -> Control:
    return Control(perfusion=rate, cytokine_dose=300.0)


def test_a_read_back_that_lags_behind_the_recipe_is_a_departure_and_a_command_is_none() -> None:
    batch = start("x", PROCESS, preset_prior(PROCESS))
    for at, rate in ((0.0, 0.25), (6.0, 0.5)):
        batch = apply(batch, ControlApplied(f"p{at}", at, "perfusion", rate))
    batch = apply(batch, ControlApplied("c", 0.0, "cytokine_dose", 300.0))

    def asked(t: float) -> Control:
        return recipe_of(0.25 if t < 4.0 else 0.5)

    (late,) = deviations(batch, asked, 10.0)
    assert (late.actuator, late.cause) == ("perfusion", "late_feed")
    assert (late.since, late.until) == (pytest.approx(4.0, abs=0.05), pytest.approx(6.0, abs=0.05))
    assert (late.applied, late.asked) == (0.25, 0.5)
    commanded = apply(batch, ControlApplied("cmd", 3.9, "perfusion", 0.25, cmd_id="k"))
    assert deviations(commanded, asked, 10.0) == ()
    assert deviations(batch, lambda t: None, 10.0) == ()
    assert deviations(batch, lambda t: recipe_of(1.0), 10.0) == ()  # another recipe was played
    assert rises(batch, "perfusion", 10.0) == [(6.0, 0.25)]


@pytest.mark.slow
def test_a_clogged_pump_is_named_and_costs_cells(run: Run) -> None:
    found = attribute(told(reported(run, 0.3, TAU)), float(DAYS), n=100)
    assert sum(c.probability for c in found.causes) == pytest.approx(1.0, abs=1e-9)
    assert [c.probability for c in found.causes] == sorted((c.probability for c in found.causes), reverse=True)
    best = found.best
    assert (best.name, best.found.kind, best.found.target) == ("clogged_pump", "delivery", "perfusion")
    assert abs(best.found.since - TAU) <= 1.0
    assert best.effect is not None
    assert best.effect[1] < 0.0
    assert "perfusion delivers" in best.evidence
    assert found.expected is None


@pytest.mark.slow
def test_a_sound_batch_has_nothing_and_a_shown_departure_is_its_cause(sound: Batch) -> None:
    """What the read-backs show beyond doubt multiplies what is left as nothing by its prior odds."""
    plain = weighed(sound, float(DAYS), n=60)
    assert plain.causes[0].name == "nothing"

    def asked(t: float) -> Control:
        control = sound.course.at(t).control
        return control._replace(cytokine_dose=600.0) if 4.0 <= t < 7.0 else control

    shown = weighed(sound, float(DAYS), asked, n=60)
    before, after = ({c.name: c.probability for c in w.causes} for w in (plain, shown))
    assert shown.causes[0].name == "cytokine_missed"
    gained = before["cytokine_missed"] + before["nothing"] * OWNED / EXCUSED
    assert after["cytokine_missed"] / after["nothing"] == pytest.approx(gained / before["nothing"])
    effect = effect_of(shown, shown.causes[0], asked, None, n=60)
    assert effect[0] <= effect[1] <= effect[2] < 1.0


@pytest.mark.slow
def test_a_biased_method_is_named_and_costs_nothing_where_nothing_acts_on_it(run: Run) -> None:
    facts = tuple(
        replace(f, value=1.4 * f.value) if isinstance(f, Measurement) and f.channel == "glucose" and f.sampled_at >= TAU else f
        for f in run.facts
    )  # fmt: skip
    found = attribute(told(run._replace(facts=facts)), float(DAYS), n=60, most=1)
    assert (found.best.name, found.best.found.target) == ("biased_sensor", "glucose")
    assert found.best.effect == (0.0, 0.0, 0.0)
    assert [c.effect for c in found.causes[1:]] == [None] * (len(found.causes) - 1)


@pytest.mark.parametrize("name", ["car_nk", "t_cell", "cho"])
def test_a_batch_of_one_channel_is_weighed_by_it(name: str) -> None:
    process = load_config(name)
    batch = start("x", process, preset_prior(process))
    batch = apply(batch, ControlApplied("p", 0.0, "perfusion", 0.5))
    for day in (1.0, 2.0, 3.0):
        batch = assimilate(batch, Measurement(f"g{day}", "glucose", 24.0 - day, day, day))
    found = weighed(batch, 3.5, n=40)
    assert found.readings == 3
    assert sum(c.probability for c in found.causes) == pytest.approx(1.0, abs=1e-9)
    assert found.causes[0].name in ("nothing", "slow_donor")
