"""The edge: it holds the approved recipe and lets the twin deviate from it, a little and for a while. Pure.

Rule 1. The recipe runs whatever happens to the twin; an override that is not valid now counts as absent (S1).
Rule 2. An override is capped by the hardware, by the recipe's largest rate and by the recipe's present rate, may change a
        rate only so fast, and draws on a budget above the recipe; the budget is 0 unless a person raised it (S2).
Rule 3. A lower epoch than the highest accepted is refused, the same `cmd_id` is answered as before and acts once (S6, S7).
Rule 4. Gates are written "accept if low <= value <= high": NaN closes them (S3). Every refusal carries a reason code (S13).
Harvest is an actuator too: the recipe harvests when its rule says so; an override of 1 begins the harvest, one of 0 holds
back the recipe's counted dose while it is valid, never its latest day. Early harvest needs half of the dose on the
edge's own count. Times in days, rates in VVD and IU/mL/d.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from controllers.recipes import counted_density, harvest_due, recipe_control
from twin.bioreactor import Control
from twin.evidence import ACTUATORS, Reading
from twin.process import Limits, Recipe

HARVEST = "harvest"
HUGE = 1e12
ROUND = 1e-6
"""Rounding allowance of times on the wire [d]."""
READBACK = 0.25
"""Longest time between two read-backs of an actuator [d]."""
REMEMBERED = 4096
"""So many answers are remembered for repeated command ids."""
COUNTED = 0.5
"""Fraction of the recipe's harvest_cells that the edge's own newest count must show before an override may harvest."""
LONGEST = 1.0
"""Longest validity of an override [d]."""


class Caps(NamedTuple):
    """What an override may ask at most, besides the hardware maximum (SAFETY S2)."""

    of_recipe_max: float = 2.0  # k1: times the recipe's highest rate
    of_recipe_now: float = 3.0  # k2: times what the recipe does now
    floor: float = 0.0  # perfusion allowed where k2 times the recipe's present rate is less [VVD]; k1 still holds
    slew: float = 0.5  # largest change of a rate in one step, as a fraction of the hardware maximum


class Budget(NamedTuple):
    """Cumulative override above the recipe, in any 24 h and in the batch. Zero for perfusion: every override is advisory."""

    day: float = 0.0  # perfusion, feed and bleed each [vessel volumes]
    batch: float = 0.0
    cytokine_day: float = 0.0  # [IU/mL]
    cytokine_batch: float = 0.0


@dataclass(frozen=True, slots=True)
class Override:
    """What the twin asks: one actuator, one rate, for a while."""

    cmd_id: str
    epoch: int  # of its sender: the fencing token
    seq: int
    actuator: str  # one of ACTUATORS, or "harvest"
    rate: float
    valid_from: float
    valid_until: float
    recipe_version: int
    basis_hash: str = ""


class Ack(NamedTuple):
    """The edge's answer. `reason`: applied, capped, or why not."""

    cmd_id: str
    accepted: bool
    applied_rate: float | None
    reason: str
    at: float


@dataclass(frozen=True, slots=True)
class EdgeSettings:
    """Fixed at the edge by people."""

    recipe: Recipe
    hardware: Control  # largest rates the pumps can do
    caps: Caps = Caps()
    budget: Budget = Budget()


def edge_settings(
    recipe: Recipe, limits: Limits, caps: Caps | None = None, budget: Budget | None = None
) -> EdgeSettings:
    """Settings of an edge whose hardware maxima are the operating limits. Default: advisory."""
    most = Control(limits.perfusion_max, limits.feed_max, limits.bleed_max, limits.cytokine_dose_max)
    return EdgeSettings(recipe, most, caps or Caps(), budget or Budget())


class Spent(NamedTuple):
    """Volume (IU/mL for the cytokine) above the recipe over one step."""

    at: float
    actuator: str
    amount: float


