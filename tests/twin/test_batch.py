"""Late, permuted, duplicated, corrected: the posterior is a function of the set of facts, bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from twin import history
from twin.batch import Batch, assimilate, believe_at, control_at, latest, perfused, start
from twin.batch import tell as told
from twin.bioreactor import Control
from twin.config import load_config
from twin.donors.prior import preset_prior
from twin.evidence import ControlApplied, Event, Fact, Measurement, Refused

PROCESS = load_config("car_nk")
PRIOR = preset_prior(PROCESS)


def empty(filter_name: str = "ukf") -> Batch:
    return start("b", PROCESS, PRIOR, filter_name)


def tell(batch: Batch, facts: Sequence[Fact]) -> Batch:
    for fact in facts:
        batch = told(batch, fact)
    return batch


def story() -> list[Fact]:
    """Three days: dosing, a change of perfusion, a new medium bag, several sensors at one instant and a calibration at it."""
    facts: list[Fact] = [
        ControlApplied("c0", 0.0, "cytokine_dose", 300.0),
        ControlApplied("c1", 1.5, "perfusion", 0.5),
        ControlApplied("c2", 2.25, "perfusion", 0.75),
        Event("e0", "medium", 2.0, {"glucose": 20.0}),
        Event("e1", "calibration", 2.25, {"channel": "capacitance"}),  # at the instant of samples
        Measurement("car", "car_fraction", 0.6, 1.0, 2.2),
    ]
    for k, density in enumerate((0.52, 0.75, 1.3, 2.0)):
        t = 0.75 * (k + 1)
        facts += [
            Measurement(f"x{k}", "viable_density", density, t, t + 0.1),
            Measurement(f"g{k}", "glucose", 24.0 - 1.5 * k, t, t + 0.1),
            Measurement(f"p{k}", "capacitance", 0.5 * density * 1.1, t, t),
            Measurement(f"o{k}", "oxygen_uptake", density * 0.85 / 24, t + 0.01, t + 0.01),
        ]
    return facts


def check_order_independence(name: str, order: Sequence[Fact]) -> None:
    expected, shuffled = tell(empty(name), story()), tell(empty(name), order)
    assert shuffled.belief == expected.belief
    assert shuffled.evidence == expected.evidence
    assert shuffled.innovations == expected.innovations
    for t in (0.3, 1.0, 2.26, 4.0):
        assert believe_at(shuffled, t) == believe_at(expected, t)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.permutations(story()), st.lists(st.sampled_from(story()), max_size=4))
def test_any_order_and_any_duplication_give_bit_equal_beliefs(order: list[Fact], again: list[Fact]) -> None:
    check_order_independence("ukf", [*order, *again])


@settings(max_examples=2, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.permutations(story()))
def test_the_extended_filter_is_as_indifferent_to_order(order: list[Fact]) -> None:
    check_order_independence("ekf", [*order, *order[:3]])


@pytest.mark.parametrize("name", ["ukf", "ekf"])
def test_a_sample_24_h_late_gives_what_it_would_have_given_on_time(name: str) -> None:
    late = Measurement("late", "lactate", 4.0, 1.25, 2.25)
    before = [f for f in story() if not isinstance(f, Measurement) or f.received_at < 2.25]
    after = [f for f in story() if f not in before]
    on_time = tell(empty(name), [replace(late, received_at=1.25), *before, *after])
    as_it_came = tell(empty(name), [*before, late, *after])
    assert as_it_came.belief == on_time.belief


def test_a_corrected_value_supersedes_and_both_are_kept() -> None:
    wrong = Measurement("x9", "viable_density", 9.0, 1.4, 1.5)
    right = replace(wrong, value=1.0, version=2, received_at=2.9)
    corrected = tell(empty(), [wrong, *story(), right])
    clean = tell(empty(), [*story(), right])
    assert corrected.belief == clean.belief
    assert corrected.superseded == (wrong,)
    assert tell(empty(), [right, *story(), wrong]).superseded == (wrong,)  # the old version may come last
    assert tell(empty(), [right, *story(), wrong]).belief == clean.belief
    with pytest.raises(Refused, match="other content"):
        tell(corrected, [replace(wrong, value=8.0)])


def test_thinned_checkpoints_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    late = Measurement("late", "glucose", 23.0, 0.8, 3.5)
    expected = tell(empty(), [*story(), late])
    monkeypatch.setattr(history, "KEEP_ALL", 2)
    monkeypatch.setattr(history, "KEEP_EVERY", 5)
    thin = tell(empty(), story())
    assert len(thin.checkpoints) < len(thin.evidence)
    assert tell(thin, [late]).belief == expected.belief
    assert tell(thin, [late]).innovations == expected.innovations
    assert believe_at(thin, 1.0) == believe_at(tell(empty(), story()), 1.0)


@pytest.mark.parametrize(
    ("fact", "reason"),
    [
        (Measurement("n", "glucose", float("nan"), 1.0, 1.0), "out_of_range"),
        (Measurement("n", "glucose", float("inf"), 1.0, 1.0), "out_of_range"),
        (Measurement("n", "glucose", -1.0, 1.0, 1.0), "out_of_range"),
        (Measurement("n", "viability", 97.0, 1.0, 1.0), "out_of_range"),
        (Measurement("n", "viable_density", 2e6, 1.0, 1.0), "out_of_range"),
        (Measurement("n", "brix", 1.0, 1.0, 1.0), "unknown_channel"),
        (Measurement("n", "glucose", 20.0, 2.0, 1.0), "from_the_future"),
        (Measurement("n", "glucose", 20.0, -0.1, 1.0), "before_inoculation"),
        (Measurement("n", "glucose", 20.0, float("nan"), 1.0), "before_inoculation"),
        (Measurement("n", "glucose", 20.0, 1.0, 1.0, sd=0.0), "bad_sd"),
        (Measurement("x0", "viable_density", 0.9, 0.75, 0.85), "conflict"),
        (ControlApplied("n", 1.0, "stirrer", 1.0), "unknown_actuator"),
        (ControlApplied("n", 1.0, "feed", float("nan")), "out_of_range"),
        (ControlApplied("c1", 1.5, "perfusion", 1.5), "conflict"),
        (Event("n", "medium", 1.0, {"glucos": 2.0}), "unknown_field"),
        (Event("n", "medium", 1.0, {"glucose": float("nan")}), "out_of_range"),
        (Event("n", "medium", 1.0, {"glucose": "abc"}), "out_of_range"),
        (Event("e0", "medium", 2.0, {"glucose": 21.0}), "conflict"),
    ],
)
def test_what_cannot_be_evidence_is_refused_with_a_reason(fact: Fact, reason: str) -> None:
    batch = tell(empty(), story())
    with pytest.raises(Refused) as refusal:
        tell(batch, [fact])
    assert refusal.value.reason == reason
    assert batch.belief == tell(empty(), story()).belief


def test_read_backs_give_the_control_in_force_and_the_medium_used() -> None:
    batch = tell(empty(), story())
    assert control_at(batch, 1.0) == Control(cytokine_dose=300.0)
    assert control_at(batch, 2.0) == Control(perfusion=0.5, cytokine_dose=300.0)
    assert perfused(batch, 3.25) == pytest.approx(0.75 * 0.5 + 1.0 * 0.75)
    assert perfused(batch, 1.0) == 0.0


def test_an_operator_sees_only_what_was_known() -> None:
    batch = tell(empty(), story())
    assert "car_fraction" not in latest(batch, 2.1)
    assert latest(batch, 2.2)["car_fraction"].sampled_at == 1.0
    assert latest(batch, 1.55)["viable_density"].value == 0.52
    assert latest(batch, 1.60)["viable_density"].value == 0.75


def test_calibration_forgets_the_learnt_gain_and_keeps_the_cells() -> None:
    facts = [f for f in story() if not (isinstance(f, Event) and f.kind == "calibration")]
    plain = tell(empty(), facts)
    calibrated = tell(plain, [Event("cal", "calibration", 3.2, {"channel": "capacitance"})])
    i = plain.layout.index("capacitance_gain")
    before, after = believe_at(plain, 3.3), believe_at(calibrated, 3.3)
    assert after.mean[i] == 0.0
    assert after.cov[i, i] > 3 * before.cov[i, i]
    np.testing.assert_allclose(np.delete(after.mean, i), np.delete(before.mean, i), atol=1e-3)


def test_channels_without_a_sensor_are_kept_but_inform_nothing() -> None:
    batch = tell(empty(), [Measurement("t", "temperature", 37.0, 1.0, 1.0)])
    assert len(batch.evidence) == 1
    assert batch.innovations == ()


def test_an_unknown_filter_is_named() -> None:
    with pytest.raises(ValueError, match="particle"):
        start("b", PROCESS, PRIOR, "particle")


@pytest.mark.parametrize(("channel", "reading"), [("capacitance", 0.0), ("capacitance", 400.0), ("oxygen_uptake", 0.0)])
def test_a_dead_probe_cannot_carry_the_culture_away(channel: str, reading: float) -> None:
    """GIVEN daily counts and one probe that is stuck, WHEN three days pass, THEN the estimate stays with the counts."""
    batch = tell(empty(), story())
    for hour in range(73):
        t = 3.25 + hour / 24
        batch = assimilate(batch, Measurement(f"w{hour}", channel, reading, t, t))
        if hour % 24 == 0:
            batch = assimilate(
                batch, Measurement(f"c{hour}", "viable_density", 2.2 * 1.6 ** (hour / 24), t + 1e-4, t + 1e-4)
            )
    cells = np.exp(batch.belief.mean[0])
    assert cells == pytest.approx(2.2 * 1.6**3, rel=0.25)


def test_wrong_analysers_cannot_drive_the_filter_out_of_its_range() -> None:
    """Glucose and lactate tenfold wrong, for days: rejected, now and then believed, never divergent."""
    batch = tell(empty(), story())
    for k in range(24):
        t = 3.25 + 0.25 * k
        batch = assimilate(batch, Measurement(f"w{k}", "glucose", 200.0, t, t))
        batch = assimilate(batch, Measurement(f"v{k}", "lactate", 0.3 if k % 2 else 80.0, t, t))
        batch = assimilate(batch, Measurement(f"c{k}", "viable_density", 2.0 * 1.5**k**0.5, t, t))
    assert batch.belief.finite
    assert np.sqrt(np.diag(batch.belief.cov))[: batch.layout.error_start].max() < 3.0
