"""A batch on its tenth day, to be planned for: what the tests of the MPC's solvers share."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from controllers.mpc import make_mpc
from controllers.mpc.policy import by_sqp
from controllers.mpc.sqp import Found
from controllers.mpc.task import Course, Task, make_task
from controllers.plan import Situation
from controllers.recipes import recipe_schedule
from twin.bioreactor import Control, State, to_coordinates
from twin.config import load_config
from twin.estimation.belief import Belief, Layout

PROCESS = load_config("car_nk")
LAYOUT = Layout(("mu_max", "Y_LG"), ())
DAY10 = State(6.5, 6.0, 1.2, 14.0, 15.0, 3.5, 2.0, 130.0, 11.0, 0.1, 16.0, 0.99, 1.0)
ACID = DAY10._replace(lactate=24.0, strong_ion=8.0)


def situation(x: State, now: float = 10.0) -> Situation:
    cell = PROCESS.theta.cell
    with np.errstate(all="ignore"):
        mean = np.log(np.array([*to_coordinates(x), cell.mu_max, cell.Y_LG], dtype=float))
    belief = Belief(now, mean, np.eye(mean.size) * 0.03**2)
    applied, recipe = Control(0.8, 0.0, 0.0, 300.0), recipe_schedule(PROCESS.recipe)(now, x)
    return Situation(now, belief, LAYOUT, {}, applied, recipe, PROCESS, 3.0)


@cache
def task(x: State = DAY10, **settings: Any) -> Task:
    return make_task(situation(x), PROCESS, make_mpc(PROCESS, **settings).settings)


@cache
def solved(x: State, h: int) -> tuple[Found, Course]:
    found, course = by_sqp(task(x), h, None)
    assert found.status == "solved"
    assert course is not None
    return found, course