@dataclass(frozen=True, slots=True)
class EdgeState:
    """What the edge remembers."""

    rates: Control = Control()  # what the pumps do
    answering: Mapping[str, str | None] = field(default_factory=dict)  # actuator -> cmd_id in force
    overrides: Mapping[str, Override] = field(default_factory=dict)  # newest accepted per actuator
    answers: Mapping[str, Ack] = field(default_factory=dict)
    epoch: int = 0  # highest accepted
    spent: tuple[Spent, ...] = ()
    reported: Mapping[str, float] = field(default_factory=dict)  # actuator -> time of its last read-back


def command(
    state: EdgeState, o: Override, now: float, settings: EdgeSettings, readings: Mapping[str, Reading], volume: float
) -> tuple[EdgeState, Ack]:
    """Answer an override. An accepted one takes effect at the next `resolve`; a repeated `cmd_id` gets its first answer.

    `volume` [L] of the vessel, `readings` the edge's own newest: a harvest before the latest day must be supported by them.
    """
    if o.cmd_id in state.answers:
        return state, state.answers[o.cmd_id]
    reason = refusal(state, o, now, settings) or _uncounted(o, now, settings, readings, volume)
    if reason is not None:
        ack = Ack(o.cmd_id, False, None, reason, now)
        return _answered(state, ack), ack
    recipe = recipe_control(settings.recipe, now, readings)
    rate = o.rate if o.actuator == HARVEST else min(o.rate, ceiling(o.actuator, recipe, settings))
    ack = Ack(o.cmd_id, True, rate, "applied" if rate == o.rate else f"capped: asked {o.rate:.4g}", now)
    state = replace(state, epoch=max(state.epoch, o.epoch), overrides={**state.overrides, o.actuator: o})
    return _answered(state, ack), ack


def refusal(state: EdgeState, o: Override, now: float, settings: EdgeSettings) -> str | None:
    """Why this override cannot be accepted, as a code and a sentence; None if it can."""
    known = state.overrides.get(o.actuator)
    if o.actuator not in (*ACTUATORS, HARVEST):
        return f"unknown_actuator: {o.actuator[:40]}"
    if not o.epoch >= state.epoch:
        return f"fenced: epoch {o.epoch} is below {state.epoch}"
    if known is not None and known.epoch == o.epoch and not o.seq > known.seq:
        return f"out_of_order: seq {o.seq} after {known.seq}"
    if o.recipe_version != settings.recipe.version:
        return f"recipe_changed: version {settings.recipe.version} is in force, not {o.recipe_version}"
    if not 0.0 <= o.rate <= HUGE:
        return f"out_of_range: rate {o.rate!r}"
    if not (-HUGE <= o.valid_from <= now + LONGEST and o.valid_until <= HUGE):
        return "not_yet_valid: valid_from lies too far in the future"
    if not now < o.valid_until:
        return "expired"
    if not o.valid_until - o.valid_from <= LONGEST:
        return f"too_long: at most {24 * LONGEST:g} h"
    if not (settings.budget.day > 0.0 and settings.budget.batch > 0.0):
        return "advisory: the override budget is 0"
    return None


def ceiling(actuator: str, recipe: Control, settings: EdgeSettings) -> float:
    """Cap of an override's rate while the recipe would do `recipe` (S2)."""
    caps, now = settings.caps, getattr(recipe, actuator)
    floor = caps.floor if actuator == "perfusion" else 0.0
    highest = recipe_max(settings.recipe, actuator, settings.hardware)
    return min(getattr(settings.hardware, actuator), caps.of_recipe_max * highest, max(caps.of_recipe_now * now, floor))


def recipe_max(recipe: Recipe, actuator: str, hardware: Control) -> float:
    """The highest rate that the recipe can ever ask."""
    if actuator != "perfusion":
        return {"feed": recipe.feed, "cytokine_dose": recipe.cytokine_dose}.get(actuator, 0.0)
    numbers = recipe.numbers
    most = max((*numbers.get("perfusion", ()), *numbers.get("perfusion_max", ())), default=0.0)
    return min(most, hardware.perfusion)


class Resolved(NamedTuple):
    """What the pumps do over one step, and which read-backs are due."""

    control: Control
    readbacks: tuple[tuple[str, float, str | None], ...]  # actuator, rate, cmd_id


