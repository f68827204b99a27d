"""The shell around the desks, without broker: what is journalled, what is sent, in which order, and after a crash."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from service.journal import Entry, Journal, JournalError
from service.messages import MAX_BYTES, ROOT
from service.mqtt import Posting, Received
from service.replay import replay
from service.runner import is_ours, subscriptions
from tests.service.batch_driver import Sent, batch_end, batch_start, configuration, course, reading
from tests.service.rig import Rig, received, said


@pytest.fixture(scope="module")
def messages() -> list[Sent]:
    return list(course(0.8))


def test_a_group_is_journalled_acknowledged_and_answered_by_one_estimate(tmp_path: Path, messages: list[Sent]) -> None:
    rig = Rig(tmp_path)
    out = rig.take(messages[:12])
    assert rig.kinds()[:13] == ["started", *["received"] * 12]
    assert len(rig.acknowledged) == 12
    assert len(said(out, "estimate")) == 1
    assert [p.retain for p in out if p.topic.endswith("/estimate")] == [True]


def test_nothing_leaves_that_is_not_in_the_journal(tmp_path: Path, messages: list[Sent]) -> None:
    rig = Rig(tmp_path)
    missing: list[str] = []

    def publish(posting: Posting) -> None:
        if all(row.payload != posting.payload for row in rig.journal.rows()):
            missing.append(posting.topic)
        rig.sent.append(posting)

    rig.runner.publish = publish
    for k in range(0, len(messages), 5):
        rig.take(messages[k : k + 5])
    assert said(rig.sent, "override/perfusion")
    assert missing == []


def test_a_journal_that_cannot_be_written_stops_the_run_before_anything_is_sent(
    tmp_path: Path, messages: list[Sent], monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(tmp_path)
    rig.take(messages[:12])
    sent, acknowledged = len(rig.sent), len(rig.acknowledged)

    def full(self: Journal, entries: Any) -> Any:
        raise JournalError("disk full")

    monkeypatch.setattr(Journal, "append_many", full)
    with pytest.raises(JournalError, match="disk full"):
        rig.take(messages[12:14])
    assert (len(rig.sent), len(rig.acknowledged)) == (sent, acknowledged)


@pytest.mark.parametrize(
    ("suffix", "payload", "reason"),
    [
        ("measurement/glucose", b"{", "not_json"),
        ("measurement/glucose", b"\xff", "not_utf8"),
        ("measurement/glucose", b'{"value": NaN}', "not_finite"),
        ("measurement/glucose", b"[" * 1000, "nested_too_deep"),
        ("measurement/glucose", b'"' + b"x" * (3 * MAX_BYTES) + b'"', "too_large"),
        ("measurement/gluc", reading("glucose", 5.0, "mM", 0.01)[1], "topic_mismatch"),
        ("measurement/", b"{}", "unknown_topic"),
        ("event/party", b"{}", "unknown_kind"),
        ("query/everything", b"{}", "unknown_verb"),
        ("actuator/sonar", b"{}", "unknown_actuator"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_rejected_and_the_next_message_counts(
    tmp_path: Path, messages: list[Sent], suffix: str, payload: Any, reason: str
) -> None:
    rig = Rig(tmp_path)
    rig.take(messages[:8])
    out = rig.take([(suffix, payload), messages[8]])
    assert [r["reason"] for r in said(out, "rejected")] == [reason]
    assert len(said(out, "estimate")) == 1
    assert rig.runner.refused == 1
    assert max(len(row.payload) for row in rig.journal.rows()) <= MAX_BYTES + 1
    assert replay(rig.journal, "B001").ok


def test_a_retained_message_is_refused_kept_and_no_input_of_replay(tmp_path: Path, messages: list[Sent]) -> None:
    rig = Rig(tmp_path)
    rig.take(messages[:8])
    out = rig.take([received(messages[8], retained=True)])
    assert [r["reason"] for r in said(out, "rejected")] == ["retained"]
    assert said(out, "estimate") == []
    assert "dropped" in rig.kinds()
    assert replay(rig.journal, "B001").ok


def test_other_sites_and_units_are_left_alone(tmp_path: Path) -> None:
    rig = Rig(tmp_path, changes={"units": ["u"]})
    foreign = [
        received(batch_start(), "v"),
        Received(f"{ROOT}/elsewhere/u/event/batch_start", b"{}", False, False, 1, 1, 1),
        Received("celltwin/v2/s/u/event/batch_start", b"{}", False, False, 1, 1, 1),
        Received(f"{ROOT}/s/u", b"{}", False, False, 1, 1, 1),
    ]
    assert rig.take(foreign) == []
    assert rig.kinds() == ["started"]
    assert not rig.runner.desks
    assert not is_ours(rig.config, f"{ROOT}/s/bad unit/measurement/ph")


def test_subscriptions_cover_the_configured_units_only(tmp_path: Path) -> None:
    assert subscriptions(configuration(tmp_path, units=["a", "b"]))[0] == f"{ROOT}/s/a/measurement/#"
    assert len(subscriptions(configuration(tmp_path, units=["a", "b"]))) == 10
    assert set(subscriptions(configuration(tmp_path))) == {
        f"{ROOT}/s/+/{family}/#" for family in ("measurement", "event", "actuator", "ack", "query")
    }


def test_units_of_a_fleet_do_not_meet(tmp_path: Path, messages: list[Sent]) -> None:
    """Interleaved messages of three units: each unit's estimate is what it would be alone."""
    names = ("a", "b", "c")
    fleet = Rig(tmp_path / "fleet")
    last: dict[str, Any] = {}
    for k, message in enumerate(messages[:12]):
        shift = [received(message, name) for name in (names if k % 2 else reversed(names))]
        for posting in fleet.take(shift):
            if posting.topic.endswith("/estimate"):
                last[posting.topic.split("/")[3]] = json.loads(posting.payload)
    alone = Rig(tmp_path / "alone")
    for message in messages[:12]:
        out = alone.take([message])
    (expected,) = said(out, "estimate")
    assert [last[name]["state"] for name in names] == [expected["state"]] * 3


