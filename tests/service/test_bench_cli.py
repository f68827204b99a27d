"""`celltwin bench`: peers side by side, their answers held against each other; a mistake is one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from service.bench import filters, stone
from service.bench.peers import by_rk4, by_solver, day_again, one_step
from service.bench.problem import Problem, make_problem
from service.bench.timing import Posterior, Row, apart, run_rows
from service.cli import run
from simulators.history import synthetic_history
from twin.config import load_config


@pytest.fixture(scope="module")
def problem() -> Problem:
    return make_problem(seed=3, reactors=3)


def rows(problem: Problem) -> dict[str, Callable[[], Posterior]]:
    return {row.name: row.run for row in filters.ours(problem, "ours", 0.0)}


def test_our_step_is_that_of_the_textbook_filter(problem: Problem) -> None:
    """filterpy's own filter on the same fixed steps; and the solver of a user stays within its tolerance of both."""
    ours, book = rows(problem)["ours: UKF"](), one_step(problem, by_rk4)
    assert apart(ours, book) < 1e-10
    assert apart(rows(problem)["ours: EKF"](), book) < 0.2
    assert 0.0 < apart(one_step(problem, by_solver("LSODA", rtol=1e-6)), book) < 1e-4
    before = problem.beliefs[0]
    assert apart(ours, Posterior(before.mean, before.cov)) > 0.3  # the readings did tell it something


def test_the_stacked_step_is_that_of_every_reactor(problem: Problem) -> None:
    stacked = rows(problem)["ours: stacked"]()
    for i in range(problem.reactors):
        alone = one_step(problem, by_rk4, i)
        assert apart(Posterior(stacked.mean[i], stacked.cov[i]), alone) < 1e-10


@pytest.mark.slow
def test_the_day_replayed_is_the_day_filtered_with_the_late_count_in_its_place(problem: Problem) -> None:
    assert apart(rows(problem)["ours: rewind and replay"](), day_again(problem, by_rk4)) < 1e-9


def test_stone_soup_agrees_where_it_is_installed(problem: Problem) -> None:
    if not stone.installed():
        pytest.skip("the extra `bench` is not installed")
    assert apart(stone.one_step(problem)(), one_step(problem, by_rk4)) < 1e-9


def test_distance_is_in_standard_deviations_of_mean_and_spread() -> None:
    two = Posterior(np.array([1.0, 5.0]), np.diag([4.0, 9.0]))
    assert apart(Posterior(np.array([2.0, 5.0]), two.cov), two) == pytest.approx(0.5)
    assert apart(Posterior(two.mean, np.diag([4.0, 4.0])), two) == pytest.approx(1.0 / 3.0)


def test_rows_take_turns_and_their_times() -> None:
    order: list[str] = []

    def row(name: str, times: int) -> Row:
        def work() -> Posterior:
            order.append(name)
            return Posterior(np.zeros(1), np.eye(1))

        return Row(name, "g", work, times)

    done = run_rows([row("a", 4), row("b", 1)], 2, lambda _: None)
    assert [len(t.ms) for t in done] == [4, 1]
    assert order == ["a", "b", "a", "a", "b", "a", "a"]


@pytest.mark.slow
def test_json_has_the_keys_that_others_rely_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stone, "installed", lambda: False)
    assert run(["bench", "filter", "--json", "--reactors", "4", "--effort", "0.01"]) == 0
    answer = json.loads(capsys.readouterr().out)
    named = {row["name"]: row for row in answer["rows"]}
    assert all({"name", "median_ms", "p95_ms", "ratio", "agreement"} <= set(row) for row in answer["rows"])
    assert named["Stone-Soup"]["median_ms"] is None and "celltwin[bench]" in named["Stone-Soup"]["skipped"]
    assert {"ours, no compiler: UKF", "ours, no compiler: stacked"} <= set(named)
    groups = list(dict.fromkeys(row["group"] for row in answer["rows"]))
    assert groups == ["15 min and 8 readings", "the same, 4 reactors", "a late fact replays 24 h (96 such steps)"]
    for group in groups:
        first, *others = [row for row in answer["rows"] if row["group"] == group and row["median_ms"] is not None]
        assert first["ratio"] == 1.0 and first["agreement"] is None
        assert all(row["agreement"] < (0.5 if "EKF" in row["name"] else 1e-3) for row in others)
        assert all(row["ratio"] == pytest.approx(row["base_ms"] / row["median_ms"]) for row in others)
    assert {"cpu", "python", "casadi", "compiler"} <= set(answer["machine"])
    assert [o["met"] for o in answer["owed"] if "[sd]" in o["claim"]] == [True, True]


def test_people_get_tables_and_a_wrong_answer_is_exit_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(*_: Any) -> dict[str, Any]:
        kept = {"group": "a step", "p95_ms": 9.0}
        return {
            "rows": [
                {"name": "theirs", "median_ms": 8.0, "ratio": 1.0, "agreement": None, **kept},
                {"name": "ours", "median_ms": 0.08, "ratio": 100.0, "agreement": 2e-3, **kept},
                {
                    "name": "absent",
                    "median_ms": None,
                    "ratio": None,
                    "agreement": None,
                    "skipped": "pip install 'celltwin[bench]'",
                    **kept,
                },
            ],
            "owed": [
                {
                    "claim": "ours, times theirs, at least",
                    "limit": 200.0,
                    "measured": 100.0,
                    "met": False,
                    "answer": False,
                },
                {
                    "claim": "ours, from theirs [sd], at most",
                    "limit": 1e-10,
                    "measured": 2e-3,
                    "met": far,
                    "answer": True,
                },
            ],
            "problem": {"coordinates": 3},
            "machine": {"cpu": "abacus"},
        }

    monkeypatch.setattr(filters, "measure", measured)
    far = True
    assert run(["bench", "filter"]) == 0  # a missed time is said; only a wrong answer is a bad result
    told = " ".join(capsys.readouterr().out.split())
    assert (
        "skipped: absent: pip install 'celltwin[bench]'" in told
        and "2.0e-03" in told
        and "MISSED: ours, times theirs" in told
        and "abacus" in told
    )
    assert "met: ours, from theirs [sd], at most 1e-10" in told
    far = False
    assert run(["bench", "filter"]) == 1


def test_an_unknown_benchmark_is_one_line_that_names_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "weather"]) == 2
    complaint = capsys.readouterr().err
    assert "'weather'" in complaint and "filter" in complaint and complaint.count("\n") == 1
    assert run(["bench", "filter", "--reactors", "0"]) == 2


@pytest.mark.slow
def test_the_fit_is_benched_on_pymc_s_own_gradient() -> None:
    pytest.importorskip("pymc", reason="needs the donors extra")
    from service.bench import donors
    from twin.donors.fit import Settings

    short = Settings(draws=20, tune=20, chains=2)
    process = load_config("car_nk")
    answer = donors.measure(synthetic_history(process, 4, 3), process, 1, 0.0, lambda _: None, short)
    theirs, ours, posterior = answer["rows"]
    assert ours["agreement"] < 1e-8
    assert ours["ratio"] == pytest.approx(theirs["median_ms"] / ours["median_ms"])
    assert posterior["median_ms"] == pytest.approx(1e3 * answer["fit"]["cpu_s"] / answer["fit"]["ess"])
    owed = {o["claim"]: o for o in answer["owed"]}
    assert not owed["bulk ESS above"]["met"]  # 40 draws are no posterior, and it says so
    assert answer["problem"]["donors"] == 4
