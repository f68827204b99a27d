"""`celltwin backtest`: one JSON object with the published keys, and one line for a user's mistake."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from service.cli import run
from twin.backtest import learn


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(learn, "ITERATIONS", 1)
    monkeypatch.setattr(learn, "NOISE_LEVELS", (0.10,))
    monkeypatch.setattr(learn, "COUNTING", ((0.08, 0.0),))
    rows = [f"{b},{b},{t},viable_density,{0.3 * 1.8**t:.4f},1e6 cells/mL" for b in ("A", "B", "C") for t in range(4)]
    path = tmp_path / "run.csv"
    path.write_text("batch,donor,time_d,channel,value,unit\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return path


def test_json_has_the_keys_that_others_rely_on(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["backtest", str(small), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    score = answer["one_step"]["viable_density"]
    assert {"rmse_log", "n", "coverage90", "persistence", "group_mean", "balances", "crps"} <= set(score)
    assert score["n"] == 9 and score["persistence"] == pytest.approx(0.588, abs=2e-3) and score["group_mean"] < 1e-3
    assert isinstance(answer["horizon"], list) and answer["mapping"] == "tidy"


def test_the_table_says_where_the_twin_stands(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["backtest", str(small)]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "beats persistence" in told and "does not beat the mean of the other groups" in told


def test_pooling_is_compared_on_request(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small.write_text(
        small.read_text(encoding="utf-8").replace("B,B,2,viable_density,0.9720", "B,B,2,viable_density,1.2")
    )
    assert run(["backtest", str(small), "--pooling", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [(row["channel"], row["other"]) for row in answer["pooling"]] == [
        ("viable_density", "complete"),
        ("viable_density", "none"),
    ]
    for row in answer["pooling"]:
        assert row["difference"] == pytest.approx(row["partial"] - row["alternative"])
        assert row["groups"] == 3 and row["readings"] == 9 and row["se"] > 0
        assert row["interval95"][0] < row["difference"] < row["interval95"][1]
    assert run(["backtest", str(small), "--pooling"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "With 3 groups a difference has to exceed 4.3 standard errors" in told and "once in 8 times" in told
    assert run(["backtest", str(small), "--pooling", "--prior", "car_nk"]) == 2
    assert "--prior learns nothing" in capsys.readouterr().err


def test_mistakes_are_one_line_and_exit_2(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small.write_text(small.read_text(encoding="utf-8").replace("1e6 cells/mL", "mM", 1), encoding="utf-8")
    assert run(["backtest", str(small)]) == 2
    complaint = capsys.readouterr().err
    assert "row 2: column unit" in complaint and complaint.count("\n") == 1
    small.write_text("batch,donor,time_d,channel,value,unit\nA,A,0,viable_density,1,1e6 cells/mL\n", encoding="utf-8")
    assert run(["backtest", str(small)]) == 2
    assert "needs two or more" in capsys.readouterr().err
