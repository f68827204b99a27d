"""`celltwin rerun`: a tracked run once more, from its record, and whether it gives the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from service.cli.console import console, emit_json, fail


def rerun(
    run: Annotated[str, typer.Argument(help="Id of the run, or how it begins, or last.")],
    track: Annotated[
        str,
        typer.Option(
            envvar="CELLTWIN_TRACKING",
            show_envvar=True,
            help="Where runs are kept: on (MLFLOW_TRACKING_URI, else var/mlruns.db), a SQLite file, or a server's URI.",
        ),
    ] = "on",
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", help="NAME=PATH: where an input of the run lies now, e.g. data=runs.csv."),
    ] = None,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Rerun although code, configuration or data differ.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="New folder for what it writes. Default: kept nowhere.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Run a tracked run again and compare. Exit 1 where the result is not the same, 2 where it rests on something else."""
    from service.tracking.compare import LIMIT, compared, differences, same
    from service.tracking.provenance import code, environment
    from service.tracking.store import Store, place
    from service.tracking.verbs import VERBS, digest_of, outputs, sampled, statistics

    where = place(track)
    if where is None:
        fail(f"--track {track}: expected on, a SQLite file or a server's URI")
    kept = Store(where, make=False).fetch(run)
    then = kept.record
    if then.verb not in VERBS:
        fail(f"run {kept.id}: celltwin {then.verb} is not a tracked verb of this version")
    placed = _placed(then, inputs or [])
    now = {k: digest_of(held["role"], placed[k]) for k, held in then.inputs.items()}
    found = differences(then, code(), now, environment())
    blocking = [d for d in found if d.blocks]
    if blocking and not anyway:
        fail(f"run {kept.id}: {'; '.join(map(str, blocking))}: restore what differs, or go on with --anyway")
    for d in found:
        console.print(f"{'going on although ' if d.blocks else ''}{d}", soft_wrap=True)
    if out is not None and out.exists() and (out.is_file() or any(out.iterdir())):
        fail(f"{out}: is not empty; give a new folder")
    statistical = sampled(then.verb, then.parameters)
    with tempfile.TemporaryDirectory() as scratch:
        folder = (out or Path(scratch) / "out") if VERBS[then.verb].out else None
        line = _line(then, placed, folder)
        console.print(f"celltwin {' '.join(line)}", soft_wrap=True)
        status, answer = _again(line)
        rows = compared(then, status, outputs(then.verb, answer, folder), statistics(answer), statistical)
    equal = same(rows)
    if as_json:
        emit_json(
            {"run": kept.id, "verb": then.verb, "equal": equal, "sampled": statistical, "limit": LIMIT if statistical else None,
             "differences": [{"kind": d.kind, "what": d.what, "then": d.then, "now": d.now} for d in found], "results": rows}
        )  # fmt: skip
    else:
        _table(kept.id, rows, statistical)
    if not equal:
        print(f"celltwin: run {kept.id}: the rerun differs: {_wrong(rows)}", file=sys.stderr)
        raise SystemExit(1)


def _placed(then: Any, given: list[str]) -> dict[str, str]:
    """Where each input lies now: as told, else as it was given from here, else from where the run ran."""
    from service.tracking.verbs import is_place

    placed = {k: str(held["given"]) for k, held in then.inputs.items()}
    for name, held in then.inputs.items():
        place = Path(placed[name])
        if is_place(held["role"], placed[name]) and not place.exists() and (Path(then.folder) / place).exists():
            placed[name] = str(Path(then.folder) / place)
    for told in given:
        name, _, path = told.partition("=")
        if name not in placed or not path:
            fail(f"--input {told}: expected NAME=PATH with NAME one of {', '.join(placed)}")
        if not Path(path).exists():
            fail(f"--input {told}: no such file or folder")
        placed[name] = path
    return placed


def _line(then: Any, placed: dict[str, str], folder: Path | None) -> list[str]:
    """The command line of the run, every argument spelt out, its inputs where they lie now, speaking JSON, writing to `folder`."""
    from service.cli import load
    from service.tracking.verbs import VERBS

    values: dict[str, Any] = {**then.parameters, **placed}
    if folder is not None:
        values[str(VERBS[then.verb].out)] = str(folder)
    options, positional = list[str](), list[str]()
    for p in load(then.verb).params:
        value = values.pop(p.name, None)
        if p.name == "track" or value is None:
            continue
        if p.param_type_name == "argument":
            positional.append(str(value))
        elif not getattr(p, "is_flag", False):
            options += [word for v in (value if isinstance(value, list) else [value]) for word in (p.opts[-1], str(v))]
        elif value or p.secondary_opts:
            options.append(p.opts[-1] if value else p.secondary_opts[-1])
    if unknown := [k for k, v in values.items() if v is not None]:
        fail(f"celltwin {then.verb} of this version does not know {', '.join(unknown)}, which the run was given")
    return [then.verb, *options, "--json", *(["--", *positional] if positional else [])]


def _again(line: list[str]) -> tuple[int, Any]:
    """Run the command in a process of its own, untracked; its exit code and its answer (None where it gave none)."""
    from service.tracking.provenance import HOME, python

    around = {
        **os.environ,
        "CELLTWIN_TRACKING": "off",
        "PYTHONPATH": os.pathsep.join(filter(None, (str(HOME), os.environ.get("PYTHONPATH")))),
    }
    watched = sys.stderr.isatty()
    done = subprocess.run(
        [*python(), *line],
        env=around,
        stdout=subprocess.PIPE,
        stderr=None if watched else subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode and done.stderr:
        sys.stderr.write(done.stderr)
    try:
        return done.returncode, json.loads(done.stdout)
    except ValueError:
        return done.returncode, None


def _wrong(rows: list[Any]) -> str:
    wrong = [r for r in rows if r.counts and not r.equal]
    return ", ".join(f"{r.name} {_brief(r.then)} then, {_brief(r.now)} now" for r in wrong[:3]) + (
        f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    )


def _brief(told: str) -> str:
    return told[:12] if len(told) == 64 else told  # a digest by its beginning


def _table(run: str, rows: list[Any], statistical: bool) -> None:
    from service.tracking.compare import LIMIT

    table = Table(title=f"run {run}", title_justify="left")
    for column in ("result", "then", "now", "", "distance"):
        table.add_column(column, justify="right" if column == "distance" else "left")
    for r in rows:
        verdict = "equal" if r.equal else "DIFFERS" if r.counts else "other bits"
        table.add_row(r.name, _brief(r.then), _brief(r.now), verdict, "" if r.distance is None else f"{r.distance:.2f}")
    console.print(table)
    if statistical:
        console.print(
            f"a sampler: statistics are equal within {LIMIT:g} combined Monte-Carlo standard errors; bits need not be"
        )
