"""`celltwin verify JOURNAL`: check a hash chain."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.cli.console import console, emit_json, fail


def verify(
    journal: Annotated[Path, typer.Argument(help="journal.sqlite, its data directory, or an export (JSON lines).")],
    anchor: Annotated[
        str | None, typer.Option(help="N:HASH, a head noted earlier; it must still be in the chain.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Check the hash chain of a journal or of its export, every row from the first.

    Exit 0: intact. Exit 1: broken, with the first row that does not fit. Exit 2: cannot be read.
    """
    from service.verify import Broken
    from service.verify import verify as check

    path = journal / "journal.sqlite" if journal.is_dir() else journal
    if not path.is_file():
        fail(f"{path}: no journal there; name journal.sqlite, its folder, or an export")
    n, digest = 0, ""
    if anchor is not None:
        number, _, digest = anchor.partition(":")
        if not number.isdigit() or len(digest) != 64:
            fail(f"--anchor {anchor!r}: write it as row:hash, as a head is printed")
        n = int(number)
    try:
        rows, head = check(path, (n, digest))
    except Broken as error:
        if json:
            emit_json({"ok": False, "journal": str(path), "problem": str(error)})
        else:
            console.print(f"{path}: {error}", markup=False)
        raise SystemExit(1) from None
    except (OSError, ValueError) as error:
        fail(f"{path}: cannot be read: {error}; name journal.sqlite, its folder, or an export")
    if json:
        emit_json({"ok": True, "journal": str(path), "rows": rows, "head": head})
    else:
        console.print(f"{path}: intact, {rows} rows, head {rows}:{head}", markup=False, soft_wrap=True)
