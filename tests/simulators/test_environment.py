"""The Gymnasium environment: the checker, bits by seed, the rig of the campaigns, a reward that can be added up by hand."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from controllers.mpc.settings import Prices
from simulators import VirtualBioreactor, run_closed_loop
from simulators.environment import BELIEVED, ID, Bioreactor, gymnasium
from twin.config import load_config
from twin.twin import Twin

PROCESS = load_config("car_nk")
FREE = Prices(*([0.0] * len(Prices._fields)))
HALF = np.array([0.2, 0.0, 0.5, 0.0], dtype=np.float32)


def run_through(env: Any, action: Any, **reset: Any) -> tuple[float, list[np.ndarray], dict[str, Any]]:
    """Sum of rewards, observations and the last info of one episode; `action` a constant, or "recipe"."""
    observation, info = env.reset(**reset)
    seen, earned = [observation], 0.0
    while True:
        chosen = info["recipe"].astype(np.float32) if isinstance(action, str) else action
        observation, reward, terminated, truncated, info = env.step(chosen)
        seen.append(observation)
        earned += reward
        if terminated or truncated:
            return earned, seen, {**info, "terminated": terminated, "truncated": truncated}


def test_the_checker_passes() -> None:
    from gymnasium.utils.env_checker import check_env

    check_env(gymnasium.make(ID, donor=7).unwrapped)


def test_seeds_reproduce_bit_for_bit_and_vectors_are_the_same_environments() -> None:
    both = gymnasium.make_vec(ID, num_envs=2, vectorization_mode="sync", dt=0.5)
    first, told = both.reset(seed=[3, 4])
    for k in (0, 1):
        single = gymnasium.make(ID, dt=0.5)
        observation, info = single.reset(seed=3 + k)
        assert observation.tobytes() == first[k].tobytes()
        assert info["donor"] == told["donor"][k]
    moved, reward, *_ = both.step(np.array([HALF, HALF]))
    observation, earned, *_ = single.step(HALF)
    assert observation.tobytes() == moved[1].tobytes() and earned == reward[1]
    assert told["donor"][0] != told["donor"][1]
    assert single.reset(seed=3)[0].tobytes() == first[0].tobytes()


def test_to_do_what_the_recipe_does_is_the_recipes_batch() -> None:
    """The environment is the rig of the campaigns: acting as the edge would gives the edge's own outcome."""
    env = gymnasium.make(ID, donor=7, dt=1 / 24)
    _, _, info = run_through(env, "recipe", seed=0, options={"seed": 7})
    own, alone = info["outcome"], run_closed_loop(PROCESS, PROCESS.recipe, donor=7, seed=7).outcome
    assert (own["passed"], own["day"], info["terminated"]) == (alone.passed, alone.day, True)
    assert own["cqas"] == pytest.approx(dict(alone.cqas), rel=1e-5)  # actions are single precision
    assert own["medium_vv"] == pytest.approx(alone.medium_vv, rel=1e-5)


def test_the_reward_is_what_was_spent_and_what_was_missed() -> None:
    env = Bioreactor(donor=3, prices=FREE._replace(medium=1.0, day=0.5), dt=0.5)
    earned, seen, info = run_through(env, HALF, seed=1)
    medium = float(seen[-1][env.names.index("medium_vv")])
    assert info["truncated"] and not info["terminated"]
    assert earned == pytest.approx(-medium - 0.5 * info["day"], abs=0.01)  # slacks cost 1e-6 at least
    env = Bioreactor(donor=3, prices=FREE._replace(target_ln=2.0), dt=0.5)
    earned, _, info = run_through(env, np.zeros(4, dtype=np.float32), seed=1)
    cells = info["outcome"]["cqas"]["viable_cells"]
    assert cells < PROCESS.recipe.harvest_cells
    assert earned == pytest.approx(-2.0 * np.log(PROCESS.recipe.harvest_cells / cells), abs=0.01)


