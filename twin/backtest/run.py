"""Leave one group out: one-step-ahead and from-day-k predictions of the twin's filter against the baselines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.stats import norm

from twin.backtest.learn import effective, learn, passes
from twin.backtest.steps import Step, expected_increment, mean_increments, on_scale, rmse, scored_channels, steps
from twin.batch import Batch, apply, assimilate, believe_at, control_at, medium_at, start
from twin.belief import Z90, Belief
from twin.donors.prior import DonorPrior
from twin.estimator import Datum
from twin.model import Drive
from twin.process import Process
from twin.records import RecordedBatch
from twin.sensors import CHANNELS

HORIZON_DAYS = (3.0, 6.0, 9.0)
"""Days from which the rest of a batch is forecast."""


class BacktestError(ValueError):
    """Records that cannot be backtested; one line with the remedy."""


class Prediction(NamedTuple):
    """Predicted reading on the scale of the scores, noise of the reading included, and what was read."""

    step: Step
    mean: float
    sd: float
    persistence: float  # what the baselines predicted
    group_mean: float
    since: float  # newest evidence it rests on [d]

    @property
    def error(self) -> float:
        return self.step.after - self.mean

    @property
    def covered(self) -> bool:
        """Whether the reading lies in the 90 % interval."""
        return abs(self.error) <= Z90 * self.sd

    @property
    def crps(self) -> float:
        """Continuous ranked probability score of the Gaussian prediction (Gneiting 2005)."""
        z = self.error / self.sd
        return float(self.sd * (z * (2 * norm.cdf(z) - 1) + 2 * norm.pdf(z) - 1 / np.sqrt(np.pi)))


@dataclass(frozen=True, slots=True)
class ChannelScore:
    """Errors of one channel over all left-out groups; `scale` is ln or linear, errors are on it."""

    channel: str
    scale: str
    n: int
    rmse: float
    coverage90: float
    persistence: float
    group_mean: float
    crps: float


@dataclass(frozen=True, slots=True)
class HorizonScore:
    """Forecasts of ln viable density from one day on, for readings so many days ahead."""

    from_day: float
    ahead_low: float  # [d]
    ahead_high: float  # [d]
    n: int
    rmse_log: float
    mean_relative_error: float  # mean of |predicted - read| / read, predicted at the median
    coverage90: float
    persistence: float
    group_mean: float


@dataclass(frozen=True, slots=True)
class Backtest:
    """The outcome: scores, by-group errors, every prediction, and the priors that made them."""

    one_step: tuple[ChannelScore, ...]
    horizon: tuple[HorizonScore, ...]
    by_group: dict[str, ChannelScore]  # viable density
    predictions: tuple[Prediction, ...]
    priors: dict[str, DonorPrior]  # by left-out group


def backtest(
    records: Sequence[RecordedBatch], process: Process, tick: Callable[[int, int], None] = lambda done, total: None,
    filter_name: str = "ukf",
) -> Backtest:  # fmt: skip
    """Leave one group out, for every group. `tick` is told how much of the work is done.

    Raises BacktestError for fewer than two groups or for no channel with two visits.
    """
    groups = sorted({r.group for r in records})
    if len(groups) < 2:
        raise BacktestError(f"leave-one-group-out needs two groups or more, got {groups}; check the group (or donor) column")
    channels = tuple(c for c in scored_channels(records) if c in process.sensors)
    if "viable_density" not in channels:
        raise BacktestError("no batch has two visits with viable_density that the process has a sensor for")
    prepared, names = effective(process, channels)
    done, total = 0, len(groups) * (passes() + 1)
    predictions: list[Prediction] = []
    ahead: list[Prediction] = []
    priors: dict[str, DonorPrior] = {}

    def progress() -> None:
        nonlocal done
        done += 1
        tick(done, total)

    for group in groups:
        training = [r for r in records if r.group != group]
        learnt = learn(prepared, training, names, progress, filter_name)
        priors[group] = learnt.prior
        means = {c: mean_increments(s for r in training for s in steps(r, c)) for c in channels}
        for record in (r for r in records if r.group == group):
            one, far = _predict(record, learnt.process, learnt.prior, channels, means, filter_name)
            predictions += one
            ahead += far
        progress()
    density = [p for p in predictions if p.step.channel == "viable_density"]
    return Backtest(
        tuple(s for c in channels if (s := _score(c, [p for p in predictions if p.step.channel == c])) is not None),
        tuple(_horizons(ahead)),
        {g: s for g in groups if (s := _score("viable_density", [p for p in density if p.step.group == g])) is not None},
        tuple(predictions),
        priors,
    )


def _predict(
    record: RecordedBatch, process: Process, prior: DonorPrior, channels: tuple[str, ...],
    means: dict[str, dict[int, float]] | dict[str, object], filter_name: str,
) -> tuple[list[Prediction], list[Prediction]]:  # fmt: skip
    """Walk through a batch visit by visit: predict, then look."""
    batch = start(record.id, process, prior, filter_name)
    for action in record.actions:
        batch = apply(batch, action)
    wanted = {(s.channel, s.end): s for c in channels for s in steps(record, c)}
    density = [s for s in steps(record, "viable_density")]
    expected: dict[str, dict[int, float]] = means  # type: ignore[assignment]
    one: list[Prediction] = []
    far: list[Prediction] = []
    days = list(HORIZON_DAYS)
    since = 0.0
    for at in sorted({m.sampled_at for m in record.final}):
        while days and at > days[0] + 0.5:
            far += _forecast(batch, density, since, expected["viable_density"]) if days[0] - 0.5 <= since else []
            days.pop(0)
        due = [s for c in channels if (s := wanted.get((c, at))) is not None]
        if due:
            belief = believe_at(batch, at)
            for s in due:
                mean, sd = _reading(batch, belief, s.channel)
                guess = s.before + expected_increment(s, expected[s.channel]) if expected[s.channel] else s.before
                one.append(Prediction(s, mean, sd, s.before, guess, since))
        for m in record.final:
            if m.sampled_at == at:
                batch = assimilate(batch, m)
        since = at
    return one, far


def _forecast(batch: Batch, density: Sequence[Step], since: float, means: dict[int, float]) -> list[Prediction]:
    """Every later count of the batch, predicted from what is known at `since`."""
    later = [s for s in density if s.end > since]
    found: list[Prediction] = []
    if not later:
        return found
    last, climbed = later[0].before, 0.0
    for s in later:
        climbed += expected_increment(s, means)
        mean, sd = _reading(batch, believe_at(batch, s.end), s.channel)
        found.append(Prediction(s, mean, sd, last, last + climbed, since))
    return found


def _reading(batch: Batch, belief: Belief, channel: str) -> tuple[float, float]:
    """Mean and standard deviation of a reading, from the filter's own innovation for a reading of 0."""
    sensor = batch.process.sensors[channel]
    drive = Drive(control_at(batch, belief.time), medium_at(batch, belief.time))
    _, innovation = batch.filter.update(belief, Datum(channel, 0.0, sensor.sd**2, float("inf")), drive, 0)
    mean = -innovation.residual  # of ln (reading + limit) on the log scale
    if CHANNELS[channel].scale == "log":
        mean = on_scale(channel, float(np.exp(mean)) - CHANNELS[channel].limit)
    return mean, float(np.sqrt(innovation.s))


