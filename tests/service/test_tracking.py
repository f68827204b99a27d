"""Tracked runs in a real MLflow store, run again: equal where nothing changed, told in one line where something did."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.cli import run
from service.tracking import provenance
from service.tracking.store import Store, TrackingError, place
from simulators import record
from twin.config import load_config
from twin.evidence import Measurement
from twin.records import RecordedBatch, write_tidy

pytestmark = pytest.mark.slow  # MLflow takes seconds to make a store

Said = Callable[[], tuple[str, str]]


@pytest.fixture(scope="session")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with no run, to copy."""
    path = tmp_path_factory.mktemp("store") / "empty.db"
    where = place(str(path))
    assert where is not None
    with pytest.raises(TrackingError, match="not known"):
        Store(where).fetch("last")
    return path


@pytest.fixture
def site(tmp_path: Path, empty: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one's own with an empty store, where tracking is on; the source stands still while the test runs."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(empty, tmp_path / "runs.db")
    monkeypatch.setenv("CELLTWIN_TRACKING", "runs.db")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    held = provenance.code()
    monkeypatch.setattr(provenance, "code", lambda: dict(held))
    return tmp_path


@pytest.fixture
def said(capfd: pytest.CaptureFixture[str]) -> Said:
    return lambda: (lambda told: (told.out, told.err))(capfd.readouterr())


@pytest.fixture(scope="session")
def history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three days of one virtual donor's laboratory samples."""
    process = load_config("car_nk")
    laboratory = {c for c, s in process.sensors.items() if s.kind == "laboratory"}
    told = record(process, 1000, seed=1000, days=3.0).facts
    measured = tuple(f for f in told if isinstance(f, Measurement) and f.channel in laboratory)
    path = tmp_path_factory.mktemp("data") / "batch.csv"
    write_tidy([RecordedBatch("D1000", "D1000", "D1000", "car_nk", None, measured, (), {"volume_l": 1.0})], path)
    return path


def client(site: Path) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(f"sqlite:///{site / 'runs.db'}")


def kept(site: Path) -> Any:
    (only,) = client(site).search_runs([client(site).get_experiment_by_name("celltwin").experiment_id])
    return only


def condition(root: Path, data: str) -> list[str]:
    return ["condition", data, "--prior", str(root / "configs" / "priors" / "car_nk"), "--futures", "20", "--seed", "3"]


def one_line(said: Said, *words: str) -> None:
    err = said()[1]
    assert err.count("\n") == 1 and err.startswith("celltwin: "), err
    assert [w for w in words if w not in err] == [], err


@pytest.fixture
def conditioned(site: Path, root: Path, history: Path, said: Said) -> Path:
    """A tracked conditioning of a small file."""
    shutil.copy(history, site / "batch.csv")
    assert run(condition(root, "batch.csv")) == 0
    assert "tracked as run" in said()[0]
    return site


def test_a_campaign_is_kept_whole_and_its_rerun_is_equal(site: Path, said: Said) -> None:
    line = [
        "simulate",
        "--donors",
        "2",
        "--first",
        "4",
        "--policy",
        "constant_2",
        "--workers",
        "1",
        "-o",
        "out",
        "--json",
    ]
    assert run(line) == 0
    answer = json.loads(said()[0])
    found = kept(site)
    assert found.info.status == "FINISHED"
    assert found.data.params["policy"] == "constant_2" and found.data.params["donors"] == "2"
    assert found.data.metrics["policies.constant_2.pass"] == answer["policies"]["constant_2"]["pass"]
    tags = found.data.tags
    assert (tags["celltwin.seed.first"], tags["celltwin.seed.last"]) == ("4", "5")
    assert tags["celltwin.source_sha256"] == provenance.code()["source_sha256"]
    assert len(tags["celltwin.input.config"]) == len(tags["celltwin.output.batches.parquet"]) == 64
    files = {f.path for f in client(site).list_artifacts(found.info.run_id, "files")}
    assert files == {"files/answer.json", "files/batches.parquet"}
    assert run(["rerun", found.info.run_id[:8], "--json"]) == 0
    verdict = json.loads(said()[0])
    assert verdict["equal"] and verdict["run"] == found.info.run_id
    assert {r["name"] for r in verdict["results"] if r["equal"]} == {"exit code", "answer.json", "batches.parquet"}


def test_a_conditioning_reruns_equal_from_another_folder(
    conditioned: Path, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = conditioned / "away"
    away.mkdir()
    monkeypatch.chdir(away)
    assert run(["rerun", "last", "--track", str(conditioned / "runs.db")]) == 0
    out = said()[0]
    assert "answer.json" in out and "DIFFERS" not in out
    (conditioned / "batch.csv").rename(conditioned / "moved.csv")
    line = ["rerun", "last", "--track", "../runs.db"]
    assert run(line) == 2
    one_line(said, "data batch.csv", "is absent")
    assert run([*line, "--input", "data=../moved.csv", "--json"]) == 0
    assert json.loads(said()[0])["equal"]


def test_altered_data_are_refused_or_said(conditioned: Path, said: Said) -> None:
    path = conditioned / "batch.csv"
    rows = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(rows[:-1]) + "\n", encoding="utf-8")
    assert run(["rerun", "last"]) == 2
    one_line(said, "data: data batch.csv was", "--anyway")
    assert run(["rerun", "last", "--anyway"]) == 1
    out, err = said()
    assert "going on although data: data batch.csv was" in out and "DIFFERS" in out
    assert "answer.json" in err and err.count("\n") == 1


def test_other_code_is_refused(conditioned: Path, said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    held = provenance.code()
    monkeypatch.setattr(provenance, "code", lambda: {**held, "source_sha256": "0" * 64})
    assert run(["rerun", "last"]) == 2
    one_line(said, "code: source was", "is 000000000000", "--anyway")
    assert run(["rerun", "last", "--anyway", "--json"]) == 0  # other in name only: the result is the same
    verdict = json.loads(said()[0])
    assert verdict["equal"] and [d["kind"] for d in verdict["differences"]] == ["code"]


@pytest.mark.parametrize("name", ["files/answer.json", "record.json"])
def test_an_altered_or_missing_artefact_is_refused(conditioned: Path, said: Said, name: str) -> None:
    (path,) = conditioned.rglob(name)
    path.write_text(
        path.read_text(encoding="utf-8").replace("D1000", "D1001").replace("batch.csv", "other.csv"), encoding="utf-8"
    )
    assert run(["rerun", "last"]) == 2
    one_line(said, "altered after it was written")
    path.unlink()
    assert run(["rerun", "last"]) == 2
    one_line(said, path.name, "missing")


def test_a_refused_run_is_kept_as_such_and_has_nothing_to_reproduce(site: Path, said: Said) -> None:
    assert run(["simulate", "--engine", "cloud"]) == 2
    one_line(said, "--engine cloud")
    assert kept(site).info.status == "FAILED"
    assert run(["rerun", "last"]) == 2
    one_line(said, "nothing to reproduce")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["rerun", "0123456789"], ("run 0123456789", "not known at runs.db")),
        (["rerun", "last"], ("run last", "not known at runs.db")),
        (["rerun", "last", "--track", "absent.db"], ("absent.db", "no such file")),
        (["rerun", "last", "--track", "off"], ("--track off", "SQLite file")),
        (["simulate", "--track", "notes.txt"], ("notes.txt", "no SQLite database")),
        (["simulate", "--track", "."], ("SQLite file",)),
        (["simulate", "--track", "http://127.0.0.1:9"], ("tracking at http://127.0.0.1:9",)),
    ],
)
def test_mistakes_are_one_line(
    site: Path, said: Said, monkeypatch: pytest.MonkeyPatch, line: list[str], words: tuple[str, ...]
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    (site / "notes.txt").write_text("to whom it may concern", encoding="utf-8")
    assert run(line) == 2
    one_line(said, *words)


def test_an_input_that_the_run_did_not_have_is_told(conditioned: Path, said: Said) -> None:
    for told in ("scenario=x", "data", "data=nowhere.csv"):
        assert run(["rerun", "last", "--input", told]) == 2
        one_line(said, f"--input {told}")


def test_without_the_extra_one_line_names_it(site: Path, said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mlflow", "mlflow.tracking"):
        monkeypatch.setitem(sys.modules, name, None)
    for line in (["simulate"], ["rerun", "last"]):
        assert run(line) == 2
        one_line(said, "celltwin[tracking]")


def test_a_fit_through_the_filter_reruns_equal_to_the_bit(site: Path, said: Said) -> None:
    assert run(["fit", "recorded:3", "--method", "em", "-o", "prior", "--cores", "1"]) == 0
    found = kept(site)
    names = {f.path for f in client(site).list_artifacts(found.info.run_id, "files")}
    assert names == {f"files/{n}" for n in ("answer.json", "summary.json", "draws.npz", "manifest.json")}
    said()
    assert run(["rerun", "last", "-o", "again", "--json"]) == 0
    verdict = json.loads(said()[0])
    assert verdict["equal"] and len(verdict["results"]) == 5
    assert (site / "again" / "draws.npz").read_bytes() == (site / "prior" / "draws.npz").read_bytes()
    assert run(["rerun", "last", "-o", "again"]) == 2
    one_line(said, "not empty")
