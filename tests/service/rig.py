"""A runner without a broker, and what left it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from service.journal import Journal
from service.messages import ROOT
from service.mqtt import Posting, Received
from service.runner import Runner
from tests.service.batch_driver import WALL, Sent, configuration


@dataclass
class Rig:
    """A runner, and what left it."""

    folder: Path
    epoch: int = 1
    changes: dict[str, Any] = field(default_factory=dict)
    sent: list[Posting] = field(default_factory=list)
    acknowledged: list[Received] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.config = configuration(self.folder, **self.changes)
        self.journal = Journal.open(self.folder)
        self.ticks = itertools.count()
        self.late = timedelta(0)
        self.runner = Runner(
            self.config, self.journal, self.epoch, "test", self.now, self.publish, self.warnings.append
        )
        self.runner.rebuild()
        self.runner.resume()

    def now(self) -> Any:
        return WALL + self.late + timedelta(milliseconds=10_000 * self.epoch + next(self.ticks))

    def publish(self, posting: Posting) -> None:
        self.sent.append(posting)

    def take(self, messages: Iterable[Sent | Received], unit: str = "u") -> list[Posting]:
        before = len(self.sent)
        self.runner.take(
            [m if isinstance(m, Received) else received(m, unit) for m in messages], self.acknowledged.append
        )
        return self.sent[before:]

    def kinds(self) -> list[str]:
        return [row.kind for row in self.journal.rows()]


def received(sent: Sent, unit: str = "u", **changes: Any) -> Received:
    suffix, content = sent
    payload = content if isinstance(content, bytes) else json.dumps(content).encode()
    usual = {"retained": False, "duplicate": False, "qos": 1, "mid": 1, "link": 1}
    return Received(f"{ROOT}/s/{unit}/{suffix}", payload, **{**usual, **changes})


def said(postings: Iterable[Posting], suffix: str) -> list[dict[str, Any]]:
    return [json.loads(p.payload or b"{}") for p in postings if p.topic.split("/", 4)[4].startswith(suffix)]