def _score(channel: str, predictions: Sequence[Prediction]) -> ChannelScore | None:
    if not predictions:
        return None
    return ChannelScore(
        channel, "ln" if CHANNELS[channel].scale == "log" else "linear", len(predictions),
        rmse(p.error for p in predictions), float(np.mean([p.covered for p in predictions])),
        rmse(p.step.after - p.persistence for p in predictions), rmse(p.step.after - p.group_mean for p in predictions),
        float(np.mean([p.crps for p in predictions])),
    )  # fmt: skip


def _horizons(ahead: Sequence[Prediction]) -> list[HorizonScore]:
    scores: list[HorizonScore] = []
    for day in HORIZON_DAYS:
        for low, high in ((0.5, 1.5), (1.5, 3.5), (3.5, 6.5), (6.5, 30.0)):
            mine = [p for p in ahead if abs(p.since - day) <= 0.5 and low <= p.step.end - p.since < high]
            if len(mine) < 4:
                continue
            relative = [abs(np.expm1(-p.error)) for p in mine]
            scores.append(
                HorizonScore(
                    day, low, high, len(mine), rmse(p.error for p in mine), float(np.mean(relative)),
                    float(np.mean([p.covered for p in mine])), rmse(p.step.after - p.persistence for p in mine),
                    rmse(p.step.after - p.group_mean for p in mine),
                )
            )  # fmt: skip
    return scores
