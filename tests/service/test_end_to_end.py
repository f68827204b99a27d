"""Separate processes and real brokers: `celltwin serve`, `celltwin edge`, and a spy that sees what they say."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest
import yaml

from service.asyncapi import validate
from service.broker import development_broker, find_mosquitto, free_port
from service.journal import Journal
from service.messages import MeasurementMessage
from service.mqtt import Address, Posting, parse_address
from service.replay import replay
from twin.config import configs_dir, read_yaml

ROOT = Path(__file__).resolve().parents[2]
SITE = "celltwin/v1/s"
needs_mosquitto = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")


@dataclass(frozen=True)
class Heard:
    topic: str
    payload: bytes
    retained: bool
    expiry: int | None

    @property
    def content(self) -> dict[str, Any]:
        return json.loads(self.payload or b"{}")


class Spy:
    """A client of its own that hears everything on the site."""

    def __init__(self, url: str) -> None:
        at: Address = parse_address(url)
        self.v5 = at.user is None
        self.heard: list[Heard] = []
        self._client = paho.Client(
            paho.CallbackAPIVersion.VERSION2,
            client_id=f"spy-{id(self)}",
            protocol=paho.MQTTv5 if self.v5 else paho.MQTTv311,
        )
        if at.user is not None:
            self._client.username_pw_set(at.user)
        ready = threading.Event()
        self._client.on_connect = lambda c, *_: c.subscribe("celltwin/v1/#", 1)
        self._client.on_subscribe = lambda *_: ready.set()
        self._client.on_message = self._on_message
        self._client.connect(at.host, at.port)
        self._client.loop_start()
        assert ready.wait(10)

    def _on_message(self, client: Any, userdata: Any, m: paho.MQTTMessage) -> None:
        expiry = getattr(m.properties, "MessageExpiryInterval", None) if self.v5 else None
        self.heard.append(Heard(m.topic, bytes(m.payload), bool(m.retain), expiry))

    def say(self, posting: Posting) -> None:
        self._client.publish(posting.topic, posting.payload, qos=1, retain=posting.retain).wait_for_publish(10)

    def on(self, family: str, unit: str = "r1") -> list[Heard]:
        return [h for h in list(self.heard) if h.topic.startswith(f"{SITE}/{unit}/{family}")]

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@dataclass
class Site:
    """A folder, a broker, and the processes that run on it."""

    folder: Path
    url: str
    changes: dict[str, Any] = field(default_factory=dict)
    running: list[subprocess.Popen[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        recipe = read_yaml(configs_dir() / "recipes" / "cspr_100.yaml")
        for days in (1, 2):
            (self.folder / f"short{days}.yaml").write_text(
                yaml.safe_dump({**recipe, "name": f"short{days}", "harvest_latest": days})
            )
        content = {
            "site": "s", "broker": {"url": self.url}, "development": True, "units": ["r1"], "data": "twin", "mode": "closed",
            "clock": "event", "policy": "cspr", "futures": 40, "recipes": ["none", "./short1.yaml", "./short2.yaml"], **self.changes,
        }  # fmt: skip
        (self.folder / "serve.yaml").write_text(yaml.safe_dump(content))

    def edge_file(self, unit: str = "r1", **changes: Any) -> Path:
        content = {
            "site": "s", "unit": unit, "broker": {"url": self.url}, "development": True, "batch": "B1", "seed": 3,
            "recipe": "./short2.yaml", "start": "2026-11-01T06:00:00Z", "budget": {"day": 1.0, "batch": 6.0}, **changes,
        }  # fmt: skip
        path = self.folder / f"edge-{unit}.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(
            [sys.executable, "-m", "service.cli", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=environment, cwd=ROOT,
        )  # fmt: skip
        self.running.append(process)
        return process

    def serve(self) -> subprocess.Popen[str]:
        return self.start("serve", "-c", str(self.folder / "serve.yaml"))

    def edge(self, *arguments: str, unit: str = "r1", **changes: Any) -> subprocess.Popen[str]:
        return self.start("edge", "-c", str(self.edge_file(unit, **changes)), "--json", *arguments)

    def journal(self) -> Journal:
        return Journal.open(self.folder / "twin", create=False)

    def stop(self) -> None:
        for process in self.running:
            process.kill()
            process.communicate()


def finish(process: subprocess.Popen[str], seconds: float = 200.0) -> dict[str, Any]:
    out, err = process.communicate(timeout=seconds)
    assert process.returncode == 0, (err, out[-3000:])
    return json.loads(out)


def end(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0, err


def until(met: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)


@pytest.fixture
def mosquitto() -> Iterator[str]:
    if find_mosquitto() is None:
        pytest.skip("mosquitto is not installed")
    with development_broker("mosquitto") as url:
        yield url


@pytest.fixture
def spy(mosquitto: str) -> Iterator[Spy]:
    watcher = Spy(mosquitto)
    yield watcher
    watcher.close()


@pytest.fixture
def site(tmp_path: Path, mosquitto: str) -> Iterator[Site]:
    place = Site(tmp_path, mosquitto)
    yield place
    place.stop()


def check_all_valid(heard: Sequence[Heard]) -> None:
    for h in heard:
        validate(h.topic, h.payload)


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
def test_bad_messages_are_answered_and_the_service_lives(site: Site, spy: Spy) -> None:
    serve = site.serve()
    until(lambda: bool(spy.on("status")))
    bad = {
        "measurement/glucose": [
            b"",
            b"{",
            b"\xff\xfe",
            b'{"value": NaN}',
            b"[" * 5000,
            b'{"a":1,"a":2}',
            b"x" * 100_000,
        ],
        "event/batch_start": [b"null", b'{"batch": "../../etc"}'],
        "measurement/unheard_of": [json.dumps({**MeasurementMessage.example, "channel": "unheard_of"}).encode()],
        "event/party": [b"{}"],
        "query/everything": [b"{}"],
        "actuator/sonar/deep": [b"{}"],
    }
    count = sum(len(v) for v in bad.values())
    for suffix, payloads in bad.items():
        for payload in payloads:
            spy.say(Posting(f"{SITE}/r1/{suffix}", payload))
    spy.say(Posting(f"{SITE}/r2/measurement/ph", b"{}"))  # another unit: not ours to answer
    until(lambda: len(spy.on("rejected")) >= count)
    check_all_valid(spy.on("rejected"))
    assert {h.content["reason"] for h in spy.on("rejected")} >= {
        "not_json", "not_utf8", "not_finite", "nested_too_deep", "duplicate_key", "too_large", "unknown_channel", "unknown_kind",
        "unknown_verb",
    }  # fmt: skip
    assert serve.poll() is None
    result = finish(site.edge(recipe="./short1.yaml"))
    assert result["outcome"]["day"] == pytest.approx(1.0)
    assert len(spy.on("rejected")) == count
    assert spy.on("rejected", unit="r2") == []
    end(serve)


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
        assert [a["ok"] for a in answers] == [True, True, True, False]
        assert answers[0]["estimate"]["batch"] == "B-r2"
        assert answers[2]["forecast"]["p_release"] >= 0.0
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


def one_line_exit_2(process: subprocess.Popen[str], *words: str) -> None:
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2, err
    lines = [line for line in err.strip().splitlines() if "development:" not in line]
    assert len(lines) == 1
    for word in words:
        assert word in lines[0]


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["serve", "edge"])
def test_a_broker_that_is_not_there(tmp_path: Path, verb: str) -> None:
    site = Site(tmp_path, f"mqtt://127.0.0.1:{free_port()}")
    process = site.serve() if verb == "serve" else site.edge()
    one_line_exit_2(process, site.url, "refused", "is it running")


@pytest.mark.slow
def test_wrong_input_of_edge_is_one_line(site: Site, tmp_path: Path) -> None:
    bad = tmp_path / "bad.csv"
    bad.write_text("batch,channel\nx,y\n")
    one_line_exit_2(site.edge("--replay", str(tmp_path / "none.csv")), "none.csv", "no such file")
    one_line_exit_2(site.edge("--replay", str(bad)), "bad.csv")
    one_line_exit_2(site.edge(preset="martian"), "martian")
    one_line_exit_2(site.edge(scenario="paradise"), "paradise")
    one_line_exit_2(site.start("edge", "-c", str(tmp_path / "none.yaml")), "none.yaml")


@needs_mosquitto
@pytest.mark.slow
def test_two_services_on_one_data_directory(site: Site, spy: Spy) -> None:
    first = site.serve()
    until(lambda: bool(spy.on("status")))
    one_line_exit_2(site.serve(), "another service runs on this data directory")
    assert spy.on("status")[-1].content["state"] == "online"
    end(first)


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
