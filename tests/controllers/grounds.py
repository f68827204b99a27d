"""What the tests of the guard judge: a sound plan on sound grounds, to be spoilt in one place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from hypothesis import strategies as st

from controllers.guard import Fault, Grounds, GuardSettings, Readback
from controllers.plan import Plan
from twin.bioreactor import Control, State
from twin.evidence import Reading
from twin.process import Limits

S = GuardSettings()
X = State(5.0, 5.0, 1.0, 20.0, 5.0, 4.0, 1.0, 100.0, 8.0, 0.05, 25.0, 0.9, 1.0)
U = Control(0.5, 0.01, 0.0, 300.0)
BAD = st.sampled_from([math.nan, math.inf, -math.inf])


def plan(**changes: object) -> Plan:
    base = Plan(4.0, 0.25, (U, U, U), (X, X, X, X), "solved", 1.0, 6.0, "mpc", "fine")
    return replace(base, **changes)  # type: ignore[arg-type]


def grounds(**changes: object) -> Grounds:
    names = ("viable", "glucose", "mu_max", "ph_offset")
    mean = [math.log(10.0), math.log(20.0), math.log(0.8), 0.01]
    cov = [[0.01 if i == j else 0.001 for j in range(4)] for i in range(4)]
    fresh = Reading(1.0, 3.9, 3.95)
    base = Grounds(
        now=4.0,
        names=names,
        mean=mean,
        cov=cov,
        medians={"mu_max": 0.8},
        readings={"viable_density": fresh, "glucose": fresh, "lactate": fresh},
        stale_after={"viable_density": 2.0, "glucose": 2.0, "lactate": 2.0, "raman_lactate": 0.25},
        readbacks={a: Readback(r, 3.9, False) for a, r in zip(Control._fields, U, strict=True)},
        commands={},
        applied=list(U),
        limits=Limits(),
        volume=1.0,
        dose=20.0,
        latest=14.0,
        mu_max=0.8,
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def faithful(p: Plan) -> Sequence[State]:
    return p.states


def code(fault: Fault | None) -> str | None:
    return None if fault is None else fault.code
