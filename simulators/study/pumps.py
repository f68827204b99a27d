"""Pumps that do not deliver what they report, wrong bags, and cells that change: told apart by mass balance?

On the mismatched plant. A donor's healthy batch is lived through once; every fault begins from the twin's batch at its
onset and is followed `AFTER` days, the twin diagnosing every `EVERY`. The first alarm decides what was found. The healthy
batches give the false alarms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from controllers.recipes import recipe_control
from simulators.donors import VirtualDonor, virtual_donor
from simulators.faults import Fault
from simulators.recording import Recording, afflict, record
from simulators.study.base import Figure, Row, Study, Table
from simulators.study.tracking import Moment, live, true_at, within
from twin.batch import believe_at, latest, start
from twin.bioreactor import Control
from twin.config import load_config
from twin.donors.prior import DonorPrior, preset_prior
from twin.estimation.belief import marginals
from twin.estimation.diagnosis import Diagnosis, Explanation, diagnose
from twin.estimation.pumps import corrected, pump_alarms, readback_alarms
from twin.evidence import ControlApplied, Fact, Measurement
from twin.history import Batch

RECIPES = ("cspr_100", "density_steps")
ONSETS = (3.0, 7.0, 11.0)
PUMPS = ("perfusion", "cytokine_dose")
MODES = ("clog", "gain", "stuck_on", "wrong_bag")
SHIFTS: Mapping[str, tuple[float, float, float]] = {
    "growth x0.5": (0.5, 1.0, 1.0), "uptake x1.5": (1.0, 1.5, 1.0), "death x6": (1.0, 1.0, 6.0),
}  # fmt: skip
"""Steps of growth, uptake and death of a donor's cells."""
SENSORS = ("glucose bias", "viable_density bias", "raman_glucose drift")
"""Devices that lie while pumps and cells are well: nothing that a pump or a bag should be blamed for."""
READBACK_MODES = (
    "off", "intermittent", "stuck", "garbage", "bias", "drift", "spike", "unit_slip", "nan", "quantised", "delayed", "slow",
)  # fmt: skip
AFTER = 4.0
EVERY = 0.25
HEALTHY = 14.0
HELD = ("viable_density", "glucose")
CODES = ("pump_clogged", "pump_gain", "wrong_medium", "biology_shifted", "nothing")


class Job(NamedTuple):
    """One donor under one recipe, and the onset of whatever befalls copies of its batch."""

    seed: int
    recipe: str
    onset: float
    process: str
    prior: DonorPrior | None


