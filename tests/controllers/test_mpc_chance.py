"""Targets held back for a chance: the margin is the belief's own spread, and what was promised is what futures of the belief do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit, logit
from scipy.stats import norm

from controllers.mpc import make_mpc
from controllers.mpc.chance import MOST, Foreseen
from controllers.mpc.objective import PATH, PATH_SCALE
from controllers.mpc.policy import by_sqp
from controllers.mpc.task import Task, make_task, strict_targets
from controllers.mpc.tree import nominal
from controllers.plan import Situation
from controllers.recipes import recipe_schedule
from twin.bioreactor import Control, Coordinates, State, to_coordinates
from twin.config import ConfigError, load_config
from twin.estimation.belief import Belief, Layout, split
from twin.process import Process, Target
from twin.transition import advance_many, flat

PROCESS = load_config("car_nk")
STILL = replace(PROCESS, noise=Coordinates(*[0.0] * 13), parameter_walk=0.0, restless={})
"""The process without noise to come: the belief's spread is all there is."""
LAYOUT = Layout(("mu_max", "Y_LG"), ("ph_offset",))
DAY10 = State(6.5, 6.0, 1.2, 14.0, 15.0, 3.5, 2.0, 130.0, 11.0, 0.1, 16.0, 0.99, 1.0)


def task(process: Process, sd: float = 0.06, **settings: float) -> Task:
    cell = process.theta.cell
    mean = np.log(np.array([*to_coordinates(DAY10), cell.mu_max, cell.Y_LG], dtype=float))
    variances = np.full(mean.size + 1, sd**2)
    variances[12] = 1e-8  # the volume is known
    belief = Belief(10.0, np.append(mean, 0.0), np.diag(variances))
    applied, recipe = Control(0.8, 0.0, 0.0, 300.0), recipe_schedule(process.recipe)(10.0, DAY10)
    s = Situation(10.0, belief, LAYOUT, {}, applied, recipe, process, 3.0)
    return make_task(s, process, make_mpc(process, **settings).settings)


def test_the_spread_begins_as_the_belief_s_and_grows_with_noise() -> None:
    calm, noisy = task(STILL, chance=0.9).foreseen, task(PROCESS, chance=0.9).foreseen
    assert calm is not None
    assert noisy is not None
    for f in (calm, noisy):
        assert f.sd["viable_cells"][0] == pytest.approx(0.06, rel=1e-3)
        assert f.sd["viability"][0] == pytest.approx(0.06 * np.sqrt(2.0), rel=1e-6)
    assert (noisy.sd["viable_cells"][1:] > calm.sd["viable_cells"][1:]).all()
    own = PROCESS.noise.viable
    gained = noisy.sd["viable_cells"][4] ** 2 - calm.sd["viable_cells"][4] ** 2
    assert 0.3 * own**2 < gained < 3.0 * own**2  # a day's worth


@pytest.mark.parametrize("chance", [0.8, 0.95])
def test_futures_of_the_belief_meet_the_dose_as_often_as_promised(chance: float) -> None:
    """Drawn from the belief and simulated under the plan, which does not adapt: no solver and no filter in it."""
    t = task(STILL, chance=chance, sd_floor=0.0)
    h = 10
    found, course = by_sqp(t, h, None)
    assert found.status == "solved"
    assert course is not None
    rng, n = np.random.default_rng(4), 2000
    k = LAYOUT.error_start
    points = t.belief.mean[:k, None] + np.linalg.cholesky(t.belief.cov[:k, :k]) @ rng.standard_normal((k, n))
    x, cell, _ = split(np.vstack([points, np.zeros(n)]), LAYOUT, t.theta.cell)
    theta = np.repeat(flat(t.theta)[:, None], n, axis=1)
    for name in LAYOUT.parameters:
        theta[t.theta.cell._fields.index(name)] = getattr(cell, name)
    states, advance = np.array([np.broadcast_to(v, n) for v in x]), advance_many()
    for perfusion, feed, dose in course.moves:
        states = advance(states, np.array([perfusion, feed, 0.0, dose]), theta, 0.25)
    met = float(np.mean((states[0] + states[1]) * states[12] >= t.process.dose))
    assert norm.ppf(met) == pytest.approx(norm.ppf(chance), abs=0.25)


def test_an_even_chance_holds_nothing_back_and_none_keeps_the_margins_of_before() -> None:
    even = task(STILL, chance=0.5)
    assert [t.value for t in strict_targets(even, 6)] == pytest.approx([t.value for t in even.targets])
    assert nominal(even, 6)[0].tightened == pytest.approx(np.zeros((6, len(PATH))))
    assert task(STILL).foreseen is None
    assert nominal(task(STILL), 6)[0].tightened is None


def test_margins_are_quantiles_and_have_an_end() -> None:
    wide = np.full(5, 0.2)
    f = Foreseen(dict.fromkeys(("viable_cells", "viability", "lactate", "exhausted_fraction"), wide))
    z = norm.ppf(0.9)
    assert f.strict(Target("viable_cells", "at_least", 20.0, "-"), 4, 0.9, 0.0) == pytest.approx(20.0 * np.exp(0.2 * z))
    assert f.strict(Target("viability", "at_least", 0.8, "-"), 4, 0.9, 0.0) == pytest.approx(
        expit(logit(0.8) + 0.2 * z)
    )
    assert f.strict(Target("exhausted_fraction", "at_most", 0.3, "-"), 4, 0.9, 9.0) < 0.3
    vague = Foreseen(dict.fromkeys(f.sd, 10.0 * wide))
    assert vague.strict(Target("viability", "at_least", 0.8, "-"), 4, 0.9, 0.0) == pytest.approx(0.8 + MOST["fraction"])
    assert vague.strict(Target("viable_cells", "at_least", 1.0, "-"), 4, 0.9, 0.0) == pytest.approx(np.exp(MOST["ln"]))
    row = PATH.index("lactate_hard")
    back = f.back_offs(28.0, 3, 0.9)
    assert back[:, row] * PATH_SCALE[row] == pytest.approx(28.0 * (1.0 - np.exp(-0.2 * z)))
    assert np.delete(back, row, axis=1) == pytest.approx(0.0)


@pytest.mark.parametrize("chance", [0.4, 1.0, -1.0])
def test_what_is_no_chance_is_refused(chance: float) -> None:
    with pytest.raises(ConfigError, match="mpc: field chance"):
        make_mpc(PROCESS, chance=chance)
