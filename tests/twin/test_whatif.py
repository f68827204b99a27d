"""What if: edits as people write them, and futures that differ by the edit and nothing else."""

from __future__ import annotations

from dataclasses import replace
from math import exp, inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controllers.recipes import recipe_schedule
from twin.batch import Batch, assimilate, start
from twin.bioreactor import Control, Coordinates
from twin.config import load_config
from twin.donors.prior import preset_prior
from twin.evidence import ACTUATORS, Measurement
from twin.futures import QUANTITIES, forecast, run_futures
from twin.twin import Twin
from twin.whatif.edits import LONGEST, Edit, Edits, parse_edits
from twin.whatif.paired import run_pair, whatif

PROCESS = load_config("car_nk")
RECIPE = recipe_schedule(PROCESS.recipe)
NOW = 6.5


@pytest.fixture(scope="module")
def batch() -> Batch:
    told = start("b", PROCESS, preset_prior(PROCESS))
    for day in range(7):
        told = assimilate(told, Measurement(f"c{day}", "viable_density", 0.6 * 1.5**day, float(day), day + 0.1))
    return told


# --- the grammar -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "edit"),
    [
        ("feed*1.1 for 6h", Edit("feed", "*", 1.1, span=0.25)),
        ("feed+10% for 6h", Edit("feed", "*", 1.1, span=0.25)),
        ("feed +10 % for six hours", Edit("feed", "*", 1.1, span=0.25)),
        ("feed - 100 % for 1 day", Edit("feed", "*", 0.0, span=1.0)),
        ("perfusion=1 for 12h", Edit("perfusion", "=", 1.0, span=0.5)),
        ("perfusion=1 from 8 until 10", Edit("perfusion", "=", 1.0, 8.0, 10.0)),
        ("perfusion = 1 VVD from day 8 to day 10", Edit("perfusion", "=", 1.0, 8.0, 10.0)),
        ("hold perfusion at 1", Edit("perfusion", "=", 1.0)),
        ("hold perfusion at 1 VVD for two days", Edit("perfusion", "=", 1.0, span=2.0)),
        ("Hold cytokine_dose at 300 IU/mL/d", Edit("cytokine_dose", "=", 300.0)),
    ],
)
def test_the_user_s_wording_is_understood(text: str, edit: Edit) -> None:
    assert Edits.parse(text) == Edits((edit,))


def test_harvest_and_several_edits_joined_or_repeated() -> None:
    for text in ("harvest on 12", "harvest on day 12", "harvest at 12d", "harvest=12"):
        assert Edits.parse(text) == Edits((), 12.0)
    joined = Edits.parse("feed*1.1 for 6h; harvest on 12; perfusion=1")
    assert joined == Edits.parse(["feed*1.1 for 6h", "perfusion=1; harvest on day 12"])
    assert [e.actuator for e in joined.rates] == ["feed", "perfusion"]
    assert Edits.parse("") == Edits.parse([]) == Edits.parse(" ; ") == Edits()


DAYS = st.floats(0.0, LONGEST, allow_subnormal=False)
RATES = st.builds(
    Edit, st.sampled_from(ACTUATORS), st.sampled_from("*=+-"), st.floats(0.0, 1e6, allow_subnormal=False),
    st.none() | DAYS, st.none(), st.just(inf) | st.floats(1e-3, 50.0),
)  # fmt: skip
WINDOWED = st.builds(
    lambda e, a, b: e._replace(since=min(a, b), until=max(a, b), span=inf),
    RATES,
    DAYS,
    DAYS.filter(lambda d: d > 0.0),
).filter(lambda e: e.since < e.until)


@given(st.lists(RATES | WINDOWED, max_size=4), st.none() | DAYS)
@settings(max_examples=60)
def test_what_is_printed_parses_to_the_same_edits(rates: list[Edit], harvest: float | None) -> None:
    edits = Edits(tuple(rates), harvest)
    assert Edits.parse(str(edits)) == edits


