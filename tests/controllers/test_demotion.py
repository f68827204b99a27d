"""Demotion as the loop runs it: a filter or a reading that is doubted closes the guard, and closes it only then (SAFETY S12)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controllers import make_policy
from controllers.loop import decide
from controllers.plan import Plan
from simulators import VirtualBioreactor
from twin import load_config
from twin.batch import start, tell
from twin.donors.prior import preset_prior
from twin.estimation.health import health
from twin.evidence import Fact, Measurement, Refused
from twin.history import Batch
from twin.process import Process

PROCESS = load_config("car_nk")
UNTIL = 2.25


@pytest.fixture(scope="module")
def facts() -> tuple[Fact, ...]:
    """Two days and a bit of donor 7 on the mismatched plant."""
    return tuple(VirtualBioreactor(PROCESS, donor=7, seed=1).tick(until=UNTIL))


def told(process: Process, facts: tuple[Fact, ...]) -> Batch:
    batch = start("b", process, preset_prior(process))
    for fact in facts:
        try:
            batch = tell(batch, fact)
        except Refused as refusal:
            raise AssertionError(str(refusal)) from None
    return batch


def decided(batch: Batch) -> tuple[bool, str, Plan]:
    d = decide(batch, UNTIL, make_policy("cspr_100", PROCESS), None)
    return d.control is not None, " ".join(d.reasons), d.plan


def test_a_healthy_mismatched_batch_is_not_demoted(facts: tuple[Fact, ...]) -> None:
    batch = told(PROCESS, facts)
    sent, why, _ = decided(batch)
    assert sent, why
    assert health(batch, UNTIL).nis < 1.5


def test_a_filter_that_claims_a_third_of_its_noise_is_demoted(facts: tuple[Fact, ...]) -> None:
    sensors = {c: replace(s, sd=s.sd / 3.0) for c, s in PROCESS.sensors.items()}
    batch = told(replace(PROCESS, sensors=sensors), facts)
    sent, why, plan = decided(batch)
    assert not sent
    assert "calibration: innovations squared are" in why
    assert plan.status == "solved"  # the plan itself is sound


def test_a_slipped_count_needs_a_witness(facts: tuple[Fact, ...]) -> None:
    slipped = tuple(
        replace(f, value=f.value * 10.0) if isinstance(f, Measurement) and f.channel == "viable_density" and f.sampled_at > 1.0 else f
        for f in facts
    )  # fmt: skip
    witnessed = told(PROCESS, slipped)
    assert witnessed.watches["viable_density"].why == "unit_slip"
    assert decided(witnessed)[0]
    witnesses = ("capacitance", "oxygen_uptake", "total_density")
    alone = told(PROCESS, tuple(f for f in slipped if not (isinstance(f, Measurement) and f.channel in witnesses)))
    sent, why, _ = decided(alone)
    assert not sent
    assert "doubted_viable_density: viable_density is held back (unit_slip)" in why
