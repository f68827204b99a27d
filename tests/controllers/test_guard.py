"""The safety kernel: every gate closes, and stays closed for NaN and Inf."""

from __future__ import annotations

import ast
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controllers import guard
from controllers.guard import (
    Command,
    GuardSettings,
    Readback,
    belief_fault,
    calibration_fault,
    channel_fault,
    judge,
    readback_fault,
    within,
)
from tests.controllers.grounds import BAD, S, U, code, faithful, grounds, plan
from twin.evidence import Reading

# --- the kernel itself ---------------------------------------------------------------------------------------------


def test_the_kernel_imports_nothing_but_the_standard_library() -> None:
    tree = ast.parse(Path(guard.__file__).read_text(encoding="utf-8"))
    imported = {n.module for n in tree.body if isinstance(n, ast.ImportFrom)} | {
        a.name for n in tree.body if isinstance(n, ast.Import) for a in n.names
    }
    assert imported == {"__future__", "math", "collections.abc", "dataclasses", "typing"}


@given(BAD, st.floats(allow_nan=True), st.floats(allow_nan=True))
def test_nothing_not_finite_is_within_anything(value: float, low: float, high: float) -> None:
    assert not within(value, low, high)


@given(st.floats(-1e9, 1e9), BAD)
def test_a_bound_that_is_nan_admits_nothing(value: float, bad: float) -> None:
    assert within(value, -1e9, 1e9)
    if math.isnan(bad):
        assert not within(value, bad, 1e9)
        assert not within(value, -1e9, bad)


# --- belief --------------------------------------------------------------------------------------------------------


def test_a_sound_belief_passes() -> None:
    assert belief_fault(grounds(), S) is None


@given(st.integers(0, 3), st.one_of(BAD, st.floats(60, 1e300), st.floats(-1e300, -60)))
def test_an_impossible_mean_is_refused(i: int, value: float) -> None:
    mean = list(grounds().mean)
    mean[i] = value
    assert code(belief_fault(grounds(mean=mean), S)) == "belief_range"


@given(st.integers(0, 3), st.integers(0, 3), st.one_of(BAD, st.floats(26, 1e300), st.floats(-1e300, -26)))
def test_an_impossible_covariance_is_refused(i: int, j: int, value: float) -> None:
    cov = [list(row) for row in grounds().cov]
    cov[i][j] = value
    assert code(belief_fault(grounds(cov=cov), S)) == ("belief_variance" if i == j else "belief_covariance")


@pytest.mark.parametrize("factor", [1e6, 1e-6])
def test_a_unit_slip_of_a_million_in_the_parameters_is_refused(factor: float) -> None:
    mean = list(grounds().mean)
    mean[2] += math.log(factor)
    assert code(belief_fault(grounds(mean=mean), S)) == "belief_range"


def test_a_density_in_cells_per_ml_is_refused() -> None:
    mean = list(grounds().mean)
    mean[0] += math.log(1e6)
    assert code(belief_fault(grounds(mean=mean), S)) == "belief_range"


def test_a_misshapen_belief_or_time_is_refused() -> None:
    assert code(belief_fault(grounds(mean=[0.0]), S)) == "belief_shape"
    for now in (math.nan, -0.1, math.inf):
        assert code(belief_fault(grounds(now=now), S)) == "time_impossible"


# --- channels ------------------------------------------------------------------------------------------------------


def test_fresh_channels_pass_and_one_of_a_group_is_enough() -> None:
    assert channel_fault(grounds(), S) is None
    readings = dict(grounds().readings)
    readings["raman_lactate"] = readings.pop("lactate")
    assert channel_fault(grounds(readings=readings), S) is None


@given(st.one_of(BAD, st.floats(-100, 1.99), st.floats(4.01, 100)))
def test_a_stale_or_future_sample_closes(sampled: float) -> None:
    readings = {**grounds().readings, "viable_density": Reading(1.0, sampled, 3.95)}
    assert code(channel_fault(grounds(readings=readings), S)) == "stale_viable_density"


@given(st.one_of(BAD, st.floats(4.01, 100)))
def test_a_value_received_in_the_future_closes(received: float) -> None:
    readings = {**grounds().readings, "viable_density": Reading(1.0, 3.9, received)}
    assert code(channel_fault(grounds(readings=readings), S)) == "stale_viable_density"


def test_a_missing_channel_or_an_unknown_limit_closes() -> None:
    readings = {k: v for k, v in grounds().readings.items() if k != "glucose"}
    assert code(channel_fault(grounds(readings=readings), S)) == "stale_glucose"
    assert code(channel_fault(grounds(stale_after={}), S)) == "stale_viable_density"


# --- read-backs ----------------------------------------------------------------------------------------------------


def test_fresh_readbacks_pass() -> None:
    assert readback_fault(grounds(), plan(), S) is None


