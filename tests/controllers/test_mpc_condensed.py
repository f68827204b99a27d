"""The condensed quadratic programme: PIQP's optimum by another route, within its limits, and honest where there is none."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from controllers.mpc import condensed, sqp
from controllers.mpc.condensed import solve_condensed
from controllers.mpc.objective import N_CLOSING
from controllers.mpc.quadratic import Data, Step, solve_quadratic
from service.bench.mpc_problem import in_turn, recorded
from twin.config import load_config
from twin.native.build import compiler

pytestmark = pytest.mark.skipif(compiler() is None, reason="no compiler: quadratic programmes are left to PIQP")
PROCESS = load_config("car_nk")


@cache
def programmes(scenarios: int) -> tuple[tuple[Data, int, bool], ...]:
    """Those that real solves ask for, from the first wild iterations to the last."""
    seen: list[tuple[Data, int, bool]] = []
    cases = recorded(PROCESS, 1, 2)

    def listening(d: Data, shared: int, near: bool = True) -> Step | str | None:
        seen.append((d, shared, near))
        return solve_condensed(d, shared, near)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqp, "solve_condensed", listening)
        in_turn(PROCESS, cases[: 2 if scenarios == 1 else 1], scenarios)
    return tuple(seen)


def cost(d: Data, moves: np.ndarray) -> float:
    """What the programme says of these moves, slacks as small as they can be: no solver in it."""
    total = 0.0
    for s in range(len(moves)):
        x, before = np.zeros(13), np.zeros(3)
        for k, u in enumerate(moves[s]):
            v = np.concatenate([before, x, u])
            total += 0.5 * v @ d.hessians[s, k] @ v + d.gradients[s, k] @ v
            x, before = d.by[s, k] @ np.concatenate([x, u]) + d.gap[s, k], u
            past = np.maximum(d.beyond[s, k] + d.beyond_by[s, k] @ x, 0.0)
            total += d.slack[s, k] @ past + d.slack_square[s, k] @ past**2
        rows = d.closing[s] + d.closing_by[s] @ x
        rows[rows.size - N_CLOSING] += d.volume * (d.moves[s, :, 0] + moves[s, :, 0]).sum() - d.left[s]
        total += d.missed[s] @ np.maximum(rows, 0.0)
    return float(total)


def solved(d: Data, shared: int, near: bool = True) -> Step:
    step = solve_condensed(d, shared, near)
    assert isinstance(step, Step)
    assert not step.slow
    return step


@pytest.mark.parametrize("scenarios", [1, 9])
def test_both_solvers_have_one_optimum(scenarios: int) -> None:
    """By value, which is unique: in flat directions the moves of either are as good."""
    for d, shared, near in programmes(scenarios):
        ours, piqp = solved(d, shared, near), solve_quadratic(d, shared, near)
        assert isinstance(piqp, Step)
        least = cost(d, piqp.moves)
        assert cost(d, ours.moves) == pytest.approx(least, abs=2e-5 * (1.0 + abs(least)))
        assert np.abs(ours.moves - piqp.moves).max() < 0.02


@pytest.mark.parametrize("scenarios", [1, 9])
def test_the_step_obeys_bounds_stages_and_prices(scenarios: int) -> None:
    for d, shared, near in programmes(scenarios):
        step = solved(d, shared, near)
        moves = d.moves + step.moves
        assert (moves >= np.minimum(d.low, d.moves) - 1e-7).all()
        assert (moves <= np.maximum(d.high, d.moves) + 1e-7).all()
        assert np.ptp(step.moves[:, : shared if scenarios > 1 else 0], axis=0).max(initial=0.0) == 0.0
        x = np.zeros((scenarios, 13, 1))
        for k in range(step.moves.shape[1]):
            x = d.by[:, k] @ np.concatenate([x, step.moves[:, k, :, None]], axis=1) + d.gap[:, k, :, None]
            assert step.nodes[:, k] == pytest.approx(x[..., 0], abs=1e-9)
        assert (step.path >= 0.0).all()
        assert (step.path <= d.slack + 2.0 * d.slack_square * step.slacks + 1e-6).all()
        assert (step.slacks >= d.beyond + (d.beyond_by @ step.nodes[..., None])[..., 0] - 1e-9).all()


def test_a_step_is_as_short_as_it_is_told_to_be_and_that_limit_is_none_of_the_move_s() -> None:
    d, shared, near = programmes(1)[0]
    free, short = solved(d, shared, near), solved(d._replace(most=0.05), shared, near)
    assert np.abs(free.moves).max() > 0.1
    assert np.abs(short.moves).max() <= 0.05 + 1e-7
    assert not (short.held & (np.abs(short.moves) > 0.04999)).any()
    assert short.held.any()


def test_changes_of_perfusion_are_limited_where_they_are() -> None:
    d, shared, near = programmes(1)[0]
    step = solved(d._replace(step=0.02), shared, near)
    u = np.concatenate([[d.before[0]], (d.moves + step.moves)[0, :, 0]])
    assert np.abs(np.diff(u)).max() <= 0.02 + 1e-6
    assert step.stepped.any()


@pytest.mark.parametrize(("scenarios", "since", "until"), [(1, 0, 2), (1, 5, 6), (9, 0, 3), (9, 3, 5)])
def test_a_move_without_room_stays_and_its_neighbours_ramp_from_it(scenarios: int, since: int, until: int) -> None:
    """As where the recipe does not perfuse yet: the cap leaves no room, and the largest change binds beyond it."""
    d, shared, near = programmes(scenarios)[0]
    start, low, high = d.moves.copy(), d.low.copy(), d.high.copy()
    start[:, since:until, 0] = low[since:until, 0] = high[since:until, 0] = 0.3
    stuck = d._replace(moves=start, low=low, high=high, step=0.1)
    ours, piqp = solve_condensed(stuck, shared, near), solve_quadratic(stuck, shared, near)
    assert isinstance(ours, Step)
    assert isinstance(piqp, Step)
    assert ours.moves[:, since:until, 0] == pytest.approx(0.0, abs=1e-12)
    least = cost(stuck, piqp.moves)
    assert cost(stuck, ours.moves) == pytest.approx(least, abs=2e-5 * (1.0 + abs(least)))
    before = np.full((scenarios, 1), d.before[0])
    assert np.abs(np.diff(np.concatenate([before, (start + ours.moves)[..., 0]], axis=1))).max() <= 0.1 + 1e-6


def test_rows_without_a_price_ask_for_nothing() -> None:
    d, shared, near = programmes(1)[0]
    missed = d.missed.copy()
    missed[:, -2:] = 0.0
    ours, piqp = (
        solve_condensed(d._replace(missed=missed), shared, near),
        solve_quadratic(d._replace(missed=missed), shared, near),
    )
    assert isinstance(ours, Step)
    assert isinstance(piqp, Step)
    assert cost(d._replace(missed=missed), ours.moves) == pytest.approx(
        cost(d._replace(missed=missed), piqp.moves), rel=1e-5
    )


def test_the_first_change_is_limited_where_the_pump_is_above_its_bounds() -> None:
    d, shared, near = programmes(1)[0]
    low, high = d.low.copy(), d.high.copy()
    high[:, 0] = 0.2
    far = d._replace(
        before=d.before + np.array([0.6, 0.0, 0.0]), low=low, high=high, moves=np.clip(d.moves, low, high), step=0.3
    )
    told = solve_condensed(far, shared, near)  # no first change is small enough
    assert isinstance(told, str) or (isinstance(told, Step) and told.slow)


def test_what_has_no_solution_or_no_numbers_is_told() -> None:
    d, shared, _ = programmes(1)[0]
    far = d._replace(moves=d.moves + 5.0, before=d.before - 50.0, step=0.01)  # no change of perfusion is small enough
    told = solve_condensed(far, shared)
    assert isinstance(told, str) or (isinstance(told, Step) and told.slow)
    for name in ("hessians", "gradients", "by", "beyond", "closing"):
        assert isinstance(solve_condensed(d._replace(**{name: getattr(d, name) * np.nan}), shared), str)
    assert isinstance(solve_condensed(d._replace(high=d.low), shared), str)  # nothing to decide


def test_without_a_compiler_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    d, shared, near = programmes(1)[0]
    monkeypatch.setattr(condensed, "_entry", lambda: None)
    assert solve_condensed(d, shared, near) is None


def test_the_same_programme_gives_the_same_bytes() -> None:
    d, shared, near = programmes(9)[-1]
    a, b = solved(d, shared, near), solved(d, shared, near)
    assert a.moves.tobytes() == b.moves.tobytes()