def resolve(
    state: EdgeState, now: float, step: float, settings: EdgeSettings, readings: Mapping[str, Reading]
) -> tuple[EdgeState, Resolved]:
    """Rates over [now, now + step): overrides that are valid throughout the step within caps, slew and budget; the recipe otherwise."""
    recipe = recipe_control(settings.recipe, now, readings)
    spent = tuple(s for s in state.spent if s.amount > 0.0)
    rates: dict[str, float] = {}
    answering: dict[str, str | None] = {}
    for name in ACTUATORS:
        own = min(max(float(getattr(recipe, name)), 0.0), getattr(settings.hardware, name))
        o = state.overrides.get(name)
        rates[name], answering[name] = own, None
        if o is None or not (o.valid_from - ROUND <= now + step <= o.valid_until + ROUND and o.epoch >= state.epoch):
            continue
        change = settings.caps.slew * getattr(settings.hardware, name)
        before = float(getattr(state.rates, name))
        slewed = min(max(o.rate, before - change), before + change)
        affordable = own + allowance(spent, name, now, settings.budget) / step
        rates[name] = max(0.0, min(slewed, ceiling(name, recipe, settings), affordable))
        answering[name] = o.cmd_id
        if rates[name] > own:
            spent = (*spent, Spent(now, name, (rates[name] - own) * step))
    control = Control(**rates)
    due = tuple(
        (name, rates[name], answering[name])
        for name in ACTUATORS
        if name not in state.reported
        or rates[name] != getattr(state.rates, name)
        or answering[name] != state.answering.get(name)
        or now - state.reported[name] >= READBACK - 1e-9
    )
    reported = {**state.reported, **{name: now for name, _, _ in due}}
    return replace(state, rates=control, answering=answering, spent=spent, reported=reported), Resolved(control, due)


def allowance(spent: tuple[Spent, ...], actuator: str, now: float, budget: Budget) -> float:
    """What is left of the budget above the recipe: the lesser of the last 24 h and the batch."""
    dosed = actuator == "cytokine_dose"
    day, batch = (budget.cytokine_day, budget.cytokine_batch) if dosed else (budget.day, budget.batch)
    mine = [s for s in spent if s.actuator == actuator]
    recent = sum(s.amount for s in mine if s.at > now - 1.0 + 1e-9)
    return max(0.0, min(day - recent, batch - sum(s.amount for s in mine)))


class Harvest(NamedTuple):
    """Why the batch ends now."""

    reason: str
    cmd_id: str | None


def harvest(
    state: EdgeState, now: float, settings: EdgeSettings, readings: Mapping[str, Reading], volume: float
) -> Harvest | None:
    """Whether the batch ends at `now`: the recipe's latest day, a valid override, or the recipe's counted dose."""
    if now >= settings.recipe.harvest_latest - 1e-9:
        return Harvest("latest day", None)
    o = state.overrides.get(HARVEST)
    if o is not None and o.valid_from - ROUND <= now < o.valid_until and o.epoch >= state.epoch:
        if o.rate < 1.0:
            return None
        if _uncounted(o, now, settings, readings, volume) is None:
            return Harvest("override", o.cmd_id)
    return Harvest("dose counted", None) if harvest_due(settings.recipe, now, readings, volume) else None


def _uncounted(
    o: Override, now: float, settings: EdgeSettings, readings: Mapping[str, Reading], volume: float
) -> str | None:
    """Why the edge does not harvest on this override: its own newest count is far from the dose. None: it may."""
    recipe = settings.recipe
    if o.actuator != HARVEST or o.rate < 1.0 or now >= recipe.harvest_latest - 1e-9:
        return None
    viable = counted_density(readings)
    if viable is not None and COUNTED * recipe.harvest_cells <= viable * volume <= HUGE:
        return None
    counted = "nothing" if viable is None else f"{viable * volume:.4g}e9 viable cells"
    return f"not_counted: {counted} counted, an early harvest needs {COUNTED * recipe.harvest_cells:.4g}e9"


def _answered(state: EdgeState, ack: Ack) -> EdgeState:
    answers = {**state.answers, ack.cmd_id: ack}
    while len(answers) > REMEMBERED:
        del answers[next(iter(answers))]
    return replace(state, answers=answers)
