"""The desk's alarms: what raises them, what clears them, and the wall clock."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from service.desk import Desk, estimate, watch
from service.messages import Ack, Calibration, OperatorAction, time_text
from tests.service.batch_driver import (
    START,
    WALL,
    Driver,
    Sent,
    batch_end,
    batch_start,
    contents,
    fresh,
    read_back,
    reading,
    reason,
    tell,
)
from twin.donors.prior import DonorPrior


def test_probes_lost_together_are_one_silent_edge_and_those_that_stay_lost_are_named(played: Driver) -> None:
    desk, said = estimate(tell(played.desk, reading("glucose", 20.0, "mM", 1.6))[0])
    (alarm,) = contents(list(said), "alarm/")
    assert alarm["code"] == "edge_silent"
    assert alarm["message"] == "every probe is lost: capacitance, raman_glucose, raman_lactate"
    assert "lost:capacitance" in contents(list(said), "estimate")[0]["flags"]
    desk, said = tell(desk, read_back("perfusion", 0.5, 1.605))
    assert "alarm/edge_silent" not in [o.suffix for o in said]  # the edge lives, its probes do not
    desk, said = tell(desk, reading("capacitance", 0.4, "pF/cm", 1.61))
    assert ("alarm/edge_silent", b"") in [(o.suffix, o.payload) for o in said]
    desk, said = estimate(desk)
    assert [a["code"] for a in contents(list(said), "alarm/")] == ["lost-raman_glucose", "lost-raman_lactate"]
    desk, said = estimate(tell(desk, reading("raman_glucose", 20.0, "mM", 1.62))[0])
    assert [(o.suffix, o.payload) for o in said[1:]] == [("alarm/lost-raman_glucose", b"")]


def test_a_refused_override_raises_an_alarm(played: Driver) -> None:
    at = time_text(START + timedelta(days=1.2))
    ack = {"cmd_id": "c1", "accepted": False, "applied_rate": None, "reason": "expired", "at": at, "seq": 1, "epoch": 1}
    desk, said = tell(played.desk, ("ack/c1", ack))
    assert contents(said, "alarm/override_refused")[0]["message"] == "override c1 refused: expired"
    _, said = tell(desk, ("ack/c1", {**ack, "accepted": True, "applied_rate": 0.5}))
    assert [(o.suffix, o.payload) for o in said] == [("alarm/override_refused", b"")]


@pytest.mark.parametrize(("value", "flag"), [(float("nan"), "belief_not_finite"), (np.log(1e6), "belief_out_of_range")])
def test_an_impossible_belief_is_flagged_and_raises_an_alarm_once(
    played: Driver, monkeypatch: pytest.MonkeyPatch, value: float, flag: str
) -> None:
    assert played.desk.running is not None
    batch = played.desk.running.session.batch
    mean = batch.belief.mean.copy()
    mean[batch.layout.index("viable")] = value
    with monkeypatch.context() as patched:
        patched.setattr("service.desk.health.believe_at", lambda b, t: replace(b.belief, mean=mean))
        desk, said = estimate(played.desk)
        assert flag in json.loads(said[0].payload)["flags"]
        assert f"alarm/{flag}" in [o.suffix for o in said]
        assert [o.suffix for o in estimate(desk)[1]] == ["estimate"]
    assert (f"alarm/{flag}", b"") in [(o.suffix, o.payload) for o in estimate(desk)[1]]


def test_a_belief_that_is_not_finite_is_said_and_sends_nothing(played: Driver) -> None:
    running = played.desk.running
    assert running is not None
    batch = running.session.batch
    prior = DonorPrior(batch.donor_prior.names, batch.donor_prior.mean, batch.donor_prior.cov)
    point = batch.checkpoints[-1]
    bad = replace(point, belief=replace(point.belief, mean=point.belief.mean * float("nan")))
    sick = replace(batch, donor_prior=prior, checkpoints=(*batch.checkpoints[:-1], bad))
    desk = replace(played.desk, running=replace(running, session=replace(running.session, batch=sick)))
    desk, said = tell(desk, reading("temperature", 37.0, "degC", 1.26))
    assert not contents(said, "override/")
    assert contents(said, "alarm/decision-no_override")
    flagged = contents(list(estimate(desk)[1]), "estimate")[0]
    assert flagged["flags"][0] == "belief_not_finite"
    assert flagged["state"] == {}


def test_a_diagnosis_that_fails_leaves_its_reason_until_one_succeeds(
    played: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise np.linalg.LinAlgError("SVD did not converge")

    with monkeypatch.context() as patched:
        patched.setattr("service.desk.verbs.diagnose", broken)
        desk, said = tell(played.desk, reading("temperature", 37.0, "degC", 1.26))
    assert contents(said, "plan")  # a decision was taken all the same
    (alarm,) = contents(said, "alarm/decision-no_diagnosis")
    assert alarm["severity"] == "warning"
    assert alarm["message"] == "pumps, bag and cells were not judged: LinAlgError: SVD did not converge"
    assert desk.running is not None
    assert desk.running.diagnosis is None
    _, said = tell(desk, reading("temperature", 37.0, "degC", 1.51))
    assert ("alarm/decision-no_diagnosis", b"") in [(o.suffix, o.payload) for o in said]


# --- the wall clock --------------------------------------------------------------------------------------------------


def test_under_the_wall_clock_now_is_when_we_heard(tmp_path: Path) -> None:
    desk = fresh(tmp_path, clock="wall")
    desk, said = tell(desk, batch_start(), reading("glucose", 20.0, "mM", 0.10), at=START + timedelta(days=0.2))
    assert contents(said, "rejected") == []
    assert desk.running is not None
    assert desk.running.session.clock == 0.2
    _, said = tell(desk, reading("glucose", 20.0, "mM", 0.3), at=START + timedelta(days=0.2))
    assert reason(said) == "from_the_future"


HEARD = START + timedelta(hours=1)
SILENT = HEARD + timedelta(minutes=31)
ACK = {**Ack.example, "cmd_id": "c1", "at": time_text(HEARD)}


@pytest.fixture
def silent(tmp_path: Path) -> Desk:
    """A desk under the wall clock whose edge was last heard with a capacitance and is now said to be silent."""
    desk, _ = tell(fresh(tmp_path, clock="wall"), batch_start(), reading("capacitance", 0.3, "pF/cm", 0.01), at=HEARD)
    assert watch(desk, HEARD + timedelta(minutes=29))[1] == ()
    desk, said = watch(desk, SILENT)
    assert contents(said, "alarm/edge_silent")[0]["severity"] == "critical"
    assert watch(desk, SILENT + timedelta(minutes=1))[1] == ()
    return desk


@pytest.mark.parametrize(
    "sent",
    [
        reading("capacitance", 0.3, "pF/cm", 0.05),
        reading("ph", 7.2, "pH", 0.05),
        reading("temperature", 37.0, "degC", 0.05),
        reading("ph", 7.2, "pH", 0.05, quality="bad"),  # the probe is out of order, the edge is not
        read_back("perfusion", 0.5, 0.05),
        ("ack/c1", ACK),
        ("ack/c1", {**ACK, "accepted": False, "applied_rate": None}),
    ],
)
def test_the_edge_itself_ends_its_silence(silent: Desk, sent: Sent) -> None:
    desk, said = tell(silent, sent, at=SILENT)
    assert ("alarm/edge_silent", b"", True) in [(o.suffix, o.payload, o.retain) for o in said]
    assert watch(desk, SILENT + timedelta(minutes=29))[1] == ()
    assert contents(watch(desk, SILENT + timedelta(minutes=31))[1], "alarm/edge_silent")


@pytest.mark.parametrize(
    "sent",
    [
        reading("glucose", 20.0, "mM", 0.05),  # a person in the laboratory
        reading("viable_density", 0.5, "1e6 cells/mL", 0.04),
        reading("diameter", 9.0, "um", 0.04),
        reading("capacitance", 0.4, "pF/cm", 0.01, version=2, seq=9_999),  # a correction by hand
        reading("capacitance", 0.3, "pF/cm", 0.01),  # said before: the broker held it
        reading("capacitance", 0.3, "pF/cm", 0.005),  # older than what was heard
        reading("capacitance", 0.3, "kg", 0.05),  # refused
        batch_start(),
        ("event/operator_action", {**OperatorAction.example, "at": time_text(HEARD)}),
        ("event/calibration", {**Calibration.example, "at": time_text(HEARD)}),
        ("query/state", {"reply_to": "celltwin/v1/s/u/reply/p", "correlation": "c"}),
    ],
)
def test_nobody_else_ends_the_silence_of_an_edge(silent: Desk, sent: Sent) -> None:
    desk, said = tell(silent, sent, at=SILENT)
    assert "alarm/edge_silent" not in [o.suffix for o in said]
    assert "edge_silent" in desk.alarms
    assert desk.running is not None
    assert desk.running.heard == HEARD


def test_the_end_of_the_batch_ends_the_alarm(silent: Desk) -> None:
    desk, said = tell(silent, batch_end(0.04), at=SILENT)
    assert ("alarm/edge_silent", b"") in [(o.suffix, o.payload) for o in said]
    assert watch(desk, SILENT + timedelta(days=9))[1] == ()


def test_the_event_clock_knows_no_silence(played: Driver) -> None:
    assert watch(played.desk, WALL + timedelta(days=9))[1] == ()
