"""Check the hash chain of a journal or of its export, with the standard library only and nothing of this program.

    python verify.py journal.sqlite | export.jsonl [N:HASH]

N:HASH is a head noted earlier (row number and hash); it must still be part of the chain.
Exit 0: intact. Exit 1: broken, with the first row that does not fit. Exit 2: cannot be read.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

Row = tuple[int, str, str, str, bytes, str, str]


class Broken(Exception):
    """The chain does not hold; the message names the row."""


def check(rows: Iterable[Row], head: tuple[int, str] | None, anchor: tuple[int, str] | None = None) -> tuple[int, str]:
    """Walk the chain; answers number and hash of its last row. Raises Broken."""
    n, prev, anchored = 0, "0" * 64, anchor is None or anchor[0] == 0
    for number, at, kind, topic, payload, stated_prev, stated in rows:
        n += 1
        digest = hashlib.sha256()
        for part in (str(n).encode(), at.encode(), kind.encode(), topic.encode(), payload, prev.encode()):
            digest.update(len(part).to_bytes(8, "big") + part)
        if (number, stated_prev, stated) != (n, prev, digest.hexdigest()):
            raise Broken(f"row {n} does not fit (found number {number}): altered, removed or inserted here")
        prev = stated
        anchored = anchored or anchor == (n, stated)
    if head is None or head != (n, prev):
        said = head[0] if head else "nothing"
        raise Broken(f"ends at row {n}, but its head says {said}: cut, or written past its end")
    if not anchored and anchor is not None:
        raise Broken(f"row {anchor[0]} is not the anchored one: rolled back or replaced")
    return n, prev


def from_sqlite(path: Path, anchor: tuple[int, str] | None) -> tuple[int, str]:
    """Check a journal file."""
    db = sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)
    try:
        db.execute("BEGIN")  # one snapshot of rows and head, while the service goes on writing
        head = db.execute("SELECT n, hash FROM head").fetchone()
        return check(db.execute("SELECT n, at, kind, topic, payload, prev, hash FROM row ORDER BY n"), head, anchor)
    finally:
        db.close()


def from_export(path: Path, anchor: tuple[int, str] | None) -> tuple[int, str]:
    """Check a JSON-lines export; its last line is the head."""
    items: list[dict[str, Any]] = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    head = items.pop()["head"] if items and "head" in items[-1] else None

    def rows() -> Iterator[Row]:
        for i in items:
            yield i["n"], i["at"], i["kind"], i["topic"], bytes.fromhex(i["payload"]), i["prev"], i["hash"]

    return check(rows(), (head["n"], head["hash"]) if head else None, anchor)


def verify(path: Path, anchor: tuple[int, str] | None = None) -> tuple[int, str]:
    """Head of an intact journal or export. Raises Broken; OSError or ValueError when it cannot be read at all."""
    with path.open("rb") as file:
        is_sqlite = (start := file.read(16)) == b"SQLite format 3\0"
    if not is_sqlite and start[:1] != b"{":
        raise ValueError("neither a journal nor an export of one")
    try:
        return from_sqlite(path, anchor) if is_sqlite else from_export(path, anchor)
    except (sqlite3.Error, KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise Broken(f"not readable as a journal: {error}") from None


def main(arguments: list[str]) -> int:
    """Command line; answers the exit code."""
    if not 1 <= len(arguments) <= 2:
        return print(__doc__, file=sys.stderr) or 2
    try:
        number, _, digest = (arguments[1] if len(arguments) == 2 else "0:").partition(":")
        n, head = verify(Path(arguments[0]), (int(number), digest))
    except Broken as error:
        print(f"{arguments[0]}: {error}", file=sys.stderr)
        return 1
    except (OSError, ValueError) as error:
        print(f"{arguments[0]}: cannot be read: {error}", file=sys.stderr)
        return 2
    print(f"{arguments[0]}: intact, {n} rows, head {n}:{head}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
