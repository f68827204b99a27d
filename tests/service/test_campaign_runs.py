"""Campaigns as they run: killed and gone on with, refused, raising, dying; the same rows on every engine; their pictures."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from controllers.policies import find_policy
from service.cli import _campaign_store as store
from service.cli import run
from service.cli._campaign_engines import DIED, run_all
from service.cli._campaign_store import Store
from service.cli._campaign_tables import lapses
from service.cli.simulate import _definition
from simulators.campaign import error_row, jobs, run_job, summary
from simulators.metrics import OUTCOME
from simulators.scenario import load_scenario
from twin.config import load_config

PROCESS = load_config("car_nk")
SHORT = replace(PROCESS, recipe=replace(PROCESS.recipe, harvest_latest=0.75))
DAYS = replace(PROCESS, recipe=replace(PROCESS.recipe, harvest_latest=1.25))  # the first count is known by then
LINE = ["simulate", "--policy", "constant_2,cspr_100", "--donors", "2", "--first", "3000", "--fault", "none",
        "--fault", "pump:perfusion/clog=0.1@1", "--workers", "1"]  # fmt: skip
OWN = '''
from twin.bioreactor import Control
from controllers.policies import proposed


class Own:
    name = "own:Own"

    def __init__(self, process):
        self.most = process.limits.perfusion_max

    def __call__(self, situation, previous):
        """Half of the pump."""
        return proposed(situation, Control(self.most / 2, 0, 0, 300), "own")


class Raising:
    def __call__(self, situation, previous):
        raise ArithmeticError("no idea")


class Leaving:
    def __call__(self, situation, previous):
        raise SystemExit(3)


class Dying:
    def __call__(self, situation, previous):
        import os
        os._exit(7)


class Gone:
    def __init__(self):
        raise SystemExit("no display")


class Unmade:
    def __init__(self):
        raise OSError("no licence")


NUMBER = 5
'''


def said(capsys: pytest.CaptureFixture[str]) -> str:
    out, err = capsys.readouterr()
    assert out == "" and len(err.strip().splitlines()) == 1, err
    return err


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "own", raising=False)
    return tmp_path


@pytest.mark.slow
def test_a_killed_campaign_goes_on_to_the_same_table(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, killed, plots = tmp_path / "whole", tmp_path / "killed", tmp_path / "plots"
    assert run([*LINE, "-o", str(whole), "--json", "--plots", str(plots)]) == 0
    report = json.loads(capsys.readouterr().out)
    environment = {**os.environ, "PYTHONPATH": str(root)}
    child = subprocess.Popen([sys.executable, "-m", "service.cli", *LINE, "-o", str(killed)], env=environment, cwd=tmp_path,
                             stdout=subprocess.DEVNULL)  # fmt: skip
    rows, patience = killed / store.ROWS, time.monotonic() + 200.0
    while not (rows.exists() and rows.read_bytes().count(b"\n") >= 2) and time.monotonic() < patience:
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    kept = rows.read_bytes().count(b"\n")
    assert 2 <= kept < 8 and not (killed / "batches.parquet").exists()
    with rows.open("ab") as stream:
        stream.write(b'{"policy": "constant_2", "don')  # the line that the kill cut short
    assert run([*LINE, "-o", str(killed)]) == 0
    assert f"{kept} of 8 batches are there already" in capsys.readouterr().out.replace("\n", " ")
    assert (killed / "batches.parquet").read_bytes() == (whole / "batches.parquet").read_bytes()
    once, again = (json.loads((f / "summary.json").read_text()) for f in (whole, killed))
    assert {k: v for k, v in once.items() if k != "campaign"} == {k: v for k, v in again.items() if k != "campaign"}
    # what it says
    assert report["base"] == "cspr_100" and set(report["policies"]) == {"cspr_100", "constant_2"}
    assert report["paired"]["constant_2"]["n"] == 4
    assert [(r["fault"], r["n"]) for r in report["faults"]] == [("none", 2), ("pump:perfusion/clog=0.1@1", 2)]
    assert {p.name for p in plots.iterdir()} == {
        f"campaign_{n}.{kind}" for n in ("pass", "medium", "harvest", "faults") for kind in ("png", "svg")
    }
    assert run(["compare", str(whole), "--base", "cspr_100", "--json"]) == 0
    compared = json.loads(capsys.readouterr().out)
    assert compared["faults"] == report["faults"]
    assert compared["paired"] == report["paired"]
    # and another campaign is refused in its folder
    assert run([*LINE, "--seeds", "2", "-o", str(whole)]) == 2
    assert "seeds 1, not 2" in said(capsys)


def rows_of(n: int) -> list[dict[str, Any]]:
    return [run_job(j) for j in jobs(PROCESS, ("constant_2",), n, first=3000)]


def test_rows_are_safe_one_by_one_and_come_back_to_the_last_bit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = rows_of(2)
    with Store(tmp_path, {"donors": 2}) as kept:
        for row in rows:
            assert kept.add(row) == row
        with pytest.raises(SystemExit):  # it is in use
            Store(tmp_path, {"donors": 2})
        assert "another campaign is running" in said(capsys)
    with Store(tmp_path, {"donors": 2}) as kept:
        assert sorted(kept.rows.values(), key=lambda r: r["donor"]) == rows
        kept.add(error_row(jobs(PROCESS, ("constant_2",), 1)[0], "OSError: disk"))
    with Store(tmp_path, {"donors": 2}) as kept:
        assert len(kept.rows) == 2  # what raised is run again
    with pytest.raises(SystemExit):
        Store(tmp_path, {"donors": 3, "code": "b"})
    assert "code None, not b; donors 2, not 3" in said(capsys)
    with Store(tmp_path, {"donors": 3}, fresh=True) as kept:
        assert kept.rows == {}


@pytest.mark.parametrize(
    ("name", "content"),
    [(store.MANIFEST, "{"), (store.MANIFEST, '{"sha256": "x", "definition": 5}'), (store.MANIFEST, "[]"), (store.ROWS, '{"policy": 1}\n'),
     (store.ROWS, '{"policy": "p", "donor": 1, "seed": 1}\n'), (store.ROWS, '{"policy": "p", "donor": 1e999, "seed": 1}\n')],
)  # fmt: skip
def test_a_broken_folder_is_told(name: str, content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Store(tmp_path, {"donors": 2}).close()
    (tmp_path / name).write_text(content)
    with pytest.raises(SystemExit):
        Store(tmp_path, {"donors": 2})
    assert name in said(capsys)


def test_batches_whose_manifest_is_gone_are_not_thrown_away(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Store(tmp_path, {"donors": 2}) as kept:
        kept.add(error_row(jobs(PROCESS, ("constant_2",), 1)[0], "OSError: disk"))
    (tmp_path / store.MANIFEST).unlink()
    with pytest.raises(SystemExit):
        Store(tmp_path, {"donors": 2})
    assert "is gone" in said(capsys) and (tmp_path / store.ROWS).stat().st_size > 0
    Store(tmp_path, {"donors": 2}, fresh=True).close()
    assert (tmp_path / store.ROWS).stat().st_size == 0


def written(folder: Path, **columns: Any) -> str:
    """A run's folder, as one of two rows and with some columns otherwise."""
    folder.mkdir(parents=True)
    first = {**error_row(jobs(PROCESS, ("constant_2",), 1)[0], ""), **dict.fromkeys(OUTCOME, 1.0), "passed": True}
    frame = pd.DataFrame([first, {**first, "donor": 1, "seed": 1}]).assign(**columns)
    frame.to_parquet(folder / "batches.parquet")
    return str(folder)


