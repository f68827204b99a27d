"""Journal -> desks: one fold for a restart (`resume`) and for the audit (`replay`).

Every input row (started, received) goes through the same functions of `service.desk` as it did live; every row that
the desk had said (decision, estimate, sent, rejected, note) is compared with what it says now, number for number. Only
`seq` and `epoch`, which count a run's messages, are left out.
"""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, NamedTuple

from service.config import ServiceConfig
from service.desk import ConfiguredOpening, Desk, Output, Settings, estimate, restarted, step, watch
from service.journal import Entry, Journal, JournalError, Row
from service.messages import ROOT, BatchStart, Rejected, canonical_json, decode
from service.recall import Recalled, plans
from twin.config import ConfigError, parse

SILENT = "alarm/edge_silent"
"""What `watch` says; the row's own time is the time it looked."""

SAID = frozenset({"decision", "estimate", "sent", "rejected", "note"})


class Mismatch(NamedTuple):
    """Where the journal and its recomputation differ."""

    row: int  # of the journal; 0: said now, but not found in the journal
    kind: str
    detail: str


@dataclass(slots=True)
class Fold:
    """Desks on their way through a journal."""

    desks: dict[str, Desk] = field(default_factory=dict)  # by unit
    expected: dict[str, deque[Output]] = field(default_factory=dict)  # said now, not yet met in the journal
    opening: dict[str, int] = field(default_factory=dict)  # unit -> row that says its batch has begun
    compared: Counter[str] = field(default_factory=Counter)  # rows found equal, by kind
    mismatches: list[Mismatch] = field(default_factory=list)
    received: int = 0

    def take(self, row: Row, make: Callable[[ServiceConfig], Settings]) -> None:
        """One row, passed over where its unit is not on a desk here.

        What follows a batch's start up to its note was said of the batch before it, and is compared in that one's replay.
        """
        if row.kind == "started":
            config, epoch = read_started(row)
            self.desks = {u: restarted(d, make(config), epoch) for u, d in self.desks.items()}
            return
        unit, suffix = place(row.topic)
        desk = self.desks.get(unit)
        if desk is None:
            return
        if row.kind in SAID and row.n < self.opening.get(unit, 0):
            return
        queue = self.expected.setdefault(unit, deque())
        if row.kind == "received":
            self.received += 1
            self.desks[unit], said = step(desk, suffix, row.payload, row.at)
            queue.extend(o for o in said if o.kind is not None)
        elif row.kind in SAID and not (row.kind == "note" and suffix != "note"):
            if row.kind == "estimate" and not any(o.kind == "estimate" for o in queue):
                self.desks[unit], said = estimate(desk)
                queue.extend(said)
            elif suffix == SILENT and not any(o.suffix == SILENT for o in queue):
                self.desks[unit], said = watch(desk, row.at)
                queue.extend(said)
            self._compare(row, suffix, queue.popleft() if queue else None)

    def _compare(self, row: Row, suffix: str, output: Output | None) -> None:
        if output is None:
            self.mismatches.append(Mismatch(row.n, row.kind, f"{suffix}: nothing is said now"))
        elif (output.kind, output.suffix) != (row.kind, suffix):
            self.mismatches.append(Mismatch(row.n, row.kind, f"{suffix}: now {output.kind} {output.suffix}"))
        elif (difference := _difference(row.payload, output.payload)) is not None:
            self.mismatches.append(Mismatch(row.n, row.kind, f"{suffix}: {difference}"))
        else:
            self.compared[row.kind] += 1


def settings_of(config: ServiceConfig) -> Settings:
    """What a desk needs of a configuration."""
    return Settings(config.mode, config.clock, config.futures, ConfiguredOpening(config))


def started_entry(config: ServiceConfig, epoch: int, version: str, at: datetime) -> Entry:
    """The row that begins every run of the service: whatever the desks depend on besides the messages."""
    content = {"epoch": epoch, "version": version, "config": config.model_dump(mode="json")}
    return Entry(at, "started", f"{ROOT}/{config.site}", canonical_json(content))


def read_started(row: Row) -> tuple[ServiceConfig, int]:
    """Configuration and epoch of a `started` row. Raises ConfigError when this version cannot read it."""
    content = json.loads(row.payload)
    return parse(ServiceConfig, content["config"], f"journal row {row.n} (configuration of that run)"), int(
        content["epoch"]
    )


def newest_epoch(journal: Journal) -> int:
    """The highest epoch of any run in the journal, 0 in an empty one: no later run may have a lower one."""
    return max((int(json.loads(row.payload)["epoch"]) for row in journal.rows() if row.kind == "started"), default=0)


