"""Pictures of `celltwin simulate --plots DIR` and `celltwin compare --plots DIR`: which figures go into which, and the files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from service.cli.console import console, fail
from simulators.comparison import ALLOWANCE
from simulators.metrics import Row, finished


def writable(folder: Path) -> None:
    """Make the folder before anything runs; ends the program with one line where that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fail(f"--plots {folder}: cannot be made: {error.strerror}")


def draw(
    folder: Path,
    policies: Mapping[str, Mapping[str, Any]],
    groups: Mapping[str, Sequence[Row]],
    base: str,
    table: Sequence[Mapping[str, Any]],
) -> list[Path]:
    """Write every picture that the rows suffice for as PNG and SVG, and say so; the paths of the PNGs."""
    import matplotlib as mpl

    from service.report import campaign_plots

    ended = {n: finished(rows) for n, rows in groups.items() if finished(rows)}
    figures: dict[str, Any] = {"pass": campaign_plots.pass_rates(policies)}
    if ended:
        figures["medium"] = campaign_plots.price(policies)
        figures["harvest"] = campaign_plots.harvest_days(
            {n: [float(r["day"]) for r in rows] for n, rows in ended.items()},
            {n: [bool(r["passed"]) for r in rows] for n, rows in ended.items()},
        )
    if table and {r["fault"] for r in table} != {"none"}:
        figures["faults"] = campaign_plots.fault_map(table, base, ALLOWANCE)
    written: list[Path] = []
    with mpl.rc_context({"savefig.facecolor": "white", "svg.hashsalt": "celltwin"}):
        for name, figure in figures.items():
            path = folder / f"campaign_{name}.png"
            try:
                figure.savefig(path, dpi=150)
                figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
            except OSError as error:
                fail(f"--plots {folder}: cannot be written: {error.strerror}")
            written.append(path)
    console.print(f"wrote {', '.join(p.name for p in written)} (and .svg) to {folder}", soft_wrap=True)
    return written
