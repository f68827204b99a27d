"""The append-only audit trail: an SQLite file of hash-chained rows, durable when `append_many` returns.

Row n carries SHA-256 over (n, at, kind, topic, payload, hash of row n-1); the head, the number and hash of the newest
row, is kept in a table of its own and can be anchored outside (`head`). Order of the rows is order of arrival.
Rule 1: nothing here interprets a payload. Rule 2: nothing is ever updated or deleted (triggers refuse it).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Literal, NamedTuple, TextIO, get_args

from service.messages.base import parse_time, time_text

Kind = Literal[
    "started", "received", "decision", "estimate", "sent", "rejected", "note", "dropped", "remark"
]  # fmt: skip
"""Inputs: started (a run of the service: epoch, configuration), received (a raw message).
What the desk made of them: decision, estimate, sent (published), rejected (the refusal published), note (batch begun, ended).
Passed over by replay: dropped (a raw message refused before it was read, e.g. retained), remark (in journals of before 0.2)."""

GENESIS = "0" * 64
FILE = "journal.sqlite"
APPLICATION = 0x63746A31  # "ctj1"

_SCHEMA = """
CREATE TABLE row (n INTEGER PRIMARY KEY, at TEXT NOT NULL, kind TEXT NOT NULL, topic TEXT NOT NULL,
                  payload BLOB NOT NULL, prev TEXT NOT NULL, hash TEXT NOT NULL);
CREATE TABLE head (one INTEGER PRIMARY KEY CHECK (one = 1), n INTEGER NOT NULL, hash TEXT NOT NULL);
CREATE TRIGGER no_update BEFORE UPDATE ON row BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END;
CREATE TRIGGER no_delete BEFORE DELETE ON row BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END;
"""


class JournalError(RuntimeError):
    """A journal that cannot be trusted or used; one line that names the file, the row and the remedy."""


class Entry(NamedTuple):
    """What is to be journalled."""

    at: datetime  # receive or decision time, aware
    kind: Kind
    topic: str  # full MQTT topic, or unit root for what has none
    payload: bytes


class Row(NamedTuple):
    """One line of the journal as it stands."""

    n: int  # 1, 2, ...
    at: datetime
    kind: Kind
    topic: str
    payload: bytes
    prev: str
    hash: str


class Head(NamedTuple):
    """Number and hash of the newest row: print it, sign it, keep it elsewhere."""

    n: int
    hash: str


def chained(n: int, at: str, kind: str, topic: str, payload: bytes, prev: str) -> str:
    """Hash of a row: SHA-256 over the length-prefixed fields, so that no two rows share a text."""
    digest = hashlib.sha256()
    for part in (str(n).encode(), at.encode(), kind.encode(), topic.encode(), payload, prev.encode()):
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()


class Journal:
    """One writer's handle on a journal file. Not for sharing between threads.

    Opening verifies the whole chain: a journal that was cut, edited or damaged is refused with JournalError.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection, head: Head) -> None:
        self.path = path
        self._db = connection
        self._head = head

    @classmethod
    def open(cls, folder: Path, *, create: bool = True, anchor: Head | None = None) -> Journal:
        """Open `folder`/journal.sqlite; with `create`, make it when absent; without, for reading only.

        `anchor` is a head seen earlier, which must still be part of the chain: finds a journal that was rolled back.
        Raises JournalError.
        """
        path = folder / FILE
        if not path.is_file():
            if not create:
                raise JournalError(f"{path}: no journal there; name the data directory of the service with --data")
            return cls._new(path)
        db = _connect(path, write=create)
        try:
            if (
                create and (anchor is None or anchor.n == 0) and _is_blank(db)
            ):  # stopped while it was being made: nothing was ever written
                db.close()
                return cls._new(path)
            head = _verified(path, db, anchor)
        except JournalError:
            db.close()
            raise
        return cls(path, db, head)

    @classmethod
    def _new(cls, path: Path) -> Journal:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise JournalError(
                f"{path.parent}: cannot be made: {error.strerror}; choose another data directory"
            ) from None
        db = _connect(path, write=True)
        try:
            db.execute("BEGIN IMMEDIATE")
            for statement in _SCHEMA.strip().split(";\n"):
                if statement.strip():
                    db.execute(statement if "TRIGGER" not in statement else f"{statement.rstrip(';')};")
            db.execute("INSERT INTO head VALUES (1, 0, ?)", (GENESIS,))
            db.execute(f"PRAGMA application_id = {APPLICATION}")
            db.execute("COMMIT")
        except sqlite3.Error as error:
            db.close()
            raise JournalError(
                f"{path}: cannot be written: {error}; is the disk full or the folder read-only?"
            ) from None
        return cls(path, db, Head(0, GENESIS))

    @property
    def head(self) -> Head:
        """Number and hash of the newest durable row; (0, zeros) of an empty journal."""
        return self._head

    def append_many(self, entries: Sequence[Entry]) -> tuple[Row, ...]:
        """Append all of `entries` or none, in order; durable on return. Raises JournalError when it cannot be."""
        rows: list[Row] = []
        n, prev = self._head
        for entry in entries:
            n, at = n + 1, time_text(entry.at)
            digest = chained(n, at, entry.kind, entry.topic, entry.payload, prev)
            rows.append(Row(n, parse_time(at), entry.kind, entry.topic, entry.payload, prev, digest))
            prev = digest
        if not rows:
            return ()
        try:
            self._db.execute("BEGIN IMMEDIATE")
            stored = self._db.execute("SELECT n, hash FROM head").fetchone()
            ours = stored == tuple(self._head)
            if ours:
                self._db.executemany(
                    "INSERT INTO row VALUES (?, ?, ?, ?, ?, ?, ?)",
                    [(r.n, time_text(r.at), r.kind, r.topic, r.payload, r.prev, r.hash) for r in rows],
                )
                self._db.execute("UPDATE head SET n = ?, hash = ?", (n, prev))
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            raise JournalError(
                f"{self.path}: row {rows[0].n} cannot be written: {error}; free the disk, restart"
            ) from None
        if not ours:
            raise JournalError(f"{self.path}: another process wrote row {stored[0]}; one service per data directory")
        self._head = Head(n, prev)
        return tuple(rows)

    def append(self, entry: Entry) -> Row:
        """Append one entry; durable on return."""
        return self.append_many((entry,))[0]

    def rows(self, start: int = 1, stop: int | None = None) -> Iterator[Row]:
        """Rows `start`..`stop` (inclusive, default: all), in order of arrival."""
        last = self._head.n if stop is None else stop
        query = "SELECT n, at, kind, topic, payload, prev, hash FROM row WHERE n BETWEEN ? AND ? ORDER BY n"
        for n, at, kind, topic, payload, prev, digest in self._db.execute(query, (start, last)):
            yield Row(n, parse_time(at), kind, topic, payload, prev, digest)

    def export(self, stream: TextIO) -> int:
        """Write the journal as JSON lines: a row an object (payload as hexadecimal), the head last. Answers the rows."""
        for row in self.rows():
            line = row._asdict() | {"at": time_text(row.at), "payload": row.payload.hex()}
            stream.write(json.dumps(line, sort_keys=True) + "\n")
        stream.write(json.dumps({"head": self._head._asdict()}, sort_keys=True) + "\n")
        return self._head.n

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def verify_rows(path: Path, rows: Iterable[tuple[int, str, str, str, bytes, str, str]]) -> Head:
    """Walk a chain from its first row; answers its head. Raises JournalError at the first row that does not fit."""
    n, prev = 0, GENESIS
    for number, at, kind, topic, payload, stated_prev, stated in rows:
        n += 1
        where = f"{path}: row {n}"
        if number != n:
            raise JournalError(f"{where} is missing (found {number}): restore the journal from its copy")
        if not all(isinstance(v, str) for v in (at, kind, topic, stated_prev, stated)) or not isinstance(
            payload, bytes
        ):
            raise JournalError(f"{where} is damaged: a column has the wrong type; restore the journal from its copy")
        if stated_prev != prev:
            raise JournalError(
                f"{where} does not follow row {n - 1}: the chain is broken; restore the journal from its copy"
            )
        if chained(n, at, kind, topic, payload, prev) != stated or kind not in get_args(Kind):
            raise JournalError(f"{where} was altered: its hash does not fit; restore the journal from its copy")
        prev = stated
    return Head(n, prev)