def jobs(batches: int, first: int, process: str, prior: DonorPrior | None) -> Sequence[Job]:
    """Donors in turn: pairs under each recipe with each onset. Odd donors' cytokine pumps fail, even ones' cells and sensors."""
    return [
        Job(first + k, RECIPES[(k // 2) % 2], ONSETS[(k // 4) % len(ONSETS)], process, prior) for k in range(batches)
    ]


def shifted(donor: VirtualDonor, onset: float, factors: tuple[float, float, float]) -> VirtualDonor:
    """The donor whose cells behave otherwise from the day of `onset` on."""
    days = tuple(
        type(d)(*(a * f for a, f in zip(d, factors, strict=True))) if n >= round(onset) else d
        for n, d in enumerate(donor.days)
    )
    return replace(donor, days=days)


def run(job: Job) -> Row:
    """The healthy batch of one donor and everything that befalls it."""
    process = load_config(job.process)
    prior = job.prior or preset_prior(process)
    donor = virtual_donor(process, job.seed)
    healthy = record(process, donor, seed=job.seed, recipe=job.recipe, days=HEALTHY)
    at_onset, false = _healthy(healthy, start("study", healthy.process, prior), job.onset)
    befallen = [
        (f"{p} {m}", (Fault(f"pump:{p}", m, job.onset),), donor) for p in PUMPS[: 1 + job.seed % 2] for m in MODES
    ]
    if job.seed % 2 == 0:
        befallen += [(name, (), shifted(donor, job.onset, f)) for name, f in SHIFTS.items()]
        befallen += [(name, (Fault(name.split()[0], name.split()[1], job.onset),), donor) for name in SENSORS]
    cells = [_cell(job, at_onset, name, whose, faults) for name, faults, whose in befallen]
    said = readback_cells(healthy, job.onset)
    return {"seed": job.seed, "recipe": job.recipe, "onset": job.onset, "healthy": false, "cells": cells, "said": said}


def _healthy(recording: Recording, batch: Batch, onset: float) -> tuple[Batch, dict[str, Any]]:
    """The batch at `onset`, and what was announced although nothing was wrong."""
    raised: list[tuple[str, str, float]] = []
    standing: Diagnosis | None = None
    before: set[str] = set()
    at_onset = batch
    for moment in live(recording, batch, every=EVERY):
        if moment.at > HEALTHY + 1e-6:
            break
        if abs(moment.at - onset) < 1e-6:
            at_onset = moment.batch
        diagnosis, codes = _diagnosed(moment, standing)
        raised += [(code, target, moment.at) for code, target in codes if code not in before]
        before = {code for code, _ in codes}
        standing = diagnosis if codes else None
    return at_onset, {"days": HEALTHY, "raised": raised}


def readback_cells(healthy: Recording, onset: float) -> list[dict[str, Any]]:
    """What the pumps' words alone give away: every fault of a read-back (mode "": none), without and with the recipe known."""
    cells: list[dict[str, Any]] = []
    for mode in ("", *READBACK_MODES):
        faults = (Fault("readback:perfusion", mode, onset),) if mode else ()
        recording = afflict(healthy, faults) if mode else healthy
        first: dict[bool, tuple[float, str]] = {}
        raised: dict[bool, int] = {False: 0, True: 0}
        standing: dict[bool, set[str]] = {False: set(), True: set()}
        for at in np.arange(EVERY, HEALTHY if not mode else min(onset + AFTER, HEALTHY), EVERY):
            batch = _facts_only(recording, float(at))
            for informed in (False, True):
                alarms = readback_alarms(batch, float(at), _recipe_of(batch) if informed else None)
                codes = {f"{a.code} {a.channel}" for a in alarms}
                raised[informed] += len(codes - standing[informed])
                standing[informed] = codes
                if mode and codes and at > onset:
                    first.setdefault(informed, (24.0 * (float(at) - onset), alarms[0].code))
        cells.append({"mode": mode, "found": first.get(False), "informed": first.get(True), "raised": raised})
    return cells


def _facts_only(recording: Recording, now: float) -> Batch:
    """A batch that holds the facts known by `now` and has learnt nothing from them."""
    empty = start("study", recording.process, preset_prior(recording.process))
    applied = tuple(f for f in recording.facts if isinstance(f, ControlApplied) and f.at <= now and 0.0 <= f.rate < 1e5)
    known = [f for f in recording.facts if isinstance(f, Measurement) and f.received_at <= now]
    evidence = tuple(sorted(known, key=lambda m: m.sampled_at))
    return replace(empty, applied=tuple(sorted(applied, key=lambda c: c.at)), evidence=evidence)


def _recipe_of(batch: Batch) -> Callable[[float], Control]:
    return lambda t: recipe_control(batch.process.recipe, t, latest(batch, t))


def _diagnosed(moment: Moment, standing: Diagnosis | None) -> tuple[Diagnosis | None, list[tuple[str, str]]]:
    if moment.at < 1.0:
        return None, []
    diagnosis = diagnose(moment.batch, moment.at, standing)
    return diagnosis, [(a.code, a.channel) for a in pump_alarms(diagnosis)]


def _cell(job: Job, batch: Batch, name: str, donor: VirtualDonor, faults: tuple[Fault, ...]) -> dict[str, Any]:
    """One fault lived through from its onset on."""
    process, until = load_config(job.process), job.onset + AFTER
    recording = record(process, donor, seed=job.seed, recipe=job.recipe, days=until, faults=faults)
    found, code, cause, ranked = None, "nothing", None, ()
    held: dict[str, list[bool]] = {q: [] for q in HELD}
    since: dict[str, list[bool]] = {q: [] for q in HELD}  # the alarm, as believed
    mended: dict[str, list[bool]] = {q: [] for q in HELD}  # and by the batch corrected for what was announced
    for moment in _from(recording, batch, job.onset, until):
        if found is None:
            diagnosis, codes = _diagnosed(moment, None)
            if codes and diagnosis is not None:
                found, code, cause = moment.at, " ".join(codes[0]).strip(), diagnosis.best
            if diagnosis is not None:
                ranked = tuple((e.kind, e.target, e.posterior, e.factor, e.since, e.gain) for e in diagnosis.ranked[:4])
        believed = moment.believed
        truth = {q: float(true_at(recording, q, moment.at)) for q in HELD}
        for q in HELD:
            held[q].append(within(believed[q], truth[q]))
        if isinstance(cause, Explanation) and abs(moment.at % (2.0 * EVERY)) < 1e-6:
            better = corrected(moment.batch, cause)
            right = marginals(believe_at(better, moment.at), better.layout)
            for q in HELD:
                since[q].append(within(believed[q], truth[q]))
                mended[q].append(within(right[q], truth[q]))
    return {
        "name": name, "code": code, "hours": None if found is None else 24.0 * (found - job.onset),
        "factor": None if cause is None else cause.factor, "late": None if cause is None else cause.since - job.onset,
        "ranked": ranked,
        **{f"held_{q}": _count(held[q]) for q in HELD},
        **{f"since_{q}": _count(since[q]) for q in HELD},
        **{f"mended_{q}": _count(mended[q]) for q in HELD},
    }  # fmt: skip


def _count(hits: list[bool]) -> tuple[int, int]:
    return int(np.sum(hits)), len(hits)


def _from(recording: Recording, batch: Batch, onset: float, until: float) -> Iterator[Moment]:
    """Moments after the onset, going on from the batch as it was then."""

    def new(fact: Fact) -> Fact | None:
        known = fact.received_at if isinstance(fact, Measurement) else fact.at
        return fact if known > onset + 1e-3 else None

    for moment in live(recording, batch, EVERY, new):
        if onset + 1e-6 < moment.at <= until + 1e-6:
            yield moment


def _cells(rows: Sequence[Row]) -> list[dict[str, Any]]:
    return [{**c, "recipe": r["recipe"], "onset": r["onset"]} for r in rows for c in r["cells"]]


def _right(cell: Row) -> bool:
    """Whether the alarm names the true cause: the pump in question, the bag, or the cells."""
    name, code = str(cell["name"]), str(cell["code"])
    if name in SENSORS:
        return code == "nothing"
    if name in SHIFTS:
        return code.startswith("biology_shifted")
    pump, mode = name.split()
    if mode == "wrong_bag" and pump == "perfusion":
        return code.startswith("wrong_medium")
    return code.startswith("pump_") and code.endswith(pump)


def _share(cells: Sequence[Row], quantity: str, which: str = "held") -> float:
    inside, asked = np.sum([c[f"{which}_{quantity}"] for c in cells], axis=0) if cells else (0, 0)
    return float(inside / asked) if asked else float("nan")


def figures(rows: Sequence[Row]) -> tuple[Figure, ...]:
    """What is owed."""
    healthy, cells = [r["healthy"] for r in rows], _cells(rows)
    raised = [a for h in healthy for a in h["raised"]]
    days = float(sum(h["days"] for h in healthy))
    spoken = [c["raised"] for r in rows for c in r["said"] if not c["mode"]]
    note = ", ".join(f"{c} {sum(a[0] == c for a in raised)}" for c in CODES[:-1])
    pumps = [c for c in cells if str(c["name"]).startswith("perfusion")]
    named = [c for c in pumps if _right(c)]
    alarmed = [c for c in cells if c["hours"] is not None]
    return (
        Figure("false alarms per fault-free batch-day", len(raised) / days, high=0.02, n=len(healthy), note=note),
        *(
            Figure(
                f"false read-back alarms per batch-day, {how}",
                sum(c[k] for c in spoken) / days,
                high=0.02,
                n=len(spoken),
            )
            for k, how in ((False, "alone"), (True, "with the recipe"))
        ),
        Figure(
            "perfusion faults found", float(np.mean([_right(c) for c in pumps])), n=len(pumps), note="named rightly"
        ),
        Figure("alarms that name the true cause", float(np.mean([_right(c) for c in alarmed])), n=len(alarmed)),
        *(
            Figure(f"90 % coverage of {q} during perfusion faults", _share(pumps, q), low=0.85, high=0.95, n=len(pumps))
            for q in HELD
        ),
        *(
            Figure(f"90 % coverage of {q} after the alarm, {how}", _share(named, q, which), n=len(named))
            for q in HELD
            for which, how in (("since", "as believed"), ("mended", "batch corrected"))
        ),
    )


def tables(rows: Sequence[Row]) -> tuple[Table, ...]:
    """Confusion, and by onset: named rightly, median hours to it, coverage of viable density and glucose."""
    cells = _cells(rows)
    names = tuple(dict.fromkeys(str(c["name"]) for c in cells))
    codes = tuple(sorted({str(c["code"]) for c in cells}))
    confusion: list[tuple[Any, ...]] = []
    by_onset: list[tuple[Any, ...]] = []
    for name in names:
        mine = [c for c in cells if c["name"] == name]
        confusion.append((name, *(sum(c["code"] == code for c in mine) for code in codes)))
        line: list[Any] = [name]
        for recipe in RECIPES:
            for onset in ONSETS:
                here = [c for c in mine if c["onset"] == onset and c["recipe"] == recipe]
                right = [c for c in here if _right(c)]
                hours = [c["hours"] for c in right if c["hours"] is not None]
                line.append(
                    f"{len(right)}/{len(here)}"
                    + (f" {np.median(hours):.0f}h" if hours else "")
                    + " ".join(["", *(f"{_share(here, q):.2f}" for q in HELD)])
                )
        by_onset.append(tuple(line))
    words: list[tuple[Any, ...]] = []
    for mode in READBACK_MODES:
        mine = [c for r in rows for c in r["said"] if c["mode"] == mode]
        line = [mode]
        for key in ("found", "informed"):
            hits = [c[key] for c in mine if c[key] is not None]
            hours = f" {np.median([h[0] for h in hits]):.0f}h {', '.join(sorted({h[1] for h in hits}))}" if hits else ""
            line.append(f"{len(hits)}/{len(mine)}{hours}")
        words.append(tuple(line))
    columns = tuple(f"{r} day {o:g}" for r in RECIPES for o in ONSETS)
    return (
        Table("what was announced first", ("truth", *codes), tuple(confusion)),
        Table("named rightly, median hours, viable density / glucose held", ("truth", *columns), tuple(by_onset)),
        Table("read-back faults found by what the pump says", ("mode", "alone", "with the recipe"), tuple(words)),
    )


STUDY = Study("Pump faults, wrong bags and biology on the mismatched plant", 24, jobs, run, figures, tables)
