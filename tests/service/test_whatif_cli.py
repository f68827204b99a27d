"""`celltwin whatif`: a journalled batch under an edit; mistakes are one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from service.cli import run
from service.journal import Journal
from simulators.recording import record
from tests.service.batch_driver import Driver, batch_end, configuration, course
from twin.config import load_config
from twin.evidence import Measurement
from twin.records.record import RecordedBatch
from twin.records.write import write_tidy


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Driver:
    """Seven hours of a batch, one decision in them."""
    folder = tmp_path_factory.mktemp("whatif")
    played = Driver(configuration(folder), Journal.open(folder))
    for sent in course(0.3):
        played.send(sent, look=False)
    return played


@pytest.fixture
def ask(driver: Driver, capsys: pytest.CaptureFixture[str]) -> Any:
    def ask(*words: str, folder: Path | None = None) -> dict[str, Any]:
        data = folder or driver.config.data
        code = run(["whatif", "B001", "--data", str(data), "--n", "30", *words, "--json"])
        out = capsys.readouterr()
        assert code == 0, out.err
        return dict(json.loads(out.out))

    return ask


@pytest.fixture
def refused(driver: Driver, capsys: pytest.CaptureFixture[str]) -> Any:
    def refused(*words: str, batch: str = "B001", folder: Path | None = None) -> str:
        code = run(["whatif", batch, "--data", str(folder or driver.config.data), *words])
        out = capsys.readouterr()
        assert (code, out.out) == (2, "")
        assert len(out.err.strip().splitlines()) == 1
        assert out.err.startswith("celltwin: ")
        return out.err

    return refused


def test_json_has_the_keys_that_others_rely_on(ask: Any, tmp_path: Path) -> None:
    found = ask("--edit", "perfusion*2 for 1d", "--edit", "harvest on 10", "--plots", str(tmp_path / "plots"))
    assert {"delta", "p_release", "batch", "unit", "at", "edits", "n", "capped", "p_pass", "harvested", "bands"} <= set(
        found
    )
    assert len(found["p_release"]) == 2
    assert set(found["delta"]["lactate"]) == {"t", "q05", "q50", "q95"}
    assert found["delta"]["lactate"]["t"][-1] == pytest.approx(10.0, abs=1e-3)
    assert set(found["p_pass"]["viability"]) == {"before", "after", "delta", "se"}
    assert (found["edits"], found["harvest_on"], found["schedule"]) == (["perfusion*2 for 24h"], 10.0, "plan")
    assert found["harvest"]["after"]["q50"] == pytest.approx(10.0, abs=1e-3)
    assert {p.name for p in (tmp_path / "plots").iterdir()} == {"whatif.png", "whatif.svg"}


def test_no_edit_changes_nothing_and_a_past_day_is_asked_with_what_was_known(ask: Any) -> None:
    now, then = ask("--edit", ""), ask("--edit", "", "--at", "0.2")
    for found in (now, then):
        assert found["p_release_delta"] == {"mean": 0.0, "se": 0.0}
        assert {v for band in found["delta"].values() for q in ("q05", "q50", "q95") for v in band[q]} == {0.0}
    assert then["at"] == 0.2 < now["at"]


def test_a_table_is_printed(driver: Driver, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--n", "30", "--edit", "hold perfusion at 9"]
    assert run(["whatif", "B001", "--data", str(driver.config.data), *words]) == 0
    said = capsys.readouterr().out
    for part in ("what if perfusion=9", "viable_cells", "all (release)", "se ", "given the limit: perfusion"):
        assert part in said


def test_every_mistake_is_one_line(refused: Any, tmp_path: Path) -> None:
    assert "unknown actuator 'glucose'; known: perfusion, feed" in refused("--edit", "glucose*2")
    assert "begins on day 30, the harvest is on day 14" in refused("--edit", "feed*2 from 30")
    assert "expected a day from 0 to" in refused("--edit", "", "--at", "9")
    assert "no batch 'B9'" in refused("--edit", "", batch="B9")
    assert "--edit" in refused()
    assert refused("--edit", "", folder=tmp_path / "nowhere")


def test_an_ended_batch_has_nothing_ahead_but_had(ask: Any, refused: Any, tmp_path: Path) -> None:
    played = Driver(configuration(tmp_path), Journal.open(tmp_path))
    for sent in (*course(0.1), batch_end(0.12)):
        played.send(sent, look=False)
    assert "ended on day 0.12, nothing lies ahead: give an earlier --at" in refused("--edit", "", folder=tmp_path)
    assert ask("--edit", "perfusion*2", "--at", "0.1", folder=tmp_path)["at"] == 0.1


def test_a_recorded_batch_is_asked_by_condition(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = record(load_config("car_nk"), 3001, seed=3001, days=2.0, online=False).facts
    readings = tuple(f for f in told if isinstance(f, Measurement))
    write_tidy([RecordedBatch("B1", "D1", "g", "car_nk", None, readings, ())], tmp_path / "b.csv")
    words = [
        "condition",
        str(tmp_path / "b.csv"),
        "--prior",
        str(root / "configs" / "priors" / "car_nk"),
        "--futures",
        "20",
    ]
    assert run([*words, "--no-intervene", "--edit", "perfusion*2 for 1d", "--json"]) == 0
    changed = json.loads(capsys.readouterr().out)["whatif"]
    assert changed["edits"] == ["perfusion*2 for 24h"]
    assert len(changed["p_release"]) == 2
    assert run([*words, "--mode", "retrospective", "--edit", "perfusion*2"]) == 2
    assert "asks about a running batch" in capsys.readouterr().err
