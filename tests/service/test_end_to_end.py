"""Separate processes and real brokers: `celltwin serve`, `celltwin edge`, and a spy that sees what they say."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from service.broker import development_broker
from service.mqtt import Posting
from service.replay import replay
from tests.service.processes import (
    SITE,
    Site,
    Spy,
    check_all_valid,
    end,
    finish,
    until,
)


@pytest.mark.slow
def test_a_batch_under_mpc_over_mosquitto(tmp_path: Path, mosquitto: str, spy: Spy) -> None:
    """What `mosquitto_sub -V 5` would see of a batch: everything of the interface, every payload valid, nothing refused."""
    site = Site(tmp_path, mosquitto, {"policy": "mpc"})
    try:
        serve, edge = site.serve(), site.edge()
        result = finish(edge)
        until(lambda: bool([h for h in spy.on("estimate") if "ended" in h.content["flags"]]))
        end(serve)
    finally:
        site.stop()
    assert result["outcome"]["day"] == pytest.approx(2.0)
    assert result["rejected"] == []
    assert result["accepted"] == result["overrides"] > 0
    seen = {h.topic.split("/")[4] for h in spy.heard}
    assert {"measurement", "event", "actuator", "ack", "override", "estimate", "forecast", "plan", "status"} <= seen
    check_all_valid(spy.heard)

    overrides = spy.on("override")
    assert not any(h.retained for h in overrides)
    assert all(h.expiry is not None and 0 < h.expiry <= 8 * 3600 for h in overrides)
    assert all(h.content["valid_until"] > h.content["valid_from"] for h in overrides)
    acks = {h.content["cmd_id"]: h.content for h in spy.on("ack")}
    assert set(acks) == {h.content["cmd_id"] for h in overrides}
    assert any(h.content["cmd_id"] in acks for h in spy.on("actuator"))

    at = [h.content["at"] for h in spy.on("estimate")]
    assert at == sorted(at)
    states = [h.content["state"] for h in spy.on("status")]
    assert (states[0], states[-1]) == ("online", "offline")

    late = Spy(mosquitto)
    until(lambda: len(late.on("")) >= 4)
    kept = {h.topic.split("/", 4)[4] for h in late.heard if h.payload}
    late.close()
    assert {"estimate", "forecast", "plan", "status"} <= kept
    assert not any(name.startswith(("override", "measurement", "event", "actuator", "ack")) for name in kept)

    with site.journal() as journal:
        report = replay(journal, "B1")
    assert report.ok, report.mismatches[:3]
    assert report.compared["decision"] == 8


@pytest.mark.slow
def test_a_batch_over_the_embedded_broker(tmp_path: Path) -> None:
    """MQTT 3.1.1 on loopback against amqtt: the same payloads carry the same meaning."""
    with development_broker("amqtt") as url:
        site, watcher = Site(tmp_path, url), Spy(url)
        try:
            serve = site.serve()
            result = finish(site.edge(recipe="./short1.yaml"))
            end(serve)
        finally:
            site.stop()
            watcher.close()
    assert result["rejected"] == []
    assert result["accepted"] > 0
    assert result["forecasts"] >= 3
    check_all_valid(watcher.heard)
    assert not any(h.retained for h in watcher.on("override"))


@pytest.mark.slow
def test_kill_9_in_the_middle_of_a_batch_loses_nothing(tmp_path: Path, mosquitto: str, spy: Spy) -> None:
    """The killed and restarted service ends with the very estimate, decisions and harvest of the one left in peace."""
    (tmp_path / "calm").mkdir()
    (tmp_path / "killed").mkdir()
    calm, killed = Site(tmp_path / "calm", mosquitto), Site(tmp_path / "killed", mosquitto)
    try:
        serve = calm.serve()
        expected = finish(calm.edge(batch="calm"))
        end(serve)
        spy.heard.clear()
        serve, edge = killed.serve(), killed.edge(batch="killed")
        for count in (2, 5):
            until(lambda n=count: len(spy.on("forecast")) >= n, 120)  # type: ignore[misc]
            time.sleep(0.05 * count)
            os.kill(serve.pid, signal.SIGKILL)
            serve.wait()
            serve = killed.serve()
        result = finish(edge)
        end(serve)
    finally:
        calm.stop()
        killed.stop()

    assert result["rejected"] == []
    assert result["outcome"] == expected["outcome"]
    said = [h.content["state"] for h in spy.on("status")]
    assert said.count("offline") >= 3  # two last wills and a goodbye

    with calm.journal() as before, killed.journal() as after:
        sent = {(h.topic, h.payload) for h in (*spy.on("measurement"), *spy.on("actuator"), *spy.on("event"))}
        kept = {(row.topic, row.payload) for row in after.rows() if row.kind == "received"}
        assert sent <= kept
        report = replay(after, "killed")
        assert report.ok, report.mismatches[:3]
        decisions = [[_timeless(row.payload) for row in j.rows() if row.kind == "decision"] for j in (before, after)]
        last = [
            [json.loads(row.payload)["state"] for row in j.rows() if row.kind == "estimate"][-1]
            for j in (before, after)
        ]
        epochs = {json.loads(row.payload)["epoch"] for row in after.rows() if row.kind == "started"}
    assert decisions[0] == decisions[1]
    assert last[0] == last[1]
    assert epochs == {1, 2, 3}


def _timeless(payload: bytes) -> dict[str, Any]:
    """A decision without what hangs on names: of the batch, and through the basis of the read-backs' ids."""
    return {k: v for k, v in json.loads(payload).items() if k not in ("batch", "basis")}


