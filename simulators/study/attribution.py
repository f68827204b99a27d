"""A finished batch in which one thing went wrong, on the mismatched plant: is the cause named first, and is its cost?

Six causes in turn and two untroubled batches, every donor once. Donor and seed are of the ordinary sort (growth and cells at
inoculation not lower than one standard deviation below the median), but for the slow donors, who are at least two below.
Onset and size are drawn before anything is told; the sizes are what a process engineer would call a deviation:

================  ===================================================================================================
slow_donor        growth 2 to 3 standard deviations below the median, everything else as it comes with such a donor
clogged_pump      30 to 60 % of the perfusion that the pump reports, to the end
wrong_medium      40 to 70 % of the glucose and glutamine that the bag announces, to the end
late_feed         a planned rise of perfusion 1.5 to 3 days late; every other time the read-back shows it
biased_sensor     one of six channels wrong by half to all of the default bias (`simulators.faults.TROUBLE`)
cytokine_missed   nothing dosed for 3 to 5 days; every other time the read-back shows it
================  ===================================================================================================

The rig has every sensor of `configs/sensors/online.yaml`: the nominal ones and a cytokine ELISA twice a week. Batches end when
the recipe harvests. Half are played by each of `RECIPES`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from controllers.recipes import recipe_asked, recipe_schedule
from simulators.donors import VirtualDonor, virtual_donor
from simulators.faults import TROUBLE, Fault
from simulators.instruments import ChannelSpec, Instrument
from simulators.recording import Recording, record
from simulators.scenario import Scenario, load_scenario
from simulators.study.base import Figure, Row, Study, Table
from simulators.study.tracking import true_at
from twin.batch import start
from twin.config import load_config
from twin.donors.prior import DonorPrior, preset_prior
from twin.evidence import ControlApplied, Measurement
from twin.history import Batch
from twin.inputs import course
from twin.process import Process
from twin.retrospect.attribution import GROWTH, Weighing, effect_of, weighed
from twin.retrospect.causes import CAUSES
from twin.retrospect.edits import edited
from twin.retrospect.paths import Change, compared, rerun
from twin.whatif.edits import parse_edits

INJECTED = ("slow_donor", "clogged_pump", "wrong_medium", "late_feed", "biased_sensor", "cytokine_missed")
TURNS = (*INJECTED, "nothing", "nothing")
RECIPES = ("time_steps", "density_steps")
BLIND = "time_steps"
"""The recipe that goes by days alone: without the cause the inputs would have been the same, so that its effect is known."""
DOUBLED = 8.0
"""The counterfactual that is judged on the plant: twice the perfusion from this day on."""
CHANNELS = ("viable_density", "glucose", "lactate", "capacitance", "raman_glucose", "raman_lactate")
DAYS = 14.0
ORDINARY = -1.0
"""Donor and seed lie above this many standard deviations."""
SLOW = (-3.0, -2.0)
RECORDED = ("late_feed", "cytokine_missed")
"""Causes that the read-backs show every other time."""
EARLIEST, LEFT = 3.0, 3.0
"""Nothing goes wrong before this day, nor so many days before the end [d]."""
ELISA = Instrument(
    "elisa", {"cytokine": ChannelSpec(noise=0.12, bias=0.05)}, 3.5, delay=(1.0, 3.0), dropout=0.02, sample=0.0005, laboratory=True
)  # fmt: skip
"""Intra-assay 10-15 % (SCIENCE section 3), results after days."""


class Job(NamedTuple):
    """One batch and what goes wrong in it."""

    seed: int
    cause: str
    shown: bool  # by the read-backs
    recipe: str
    process: str
    prior: DonorPrior | None


def jobs(batches: int, first: int, process: str, prior: DonorPrior | None) -> Sequence[Job]:
    """Causes in turn; every cause meets both recipes, and where that can be, is shown and hidden under each."""
    found: list[Job] = []
    for k in range(batches):
        turn = k // len(TURNS)
        cause = TURNS[k % len(TURNS)]
        shown = cause in RECORDED and (turn // 2) % 2 == 0
        found.append(Job(first + k, cause, shown, RECIPES[turn % 2], process, prior))
    return found


@cache
def surroundings() -> Scenario:
    """The nominal rig and an ELISA."""
    nominal = load_scenario("nominal")
    return replace(nominal, name="assayed", instruments=(*nominal.instruments, ELISA))


def deviant(process: Process, seed: int, slow: bool) -> VirtualDonor:
    """The first donor from number `seed` on, in leaps, who is ordinary, or slow."""
    for k in range(2000):
        donor = virtual_donor(process, seed + 10_000 * k)
        growth = np.log(donor.cell.mu_max / process.theta.cell.mu_max) / process.donor_sd["mu_max"]
        seeded = np.log(donor.initial.viable / process.initial.viable) / process.initial_sd.viable
        if seeded > ORDINARY and (SLOW[0] <= growth <= SLOW[1] if slow else growth > ORDINARY):
            return donor
    raise RuntimeError(f"no donor from {seed} on is {'slow' if slow else 'ordinary'}")


def befalls(job: Job, healthy: Recording, rng: np.random.Generator) -> tuple[Fault, ...]:
    """What goes wrong on the rig, drawn before anything is told; nothing for a donor's own slowness."""
    end = _harvested(healthy)
    onset = float(rng.uniform(EARLIEST, max(end - LEFT, EARLIEST + 0.5)))
    match job.cause:
        case "clogged_pump":
            return (Fault("pump:perfusion", "clog", onset, size=float(rng.uniform(0.3, 0.6))),)
        case "wrong_medium":
            return (Fault("pump:perfusion", "wrong_bag", onset, size=float(rng.uniform(0.4, 0.7))),)
        case "cytokine_missed":
            until = onset + float(rng.uniform(3.0, 5.0))
            mode = "override" if job.shown else "clog"
            return (Fault("pump:cytokine_dose", mode, onset, until=until, size=0.0),)
        case "late_feed":
            rate, times = healthy.truth["perfusion"], healthy.truth["time"]
            rises = np.flatnonzero(np.diff(rate) > 0.1)  # the rate of a tick is what the pumps did on the way to it
            steps = [k for k in rises if times[k] <= end - LEFT] or list(rises[:1])
            k = steps[int(rng.integers(len(steps)))]
            until = float(times[k]) + float(rng.uniform(1.5, 3.0))
            mode = "override" if job.shown else "stuck_on"
            return (Fault("pump:perfusion", mode, float(times[k]), until=until, size=float(rate[k])),)
        case "biased_sensor":
            channel = CHANNELS[int(rng.integers(len(CHANNELS)))]
            size = float(rng.uniform(0.5, 1.0) * rng.choice([-1.0, 1.0]) * TROUBLE[channel].bias)
            return (Fault(channel, "bias", onset, size=size),)
        case _:
            return ()


