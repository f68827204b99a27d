"""`celltwin bench NAME`: what a user would write with other libraries beside what this one does, in one run."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table

from service.cli.console import console, emit_json, fail, progress

BENCHES = ("filter", "donors", "futures", "mpc")


def bench(
    name: Annotated[str, typer.Argument(help=f"Which benchmark: {', '.join(BENCHES)}.")],
    reactors: Annotated[int, typer.Option(min=1, help="filter: size of the fleet.")] = 500,
    donors: Annotated[int, typer.Option(min=4, help="donors: synthetic donors that are fitted.")] = 17,
    seed: Annotated[int, typer.Option(min=0, help="Of donors, readings and noise.")] = 1,
    effort: Annotated[
        float,
        typer.Option(
            min=0.0, max=100.0, help="Repetitions of every row, or the peer's budget, as a multiple of the usual."
        ),
    ] = 1.0,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Time the estimator, futures or the fit of the donors beside peers on one problem, and hold answers against each other.

    Times are CPU times and move with the machine: read the ratios to the first row of each group. Exit 1: our answer is
    not that of the textbook filter, our gradient not PyMC's, our futures not LSODA's, or the fit did not converge.
    """
    if name not in BENCHES:
        fail(f"bench {name!r}: no such benchmark; there is: {', '.join(BENCHES)}")
    if name == "donors":
        from importlib.util import find_spec

        if find_spec("pymc") is None:
            fail("bench donors: needs the donors extra: pip install 'celltwin[donors]'")
        from service.bench import donors as fits
        from simulators.history import synthetic_history
        from twin.config import load_config

        process = load_config("car_nk")
        with progress("bench donors", fits.ADVANCES) as advance:
            result = fits.measure(synthetic_history(process, donors, seed), process, seed, effort, advance)
    elif name == "futures":
        from service.bench import futures

        with progress("bench futures", 2.0 * futures.ROUNDS) as advance:
            result = futures.measure(seed, effort, advance)
    elif name == "mpc":
        from service.bench import mpc
        from twin.config import load_config

        with progress("bench mpc", mpc.ROUNDS + 7.0) as advance:
            result = mpc.measure(load_config("car_nk"), seed, effort, advance)
    else:
        from service.bench import filters

        with progress("bench filter", 2.0 * filters.ROUNDS) as advance:
            result = filters.measure(seed, reactors, effort, advance)
    if json:
        emit_json(result)
    else:
        _tell(result)
    if not all(o["met"] for o in result["owed"] if o["answer"]):
        raise SystemExit(1)


def _tell(result: dict[str, Any]) -> None:
    skipped: list[str] = []
    for group in dict.fromkeys(row["group"] for row in result["rows"]):
        table = Table(title=group, title_justify="left")
        table.add_column("implementation", min_width=30)
        for column in ("median ms", "p95 ms", "ratio", "off"):
            table.add_column(column, justify="right")
        for row in (r for r in result["rows"] if r["group"] == group):
            if row["median_ms"] is None:
                skipped.append(f"skipped: {row['name']}: {row['skipped']}")
                continue
            apart = row["agreement"]
            table.add_row(
                row["name"], f"{row['median_ms']:.3g}", f"{row['p95_ms']:.3g}", f"{row['ratio']:.3g}",
                "" if apart is None else f"{apart:.1e}",
            )  # fmt: skip
        console.print(table)
    machine = ", ".join(f"{k} {v}" for k, v in result["machine"].items() if v is not None)
    owed = [
        f"{'met' if o['met'] else 'MISSED'}: {o['claim']} {o['limit']:g}: "
        f"{o['why'] if o['measured'] is None else format(o['measured'], '.4g')}"
        for o in result["owed"]
    ]
    lines = [*skipped, *owed, f"{machine}; {result['problem']['coordinates']} coordinates"]
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
