"""Every fault does what its name says, where and when it is told to, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulators import Fault, Recording, afflict, load_scenario, record
from simulators.faults import CONTRACT, SENSOR_MODES, TROUBLE, Mishaps, slips, trouble
from simulators.instruments import SIGNALS
from tests.simulators.faulty import PROCESS, of, quiet
from twin.evidence import Event, Measurement
from twin.sensors import CHANNELS, impossible

TARGETS = CONTRACT
ONSET, UNTIL = 4.0, 9.0


@pytest.fixture(scope="module")
def healthy() -> Recording:
    return record(PROCESS, 3, seed=3, recipe="time_steps", days=11.0)


@pytest.fixture(scope="module")
def perfect() -> Recording:
    return record(PROCESS, 3, seed=3, recipe="time_steps", days=11.0, scenario=quiet())


def told(base: Recording, fault: Fault) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Times, healthy and faulty values (NaN: nothing was said) of the readings drawn while the target is faulty."""
    before, after = of(base.facts, fault.target), of(afflict(base, (fault,)).facts, fault.target)
    assert set(after) <= set(before)
    rows = [(t, v, after[i][1] if i in after else np.nan) for i, (t, v) in before.items() if fault.active(t)]
    assert rows
    times, right, wrong = np.array(sorted(rows)).T
    return times, right, wrong


# --- one mode after the other ----------------------------------------------------------------------------------------


def scaled(target: str, value: np.ndarray) -> np.ndarray:
    """On the scale on which the channel is compared."""
    return np.log(value) if target in CHANNELS and CHANNELS[target].scale == "log" else value


@pytest.mark.parametrize("target", TARGETS)
def test_a_sensor_that_is_off_says_nothing(target: str, healthy: Recording) -> None:
    assert np.isnan(told(healthy, Fault(target, "off", ONSET, UNTIL))[2]).all()


@pytest.mark.parametrize("target", TARGETS)
def test_a_stuck_sensor_repeats_what_it_said_last(target: str, healthy: Recording) -> None:
    fault = Fault(target, "stuck", ONSET, UNTIL)
    wrong = told(healthy, fault)[2]
    last = max((t, v) for t, v in of(healthy.facts, target).values() if t < ONSET)[1]
    assert set(wrong) == {last}


@pytest.mark.parametrize("target", TARGETS)
def test_garbage_fills_the_plausible_range_and_follows_nothing(target: str, healthy: Recording) -> None:
    low, high = trouble(target).plausible
    wrong = np.concatenate([told(healthy, Fault(target, "garbage", 0.0, seed=s))[2] for s in range(60)])
    assert low <= wrong.min() < low + 0.15 * (high - low)
    assert high >= wrong.max() > high - 0.15 * (high - low)
    assert wrong.mean() == pytest.approx(0.5 * (low + high), abs=5 * 0.29 * (high - low) / math.sqrt(len(wrong)))
    assert not any(impossible(target, v) for v in wrong if target in CHANNELS)


@pytest.mark.parametrize("target", TARGETS)
def test_a_bias_is_constant_on_the_channels_own_scale(target: str, healthy: Recording) -> None:
    fault = Fault(target, "bias", ONSET, UNTIL)
    _, right, wrong = told(healthy, fault)
    assert scaled(target, wrong) - scaled(target, right) == pytest.approx(
        np.full(len(right), fault.magnitude), abs=1e-9
    )
    assert abs(fault.magnitude) > 4.0 * trouble(target).noise or target == "car_fraction"


@pytest.mark.parametrize("target", TARGETS)
def test_a_drift_grows_from_zero_at_its_rate(target: str, healthy: Recording) -> None:
    fault = Fault(target, "drift", ONSET, UNTIL)
    times, right, wrong = told(healthy, fault)
    error = scaled(target, wrong) - scaled(target, right)
    assert error == pytest.approx(fault.magnitude * (times - ONSET), abs=1e-9)
    assert 3.0 * fault.magnitude == pytest.approx(Fault(target, "bias", ONSET).magnitude)


