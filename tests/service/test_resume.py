"""A restart: from the journal alone, and wherever the service was killed, it goes on as if nothing had happened."""

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

from controllers.plan import Plan, Policy, Situation
from service.desk import Desk, opening
from service.journal import Head, Journal
from service.recall import Recalled
from service.replay import replay, resume, settings_of, started_entry
from tests.service.batch_driver import (
    Driver,
    batch_start,
    configuration,
    copied,
    same,
)


def test_a_restart_knows_what_was_known(driver: Driver) -> None:
    resumed = resume(driver.journal, driver.config, 2)
    assert (resumed.unsaid, resumed.mismatches) == ((), ())
    assert same(resumed.desks["u"], driver.desk)
    assert resumed.desks["u"].epoch == 2


def test_an_empty_journal_resumes_to_nothing(tmp_path: Path) -> None:
    with Journal.open(tmp_path) as journal:
        assert resume(journal, configuration(tmp_path), 1).desks == {}


def planned(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Times [d] of the decisions for which a restart plans anew."""
    made: list[float] = []
    usual = opening.make_policy

    def counting(*arguments: Any, **settings: Any) -> Policy:
        policy = usual(*arguments, **settings)

        def plan(situation: Situation, previous: Plan | None) -> Plan:
            made.append(situation.now)
            return policy(situation, previous)

        plan.name = policy.name  # type: ignore[attr-defined]
        return plan

    with monkeypatch.context() as patched:
        patched.setattr(opening, "make_policy", counting)
        resumed = resume(driver.journal, driver.config, 2)
        assert resumed.mismatches == ()
        assert same(resumed.desks["u"], driver.desk)
        running = resumed.desks["u"].running
        assert running is not None
        assert running.policy is running.opened.policy  # recalled plans end where the journal ends
    return made


def test_a_restart_recalls_its_plans_and_an_audit_does_not(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    decisions = [json.loads(r.payload) for r in driver.journal.rows() if r.kind == "decision"]
    assert [d["plan"]["status"] for d in decisions] == ["solved"] * len(decisions)
    assert planned(driver, monkeypatch) == []
    asked: list[float] = []
    usual = Recalled.__call__
    monkeypatch.setattr(Recalled, "__call__", lambda *a: asked.append(0.0) or usual(*a))
    assert replay(driver.journal, "B001").ok
    assert asked == []


def test_a_recalled_plan_is_judged_anew(driver: Driver, tmp_path: Path) -> None:
    """A plan altered by one who can hash does not become a decision unseen, nor one beyond the limits an override."""
    row = [r for r in driver.journal.rows() if r.kind == "decision"][-1]
    content = json.loads(row.payload)
    content["plan"]["controls"][0][0] = 1e3
    with copied(driver, tmp_path, {row.n: json.dumps(content).encode()}) as forged:
        resumed = resume(forged, driver.config, 2)
    assert row.n in [m.row for m in resumed.mismatches]
    running = resumed.desks["u"].running
    assert running is not None
    assert running.session.last is not None
    assert running.session.last.control is None or running.session.last.control.perfusion < 10.0


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