@pytest.mark.slow
def test_a_fleet_and_its_questions(tmp_path: Path, mosquitto: str, spy: Spy) -> None:
    """Two reactors under `units: "*"` at once; each has its own status, will and answers."""
    site = Site(tmp_path, mosquitto, {"units": "*"})
    try:
        serve = site.serve()
        edges = [site.edge(unit=u, recipe="./short1.yaml", batch=f"B-{u}", seed=k) for k, u in enumerate(("r1", "r2"))]
        results = [finish(e) for e in edges]
        assert [r["rejected"] for r in results] == [[], []]
        until(lambda: all(len(spy.on("forecast", u)) >= 3 for u in ("r1", "r2")))
        for unit in ("r1", "r2"):
            assert {h.content["batch"] for h in spy.on("estimate", unit)} == {f"B-{unit}"}
        ask = {"reply_to": f"{SITE}/r2/reply/panel", "correlation": "c1"}
        questions = {
            "state": ask, "forecast": ask, "whatif": {**ask, "actuator": "perfusion", "factor": 1.5, "hours": 6.0},
            "approve": {**ask, "basis": "x", "operator": "ab", "reason": "looks right"},
        }  # fmt: skip
        for verb, content in questions.items():
            spy.say(Posting(f"{SITE}/r2/query/{verb}", json.dumps(content).encode()))
        until(lambda: len(spy.on("reply/panel", "r2")) == 4)
        answers = [h.content for h in spy.on("reply/panel", "r2")]
        assert [a["ok"] for a in answers] == [True, True, False, False]
        assert answers[0]["estimate"]["batch"] == "B-r2"
        assert "ended" in answers[2]["reason"]
        assert "not taken" in answers[3]["reason"]
        check_all_valid(spy.heard)
        os.kill(serve.pid, signal.SIGKILL)
        until(lambda: all(spy.on("status", u)[-1].content["state"] == "offline" for u in ("r1", "r2")))
    finally:
        site.stop()


@pytest.mark.slow
def test_a_measured_batch_played_over_the_wire(site: Site, spy: Spy, measured: Path) -> None:
    """A laboratory's own record (nistcho) through the whole service: estimates, forecasts, nothing refused."""
    path = measured / "nistcho_fedbatch" / "vicell.csv"
    serve = site.serve()
    edge = site.edge("--replay", str(path), "--batch", "FB2_A_R2")
    result = finish(edge)
    end(serve)
    assert result["rejected"] == []
    assert result["forecasts"] > 5
    assert len(spy.on("measurement/viable_density")) >= 8
    check_all_valid(spy.heard)
    last = spy.on("estimate")[-1].content
    counted = [h.content["value"] for h in spy.on("measurement/viable_density")][-1]
    state = last["state"]["viable_density"]
    assert abs(math.log(state["mean"] / counted)) < math.log(1.5)
    with site.journal() as journal:
        assert replay(journal, "FB2_A_R2").ok


@pytest.mark.slow
def test_an_edge_goes_on_alone_and_the_twin_catches_up(site: Site, spy: Spy) -> None:
    """GIVEN no twin, WHEN an edge runs its batch, THEN it harvests by its recipe, and the twin later takes in all of it."""
    site.serve()  # once, so that the broker keeps its messages
    until(lambda: bool(spy.on("status")))
    os.kill(site.running[-1].pid, signal.SIGKILL)
    site.running[-1].wait()
    result = finish(site.edge("--patience", "1", recipe="./short1.yaml"))
    assert result["outcome"]["day"] == pytest.approx(1.0)
    assert result["accepted"] == 0
    serve = site.serve()
    until(lambda: any("ended" in h.content["flags"] for h in spy.on("estimate")), 90)
    assert spy.on("rejected") == []
    sent = {h.payload for h in spy.on("measurement")}
    end(serve)
    with site.journal() as journal:
        assert sent <= {row.payload for row in journal.rows() if row.kind == "received"}
