"""One simulated instrument per sensor: noise on the scale of its channel, calibration error, drift, loss, lateness."""

from __future__ import annotations

import numpy as np
import pytest

from simulators.donors import TYPICAL, median_donor
from simulators.instruments import SIGNALS, ChannelSpec, Device, Instrument
from simulators.plant import DayEffect
from twin.config import load_config
from twin.evidence import Measurement
from twin.sensors import CHANNELS, MONITORED, impossible

PROCESS = load_config("car_nk")
DONOR = median_donor(PROCESS, TYPICAL)
PLANT, X = DONOR.plant(PROCESS), DONOR.start()._replace(young_positive=5.0, dead=1.0, lactate=8.0)
ALL_CHANNELS = frozenset(CHANNELS)


def readings(spec: Instrument, n: int, seed: int = 0, x: object = X) -> list[Measurement]:
    device = Device.install(spec, np.random.SeedSequence(seed), ALL_CHANNELS)
    out: list[Measurement] = []
    for k in range(n):
        now = k * spec.interval
        assert device.is_due(now)
        out += device.measure(now, now, x, PLANT, DayEffect())  # type: ignore[arg-type]
        assert not device.is_due(now)
    return out


def test_every_channel_of_the_estimator_has_a_signal() -> None:
    assert set(CHANNELS) <= set(SIGNALS) <= {*CHANNELS, *MONITORED}


@pytest.mark.parametrize(("channel", "noise", "truth"), [("viable_density", 0.08, X.viable), ("lactate", 0.04, 8.0)])
def test_noise_of_amounts_is_relative(channel: str, noise: float, truth: float) -> None:
    values = [m.value for m in readings(Instrument("a", {channel: ChannelSpec(noise)}, 1.0), 4000)]
    ln = np.log(np.array(values) / truth)
    assert ln.std() == pytest.approx(noise, rel=0.06)
    assert ln.mean() == pytest.approx(0.0, abs=5 * noise / np.sqrt(4000))


def test_noise_of_fractions_is_absolute_and_stays_possible() -> None:
    values = np.array([m.value for m in readings(Instrument("a", {"viability": ChannelSpec(0.3)}, 1.0), 2000)])
    assert values.max() == 1.0
    assert values.min() >= 0.0
    mild = np.array([m.value for m in readings(Instrument("a", {"viability": ChannelSpec(0.02)}, 1.0), 2000)])
    assert mild.std() == pytest.approx(0.02, rel=0.1)


def test_calibration_error_differs_between_rigs_and_walks_within_one() -> None:
    spec = Instrument("raman", {"raman_glucose": ChannelSpec(noise=0.0, bias=1.3, walk=0.45)}, 1.0)
    first = [readings(spec, 1, seed=s)[0].value - X.glucose for s in range(400)]
    assert np.std(first) == pytest.approx(1.3, rel=0.12)
    ten_days = [(r := readings(spec, 11, seed=s))[-1].value - r[0].value for s in range(400)]
    assert np.std(ten_days) == pytest.approx(0.45 * np.sqrt(10), rel=0.12)


def test_drift_is_steady_and_of_either_sign() -> None:
    spec = Instrument("probe", {"ph": ChannelSpec(noise=0.0, drift=0.01)}, 1.0)
    changes = {round((r := readings(spec, 9, seed=s))[-1].value - r[0].value, 9) for s in range(20)}
    assert changes == {0.08, -0.08}


def test_readings_are_lost_and_late_as_often_as_said() -> None:
    spec = Instrument(
        "counter", {"viable_density": ChannelSpec(0.08)}, 1.0, delay=(0.05, 0.15), late_probability=0.25, late=(0.3, 0.8),
        dropout=0.1, laboratory=True,
    )  # fmt: skip
    got = readings(spec, 4000)
    assert len(got) == pytest.approx(3600, rel=0.03)
    delays = np.array([m.received_at - m.sampled_at for m in got])
    assert delays.min() >= 0.05
    assert delays.max() <= 0.95
    assert (delays > 0.2).mean() == pytest.approx(0.25, abs=0.03)


def test_capacitance_over_reads_in_decline() -> None:
    spec = Instrument("c", {"capacitance": ChannelSpec(0.0)}, 1.0)
    healthy = readings(spec, 1, x=X._replace(dead=0.01))[0].value / X.viable
    dying = readings(spec, 1, x=X._replace(dead=X.viable))[0].value / X.viable
    assert 1.2 < dying / healthy < 2.0


def test_capacitance_follows_size_and_a_count_does_not() -> None:
    big = X._replace(size=1.1)
    spec = Instrument("c", {"capacitance": ChannelSpec(0.0), "viable_density": ChannelSpec(0.0)}, 1.0)
    (c0, n0), (c1, n1) = readings(spec, 1), readings(spec, 1, x=big)
    assert c1.value / c0.value == pytest.approx(1.1**4)
    assert n1.value == n0.value


def test_no_reading_is_impossible() -> None:
    poor = X._replace(
        glucose=1e-6, lactate=1e-6, young_positive=1e-6, young_negative=1e-6, old_positive=1e-6, old_negative=1e-6
    )
    channels = {name: ChannelSpec(noise=0.5, bias=0.5) for name in CHANNELS}
    got = readings(Instrument("all", channels, 1.0), 50, x=poor)
    assert len(got) == 50 * len(CHANNELS)
    assert [why for m in got if (why := impossible(m.channel, m.value))] == []


def test_ids_are_unique_and_readings_reproducible() -> None:
    spec = Instrument("a", {"glucose": ChannelSpec(0.04), "lactate": ChannelSpec(0.04)}, 0.5, dropout=0.2)
    once, again, other = readings(spec, 30), readings(spec, 30), readings(spec, 30, seed=1)
    assert once == again
    assert once != other
    assert len({m.id for m in once}) == len(once)


def test_leaving_a_channel_out_shifts_no_other() -> None:
    spec = Instrument("a", {"glucose": ChannelSpec(0.04), "lactate": ChannelSpec(0.04)}, 0.5, dropout=0.2)
    device = Device.install(spec, np.random.SeedSequence(0), frozenset({"lactate"}))
    alone = [m for k in range(30) for m in device.measure(k * 0.5, k * 0.5, X, PLANT, DayEffect())]
    assert alone == [m for m in readings(spec, 30) if m.channel == "lactate"]
