"""`celltwin serve` and `celltwin edge` as processes of their own, and a spy that hears what they say over the broker."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest
import yaml

from service.asyncapi import validate
from service.broker import find_mosquitto
from service.journal import Journal
from service.mqtt import Address, Posting, parse_address
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


def check_all_valid(heard: Sequence[Heard]) -> None:
    for h in heard:
        validate(h.topic, h.payload)


def one_line_exit_2(process: subprocess.Popen[str], *words: str) -> None:
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2, err
    lines = [line for line in err.strip().splitlines() if "development:" not in line]
    assert len(lines) == 1
    for word in words:
        assert word in lines[0]