@pytest.mark.parametrize("target", [t for t in TARGETS if t != "temperature"])
def test_a_slow_sensor_lags_what_is_true(target: str, perfect: Recording) -> None:
    fault = Fault(target, "slow", ONSET, UNTIL, size=0.3)
    times, right, wrong = told(perfect, fault)
    before, x = max((t, v) for t, v in of(perfect.facts, target).values() if t < ONSET)
    steps = target.startswith("readback")
    if not steps:
        x = float(np.interp(ONSET, [before, times[0]], [x, right[0]]))
    at, y = ONSET, x
    for time, value, lagging in zip(times, right, wrong, strict=True):  # Euler in a thousand parts: another route
        for k in range(1000):
            signal = x if steps else x + (value - x) * (k + 0.5) / 1000.0
            y += (time - at) / 1000.0 * (signal - y) / 0.3
        at, x = time, value
        assert lagging == pytest.approx(y, rel=2e-3, abs=1e-3 * abs(value))
    assert np.abs(wrong - right).max() > 0.0


@pytest.mark.parametrize("target", TARGETS)
def test_a_delayed_sensor_says_what_it_said_before(target: str, healthy: Recording) -> None:
    fault = Fault(target, "delayed", ONSET, UNTIL)
    history = sorted(of(healthy.facts, target).values())
    for time, _, wrong in zip(*told(healthy, fault), strict=True):
        old = [v for t, v in history if t <= time - fault.magnitude]
        assert wrong == (old[-1] if old else history[0][1])


@pytest.mark.parametrize("target", TARGETS)
def test_an_intermittent_sensor_loses_seven_in_ten_and_alters_none(target: str, healthy: Recording) -> None:
    rows = [told(healthy, Fault(target, "intermittent", ONSET, UNTIL, seed=s)) for s in range(60)]
    right, wrong = np.concatenate([r[1] for r in rows]), np.concatenate([r[2] for r in rows])
    lost = np.isnan(wrong)
    assert lost.mean() == pytest.approx(0.7, abs=4 * math.sqrt(0.21 / len(lost)))
    assert (wrong[~lost] == right[~lost]).all()


@pytest.mark.parametrize("target", [t for t in TARGETS if t not in ("viability", "readback:perfusion")])
def test_spikes_are_rare_far_out_and_of_either_sign(target: str, healthy: Recording) -> None:
    rows = [told(healthy, Fault(target, "spike", ONSET, UNTIL, seed=s)) for s in range(60)]
    right, wrong = np.concatenate([r[1] for r in rows]), np.concatenate([r[2] for r in rows])
    out = wrong != right
    assert out.mean() == pytest.approx(0.1, abs=4 * math.sqrt(0.09 / len(out)))
    assert (wrong > right).any() and (wrong < right).any()
    size = np.abs(scaled(target, wrong[out]) - scaled(target, right[out])) / trouble(target).noise
    assert size.min() >= 8.0 - 1e-6
    assert size.max() <= 15.0 + 1e-6


@pytest.mark.parametrize("target", TARGETS)
def test_unit_slips_multiply_by_each_plausible_factor(target: str, healthy: Recording) -> None:
    several = slips(target, ONSET, UNTIL)
    assert len({f.magnitude for f in several}) == len(several) >= 2
    assert min(f.magnitude for f in several) < 1.0 < max(f.magnitude for f in several)
    for fault in several:
        _, right, wrong = told(healthy, fault)
        assert wrong == pytest.approx(fault.magnitude * right)


