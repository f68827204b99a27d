"""Rows to write into a journal, and a hand that alters them: what the tests of journal and verifier share."""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path

from service.journal import FILE, Entry, Journal, Row

T0 = datetime(2026, 11, 21, 6, 0, 0, 123_456, tzinfo=UTC)


def entry(k: int) -> Entry:
    kind = ("received", "decision", "sent", "rejected", "note")[k % 5]
    return Entry(T0 + timedelta(seconds=k), kind, f"celltwin/v1/a/u/{k}", b'{"k":%d}' % k + bytes([k % 256]))


def written(folder: Path, n: int = 12) -> tuple[Row, ...]:
    with Journal.open(folder) as journal:
        return journal.append_many([entry(k) for k in range(n)])


def tamper(folder: Path, *statements: str) -> None:
    """Change a journal as somebody with a database shell would: triggers dropped, statement run."""
    db = sqlite3.connect(folder / FILE)
    for statement in ("DROP TRIGGER no_update", "DROP TRIGGER no_delete", *statements):
        db.execute(statement)
    db.commit()
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
