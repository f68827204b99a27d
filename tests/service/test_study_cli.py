"""`celltwin study`: what is owed is printed beside what was measured; a missed target is exit 1, a mistake exit 2."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from service.cli import main
from simulators.study import STUDIES
from simulators.study.base import Figure


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        main(["study", *words])
    out, err = capsys.readouterr()
    return int(left.value.code or 0), out, err


@pytest.mark.slow
def test_a_study_says_what_is_owed_and_what_was_measured(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "fusion", "--batches", "2", "--first", "40", "--workers", "1", "--json")
    told = json.loads(out)
    assert code == (0 if told["ok"] else 1)
    figures = {f["name"]: f for f in told["figures"]}
    cut = figures["cut in Raman glucose RMSE by fusion"]
    assert cut["low"] == 0.5
    assert cut["holds"] is (cut["value"] >= 0.5)
    assert cut["value"] > 0.4
    assert figures["cut in NRMSE against the model alone"]["value"] > 0.3
    assert told["tables"][0]["rows"]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_figures_in_one_process_and_in_two(capsys: pytest.CaptureFixture[str]) -> None:
    alone, pooled = (
        json.loads(run(capsys, "calibration", "--batches", "2", "--workers", w, "--json")[1]) for w in ("1", "2")
    )
    assert alone["figures"] == pooled["figures"]


@pytest.mark.slow
def test_forecasts_of_release_are_scored_and_drawn(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, err = run(
        capsys,
        "release",
        "--batches",
        "3",
        "--first",
        "40",
        "--workers",
        "1",
        "--json",
        "--plots",
        str(tmp_path / "new"),
    )
    assert out, (code, err)
    told = json.loads(out)
    assert code == (0 if told["ok"] else 1)
    assert told["figures"]
    assert all(f["value"] is not None and f["n"] == 3 for f in told["figures"][:8])  # NaN would be null
    assert all("+/-" in f["note"] for f in told["figures"] if "band" in f["name"] or "Brier" in f["name"])
    harvest, passed = told["tables"]
    assert {row[1] for row in harvest["rows"]} >= {0, 3, 6}
    assert {row[0] for row in passed["rows"]} == {
        "viable_cells",
        "viability",
        "car_fraction",
        "exhausted_fraction",
        "release",
    }
    drawn = {p.name for p in (tmp_path / "new").iterdir()}
    assert {"release_reliability.png", "release_pit.svg", "release_p_release.png"} <= drawn
    assert "release_pit.png" in err


def test_pictures_of_a_study_that_has_none_are_refused_before_it_runs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, out, err = run(capsys, "fusion", "--plots", str(tmp_path))
    assert (code, out) == (2, "")
    assert "has no pictures" in err and "release" in err
    blocked = tmp_path / "file"
    blocked.write_text("")
    code, out, err = run(capsys, "release", "--plots", str(blocked))
    assert (code, out) == (2, "")
    assert str(blocked) in err.replace("\n", "")


def test_a_mistake_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "weather")
    assert (code, out) == (2, "")
    assert "unknown" in err
    assert all(name in err for name in STUDIES)
    assert run(capsys, "fusion", "--batches", "0")[0] == 2


def test_a_figure_holds_within_its_range_only() -> None:
    assert Figure("a", 0.5, low=0.4, high=0.6).holds is True
    assert Figure("a", 0.7, low=0.4, high=0.6).holds is False
    assert Figure("a", float("nan"), high=0.6).holds is False
    assert Figure("a", 0.7).holds is None