def _harvested(recording: Recording) -> float:
    """When the dose was there, or the last day [d]."""
    enough = recording.truth["viable_cells"] >= recording.process.recipe.harvest_cells
    return float(recording.truth["time"][int(np.argmax(enough))] if enough.any() else recording.truth["time"][-1])


def told(recording: Recording, prior: DonorPrior) -> Batch:
    """The batch with everything told, not yet filtered."""
    acted = [f for f in recording.facts if isinstance(f, ControlApplied) and f.actuator != "harvest"]
    applied = tuple(sorted(acted, key=lambda c: (c.at, c.actuator, c.id)))
    evidence = sorted(
        (f for f in recording.facts if isinstance(f, Measurement)), key=lambda m: (m.sampled_at, m.channel, m.id)
    )
    batch = start(f"B{recording.seed}", recording.process, prior)
    inputs = course(recording.process.theta.medium, applied, ())
    return replace(batch, applied=applied, course=inputs, evidence=tuple(evidence))


def run(job: Job) -> Row:
    """One batch: played, weighed, and what its likeliest cause is said to have cost."""
    process = load_config(job.process)
    prior, rng = job.prior or preset_prior(process), np.random.default_rng([job.seed, 0xA77])
    donor = deviant(process, job.seed, job.cause == "slow_donor")
    healthy = record(process, donor, seed=job.seed, recipe=job.recipe, days=DAYS, scenario=surroundings())
    faults = befalls(job, healthy, rng)
    played = record(
        process, donor, seed=job.seed, recipe=job.recipe, days=DAYS, scenario=surroundings(), faults=faults, ignore_harvest=False
    )  # fmt: skip
    end = float(played.truth["time"][-1])
    batch = told(played, prior)
    asked = recipe_asked(batch)
    known = weighed(batch, end, asked, seed=job.seed)
    best = known.causes[0]
    effect, true, doubled = None, None, None
    if best.name == job.cause != "nothing" and job.recipe == BLIND:
        effect = effect_of(known, best, asked, recipe_schedule(batch.process.recipe), seed=job.seed)
        true = float(played.truth["viable_cells"][-1]) - _without(job, process, donor, healthy, end)
    if job.cause == "nothing" and job.recipe == BLIND and end > DOUBLED + 1.0:
        doubled = _doubled(known, job, process, donor, played)
    return {
        "seed": job.seed, "cause": job.cause, "shown": job.shown, "recipe": job.recipe, "end": end,
        "faults": [(f.target, f.mode, f.onset, f.until, f.magnitude) for f in faults],
        "named": best.name, "ranked": [(c.name, c.probability, c.evidence) for c in known.causes],
        "effect": effect, "true": true, "doubled": doubled,
    }  # fmt: skip


