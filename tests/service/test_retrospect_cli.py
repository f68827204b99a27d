"""`celltwin condition --mode retrospective`: why, and what would have been; a mistake is one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from service.cli import main
from simulators.donors import virtual_donor
from simulators.faults import Fault
from simulators.recording import record
from twin.config import load_config
from twin.evidence import ControlApplied, Measurement
from twin.records import RecordedBatch
from twin.records.write import write_tidy


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten days under the process's recipe, the bag at half its glucose and glutamine from day 5 on."""
    process = load_config("car_nk")
    faults = (Fault("pump:perfusion", "wrong_bag", 5.0, size=0.5),)
    played = record(process, virtual_donor(process, 3700), seed=3700, days=10.0, online=False, faults=faults)
    measured = tuple(f for f in played.facts if isinstance(f, Measurement))
    actions = tuple(f for f in played.facts if isinstance(f, ControlApplied))
    path = tmp_path_factory.mktemp("data") / "batch.csv"
    write_tidy([RecordedBatch("B", "D", "D", "car_nk", None, measured, actions)], path)
    return path


def run(capsys: pytest.CaptureFixture[str], root: Path, batch: Path, *words: str) -> tuple[int, str, str]:
    prior = str(root / "configs" / "priors" / "car_nk_online")
    code = 0
    try:
        main(["condition", str(batch), "--prior", prior, "--futures", "60", *words])
    except SystemExit as left:
        code = int(left.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.slow
def test_the_cause_and_the_counterfactual_are_told(capsys: pytest.CaptureFixture[str], root: Path, batch: Path) -> None:
    words = ("--mode", "retrospective", "--had", "perfusion*2 from 8")
    code, out, _ = run(capsys, root, batch, *words, "--json")
    assert code == 0
    told = json.loads(out)
    causes = told["attribution"]["causes"]
    assert sum(c["probability"] for c in causes) == pytest.approx(1.0, abs=1e-9)
    assert causes[0]["cause"] == "wrong_medium"
    assert causes[0]["effect"]["q05"] <= causes[0]["effect"]["q50"] <= causes[0]["effect"]["q95"]
    had = told["counterfactual"]
    assert had["under"] == "wrong_medium"
    assert had["delta"]["lactate"]["q50"] < 0.0
    assert len(had["p_release"]) == 2
    code, shown, _ = run(capsys, root, batch, *words)
    assert code == 0
    assert "wrong_medium" in shown
    assert "would have been" in shown


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--had", "perfusion*2 from 8"), "give --mode retrospective"),
        (("--mode", "retrospective", "--had", "perfusion 2"), "--had: edit 'perfusion 2': is not understood"),
        (("--mode", "retrospective", "--had", "pump*2"), "unknown actuator 'pump'"),
        (("--mode", "retrospective", "--now", "4"), "--now 4: is for --mode realtime, not retrospective"),
    ],
)
def test_what_is_no_edit_is_one_line(
    capsys: pytest.CaptureFixture[str], root: Path, batch: Path, words: tuple[str, ...], complaint: str
) -> None:
    code, out, err = run(capsys, root, batch, *words)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert complaint in err


@pytest.mark.slow
def test_an_edit_after_the_end_is_one_line(capsys: pytest.CaptureFixture[str], root: Path, batch: Path) -> None:
    code, _, err = run(capsys, root, batch, "--mode", "retrospective", "--had", "perfusion*2 from 20")
    assert code == 2
    assert "begins on day 20, the batch ended on day" in err
