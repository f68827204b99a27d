"""`celltwin study`: what is claimed of the estimator, measured again."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table as RichTable

from service.cli.console import console, emit_json, fail, progress, speak_json
from simulators.study import STUDIES, Study, Table
from twin.config import configs_dir, load_config


def study(
    name: Annotated[str, typer.Argument(help=f"One of: {', '.join(STUDIES)}.")],
    batches: Annotated[int | None, typer.Option(help="Virtual batches. Default: the study's own number.")] = None,
    first: Annotated[
        int | None,
        typer.Option(
            help="Seed of the first batch: other donors, other rigs. Default: the study's own, 0 unless told."
        ),
    ] = None,
    config: Annotated[
        str, typer.Option("-c", "--config", help="Process: an entry of configs/processes or a file.")
    ] = "car_nk",
    prior: Annotated[
        Path | None,
        typer.Option(help="Donor-prior artefact. Default: the one shipped for the process, else its preset."),
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes to run on.")] = 2,
    plots: Annotated[Path | None, typer.Option(help="Folder for the study's pictures, where it has any.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Run a study of the estimator: figures beside what is owed; exit 1 where a target is missed."""
    speak_json(as_json)
    if name not in STUDIES:
        fail(f"study {name!r}: unknown; known: {', '.join(STUDIES)}")
    chosen = STUDIES[name]
    number, first = chosen.batches if batches is None else batches, chosen.first if first is None else first
    if number < chosen.least:
        fail(f"--batches {number}: study {name!r} needs at least {chosen.least}")
    if first < 0 or workers < 1:
        fail("--workers needs at least 1, --first at least 0")
    load_config(config)  # an unusable process is told before anything runs
    if plots is not None:
        from service.cli._study_pictures import writable

        writable(name, plots)
    jobs = chosen.jobs(number, first, config, _prior(prior, config))
    began = time.perf_counter()
    rows: list[Any] = [None] * len(jobs)
    with progress(chosen.title, total=len(jobs)) as advance:
        for place, row in _run(chosen, jobs, workers):
            rows[place] = row
            advance(1)
    wall = time.perf_counter() - began
    if plots is not None:
        from service.cli._study_pictures import draw

        drawn = draw(name, rows, plots)
        console.print(f"wrote {', '.join(p.name for p in drawn)} (and .svg) to {plots}", soft_wrap=True)
    figures = chosen.figures(rows)
    good = all(f.holds is not False for f in figures)
    if as_json:
        emit_json(
            {
                "study": name, "batches": number, "first": first, "process": config, "wall_s": round(wall, 1), "ok": good,
                "figures": [{**f._asdict(), "holds": f.holds} for f in figures],
                "tables": [t._asdict() for t in chosen.tables(rows)],
            }
        )  # fmt: skip
    else:
        table = RichTable(title=f"{chosen.title}: {number} from seed {first} ({wall:.0f} s)", title_justify="left")
        for column, side in (
            ("figure", "left"),
            ("value", "right"),
            ("owed", "right"),
            ("", "left"),
            ("n", "right"),
            ("", "left"),
        ):
            table.add_column(column, justify=side)  # pyright: ignore[reportArgumentType]
        for f in figures:
            verdict = "" if f.holds is None else "ok" if f.holds else "[red]missed[/red]"
            table.add_row(
                escape(f.name), f"{f.value:.3g}", _owed(f.low, f.high), verdict, str(f.n or ""), escape(f.note)
            )
        console.print(table)
        for beside in chosen.tables(rows):
            console.print(_rich(beside))
    if not good:
        raise SystemExit(1)


def _owed(low: float | None, high: float | None) -> str:
    if low is None:
        return "" if high is None else f"<= {high:.3g}"
    return f">= {low:.3g}" if high is None else f"{low:.3g} - {high:.3g}"


def _rich(beside: Table) -> RichTable:
    table = RichTable(title=beside.title, title_justify="left")
    for column in beside.columns:
        table.add_column(column)
    for row in beside.rows:
        table.add_row(*(str(cell) for cell in row))
    return table


def _prior(path: Path | None, config: str) -> Any:
    from twin.donors.artefact import load_prior

    shipped = (configs_dir() / "priors" / name for name in (f"{config}_online", config))
    found = path or next((p for p in shipped if p.is_dir()), None)
    return load_prior(found) if found else None


def _run(chosen: Study, jobs: Any, workers: int) -> Iterator[tuple[int, Any]]:
    """Rows with their places as they come; one worker runs in this process."""
    if workers == 1 or len(jobs) == 1:
        for place, job in enumerate(jobs):
            yield place, chosen.run(job)
        return
    pool = ProcessPoolExecutor(min(workers, len(jobs)), mp_context=multiprocessing.get_context("spawn"))
    try:
        places = {pool.submit(chosen.run, job): place for place, job in enumerate(jobs)}
        for done in as_completed(places):
            yield places[done], done.result()
    except BrokenProcessPool:
        fail("a worker process died (out of memory?); try --workers 1")
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
