"""`celltwin replay BATCH`: recompute a batch from its journal and compare."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.console import console, emit_json, fail, progress

if TYPE_CHECKING:
    from service.replay import Report


def replay(
    batch: Annotated[str, typer.Argument(help="Name of the batch.")],
    data: Annotated[Path, typer.Option(help="Data directory of the service (holds journal.sqlite).")] = Path(
        "var/twin"
    ),
    unit: Annotated[str | None, typer.Option(help="Which reactor, where several had a batch of that name.")] = None,
    anchor: Annotated[
        str | None, typer.Option(help="N:HASH, a head noted earlier; it must still be in the chain.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Recompute every estimate and decision of BATCH from the journal, compare, and verify the hash chain.

    Exit 0: all equal. Exit 1: something differs. Exit 2: the journal cannot be used.
    """
    from service.journal import Head, Journal, JournalError
    from service.replay import replay as audit
    from twin.config import ConfigError

    head = None
    if anchor is not None:
        number, _, digest = anchor.partition(":")
        if not number.isdigit() or len(digest) != 64:
            fail(f"--anchor {anchor!r}: write it as row:hash, as the journal's head is printed")
        head = Head(int(number), digest)
    try:
        with Journal.open(data, create=False, anchor=head) as journal, progress("replaying", journal.head.n) as advance:
            report = audit(journal, batch, unit, advance)
    except (JournalError, ConfigError) as error:
        fail(str(error))
    if json:
        emit_json({
            "ok": report.ok, "batch": report.batch, "unit": report.unit, "rows": report.rows, "head": report.head,
            "received": report.received, "compared": report.compared, "unsaid": report.unsaid,
            "mismatches": [m._asdict() for m in report.mismatches],
        })  # fmt: skip
    else:
        _print(report)
    raise SystemExit(0 if report.ok else 1)


def _print(report: Report) -> None:
    from rich.table import Table

    table = Table("recomputed from the journal", "equal", "differ", title=f"batch {report.batch} on {report.unit}")
    for kind in ("decision", "estimate", "sent", "rejected", "note"):
        bad = sum(m.kind == kind for m in report.mismatches)
        table.add_row(kind, str(report.compared.get(kind, 0)), str(bad))
    console.print(table)
    for m in report.mismatches[:10]:
        console.print(f"row {m.row}: {m.kind} {m.detail}", markup=False)
    console.print(f"hash chain intact over {report.rows} rows, head {report.rows}:{report.head}", soft_wrap=True)
    if report.unsaid:
        console.print(
            f"{report.unsaid} conclusions at the very end were not yet in the journal when the service stopped"
        )
    verdict = "every one reproduced exactly" if report.ok else f"{len(report.mismatches)} DIFFER"
    console.print(f"{report.received} received messages: {verdict}")