def _doubled(known: Weighing, job: Job, process: Process, donor: VirtualDonor, played: Recording) -> dict[str, Any]:
    """What twice the perfusion from day `DOUBLED` on would have changed at the end: as said, and on the plant."""
    end = float(played.truth["time"][-1])
    twice = edited(known.batch.course, parse_edits(f"perfusion*2 from {DOUBLED:g}"), process.limits)
    was, would = rerun(known.batch, known.paths), rerun(known.batch, known.paths, Change(course=twice.course))
    said = compared(was, would, process.targets).delta
    gain = (Fault("pump:perfusion", "gain", DOUBLED, size=2.0),)  # the recipe goes by days: it asks what it asked
    really = record(process, donor, seed=job.seed, recipe=job.recipe, days=DAYS, scenario=surroundings(), faults=gain)
    return {q: (said[q], float(true_at(really, q, end)) - float(played.truth[q][-1])) for q in said}


def _without(job: Job, process: Process, donor: VirtualDonor, healthy: Recording, end: float) -> float:
    """Viable cells that there would have been on the same day without the cause [1e9 cells]."""
    if job.cause == "slow_donor":
        median = {name: getattr(process.theta.cell, name) for name in GROWTH}
        usual = replace(donor, cell=donor.cell._replace(**median))
        healthy = record(process, usual, seed=job.seed, recipe=job.recipe, days=DAYS, scenario=surroundings())
    return float(true_at(healthy, "viable_cells", end))


def _probability(row: Row, cause: str) -> float:
    return next((p for name, p, _ in row["ranked"] if name == cause), 0.0)


