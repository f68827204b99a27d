"""`celltwin tune`: from a file of recorded batches to noise that a process file can name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from service.cli import run
from simulators import record
from twin.batch import apply, assimilate, believe_at, start
from twin.config import configs_dir, load_config
from twin.donors.artefact import load_prior
from twin.estimation import tune as core
from twin.estimation.belief import Z90
from twin.estimation.smooth import smoothed
from twin.evidence import ControlApplied, Measurement
from twin.records import RecordedBatch, read_batches, write_tidy


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Laboratory samples and weights of four virtual donors on a plant that is not the model, four days of each."""
    process, batches = load_config("car_nk"), list[RecordedBatch]()
    for donor in range(1000, 1004):
        told = record(process, donor, seed=donor, days=4.0)
        wanted = {c for c, s in process.sensors.items() if s.kind == "laboratory"} | {"weight"}
        measured = tuple(
            f
            for k, f in enumerate(told.facts)
            if isinstance(f, Measurement) and f.channel in wanted and (f.channel != "weight" or k % 4 == 0)
        )
        applied = tuple(f for f in told.facts if isinstance(f, ControlApplied))
        name = f"D{donor}"
        batches.append(RecordedBatch(name, name, name, "car_nk", None, measured, applied, {"volume_l": 1.0}))
    path = tmp_path_factory.mktemp("history") / "runs.csv"
    write_tidy(batches, path)
    return path


RESTLESS = {"k_d0": 0.2}


def process_file(folder: Path, name: str, noise: Path) -> str:
    """The shipped process with another noise."""
    content = yaml.safe_load((configs_dir() / "processes" / "car_nk.yaml").read_text(encoding="utf-8"))
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**content, "noise": str(noise)}), encoding="utf-8")
    return str(path)


@pytest.mark.slow
def test_what_was_tuned_is_told_and_a_process_file_can_name_it(
    history: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A process that thinks far too little of its counter and its load cell learns better from three batches."""
    wrong, out = tmp_path / "wrong.yaml", tmp_path / "tuned.yaml"
    sensors = {"weight": {"sd": 0.02}, "viable_density": {"sd": 0.5}, "viability": {"sd": 0.1}}
    wrong.write_text(
        yaml.safe_dump({"name": "w", "source": "made up", "sensors": sensors, "restless": RESTLESS}), encoding="utf-8"
    )
    before = process_file(tmp_path, "before", wrong)
    options = ["--evaluations", "70", "--held-out", "0.25", "--preset", before, "--json"]
    assert run(["tune", str(history), "-o", str(out), *options]) == 0
    told = json.loads(capsys.readouterr().out)
    assert sorted([*told["training"], *told["held_out"]]) == ["D1000", "D1001", "D1002", "D1003"]
    assert len(told["held_out"]) == 1 and told["evaluations"] <= 70
    worse, better = told["log_likelihood"]["held_out"]
    assert better > worse + 10.0
    began, tuned = load_config(before), load_config(process_file(tmp_path, "after", out))
    for channel, knob in (("viable_density", "counter"), ("weight", "weight")):
        ratio = tuned.sensors[channel].sd / began.sensors[channel].sd
        assert ratio == pytest.approx(told["multipliers"][knob], rel=1e-3)
    assert tuned.noise.viable / began.noise.viable == pytest.approx(told["multipliers"]["growth"], rel=1e-3)
    assert tuned.sensors["weight"].sd < 0.005 and tuned.sensors["viable_density"].sd < 0.2
    assert tuned.sensors["ph"] == began.sensors["ph"]  # not in the data
    assert tuned.restless == pytest.approx(
        {k: v * told["multipliers"]["restless"] for k, v in RESTLESS.items()}, rel=1e-3
    )
    assert tuned.recipe == began.recipe and tuned.theta == began.theta


@pytest.mark.slow
def test_noise_that_held_out_batches_deny_is_not_written(
    history: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def worse(process: Any, batches: Any, **_: Any) -> core.Tuned:
        knobs = core.relevant(process, batches, [k for k in core.KNOBS if k.name == "counter"])
        return core.Tuned(core.turned(process, knobs, [20.0]), {"counter": 20.0}, 1, True)

    monkeypatch.setattr(core, "tune", worse)
    out = tmp_path / "tuned.yaml"
    assert run(["tune", str(history), "-o", str(out)]) == 1
    told = capsys.readouterr()
    assert "became less likely; nothing was written" in told.err and not out.exists()
    assert "sd of viable_density" in told.out and "20.00" in told.out


ROWS = "batch,donor,time_d,channel,value,unit\n"


@pytest.mark.parametrize(
    ("arguments", "rows", "complaint"),
    [
        (["-o", "tuned.txt"], "A,A,0,viable_density,1,1e6 cells/mL\n", "ends in .yaml"),
        (["-o", "nowhere/tuned.yaml"], "A,A,0,viable_density,1,1e6 cells/mL\n", "folder does not exist"),
        (["-o", "t.yaml"], "A,A,0,viable_density,1,1e6 cells/mL\n", "has 1 bioreactor batches"),
        (["-o", "t.yaml"], "A,A,0,temperature,37,degC\nB,B,0,temperature,37,degC\n", "has 0 bioreactor batches"),
        (["-o", "t.yaml", "--preset", "none_such"], "A,A,0,glucose,1,mM\n", "unknown processes entry"),
        (["-o", "t.yaml", "--evaluations", "20"], "A,A,0,glucose,25,mM\nB,B,0,glucose,25,mM\n", "knobs need"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str], rows: str,
    complaint: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("runs.csv").write_text(ROWS + rows, encoding="utf-8")
    monkeypatch.setattr(core, "ENOUGH", 1)
    assert run(["tune", "runs.csv", *arguments]) == 2
    told = capsys.readouterr().err
    assert complaint in told and told.count("\n") == 1


def test_in_retrospect_the_past_is_smoothed(history: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each band is that of the belief given all data: narrower than what was believed at the time, and centred on it."""
    prior = root / "configs" / "priors" / "car_nk"
    arguments = [
        "condition",
        str(history),
        "--prior",
        str(prior),
        "--batch",
        "D1001",
        "--mode",
        "retrospective",
        "--json",
    ]
    assert run([*arguments, "--futures", "20"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert "smoothed" in told["basis"]
    (record_,) = (r for r in read_batches(history) if r.id == "D1001")
    batch = start("again", load_config("car_nk"), load_prior(prior))
    for action in record_.actions:
        batch = apply(batch, action)
    for m in record_.final:
        batch = assimilate(batch, m)
    band, found = told["bands"]["viable_density"], smoothed(batch, told["bands"]["viable_density"]["t"], only=True)
    place = batch.layout.index("viable")
    for k, t in enumerate(band["t"]):
        sd = np.log(band["q95"][k] / band["q05"][k]) / (2 * Z90)
        belief = found.at(t)
        assert sd == pytest.approx(np.sqrt(belief.cov[place, place]), rel=0.2)  # 400 draws
        assert np.log(band["q50"][k]) == pytest.approx(belief.mean[place], abs=0.3 * sd)
    filtered = np.sqrt(believe_at(batch, 0.75).cov[place, place])
    assert np.sqrt(found.at(0.75).cov[place, place]) < 0.8 * filtered