def test_a_pump_that_never_reported_matters_only_if_it_shall_move() -> None:
    silent = {k: v for k, v in grounds().readbacks.items() if k != "feed"}
    assert code(readback_fault(grounds(readbacks=silent), plan(), S)) == "readback_feed"
    still = U._replace(feed=0.0)
    assert readback_fault(grounds(readbacks=silent), plan(controls=(still,)), S) is None


@given(st.one_of(BAD, st.floats(-100, 3.49), st.floats(4.01, 100)))
def test_a_stale_or_future_readback_closes(at: float) -> None:
    readbacks = {**grounds().readbacks, "perfusion": Readback(0.5, at, False)}
    assert code(readback_fault(grounds(readbacks=readbacks), plan(), S)) == "readback_perfusion"


@given(st.one_of(BAD, st.floats(-100, -1e-9)))
def test_an_impossible_readback_closes(rate: float) -> None:
    readbacks = {**grounds().readbacks, "perfusion": Readback(rate, 3.9, False)}
    assert code(readback_fault(grounds(readbacks=readbacks), plan(), S)) == "readback_perfusion"


@pytest.mark.parametrize(
    ("rate", "answers", "at", "expected"),
    [
        (0.8, True, 3.9, None),  # as commanded
        (0.75, True, 3.9, None),  # within tolerance
        (0.5, True, 3.9, None),  # slewed or capped, on the way
        (0.0, True, 3.9, "mismatch_perfusion"),  # clogged
        (1.6, True, 3.9, "mismatch_perfusion"),  # runs away
        (0.0, False, 3.9, None),  # not an answer: the recipe or the operator, a fact
        (0.0, True, 3.6, None),  # before the command
    ],
)
def test_a_pump_that_does_not_do_what_it_accepted_closes(
    rate: float, answers: bool, at: float, expected: str | None
) -> None:
    g = grounds(
        readbacks={**grounds().readbacks, "perfusion": Readback(rate, at, answers)},
        commands={"perfusion": Command(0.5, 0.8, 3.75, 4.04)},
    )
    assert code(readback_fault(g, plan(), S)) == expected


# --- what the estimator doubts ---------------------------------------------------------------------------------------


def test_a_required_channel_that_is_held_back_closes_unless_another_speaks_of_it() -> None:
    slipped = {"viable_density": "unit_slip"}
    assert code(channel_fault(grounds(doubted=slipped), S)) == "doubted_viable_density"
    fresh = {**grounds().readings, "capacitance": Reading(2.0, 3.9, 3.95)}
    ages = {**grounds().stale_after, "capacitance": 0.25}
    assert channel_fault(grounds(doubted=slipped, readings=fresh, stale_after=ages), S) is None
    both = {**slipped, "capacitance": "stuck"}
    closed = channel_fault(grounds(doubted=both, readings=fresh, stale_after=ages), S)
    assert str(closed) == (
        "doubted_viable_density: viable_density is held back (unit_slip); capacitance is held back (stuck); "
        "nothing else speaks of it"
    )
    old = {**fresh, "capacitance": Reading(2.0, 3.0, 3.0)}
    assert code(channel_fault(grounds(doubted=slipped, readings=old, stale_after=ages), S)) == "doubted_viable_density"


def test_a_probe_stands_in_for_a_doubted_sample_of_its_own_group() -> None:
    doubted = {"lactate": "contradicted"}
    assert code(channel_fault(grounds(doubted=doubted), S)) == "doubted_lactate"
    probed = {**grounds().readings, "raman_lactate": Reading(5.0, 3.9, 3.95)}
    assert channel_fault(grounds(doubted=doubted, readings=probed), S) is None
    assert channel_fault(grounds(doubted={"ph": "drift", "raman_glucose": "stuck"}), S) is None


def test_no_witness_stands_in_for_a_count_that_is_stale() -> None:
    readings = {**grounds().readings, "viable_density": Reading(1.0, 1.0, 1.0), "capacitance": Reading(2.0, 3.9, 3.95)}
    ages = {**grounds().stale_after, "capacitance": 0.25}
    assert code(channel_fault(grounds(readings=readings, stale_after=ages), S)) == "stale_viable_density"


def test_settings_without_witnesses_close_on_any_doubt() -> None:
    alone = GuardSettings(witnesses=())
    assert channel_fault(grounds(), alone) is None
    assert code(channel_fault(grounds(doubted={"glucose": "stuck"}), alone)) == "doubted_glucose"


@given(st.one_of(BAD, st.floats(2.001, 1e300), st.floats(-1e300, -1e-9)))
def test_an_overconfident_filter_closes(nis: float) -> None:
    assert code(calibration_fault(grounds(nis=nis), S)) == "calibration"
    verdict = judge(grounds(nis=nis), plan(), None, faithful, S)
    assert (verdict.accepted, verdict.faults[0].code, verdict.plan) == (False, "calibration", plan())


@given(st.floats(0.0, 2.0))
def test_a_filter_that_is_honest_or_timid_passes(nis: float) -> None:
    assert calibration_fault(grounds(nis=nis), S) is None