def test_only_closed_mode_sends_overrides(tmp_path: Path, messages: list[Sent]) -> None:
    for mode, count in (("shadow", 0), ("advisory", 0), ("closed", 12)):
        rig = Rig(tmp_path / mode, changes={"mode": mode})
        rig.take(messages[:1])
        for k in range(1, len(messages), 10):
            rig.take(messages[k : k + 10])
        assert len(said(rig.sent, "plan")) == 3
        overrides = [p for p in rig.sent if "/override/" in p.topic]
        assert len(overrides) == count, mode
        assert not any(p.retain for p in overrides)
        assert all(p.expiry is not None and 0 < p.expiry <= 8 * 3600 for p in overrides)


def test_the_same_messages_again_change_nothing(tmp_path: Path, messages: list[Sent]) -> None:
    rig = Rig(tmp_path)
    rig.take(messages)
    before = said(rig.sent, "estimate")[-1]
    sent = len(rig.sent)
    rig.take(messages)
    after = said(rig.sent, "estimate")[-1]
    assert {k: v for k, v in after.items() if k != "seq"} == {k: v for k, v in before.items() if k != "seq"}
    assert {p.topic.rsplit("/", 1)[1] for p in rig.sent[sent:]} == {"estimate"}


@pytest.mark.parametrize("cut", [3, 30])
def test_a_restart_goes_on_as_if_nothing_had_happened(tmp_path: Path, messages: list[Sent], cut: int) -> None:
    whole = Rig(tmp_path / "whole")
    for k in range(0, len(messages), 6):
        whole.take(messages[k : k + 6])
    parted = Rig(tmp_path / "parted")
    for k in range(0, cut, 3):
        parted.take(messages[k : k + 3])
    parted.journal.close()
    again = Rig(tmp_path / "parted", epoch=2)
    assert again.warnings == []
    for k in range(cut, len(messages), 6):
        again.take(messages[k : k + 6])
    timeless = {"seq", "epoch"}
    for suffix in ("estimate", "forecast", "plan"):
        last, expected = said(again.sent, suffix)[-1], said(whole.sent, suffix)[-1]
        assert {k: v for k, v in last.items() if k not in timeless} == {
            k: v for k, v in expected.items() if k not in timeless
        }
    ids = {o["cmd_id"] for o in (*said(parted.sent, "override/"), *said(again.sent, "override/"))}
    assert ids == {o["cmd_id"] for o in said(whole.sent, "override/")}
    assert {e["epoch"] for e in said(again.sent, "estimate")} == {2}
    assert replay(again.journal, "B001").ok


