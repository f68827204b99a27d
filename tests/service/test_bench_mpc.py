"""`celltwin bench mpc`: everyone solves the same problem, and what must not happen is counted."""

from __future__ import annotations

import numpy as np
import pytest

from service.bench import mpc, mpc_peers
from service.bench.mpc_bad import bad_states, cold_starts, sound, spoiled
from service.bench.mpc_problem import STAGES, Case, in_turn, problem, recorded
from service.bench.timing import Timed
from twin.config import load_config

PROCESS = load_config("car_nk")


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return recorded(PROCESS, 3, 2)


def test_ours_and_ipopt_have_one_optimum(cases: list[Case]) -> None:
    ours = [f.cost for f in in_turn(PROCESS, cases)]
    assert mpc_peers.Lean(PROCESS).in_turn(cases) == pytest.approx(ours, rel=1e-6)


def test_do_mpc_has_the_same_where_it_is_installed(cases: list[Case]) -> None:
    if not mpc_peers.installed():
        pytest.skip("the extra `bench` is not installed")
    ours = [f.cost for f in in_turn(PROCESS, cases)]
    assert mpc_peers.DoMpc(PROCESS, tuned=True).in_turn(cases) == pytest.approx(ours, rel=1e-6)


def test_nine_scenarios_are_the_donors_and_one_is_the_median(cases: list[Case]) -> None:
    one, nine = problem(PROCESS, cases[0]), problem(PROCESS, cases[0], 9)
    assert (one.scenarios, nine.scenarios, nine.stages) == (1, 9, STAGES)
    assert nine.theta[4] == pytest.approx(one.theta[0])
    assert len({row.tobytes() for row in nine.theta}) == 9


def test_the_closed_loop_is_recorded_by_its_seed(cases: list[Case]) -> None:
    again, other = recorded(PROCESS, 3, 2), recorded(PROCESS, 4, 2)
    assert again[1].x0.tobytes() == cases[1].x0.tobytes()
    assert other[1].x0.tobytes() != cases[1].x0.tobytes()


def test_no_plan_leaves_a_bad_state_and_no_cold_start_fails() -> None:
    assert bad_states(PROCESS, 3, 25) == (0, 0)
    assert cold_starts(PROCESS, 3, 3) == 0
    batch, rng = sound(PROCESS, 3), np.random.default_rng(0)
    for k in range(10):
        bad = spoiled(batch.belief, batch, rng, k)
        assert repr((bad.mean.tolist(), bad.cov.tolist())) != repr(
            (batch.belief.mean.tolist(), batch.belief.cov.tolist())
        )


def test_ratios_are_to_the_first_row_and_objectives_to_ipopt_s() -> None:
    done = [
        Timed(mpc.DEFAULT, mpc.NOMINAL, (30.0, 30.0), np.array([1.0, 2.2])),
        Timed(mpc.LEAN, mpc.NOMINAL, (10.0, 10.0), np.array([1.0, 2.0])),
        Timed(mpc.OURS, mpc.NOMINAL, (2.0, 2.0), np.array([1.0, 2.0])),
        Timed("do-mpc", mpc.NOMINAL, (), None, "not installed"),
    ]
    rows = {row["name"]: row for row in mpc.figures(done)}
    assert rows[mpc.OURS]["ratio"] == pytest.approx(15.0)
    assert rows[mpc.DEFAULT]["agreement"] == pytest.approx(0.1)
    assert rows[mpc.OURS]["agreement"] == 0.0
    assert rows["do-mpc"]["skipped"] == "not installed"
