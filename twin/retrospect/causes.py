"""What may make a batch deviate, as columns of the bank of `twin.estimation.diagnosis`, over the whole batch.

A change has one kind, size, onset and end. Its prior is the probability of its cause in one batch (asm), spread evenly over
onsets and sizes; small changes, which every healthy rig shows, count as nothing wrong. Two causes at a time are not thought of.

==================  =================================================================================================
cause               what it is
==================  =================================================================================================
slow_donor          early growth, lag included, among the slowest 15 % of donors (`SLOW`)
poor_seed           fewer viable cells at inoculation than nine seeds in ten have (`POOR`)
clogged_pump        perfusion delivers less than its read-back, to the end or until it is cleared
pump_gain           perfusion delivers more, or one rate whatever is asked; the dosing pump delivers more
wrong_medium        glucose, glutamine or both in the bag are not as announced
late_feed           fresh medium came late: a rise of perfusion or feed that is reported was not delivered until later, or
                    the read-backs themselves show less than the recipe asked
cytokine_missed     doses were not given, reported or not
biased_sensor       a channel reads otherwise from one moment on
cells_changed       growth, uptake, yield or death shift during the batch
nothing             none of these
==================  =================================================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Literal, NamedTuple

import numpy as np

from twin.estimation.diagnosis import (
    BAGS,
    LESS,
    MORE,
    PUMP_WOBBLE,
    SPEAKING,
    WOBBLE,
    Bank,
    Kind,
    Member,
    Prior,
    bank_of,
)
from twin.evidence import ACTUATORS, Measurement
from twin.history import Batch
from twin.process import Limits
from twin.sensors import CHANNELS

Name = Literal[
    "nothing", "slow_donor", "poor_seed", "clogged_pump", "pump_gain", "wrong_medium", "late_feed", "cytokine_missed",
    "biased_sensor", "cells_changed",
]  # fmt: skip
CAUSES: tuple[Name, ...] = (
    "slow_donor", "clogged_pump", "wrong_medium", "late_feed", "biased_sensor", "cytokine_missed", "poor_seed", "pump_gain",
    "cells_changed", "nothing",
)  # fmt: skip

SLOW, POOR = 0.15, 0.10
"""Share of donors, and of seeds, that are called slow and poor."""
EARLY = 5.0
"""Early growth is what mu_max and tau_lag together let a culture grow in so many days [d]: data tell it better than either."""
STEP = 0.5
"""Onsets are tried this far apart [d]."""
FIRST = 0.25
"""The earliest onset [d]: before it nothing is known that it could be told from."""
LAST = 0.75
"""No onset later than this before the end [d]: it could not be told from noise."""
RISE = 0.05
"""A rise of a rate by less than this share of the actuator's limit is none."""
DELAYS = tuple((d, 1.0) for d in (1.0, 1.5, 2.0, 2.5, 3.0))
"""How late a planned rise may come [d], with weights."""
BENIGN = 0.7
"""Prior share of small changes in what counts as nothing wrong."""


Sizes = tuple[tuple[float, float], ...]
"""Sizes with their weights."""


class Family(NamedTuple):
    """Changes of one kind that stand for one cause."""

    cause: Name
    kind: Kind
    target: str
    sizes: Sizes  # as `twin.estimation.diagnosis.Prior.sizes`
    probability: float  # of its cause in this way, in one batch
    lasting: tuple[tuple[float, float], ...] = ((inf, 1.0),)  # how long [d], with weights
    onsets: tuple[float, ...] = ()  # [d]; none: any
    minor: bool = False


def limit_of(limits: Limits, actuator: str) -> float:
    """The most an actuator can do [VVD; IU/mL/d]."""
    return float(getattr(limits, f"{actuator}_max"))


