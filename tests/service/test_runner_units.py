"""Which units a service holds: opened by a batch and by nothing else, put to rest by its end, watched in between."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from service import runner as shell
from service.journal import Entry
from service.messages import ROOT, Ack, time_text
from service.mqtt import Posting
from service.replay import batches, replay
from tests.service.batch_driver import START, WALL, Sent, batch_end, batch_start, course, read_back, reading
from tests.service.rig import Rig, received, said

CORRELATED = {"response_topic": f"{ROOT}/s/u/reply/panel", "correlation": b"\x00raw bytes"}


@pytest.fixture(scope="module")
def messages() -> list[Sent]:
    return list(course(0.3))


def refusals(out: list[Posting]) -> list[str]:
    return [r["reason"] for r in said(out, "rejected")]


# --- opening ---------------------------------------------------------------------------------------------------------


def test_garbage_opens_no_desk_and_is_answered_all_the_same(tmp_path: Path, messages: list[Sent]) -> None:
    rig = Rig(tmp_path)
    garbage: list[Sent] = [
        ("measurement/glucose", {"value": "much"}),
        reading("glucose", 20.0, "mM", 0.1),
        ("event/batch_start", {"batch": "B001"}),
        batch_start(preset="none_such"),
        ("ack/c1", {**Ack.example, "cmd_id": "c1", "accepted": False, "applied_rate": None}),
        ("query/state", {"reply_to": f"{ROOT}/s/x/reply/p", "correlation": "c"}),
        ("event/party", {}),
    ]
    for k in range(50):
        out = rig.take([*garbage, received(garbage[0], "x", retained=True)], unit=f"x{k}")
        assert len(refusals(out)) == 8 if k == 0 else 7
    assert rig.runner.units == ()
    assert rig.runner.desks == {}
    assert rig.runner.posted == {}
    seq = [r["seq"] for r in said(rig.sent, "rejected")]
    assert seq == sorted(set(seq))
    rig.take(messages[:3])
    assert rig.runner.units == ("u",)
    assert replay(rig.journal, "B001").ok


def test_an_acknowledgement_of_nothing_is_refused(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    out = rig.take([("ack/c1", {**Ack.example, "cmd_id": "c1", "accepted": False, "applied_rate": None})])
    assert refusals(out) == ["unknown_batch"]
    assert said(out, "alarm/") == []


def test_a_fleet_without_names_has_an_end(tmp_path: Path, messages: list[Sent]) -> None:
    rig = Rig(tmp_path, changes={"units_max": 2})
    for unit in ("a", "b"):
        assert refusals(rig.take(messages[:3], unit)) == []
    (refusal,) = said(rig.take(messages[:1], "c"), "rejected")
    assert refusal["reason"] == "too_many_units"
    assert "units_max" in refusal["detail"]
    assert refusals(rig.take(messages[1:3], "c")) == ["unknown_batch"] * 2
    assert rig.runner.units == ("a", "b")
    out = rig.take([batch_start(batch="B002", id="s2", at=time_text(START + timedelta(days=1)))], "b")  # known: goes on
    assert refusals(out) == []
    rig.journal.close()
    again = Rig(tmp_path, epoch=2, changes={"units_max": 2})
    assert again.warnings == []
    assert again.runner.units == ("a", "b")
    assert refusals(again.take(messages[:1], "c")) == ["too_many_units"]


def test_units_that_are_named_are_not_counted(tmp_path: Path, messages: list[Sent]) -> None:
    rig = Rig(tmp_path, changes={"units": ["a", "b"], "units_max": 1})
    for unit in ("a", "b"):
        assert refusals(rig.take(messages[:3], unit)) == []


# --- silence ---------------------------------------------------------------------------------------------------------


def watched(folder: Path, **changes: Any) -> Rig:
    rig = Rig(folder, changes={"clock": "wall", **changes})
    rig.take([batch_start(at=time_text(WALL))])
    return rig


def after(hours: float, **changes: Any) -> Sent:
    return read_back(
        "perfusion", 0.0, 0.0, at=time_text(WALL + timedelta(hours=hours)), seq=round(hours * 3600), **changes
    )


def test_silence_is_announced_once_and_cleared_when_it_ends(tmp_path: Path) -> None:
    rig = watched(tmp_path)
    rig.late = timedelta(hours=1)
    rig.runner.watch()
    rig.runner.watch()
    alarms = said(rig.sent, "alarm/edge_silent")
    assert [a.get("severity") for a in alarms] == ["critical"]
    rig.take([after(1.0)])
    assert said(rig.sent, "alarm/edge_silent")[-1] == {}
    rig.runner.watch()
    assert len(said(rig.sent, "alarm/edge_silent")) == 2
    assert replay(rig.journal, "B001").ok


def test_an_alarm_of_silence_outlives_a_restart_and_is_cleared_after_it(tmp_path: Path) -> None:
    """GIVEN a silent edge that was announced, WHEN the service restarts, THEN nothing is said twice and the edge clears it."""
    rig = watched(tmp_path)
    rig.late = timedelta(hours=1)
    rig.runner.watch()
    before = dict(rig.runner.posted)
    (raised,) = said(rig.sent, "alarm/edge_silent")
    rig.journal.close()
    again = Rig(tmp_path, epoch=2, changes={"clock": "wall"})
    again.late = timedelta(hours=1)
    assert again.warnings == []
    alarm = f"{ROOT}/s/u/alarm/edge_silent"
    assert again.runner.posted[alarm] == before[alarm]
    desk = again.runner.desks["u"]
    assert json.loads(before[alarm].payload)["since"] == raised["since"]
    assert set(desk.alarms) == {"edge_silent"}
    again.runner.watch()
    assert said(again.sent, "alarm/") == []
    again.take([after(1.0)])
    assert said(again.sent, "alarm/") == [{}]
    assert again.runner.posted[alarm].payload == b""
    again.journal.close()
    third = Rig(tmp_path, epoch=3, changes={"clock": "wall"})
    assert third.runner.posted[alarm].payload == b""
    assert third.runner.desks["u"].alarms == {}
    assert third.runner.desks["u"].running.signs == again.runner.desks["u"].running.signs  # type: ignore[union-attr]
    assert replay(third.journal, "B001").ok


# --- rest ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def over(tmp_path: Path, messages: list[Sent]) -> Rig:
    """A service whose only batch has ended, just before it stops."""
    rig = Rig(tmp_path)
    rig.take(messages)
    rig.take([batch_end(0.35)])
    rig.journal.close()
    return rig


def test_an_ended_batch_is_not_recomputed_at_a_restart(over: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("recomputed")

    with monkeypatch.context() as patched:
        patched.setattr("service.replay.step", never)
        again = Rig(over.folder, epoch=2)
        assert again.runner.desks == {}
        assert again.runner.units == ("u",)
        assert again.runner.posted == over.runner.posted  # what the broker lost is said again all the same
        assert said(again.sent, "estimate") == []
        again.runner.watch()
    assert replay(again.journal, "B001").ok


def test_a_late_value_wakes_an_ended_batch(over: Rig, messages: list[Sent]) -> None:
    """Its estimate is the one of a service that never stopped."""
    late = reading("lactate", 2.0, "mM", 0.3, id="late")
    again = Rig(over.folder, epoch=2)
    (woken,) = said(again.take([late]), "estimate")
    whole = Rig(over.folder / "whole")
    for group in (messages, [batch_end(0.35)], [late]):
        whole.take(group)
    expected = said(whole.sent, "estimate")[-1]
    assert {k: v for k, v in woken.items() if k not in ("seq", "epoch")} == {
        k: v for k, v in expected.items() if k not in ("seq", "epoch")
    }
    assert woken["epoch"] == 2
    assert again.warnings == []
    assert again.runner.resting == {}
    assert refusals(again.take([reading("lactate", 2.0, "mM", 0.3, id="late2", batch="B009")])) == ["unknown_batch"]
    assert replay(again.journal, "B001").ok
    again.journal.close()
    assert Rig(over.folder, epoch=3).runner.units == ("u",)


def test_a_question_wakes_an_ended_batch(over: Rig) -> None:
    again = Rig(over.folder, epoch=2)
    ask = {"reply_to": f"{ROOT}/s/u/reply/panel", "correlation": "q"}
    (answer,) = said(again.take([("query/state", ask)]), "reply/")
    assert answer["estimate"]["basis"] == said(over.sent, "estimate")[-1]["basis"]


def test_the_next_batch_does_not_wake_the_one_before(over: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    again = Rig(over.folder, epoch=2)
    with monkeypatch.context() as patched:
        patched.setattr(shell, "wake", lambda *_: pytest.fail("woken"))
        out = again.take([batch_start(batch="B002", id="s2", at=time_text(START + timedelta(days=1)))])
    assert refusals(out) == []
    assert again.runner.desks["u"].finished == ("B001",)
    assert said(out, "estimate")[-1]["batch"] == "B002"
    for name in ("B001", "B002"):
        report = replay(again.journal, name)
        assert report.ok, report.mismatches
    assert refusals(again.take([batch_start()])) == ["batch_exists"]


def test_the_next_batch_clears_the_alarms_of_an_ended_one(over: Rig) -> None:
    """An alarm that came up after the end is cleared by the next batch, also across a restart and in the replay."""
    again = Rig(over.folder, epoch=2)
    refusal = {**Ack.example, "cmd_id": "c1", "accepted": False, "applied_rate": None, "reason": "advisory"}
    assert said(again.take([("ack/c1", refusal)]), "alarm/override_refused") != []
    again.journal.close()
    third = Rig(over.folder, epoch=3)
    assert set(third.runner.resting) == {"u"}
    out = third.take([batch_start(batch="B002", id="s2", at=time_text(START + timedelta(days=1)))])
    assert said(out, "alarm/override_refused") == [{}]
    report = replay(third.journal, "B001")
    assert report.ok, report.mismatches


def test_the_start_of_an_ended_batch_said_again_is_known(over: Rig) -> None:
    again = Rig(over.folder, epoch=2)
    assert refusals(again.take([batch_start()])) == []
    assert refusals(again.take([batch_start(donor="other")])) == ["batch_exists"]


def test_a_batch_that_ended_in_the_middle_of_a_crash_is_recomputed(over: Rig) -> None:
    """The last word of the ended batch was journalled and not yet answered: it is answered at the start."""
    again = Rig(over.folder, epoch=2)
    late = received(reading("lactate", 2.0, "mM", 0.3, id="late"))
    again.journal.append(Entry(again.now(), "received", late.topic, late.payload))
    assert [b.settled for b in batches(again.journal)] == [False]
    again.journal.close()
    third = Rig(over.folder, epoch=3)
    (fresh,) = said(third.sent, "estimate")
    assert fresh["basis"] != said(over.sent, "estimate")[-1]["basis"]
    third.journal.close()
    assert set(Rig(over.folder, epoch=4).runner.resting) == {"u"}


def test_an_ended_batch_whose_entries_are_gone_is_refused_and_the_service_lives(
    over: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    from twin.config import ConfigError

    def gone(*_: Any) -> None:
        raise ConfigError("configs/recipes/cspr_100.yaml: no such file")

    again = Rig(over.folder, epoch=2)
    with monkeypatch.context() as patched:
        patched.setattr(shell, "wake", gone)
        (refusal,) = said(again.take([reading("lactate", 2.0, "mM", 0.3, id="late")]), "rejected")
    assert (refusal["reason"], "cspr_100" in refusal["detail"]) == ("internal", True)
    assert said(again.take([reading("lactate", 2.1, "mM", 0.3, id="later")]), "estimate") != []


# --- questions over MQTT v5 ------------------------------------------------------------------------------------------


def test_an_answer_carries_the_correlation_data_of_its_question(tmp_path: Path, messages: list[Sent]) -> None:
    rig = Rig(tmp_path)
    rig.take(messages[:3])
    (answer,) = rig.take([received(("query/state", {}), **CORRELATED)])
    assert (answer.topic, answer.correlation) == (CORRELATED["response_topic"], CORRELATED["correlation"])
    asked = [row for row in rig.journal.rows() if "/query/" in row.topic][-1]
    named = json.loads(asked.payload)  # the journal holds where the answer went
    assert named["reply_to"] == answer.topic
    assert json.loads(answer.payload)["correlation"] == named["correlation"]
    own = {"reply_to": f"{ROOT}/s/u/reply/other", "correlation": "mine"}
    (answer,) = rig.take([received(("query/state", own), **CORRELATED)])
    assert (answer.topic, answer.correlation) == (own["reply_to"], CORRELATED["correlation"])
    assert json.loads(answer.payload)["correlation"] == "mine"
    assert replay(rig.journal, "B001").ok


@pytest.mark.parametrize("topic", [f"{ROOT}/s/u/override/perfusion", f"{ROOT}/s/v/reply/panel", "elsewhere"])
def test_an_answer_goes_nowhere_but_below_reply(tmp_path: Path, messages: list[Sent], topic: str) -> None:
    rig = Rig(tmp_path)
    rig.take(messages[:3])
    out = rig.take([received(("query/state", {}), response_topic=topic, correlation=b"c")])
    assert refusals(out) == ["bad_value"]
    assert [p.topic for p in out] == [f"{ROOT}/s/u/rejected"]
    assert out[0].correlation == b""


def test_only_a_question_is_asked_that_way(tmp_path: Path, messages: list[Sent]) -> None:
    rig = Rig(tmp_path)
    rig.take([received(m, **CORRELATED) for m in messages[:3]])
    assert [row.payload for row in rig.journal.rows() if row.kind == "received"] == [
        received(m).payload for m in messages[:3]
    ]
    assert {p.correlation for p in rig.sent} == {b""}
