"""What the process model says a plan would do, by fixed-step integration: the check that no optimiser is part of."""

from __future__ import annotations

import numpy as np

from controllers.plan import Plan, Situation
from twin.bioreactor import State
from twin.estimation.belief import split
from twin.transition import advance_many, flat


def resimulate(situation: Situation, plan: Plan) -> list[State]:
    """The plan's controls from the belief's mean, in plain floats: one state more than controls.

    Runs the compiled transition of `twin.transition` (classical Runge-Kutta, bitwise the same with and without a C
    compiler): another integrator and another code path than the collocation that makes the plans of the MPC.
    """
    x, cell, _ = split(situation.belief.mean, situation.layout, situation.process.theta.cell)
    parameters = flat(situation.process.theta._replace(cell=cell))[:, None]
    advance, column = advance_many(), np.array(x, dtype=float)[:, None]
    states = [State(*column[:, 0].tolist())]
    for control in plan.controls:
        column = advance(column, np.array(control, dtype=float), parameters, plan.step)
        states.append(State(*column[:, 0].tolist()))
    return states