def families(batch: Batch, at: float, readings: Sequence[Measurement]) -> tuple[Family, ...]:
    """Everything that is thought of, for a batch that ended at `at` [d] and had `readings`; of a pump that never ran, nothing."""
    most = limit_of(batch.process.limits, "perfusion")
    clog = tuple((s, w) for s, w in LESS if s < 0.8)
    jammed = tuple((f * most, 1.0) for f in (0.25, 0.5, 0.75, 1.0))
    missed = tuple((d, 1.0) for d in (1.5, 2.5, 3.5, 5.0, inf))
    small: tuple[tuple[Kind, str, Sizes], ...] = (
        ("delivery", "perfusion", PUMP_WOBBLE), ("growth", "", WOBBLE), ("uptake", "", WOBBLE), ("yield", "", WOBBLE),
        ("death", "", ((1.5, 1.0),)),
    )  # fmt: skip
    found = [
        Family("clogged_pump", "delivery", "perfusion", clog, 0.05),
        Family("clogged_pump", "delivery", "perfusion", clog, 0.01, ((1.5, 1.0), (3.0, 1.0))),
        Family("clogged_pump", "delivery", "feed", clog, 0.05),
        Family("pump_gain", "delivery", "perfusion", MORE, 0.02),
        Family("pump_gain", "stuck_on", "perfusion", jammed, 0.005),
        Family("pump_gain", "delivery", "feed", MORE, 0.02),
        Family("pump_gain", "delivery", "cytokine_dose", MORE, 0.005),
        Family("wrong_medium", "bag", "medium", BAGS, 0.04),
        Family("wrong_medium", "bag", "glucose", BAGS, 0.005),
        Family("wrong_medium", "bag", "glutamine", BAGS, 0.005),
        Family("cytokine_missed", "delivery", "cytokine_dose", ((0.0, 1.0),), 0.05, missed),
        Family("cytokine_missed", "delivery", "cytokine_dose", ((0.3, 1.0), (0.6, 1.0)), 0.01),
        Family("cells_changed", "growth", "", ((0.5, 0.5), (0.67, 1.0), (1.5, 1.0), (2.0, 0.5)), 0.01),
        Family("cells_changed", "uptake", "", ((0.6, 0.5), (0.7, 1.0), (1.4, 1.0), (1.7, 0.5)), 0.005),
        Family("cells_changed", "yield", "", ((0.6, 1.0), (1.5, 1.0)), 0.005),
        Family("cells_changed", "death", "", ((3.0, 1.0), (6.0, 1.0), (12.0, 0.5)), 0.01),
        *(Family("nothing", kind, target, sizes, 0.2, minor=True) for kind, target, sizes in small),
    ]
    idle = [a for a in ACTUATORS if not any(float(getattr(d.control, a)) > 0.0 for d in batch.course.drives)]
    found = [f for f in found if f.target not in idle and not (f.kind == "bag" and "perfusion" in idle)]
    found += _late(batch, at) + _sensors(batch, readings)
    return tuple(found)


def _late(batch: Batch, at: float) -> list[Family]:
    """Every rise that is reported may have come later: the pump held its rate."""
    found: list[Family] = []
    for actuator in ("perfusion", "feed"):
        said = rises(batch, actuator, at)
        share = 0.05 / max(len(said), 1)
        found += [Family("late_feed", "stuck_on", actuator, ((b, 1.0),), share, DELAYS, (t,)) for t, b in said]
    return found


def rises(batch: Batch, actuator: str, at: float) -> list[tuple[float, float]]:
    """When the read-backs say that a rate rose, and from which rate: [d], [VVD]. Not at inoculation."""
    least = RISE * limit_of(batch.process.limits, actuator)
    turns = [t for t in batch.course.since if FIRST <= t <= at - LAST]

    def rate(t: float) -> float:
        return float(getattr(batch.course.at(t).control, actuator))

    return [(t, rate(t - 1e-9)) for t in turns if rate(t) - rate(t - 1e-9) >= least > 0.0]


def _sensors(batch: Batch, readings: Sequence[Measurement]) -> list[Family]:
    """A step in the error of every channel that spoke and whose error is modelled, to either side."""
    sensors = batch.process.sensors
    heard = [
        c for c in SPEAKING if c in sensors and sensors[c].error is not None and any(m.channel == c for m in readings)
    ]
    found: list[Family] = []
    for channel in heard:
        error = sensors[channel].error
        if error is None:
            continue
        if CHANNELS[channel].scale == "log":
            steps = (0.15, 0.22, 0.3, 0.4, 0.5)
        else:
            steps = tuple(k * error.sd for k in (1.5, 2.5, 3.5, 5.0))
        sizes = tuple((sign * s, 1.0) for s in steps for sign in (-1.0, 1.0))
        found.append(Family("biased_sensor", "sensor", channel, sizes, 0.05 / len(heard)))
    return found


def bank(batch: Batch, at: float, known: Sequence[Family]) -> Bank:
    """All changes of the families as columns; the owner of a column is its family."""
    anywhere = np.arange(FIRST, max(at - LAST, FIRST) + 1e-9, STEP)
    priors = tuple(Prior(f.kind, f.target, f.sizes, 0.0) for f in known)
    small = sum(f.probability for f in known if f.minor)
    members: list[Member] = []
    for i, f in enumerate(known):
        times = f.onsets or tuple(float(t) for t in anywhere)
        share = f.probability / small * BENIGN / (1.0 - BENIGN) if f.minor else f.probability / (1.0 - BENIGN)
        total = len(times) * sum(w for _, w in f.sizes) * sum(w for _, w in f.lasting)
        members += [
            Member(i, f.minor, s, t, share * w * v / total, t + d)
            for t in times for s, w in f.sizes for d, v in f.lasting
        ]  # fmt: skip
    return bank_of(batch, priors, members, raw_jumps=True)
