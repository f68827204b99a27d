"""Campaigns on disk and on the screen: what `simulate` writes and `compare` reads."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich import box
from rich.console import Group
from rich.table import Table

from service.cli.console import fail
from simulators.campaign import NONE, place
from simulators.comparison import ALLOWANCE
from simulators.metrics import OUTCOME

BATCHES = "batches.parquet"
SUMMARY = "summary.json"
NEEDED = ("policy", "donor", "seed", "scenario", "passed", "missed", "margin", "day", "medium_vv", "viable_density", "cytokine",
          "lactate_peak", "viable_cells", "viability")  # fmt: skip


NAMES = ("policy", "scenario", "missed")


def figures(policies: Mapping[str, Mapping[str, Any]], title: str) -> Group:
    """Policies side by side, and beneath what went wrong."""
    table = _table(title, "policy", "pass", "95 %", "day", "VV", "VV passed", "CV", "n")
    for name, s in policies.items():
        low, high = s["pass_ci"]
        table.add_row(
            name,
            f"{s['pass']:.2f}",
            f"{low:.2f}-{high:.2f}",
            _or_dash(s["days"], "{:.1f}"),
            _or_dash(s["medium_vv"], "{:.1f}"),
            _or_dash(s["medium_vv_passed"], "{:.1f}"),
            _or_dash(s["harvest_cv"], "{:.0%}"),
            str(s["n"]),
        )
    wrong = _table(
        "targets missed, and the worst batch", "policy", "cells", "viability", "CAR+", "exhausted", "worst batch"
    )
    for name, s in policies.items():
        worst, missed = s["worst"], s["missed"]
        if worst is None:
            wrong.add_row(name, *"----", f"none ended: {s['errors']} errors")
            continue
        said = f"D{worst['donor']:02d} {worst['viable_cells']:.1f}e9 at {worst['viability']:.0%}"
        keys = ("viable_cells", "viability", "car_fraction", "exhausted_fraction")
        wrong.add_row(name, *(str(missed.get(k, "-")) for k in keys), said)
    return Group(table, wrong)


def _table(title: str, first: str, *others: str) -> Table:
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def lapses(policies: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """One line a policy some of whose decisions lapsed; a policy that raises is seen only by this."""
    return [
        f"{name}: {s['lapsed']} of {s['decisions']} decisions lapsed; the edge kept to its recipe"
        for name, s in policies.items()
        if s["lapsed"]
    ]


def pairs(found: Mapping[str, Mapping[str, Any]], base: str) -> Group:
    """Every policy against `base` on the donors they share: passes, then medium, cells and day, with adjusted p values."""
    passes = _table(
        f"passes against {base}, donor by donor; saved: VV where both pass",
        "policy",
        "donors",
        "lost",
        "won",
        "pass",
        "95 %",
        "p",
        "Holm",
        "VV saved",
    )
    moved = _table(
        f"mean differences to {base}, donor by donor",
        "policy",
        "figure",
        "mean",
        "95 %",
        "p t",
        "Holm",
        "p rank",
        "Holm",
    )
    for name, r in found.items():
        low, high = r["pass_difference_ci"]
        passes.add_row(
            name, str(r["donors"]), str(r["only_first"]), str(r["only_second"]), f"{r['pass_difference']:+.2f}",
            f"{low:+.2f} {high:+.2f}", _p(r["p"]), _p(r["p_holm"]), _or_dash(r["medium_saved"], "{:+.1f}"),
        )  # fmt: skip
        for figure, unit in UNITS.items():
            m = r[figure]
            ci = "-" if m["ci"] is None else f"{m['ci'][0]:+.1f} {m['ci'][1]:+.1f}"
            moved.add_row(
                name, f"{figure}, {unit}", _or_dash(m["difference"], "{:+.2f}"), ci, _p(m["p_t"]), _p(m.get("p_holm")),
                _p(m["p_wilcoxon"]), _p(m.get("p_wilcoxon_holm")),
            )  # fmt: skip
    return Group(passes, moved)


UNITS = {"medium": "VV", "cells": "1e9", "day": "d"}
"""Units of the figures that are compared donor by donor."""


LISTED = 30
"""Most faults that are listed for one policy."""


def _p(value: float | None) -> str:
    return "-" if value is None else "<.001" if value < 0.001 else f"{value:.3f}".lstrip("0")


def under_faults(table: Sequence[Mapping[str, Any]], base: str) -> Group | str:
    """How many faults each policy bears as well as `base` does, and under which it is worse."""
    names = list(dict.fromkeys(str(r["policy"]) for r in table))
    if not names:
        return "no policy shares a fault and a donor with " + base
    told = _table(
        f"each fault against {base}; worse: by over {ALLOWANCE:.0%} in passes or cells (up to the dose)",
        "policy", "faults", "not worse", "worse", "least pass", "least cells",
    )  # fmt: skip
    listed = _table(
        f"worse under (the worst {LISTED} of each policy; --json holds all); cells up to the dose, 1e9",
        "policy",
        "fault",
        "n",
        "pass",
        "base",
        "cells",
        "base",
    )
    for name in names:
        own = [r for r in table if r["policy"] == name]
        bad = [r for r in own if r["worse"]]
        told.add_row(
            name, str(len(own)), str(len(own) - len(bad)), str(len(bad)), f"{min(r['pass_difference'] for r in own):+.2f}",
            f"{min(r['cells_difference'] for r in own):+.1%}",
        )  # fmt: skip
        for r in sorted(bad, key=lambda r: (r["pass_difference"], r["cells_difference"]))[:LISTED]:
            listed.add_row(
                name, r["fault"], str(r["n"]), f"{r['pass']:.2f}", f"{r['base_pass']:.2f}", f"{r['cells']:.1f}", f"{r['base_cells']:.1f}"
            )  # fmt: skip
    return Group(told, listed) if listed.row_count else Group(told)


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
    frame["fault"] = frame["fault"] if "fault" in frame.columns else NONE
    frame["error"] = frame["error"].fillna("") if "error" in frame.columns else ""
    if "dose" not in frame.columns:
        if set(frame["fault"].tolist()) != {NONE}:
            fail(
                f"{path}: column dose is missing, up to which cells count under faults; write it anew with `celltwin simulate`"
            )
        frame["dose"] = None
    rows = [{str(k): v for k, v in record.items()} for record in frame.to_dict("records")]
    for k, row in enumerate(rows, start=1):
        _check(row, f"{path}: batch {k}")
        row["dose"] = row["dose"] if _is_number(row["dose"]) else None
    return [{**r, **dict.fromkeys(OUTCOME)} if r["error"] else r for r in rows]


def _check(row: Mapping[str, Any], where: str) -> None:
    """End the program with one line unless a batch has its names, and its numbers if it ended."""
    for name in NEEDED:
        if name in NAMES and not isinstance(row[name], str):
            fail(f"{where}: {name} is {row[name]!r}; expected a name")
        owed = not row["error"] or name in ("donor", "seed")
        if name not in NAMES and owed and not _is_number(row[name]):
            fail(f"{where}: {name} is {row[name]!r}; expected a number")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not math.isnan(value)


def write_rows(rows: Sequence[Mapping[str, Any]], folder: Path) -> Path:
    """Write the batches of a run in the order of `simulators.campaign.place`; returns the file."""
    path = folder / BATCHES
    scratch = path.with_suffix(".tmp")
    pd.DataFrame(sorted(rows, key=place)).to_parquet(scratch, index=False)
    scratch.replace(path)
    return path