def test_molar_slips_are_those_of_glucose_and_lactate() -> None:
    assert Fault("raman_glucose", "unit_slip", 1.0).magnitude == pytest.approx(1 / 5.55, rel=1e-3)
    assert Fault("glucose", "unit_slip", 1.0).magnitude == pytest.approx(0.180156)
    assert Fault("raman_lactate", "unit_slip", 1.0).magnitude == pytest.approx(0.09008)
    assert {1e6, 1e-6, 1e3, 1e-3, 10.0, 0.1} == set(trouble("viable_density").slips)


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_finite_comes_from_a_sensor_that_says_nan(target: str, healthy: Recording) -> None:
    fault = Fault(target, "nan", 0.0)
    after = [v for _, v in of(afflict(healthy, (fault,)).facts, target).values()]
    assert len(after) == len(of(healthy.facts, target))
    assert not any(math.isfinite(v) for v in after)
    if len(after) > 50:
        assert {str(v) for v in after} == {"nan", "inf", "-inf"}


@pytest.mark.parametrize("target", TARGETS)
def test_a_negative_sensor_turns_the_sign(target: str, healthy: Recording) -> None:
    _, right, wrong = told(healthy, Fault(target, "negative", ONSET, UNTIL))
    assert (wrong == -right).all()


@pytest.mark.parametrize("target", TARGETS)
def test_a_quantised_sensor_knows_only_steps(target: str, healthy: Recording) -> None:
    step = trouble(target).step
    _, right, wrong = told(healthy, Fault(target, "quantised", ONSET, UNTIL))
    assert wrong / step == pytest.approx(np.round(wrong / step), abs=1e-9)
    assert np.abs(wrong - right).max() <= 0.5 * step + 1e-9
    assert (wrong != right).any()


# --- closed forms ----------------------------------------------------------------------------------------------------


def said(fault: Fault, rows: list[tuple[float, float]], truth: Callable[[float], float] | None = None) -> list[float]:
    mishaps = Mishaps((fault,), 0)
    return [mishaps.say(fault.target, t, v, truth(t) if truth else v) or 0.0 for t, v in rows]


TIMES = st.lists(st.floats(0.0, 10.0), min_size=2, max_size=20, unique=True).map(sorted)


@settings(max_examples=200, deadline=None)
@given(TIMES, st.floats(0.5, 9.0), st.floats(0.05, 3.0), st.floats(10.0, 20.0), st.floats(-1.0, 1.0))
def test_a_ramp_through_a_lag_is_the_textbooks_whatever_the_sampling(
    times: list[float], onset: float, tau: float, start: float, slope: float
) -> None:
    fault = Fault("raman_glucose", "slow", onset, size=tau)
    ramp = said(fault, [(t, start + slope * t) for t in times])
    if times[0] >= onset:
        onset = times[0]  # never read before: quick until the first reading
    for t, value in zip(times, ramp, strict=True):
        behind = slope * tau * (1.0 - math.exp(-max(0.0, t - onset) / tau))
        assert value == pytest.approx(start + slope * t - behind, rel=1e-9)


@settings(max_examples=100, deadline=None)
@given(TIMES, st.floats(0.1, 5.0), st.floats(0.05, 2.0), st.floats(0.0, 2.0), st.floats(0.0, 2.0))
def test_a_rate_that_steps_is_followed_exponentially(
    times: list[float], onset: float, tau: float, before: float, after: float
) -> None:
    rows = sorted({(0.0, before), (onset, after), *((onset + t, after) for t in times)})
    wrong = said(Fault("readback:perfusion", "slow", onset, size=tau), rows)
    for (t, _), value in zip(rows[1:], wrong[1:], strict=True):
        assert value == pytest.approx(after + (before - after) * math.exp(-(t - onset) / tau), abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(["ph", "capacitance"]),
    st.floats(-0.5, 0.5),
    st.floats(-0.5, 0.5),
    st.floats(6.5, 7.5),
    st.floats(0, 9),
)
def test_faults_on_one_target_act_in_their_order(channel: str, a: float, b: float, value: float, at: float) -> None:
    both = Mishaps((Fault(channel, "bias", 0.0, size=a), Fault(channel, "drift", 0.0, size=b)), 0)
    expected = value * math.exp(a + b * at) if channel == "capacitance" else min(max(value + a, 5.0), 9.0) + b * at
    low, high = CHANNELS[channel].low, CHANNELS[channel].high
    assert both.say(channel, at, value, value) == pytest.approx(min(max(expected, low), high))


