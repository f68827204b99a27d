"""What the twin and the closed loop make of a faulty signal."""

from __future__ import annotations

import functools
import math
from dataclasses import replace

import numpy as np
import pytest

from simulators import Fault, Recording, afflict, record, run_closed_loop
from simulators.faults import CONTRACT
from tests.simulators.faulty import PROCESS, of
from twin.batch import Batch, start, tell
from twin.donors.prior import preset_prior
from twin.evidence import Refused


@pytest.fixture(scope="module")
def believing() -> tuple[Batch, Recording]:
    day, four = (record(PROCESS, 3, seed=3, recipe="time_steps", days=d) for d in (1.0, 4.0))
    return functools.reduce(tell, day.facts, start("b", PROCESS, preset_prior(PROCESS))), four


@pytest.mark.parametrize("mode", ["nan", "negative"])
@pytest.mark.parametrize("target", CONTRACT)
def test_nonsense_reaches_the_twin_and_is_refused_without_a_trace(
    target: str, mode: str, believing: tuple[Batch, Recording]
) -> None:
    batch, base = believing
    fault = Fault(target, mode, 1.1)
    after = {f.id: f for f in afflict(base, (fault,)).facts}
    wrong = [i for i, (t, _) in of(base.facts, target).items() if fault.active(t)]
    assert wrong
    before = (batch.belief.mean.tobytes(), batch.belief.cov.tobytes(), len(batch.evidence), len(batch.applied))
    values = [v for i in wrong for _, v in of((after[i],), target).values()]
    for i, value in zip(wrong, values, strict=True):
        if mode == "negative" and ((target.startswith("raman") and value >= -20.0) or value == 0.0):
            continue  # an offset may carry Raman below zero, and a pump may rest: physics allows it
        with pytest.raises(Refused) as error:
            tell(batch, after[i])
        assert error.value.reason == "out_of_range"
        assert (
            batch.belief.mean.tobytes(),
            batch.belief.cov.tobytes(),
            len(batch.evidence),
            len(batch.applied),
        ) == before


def test_the_closed_loop_hears_the_fault_and_goes_on() -> None:
    short = replace(PROCESS, recipe=replace(PROCESS.recipe, harvest_latest=1.0))
    faults = (Fault("ph", "nan", 0.25), Fault("readback:feed", "nan", 0.5), Fault("do", "stuck", 0.5))
    first, again = (run_closed_loop(short, "mpc", donor=3, seed=3, faults=faults) for _ in range(2))
    assert repr(first.facts) == repr(again.facts)
    nonsense = [f.id for f in first.facts if not math.isfinite(getattr(f, "value", getattr(f, "rate", 0.0)))]
    assert len(nonsense) > 15
    assert [r.split(":")[0] for r in first.refused] == nonsense
    assert first.session is not None
    assert np.isfinite(first.session.batch.belief.mean).all()
    assert np.isfinite(first.session.batch.belief.cov).all()


def test_an_operator_goes_by_what_the_counter_says_unless_it_is_nonsense() -> None:
    def day(*faults: Fault) -> float:
        return run_closed_loop(PROCESS, "cspr_100", donor=3, seed=3, faults=faults).outcome.day

    right = day()
    assert day(Fault("viable_density", "bias", 5.0)) < right
    assert day(Fault("viable_density", "bias", 5.0, size=-0.7)) > right
    for mode in ("nan", "negative", "off"):
        outcome = run_closed_loop(
            PROCESS, "cspr_100", donor=3, seed=3, faults=(Fault("viable_density", mode, 5.0),)
        ).outcome
        assert outcome.day == PROCESS.recipe.harvest_latest  # never counted out
        assert math.isfinite(outcome.cqas["viable_cells"])
    assert day(Fault("viable_density", "unit_slip", 5.0)) == PROCESS.recipe.harvest_latest  # 1e6 is no count
