"""Who is wrong, the state or the sensor: every ruling of the screen, on a batch whose readings are told one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twin.batch import apply, as_known, assimilate, believe_at, note, start
from twin.config import load_config
from twin.donors.prior import preset_prior
from twin.estimation import screen
from twin.estimation.belief import N_STATE
from twin.estimation.health import alarms, channel_alarms, health
from twin.estimation.screen import RETURN, STUCK, Datum, Verdict, fuse
from twin.estimation.slips import likely_slip, slips
from twin.evidence import ControlApplied, Event, Measurement, Refused
from twin.history import Batch
from twin.sensors import CHANNELS, compared

PROCESS = load_config("car_nk")
PROBES = ("capacitance", "oxygen_uptake", "raman_glucose", "raman_lactate", "ph", "do", "weight")
HOUR = 1.0 / 24.0


def expected(batch: Batch, channel: str, t: float) -> float:
    """What the twin expects the channel to read at `t`, in its unit."""
    ahead = batch.filter.look(believe_at(batch, t), (channel,), batch.course.at(t))
    z, c = float(ahead.mean[-1]), CHANNELS[channel]
    return float(np.exp(z)) - c.limit if c.scale == "log" else z


def tell(
    batch: Batch, channel: str, t: float, factor: float = 1.0, plus: float = 0.0, stir: float = 0.8, **how: bool
) -> Batch:
    """One reading at `t`: what is expected, times `factor`, plus `plus`, and up to `stir` of its noise (0: a last digit only)."""
    sd, log = PROCESS.sensors[channel].sd, CHANNELS[channel].scale == "log"
    noise = stir * sd * float(np.sin(1e5 * t)) + 1e-7 * float(np.sin(1e4 * t))
    value = (expected(batch, channel, t) * factor + plus) * (np.exp(noise) if log else 1.0) + (0.0 if log else noise)
    return assimilate(batch, Measurement(f"{channel}{t:.6f}", channel, value, t, t, **how))


def verdict(batch: Batch) -> Verdict:
    return batch.innovations[-1].verdict


@pytest.fixture(scope="module")
def settled() -> Batch:
    """Four days, probes every two hours, samples once a day, all as expected."""
    batch = start("b", PROCESS, preset_prior(PROCESS), shadow="ekf")
    batch = apply(batch, ControlApplied("d", 0.0, "cytokine_dose", 300.0))
    for k in range(1, 49):
        t = k / 12
        for n, channel in enumerate(
            (*PROBES, *(("viable_density", "viability", "glucose", "lactate") if k % 12 == 0 else ()))
        ):
            batch = tell(batch, channel, t + n * 1e-5)
    return batch


def test_readings_as_expected_raise_no_alarm(settled: Batch) -> None:
    assert all(i.accepted for i in settled.innovations)
    assert alarms(settled, 4.01) == ()
    state = health(settled, 4.01)
    assert state.finite
    assert state.repairs == 0
    assert state.apart is not None
    assert state.apart < 1.0


@settings(max_examples=40)
@given(st.lists(st.floats(-6.0, 6.0), min_size=len(PROBES), max_size=len(PROBES)))
def test_readings_of_one_instant_come_to_the_same_at_once_and_one_by_one(settled: Batch, away: list[float]) -> None:
    """GIVEN readings so many of their standard deviations off, WHEN those as expected are taken in as one vector, THEN verdicts
    are those of going through them singly, and numbers too but for rounding."""
    belief, layout, drive = believe_at(settled, 4.0 + HOUR), settled.layout, settled.course.at(4.0)
    ahead = settled.filter.look(belief, PROBES, drive)
    sds = np.sqrt(np.diagonal(ahead.cov)[layout.size :])
    data: list[Datum] = []
    for channel, z, sd, off in zip(PROBES, ahead.mean[layout.size :], sds, away, strict=True):
        y, c, sensor = float(z + off * sd), CHANNELS[channel], PROCESS.sensors[channel]
        data.append(Datum(sensor, float(np.exp(y)) - c.limit if c.scale == "log" else y, y, sensor.sd**2))
    given_ = (settled.filter, belief, data, drive, settled.watches, layout, PROCESS.sensors)
    together = fuse(*given_)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(screen, "_at_once", lambda *_: None)
        singly = fuse(*given_)
    for a, b in zip(together.innovations, singly.innovations, strict=True):
        assert (a.channel, a.verdict, a.detail) == (b.channel, b.verdict, b.detail)
        assert np.allclose([a.residual, a.s, a.nis, a.ratio], [b.residual, b.s, b.nis, b.ratio], rtol=1e-8, atol=1e-9)
    assert together.enacted == singly.enacted
    assert together.watches.keys() == singly.watches.keys()
    sd = np.sqrt(np.diagonal(singly.belief.cov))
    assert np.abs((together.belief.mean - singly.belief.mean) / sd).max() < 1e-9
    assert np.abs((together.belief.cov - singly.belief.cov) / np.outer(sd, sd)).max() < 1e-9


def test_a_stuck_probe_is_quarantined_and_comes_back_when_it_moves_and_fits(settled: Batch) -> None:
    batch, value = settled, expected(settled, "ph", 4.0)
    for k in range(1, STUCK + 2):
        batch = assimilate(batch, Measurement(f"s{k}", "ph", value, 4.0 + k * HOUR, 4.0 + k * HOUR))
    assert verdict(batch) == "quarantined"
    assert [a.code for a in channel_alarms(batch, 4.3) if a.channel == "ph"] == ["stuck"]
    before = batch.belief.mean[:N_STATE].copy()
    for k in range(RETURN["probe"]):
        assert batch.watches["ph"].quarantined
        batch = tell(batch, "ph", 4.3 + k * HOUR)
    assert verdict(batch) == "accepted"
    assert not batch.watches["ph"].why
    assert np.abs(batch.belief.mean[:N_STATE] - before).max() < 0.5


@pytest.mark.parametrize(
    "channel", ["raman_glucose", "raman_lactate", "ph", "do", "weight"]
)  # the others move by themselves
def test_a_probe_that_scatters_far_less_than_its_noise_is_held_dead_and_comes_back(
    settled: Batch, channel: str
) -> None:
    """GIVEN hourly readings that follow the belief but for their noise, WHEN a day has passed, THEN the probe is quarantined."""
    batch = settled
    for k in range(1, 25):
        batch = tell(batch, channel, 4.0 + k * HOUR, stir=0.02)
    assert verdict(batch) == "quarantined"
    assert batch.watches[channel].why == "stuck"
    assert "scatters" in batch.watches[channel].detail
    for k in range(25, 25 + RETURN["probe"] + 4):
        batch = tell(batch, channel, 4.0 + k * HOUR)
    assert verdict(batch) == "accepted"


def test_readings_close_together_may_be_alike(settled: Batch) -> None:
    """A transmitter damps what it sends every minute; two hours of it are no evidence against the probe."""
    batch = settled
    for k in range(1, 120):
        batch = tell(batch, "ph", 4.0 + k / 1440.0, stir=0.02)
    assert verdict(batch) == "accepted"


@pytest.mark.parametrize("channel", PROBES)
def test_a_probe_alone_against_all_is_quarantined_and_moves_nothing(settled: Batch, channel: str) -> None:
    batch = settled
    before = believe_at(batch, 4.0 + 4 * HOUR)
    away = {"ph": 0.6, "do": 25.0, "raman_glucose": 14.0, "raman_lactate": 18.0}.get(channel, 0.0)
    for k in range(4):
        batch = tell(batch, channel, 4.0 + (k + 1) * HOUR, 1.0 if away else 2.4, away)
    assert verdict(batch) in ("quarantined", "unit_slip")
    assert batch.watches[channel].why in ("contradicted", "unit_slip")
    after = believe_at(batch, 4.0 + 4 * HOUR)
    spread = np.sqrt(np.diagonal(before.cov)[:N_STATE])
    assert np.abs((after.mean - before.mean)[:N_STATE] / spread).max() < 0.5
    calibrated = note(batch, Event("c", "calibration", 4.2, {"channel": channel}))
    assert verdict(tell(calibrated, channel, 4.21)) == "accepted"


def test_several_channels_that_agree_carry_the_state(settled: Batch) -> None:
    """Half of the cells are gone: counts and capacitance say so, and are believed."""
    batch = settled
    before = float(np.exp(batch.belief.mean[0]))
    for k in range(3):
        t = 4.0 + (k + 1) * HOUR
        for n, channel in enumerate(("viable_density", "capacitance", "oxygen_uptake")):
            value = before * 0.4 * expected(settled, channel, 4.0) / before * np.exp(0.01 * np.sin(9 * t))
            batch = assimilate(batch, Measurement(f"{channel}{k}", channel, value, t + n * 1e-5, t + n * 1e-5))
    assert any(i.verdict == "widened" for i in batch.innovations[-9:])
    assert float(np.exp(batch.belief.mean[0])) == pytest.approx(0.4 * before, rel=0.15)
    assert not [a for a in channel_alarms(batch, 4.2) if a.code in ("contradicted", "stuck")]


def test_a_laboratory_alone_is_believed_at_the_third_contradiction_when_nothing_else_speaks() -> None:
    batch = start("b", PROCESS, preset_prior(PROCESS))
    for day in (1.0, 2.0, 3.0):
        batch = tell(batch, "ammonia", day)
    high = 2.4 * expected(batch, "ammonia", 4.0)
    seen: list[Verdict] = []
    for k in range(3):
        t = 4.0 + 0.1 * k
        batch = assimilate(batch, Measurement(f"x{k}", "ammonia", high * (1 + 0.01 * k), t, t))
        seen.append(verdict(batch))
    assert seen == ["rejected", "rejected", "widened"]
    assert float(np.exp(batch.belief.mean[batch.layout.index("ammonia")])) == pytest.approx(high, rel=0.2)


def test_contradictions_that_contradict_each_other_carry_nothing(settled: Batch) -> None:
    batch = settled
    for k in range(10):
        batch = tell(batch, "glucose", 4.0 + 0.05 * (k + 1), 1.6 if k % 2 else 0.6)
        assert verdict(batch) != "widened"
    assert float(np.exp(batch.belief.mean[3])) == pytest.approx(
        float(np.exp(believe_at(settled, 4.5).mean[3])), rel=0.05
    )


@pytest.mark.parametrize(
    ("channel", "factor"),
    [(c, f) for c, fs in {
        "glucose": (0.18016, 5.5507, 10.0, 0.1), "lactate": (0.08907, 10.0, 1e3), "viable_density": (10.0, 0.1, 1e-6, 1e-3),
        "capacitance": (10.0, 0.1), "weight": (0.1, 10.0, 1e3), "oxygen_uptake": (24.0, 1 / 24.0, 0.1),
    }.items() for f in fs],
)  # fmt: skip
def test_a_unit_slip_is_never_taken_in_however_often_it_is_repeated(
    settled: Batch, channel: str, factor: float
) -> None:
    batch = settled
    before = believe_at(batch, 4.6)
    for k in range(10):
        try:
            batch = tell(batch, channel, 4.0 + 0.05 * (k + 1), factor)
        except Refused:  # impossible: out of the channel's range
            continue
        assert verdict(batch) in ("unit_slip", "quarantined", "rejected")
    after = believe_at(batch, 4.6)
    np.testing.assert_allclose(after.mean[:N_STATE], before.mean[:N_STATE], atol=0.02)


def test_a_slip_is_proposed_and_a_correction_clears_it(settled: Batch) -> None:
    right = expected(settled, "glucose", 4.1)
    wrong = assimilate(settled, Measurement("g", "glucose", right * 0.18016, 4.1, 4.1))
    assert wrong.innovations[-1].verdict == "unit_slip"
    assert "g/L" in wrong.innovations[-1].detail
    assert [a.code for a in channel_alarms(wrong, 4.2) if a.channel == "glucose"] == ["unit_slip"]
    mended = assimilate(wrong, Measurement("g", "glucose", right, 4.1, 4.3, version=2))
    assert [a.code for a in channel_alarms(mended, 4.2) if a.channel == "glucose"] == []
    assert mended.belief == assimilate(settled, Measurement("g", "glucose", right, 4.1, 4.3, version=2)).belief


def test_a_human_who_stands_by_a_value_is_believed(settled: Batch) -> None:
    low = 0.2 * expected(settled, "glucose", 4.1)
    doubted = assimilate(settled, Measurement("g", "glucose", low, 4.1, 4.1))
    assert doubted.belief.mean[3] == pytest.approx(believe_at(settled, 4.1).mean[3])
    confirmed = assimilate(doubted, Measurement("g", "glucose", low, 4.1, 4.2, version=2, confirmed=True))
    assert float(np.exp(confirmed.belief.mean[3])) == pytest.approx(low, rel=0.1)
    assert not [a for a in channel_alarms(confirmed, 4.11) if a.channel == "glucose"]


def test_a_slow_drift_is_told_from_noise_and_the_laboratory_is_only_announced(settled: Batch) -> None:
    batch = settled
    for k in range(8):
        batch = tell(batch, "viability", 4.0 + 0.4 * (k + 1), plus=-0.05)
    codes = {a.code for a in channel_alarms(batch, 7.3) if a.channel == "viability"}
    assert codes <= {"biased", "contradicted"}
    assert all(v.verdict != "quarantined" for v in batch.innovations if v.channel == "glucose")


def test_a_channel_that_falls_silent_is_lost(settled: Batch) -> None:
    assert [a.channel for a in channel_alarms(settled, 4.0 + 0.26) if a.code == "lost"] == sorted(
        c for c in PROBES if c != "weight"
    )


@given(
    channel=st.sampled_from(sorted(set(CHANNELS) - {"raman_glucose", "raman_lactate"})),
    sd=st.floats(0.01, 0.3), value=st.floats(0.3, 30.0), pick=st.integers(0, 20), noise=st.floats(-1.0, 1.0),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_a_slip_is_found_by_its_factor_and_a_fair_reading_is_none(
    channel: str, sd: float, value: float, pick: int, noise: float
) -> None:
    c = CHANNELS[channel]
    value = min(value, c.high / 2.0) if c.scale == "log" else (c.low + c.high) / 2.0
    predicted = float(compared(channel, value))
    fair = predicted + noise * sd
    plain = float(np.exp(fair)) - c.limit if c.scale == "log" else fair
    assert likely_slip(channel, plain, predicted, sd * sd) is None
    assert likely_slip(channel, float("nan"), predicted, sd * sd) is None
    slip = slips(channel)[pick % len(slips(channel))]
    told = value / slip.factor
    if c.scale == "log" and sd < 0.2 and told > 10.0 * c.limit:
        found = likely_slip(channel, told, predicted, sd * sd)
        assert found is not None
        assert found.factor == pytest.approx(slip.factor, rel=0.3)


def test_belief_then_and_belief_now(settled: Batch) -> None:
    """A late count moves what is believed of the past; what was believed then can still be asked for."""
    late = Measurement("late", "viable_density", 1.2 * expected(settled, "viable_density", 3.5), 3.5, 4.4)
    now = assimilate(settled, late)
    assert believe_at(as_known(now, 4.3), 4.0) == believe_at(settled, 4.0)
    assert believe_at(as_known(now, 4.4), 4.0) == believe_at(now, 4.0)
    assert believe_at(now, 4.0) != believe_at(settled, 4.0)
    revision = now.revisions[-1]
    assert (revision.cause, revision.at) == ("late", 3.5)
    assert 0.0 < revision.jump < 3.0
    again = assimilate(now, Measurement("late", "viable_density", late.value, 3.5, 4.6, version=2, retracted=True))
    assert believe_at(again, 4.0) == believe_at(settled, 4.0)
    assert believe_at(as_known(again, 4.5), 4.0) == believe_at(now, 4.0)


def test_a_result_older_than_the_replay_window_is_refused_and_changes_nothing(settled: Batch) -> None:
    with pytest.raises(Refused, match="replayed") as refusal:
        assimilate(settled, Measurement("old", "glucose", 20.0, 1.0, 11.5))
    assert refusal.value.reason == "too_late"
