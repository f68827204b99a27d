"""A dead probe is told by its silence, a sound one never, however quiet or restless it is by nature."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulators import load_scenario, record
from twin.config import load_config
from twin.estimation.scatter import APART, LEARNT, SILENT, UNHEARD, Scatter, heard
from twin.evidence import Measurement
from twin.sensors import compared

HOUR = 1.0 / 24.0


def after(
    readings: Iterable[float], every: float = HOUR, s: Scatter = UNHEARD, begin: float = 0.0
) -> tuple[Scatter, float]:
    """Memory after readings, and the most nats on the way."""
    most = 0.0
    for k, y in enumerate(readings):
        s = heard(s, float(y), 1.0, begin + k * every)
        most = max(most, s.nats)
    return s, most


@given(st.integers(0, 10_000), st.sampled_from([0.05, 0.6, 1.0, 4.0]))
def test_sound_noise_of_any_size_is_not_held_dead_in_a_month(seed: int, sd: float) -> None:
    assert after(sd * np.random.default_rng(seed).standard_normal(28 * 24))[1] < SILENT


@given(st.integers(0, 10_000), st.sampled_from([0.05, 0.6, 1.0]))
def test_noise_that_falls_to_a_tenth_is_noticed_within_a_day_and_a_half_and_forgotten_when_it_returns(
    seed: int, sd: float
) -> None:
    rng = np.random.default_rng(seed)
    sound, _ = after(sd * rng.standard_normal(72))
    dead, _ = after(0.1 * sd * rng.standard_normal(36), s=sound, begin=3.0)
    assert dead.dead
    assert dead.usual == pytest.approx(sound.usual, rel=0.2)  # not learnt from the dead
    assert not after(sd * rng.standard_normal(12), s=dead, begin=4.5)[0].dead


@given(st.integers(0, 10_000), st.sampled_from([0.05, 0.6, 1.0]))
def test_a_dead_probe_that_stirs_once_is_not_alive_and_a_sound_one_is_at_once(seed: int, sd: float) -> None:
    """GIVEN a dead probe, WHEN one reading leaps by half of the usual noise, THEN it may be called dead no more, but not sound."""
    rng = np.random.default_rng(seed)
    sound, _ = after(sd * rng.standard_normal(72))
    dead, _ = after(0.1 * sd * rng.standard_normal(36), s=sound, begin=3.0)
    leap = float(np.sqrt(0.6 * min(1.0, dead.usual)))  # its square over twice the noise: .3 of the usual
    stirred, _ = after([dead.mark + leap], s=dead, begin=4.5)
    assert not dead.alive
    assert not stirred.alive
    assert after(sd * rng.standard_normal(12), s=dead, begin=4.5)[0].alive


def test_nothing_is_said_before_what_is_usual_is_known() -> None:
    assert after([0.0] * LEARNT)[1] == 0.0


def test_readings_close_together_and_far_apart_say_nothing() -> None:
    sound, _ = after(np.random.default_rng(1).standard_normal(72))
    assert after([sound.mark] * 200, every=APART / 300.0, s=sound, begin=sound.at)[1] == sound.nats
    assert after([sound.mark] * 200, every=0.5, s=sound, begin=sound.at + 0.5)[1] == sound.nats


@pytest.mark.slow
@pytest.mark.parametrize("rig", ["nominal", "careless"])
def test_no_probe_of_a_sound_rig_comes_near(rig: str) -> None:
    """Two weeks of three donors on the mismatched plant, every probe."""
    process = load_config("car_nk")
    for seed in (1000, 1001, 1002):
        told = record(process, seed, seed=seed, days=14.0, scenario=load_scenario(rig)).facts
        heard_of: dict[str, Scatter] = {}
        for m in sorted((f for f in told if isinstance(f, Measurement)), key=lambda m: m.sampled_at):
            sensor = process.sensors.get(m.channel)
            if sensor is None or sensor.kind != "probe":
                continue
            y = float(compared(m.channel, m.value))
            s = heard_of[m.channel] = heard(heard_of.get(m.channel, UNHEARD), y, sensor.sd**2, m.sampled_at)
            assert s.nats < SILENT / 1.5, m.id
        assert len(heard_of) == 7
        assert all(s.steps > 200 for s in heard_of.values())
