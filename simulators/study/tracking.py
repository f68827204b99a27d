"""A recording told to a twin as it happened, and what was believed at every moment beside what was true."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from simulators.recording import Recording
from twin.batch import believe_at, tell
from twin.estimation.belief import Marginal, marginals
from twin.evidence import Fact, Measurement, Refused
from twin.history import Batch

HOUR = 1.0 / 24.0


class Moment(NamedTuple):
    """One instant of a batch as it was lived through."""

    at: float  # [d]
    batch: Batch
    refused: Mapping[str, float]  # when a fact of each channel or actuator was first refused [d]

    @property
    def believed(self) -> Mapping[str, Marginal]:
        """Every quantity by the facts known now."""
        return marginals(believe_at(self.batch, self.at), self.batch.layout)


def known_at(fact: Fact) -> float:
    """When the twin hears of a fact [d]."""
    return fact.received_at if isinstance(fact, Measurement) else fact.at


def lived(recording: Recording, batch: Batch, until: float) -> tuple[Batch, int]:
    """The batch after all facts known by `until` [d], and how many they were."""
    count = 0
    for fact in recording.facts:
        if known_at(fact) > until:
            break
        batch = tell(batch, fact)
        count += 1
    return batch, count


def live(
    recording: Recording,
    batch: Batch,
    every: float = HOUR,
    edit: Callable[[Fact], Fact | None] = lambda f: f,
    told: int = 0,
    after: float = 0.0,
) -> Iterator[Moment]:
    """Tell the facts in the order of the wire; a moment every `every` days. `edit` alters facts, None drops one.

    A batch that has been told the first `told` facts goes on from day `after`.
    """
    refused: dict[str, float] = {}
    due = after + every
    for original in recording.facts[told:]:
        fact = edit(original)
        if fact is None:
            continue
        known = known_at(fact)
        while known > due + 1e-3:
            yield Moment(due, batch, refused)
            due += every
        try:
            batch = tell(batch, fact)
        except Refused:
            name = fact.channel if isinstance(fact, Measurement) else getattr(fact, "actuator", "event")
            refused.setdefault(name, known)
    yield Moment(due, batch, refused)


def true_at(recording: Recording, name: str, t: float | np.ndarray) -> np.ndarray:
    """The true course of a quantity, between ticks on a straight line."""
    return np.asarray(np.interp(t, recording.truth["time"], recording.truth[name]))


def within(marginal: Marginal, value: float) -> bool:
    """Whether the 90 % interval holds a value."""
    return bool(marginal.q05 <= value <= marginal.q95)
