"""The safety kernel: the last word on every plan, whoever proposed it. Pure, no NumPy, no I/O, no clock.

Rule 1. Every gate is written "accept if low <= value <= high", so that NaN, which compares false with everything, closes it.
Rule 2. Doubt means no override: the edge then keeps to its local, approved recipe.
Rule 3. Doubt about what we know (belief, channels, read-backs) refuses every plan. Doubt about the plan alone (unsolved,
        out of range, not confirmed by an independent simulation) falls back to the previous plan, shifted once; then it lapses.
Rule 4. Every refusal is a `Fault` with a stable code and a sentence for a person.
Rule 5. What the estimator itself doubts is no ground: a reading that it holds back, a filter whose innovations exceed what it
        says of them. The doubt ends when the readings do agree again; more than that a person decides (the mode).
Contract: SAFETY S3, S4, S5, S12, S13. The edge enforces its own caps besides; nothing here replaces them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # types only: nothing of NumPy is needed at run time
    from controllers.plan import Plan, Reading
    from twin.process import Limits

HUGE = 1e12
ROUND = 1e-6
"""Rounding allowance of bounds and times: what an interior-point solution may exceed its bounds by."""

LONGEST = 1000
"""Most steps of a plan."""

STATE_RANGE: Mapping[str, tuple[float, float]] = {
    "car_positive": (1e-10, 500.0), "car_negative": (1e-10, 500.0), "dead": (1e-10, 500.0), "glucose": (1e-7, 600.0),
    "lactate": (1e-7, 300.0), "glutamine": (1e-7, 100.0), "ammonia": (1e-7, 100.0), "cytokine": (1e-7, 1e5),
    "doublings": (1e-7, 100.0), "exhausted": (1e-10, 1.05), "strong_ion": (1e-4, 300.0), "activation": (1e-7, 1.5),
    "volume": (1e-4, 1e5),
}  # fmt: skip
"""Where the 13 states can lie at all, in the units of `twin.bioreactor.State`."""

COORDINATE_RANGE: Mapping[str, tuple[float, float]] = {**STATE_RANGE, "viable": (1e-5, 500.0), "car_odds": (1e-6, 1e6)}
"""The same for the coordinates whose logarithms a belief holds."""


@dataclass(frozen=True, slots=True)
class GuardSettings:
    """Tolerances of the guard. Channel ages come from `Sensor.stale_after`."""

    required: tuple[tuple[str, ...], ...] = (
        ("viable_density",),
        ("glucose", "raman_glucose"),
        ("lactate", "raman_lactate"),
    )  # of every group at least one channel must be fresh
    witnesses: tuple[tuple[str, ...], ...] = (
        ("capacitance", "total_density", "oxygen_uptake"),
        (),
        (),
    )  # by group: channels of which a fresh one may stand for one that is fresh but doubted
    nis_max: float = 2.0  # mean normalised innovation squared of the last day: above it the filter is overconfident
    readback_stale: float = 0.5  # [d]; the edge reports at least every 6 h
    readback_relative: float = 0.10  # disagreement of a read-back with the accepted command
    readback_absolute: float = 0.02  # [VVD], or the same fraction of the dose range
    ln_sd_max: float = 5.0  # largest standard deviation of a coordinate
    parameter_factor: float = 3.0  # |ln| distance of a donor parameter from the population median
    error_max: float = 50.0  # largest sensor error, in its own scale
    agreement: float = 0.05  # |ln| difference of the plan's states from the independent simulation
    agreement_ions: float = 0.25  # the same for the strong-ion difference: the base pump switches within a move
    agreement_floor: float = 0.05  # added to both before the logarithm: mM, 1e6 cells/mL, fractions
    worse: float = 0.02  # relative worsening allowed to a state that starts beyond a hard limit
    harvest_margin: float = 1.3  # what a count may lack of the dose at harvest, besides growth since the sample
    harvest_factor: float = 2.0  # the same with growth: the edge asks for half of the dose on its own count
    harvest_slack: float = 0.25  # [d]; so long before the recipe's latest day no count is asked for


class Fault(NamedTuple):
    code: str
    detail: str

    def __str__(self) -> str:
        return f"{self.code}: {self.detail}"


class Command(NamedTuple):
    """The override in force, as the corridor in which its read-back must lie (capped and slewed at the edge)."""

    low: float
    high: float
    issued_at: float  # [d]
    valid_until: float  # [d]


class Readback(NamedTuple):
    """The newest word of the edge on one actuator."""

    rate: float
    at: float  # [d]
    answers: bool  # it carries the id of an override


@dataclass(frozen=True, slots=True)
class Grounds:
    """What a decision rests on, in plain floats and sequences."""

    now: float  # [d]
    names: Sequence[str]  # coordinates of the belief
    mean: Sequence[float]  # ln of states and donor parameters, then sensor errors
    cov: Sequence[Sequence[float]]
    medians: Mapping[str, float]  # population medians of the learnt donor parameters
    readings: Mapping[str, Reading]
    stale_after: Mapping[str, float]  # per channel [d]
    readbacks: Mapping[str, Readback]
    commands: Mapping[str, Command]
    applied: Sequence[float]  # perfusion, feed, bleed, cytokine_dose in force
    limits: Limits
    volume: float = math.nan  # believed [L]
    dose: float = math.nan  # the recipe's harvest_cells [1e9]
    latest: float = math.nan  # the recipe's latest day [d]
    mu_max: float = math.nan  # population median [1/d]
    doubted: Mapping[str, str] = field(default_factory=dict)  # channels that the estimator holds back, and why
    nis: float = 0.0  # of the last day; 0 while too few readings tell


class Verdict(NamedTuple):
    plan: Plan
    accepted: bool
    faults: tuple[Fault, ...]


Resimulate = Callable[["Plan"], Sequence[Sequence[float]]]
"""Independent simulation of a plan from the belief's mean: one state more than controls, rows in `State` order."""


