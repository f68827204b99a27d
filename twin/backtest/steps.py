"""The steps that are predicted, and the two forecasts that need no model: persistence and the mean of the other groups.

A step leads from one visit to the next: two consecutive readings of a channel in a batch at least `MIN_GAP` apart (a
second reading shortly after the first, as behind a bolus feed, belongs to the same visit). Scores are on ln for
densities and concentrations, on the plain value for fractions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from twin.records import RecordedBatch
from twin.sensors import CHANNELS

MIN_GAP = 0.25  # d


class Step(NamedTuple):
    """One channel of one batch from one visit to the next."""

    batch: str
    group: str
    channel: str
    number: int  # within the batch, from 0: what the mean of the other groups goes by
    start: float  # [d]
    end: float  # [d]
    before: float  # newest reading at the start, on the scale of the scores
    after: float  # reading at the end

    @property
    def increment(self) -> float:
        return self.after - self.before


def steps(batch: RecordedBatch, channel: str) -> tuple[Step, ...]:
    """The steps of a channel, in order of time."""
    readings = [(m.sampled_at, on_scale(channel, m.value)) for m in batch.final if m.channel == channel]
    found: list[Step] = []
    for (start, before), (end, after) in pairwise(readings):
        if end - start >= MIN_GAP:
            found.append(Step(batch.id, batch.group, channel, len(found), start, end, before, after))
    return tuple(found)


def on_scale(channel: str, value: float) -> float:
    """A reading on the scale of the scores: ln (of the detection limit at least) or as it is."""
    c = CHANNELS[channel]
    return float(np.log(max(value, c.limit))) if c.scale == "log" else value


def scored_channels(batches: Iterable[RecordedBatch]) -> tuple[str, ...]:
    """Channels that inform the state and have at least one step, in the order of `CHANNELS`."""
    batches = tuple(batches)
    return tuple(c for c in CHANNELS if any(steps(b, c) for b in batches))


def mean_increments(training: Iterable[Step]) -> Mapping[int, float]:
    """Mean increment of the n-th step over the training batches."""
    by_index: dict[int, list[float]] = {}
    for s in training:
        by_index.setdefault(s.number, []).append(s.increment)
    return {index: float(np.mean(values)) for index, values in by_index.items()}


def expected_increment(step: Step, means: Mapping[int, float]) -> float:
    """What the other groups did in the step of this number; beyond their last step, what they did in that one."""
    return means[min(step.number, max(means))]


def rmse(errors: Iterable[float]) -> float:
    """Root mean square; NaN for none."""
    values = np.fromiter(errors, dtype=float)
    return float(np.sqrt(np.mean(values**2))) if values.size else float("nan")
