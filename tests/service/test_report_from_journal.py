"""The report of a journalled batch shows what came in, what was believed and what was decided, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

from service.cli import run
from service.config import Broker, ServiceConfig
from service.journal import Head, Journal, Row
from service.messages import BatchEnd, BatchStart, MeasurementMessage, Message, ReadBack, encode
from service.mqtt import Received
from service.report import plots
from service.report.data import ESTIMATED, Curve, ReportData, as_simulated, outcome_of
from service.report.from_journal import UnknownBatch, batches, collect, perfused
from service.runner import Runner
from twin.bioreactor import Control
from twin.config import load_config
from twin.integrate import advance

START = datetime(2026, 11, 2, 6, tzinfo=UTC)
ROOT = "celltwin/v1/demo/reactor1"
DAYS = 2.0


def at(day: float) -> datetime:
    return START + timedelta(days=day)


def story() -> Sequence[Message]:
    """Two days of the model itself, measured twice a day without noise, with one corrected and one impossible reading."""
    process, seq = load_config("car_nk"), iter(range(10_000))
    control, x = Control(perfusion=0.3, cytokine_dose=process.recipe.cytokine_dose), process.initial
    said: list[Message] = [
        BatchStart(id="B1-start", batch="B1", at=START, donor="D07", preset="car_nk", volume_l=1.0, medium="standard_perfusion",
                   recipe="cspr_100", targets="car_nk_release", seq=next(seq), epoch=1)
    ]  # fmt: skip
    for name, rate, unit in (
        ("perfusion", 0.3, "1/d"),
        ("cytokine_dose", control.cytokine_dose, "IU/mL/d"),
        ("feed", 0.0, "1/d"),
    ):
        said.append(
            ReadBack(actuator=name, batch="B1", rate=rate, unit=unit, at=at(0), cmd_id=None, seq=next(seq), epoch=1)
        )  # type: ignore[arg-type]

    def reading(channel: str, value: float, unit: str, day: float, version: int = 1) -> MeasurementMessage:
        return MeasurementMessage(
            id=f"{channel}-{round(24 * day)}", batch="B1", channel=channel, value=value, unit=unit, sampled_at=at(day), version=version,
            seq=next(seq), epoch=1,
        )  # fmt: skip

    for k in range(1, int(4 * DAYS) + 1):
        x, day = advance(x, control, process.theta, 0.25), 0.25 * k
        said.append(
            ReadBack(
                actuator="perfusion", batch="B1", rate=0.3, unit="1/d", at=at(day), cmd_id=None, seq=next(seq), epoch=1
            )
        )
        said.append(reading("viable_density", float(x.viable), "1e6 cells/mL", day))
        said.append(reading("glucose", float(x.glucose), "mM", day))
        said.append(reading("lactate", float(x.lactate), "mM", day))
    said.append(reading("glucose", float(x.glucose) * 1.01, "mM", DAYS, version=2))
    said.append(BatchEnd(id="B1-end", batch="B1", at=at(DAYS), outcome="completed", seq=next(seq), epoch=1))
    return said


def told(*sent: MeasurementMessage) -> ReportData:
    """The report of a batch's start and some readings, as a journal holds them."""
    start = story()[0]
    rows = [
        Row(n, START, "received", f"{ROOT}/{m.suffix}", encode(m), "", "")
        for n, m in enumerate((start, *sent), start=1)
    ]
    return collect(rows, "B1")


def lactate(name: str, value: float, version: int = 1, **more: str) -> MeasurementMessage:
    content = {
        **MeasurementMessage.example,
        "id": name,
        "batch": "B1",
        "channel": "lactate",
        "value": value,
        "unit": "mM",
    }
    return MeasurementMessage.model_validate_json(
        json.dumps({**content, "sampled_at": "2026-11-03T06:00:00Z", "version": version, **more})
    )


def test_a_chain_of_corrections_is_one_sample_whatever_its_order() -> None:
    chain = (lactate("A", 2.0), lactate("B", 2.2, 2, supersedes="A"), lactate("C", 2.4, 3, supersedes="B"))
    for order in permutations(chain):
        samples = told(*order).samples["lactate"]
        assert (samples.value.tolist(), samples.used.tolist()) == ([2.4], [True])


def test_a_retracted_value_is_shown_as_not_taken_in() -> None:
    data = told(lactate("A", 9.0), lactate("B", 2.0), lactate("A", 9.0, 2, quality="bad"))
    samples = data.samples["lactate"]
    assert (samples.value.tolist(), samples.used.tolist()) == ([2.0, 9.0], [True, False])
    assert told(lactate("A", 9.0, quality="bad")).samples["lactate"].used.tolist() == [False]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with the journal of one batch, written by the service's own runner."""
    data = tmp_path_factory.mktemp("data")
    config = ServiceConfig(
        site="demo", broker=Broker(url="mqtt://127.0.0.1:1883"), development=True, data=data, mode="closed", clock="event",
        policy="cspr_100", futures=20,
    )  # fmt: skip
    with Journal.open(data) as journal:
        runner = Runner(config, journal, 1, "0.0", lambda: START, lambda posting: None)
        runner.resume()
        for k, message in enumerate(story()):
            runner.take(
                [
                    Received(
                        f"{ROOT}/{message.suffix}",
                        encode(message),
                        retained=False,
                        duplicate=False,
                        qos=1,
                        mid=k,
                        link=1,
                    )
                ]
            )
        runner.take(
            [
                Received(
                    f"{ROOT}/measurement/glucose",
                    b'{"value": NaN}',
                    retained=False,
                    duplicate=False,
                    qos=1,
                    mid=999,
                    link=1,
                )
            ]
        )
    return data