def within(value: float, low: float, high: float) -> bool:
    """Accept if ``low <= value <= high``; NaN and Inf are never within."""
    return low <= value <= high and -HUGE <= value <= HUGE


def belief_fault(g: Grounds, s: GuardSettings) -> Fault | None:
    """A non-finite, impossible or boundless belief."""
    if not within(g.now, 0.0, 1e4):
        return Fault("time_impossible", f"now is day {g.now}")
    n = len(g.names)
    if not (n == len(g.mean) == len(g.cov)):
        return Fault("belief_shape", f"{n} names, {len(g.mean)} means, {len(g.cov)} rows of covariance")
    for i, (name, mean) in enumerate(zip(g.names, g.mean, strict=True)):
        if name in COORDINATE_RANGE:
            low, high = (math.log(bound) for bound in COORDINATE_RANGE[name])
        elif name in g.medians:
            centre = math.log(g.medians[name])
            low, high = centre - s.parameter_factor, centre + s.parameter_factor
        else:
            low, high = -s.error_max, s.error_max
        if not within(mean, low, high):
            return Fault("belief_range", f"{name}: coordinate {mean:.4g} is outside {low:.4g}..{high:.4g}")
        if not within(g.cov[i][i], 0.0, s.ln_sd_max**2):
            return Fault("belief_variance", f"{name}: variance {g.cov[i][i]:.4g} is outside 0..{s.ln_sd_max**2:.4g}")
        for j in range(i):
            bound = math.sqrt(g.cov[i][i] * g.cov[j][j]) * (1.0 + ROUND) + 1e-9
            if not (within(g.cov[i][j], -bound, bound) and within(g.cov[j][i], -bound, bound)):
                return Fault("belief_covariance", f"{name}, {g.names[j]}: {g.cov[i][j]:.4g} exceeds {bound:.4g}")
    return None


def calibration_fault(g: Grounds, s: GuardSettings) -> Fault | None:
    """A filter that is overconfident: what it read in the last day lay further off than it said it could (SAFETY S12)."""
    if within(g.nis, 0.0, s.nis_max):
        return None
    return Fault("calibration", f"innovations squared are {g.nis:.3g} times what the filter says (limit {s.nis_max:g})")


def channel_fault(g: Grounds, s: GuardSettings) -> Fault | None:
    """A required channel that is missing, stale, from the future, or held back by the estimator with no other witness."""
    for k, group in enumerate(s.required):
        fresh, ages = _fresh(g, group)
        if not fresh:
            return Fault(f"stale_{group[0]}", "; ".join(ages))
        others, _ = _fresh(g, s.witnesses[k] if k < len(s.witnesses) else ())
        if all(channel in g.doubted for channel in (*fresh, *others)):
            why = "; ".join(f"{c} is held back ({g.doubted[c]})" for c in (*fresh, *others))
            return Fault(f"doubted_{group[0]}", f"{why}; nothing else speaks of it")
    return None


def _fresh(g: Grounds, channels: Sequence[str]) -> tuple[list[str], list[str]]:
    """Those of some channels that are fresh, and what is the matter with the others."""
    fresh: list[str] = []
    ages: list[str] = []
    for channel in channels:
        reading, limit = g.readings.get(channel), g.stale_after.get(channel)
        if reading is None or limit is None:
            ages.append(f"{channel} was never read")
            continue
        age = g.now - reading.sampled_at
        if within(age, -ROUND, limit + ROUND) and within(g.now - reading.received_at, -ROUND, HUGE):
            fresh.append(channel)
        else:
            ages.append(f"{channel} is {age:.2f} d old (limit {limit:g} d)")
    return fresh, ages


