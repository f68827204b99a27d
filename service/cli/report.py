"""`celltwin report`: a batch's report from the journal of its service."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.cli.console import console, emit_json, fail


def report(
    batch: Annotated[str, typer.Argument(help="Name of the batch.")],
    data: Annotated[
        Path, typer.Option("--data", "-d", help="Data folder of the service (where journal.sqlite is).")
    ] = Path("var/twin"),
    unit: Annotated[str | None, typer.Option(help="Which reactor, where several had a batch of that name.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="HTML file to write [report-BATCH.html].")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write a batch's report: one self-contained HTML file with plots."""
    from service.journal import Journal
    from service.messages import is_id
    from service.report import write_report
    from service.report.from_journal import UnknownBatch, collect

    if not is_id(batch):
        fail(f"{batch!r} is no batch name: 1 to 64 of A-Z a-z 0-9 _ -")
    with Journal.open(data, create=False) as journal:
        try:
            content = collect(journal.rows(), batch, journal.head, unit)
        except UnknownBatch as error:
            fail(f"{journal.path}: {error.args[0]}")
    path = write_report(content, output or Path(f"report-{batch}.html"))
    if json:
        emit_json({"batch": batch, "verdict": content.verdict, "until": content.until, "report": str(path)})
    else:
        console.print(f"{batch}: {content.verdict}, day {content.until:.1f}; report in {path}")
