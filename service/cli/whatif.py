"""`celltwin whatif BATCH`: what an edit of the schedule would change from now on, in paired futures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from rich.table import Table

from service.cli.console import console, emit_json, fail, progress

if TYPE_CHECKING:
    from twin.futures import Schedule
    from twin.history import Batch
    from twin.whatif.edits import Edits
    from twin.whatif.paired import Shift, WhatIf

SHOWN = {
    "viable_cells": ("1e9", 2), "viability": ("", 3), "car_fraction": ("", 3), "exhausted_fraction": ("", 3),
    "glucose": ("mM", 2), "lactate": ("mM", 2), "ammonia": ("mM", 2), "cytokine": ("IU/mL", 0),
}  # fmt: skip
"""Quantities of the table, their units and digits."""


def whatif(
    batch: Annotated[str, typer.Argument(help="Name of the batch.")],
    edit: Annotated[
        list[str],
        typer.Option(
            help='What changes: "feed*1.1 for 6h", "perfusion=1 from 8 until 10", "harvest on day 12". Repeatable; or by ";".'
        ),
    ],
    at: Annotated[
        float | None, typer.Option(help="Day since inoculation [d], with what was known then. Default: now.")
    ] = None,
    data: Annotated[
        Path, typer.Option("--data", "-d", help="Data directory of the service (holds journal.sqlite).")
    ] = Path("var/twin"),
    unit: Annotated[str | None, typer.Option(help="Which reactor, where several had a batch of that name.")] = None,
    n: Annotated[int, typer.Option(min=20, max=100_000, help="Pairs of futures.")] = 2000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the futures.")] = 0,
    plots: Annotated[Path | None, typer.Option(help="Folder for a picture of the differences, PNG and SVG.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """What edits of the schedule in force would change: bands, differences future by future, P(pass) of every criterion.

    The schedule is the plan that is acted on in closed mode, else the recipe. Both sides meet the same chances.
    """
    from twin.whatif.edits import Edits

    try:
        edits = Edits.parse(edit)
    except ValueError as error:
        fail(f"--edit: {error}")
    state = recalled(data, batch, unit, at)
    with progress(f"what if {batch}") as advance:
        found = changed(state.batch, state.at, edits, state.schedule, n, seed)
        advance(1)
    report = {"batch": batch, "unit": state.unit, "schedule": state.under, "seed": seed, **answer(found)}
    if plots is not None:
        draw(plots, found, batch)
    if json:
        emit_json(report)
    else:
        show(found, f"{batch}, under the {state.under}")


def changed(known: Batch, at: float, edits: Edits, schedule: Schedule, n: int, seed: int) -> WhatIf:
    """What the edits change; one line and exit 2 for those that do not fit the batch."""
    from twin.whatif import paired

    try:
        return paired.whatif(known, at, edits, schedule, n=n, seed=seed)
    except ValueError as error:
        fail(f"--edit: {error}")


class Recalled(NamedTuple):
    """A batch out of the journal as it was at a time."""

    batch: Batch
    unit: str
    at: float  # [d]
    schedule: Schedule
    under: str  # recipe | plan


def recalled(data: Path, name: str, unit: str | None, at: float | None) -> Recalled:
    """The batch as known at `at` [d] (None: at its newest word); one line and exit 2 where that cannot be."""
    from controllers.outlook import in_force
    from service.desk.answers import until
    from service.journal import Journal, JournalError
    from service.recall import acted_on
    from service.replay import begun_as, fold, place
    from twin.batch import as_known
    from twin.config import ConfigError

    try:
        with Journal.open(data, create=False) as journal, progress(f"recalling {name}", journal.head.n) as advance:
            begun, later = begun_as(journal, name, unit)
            end = None if later is None else later.row - 1
            desk = fold(journal, [begun], stop=end, progress=advance, recall=True).desks[begun.unit]
            running = desk.running
            if running is None or running.message.batch != name:
                fail(f"{journal.path}: batch {name!r} cannot be opened again")
            session = running.session
            known = session.batch
            over = min([e.at for e in known.events if e.kind == "batch_end"] + [c.at for c in known.applied if c.actuator == "harvest" and c.rate > 0.0], default=None)  # fmt: skip
            now = session.clock if at is None else at
            if over is not None and now >= over:
                asked = "give an earlier --at" if at is None else f"--at {at:g}: expected an earlier day"
                fail(f"batch {name!r} ended on day {over:.4g}, nothing lies ahead: {asked}")
            if not 0.0 <= now <= session.clock:
                fail(f"--at {now:g}: expected a day from 0 to {session.clock:.4g}, the newest word of batch {name!r}")
            if at is not None:
                known = until(as_known(known, at), at)
            rows = (r for r in journal.rows(begun.row, end) if place(r.topic)[0] == begun.unit)
            plan = acted_on(rows, name, now) if desk.settings.mode == "closed" else None
    except (JournalError, ConfigError) as error:
        fail(str(error))
    under = "recipe" if plan is None or not plan.controls else "plan"
    known, schedule = in_force(known, plan)
    return Recalled(known, begun.unit, now, schedule, under)


def answer(found: WhatIf) -> dict[str, Any]:
    """In JSON's terms."""
    return {
        "at": found.now, "edits": [str(e) for e in found.edits.rates], "harvest_on": found.edits.harvest, "n": found.n,
        "capped": list(found.capped), "delta": {k: _band(b) for k, b in found.delta.items()},
        "bands": {side: {k: _band(b) for k, b in f.bands.items()} for side, f in (("before", found.before), ("after", found.after))},
        "harvested": {k: _shift(s) for k, s in found.harvested.items()},
        "harvest": _shift(found.harvest), "medium": _shift(found.medium),
        "p_pass": {k: c._asdict() for k, c in found.p_pass.items()},
        "p_release": [found.p_release.before, found.p_release.after],
        "p_release_delta": {"mean": found.p_release.delta, "se": found.p_release.se},
    }  # fmt: skip