def readback_fault(g: Grounds, plan: Plan, s: GuardSettings) -> Fault | None:
    """An actuator that the plan would move, whose read-back is missing, stale or not what was commanded."""
    wanted = plan.controls[0]
    full = (g.limits.perfusion_max, g.limits.feed_max, g.limits.bleed_max, g.limits.cytokine_dose_max)
    for actuator, rate, scale in zip(wanted._fields, wanted, full, strict=True):
        readback = g.readbacks.get(actuator)
        if readback is None:
            if within(rate, -ROUND, ROUND):
                continue
            return Fault(f"readback_{actuator}", "the pump has not reported yet")
        age = g.now - readback.at
        if not within(age, -ROUND, s.readback_stale + ROUND):
            return Fault(f"readback_{actuator}", f"the last report is {age:.2f} d old (limit {s.readback_stale:g} d)")
        if not within(readback.rate, 0.0, HUGE):
            return Fault(f"readback_{actuator}", f"the pump reports {readback.rate:.4g}")
        command = g.commands.get(actuator)
        if command is None or not readback.answers or not command.issued_at <= readback.at < command.valid_until:
            continue
        slack = s.readback_absolute * max(1.0, scale / 2.0) + s.readback_relative * command.high
        if not within(readback.rate, command.low - slack, command.high + slack):
            return Fault(
                f"mismatch_{actuator}",
                f"the pump reports {readback.rate:.4g}, commanded {command.low:.4g}..{command.high:.4g}",
            )
    return None


def harvest_fault(g: Grounds, s: GuardSettings) -> Fault | None:
    """Why a batch may not be ended now, which nothing can undo: the dose is not supported by a laboratory count.

    The newest count (viable density, or total density times viability) must be fresh, not held back, and reach the dose when multiplied by
    the volume and by ``min(harvest_margin exp(mu_max age), harvest_factor)``. From one period before the recipe's latest
    day on, no count is asked for. No probe and no belief but the volume enters.
    """
    if within(g.latest, 0.0, HUGE) and within(g.now, g.latest - s.harvest_slack - ROUND, HUGE):
        return None
    names = ("viable_density",) if "viable_density" in g.readings else ("total_density", "viability")
    cells, oldest = 1.0, 0.0
    for name in names:
        reading, limit = g.readings.get(name), g.stale_after.get(name)
        if reading is None or limit is None:
            return Fault("harvest_uncounted", f"no {name} supports a harvest before day {g.latest:g}")
        if name in g.doubted:
            return Fault("harvest_doubted", f"the newest {name} is held back ({g.doubted[name]})")
        age = g.now - reading.sampled_at
        if not within(age, -ROUND, limit + ROUND):
            return Fault("harvest_uncounted", f"{name} is {age:.2f} d old (limit {limit:g} d)")
        cells, oldest = cells * reading.value, max(oldest, age)
    allowed = min(s.harvest_margin * math.exp(min(g.mu_max * oldest, 50.0)), s.harvest_factor)
    if within(g.dose, 0.0, HUGE) and within(cells * g.volume * allowed, g.dose, HUGE):
        return None
    return Fault(
        "harvest_unsupported",
        f"{cells * g.volume:.3g}e9 viable cells counted {oldest:.2f} d ago, at most {allowed:.2f} times as many now; "
        f"the dose is {g.dose:g}e9",
    )


def plan_fault(g: Grounds, plan: Plan) -> Fault | None:
    """A plan that is unsolved, misshapen, dated wrongly, non-finite or outside the operating limits."""
    if plan.status not in ("solved", "shifted"):
        return Fault("unsolved", plan.detail or plan.status)
    if not (1 <= len(plan.controls) <= LONGEST and len(plan.states) == len(plan.controls) + 1):
        return Fault("plan_shape", f"{len(plan.controls)} controls and {len(plan.states)} states")
    if not (within(plan.issued_at, g.now - ROUND, g.now + ROUND) and within(plan.step, ROUND, 10.0)):
        return Fault("plan_time", f"issued at day {plan.issued_at} with step {plan.step}, now is day {g.now}")
    if not within(plan.cost, -HUGE, HUGE):
        return Fault("plan_cost", f"cost {plan.cost}")
    if plan.harvest_at is not None and not within(plan.harvest_at, g.now - ROUND, 1e4):
        return Fault("plan_harvest", f"harvest planned on day {plan.harvest_at}")
    lim, before = g.limits, g.applied[0]
    top = (lim.perfusion_max, lim.feed_max, lim.bleed_max, lim.cytokine_dose_max)
    for k, control in enumerate(plan.controls):
        for actuator, rate, high in zip(control._fields, control, top, strict=True):
            if not within(rate, -ROUND, high + ROUND * max(1.0, high)):
                return Fault("plan_range", f"step {k}: {actuator} {rate:.4g} is outside 0..{high:g}")
        if not within(abs(control.perfusion - before), 0.0, lim.perfusion_step + ROUND):
            return Fault("plan_step", f"step {k}: perfusion moves from {before:.4g} to {control.perfusion:.4g} VVD")
        before = control.perfusion
    for k, state in enumerate(plan.states):
        for name, value in zip(state._fields, state, strict=True):
            if not within(value, -ROUND, STATE_RANGE[name][1]):
                return Fault("plan_state", f"node {k}: {name} {value:.4g} is impossible")
    return None


