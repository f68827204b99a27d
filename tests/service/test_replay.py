"""Replay: every estimate and decision comes out again from the journal, exactly; anything else is found."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from service.cli import run
from service.desk import Desk, step, watch
from service.journal import Entry, Journal, Row
from service.messages import Ack, time_text
from service.replay import batches, replay, resume, settings_of, started_entry
from tests.service.batch_driver import (
    START,
    WALL,
    Driver,
    batch_end,
    batch_start,
    configuration,
    copied,
    course,
    play,
    read_back,
    reading,
    same,
)
from twin.config import ConfigError


def test_every_estimate_and_decision_is_reproduced(driver: Driver) -> None:
    report = replay(driver.journal, "B001")
    rows = [r.kind for r in driver.journal.rows()]
    assert report.ok
    assert report.unsaid == 0
    assert report.compared == {k: rows.count(k) for k in ("decision", "estimate", "sent", "rejected", "note")}
    assert report.compared["decision"] == 3
    assert report.received == rows.count("received")
    assert (report.rows, report.head) == tuple(driver.journal.head)


def changed(row: Row) -> bytes:
    """The payload with one number changed in its last digit."""
    content = json.loads(row.payload)

    def nudge(node: Any) -> bool:
        items = (
            list(node.items()) if isinstance(node, dict) else list(enumerate(node)) if isinstance(node, list) else []
        )
        for key, value in items:
            if key in ("seq", "epoch"):
                continue
            if isinstance(value, float) and value > 0:
                node[key] = value * (1 + 1e-15)
                if node[key] == value:
                    node[key] = value * (1 + 3e-16)
                return node[key] != value
            if nudge(value):
                return True
        return False

    if not nudge(content):
        content["reason"] = "other"
    return json.dumps(content).encode()


@pytest.mark.parametrize("kind", ["decision", "estimate", "sent", "rejected"])
def test_a_forged_conclusion_is_found_to_the_last_digit(driver: Driver, tmp_path: Path, kind: str) -> None:
    row = [r for r in driver.journal.rows() if r.kind == kind and r.payload][-1]
    with copied(driver, tmp_path, {row.n: changed(row)}) as forged:
        report = replay(forged, "B001")
    assert [m.row for m in report.mismatches] == [row.n]
    assert "then" in report.mismatches[0].detail


def test_a_forged_measurement_is_found_by_what_followed(driver: Driver, tmp_path: Path) -> None:
    row = next(r for r in driver.journal.rows() if r.topic.endswith("/measurement/glucose"))
    content = {**json.loads(row.payload), "value": 4.0}
    with copied(driver, tmp_path, {row.n: json.dumps(content).encode()}) as forged:
        report = replay(forged, "B001")
    assert not report.ok
    assert {"decision", "estimate"} <= {m.kind for m in report.mismatches}


def test_another_configuration_is_found(driver: Driver, tmp_path: Path) -> None:
    """What the desks depend on is in the journal: replay does not look at today's configuration file."""
    other = started_entry(configuration(tmp_path, policy="time_steps"), 1, "test", WALL)
    with copied(driver, tmp_path, {1: other.payload}) as forged:
        kinds = {m.kind for m in replay(forged, "B001").mismatches}
    assert {"note", "decision"} <= kinds


def test_seq_and_epoch_are_not_compared(driver: Driver, tmp_path: Path) -> None:
    row = [r for r in driver.journal.rows() if r.kind == "estimate"][-1]
    content = {**json.loads(row.payload), "seq": 9_999, "epoch": 7}
    with copied(driver, tmp_path, {row.n: json.dumps(content).encode()}) as other:
        assert replay(other, "B001").ok


def test_an_unknown_batch_names_the_known_ones(driver: Driver) -> None:
    with pytest.raises(ConfigError, match="it holds B001"):
        replay(driver.journal, "B009")
    with pytest.raises(ConfigError, match="on unit 'other'"):
        replay(driver.journal, "B001", unit="other")