def _band(band: Any) -> dict[str, Any]:
    return {q: getattr(band, q) for q in ("t", "q05", "q50", "q95")}


def _shift(shift: Shift) -> dict[str, dict[str, float]]:
    return {side: dict(zip(("q05", "q50", "q95"), q, strict=True)) for side, q in shift._asdict().items()}


def show(found: WhatIf, where: str) -> None:
    """The answer as a table."""
    table = Table(
        title=f"what if {str(found.edits) or 'nothing changes'} ({where}, day {found.now:.2f}, {found.n} pairs)",
        title_justify="left",
    )
    for column in ("at harvest", "before", "after", "difference (90 %)"):
        table.add_column(column, justify="left" if column == "at harvest" else "right")
    rows: Sequence[tuple[str, str, int, Shift]] = [
        *((k, unit, digits, found.harvested[k]) for k, (unit, digits) in SHOWN.items()),
        ("day of harvest", "d", 1, found.harvest), ("medium to come", "vv", 2, found.medium),
    ]  # fmt: skip
    for name, unit, digits, shift in rows:
        label = f"{name} \\[{unit}]" if unit else name
        low, middle, high = (f"{v:+.{digits}f}" for v in shift.delta)
        table.add_row(label, *(f"{q[1]:.{digits}f}" for q in shift[:2]), f"{middle} ({low} to {high})")
    table.add_section()
    changes: Mapping[str, Any] = {**found.p_pass, "all (release)": found.p_release}
    for name, c in changes.items():
        table.add_row(f"P {name}", f"{c.before:.3f}", f"{c.after:.3f}", f"{c.delta:+.3f} (se {c.se:.3f})")
    console.print(table)
    if found.capped:
        console.print(f"asked for more than its limit and given the limit: {', '.join(found.capped)}")


def draw(folder: Path, found: WhatIf, who: str) -> None:
    """The fan of the differences as PNG and SVG."""
    import matplotlib as mpl

    from service.report.conditioning_plots import difference
    from service.report.data import Band
    from twin.units import CANONICAL

    c = found.p_release
    figure = difference(
        {k: Band(b.t, b.q05, b.q50, b.q95) for k, b in found.delta.items()}, CANONICAL,
        heading=f"{who}: {str(found.edits) or 'nothing changes'}: P(release) {c.before:.2f} to {c.after:.2f}",
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"savefig.facecolor": "white"}):
        figure.savefig(folder / "whatif.png", dpi=150)
        figure.savefig(folder / "whatif.svg", metadata={"Date": None})
    console.print(f"wrote whatif.png (and .svg) to {folder}", soft_wrap=True)
