"""`celltwin condition --mode retrospective`: why the batch ended as it did, and what would have been (`--had`)."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from service.cli.console import console, fail

LIKELY = 0.5
"""A cause that is more probable is taken for what happened when inputs are edited."""


def edits_of(had: str | None, mode: str) -> tuple[Any, ...] | None:
    """The edits of `--had`, or None; one line and exit 2 for what is none, or where nothing is finished."""
    from twin.whatif.edits import parse_edits

    if had is None:
        return None
    if mode != "retrospective":
        fail(f"--had {had!r}: asks about a finished batch: give --mode retrospective")
    try:
        return parse_edits(had)
    except ValueError as error:
        fail(f"--had: {error}")


def ahead_of(edit: list[str] | None, mode: str) -> Any | None:
    """The edits of `--edit`, or None; one line and exit 2 for what is none, or where nothing lies ahead."""
    from twin.whatif.edits import Edits

    if edit is None:
        return None
    if mode != "realtime":
        fail(
            f"--edit {edit[0]!r}: asks about a running batch: give --mode realtime (a finished one: --had, a plan: --set)"
        )
    try:
        return Edits.parse(edit)
    except ValueError as error:
        fail(f"--edit: {error}")


def looked_back(known: Any, at: float, had: tuple[Any, ...] | None, n: int, seed: int) -> dict[str, Any]:
    """Attribution of a finished batch, and the counterfactual of the edits `had`; in JSON's terms."""
    from controllers.recipes import recipe_asked, recipe_schedule
    from twin.retrospect.attribution import attribute

    try:
        found = attribute(known, at, recipe_asked(known), recipe_schedule(known.process.recipe), n=n, seed=seed)
    except ValueError as error:
        why: dict[str, Any] = {"reason": str(error), "causes": []}
        return {"attribution": why, "counterfactual": _counterfactual(known, at, had, n, seed, None)}
    report = {
        "reason": None, "readings": found.readings, "viable_cells": _band(found.outcome), "expected": _band(found.expected),
        "causes": [
            {
                "cause": c.name, "probability": c.probability, "effect": _band(c.effect), "evidence": c.evidence,
                "since": c.found.since, "until": c.found.until, "target": c.found.target, "size": c.found.size,
            }
            for c in found.causes
        ],
        "departures": [d._asdict() for d in found.deviations],
    }  # fmt: skip
    sure = found.best if found.best.probability >= LIKELY else None
    return {"attribution": report, "counterfactual": _counterfactual(known, at, had, n, seed, sure)}


def _counterfactual(
    known: Any, at: float, had: tuple[Any, ...] | None, n: int, seed: int, cause: Any
) -> dict[str, Any] | None:
    """The smoothed batch run again as it was and as edited, path by path; None where nothing was asked.

    Where a cause is likely that says what the pumps or the bag really did, that is what is edited.
    """
    from twin.estimation.tune import prepared
    from twin.history import replay
    from twin.retrospect.attribution import as_it_was
    from twin.retrospect.edits import edited
    from twin.retrospect.paths import Change, compared, paths, rerun

    if had is None:
        return None
    begins = min(e.window(0.0)[0] for e in had)
    if begins >= at:
        fail(f"--had: begins on day {begins:g}, the batch ended on day {at:g}")
    known = replay(prepared(known), 0)
    under = None
    if cause is not None and (really := as_it_was(known, cause)) is not known:
        under, known = cause.name, really
    try:
        inputs = edited(known.course, had, known.process.limits)
    except ValueError as error:
        fail(f"--had: {error}")
    drawn = paths(known, at, n, seed)
    found = compared(rerun(known, drawn), rerun(known, drawn, Change(course=inputs.course)), known.process.targets)
    return {
        "edits": [e._asdict() for e in had], "capped": list(inputs.capped), "at": at, "under": under,
        **{k: {q: _band(v) for q, v in getattr(found, k).items()} for k in ("factual", "counterfactual", "delta")},
        "p_pass": found.p_pass, "p_release": found.p_release,
    }  # fmt: skip


def _band(found: tuple[float, float, float] | None) -> dict[str, float] | None:
    return None if found is None else dict(zip(("q05", "q50", "q95"), found, strict=True))


def print_back(report: dict[str, Any]) -> None:
    """The tables of `looked_back`."""
    told = report["attribution"]
    if told["reason"] is not None:
        console.print(f"attribution: none ({told['reason']})")
    else:
        usual = f"; expected of a donor not yet seen {_text(told['expected'])}" if told["expected"] else ""
        console.print(f"viable cells at the end [1e9] {_text(told['viable_cells'])}{usual}")
        table = Table(title="why", title_justify="left")
        for column in ("cause", "P", "viable cells by it [1e9]", "what points to it"):
            table.add_column(column, justify="right" if column == "P" else "left")
        for c in told["causes"]:
            if c["probability"] >= 0.005:
                effect = "" if c["effect"] is None or c["cause"] == "nothing" else _text(c["effect"])
                table.add_row(c["cause"], f"{c['probability']:.2f}", effect, c["evidence"])
        console.print(table)
    if (had := report["counterfactual"]) is None:
        return
    table = Table(title=f"had it been otherwise, day {had['at']:.2f}", title_justify="left")
    for column in ("at harvest", "was", "would have been", "difference"):
        table.add_column(column)
    for name, digits in (("viable_cells", 1), ("viability", 3), ("lactate", 1)):
        table.add_row(name, *(_text(had[k][name], digits) for k in ("factual", "counterfactual", "delta")))
    before, after = had["p_release"]
    table.add_row("P(release)", f"{before:.2f}", f"{after:.2f}", f"{after - before:+.2f}")
    console.print(table)
    if had["under"]:
        console.print(f"edited is what was really delivered, if it was a {had['under']}")
    if had["capped"]:
        console.print(f"asked for more than its limit and given the limit: {', '.join(had['capped'])}")


def _text(band: dict[str, float], digits: int = 1) -> str:
    return f"{band['q50']:.{digits}f} ({band['q05']:.{digits}f} to {band['q95']:.{digits}f})"