def test_two_batches_of_one_unit_are_replayed_apart(tmp_path: Path) -> None:
    driver = play(tmp_path, 0.3)
    driver.send(batch_end(0.35))
    later = time_text(START)
    driver.send(batch_start(batch="B002", id="s2", at=later))
    for sent in [s for s in course(0.3) if s[0] != "event/batch_start"]:
        driver.send((sent[0], {**sent[1], "batch": "B002"}))
    assert [(b.batch, b.finished) for b in batches(driver.journal)] == [("B001", ()), ("B002", ("B001",))]
    for name in ("B001", "B002"):
        report = replay(driver.journal, name)
        assert report.ok, report.mismatches
        assert report.compared["decision"] == 1
    resumed = resume(driver.journal, driver.config, 2)
    assert resumed.desks["u"].finished == ("B001",)
    assert resumed.desks["u"].running is not None
    assert resumed.desks["u"].running.message.batch == "B002"


@pytest.mark.parametrize("at_once", [False, True])
def test_a_batch_that_supersedes_a_running_one_with_an_alarm_up_is_replayed_exactly(
    tmp_path: Path, at_once: bool
) -> None:
    """`at_once`: its start waits in the same inbox as the last words of the other, so their rows interleave."""
    driver = play(tmp_path, 0.3)
    refusal = (
        "ack/x",
        {**Ack.example, "cmd_id": "x", "accepted": False, "applied_rate": None, "reason": "advisory: 0"},
    )
    start_again = batch_start(batch="B002", id="s2", at=time_text(START))
    if at_once:
        group = [refusal, start_again, *[(s, {**c, "batch": "B002"}) for s, c in [*course(0.0)][1:4]]]
        at, said = driver.now(), []
        payloads = [(suffix, json.dumps(content).encode()) for suffix, content in group]
        driver.journal.append_many([Entry(at, "received", f"{driver.desk.root}/{s}", p) for s, p in payloads])
        for suffix, payload in payloads:
            driver.desk, said = step(driver.desk, suffix, payload, at)
            driver.say(said)
        driver.look()
    else:
        driver.send(refusal)
        assert "override_refused" in driver.desk.alarms
        driver.send(start_again)
    for sent in [s for s in course(0.3) if s[0] != "event/batch_start"]:
        driver.send((sent[0], {**sent[1], "batch": "B002"}))
    notes = [json.loads(r.payload)["note"] for r in driver.journal.rows() if r.kind == "note"]
    assert notes == ["batch_started", "batch_superseded", "batch_started"]
    for name in ("B001", "B002"):
        report = replay(driver.journal, name)
        assert report.ok, report.mismatches
        assert report.unsaid == 0
    assert resume(driver.journal, driver.config, 2).mismatches == ()


def test_silence_and_its_end_are_replayed_exactly(tmp_path: Path) -> None:
    driver = Driver(configuration(tmp_path, clock="wall"), Journal.open(tmp_path))
    driver.send(batch_start(at=time_text(WALL - timedelta(hours=2))))
    driver.ticks += 3_600_000  # an hour goes by
    at = driver.now()
    driver.desk, said = watch(driver.desk, at)
    driver.journal.append_many([Entry(at, "sent", f"{driver.desk.root}/{o.suffix}", o.payload) for o in said])
    assert "edge_silent" in driver.desk.alarms
    assert same(resume(driver.journal, driver.config, 2).desks["u"], driver.desk)
    driver.send(read_back("perfusion", 0.0, 0.0, at=time_text(WALL)))
    assert driver.desk.alarms == {}
    report = replay(driver.journal, "B001")
    assert report.ok, report.mismatches
    row = next(r for r in driver.journal.rows() if r.topic.endswith("edge_silent"))
    early = [r if r.n != row.n else r._replace(at=WALL) for r in driver.journal.rows()]
    with Journal.open(tmp_path / "forged") as forged:
        forged.append_many([Entry(r.at, r.kind, r.topic, r.payload) for r in early])
        assert replay(forged, "B001").mismatches[0].row == row.n  # it was not silent yet