def place(topic: str) -> tuple[str, str]:
    """Unit and suffix of a full topic."""
    parts = topic.removeprefix(ROOT + "/").split("/", 2)
    return (parts[1], parts[2]) if len(parts) == 3 else ("", "")


class Begun(NamedTuple):
    """A batch in the journal."""

    batch: str
    unit: str
    row: int  # of the batch_start that was taken
    finished: tuple[str, ...]  # batches of the unit before it
    noted: int  # row that says it has begun
    settled: bool = False  # ended, and an estimate has followed all that was received since: nothing is left to say


def batches(journal: Journal) -> tuple[Begun, ...]:
    """Every batch that was begun, in order."""
    found: list[Begun] = []
    starts: dict[tuple[str, str], int] = {}
    newest: dict[str, int] = {}  # unit -> its newest batch's place in `found`
    ended: set[str] = set()  # units whose newest batch has ended
    for row in journal.rows():
        unit, suffix = place(row.topic)
        if row.kind in ("received", "estimate") and unit in ended:
            at = newest[unit]
            asked = suffix.startswith("query/")
            found[at] = found[at]._replace(settled=row.kind == "estimate" or (asked and found[at].settled))
        if row.kind == "received" and suffix == "event/batch_start":
            try:
                message = decode(suffix, row.payload)
            except Rejected:
                continue
            if isinstance(message, BatchStart):
                starts[unit, message.batch] = row.n
        elif row.kind == "note" and suffix == "note":
            said = json.loads(row.payload)
            if said["note"] == "batch_started":
                before = tuple(b.batch for b in found if b.unit == unit)
                newest[unit] = len(found)
                ended.discard(unit)
                found.append(Begun(said["batch"], unit, starts[unit, said["batch"]], before, row.n))
            elif said["note"] == "batch_ended":
                ended.add(unit)
    return tuple(found)


def fold(
    journal: Journal, begun: Iterable[Begun], make: Callable[[ServiceConfig], Settings] = settings_of,
    stop: int | None = None, progress: Callable[[int], None] = lambda rows: None, *, recall: bool = False,
) -> Fold:  # fmt: skip
    """Run the rows of `begun` batches (at most one a unit), each from its start to row `stop` (default: the last).

    `recall`: plans are taken from the journal where it has them, not made again.
    Raises ConfigError when a batch cannot be opened again, JournalError when the journal does not begin with a run.
    """
    wanted = {b.row: b for b in begun}
    state, config, epoch = Fold(), None, 0
    for row in journal.rows(stop=stop):
        progress(1)
        if row.kind == "started":
            config, epoch = read_started(row)
        if (start := wanted.get(row.n)) is not None:
            if config is None:
                raise JournalError(
                    f"{journal.path}: row {row.n} comes before any run of the service; restore the journal"
                )
            site = row.topic.removeprefix(ROOT + "/").split("/")[0]
            state.desks[start.unit] = Desk(site, start.unit, make(config), epoch, finished=start.finished)
            state.opening[start.unit] = start.noted
        state.take(row, make)
        if start is not None and recall:
            state.desks[start.unit] = _recalling(state.desks[start.unit], journal, start, stop)
        if start is not None and state.desks[start.unit].running is None:
            said = json.loads(state.expected[start.unit][-1].payload)
            raise ConfigError(
                f"batch {start.batch!r} cannot be opened again: {said.get('reason')}: {said.get('detail')}"
            )
    return state


def _recalling(desk: Desk, journal: Journal, begun: Begun, stop: int | None) -> Desk:
    if desk.running is None:
        return desk
    rows = (row for row in journal.rows(begun.row, stop) if place(row.topic)[0] == begun.unit)
    policy = Recalled(desk.running.policy, plans(rows, begun.batch))
    return replace(desk, running=replace(desk.running, policy=policy))


def _resumed(desk: Desk, settings: Settings, epoch: int) -> Desk:
    """The desk under a new run, with its own policy again."""
    if desk.running is not None:
        desk = replace(desk, running=replace(desk.running, policy=desk.running.opened.policy))
    return restarted(desk, settings, epoch)


@dataclass(frozen=True, slots=True)
class Resumed:
    """What a restarted service goes on from."""

    desks: Mapping[str, Desk]  # by unit
    unsaid: tuple[
        tuple[str, Output], ...
    ]  # (unit, output): concluded from received rows, but not journalled before the stop
    mismatches: tuple[Mismatch, ...]  # what this version would have said otherwise
    resting: Mapping[str, Begun]  # by unit: its newest batch is over and settled; `wake` brings it back to its desk