def test_runs_are_told_apart_and_none_is_counted_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = written(tmp_path / "a" / "run"), written(tmp_path / "b" / "run")
    assert run(["compare", one, two, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["policies"]
    assert {name: s["n"] for name, s in found.items()} == {f"constant_2@{one}": 2, f"constant_2@{two}": 2}
    assert run(["compare", one, f"{one}/batches.parquet"]) == 2
    assert "given twice" in said(capsys)


@pytest.mark.parametrize(
    ("columns", "words"),
    [({"medium_vv": "x"}, "batch 1: medium_vv is 'x'; expected a number"), ({"viable_cells": [1.0, None]}, "batch 2: viable_cells"),
     ({"donor": None}, "donor is None; expected a number"), ({"policy": None}, "policy is None; expected a name")],
)  # fmt: skip
def test_a_run_with_a_hole_in_it_is_told(
    columns: Any, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["compare", written(tmp_path / "run", **columns)]) == 2
    assert words in said(capsys)


def test_a_batch_that_raises_is_a_row_with_its_error() -> None:
    work = [*jobs(PROCESS, ("nowhere:Policy",), 1), *jobs(PROCESS, ("constant_2",), 1)]
    rows = list(run_all(work, "local", 1))
    assert [bool(r["error"]) for r in rows] == [True, False]
    assert "nowhere" in rows[0]["error"] and rows[0]["passed"] is False and rows[0]["medium_vv"] is None
    assert set(rows[0]) == set(rows[1])
    assert summary(rows)["nowhere:Policy"]["errors"] == 1


@pytest.mark.slow
def test_a_batch_whose_process_dies_is_a_row_and_the_others_are_run(own: Path) -> None:
    work = [*jobs(SHORT, ("own:Dying",), 1), *jobs(PROCESS, ("constant_2",), 1)]
    rows = {r["policy"] + str(r["donor"]): r for r in run_all(work, "local", 2)}
    assert rows["own:Dying0"]["error"] == DIED
    assert rows["constant_20"] == run_job(work[1])


def test_a_policy_is_one_small_class(own: Path) -> None:
    """Named by module and class or handed over: the same batch. One that raises leaves the edge to its recipe."""
    named, handed = (run_job(jobs(DAYS, (p,), 1)[0]) for p in ("own:Own", find_policy("own:Own", DAYS)))
    assert named == handed and named["decisions"] > named["lapsed"] and named["error"] == ""
    raising = run_job(jobs(DAYS, ("own:Raising",), 1)[0])
    assert raising["error"] == "" and raising["lapsed"] == raising["decisions"] > 0
    figures = summary([named, raising])
    assert lapses(figures)[1:] == ["own:Raising: 5 of 5 decisions lapsed; the edge kept to its recipe"]
    leaving = run_job(jobs(DAYS, ("own:Leaving",), 1)[0])
    assert leaving["error"] == "SystemExit: 3" and not leaving["passed"]
    recipe = run_job(jobs(DAYS, (DAYS.recipe,), 1)[0])
    assert named["overrides"] > 0 and named["medium_vv"] > recipe["medium_vv"]  # its pump ran
    assert {k: raising[k] for k in ("viable_cells", "medium_vv")} == {
        k: recipe[k] for k in ("viable_cells", "medium_vv")
    }
    with pytest.raises(ValueError, match="twice"):
        jobs(DAYS, ("own:Own", find_policy("own:Own", DAYS)), 1)


def test_a_campaign_hangs_on_what_a_policy_is_made_of(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module beside the policy's, edited between kill and resume, makes it another campaign."""
    (own / "rates.py").write_text("RATE = 1.0\n")
    (own / "made.py").write_text("from rates import RATE\nfrom own import Own\n")
    for name in ("made", "rates"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    find_policy("made:Own", PROCESS)

    def told() -> Any:
        return _definition(PROCESS, load_scenario(), ("made:Own",), None)

    before = told()
    assert told() == before
    with monkeypatch.context() as newer:
        newer.setattr("service.tracking.provenance._version", lambda name: f"{name} of tomorrow")
        assert {k for k in before if told()[k] != before[k]} == {"numerics"}
    (own / "rates.py").write_text("RATE = 2.0\n")
    assert {k for k in before if told()[k] != before[k]} == {"policies_sha256"}
    for name in ("made", "rates"):
        sys.modules.pop(name)


@pytest.mark.parametrize(
    ("policy", "words"),
    [("own:Missing", "has no Missing"), ("nowhere:Own", "cannot be imported"), ("own:Unmade", "no licence"), ("own:Gone", "no display"), ("own:NUMBER", "cannot be called"),
     ("own:", "module:Class"), ("constant_2", "--fault: fault 'ph'")],
)  # fmt: skip
def test_what_cannot_be_run_is_told_before_anything_runs(
    policy: str, words: str, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        run(["simulate", "--policy", policy, "--fault", "ph" if policy == "constant_2" else "none", "-o", "out"]) == 2
    )
    assert words in said(capsys)
    assert not (own / "out").exists()


@pytest.mark.slow
def test_ray_gives_the_same_rows(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="the extra celltwin[ray] is not installed")
    work = jobs(PROCESS, ("constant_2", "nowhere:Policy"), 2)
    key = lambda r: (r["policy"], r["donor"])  # noqa: E731
    there, here = (sorted(run_all(work, engine, 1), key=key) for engine in ("ray", "local"))
    assert there == here
    pd.testing.assert_frame_equal(pd.DataFrame(there), pd.DataFrame(here), check_exact=True)