def _is_blank(db: sqlite3.Connection) -> bool:
    """Whether a database holds nothing at all and belongs to nobody."""
    try:
        if db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            return False
        return all(db.execute(f"PRAGMA {name}").fetchone()[0] == 0 for name in ("application_id", "user_version"))
    except sqlite3.Error:
        return False  # `_verified` says what is wrong with it


def _verified(path: Path, db: sqlite3.Connection, anchor: Head | None) -> Head:
    """Rows and head of one snapshot: a service may be writing meanwhile."""
    try:
        db.execute("BEGIN")
        return _verified_snapshot(path, db, anchor)
    except sqlite3.Error as error:
        raise JournalError(f"{path}: damaged: {error}; restore the journal from its copy") from None
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")


def _verified_snapshot(path: Path, db: sqlite3.Connection, anchor: Head | None) -> Head:
    try:
        if db.execute("PRAGMA application_id").fetchone()[0] != APPLICATION:
            raise JournalError(f"{path}: not a journal of this program; name another data directory")
        head = verify_rows(path, db.execute("SELECT n, at, kind, topic, payload, prev, hash FROM row ORDER BY n"))
        stored = db.execute("SELECT n, hash FROM head").fetchone()
        anchored = None
        if anchor is not None and anchor.n > 0:
            anchored = db.execute("SELECT hash FROM row WHERE n = ?", (anchor.n,)).fetchone()
    except (sqlite3.Error, UnicodeDecodeError, OverflowError) as error:
        raise JournalError(f"{path}: damaged: {error}; restore the journal from its copy") from None
    if stored is None or tuple(stored) != tuple(head):
        expected = "nothing" if stored is None else f"row {stored[0]}"
        raise JournalError(
            f"{path}: ends at row {head.n}, its head says {expected}: cut or altered; restore it from its copy"
        )
    if anchor is not None and anchor.n > 0 and (anchored is None or anchored[0] != anchor.hash):
        raise JournalError(f"{path}: row {anchor.n} is not the anchored one: rolled back or replaced; restore its copy")
    return head


def _connect(path: Path, *, write: bool) -> sqlite3.Connection:
    """A connection of its own; without `write` nothing can be changed through it. Raises JournalError."""
    try:
        uri = f"{path.resolve().as_uri()}?mode={'rwc' if write else 'ro'}"
        db = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=5.0, check_same_thread=False)
        if write:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA trusted_schema = OFF")
    except sqlite3.Error as error:
        raise JournalError(
            f"{path}: cannot be opened: {error}; restore the journal or name another data directory"
        ) from None
    return db
