"""Replay: every estimate and decision comes out again from the journal, exactly; anything else is found."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from service.cli import run
from service.desk import Desk, step
from service.journal import Entry, Head, Journal, Row
from service.messages import Ack, time_text
from service.replay import batches, replay, resume, settings_of, started_entry
from tests.service.batch_driver import START, WALL, Driver, batch_end, batch_start, configuration, course
from twin.config import ConfigError


def play(folder: Path, days: float = 0.8, **changes: Any) -> Driver:
    driver = Driver(configuration(folder, **changes), Journal.open(folder))
    for k, sent in enumerate(course(days)):
        driver.send(sent, look=k % 4 == 0)
        if k == 20:
            driver.send(("measurement/glucose", {"value": "much"}))
    return driver


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Driver:
    """A journalled stretch of a batch with a refused message in it; read only."""
    return play(tmp_path_factory.mktemp("replay"))


def copied(driver: Driver, folder: Path, change: dict[int, bytes] | None = None, stop: int | None = None) -> Journal:
    """The journal again, with some payloads replaced and a chain that fits them: a forger who can hash."""
    journal = Journal.open(folder)
    rows = driver.journal.rows(stop=stop)
    journal.append_many([Entry(r.at, r.kind, r.topic, (change or {}).get(r.n, r.payload)) for r in rows])
    return journal


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


def test_an_alarm_that_was_up_before_the_first_batch_is_known_to_its_replay(tmp_path: Path) -> None:
    driver = Driver(configuration(tmp_path), Journal.open(tmp_path))
    driver.send(("ack/x", {**Ack.example, "cmd_id": "x", "accepted": False, "applied_rate": None, "reason": "late"}))
    assert "override_refused" in driver.desk.alarms
    for sent in course(0.1):
        driver.send(sent)
    driver.send(("ack/y", {**Ack.example, "cmd_id": "y", "accepted": True, "applied_rate": 0.5, "reason": "applied"}))
    report = replay(driver.journal, "B001")
    assert report.ok, report.mismatches
    assert "override_refused" not in driver.desk.alarms


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


# --- restart ---------------------------------------------------------------------------------------------------------


def same(a: Desk, b: Desk) -> bool:
    """The same knowledge: batch, clock, plan, alarms; epoch and count may differ."""
    assert a.running is not None
    assert b.running is not None
    x, y = a.running.session, b.running.session
    assert x.batch.belief == y.batch.belief
    assert (x.batch.evidence, x.batch.applied, x.batch.events) == (y.batch.evidence, y.batch.applied, y.batch.events)
    assert (x.clock, x.next_decision, x.plan, x.last, x.ended) == (y.clock, y.next_decision, y.plan, y.last, y.ended)
    assert a.running.start == b.running.start
    assert {c: m.since for c, m in a.alarms.items()} == {c: m.since for c, m in b.alarms.items()}
    return True


def test_a_restart_knows_what_was_known(driver: Driver) -> None:
    resumed = resume(driver.journal, driver.config, 2)
    assert (resumed.unsaid, resumed.mismatches) == ((), ())
    assert same(resumed.desks["u"], driver.desk)
    assert resumed.desks["u"].epoch == 2


def test_an_empty_journal_resumes_to_nothing(tmp_path: Path) -> None:
    with Journal.open(tmp_path) as journal:
        assert resume(journal, configuration(tmp_path), 1).desks == {}


@pytest.mark.slow
def test_a_crash_after_any_row_loses_nothing(driver: Driver, tmp_path: Path) -> None:
    """Cut the journal after a row, resume, say what was kept back, go on: the end is the same, bit for bit."""
    rows = tuple(driver.journal.rows())
    decisions = [r.n for r in rows if r.kind == "decision"]
    started = next(r.n for r in rows if r.kind == "note")
    cuts = sorted(
        {started - 1, started, decisions[0] - 1, decisions[0], decisions[0] + 1, decisions[-1] - 1, len(rows) - 1}
    )
    for cut in cuts:
        folder = tmp_path / str(cut)
        with copied(driver, folder, stop=cut) as journal:
            again = Driver.__new__(Driver)
            again.config, again.journal, again.outputs, again.ticks = driver.config, journal, [], 10_000
            resumed = resume(journal, driver.config, 2)
            assert resumed.mismatches == ()
            if cut == started - 1:
                assert (
                    resumed.desks == {}
                )  # the batch was not yet begun: its start comes again, it was not acknowledged
                again.desk = Desk("s", "u", settings_of(driver.config), 2)
                again.send(batch_start(), look=False)
            else:
                again.desk = resumed.desks["u"]
                again.say(tuple(o for _, o in resumed.unsaid))
            journal.append(started_entry(driver.config, 2, "test", again.now()))
            for row in rows[cut:]:
                if row.kind == "received":
                    again.send((row.topic.removeprefix(f"{again.desk.root}/"), json.loads(row.payload)), look=False)
            assert same(again.desk, driver.desk)
            if cut != started - 1:
                report = replay(journal, "B001")
                assert report.ok, report.mismatches
                assert report.compared["decision"] == len(decisions)


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


@pytest.mark.slow
def test_kill_9_at_any_moment_resumes_to_the_same_end(tmp_path: Path, root: Path) -> None:
    """A process plays a batch and is killed again and again; each successor resumes and goes on where the journal ends."""
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from service.journal import Journal\n"
        "from service.replay import resume, settings_of, started_entry\n"
        "from service.desk import Desk\n"
        "from tests.service.batch_driver import Driver, configuration, course\n"
        "folder = Path(sys.argv[1])\n"
        "journal = Journal.open(folder)\n"
        "config = configuration(Path('data'))\n"
        "d = Driver.__new__(Driver)\n"
        "d.config, d.journal, d.outputs, d.ticks = config, journal, [], journal.head.n * 10\n"
        "resumed = resume(journal, config, 1 + sum(r.kind == 'started' for r in journal.rows()))\n"
        "assert not resumed.mismatches, resumed.mismatches\n"
        "d.desk = resumed.desks.get('u') or Desk('s', 'u', settings_of(config), 1)\n"
        "d.say(tuple(o for _, o in resumed.unsaid))\n"
        "journal.append(started_entry(config, d.desk.epoch, 'test', d.now()))\n"
        "print('ready', flush=True)\n"
        "done = sum(r.kind == 'received' for r in journal.rows())\n"
        "for sent in list(course(2.0))[done:]:\n"
        "    d.send(sent)\n"
        "print('done', d.desk.running.session.last.basis, flush=True)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(root)}

    def play_on(folder: Path, patience: float | None) -> str:
        command = [sys.executable, "-c", script, str(folder)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root, env=environment)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        if patience is not None:
            time.sleep(patience)
            process.send_signal(signal.SIGKILL)
        rest = process.stdout.read()
        process.wait()
        process.stdout.close()
        return rest

    undisturbed = play_on(tmp_path / "calm", None)
    rng = random.Random(11)
    for _ in range(4):
        play_on(tmp_path / "killed", rng.uniform(0.05, 1.0))
    assert play_on(tmp_path / "killed", None) == undisturbed != ""
    with Journal.open(tmp_path / "killed", anchor=Head(0, "")) as journal:
        report = replay(journal, "B001")
    assert report.ok, report.mismatches
    assert report.compared["decision"] == 8