def test_a_decision_that_a_crash_kept_back_is_sent_at_the_restart(tmp_path: Path, messages: list[Sent]) -> None:
    """GIVEN messages journalled and acknowledged, WHEN the service dies before it answers, THEN its successor answers."""
    whole = Rig(tmp_path / "whole")
    whole.take(messages)
    crashed = Rig(tmp_path / "crashed")
    crashed.take(messages[:5])
    at = crashed.now()
    crashed.journal.append_many([Entry(at, "received", m.topic, m.payload) for m in map(received, messages[5:])])
    crashed.journal.close()
    again = Rig(tmp_path / "crashed", epoch=2)
    overrides = said(whole.sent, "override/")
    newest = {(o["cmd_id"], o["rate"]) for o in overrides if o["valid_from"] == overrides[-1]["valid_from"]}
    assert {
        (o["cmd_id"], o["rate"]) for o in said(again.sent, "override/")
    } == newest  # the earlier ones have expired by now
    assert newest
    decisions = [[row.payload for row in rig.journal.rows() if row.kind == "decision"] for rig in (whole, again)]
    assert decisions[0] == decisions[1]
    assert replay(again.journal, "B001").ok


def test_a_restart_repeats_standing_overrides_with_their_ids_and_a_fresh_estimate(
    tmp_path: Path, messages: list[Sent]
) -> None:
    rig = Rig(tmp_path)
    rig.take(messages)
    rig.journal.close()
    newest = [
        o for o in said(rig.sent, "override/") if o["valid_from"] == said(rig.sent, "override/")[-1]["valid_from"]
    ]
    again = Rig(tmp_path, epoch=2)
    assert said(again.sent, "override/") == newest
    assert {o["actuator"] for o in newest} == {"perfusion", "feed", "cytokine_dose", "harvest"}
    assert len(said(again.sent, "estimate")) == 1
    again.journal.close()
    shy = Rig(tmp_path, epoch=3, changes={"mode": "advisory"})
    assert said(shy.sent, "override/") == []


def test_an_ended_batch_repeats_no_override(tmp_path: Path, messages: list[Sent]) -> None:
    rig = Rig(tmp_path)
    rig.take([*messages, batch_end(0.85)])
    rig.journal.close()
    assert said(Rig(tmp_path, epoch=2).sent, "override/") == []


def test_a_greeting_repeats_what_is_retained(tmp_path: Path, messages: list[Sent]) -> None:
    rig = Rig(tmp_path)
    rig.take(messages)
    held = {topic.rsplit("/", 1)[1] for topic in rig.runner.posted}
    assert {"estimate", "forecast", "plan"} <= held
    assert not any("override" in topic for topic in rig.runner.posted)
    rig.journal.close()
    again = Rig(tmp_path, epoch=2)
    for name in ("forecast", "plan"):
        assert again.runner.posted[f"{ROOT}/s/u/{name}"].payload == rig.runner.posted[f"{ROOT}/s/u/{name}"].payload


def test_an_expired_override_is_known_but_not_sent(tmp_path: Path, messages: list[Sent]) -> None:
    """Under the wall clock: a backlog worked off a day late decides, journals, and sends no stale command."""
    rig = Rig(tmp_path, changes={"clock": "wall"})
    rig.late = timedelta(days=3)
    rig.take(messages)
    assert "decision" in rig.kinds()
    assert said(rig.sent, "override/") == []
