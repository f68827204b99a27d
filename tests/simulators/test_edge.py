"""The edge against the safety contract: S1 expiry, S2 caps and budget, S3 NaN, S6 fencing, S7 once."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulators.edge import (
    LONGEST,
    REMEMBERED,
    Budget,
    Caps,
    EdgeSettings,
    EdgeState,
    Override,
    ceiling,
    command,
    edge_settings,
    harvest,
    resolve,
)  # fmt: skip
from twin.bioreactor import Control
from twin.config import load_config, load_recipe
from twin.evidence import Reading

LIMITS = load_config("car_nk").limits
RECIPE = load_recipe("cspr_100")
OPEN = Budget(day=2.0, batch=8.0, cytokine_day=300.0, cytokine_batch=2000.0)
SETTINGS = edge_settings(RECIPE, LIMITS, Caps(2.0, 3.0, 0.0, 0.5), OPEN)
READINGS = {"viable_density": Reading(5.0, 3.9, 4.0)}  # the recipe perfuses .5 VVD
HOUR = 1 / 24


def ask(rate: float = 0.8, actuator: str = "perfusion", **other: object) -> Override:
    content = {"cmd_id": "c1", "epoch": 1, "seq": 1, "valid_from": 4.0, "valid_until": 4.3, "recipe_version": 1} | other
    return Override(actuator=actuator, rate=rate, **content)  # type: ignore[arg-type]


def rate(state: EdgeState, now: float = 4.0, settings: EdgeSettings = SETTINGS, name: str = "perfusion") -> float:
    return float(getattr(resolve(state, now, HOUR, settings, READINGS)[1].control, name))


def accepted(o: Override, state: EdgeState | None = None, settings: EdgeSettings = SETTINGS) -> EdgeState:
    state, ack = command(state or running(settings), o, 4.0, settings, READINGS, 1.0)
    assert ack.accepted, ack.reason
    return state


def running(settings: EdgeSettings = SETTINGS) -> EdgeState:
    return resolve(EdgeState(), 4.0 - HOUR, HOUR, settings, READINGS)[0]


def test_alone_the_edge_runs_its_recipe() -> None:
    state, done = resolve(EdgeState(), 4.0, HOUR, SETTINGS, READINGS)
    assert done.control == Control(0.5, 0.0, 0.0, 300.0)
    assert {name for name, _, _ in done.readbacks} == {"perfusion", "feed", "bleed", "cytokine_dose"}
    assert all(cmd is None for _, _, cmd in done.readbacks)
    assert state.rates == done.control


def test_an_override_holds_while_valid_and_lapses_by_itself() -> None:
    state = accepted(ask(0.8))
    assert rate(state, 4.0) == 0.8
    assert rate(state, 4.25) == 0.8
    assert rate(state, 4.29) == 0.5  # it would end within the hour that a rate is held
    assert rate(state, 4.3) == 0.5
    assert rate(state, 9.0) == 0.5


def test_an_override_that_ends_with_the_step_still_acts() -> None:
    state = accepted(ask(0.8, valid_until=4.0 + 2 * HOUR - 1e-9))  # as rounded on the wire
    assert [rate(state, 4.0 + k * HOUR) for k in range(3)] == [0.8, 0.8, 0.5]


def test_an_override_does_not_act_before_its_time() -> None:
    state = accepted(ask(0.8, valid_from=4.1))
    assert rate(state, 4.0) == 0.5
    assert rate(state, 4.2) == 0.8


def test_overrides_are_per_actuator() -> None:
    state = accepted(ask(200.0, "cytokine_dose"))
    _, done = resolve(state, 4.0, HOUR, SETTINGS, READINGS)
    assert (done.control.perfusion, done.control.cytokine_dose) == (0.5, 200.0)
    assert {n: c for n, _, c in done.readbacks} == {"cytokine_dose": "c1"}


def test_a_newer_override_replaces_the_older() -> None:
    state = accepted(ask(0.8))
    state = accepted(ask(0.6, cmd_id="c2", seq=2), state)
    assert rate(state) == 0.6


def test_the_ack_carries_the_capped_rate() -> None:
    _, ack = command(running(), ask(1.9), 4.0, SETTINGS, READINGS, 1.0)
    assert ack.accepted
    assert ack.applied_rate == pytest.approx(1.5)  # 3 x the recipe's .5
    assert ack.reason.startswith("capped")


def test_caps_are_the_least_of_hardware_recipe_maximum_and_recipe_now() -> None:
    assert ceiling("perfusion", Control(0.5), SETTINGS) == 1.5
    assert ceiling("perfusion", Control(1.5), SETTINGS) == 2.0  # hardware
    assert ceiling("cytokine_dose", Control(0.5, 0, 0, 300.0), SETTINGS) == 600.0
    assert ceiling("feed", Control(), SETTINGS) == 0.0  # what the recipe never does, no override does
    low = edge_settings(
        replace(RECIPE, numbers={**RECIPE.numbers, "perfusion_max": (0.6,)}), LIMITS, Caps(1.5, 9.0), OPEN
    )
    assert ceiling("perfusion", Control(0.5), low) == pytest.approx(0.9)  # k1 x the recipe's maximum
    floor = edge_settings(RECIPE, LIMITS, Caps(floor=0.3), OPEN)
    assert ceiling("perfusion", Control(0.0), floor) == 0.3


def test_a_rate_changes_only_so_fast() -> None:
    slow = edge_settings(RECIPE, LIMITS, Caps(2.0, 4.0, 0.0, 0.1), OPEN)  # .2 VVD a step
    state = accepted(ask(1.5, valid_until=4.9), running(slow), slow)
    seen = []
    for k in range(6):
        state, done = resolve(state, 4.0 + k * HOUR, HOUR, slow, READINGS)
        seen.append(done.control.perfusion)
    assert seen == pytest.approx([0.7, 0.9, 1.1, 1.3, 1.5, 1.5])


def test_at_budget_zero_every_override_is_advisory() -> None:
    shut = edge_settings(RECIPE, LIMITS)
    for o in (ask(0.8), ask(0.1), ask(1.0, "harvest")):
        state, ack = command(running(shut), o, 4.0, shut, READINGS, 1.0)
        assert not ack.accepted
        assert ack.reason.startswith("advisory")
        assert rate(state, settings=shut) == 0.5


def test_the_budget_of_a_day_is_never_exceeded_and_comes_back_the_next() -> None:
    tight = edge_settings(RECIPE, LIMITS, Caps(), Budget(day=0.1, batch=0.15))
    state, above, by_day = running(tight), 0.0, [0.0, 0.0, 0.0]
    for k in range(72):
        now = 4.0 + k * HOUR
        o = ask(1.5, cmd_id=f"c{k}", seq=k + 1, valid_from=now, valid_until=now + 0.3)
        state, _ = command(state, o, now, tight, READINGS, 1.0)
        state, done = resolve(state, now, HOUR, tight, READINGS)
        above += (done.control.perfusion - 0.5) * HOUR
        by_day[k // 24] += (done.control.perfusion - 0.5) * HOUR
    assert by_day == pytest.approx([0.1, 0.05, 0.0])
    assert above == pytest.approx(0.15)


def test_below_the_recipe_costs_no_budget() -> None:
    state = accepted(ask(0.2))
    state, done = resolve(state, 4.0, HOUR, SETTINGS, READINGS)
    assert done.control.perfusion == 0.2
    assert state.spent == ()


def test_the_same_command_acts_once_and_is_answered_as_before() -> None:
    state = accepted(ask(0.8))
    first = state.answers["c1"]
    later, ack = command(state, ask(1.4, valid_from=5.0, valid_until=5.3, seq=9), 5.0, SETTINGS, READINGS, 1.0)
    assert ack == first
    assert later is state
    assert rate(later, 5.0) == 0.5


def test_a_lower_epoch_is_fenced_off() -> None:
    state = accepted(ask(0.8, epoch=5))
    _, ack = command(state, ask(0.6, cmd_id="old", epoch=4, seq=99), 4.0, SETTINGS, READINGS, 1.0)
    assert not ack.accepted
    assert ack.reason.startswith("fenced")


def test_a_higher_epoch_silences_what_the_old_writer_left() -> None:
    state = accepted(ask(0.8, epoch=1))
    state = accepted(ask(250.0, "cytokine_dose", cmd_id="new", epoch=2, seq=1), state)
    assert rate(state) == 0.5


@pytest.mark.parametrize(
    ("o", "reason"),
    [
        (ask(math.nan), "out_of_range"),
        (ask(math.inf), "out_of_range"),
        (ask(-0.1), "out_of_range"),
        (ask(valid_until=math.nan), "not_yet_valid"),
        (ask(valid_from=math.nan), "not_yet_valid"),
        (ask(valid_from=-math.inf), "not_yet_valid"),
        (ask(valid_until=3.9, valid_from=3.5), "expired"),
        (ask(valid_from=6.0, valid_until=6.3), "not_yet_valid"),
        (ask(valid_until=4.0 + LONGEST + 0.1), "too_long"),
        (ask(recipe_version=2), "recipe_changed"),
        (ask(actuator="heater"), "unknown_actuator"),
    ],
)
def test_refusals_carry_a_reason_and_change_nothing(o: Override, reason: str) -> None:
    state, ack = command(running(), o, 4.0, SETTINGS, READINGS, 1.0)
    assert not ack.accepted
    assert ack.applied_rate is None
    assert ack.reason.startswith(reason)
    assert state.overrides == {}
    assert resolve(state, 4.0, HOUR, SETTINGS, READINGS)[1].control == Control(0.5, 0.0, 0.0, 300.0)


def test_reordered_commands_are_refused() -> None:
    state = accepted(ask(0.8, seq=5))
    _, ack = command(state, ask(0.6, cmd_id="late", seq=4), 4.0, SETTINGS, READINGS, 1.0)
    assert ack.reason.startswith("out_of_order")


def test_answers_are_remembered_within_bounds() -> None:
    state = running()
    for k in range(REMEMBERED + 10):
        state, _ = command(state, ask(math.nan, cmd_id=f"c{k}"), 4.0, SETTINGS, READINGS, 1.0)
    assert len(state.answers) == REMEMBERED
    assert f"c{REMEMBERED + 9}" in state.answers


def test_rates_are_read_back_when_they_change_and_every_six_hours() -> None:
    state, times = EdgeState(), []
    for k in range(20):
        state, done = resolve(state, 4.0 + k * HOUR, HOUR, SETTINGS, READINGS)
        times += [k for name, _, _ in done.readbacks if name == "perfusion"]
    assert times == [0, 6, 12, 18]


def test_harvest_follows_the_recipe_an_override_and_the_latest_day() -> None:
    counted = {"viable_density": Reading(20.5, 9.0, 9.1)}
    few = {"viable_density": Reading(12.0, 9.0, 9.1)}
    state = running()
    assert harvest(state, 9.2, SETTINGS, few, 1.0) is None
    assert harvest(state, 9.2, SETTINGS, counted, 1.0).reason == "dose counted"  # type: ignore[union-attr]
    assert harvest(state, 14.0, SETTINGS, few, 1.0).reason == "latest day"  # type: ignore[union-attr]
    state, ack = command(running(), ask(1.0, "harvest"), 4.0, SETTINGS, few, 1.0)
    assert ack.accepted
    now = state
    assert harvest(now, 4.1, SETTINGS, few, 1.0) == ("override", "c1")
    assert harvest(now, 4.4, SETTINGS, few, 1.0) is None
    held = accepted(ask(0.0, "harvest"))
    assert harvest(held, 4.1, SETTINGS, counted, 1.0) is None
    assert harvest(held, 4.4, SETTINGS, counted, 1.0).reason == "dose counted"  # type: ignore[union-attr]


@pytest.mark.parametrize("counted", [7.0, 9.99, math.nan, math.inf, None])
def test_an_early_harvest_needs_half_of_the_dose_on_the_edges_own_count(counted: float | None) -> None:
    """A probe that reads five times too much must not end a batch of 7e6 cells/mL: nothing undoes a harvest."""
    readings = {} if counted is None else {"viable_density": Reading(counted, 3.9, 4.0)}
    state, ack = command(running(), ask(1.0, "harvest"), 4.0, SETTINGS, readings, 1.0)
    assert not ack.accepted
    assert ack.reason.startswith("not_counted")
    assert harvest(state, 4.0, SETTINGS, {"viable_density": Reading(7.0, 3.9, 4.0)}, 1.0) is None


def test_an_early_harvest_on_a_supporting_count_a_held_harvest_and_the_last_day_are_taken() -> None:
    half, few = {"viable_density": Reading(10.0, 3.9, 4.0)}, {"viable_density": Reading(3.0, 3.9, 4.0)}
    state, ack = command(running(), ask(1.0, "harvest"), 4.0, SETTINGS, half, 1.0)
    assert ack.accepted
    assert harvest(state, 4.0, SETTINGS, half, 1.0) == ("override", "c1")
    assert harvest(state, 4.0, SETTINGS, few, 1.0) is None  # corrected in between: looked at again
    assert command(running(), ask(0.0, "harvest"), 4.0, SETTINGS, few, 1.0)[1].accepted
    last = ask(1.0, "harvest", valid_from=14.0, valid_until=14.3)
    assert command(running(), last, 14.0, SETTINGS, few, 1.0)[1].accepted


OVERRIDES = st.builds(
    Override,
    cmd_id=st.text(max_size=3), epoch=st.integers(0, 3), seq=st.integers(0, 9),
    actuator=st.sampled_from(["perfusion", "feed", "bleed", "cytokine_dose", "harvest", "valve"]),
    rate=st.floats(allow_nan=True, allow_infinity=True), valid_from=st.floats(3.5, 5.5), valid_until=st.floats(3.5, 6.0),
    recipe_version=st.integers(1, 2),
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.lists(OVERRIDES, max_size=12), st.floats(0.0, 0.5), st.floats(0.0, 40.0))
def test_no_sequence_of_commands_breaks_caps_or_budget(commands: list[Override], day: float, density: float) -> None:
    tight = edge_settings(RECIPE, LIMITS, Caps(), Budget(day, 2 * day, 100 * day, 200 * day))
    readings = {"viable_density": Reading(density, 3.9, 4.0)}
    state = EdgeState()
    own = min(2.0, 0.1 * density)
    above = {"perfusion": 0.0, "cytokine_dose": 0.0}
    for k in range(24):
        now = 4.0 + k * HOUR
        for o in commands[k // 2 : k // 2 + 1]:
            state, _ = command(state, o, now, tight, readings, 1.0)
        state, done = resolve(state, now, HOUR, tight, readings)
        u = done.control
        assert all(math.isfinite(v) and v >= 0.0 for v in u)
        assert u.perfusion <= max(own, min(2.0, 3.0 * own)) + 1e-12
        assert (u.feed, u.bleed) == (0.0, 0.0)
        above["perfusion"] += max(0.0, u.perfusion - own) * HOUR
        above["cytokine_dose"] += max(0.0, u.cytokine_dose - 300.0) * HOUR
    assert above["perfusion"] <= day + 1e-9
    assert above["cytokine_dose"] <= 100 * day + 1e-9