def _hard(lim: Limits) -> Iterator[tuple[str, str, float]]:
    """Limits that no plan may cross; the tighter, softened ones are the optimiser's business."""
    yield "lactate", "above", lim.lactate_hard
    yield "ammonia", "above", 2.0 * lim.ammonia_max
    yield "glucose", "below", 0.2 * lim.glucose_min
    yield "volume", "above", lim.volume_max


def resimulation_fault(plan: Plan, again: Sequence[Sequence[float]], limits: Limits, s: GuardSettings) -> Fault | None:
    """A plan that the independent simulation `again` contradicts, or shows to cross a hard limit.

    A state that starts beyond a limit may stay there but not get worse. A shifted plan was predicted from an older belief:
    it is held to the limits only.
    """
    if len(again) != len(plan.states):
        return Fault("resimulation", f"{len(again)} simulated states for {len(plan.states)} planned")
    names = plan.states[0]._fields
    for k, (planned, row) in enumerate(zip(plan.states, again, strict=True)):
        for name, a, b in zip(names, planned, row, strict=True):
            if not within(b, 0.0, STATE_RANGE[name][1]):
                return Fault("resimulation", f"node {k}: {name} comes out as {b:.4g}")
            if plan.status == "shifted":
                continue
            gap = math.log((max(a, 0.0) + s.agreement_floor) / (b + s.agreement_floor))
            allowed = s.agreement_ions if name == "strong_ion" else s.agreement
            if not within(gap, -allowed, allowed):
                return Fault("resimulation", f"node {k}: {name} planned {a:.4g}, simulated {b:.4g}")
    for name, side, limit in _hard(limits):
        i = names.index(name)
        start = again[0][i]
        for k, row in enumerate(again):
            low, high = -HUGE, max(limit, start * (1.0 + s.worse))
            if side == "below":
                low, high = min(limit, start * (1.0 - s.worse)), HUGE
            if not within(row[i], low, high):
                return Fault("limit", f"node {k}: {name} reaches {row[i]:.4g}, hard limit {limit:g}")
    return None


def shift(plan: Plan, now: float) -> Plan | None:
    """What is left of `plan` one step later, or None when it is used up, already shifted or not one step old."""
    if plan.status != "solved" or len(plan.controls) < 2 or not within(now - plan.issued_at - plan.step, -ROUND, ROUND):
        return None
    return replace(plan, issued_at=now, controls=plan.controls[1:], states=plan.states[1:], status="shifted")


def judge(g: Grounds, plan: Plan, previous: Plan | None, resimulate: Resimulate, s: GuardSettings) -> Verdict:
    """The verdict on `plan`; `previous` is the plan that was accepted last.

    An accepted verdict carries the plan to act on (`plan`, or `previous` shifted once). A refused one carries the plan
    with status "failed", unless the plan itself is sound and only the grounds are in doubt.
    """
    ground = belief_fault(g, s) or channel_fault(g, s) or calibration_fault(g, s)
    if ground is not None:
        return Verdict(plan if plan_fault(g, plan) is None else _failed(plan, ground), False, (ground,))
    fault = _fault(g, plan, resimulate, s)
    if fault is None:
        moved = readback_fault(g, plan, s)
        return Verdict(plan, moved is None, () if moved is None else (moved,))
    rest = shift(previous, g.now) if previous is not None else None
    if rest is None:
        return Verdict(_failed(plan, fault), False, (fault, Fault("lapse", "no earlier plan to fall back on")))
    again = _fault(g, rest, resimulate, s) or readback_fault(g, rest, s)
    if again is not None:
        return Verdict(_failed(plan, fault), False, (fault, again))
    return Verdict(rest, True, (fault,))


def _fault(g: Grounds, plan: Plan, resimulate: Resimulate, s: GuardSettings) -> Fault | None:
    return plan_fault(g, plan) or resimulation_fault(plan, resimulate(plan), g.limits, s)


def _failed(plan: Plan, fault: Fault) -> Plan:
    return plan if plan.status == "failed" else replace(plan, status="failed", detail=str(fault))
