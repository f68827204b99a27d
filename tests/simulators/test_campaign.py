"""Campaigns: honest proportions, paired donors, files that compare again, one-line errors."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pandas as pd
import pytest
from scipy.stats import binomtest

from service.cli import run
from simulators.campaign import ALL, jobs, run_job, summary
from simulators.comparison import paired
from simulators.metrics import margin, summarise, wilson
from twin.config import load_config
from twin.process import Target

PROCESS = load_config("car_nk")


@pytest.mark.parametrize(("k", "n"), [(0, 10), (7, 50), (25, 50), (50, 50), (399, 400)])
def test_the_interval_is_wilsons(k: int, n: int) -> None:
    reference = binomtest(k, n).proportion_ci(method="wilson")
    assert wilson(k, n) == pytest.approx((reference.low, reference.high), abs=1e-9)


@pytest.mark.parametrize(("k", "n"), [(1, 0), (-1, 5), (6, 5)])
def test_no_proportion_no_interval(k: int, n: int) -> None:
    with pytest.raises(ValueError, match="proportion"):
        wilson(k, n)


def test_margin_is_negative_exactly_where_a_target_is_missed() -> None:
    targets = (Target("viability", "at_least", 0.8, ""), Target("lactate", "at_most", 30.0, "mM"))
    assert margin(targets, {"viability": 0.9, "lactate": 24.0}) == pytest.approx(0.125)
    assert margin(targets, {"viability": 0.76, "lactate": 24.0}) == pytest.approx(-0.05)
    assert margin(targets, {"viability": 0.9, "lactate": 33.0}) == pytest.approx(-0.1)
    assert margin((), {}) == math.inf


def row(donor: int, passed: bool, medium: float = 6.0, density: float = 21.0) -> dict[str, object]:
    return {
        "donor": donor, "seed": donor, "scenario": "nominal", "policy": "p", "passed": passed, "missed": "" if passed else "viability",
        "margin": 0.1 if passed else -0.1 * donor, "day": 10.0, "medium_vv": medium, "viable_density": density, "cytokine": 1.0,
        "lactate_peak": 20.0, "viable_cells": 21.0, "viability": 0.9,
    }  # fmt: skip


def test_summary_counts_what_happened() -> None:
    s = summarise([row(1, True, 5.0, 20.0), row(2, True, 7.0, 22.0), row(3, False, 9.0, 5.0), row(4, False, 3.0, 5.0)])
    assert s["pass"] == 0.5
    assert s["n"] == 4
    assert s["medium_vv"] == pytest.approx(6.0)
    assert s["medium_vv_passed"] == pytest.approx(6.0)
    assert s["harvest_cv"] == pytest.approx(2**0.5 / 21.0)
    assert s["missed"] == {"viability": 2}
    assert s["worst"]["donor"] == 4


def test_pairs_count_discordant_donors_only_where_both_ran() -> None:
    a = [row(d, d < 6) for d in range(10)]
    b = [row(d, True, 5.0) for d in range(2, 12)]
    result = paired(a, b)
    assert (result["n"], result["only_first"], result["only_second"]) == (8, 0, 4)
    assert result["p"] == pytest.approx(binomtest(0, 4).pvalue)
    assert result["medium_saved"] == pytest.approx(1.0)
    assert paired(a, a)["p"] == 1.0


def test_every_policy_meets_the_same_donors() -> None:
    work = jobs(PROCESS, ("cspr_50", "mpc"), 3, first=7)
    assert [j.policy for j in work] == ["mpc"] * 3 + ["cspr_50"] * 3
    assert sorted({j.donor for j in work}) == [7, 8, 9]
    with pytest.raises(ValueError, match="donors"):
        jobs(PROCESS, ("mpc",), 0)


def test_a_job_is_a_pure_function() -> None:
    job = jobs(PROCESS, ("lactate_p_8",), 1, first=4)[0]
    first = run_job(job)
    assert first == run_job(job)
    assert first["policy"] == "lactate_p_8"
    assert summary([first])["lactate_p_8"]["n"] == 1
    assert set(ALL) >= {"mpc", "cspr_100"}


def command(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = run(list(arguments))
    out, err = capsys.readouterr()
    return code, out, err


def test_simulate_and_compare_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "a"
    code, out, _ = command(
        capsys, "simulate", "-c", "car_nk", "--policy", "cspr_50,constant_2", "--donors", "2", "--workers", "1",
        "-o", str(folder), "--json",
    )  # fmt: skip
    assert code == 0
    report = json.loads(out)
    assert list(report["policies"]) == ["cspr_50", "constant_2"]
    for s in report["policies"].values():
        assert {"pass", "pass_ci", "days", "medium_vv", "harvest_cv", "n"} <= set(s)
        assert s["n"] == 2
        assert s["pass_ci"][0] <= s["pass"] <= s["pass_ci"][1]
    assert json.loads((folder / "summary.json").read_text()) == report
    frame = pd.read_parquet(folder / "batches.parquet")
    assert len(frame) == 4
    again = tmp_path / "b"
    assert (
        command(capsys, "simulate", "--policy", "cspr_50", "--donors", "2", "--workers", "2", "-o", str(again))[0] == 0
    )
    same = pd.read_parquet(again / "batches.parquet")
    pd.testing.assert_frame_equal(
        frame[frame.policy == "cspr_50"].reset_index(drop=True), same
    )  # two processes, same bytes
    picture = tmp_path / "c.png"
    code, out, _ = command(capsys, "compare", str(folder), str(again), "--json", "--plot", str(picture))
    assert code == 0
    compared = json.loads(out)
    assert set(compared["policies"]) == {"cspr_50@a", "cspr_50@b", "constant_2"}
    assert picture.stat().st_size > 1000
    code, out, _ = command(capsys, "compare", str(folder))
    assert code == 0
    assert "constant_2" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["simulate", "-c", "nowhere"], "nowhere"),
        (["simulate", "--policy", "guesswork"], "guesswork"),
        (["simulate", "--policy", " , "], "--policy"),
        (["simulate", "--policy", "cspr_50", "--donors", "0"], "--donors"),
        (["simulate", "--policy", "cspr_50", "--scenario", "paradise"], "paradise"),
        (["simulate", "--policy", "cspr_50", "--filter", "guess"], "--filter"),
        (["simulate", "--policy", "cspr_50", "--donors", "many"], "--donors"),
        (["compare", "nowhere"], "nowhere"),
        (["compare"], "runs"),
    ],
)
def test_mistakes_get_one_line_and_exit_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = command(capsys, *arguments)
    assert code == 2
    assert out == ""
    assert said in err
    assert len(err.strip().splitlines()) == 1


def test_a_folder_that_cannot_be_written_is_told_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("in the way")
    code, _, err = command(capsys, "simulate", "--policy", "cspr_50", "-o", str(tmp_path / "file" / "run"))
    assert code == 2
    assert "--out" in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize("content", [b"", b"PAR1 not really", b"policy,donor\n"])
def test_a_broken_run_is_told(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "batches.parquet"
    path.write_bytes(content)
    code, _, err = command(capsys, "compare", str(tmp_path))
    assert code == 2
    assert "batches.parquet" in err
    assert len(err.strip().splitlines()) == 1
    pd.DataFrame({"policy": ["x"]}).to_parquet(path)
    code, _, err = command(capsys, "compare", str(tmp_path))
    assert code == 2
    assert "are missing" in err