@pytest.mark.parametrize("mode", ["bias", "drift", "spike", "slow", "delayed", "garbage", "quantised", "stuck"])
def test_a_device_saturates_where_physics_ends(mode: str, healthy: Recording) -> None:
    for target in TARGETS:
        if target.startswith("readback"):
            continue
        size = {"bias": 50.0, "drift": 50.0, "spike": 1e4}.get(mode)
        wrong = told(healthy, Fault(target, mode, ONSET, UNTIL, size))[2]
        assert [why for v in wrong if (why := impossible(target, v))] == []


# --- nothing else changes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
def test_all_other_facts_and_the_vessel_are_untouched(target: str, healthy: Recording) -> None:
    name = target.rpartition(":")[2]
    for mode in SENSOR_MODES:
        faulty = afflict(healthy, (Fault(target, mode, ONSET, UNTIL),))
        known = {f.id: f for f in faulty.facts}
        for f in healthy.facts:
            mine = name in (getattr(f, "channel", None), getattr(f, "actuator", None))
            drawn = f.sampled_at if isinstance(f, Measurement) else f.at
            if not (mine and ONSET <= drawn < UNTIL):
                assert known[f.id] == f
        assert [f.id for f in healthy.facts if f.id in known] == list(known)


@pytest.mark.parametrize("mode", SENSOR_MODES)
def test_a_fault_put_into_a_recording_is_the_fault_played(mode: str, healthy: Recording) -> None:
    targets = ("raman_glucose", "viable_density", "readback:perfusion", "temperature")
    faults = (*(Fault(t, mode, ONSET, UNTIL, seed=7) for t in targets), Fault("raman_glucose", "drift", 2.0))
    played = record(PROCESS, 3, seed=3, recipe="time_steps", days=11.0, faults=faults)
    put = afflict(healthy, faults)
    assert repr(put.facts) == repr(played.facts)
    assert repr(put.facts) != repr(healthy.facts)
    for name, column in healthy.truth.items():
        assert column.tobytes() == played.truth[name].tobytes()
    assert put.signals == played.signals == healthy.signals


def test_what_changes_the_batch_cannot_be_put_in_afterwards(healthy: Recording) -> None:
    with pytest.raises(ValueError, match="changes the batch itself"):
        afflict(healthy, (Fault("pump:perfusion", "clog", 1.0),))
    counted = record(PROCESS, 3, seed=3, recipe="cspr_100", days=1.0)
    with pytest.raises(ValueError, match="viable_density/bias"):
        afflict(counted, (Fault("viable_density", "bias", 0.0),))
    by_lactate = record(PROCESS, 3, seed=3, recipe="lactate_p_8", days=1.0)
    assert by_lactate.heeded == {"lactate"}
    assert record(PROCESS, 3, recipe="time_steps", days=1.0, ignore_harvest=False).heeded == {"viable_density"}
    once = afflict(healthy, (Fault("ph", "bias", 1.0),))
    with pytest.raises(ValueError, match="has faults already"):
        afflict(once, (Fault("ph", "bias", 1.0),))


def test_the_same_seeds_give_the_same_lies_and_others_others(healthy: Recording) -> None:
    fault = Fault("ph", "garbage", ONSET)
    first = repr(afflict(healthy, (fault,)).facts)
    assert first == repr(afflict(healthy, (fault,)).facts)
    assert first != repr(afflict(healthy, (replace(fault, seed=1),)).facts)
    elsewhere = told(record(PROCESS, 3, seed=4, recipe="time_steps", days=11.0), fault)[2]
    assert set(elsewhere).isdisjoint(told(healthy, fault)[2])


