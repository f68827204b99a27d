"""A campaign on disk while it runs: every finished batch is safe before the next is counted, and a killed one goes on.

A run's folder holds `campaign.json`, what the campaign is and the SHA-256 of that, and `batches.jsonl`, one finished batch a
line, flushed to the disk one by one. Going on reads what is there and runs the rest; batches are pure functions of their
jobs, so the table is the one that an undisturbed campaign gives. Another campaign in the same folder is refused.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from service.cli._campaign_tables import NEEDED
from service.cli.console import fail, plain
from simulators.campaign import place

MANIFEST = "campaign.json"
ROWS = "batches.jsonl"


class Store:
    """The finished batches of one campaign, by `simulators.campaign.place`. Close it, or use it as a context."""

    def __init__(self, folder: Path, definition: Mapping[str, Any], *, fresh: bool = False) -> None:
        """Open or begin the campaign that `definition` says in `folder`; `fresh` forgets what is there.

        Ends the program with one line where the folder holds another campaign, is in use, or cannot be written.
        """
        self._path = folder / ROWS
        told = plain(definition)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            fail(f"{folder}: cannot be written: {error.strerror or error}; choose another with --out")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._file)
            fail(f"{folder}: another campaign is running in it; choose another with --out")
        try:
            self.rows = self._go_on(folder / MANIFEST, told, fresh)
        except BaseException:
            self.close()
            raise

    def _go_on(self, manifest: Path, told: Any, fresh: bool) -> dict[tuple[Any, ...], dict[str, Any]]:
        from service.tracking import digest

        known = None if fresh else _read(manifest)
        if known is None and not fresh and os.fstat(self._file).st_size:
            fail(
                f"{self._path}: holds batches, but {MANIFEST} is gone; choose another folder with --out, or begin it anew with --fresh"
            )
        if known is not None and known.get("sha256") == digest.of_value(told):
            return self._read_rows()
        if known is not None:
            fail(
                f"{manifest.parent}: holds another campaign ({_differs(known.get('definition', {}), told)}); choose another "
                "folder with --out, or begin it anew with --fresh"
            )
        os.ftruncate(self._file, 0)
        _write(manifest, {"sha256": digest.of_value(told), "definition": told})
        return {}

    def _read_rows(self) -> dict[tuple[Any, ...], dict[str, Any]]:
        """What was finished. A last line that a kill cut short is taken away; batches that raised are run again."""
        content = self._path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.ftruncate(self._file, whole)
        rows: dict[tuple[Any, ...], dict[str, Any]] = {}
        for n, line in enumerate(content[:whole].splitlines(), start=1):
            try:
                row = json.loads(line)
                rows[place(row)] = row
                if lacking := [k for k in NEEDED if k not in row]:
                    raise KeyError(*lacking)
            except (ArithmeticError, ValueError, KeyError, TypeError) as error:
                fail(
                    f"{self._path}: line {n}: not a batch of a campaign ({type(error).__name__}); begin anew with --fresh"
                )
        return {k: r for k, r in rows.items() if not r.get("error")}

    def add(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Keep a finished batch; it is on the disk when this returns. Gives the row as it will be read again."""
        line = json.dumps(row, default=lambda v: v.item(), ensure_ascii=False)
        os.write(self._file, line.encode() + b"\n")
        os.fsync(self._file)
        kept = json.loads(line)
        self.rows[place(kept)] = kept
        return kept

    def close(self) -> None:
        """Let go of the folder."""
        with suppress(OSError):
            os.close(self._file)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _read(manifest: Path) -> dict[str, Any] | None:
    try:
        told: Any = json.loads(manifest.read_text(encoding="utf-8"))
        if isinstance(told["definition"], dict):
            return told
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError):
        pass
    return fail(f"{manifest}: not a campaign's manifest; choose another folder with --out, or begin anew with --fresh")


def _write(manifest: Path, content: Any) -> None:
    """Write whole or not at all."""
    scratch = manifest.with_suffix(".tmp")
    with scratch.open("w", encoding="utf-8") as stream:
        stream.write(json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    scratch.replace(manifest)
    folder = os.open(manifest.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _differs(known: Mapping[str, Any], told: Mapping[str, Any]) -> str:
    """The entries in which two definitions differ, with their values where those are short."""
    said: list[str] = []
    for name in sorted(set(known) | set(told)):
        old, new = known.get(name), told.get(name)
        if old != new:
            short = len(f"{old}{new}") <= 60 and not (isinstance(new, str) and len(new) == 64)
            said.append(f"{name} {old}, not {new}" if short else f"other {name}")
    return "; ".join(said) or "its manifest was altered"