@pytest.fixture(scope="module")
def journalled(folder: Path) -> tuple[list[Row], Head]:
    with Journal.open(folder, create=False) as journal:
        return list(journal.rows()), journal.head


@pytest.fixture(scope="module")
def data(journalled: tuple[list[Row], Head]) -> ReportData:
    rows, head = journalled
    return collect(rows, "B1", head)


def test_the_batch_is_found_by_name(journalled: tuple[list[Row], Head]) -> None:
    rows, _ = journalled
    assert [(root, m.batch) for root, m in batches(rows)] == [(ROOT, "B1")]
    with pytest.raises(UnknownBatch, match="it holds B1"):
        collect(rows, "B2")
    with pytest.raises(UnknownBatch, match="of unit 'reactor2'"):
        collect(rows, "B1", unit="reactor2")


def test_a_name_used_on_two_units_must_be_told_apart(journalled: tuple[list[Row], Head]) -> None:
    rows, _ = journalled
    twice = [*rows, *(r._replace(topic=r.topic.replace("reactor1", "reactor2")) for r in rows)]
    with pytest.raises(UnknownBatch, match="--unit"):
        collect(twice, "B1")
    assert collect(twice, "B1", unit="reactor2").provenance["unit"].endswith("reactor2")


def test_samples_are_those_that_were_sent_and_corrections_replace(data: ReportData) -> None:
    sent = [m for m in story() if isinstance(m, MeasurementMessage) and m.channel == "glucose"]
    assert data.samples["glucose"].t.size == len(sent) - 1
    assert data.samples["glucose"].value[-1] == pytest.approx(sent[-1].value)
    assert set(data.samples) == {"viable_density", "glucose", "lactate"}


def test_estimates_follow_the_samples_of_the_model_itself(data: ReportData) -> None:
    band, s = data.estimates["viable_density"], data.samples["viable_density"]
    believed = np.interp(s.t, band.t, band.mid)
    np.testing.assert_allclose(believed, s.value, rtol=0.1)
    assert np.all(band.low <= band.mid)
    assert np.all(band.mid <= band.high)
    assert np.all(np.diff(band.t) >= 0)
    assert data.until == pytest.approx(DAYS)


def test_pumps_show_their_read_backs(data: ReportData) -> None:
    assert set(np.unique(data.inputs["perfusion"].value)) == {0.3}
    assert data.outcome is not None
    assert data.outcome.medium == pytest.approx(0.3 * DAYS)


def test_every_decision_is_there_with_its_reasons(data: ReportData) -> None:
    np.testing.assert_allclose([d.at for d in data.decisions], np.arange(0.25, DAYS + 0.01, 0.25))
    assert all(d.reasons for d in data.decisions)


def test_probabilities_are_the_forecasts(data: ReportData) -> None:
    assert data.p_release is not None
    assert np.all((data.p_release.value >= 0) & (data.p_release.value <= 1))
    assert set(data.p_pass) == {"viable_cells", "viability", "car_fraction", "exhausted_fraction"}
    assert "viable_density" in data.forecast


def test_what_cannot_be_known_is_said(data: ReportData, journalled: tuple[list[Row], Head]) -> None:
    assert data.ended
    assert data.verdict == "failed"  # two days do not make 20e9 cells
    assert any("estimates" in r for r in data.remarks)
    assert data.provenance["messages refused"] == "1"
    assert journalled[1].hash in data.provenance["journal head"]


def test_perfused_volumes() -> None:
    steps = Curve(np.array([0.0, 1.0, 3.0]), np.array([0.0, 0.5, 1.0]))
    assert perfused(steps, 4.0) == pytest.approx(2.0)
    assert perfused(steps, 2.0) == pytest.approx(0.5)
    assert perfused(steps, 0.5) == 0.0


def test_the_verb_writes_the_page(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "b1.html"
    assert run(["report", "B1", "--data", str(folder), "-o", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["report"] == str(out)
    page = out.read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert "What happened in the vessel" in page
    assert "Decisions" in page


@pytest.mark.parametrize("batch", ["B2", "../etc/passwd"])
def test_an_unknown_batch_is_one_line(folder: Path, batch: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["report", batch, "--data", str(folder)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_no_journal_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["report", "B1", "--data", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert str(tmp_path) in said


def test_a_simulation_adds_its_truth_and_the_true_outcome(data: ReportData) -> None:
    truth = {"time": np.array([0.0, 2.0]), "viable_density": np.array([0.5, 0.9])}
    true = outcome_of("mpc", 2.0, {"viable_cells": 21.0}, load_config("car_nk").targets[:1], 0.6)
    both = as_simulated(data, truth, true, [true])
    assert both.origin == "simulated"
    assert both.verdict == "passed"
    np.testing.assert_array_equal(both.truth["viable_density"].value, [0.5, 0.9])
    assert "time" not in both.truth
    assert ESTIMATED in data.remarks
    assert ESTIMATED not in both.remarks
    figure = plots.estimates(both, ["viable_density"])
    assert figure is not None
    assert "truth (simulated)" in [line.get_label() for line in figure.axes[0].lines]
