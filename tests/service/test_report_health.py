"""The report's view of the sensors: what became of readings, size of innovations, revisions, late and corrected values."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from service.journal import Journal
from service.report import ReportData, health_plots, plots, render
from service.report.from_journal import collect
from tests.service.batch_driver import Driver, configuration, course, reading


@pytest.fixture(scope="module")
def driven(tmp_path_factory: pytest.TempPathFactory) -> Driver:
    """A batch with a stuck probe, a slipped glucose, and a lactate that came half a day late and was then corrected."""
    folder = tmp_path_factory.mktemp("health")
    driver = Driver(configuration(folder, mode="shadow"), Journal.open(folder))
    for sent in course(0.8):
        driver.send(sent)
    for k in range(6):
        driver.send(reading("capacitance", 0.2805, "pF/cm", 0.84 + k / 100))
    driver.send(reading("lactate", 0.8, "mM", 0.4, id="late"))
    driver.send(reading("lactate", 0.85, "mM", 0.4, id="late", version=2))
    driver.send(reading("glucose", 4.2, "mM", 0.95, id="slip"))
    return driver


@pytest.fixture(scope="module")
def data(driven: Driver) -> ReportData:
    return collect(driven.journal.rows(), "B001", driven.journal.head)


def test_verdicts_are_those_that_the_twin_reached(driven: Driver, data: ReportData) -> None:
    assert driven.desk.running is not None
    reached = driven.desk.running.session.batch.innovations
    for channel in ("capacitance", "glucose", "lactate", "viable_density"):
        expected = [(i.time, i.verdict) for i in reached if i.channel == channel]
        judged = data.judged[channel]
        assert [v for _, v in expected] == list(judged.verdict)
        assert judged.t == pytest.approx([t for t, _ in expected], abs=1e-9)
    assert data.judged["capacitance"].verdict[-1] == "quarantined"
    assert data.judged["glucose"].verdict[-1] == "unit_slip"


def test_samples_that_came_late_were_corrected_or_held_back_are_marked(data: ReportData) -> None:
    lactate, glucose = data.samples["lactate"], data.samples["glucose"]
    assert lactate.late is not None
    assert lactate.corrected is not None
    assert (lactate.value.tolist(), lactate.late.tolist(), lactate.corrected.tolist()) == ([0.85], [True], [True])
    assert glucose.late is not None
    assert not glucose.late.any()
    assert glucose.used.tolist() == [True, False]


def test_revisions_are_the_estimates_own(driven: Driver, data: ReportData) -> None:
    assert driven.desk.running is not None
    jumps = [r.jump for r in driven.desk.running.session.batch.revisions]
    assert data.revisions is not None
    assert data.revisions.value.tolist() == jumps
    assert len(jumps) == 2
    assert jumps[0] > 0.0


def test_windowed_figures_lie_within_bounds_that_hold_one(data: ReportData) -> None:
    series = data.consistency["raman_glucose"]
    assert series.t.size > 10
    assert np.all(series.low < 1.0)
    assert np.all(series.high > 1.0)


def test_the_page_shows_them_and_leaves_them_out_where_nothing_is_known(data: ReportData) -> None:
    page = render(data)
    assert "Which readings the twin believed" in page
    assert "own error bars hold" in page
    for word in ("unit slip", "quarantined", "came late", "corrected", "Revisions"):
        assert word in page
    assert render(data) == page
    bare = replace(data, judged={}, consistency={}, revisions=None)
    assert health_plots.verdicts(bare) is None
    assert health_plots.consistency(bare) is None
    assert "Which readings" not in render(bare)
    alone = health_plots.verdicts(replace(data, revisions=None))
    assert alone is not None
    assert [a.get_visible() for a in alone.axes] == [True, False]


def test_every_verdict_has_a_look_of_its_own() -> None:
    shapes = [look["marker"] for _, look in health_plots.LOOKS.values()]
    assert len(set(shapes)) == len(shapes) == 5


def test_a_journal_of_before_health_was_said_has_no_such_section(driven: Driver, tmp_path: Path) -> None:
    rows = []
    for row in driven.journal.rows():
        if row.kind == "estimate":
            said = json.loads(row.payload)
            del said["health"]
            rows.append(row._replace(payload=json.dumps(said).encode()))
        else:
            rows.append(row)
    old = collect(rows, "B001")
    assert (old.judged, old.consistency, old.revisions) == ({}, {}, None)
    assert plots.estimates(old) is not None
