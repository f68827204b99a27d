"""`celltwin condition`: plans, their search and map, what a running batch still allows, pictures; mistakes are one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from service.cli import run
from simulators.recording import record
from twin.config import load_config
from twin.evidence import ControlApplied, Measurement
from twin.records.record import RecordedBatch
from twin.records.write import write_tidy

PROCESS = load_config("car_nk")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A running batch of six days by laboratory values, and a planned one without any."""
    told = record(PROCESS, 3001, seed=3001, days=6.0, online=False).facts
    readings, actions = (tuple(f for f in told if isinstance(f, kind)) for kind in (Measurement, ControlApplied))
    running = RecordedBatch("B1", "D1", "g", "car_nk", None, readings, actions)
    planned = RecordedBatch(
        "B2", "D2", "g", "car_nk", None, (), (), {"plan_policy": "lactate_p", "plan_setpoint": 6.0, "plan_cytokine_dose": 500.0}
    )  # fmt: skip
    path = tmp_path_factory.mktemp("plans") / "batches.csv"
    write_tidy([running, planned], path)
    return path


@pytest.fixture
def ask(root: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    def ask(*words: str) -> dict[str, Any]:
        prior = ["--prior", str(root / "configs" / "priors" / "car_nk"), "--futures", "20", "--seed", "2"]
        code = run(["condition", *words, *prior, "--json"])
        out = capsys.readouterr()
        assert code == 0, out.err
        return json.loads(out.out)

    return ask


@pytest.fixture
def refused(root: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    def refused(*words: str) -> str:
        assert (
            run(["condition", *words, "--prior", str(root / "configs" / "priors" / "car_nk"), "--futures", "20"]) == 2
        )
        out = capsys.readouterr()
        assert out.out == "" and out.err.count("\n") == 1 and out.err.startswith("celltwin: ")
        return out.err

    return refused


def test_a_plan_needs_no_data(ask: Any) -> None:
    told = ask("--mode", "prospective", "--set", "cspr_pl_per_cell_d=80", "--set", "inoculation=0.4", "--budget", "6")
    plan = told["plan"]
    assert plan["policy"] == "cspr"
    assert plan["settings"]["cspr_pl_per_cell_d"] == 80.0 and plan["settings"]["inoculation"] == 0.4
    assert plan["p_release"] == told["p_release"]
    assert plan["p"] <= min(plan["p_release"], plan["p_budget"])
    assert (plan["budget"], plan["p_population"]["donors"]) == (6.0, 17)
    assert told["samples"] == 0 and told["khat"] is None


def test_planned_settings_come_from_the_batches_table(ask: Any, data: Path) -> None:
    plan = ask(str(data), "--batch", "B2", "--mode", "prospective", "--set", "cytokine_dose=450")["plan"]
    assert plan["policy"] == "lactate_p"
    assert (plan["settings"]["setpoint"], plan["settings"]["cytokine_dose"]) == (6.0, 450.0)


@pytest.mark.slow
def test_search_map_and_pictures_of_a_plan(ask: Any, tmp_path: Path) -> None:
    told = ask(
        "--mode", "prospective", "--search", "--policies", "cspr", "--evaluations", "20", "--plots", str(tmp_path / "p"),
        "--map", "cspr_pl_per_cell_d,perfusion_max", "--within", "perfusion_max=0.5:1.5", "--level", "0.2",
    )  # fmt: skip
    found, drawn = told["search"], told["map"]
    assert 0.5 <= found["settings"]["perfusion_max"] <= 1.5
    assert found["gain"]["q05"] <= found["gain"]["mean"] <= found["gain"]["q95"]
    assert found["present"]["settings"]["cspr_pl_per_cell_d"] == 100.0
    assert [round(p["budget"], 3) for p in found["front"]] == [5.0, 6.25, 7.5, 8.75, 10.0, 12.5, 15.0, 20.0, 30.0]
    assert drawn["y"] == {"name": "perfusion_max", "unit": "VVD", "log": False, "values": drawn["y"]["values"]}
    assert drawn["y"]["values"][0] == 0.5 and drawn["y"]["values"][-1] == 1.5
    assert drawn["held"]["settings"] == found["settings"]
    assert 0.0 < drawn["share"] < 1.0 and drawn["boundary"]
    names = {p.name for p in (tmp_path / "p").iterdir()}
    assert names == {f"{n}.{kind}" for n in ("fan", "design_space", "medium") for kind in ("png", "svg")}


@pytest.mark.slow
def test_a_running_batch_says_what_is_still_of_use_and_how_it_went(ask: Any, data: Path, tmp_path: Path) -> None:
    told = ask(str(data), "--batch", "B1", "--by-day", "--plots", str(tmp_path / "p"))
    assert told["last_useful_day"] is None or told["at"] <= told["last_useful_day"] <= 14.0
    days = told["by_day"]
    assert days["day"][0] == 0.0 and days["day"][-1] == told["at"]
    assert days["p_release"][-1] == told["p_release"]
    assert set(days["p_pass"]) == set(told["p_pass"])
    assert {p.name for p in (tmp_path / "p").glob("*.png")} == {"fan.png", "donor.png", "p_pass.png"}
    assert "last_useful_day" not in ask(str(data), "--batch", "B1", "--no-intervene")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--mode", "prospective", "--set", "stirring=3"], "setting 'stirring': unknown to policy cspr; known: inoculation"),
        (["--mode", "prospective", "--set", "feed=1"], "setting feed: 1 VVD is beyond the limit of process car_nk, 0.05"),
        (["--mode", "prospective", "--set", "feed"], "--set 'feed': expected NAME=VALUE"),
        (["--mode", "prospective", "--set", "feed=much"], "--set feed=much: 'much' is not a number"),
        (["--mode", "prospective", "--set", "policy=weather"], "--set policy=weather: unknown policy; known: time_steps"),
        (["--mode", "prospective", "--search", "--within", "feed=0.04:0.01"], "from 0.04 to 0.01 VVD is no range"),
        (["--mode", "prospective", "--search", "--within", "perfusion_max=1:3"], "beyond the limits of process car_nk, 0 to 2"),
        (["--mode", "prospective", "--search", "--within", "stirring=1:3"], "unknown setting 'stirring'"),
        (["--mode", "prospective", "--search", "--within", "feed"], "expected NAME=LOW:HIGH"),
        (["--mode", "prospective", "--search", "--policies", "weather"], "unknown policy 'weather'"),
        (["--mode", "prospective", "--map", "feed"], "--map feed: expected two settings"),
        (["--mode", "prospective", "--map", "feed,setpoint"], "'setpoint': unknown to policy cspr"),
        (["--mode", "prospective", "--map", "feed,feed"], "two different settings"),
        (["--mode", "prospective", "--search", "--policies", "cspr,lactate_p", "--set", "setpoint=5"], "'setpoint': unknown to policy cspr"),
        (["--mode", "prospective", "--search", "--policies", "cspr,lactate_p", "--map", "gain,feed"], "policy cspr: has no setting gain; known: inoculation"),
        (["--mode", "prospective", "--policies", "cspr", "--set", "policy=cspr"], "give one of them"),
        (["--mode", "prospective", "--budget", "0"], "--budget 0: expected vessel volumes above 0"),
        (["--mode", "prospective", "--level", "1"], "--level 1: expected a probability"),
        (["--mode", "prospective", "--by-day"], "--by-day: a plan has no days yet"),
        (["--mode", "realtime"], "--mode realtime: needs DATA"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(refused: Any, words: list[str], said: str) -> None:
    assert said in refused(*words)


def test_what_looks_ahead_is_not_asked_of_the_past(refused: Any, data: Path) -> None:
    assert "look ahead" in refused(str(data), "--batch", "B1", "--mode", "retrospective", "--search")
    assert "--set: settings are planned before a batch" in refused(str(data), "--batch", "B1", "--set", "feed=0.01")
    assert "inoculation lies in the past" in refused(
        str(data), "--batch", "B1", "--no-intervene", "--map", "feed,inoculation"
    )


@pytest.mark.slow
def test_a_tracked_plan_reruns_equal_and_leaves_its_pictures_alone(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    line = [
        "condition",
        "--mode",
        "prospective",
        "--prior",
        str(root / "configs" / "priors" / "car_nk"),
        "--futures",
        "20",
    ]
    plan = ["--set", "feed=0.01", "--set", "cytokine_dose=400", "--plots", "p", "--track", "runs.db"]
    assert run([*line, *plan]) == 0, capsys.readouterr().err
    before = (tmp_path / "p" / "fan.png").stat().st_mtime_ns
    assert run(["rerun", "last", "--track", "runs.db", "--json"]) == 0, capsys.readouterr().err
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["equal"]
    assert (tmp_path / "p" / "fan.png").stat().st_mtime_ns == before