def resume(journal: Journal, config: ServiceConfig, epoch: int) -> Resumed:
    """The desks as they were when the service stopped, under the new epoch and configuration; newest batch of each unit.

    The driver journals `unsaid` (as it is, before the row of `started_entry`), then publishes what is still valid of it.
    A batch that is over is not recomputed: it may never be asked for again. Plans are recalled (`service.recall`).
    """
    newest = {b.unit: b for b in batches(journal)}
    resting = {unit: b for unit, b in newest.items() if b.settled}
    state = fold(journal, [b for b in newest.values() if not b.settled], recall=True)
    settings = settings_of(config)
    desks = {u: _resumed(d, settings, epoch) for u, d in state.desks.items()}
    unsaid = tuple((u, o) for u, queue in state.expected.items() for o in queue)
    return Resumed(desks, unsaid, tuple(state.mismatches), resting)


def wake(
    journal: Journal, begun: Begun, config: ServiceConfig, epoch: int, stop: int
) -> tuple[Desk, tuple[Mismatch, ...]]:
    """The desk of a resting batch as it was at row `stop`, under the new epoch and configuration. Raises ConfigError."""
    state = fold(journal, [begun], stop=stop, recall=True)
    return _resumed(state.desks[begun.unit], settings_of(config), epoch), tuple(state.mismatches)


class Report(NamedTuple):
    """Outcome of the audit of one batch."""

    batch: str
    unit: str
    rows: int  # in the whole journal, all chained
    head: str
    received: int
    compared: Mapping[str, int]  # rows found equal, by kind
    unsaid: int  # said now, missing at the end of the journal: the service was stopped in between
    mismatches: tuple[Mismatch, ...]

    @property
    def ok(self) -> bool:
        return not self.mismatches


def begun_as(journal: Journal, batch: str, unit: str | None = None) -> tuple[Begun, Begun | None]:
    """The batch of that name, and the next one of its unit (None: it is the newest).

    Raises ConfigError naming the known batches when `batch` is not there, or is there on several units and none is named.
    """
    known = batches(journal)
    mine = [b for b in known if b.batch == batch and unit in (None, b.unit)]
    if not mine:
        names = ", ".join(dict.fromkeys(b.batch for b in known)) or "no batch at all"
        raise ConfigError(f"{journal.path}: no batch {batch!r}{f' on unit {unit!r}' if unit else ''}; it holds {names}")
    if len(mine) > 1:
        raise ConfigError(
            f"batch {batch!r} is on several units ({', '.join(b.unit for b in mine)}); name one with --unit"
        )
    later = (b for b in known if b.unit == mine[0].unit and b.row > mine[0].row)
    return mine[0], next(later, None)


def replay(
    journal: Journal, batch: str, unit: str | None = None, progress: Callable[[int], None] = lambda rows: None
) -> Report:
    """Recompute a batch from the journal (whose chain its opening has verified) and compare all that was said.

    Raises ConfigError as `begun_as` does.
    """
    begun, later = begun_as(journal, batch, unit)
    state = fold(journal, [begun], stop=later and later.noted, progress=progress)
    left = state.expected.get(begun.unit, deque[Output]())
    mismatches = list(state.mismatches)
    unsaid = 0 if later else len(left)  # beyond the start of the next batch everything is said of that one
    if later and not _handed_over(state.desks[begun.unit], begun):
        mismatches.append(Mismatch(later.noted, "note", "note: the next batch does not begin now"))
    return Report(
        batch, begun.unit, journal.head.n, journal.head.hash, state.received, dict(state.compared), unsaid, tuple(mismatches)
    )  # fmt: skip


def _handed_over(desk: Desk, begun: Begun) -> bool:
    return desk.running is not None and desk.running.message.batch != begun.batch


def _difference(before: bytes, now: bytes) -> str | None:
    """Where two payloads first differ, apart from `seq` and `epoch`; None when they are equal."""
    if before == now:
        return None
    try:
        old, new = json.loads(before), json.loads(now)
    except ValueError:
        return "one of the two is not JSON"
    return _first(old, new, "")


def _first(old: Any, new: Any, path: str) -> str | None:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new} - ({"seq", "epoch"} if not path else set())):
            if (found := _first(old.get(key), new.get(key), f"{path}.{key}")) is not None:
                return found
        return None
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return next(
            (f for k, (a, b) in enumerate(zip(old, new, strict=True)) if (f := _first(a, b, f"{path}[{k}]"))), None
        )
    return (
        None
        if old == new and type(old) is type(new)
        else f"{path.lstrip('.')}: {str(old)[:60]} then, {str(new)[:60]} now"
    )


__all__ = [
    "Begun", "Fold", "Mismatch", "Report", "Resumed", "batches", "begun_as", "fold", "newest_epoch", "place", "read_started", "replay",
    "resume", "settings_of", "started_entry", "wake",
]  # fmt: skip
