"""Is it worth sharing between groups? Partial pooling beside none and complete, by leave-one-group-out predictive density.

Partial: a new group's kinetics are drawn from a population that the training groups teach. Complete: one set of kinetics and
one discrepancy for all groups, known as well as the training batches together tell. None: the preset, nothing learnt.

The score is the log density of every reading one visit ahead; summed over a batch that is the log density of its readings of
a channel, given what came before. Replicates of a group are not independent: groups are the units of the comparison.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import t as student

from twin.backtest.learn import Pooling
from twin.backtest.run import Backtest, Prediction

ALTERNATIVES: tuple[Pooling, ...] = ("complete", "none")


class Difference(NamedTuple):
    """Log predictive density of partial pooling less that of another, per reading, natural units (nats)."""

    channel: str
    other: Pooling
    readings: int
    groups: int
    partial: float  # mean of the groups' means
    alternative: float
    difference: float
    se: float  # paired, over groups; NaN for one
    better: int  # groups in which partial pooling is ahead

    @property
    def needed(self) -> float:
        """Standard errors that a difference has to exceed at 95 %, two-sided: Student's t with one less than the groups."""
        return float(student.ppf(0.975, self.groups - 1))

    @property
    def interval95(self) -> tuple[float, float]:
        """Student's 95 % interval of the mean difference over groups."""
        half = self.needed * self.se
        return self.difference - half, self.difference + half


def differences(partial: Backtest, others: Mapping[Pooling, Backtest]) -> tuple[Difference, ...]:
    """Every channel against every alternative, paired reading by reading.

    Raises ValueError where the backtests did not predict the same readings.
    """
    found: list[Difference] = []
    for other, result in others.items():
        if [p.step for p in partial.predictions] != [p.step for p in result.predictions]:
            raise ValueError(f"pooling {other} predicted other readings than partial pooling; compare one data set")
        for score in partial.one_step:
            here, there = (_by_group(b.predictions, score.channel) for b in (partial, result))
            gaps = np.array([np.mean(here[g]) - np.mean(there[g]) for g in here])
            found.append(
                Difference(
                    score.channel, other, score.n, gaps.size, _mean(here), _mean(there), float(gaps.mean()),
                    float(np.std(gaps, ddof=1) / np.sqrt(gaps.size)) if gaps.size > 1 else float("nan"), int((gaps > 0).sum()),
                )
            )  # fmt: skip
    return tuple(found)


def _by_group(predictions: Sequence[Prediction], channel: str) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for p in predictions:
        if p.step.channel == channel:
            found.setdefault(p.step.group, []).append(p.log_density)
    return found


def _mean(densities: dict[str, list[float]]) -> float:
    return float(np.mean([np.mean(values) for values in densities.values()]))