def test_a_harvest_that_nothing_supports_is_refused_and_garbage_leaves_the_edge_to_its_recipe() -> None:
    env = Bioreactor(donor=3, dt=0.5)
    env.reset(seed=1)
    _, _, terminated, truncated, info = env.step(np.array([0.1, 0.0, 0.5, 1.0]))
    assert not terminated and not truncated
    assert "not_counted" in info["refused"][0]
    *_, info = env.step(np.array([np.nan, 0.0, 0.5, 0.0]))
    assert "keeps to its recipe" in info["refused"][0]
    alone = VirtualBioreactor(PROCESS, 3, seed=env.seed)
    left = Bioreactor(donor=3, dt=0.5)
    left.reset(seed=1)
    left.step(np.full(4, np.nan))
    alone.tick(until=0.5)
    assert left.unwrapped._rig is not None and left.unwrapped._rig.state == alone.state
    with pytest.raises(ValueError, match="4 numbers"):
        env.step(np.zeros(3))


def test_what_is_seen_is_what_was_read() -> None:
    env = Bioreactor(donor=3, faults=("ph/nan@0", "do/off@0"))
    observation, _ = env.reset(seed=1)
    for _ in range(5):
        observation, *_ = env.step(HALF)
    seen = dict(zip(env.names, observation.tolist(), strict=True))
    rig = env._rig
    assert rig is not None and observation in env.observation_space
    assert seen["glucose"] == pytest.approx(rig.readings["glucose"].value, rel=1e-6)
    assert seen["glucose_age"] == pytest.approx(rig.clock - rig.readings["glucose"].sampled_at, rel=1e-4)
    assert seen["ph_age"] == seen["do_age"] == -1.0  # never read
    assert seen["capacitance_age"] < 0.01


def test_the_belief_is_the_twins() -> None:
    env = Bioreactor(donor=3, observation="belief", dt=1 / 24)
    observation, _ = env.reset(seed=1)
    rig = VirtualBioreactor(PROCESS, 3, seed=env.seed)
    twin = Twin.start(PROCESS).tell(rig.tick())
    believed = twin.estimate(0.0)
    for name in BELIEVED:
        k = env.names.index(name)
        assert observation[k : k + 2] == pytest.approx([believed[name].mean, believed[name].sd], rel=1e-6)


def test_a_batch_beyond_its_limits_ends_where_that_is_asked() -> None:
    process = replace(PROCESS, limits=replace(PROCESS.limits, lactate_hard=2.0))
    _, _, info = run_through(Bioreactor(process, donor=3, dt=0.5, stop_beyond_limits=True), HALF, seed=1)
    assert info["terminated"] and info["day"] < 5.0
    assert not info["outcome"]["passed"] and info["outcome"]["reason"] == "lactate beyond 2"


@pytest.mark.parametrize(
    ("options", "said"),
    [({"dt": 0.1}, "multiple"), ({"dt": 1.0}, "below a day"), ({"observation": "soul"}, "unknown"), ({"faults": ("ph/melted",)}, "mode"), ({"faults": ("total_density/off",)}, "no instrument")],
)  # fmt: skip
def test_impossible_options_are_told(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Bioreactor(**options)


def test_calls_out_of_turn_are_told() -> None:
    env = Bioreactor(donor=3)
    with pytest.raises(RuntimeError, match="reset"):
        env.step(HALF)
    with pytest.raises(ValueError, match="unknown options"):
        env.reset(options={"colour": 1})


def test_gymnasium_is_needed_only_here(root: Path) -> None:
    source = (
        "import sys, simulators, service.cli.simulate\n"
        "assert 'gymnasium' not in sys.modules\n"
        "sys.modules['gymnasium'] = None\n"
        "import simulators.environment\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", source], cwd=root, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1
    assert "this needs gymnasium: pip install 'celltwin[gym]'" in done.stderr.splitlines()[-1]