@given(st.text(max_size=30))
def test_any_text_is_edits_or_one_line_that_says_what_was_expected(text: str) -> None:
    try:
        edits, said = Edits.parse(text), "edit '"
    except ValueError as error:
        edits, said = Edits(), str(error)
    assert Edits.parse(str(edits)) == edits
    assert said.startswith(("edit '", 'edit "'))
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("glucose*2", "unknown actuator 'glucose'; known: perfusion, feed, bleed, cytokine_dose"),
        ("hold pump at 3", "unknown actuator 'pump'"),
        ("feed*10%", "expected + or - before a percentage"),
        ("perfusion=1 IU/mL/d", "expected VVD or 1/d"),
        ("feed*2 VVD", "only where a rate is set"),
        ("harvest on 12; harvest on 13", "given twice"),
        ("harvest on 300", "expected days since inoculation, 0 to 100"),
        ("harvest", "is not understood"),
        ("feed*1.1 for 6", "is not understood"),
        ("feed*1.1 during 6h", "is not understood; expected ACTUATOR*NUMBER"),
    ],
)
def test_what_is_no_edit_is_refused_in_one_line(text: str, words: str) -> None:
    with pytest.raises(ValueError, match="edit") as refused:
        Edits.parse(text)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("feed*1.1 from 20", "begins on day 20, the harvest is on day 14 at the latest"),
        ("feed*1.1 from 13; harvest on 12", "begins on day 13, the harvest is on day 12"),
        ("feed*1.1 from 2 until 3", "is over on day 3, now is day 6.5"),
        ("feed*1.1 for 0.04h", "too short to be forecast"),
        ("feed*1.1 to 3", "ends on day 3, before it begins on day 6.5"),
        ("harvest on 3", "has passed, now is day 6.5"),
        ("harvest on 60", "lies past the horizon; expected day 34.5 at most"),
    ],
)
def test_an_edit_that_does_not_fit_the_batch_is_refused(batch: Batch, text: str, words: str) -> None:
    with pytest.raises(ValueError, match="edit") as refused:
        whatif(batch, NOW, text, RECIPE, n=4)
    assert words in str(refused.value)


def test_a_batch_past_its_harvest_has_nothing_ahead(batch: Batch) -> None:
    with pytest.raises(ValueError, match="nothing lies ahead"):
        whatif(batch, 14.5, "", RECIPE, n=4)


def test_a_finished_batch_takes_no_harvest() -> None:
    with pytest.raises(ValueError, match="has been harvested"):
        parse_edits("perfusion*2 from 8; harvest on 12")


# --- paired futures --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["", "perfusion*1", "feed*1.1 for 6h", "perfusion*1 from 7.03 until 9.91", "harvest on 14"]
)
def test_an_edit_that_is_none_changes_nothing_exactly(batch: Batch, text: str) -> None:
    """The recipe feeds nothing, so a tenth more is nothing; the last counts of day 14 come too late to harvest by."""
    never = replace(batch, process=replace(PROCESS, recipe=replace(PROCESS.recipe, harvest_cells=1e9)))
    found = whatif(never, NOW, text, RECIPE, n=60, seed=4)
    for band in found.delta.values():
        assert not np.any([band.q05, band.q50, band.q95])
    for shift in (*found.harvested.values(), found.harvest, found.medium):
        assert shift.delta == (0.0, 0.0, 0.0)
        assert shift.before == shift.after
    for change in (*found.p_pass.values(), found.p_release):
        assert change == (change.before, change.before, 0.0, 0.0)


def test_without_edits_it_is_the_plain_forecast(batch: Batch) -> None:
    found, plain = whatif(batch, NOW, "", RECIPE, n=50, seed=2), forecast(batch, NOW, RECIPE, n=50, seed=2)
    assert found.before.p_pass == plain.p_pass
    assert found.before.harvest == plain.harvest
    for name, band in plain.bands.items():
        np.testing.assert_array_equal(found.before.bands[name].q50, band.q50)


def test_a_harvest_day_alone_changes_no_state_and_every_future_is_harvested_then(batch: Batch) -> None:
    for day in (12.03, 17.0):
        pair = run_pair(batch, NOW, Edits.parse(f"harvest on {day}"), RECIPE, n=40, seed=1)
        np.testing.assert_array_equal(pair.before.states, pair.after.states)
        np.testing.assert_allclose(pair.after.t[pair.after.harvest], day)
        assert pair.before.t[pair.before.harvest].max() <= 14.0
        np.testing.assert_array_equal(pair.before.t, pair.after.t)


def test_instants_that_an_edit_adds_keep_the_chances_of_the_others(batch: Batch) -> None:
    """A stretch that is divided carries the same noise over its whole: the same futures, but for where it falls within."""

    def still(t: float, x: object) -> Control:
        return Control(perfusion=0.5, cytokine_dose=300.0)

    plain, divided = (run_futures(batch, NOW, still, n=300, seed=1, harvest_at=9.0, also=a) for a in ((), (7.03, 8.31)))
    assert divided.t.size == plain.t.size + 2
    one, two = np.log(plain.harvested.viable), np.log(divided.harvested.viable)
    assert np.std(one - two) < 0.05 * np.std(one)
    assert np.std(two) == pytest.approx(np.std(one), rel=0.02)