def test_perfect_instruments_read_the_signals(perfect: Recording) -> None:
    for f in perfect.facts:
        if isinstance(f, Measurement):
            assert f.value == pytest.approx(perfect.signals[f.id], rel=1e-12)


def test_the_thermometer_shifts_no_other_fact() -> None:
    scenario = load_scenario("nominal")
    without = replace(scenario, instruments=tuple(i for i in scenario.instruments if i.name != "thermometer"))
    a, b = (record(PROCESS, 5, seed=5, scenario=s, days=6.0) for s in (scenario, without))
    assert repr([f for f in a.facts if getattr(f, "channel", "") != "temperature"]) == repr(list(b.facts))
    warm = np.array([v for _, v in of(a.facts, "temperature").values()])
    assert len(warm) > 140
    assert np.abs(warm - 37.0).max() < 0.6


# --- words -----------------------------------------------------------------------------------------------------------


def test_every_signal_has_its_trouble_and_every_mode_a_size() -> None:
    assert set(TROUBLE) == set(SIGNALS)
    assert len(SENSOR_MODES) == 13
    for mode in SENSOR_MODES:
        for target in (*TROUBLE, "readback:feed", "readback:bleed", "readback:cytokine_dose"):
            assert math.isfinite(Fault(target, mode, 0.0).magnitude)


@pytest.mark.parametrize(
    ("target", "mode", "extra", "what"),
    [
        ("colour", "bias", {}, "unknown target 'colour'"),
        ("pump:harvest", "clog", {}, "unknown target"),
        ("tank:perfusion", "clog", {}, "unknown target"),
        ("ph", "clog", {}, "unknown mode 'clog'"),
        ("pump:feed", "bias", {}, "unknown mode 'bias'"),
        ("pump:bleed", "wrong_bag", {}, "nothing is bagged"),
        ("ph", "bias", {"onset": -1.0}, "0 <= onset < until"),
        ("ph", "bias", {"onset": math.nan}, "0 <= onset < until"),
        ("ph", "bias", {"until": 1.0}, "0 <= onset < until"),
        ("ph", "bias", {"size": math.nan}, "impossible"),
        ("ph", "bias", {"size": math.inf}, "impossible"),
        ("ph", "slow", {"size": 0.0}, "impossible"),
        ("ph", "unit_slip", {"size": -1.0}, "impossible"),
        ("ph", "intermittent", {"size": 1.1}, "impossible"),
        ("pump:feed", "clog", {"size": 1.1}, "impossible"),
        ("ph", "off", {"size": 1.0}, "takes no size"),
        ("ph", "bias", {"seed": -1}, "seed -1"),
    ],
)
def test_a_fault_that_cannot_be_is_told(target: str, mode: str, extra: dict[str, float], what: str) -> None:
    with pytest.raises(ValueError, match="fault") as error:
        Fault(target, mode, **{"onset": 1.0, **extra})  # type: ignore[arg-type]
    assert what in str(error.value)


@pytest.mark.parametrize("days", [0.0, -1.0, math.nan, math.inf])
def test_a_recording_has_a_length(days: float) -> None:
    with pytest.raises(ValueError, match="days"):
        record(PROCESS, days=days)


def test_a_recording_goes_on_past_the_harvest_unless_told_not_to() -> None:
    on, off = (record(PROCESS, 3, seed=3, days=16.0, ignore_harvest=i, online=False) for i in (True, False))
    assert on.truth["time"][-1] == pytest.approx(16.0)
    assert off.truth["time"][-1] < PROCESS.recipe.harvest_latest + 1e-9
    assert isinstance(off.facts[-1], Event) and off.facts[-1].kind == "batch_end"
    n = len(off.facts) - 2
    assert repr(on.facts[:n]) == repr(off.facts[:n])
    assert on.process.recipe == PROCESS.recipe
