"""`celltwin bench futures`: every route carries the same futures to the same place, and the reference is LSODA's."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from service.bench import futures
from service.bench.futures import Problem, apart, by_lsoda, by_map, by_numpy, by_vectors, grown, make_problems
from service.cli import run
from twin.config import load_config
from twin.transition import advance_many


@pytest.fixture(scope="module")
def problems() -> tuple[Problem, ...]:
    process = load_config("car_nk")
    return make_problems(process, grown(process), 3, 12, 3)


def test_every_route_takes_the_same_steps(problems: tuple[Problem, ...]) -> None:
    for problem in problems:
        ours = problem.carried(advance_many(1.0 / 48.0))
        np.testing.assert_array_equal(problem.carried(advance_many(1.0 / 48.0, compiled=False)), ours)
        for carry in (by_map(1.0 / 48.0), by_numpy(1.0 / 48.0), by_vectors(1.0 / 48.0)):
            assert apart(problem.carried(carry), ours) < 1e-10


def test_the_reference_is_what_a_tight_solver_says(problems: tuple[Problem, ...]) -> None:
    for problem in (problems[0], problems[2].sample(1)):
        fine = problem.carried(advance_many(futures.FINE))
        assert apart(fine, problem.carried(by_lsoda(1e-10, 1e-12))) < 1e-7
        assert 0.0 < apart(problem.carried(by_lsoda(1e-6, wrapper="odeint")), fine) < 1e-4


def test_futures_differ_in_state_kinetics_and_rates(problems: tuple[Problem, ...]) -> None:
    for problem in problems:
        assert np.ptp(problem.x[0]) > 0.0
        assert np.ptp(problem.theta[0]) > 0.0
        assert max(np.ptp(u[0]) for u in problem.controls) > 0.0
    assert len(problems[2].controls) == 28


@pytest.mark.slow
def test_json_has_the_keys_that_others_rely_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = futures.measure

    def small(seed: int, effort: float, advance: Any) -> dict[str, Any]:
        return whole(seed, effort, advance, short=8, long=2, whole=20)

    monkeypatch.setattr(futures, "measure", small)
    assert run(["bench", "futures", "--json", "--effort", "0", "--seed", "3"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert all({"name", "group", "median_ms", "p95_ms", "ratio", "agreement"} <= set(row) for row in answer["rows"])
    groups = list(dict.fromkeys(row["group"] for row in answer["rows"]))
    assert groups == [
        "8 futures, 6 h from day 3", "8 futures, 6 h from day 9", "2 futures, 28 d, daily rates", "20 futures to harvest, with statistics",
    ]  # fmt: skip
    assert all(row["agreement"] <= futures.TOLERANCE for row in answer["rows"] if row["agreement"] is not None)
    assert all(o["met"] for o in answer["owed"] if o["answer"])
    assert {"times the LSODA loop" in o["claim"] for o in answer["owed"]} == {True, False}
