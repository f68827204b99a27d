"""Campaigns on disk and on the screen: what `simulate` writes and `compare` reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich import box
from rich.console import Group
from rich.table import Table

from service.cli.console import fail

BATCHES = "batches.parquet"
SUMMARY = "summary.json"
NEEDED = ("policy", "donor", "seed", "scenario", "passed", "missed", "margin", "day", "medium_vv", "viable_density", "cytokine",
          "lactate_peak", "viable_cells", "viability")  # fmt: skip


def figures(policies: Mapping[str, Mapping[str, Any]], title: str) -> Group:
    """Policies side by side, and beneath what went wrong."""
    table = _table(title, "policy", "pass", "95 %", "day", "VV", "VV passed", "CV", "n")
    for name, s in policies.items():
        low, high = s["pass_ci"]
        table.add_row(
            name,
            f"{s['pass']:.2f}",
            f"{low:.2f}-{high:.2f}",
            f"{s['days']:.1f}",
            f"{s['medium_vv']:.1f}",
            _or_dash(s["medium_vv_passed"], "{:.1f}"),
            _or_dash(s["harvest_cv"], "{:.0%}"),
            str(s["n"]),
        )
    wrong = _table(
        "targets missed, and the worst batch", "policy", "cells", "viability", "CAR+", "exhausted", "worst batch"
    )
    for name, s in policies.items():
        worst, missed = s["worst"], s["missed"]
        said = f"D{worst['donor']:02d} {worst['viable_cells']:.1f}e9 at {worst['viability']:.0%}"
        keys = ("viable_cells", "viability", "car_fraction", "exhausted_fraction")
        wrong.add_row(name, *(str(missed.get(k, "-")) for k in keys), said)
    return Group(table, wrong)


def _table(title: str, first: str, *others: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def pairs(rows: Mapping[str, Mapping[str, Any]], base: str) -> Table:
    """Every policy against `base` on the donors they share: sign test, and medium saved where both passed."""
    table = _table(f"against {base}, donor by donor", "policy", "donors", "base only", "it only", "p", "VV saved")
    for name, r in rows.items():
        table.add_row(
            name,
            str(r["n"]),
            str(r["only_first"]),
            str(r["only_second"]),
            f"{r['p']:.3f}",
            _or_dash(r["medium_saved"], "{:+.2f}"),
        )
    return table


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def read_rows(run: Path) -> list[dict[str, Any]]:
    """The batches of a run: its folder or its parquet file. A bad one ends the program with one line."""
    path = run / BATCHES if run.is_dir() else run
    if not path.is_file():
        fail(f"{run}: no such run; give the folder that `celltwin simulate` wrote, or its {BATCHES}")
    try:
        frame = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        fail(f"{path}: not a campaign's parquet file: {error}")
    missing = [c for c in NEEDED if c not in frame.columns]
    if missing:
        fail(f"{path}: columns {', '.join(missing)} are missing; write it anew with `celltwin simulate`")
    if frame.empty:
        fail(f"{path}: holds no batch")
    return [{str(k): v for k, v in record.items()} for record in frame.to_dict("records")]


def open_folder(folder: Path) -> None:
    """Make the folder of a run and see that it can be written; ends the program if not."""
    probe = folder / ".probe"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        fail(f"{folder}: cannot be written: {error.strerror or error}; choose another with --out")


def write_rows(rows: Sequence[Mapping[str, Any]], folder: Path) -> Path:
    """Write the batches of a run, sorted by policy and donor; returns the file."""
    path = folder / BATCHES
    pd.DataFrame(sorted(rows, key=lambda r: (r["policy"], r["donor"]))).to_parquet(path, index=False)
    return path