def test_small_edits_are_linear(batch: Batch) -> None:
    """Twice the edit, twice the effect, future by future; and up is down with the other sign.

    Where what raises lactate and what lowers it cancel, only the curvature is left: a 200th of the largest effect.
    """
    fed = replace(batch, process=replace(PROCESS, limits=replace(PROCESS.limits, feed_max=10.0)))

    def lactate(text: str) -> np.ndarray:
        pair = run_pair(fed, NOW, Edits.parse(text), lambda t, x: Control(0.5, 0.1, 0.0, 300.0), n=50, seed=1)
        return pair.after.harvested.lactate - pair.before.harvested.lactate

    once, twice, less = (lactate(f"feed{op}{size}% for 1d") for op, size in ("+1", "+2", "-1"))
    assert np.abs(once).max() > 1e-4
    np.testing.assert_allclose(twice, 2.0 * once, rtol=0.05, atol=5e-3 * np.abs(once).max())
    np.testing.assert_allclose(less, -once, rtol=0.05, atol=5e-3 * np.abs(once).max())


def test_pairing_takes_the_chance_out_of_the_difference(batch: Batch) -> None:
    """Over seeds, the paired difference scatters far less than that of unpaired forecasts; its stated error is its scatter."""

    def glucose(text: str, seed: int) -> np.ndarray:
        pair = run_pair(batch, NOW, Edits.parse(text), RECIPE, n=40, seed=seed)
        at = int(np.argmin(np.abs(pair.after.t - 8.0)))
        return np.array([pair.before.states[at, 3].mean(), pair.after.states[at, 3].mean()])

    means = np.array([glucose("perfusion*1.2 for 12h", s) for s in range(3000, 3008)])
    paired, unpaired = means[:, 1] - means[:, 0], means[:, 1] - np.roll(means[:, 0], 1)
    assert paired.mean() > 0.0
    assert np.var(paired) < 0.05 * np.var(unpaired)


def test_the_error_of_a_changed_probability_is_that_of_its_pairs(batch: Batch) -> None:
    found = whatif(batch, NOW, "perfusion*0.5", RECIPE, n=200, seed=1)
    c = found.p_release
    assert c.delta == pytest.approx(c.after - c.before)
    assert 0.0 < c.se < np.sqrt((c.before * (1 - c.before) + c.after * (1 - c.after)) / 199)
    seeds = [whatif(batch, NOW, "perfusion*0.5", RECIPE, n=60, seed=s).p_release for s in range(3000, 3008)]
    assert np.mean([s.se for s in seeds]) == pytest.approx(np.std([s.delta for s in seeds], ddof=1), rel=0.7)


def test_a_pump_does_no_more_than_it_can(batch: Batch) -> None:
    found = whatif(batch, NOW, "perfusion=9 for 1d", RECIPE, n=20, seed=1)
    most = whatif(batch, NOW, f"perfusion={PROCESS.limits.perfusion_max} for 1d", RECIPE, n=20, seed=1)
    assert (found.capped, most.capped) == (("perfusion",), ())
    assert found.medium == most.medium


# --- golden ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def thin() -> Batch:
    """Next to no cells, 5 mM glucose, a feed of 20 mM, no noise: glucose follows dG/dt = F (20 - G)."""
    theta = PROCESS.theta._replace(medium=PROCESS.theta.medium._replace(feed_glucose=20.0))
    process = replace(
        PROCESS, theta=theta, limits=replace(PROCESS.limits, feed_max=10.0), noise=Coordinates(*[0.0] * 13),
        initial=PROCESS.initial._replace(car_positive=1e-7, car_negative=1e-7, dead=1e-7, glucose=5.0),
        initial_sd=Coordinates(*[1e-9] * 13),
    )  # fmt: skip
    return start("thin", process, preset_prior(process))


def test_a_little_feed_raises_glucose_by_its_first_order_value(thin: Batch) -> None:
    """.005/h more of 20 mM over 5 mM for six hours: +.45 mM at first order, 15 (1 - exp(-.03)) exactly."""
    found = whatif(thin, 0.0, "feed+0.12 for 6h; harvest on 0.25", lambda t, x: Control(), n=20, seed=1)
    shift = found.delta["glucose"].q50[-1]
    assert shift == pytest.approx(0.45, rel=0.02)
    assert shift == pytest.approx(15.0 * (1.0 - exp(-0.03)), rel=1e-4)


def test_ten_per_cent_more_of_a_feed_for_six_hours(thin: Batch) -> None:
    """From .05/h: glucose ends at 20 - 15 exp(-F t), with F t .30 and .33; nothing but the feed has changed."""
    twin = Twin(thin)
    found = twin.whatif(0.0, ["feed +10 % for six hours", "harvest on 0.25"], Control(feed=1.2), n=20, seed=1)
    shift = found.delta["glucose"]
    assert shift.q50[-1] == pytest.approx(15.0 * (exp(-0.30) - exp(-0.33)), rel=1e-4)
    assert shift.q95[-1] - shift.q05[-1] < 1e-6
    assert set(found.harvested) == set(found.delta) == set(QUANTITIES)
