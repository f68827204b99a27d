"""`celltwin compare`: the policies of finished campaigns side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from service.cli._campaign_pictures import draw, writable
from service.cli._campaign_tables import BATCHES, figures, lapses, pairs, read_rows, under_faults
from service.cli.console import console, emit_json, fail
from simulators.campaign import NONE, rank
from simulators.comparison import against, by_fault, usual_base
from simulators.metrics import finished, summarise


def compare(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders (or batches.parquet files) that `celltwin simulate` wrote.")
    ],
    base: Annotated[
        str | None, typer.Option(help="Policy to compare with donor by donor. Default: the recipe that passed most.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Write a picture here: .png, .svg or .pdf.")] = None,
    plots: Annotated[Path | None, typer.Option(help="Folder for all pictures of the campaign, PNG and SVG.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Put the policies of several runs in one table, with donor-by-donor comparisons where they share donors."""
    groups = _groups(runs)
    policies = {name: summarise(rows) for name, rows in groups.items()}
    if base is not None and base not in groups:
        fail(f"--base {base}: not among the runs' policies: {', '.join(groups)}")
    reference = base or usual_base(groups, policies)
    if plots is not None:
        writable(plots)
    found, table = against(groups, reference), by_fault(groups, reference)
    faulty = any(r["fault"] != NONE for r in table)
    if plot is not None:
        _draw(policies, groups, plot)
    if plots is not None:
        draw(plots, policies, groups, reference, table)
    if as_json:
        emit_json({"policies": policies, "base": reference, "paired": found, "faults": table if faulty else []})
        return
    console.print(figures(policies, f"{len(runs)} run(s)"))
    if found:
        console.print(pairs(found, reference))
    if faulty:
        console.print(under_faults(table, reference))
    for said in lapses(policies):
        console.print(said, soft_wrap=True, markup=False)
    if plot is not None:
        console.print(f"picture: {plot}", soft_wrap=True)


def _groups(runs: list[Path]) -> dict[str, list[dict[str, Any]]]:
    """Batches by policy; a policy that occurs in several runs is told apart by the run's folder, or by its whole path."""
    read = [(run, read_rows(run)) for run in runs]
    files = [(run / BATCHES if run.is_dir() else run).resolve() for run in runs]
    if twice := [run for run, file in zip(runs, files, strict=True) if files.count(file) > 1]:
        fail(f"{twice[-1]}: given twice; expected each run once")
    folders = {run: file.parent for run, file in zip(runs, files, strict=True)}
    named = [folder.name for folder in folders.values()]
    called = {run: f.name if named.count(f.name) == 1 else str(run) for run, f in folders.items()}
    homes: dict[str, set[Path]] = {}
    for run, rows in read:
        for row in rows:
            homes.setdefault(str(row["policy"]), set()).add(run)
    groups: dict[str, list[dict[str, Any]]] = {}
    for run, rows in read:
        for row in rows:
            name = str(row["policy"])
            groups.setdefault(name if len(homes[name]) == 1 else f"{name}@{called[run]}", []).append(row)
    return {n: groups[n] for n in sorted(groups, key=rank)}


def _draw(policies: dict[str, dict[str, Any]], groups: dict[str, list[dict[str, Any]]], path: Path) -> None:
    from matplotlib.figure import Figure

    names = list(policies)
    figure = Figure(figsize=(9, 0.5 * len(names) + 2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for i, name in enumerate(names):
        s = policies[name]
        low, high = s["pass_ci"]
        left.plot([low, high], [i, i], color="tab:blue", lw=2)
        left.plot(s["pass"], i, "o", color="tab:blue")
    left.set(xlim=(0, 1), xlabel="pass fraction, 95 % interval", yticks=range(len(names)), yticklabels=names)
    right.boxplot(
        [[r["medium_vv"] for r in finished(groups[n])] for n in names],
        orientation="horizontal",
        positions=range(len(names)),
    )
    right.set(xlabel="medium [vessel volumes]", yticks=range(len(names)), yticklabels=names)
    left.invert_yaxis()
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        fail(f"{path}: the picture cannot be written: {error}")