def test_corrections_and_retractions_in_any_order_are_replayed_exactly(tmp_path: Path) -> None:
    driver = play(tmp_path, 0.3)
    for sent in (
        reading("lactate", 2.4, "mM", 0.2, id="C", supersedes="B", version=3),
        reading("lactate", 2.0, "mM", 0.2, id="A"),
        reading("lactate", 2.2, "mM", 0.2, id="B", supersedes="A", version=2),
        reading("lactate", 9.0, "mM", 0.22, id="bad", quality="bad"),
        reading("glucose", 25.0, "mM", 0.22, id="D"),
        reading("glucose", 25.0, "mM", 0.22, id="D", version=2, quality="bad"),
    ):
        assert not [o for o in driver.send(sent) if o.kind == "rejected"]
    assert driver.desk.running is not None
    batch = driver.desk.running.session.batch
    assert [m.value for m in batch.evidence if m.channel == "lactate"] == [2.4]
    assert {m.id for m in batch.superseded if m.retracted} == {"bad", "D"}
    report = replay(driver.journal, "B001")
    assert report.ok, report.mismatches
    resumed = resume(driver.journal, driver.config, 2).desks["u"]
    assert same(resumed, driver.desk)
    assert resumed.running is not None
    assert resumed.running.session.batch.superseded == batch.superseded
    assert resumed.running.links == driver.desk.running.links


def test_a_forged_hand_over_is_found(tmp_path: Path) -> None:
    driver = play(tmp_path / "one", 0.1)
    driver.send(batch_start(batch="B002", id="s2", at=time_text(START)))
    row = next(r for r in driver.journal.rows() if b"batch_superseded" in r.payload)
    with copied(driver, tmp_path / "two", {row.n: row.payload.replace(b"B001", b"B003")}) as forged:
        assert [m.row for m in replay(forged, "B001").mismatches] == [row.n]


def test_a_batch_on_several_units_wants_the_unit(tmp_path: Path) -> None:
    driver = play(tmp_path, 0.0)
    first = driver.desk
    driver.desk = Desk("s", "v", settings_of(driver.config), 1)
    for sent in course(0.0):
        driver.send(sent)
    with pytest.raises(ConfigError, match="--unit"):
        replay(driver.journal, "B001")
    assert replay(driver.journal, "B001", unit="v").ok
    resumed = resume(driver.journal, driver.config, 2)
    assert set(resumed.desks) == {"u", "v"}
    assert same(resumed.desks["u"], first)
    assert same(resumed.desks["v"], driver.desk)


# --- the command line ------------------------------------------------------------------------------------------------


def celltwin(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = run(list(arguments))
    said = capsys.readouterr()
    return code, said.out, said.err


def test_the_verb_says_ok_and_1_when_not(driver: Driver, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = driver.journal.path.parent
    head = driver.journal.head
    anchor = f"{head.n}:{head.hash}"
    code, out, _ = celltwin(capsys, "replay", "B001", "--data", str(folder), "--json", "--anchor", anchor)
    assert code == 0
    answer = json.loads(out)
    assert (answer["ok"], answer["mismatches"], answer["rows"]) == (True, [], head.n)
    row = next(r for r in driver.journal.rows() if r.kind == "decision")
    copied(driver, tmp_path, {row.n: changed(row)}).close()
    code, out, _ = celltwin(capsys, "replay", "B001", "--data", str(tmp_path))
    assert code == 1
    assert f"row {row.n}" in out


def test_the_verb_refuses_in_one_line(driver: Driver, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(driver.journal.path.parent)
    (tmp_path / "journal.sqlite").write_bytes(b"nonsense " * 1000)
    for arguments, words in (
        (("B009", "--data", folder), "it holds B001"),
        (("B001", "--data", str(tmp_path)), "journal.sqlite"),
        (("B001", "--data", str(tmp_path / "none")), "--data"),
        (("B001", "--data", folder, "--anchor", "x"), "--anchor"),
        (("B001", "--data", folder, "--anchor", "3:" + "0" * 64), "rolled back"),
    ):
        code, out, err = celltwin(capsys, "replay", *arguments)
        assert (code, out) == (2, "")
        assert len(err.strip().splitlines()) == 1
        assert words in err


def test_verify_is_a_verb_too(driver: Driver, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = celltwin(capsys, "verify", str(driver.journal.path.parent), "--json")
    assert (code, json.loads(out)["head"]) == (0, driver.journal.head.hash)
    assert celltwin(capsys, "verify", str(tmp_path))[0] == 2
    (tmp_path / "journal.sqlite").write_bytes(driver.journal.path.read_bytes()[:8192])
    assert celltwin(capsys, "verify", str(tmp_path))[0] == 1
    (tmp_path / "notes.txt").write_text("just some notes\n")
    code, out, err = celltwin(capsys, "verify", str(tmp_path / "notes.txt"))
    assert (code, out, len(err.strip().splitlines())) == (2, "", 1)
    assert "cannot be read" in err