def figures(rows: Sequence[Row]) -> tuple[Figure, ...]:
    """What is owed."""
    troubled = [r for r in rows if r["cause"] != "nothing"]
    sound = [r for r in rows if r["cause"] == "nothing"]
    right = [r["named"] == r["cause"] for r in troubled]
    sure = [r for r in rows if r["ranked"][0][1] >= 0.9]
    told = [r for r in rows if r["effect"] is not None]
    moved = [r for r in told if r["cause"] != "biased_sensor"]
    held = [r["effect"][0] <= r["true"] <= r["effect"][2] for r in moved]
    twice = [r["doubled"] for r in rows if r["doubled"] is not None]
    either = [(r["shown"], r["named"] == r["cause"]) for r in troubled if r["cause"] in RECORDED]
    calibrated = "equals the share that is right where probabilities hold"
    return (
        Figure("cause named first", _mean(right), low=0.80, n=len(right), note="of batches in which one of six went wrong"),
        *(
            _either(f"cause named first, {how}", [hit for s, hit in either if s == shown])
            for shown, how in ((True, "shown by the read-backs"), (False, "hidden from them"))
        ),
        Figure("nothing named in untroubled batches", _mean([r["named"] == "nothing" for r in sound]), n=len(sound)),
        Figure("mean probability of the true cause", _mean([_probability(r, r["cause"]) for r in rows]), n=len(rows)),
        Figure("right where the first has 0.9 or more", _mean([r["named"] == r["cause"] for r in sure]), n=len(sure)),
        Figure("mean probability of the first", _mean([r["ranked"][0][1] for r in rows]), n=len(rows), note=calibrated),
        Figure(
            "90 % interval of the effect holds the truth", _mean(held), n=len(held),
            note="viable cells; right causes but sensors, under the recipe by days",
        ),
        Figure(
            "median error of the effect [1e9 cells]", _middle([abs(r["effect"][1] - r["true"]) for r in moved]), n=len(moved),
            note=f"of a median effect of {_middle([abs(r['true']) for r in moved]):.2g}",
        ),
        *(_doubled_figure(q, [d[q] for d in twice]) for q in ("viable_cells", "viability", "lactate")),
    )  # fmt: skip


def _either(name: str, hits: Sequence[bool]) -> Figure:
    return Figure(name, _mean(hits), n=len(hits), note="late feed, cytokine missed")


def _doubled_figure(quantity: str, found: Sequence[tuple[tuple[float, float, float], float]]) -> Figure:
    """How often the interval of a difference holds the one that the plant shows."""
    name = f"perfusion*2 from {DOUBLED:g}: 90 % interval holds the difference in {quantity}"
    said, true = _middle([s[1] for s, _ in found]), _middle([t for _, t in found])
    held = [s[0] <= t <= s[2] for s, t in found]
    return Figure(name, _mean(held), n=len(held), note=f"median said {said:.2g}, true {true:.2g}")


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


def _middle(values: Sequence[float]) -> float:
    return float(np.median(values)) if len(values) else float("nan")


def tables(rows: Sequence[Row]) -> tuple[Table, ...]:
    """Confusion, and what each cause cost."""
    columns = [c for c in CAUSES if any(r["named"] == c for r in rows) or c in INJECTED or c == "nothing"]
    lines: list[tuple[Any, ...]] = []
    costs: list[tuple[Any, ...]] = []
    for cause in (*INJECTED, "nothing"):
        mine = [r for r in rows if r["cause"] == cause]
        ways = (True, False) if cause in RECORDED else (False,)
        for shown in ways:
            here = [r for r in mine if r["shown"] == shown]
            name = f"{cause}, {'shown' if shown else 'hidden'}" if cause in RECORDED else cause
            lines.append((name, len(here), *(sum(r["named"] == c for r in here) or "" for c in columns)))
        told = [r for r in mine if r["effect"] is not None]
        if told:
            true, said = np.median([r["true"] for r in told]), np.median([r["effect"][1] for r in told])
            inside = sum(r["effect"][0] <= r["true"] <= r["effect"][2] for r in told)
            costs.append((cause, f"{true:.1f}", f"{said:.1f}", f"{inside}/{len(told)}"))
    return (
        Table("named first", ("truth", "n", *columns), tuple(lines)),
        Table(
            "viable cells gained or lost by the cause [1e9], medians",
            ("cause", "true", "said", "90 % interval holds it"), tuple(costs),
        ),
    )  # fmt: skip


STUDY = Study("Causes of a finished batch's deviation on the mismatched plant", 160, jobs, run, figures, tables)
