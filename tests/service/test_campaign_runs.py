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
from simulators.campaign import error_row, jobs, run_job, summary
from twin.config import load_config

PROCESS = load_config("car_nk")
SHORT = replace(PROCESS, recipe=replace(PROCESS.recipe, harvest_latest=0.75))
LINE = ["simulate", "--policy", "constant_2,cspr_100", "--donors", "2", "--first", "3000", "--fault", "none",
        "--fault", "pump:perfusion/clog=0.1@1", "--workers", "1"]  # fmt: skip
OWN = '''
from twin.bioreactor import Control
from controllers.plan import Plan


class Own:
    name = "own:Own"

    def __init__(self, process):
        self.most = process.limits.perfusion_max

    def __call__(self, situation, previous):
        """Half of the pump."""
        return Plan(situation.now, 0.25, (Control(self.most / 2, 0, 0, 300),), (), "solved", 0.0, None, "own")


class Raising:
    def __call__(self, situation, previous):
        raise ArithmeticError("no idea")


class Dying:
    def __call__(self, situation, previous):
        import os
        os._exit(7)


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


@pytest.mark.parametrize(("name", "content"), [(store.MANIFEST, "{"), (store.ROWS, '{"policy": 1}\n')])
def test_a_broken_folder_is_told(name: str, content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Store(tmp_path, {"donors": 2}).close()
    (tmp_path / name).write_text(content)
    with pytest.raises(SystemExit):
        Store(tmp_path, {"donors": 2})
    assert name in said(capsys)


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
    named, handed = (run_job(jobs(SHORT, (p,), 1)[0]) for p in ("own:Own", find_policy("own:Own", SHORT)))
    assert named == handed and named["decisions"] > 0 and named["error"] == ""
    raising = run_job(jobs(SHORT, ("own:Raising",), 1)[0])
    assert raising["error"] == "" and raising["lapsed"] == raising["decisions"] > 0
    recipe = run_job(jobs(SHORT, (SHORT.recipe,), 1)[0])
    assert {k: raising[k] for k in ("viable_cells", "medium_vv")} == {
        k: recipe[k] for k in ("viable_cells", "medium_vv")
    }
    with pytest.raises(ValueError, match="twice"):
        jobs(SHORT, ("own:Own", find_policy("own:Own", SHORT)), 1)


@pytest.mark.parametrize(
    ("policy", "words"),
    [("own:Missing", "has no Missing"), ("nowhere:Own", "cannot be imported"), ("own:Unmade", "no licence"), ("own:NUMBER", "cannot be called"),
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
