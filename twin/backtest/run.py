"""Leave one group out: one-step-ahead and from-day-k predictions of the twin's filter against the baselines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from twin.backtest.learn import Counting, Learnt, Pooling, begun, effective, learn, passes
from twin.backtest.steps import Step, expected_increment, mean_increments, on_scale, rmse, scored_channels, steps
from twin.batch import Batch, assimilate, believe_at
from twin.donors.prior import DonorPrior
from twin.estimation.belief import Z90, Belief
from twin.process import Process
from twin.records import RecordedBatch
from twin.scores import crps_normal
from twin.sensors import CHANNELS

HORIZON_DAYS = (3.0, 6.0, 9.0)
"""Days from which the rest of a batch is forecast: from the last visit before the day plus HORIZON_SLACK."""
HORIZON_SLACK = 0.5  # d
AHEAD = ((0.5, 1.5), (1.5, 3.5), (3.5, 6.5), (6.5, 30.0))  # [d]


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
    balances: float = float("nan")  # what the twin would have predicted without its discrepancy

    @property
    def error(self) -> float:
        return self.step.after - self.mean

    @property
    def covered(self) -> bool:
        """Whether the reading lies in the 90 % interval."""
        return abs(self.error) <= Z90 * self.sd

    @property
    def log_density(self) -> float:
        """Of the reading under the Gaussian prediction, natural units."""
        return float(-0.5 * (np.log(2 * np.pi * self.sd**2) + (self.error / self.sd) ** 2))

    @property
    def crps(self) -> float:
        """Continuous ranked probability score of the Gaussian prediction (Gneiting 2005)."""
        return crps_normal(self.mean, self.sd, self.step.after)


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
    balances: float  # RMSE of the twin without its discrepancy: what the balances alone predict


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
    records: Sequence[RecordedBatch],
    process: Process,
    prior: DonorPrior | None = None,
    tick: Callable[[int, int], None] = lambda done, total: None,
    filter_name: str = "ukf",
    pooling: Pooling = "partial",
) -> Backtest:
    """Leave one group out, for every group. `tick` is told how much of the work is done; `pooling`: see `learn`.

    With `prior` nothing is learnt: `process` and the prior are used as they are, without a discrepancy, and only the
    baselines come from the other groups.
    Raises BacktestError for fewer than two groups or for no channel with two visits.
    """
    groups = sorted({r.group for r in records})
    if len(groups) < 2:
        raise BacktestError(f"leaving one group out needs two or more, got {groups}; check the group (or donor) column")
    channels = tuple(c for c in scored_channels(records) if c in process.sensors)
    if "viable_density" not in channels:
        raise BacktestError("no batch has two visits with viable_density, or the process has no sensor for it")
    prepared, names = effective(process, channels)
    done, total = 0, len(groups) * (1 if prior or pooling == "none" else passes() + 1)
    predictions: list[Prediction] = []
    ahead: list[Prediction] = []
    priors: dict[str, DonorPrior] = {}

    def progress() -> None:
        nonlocal done
        done += 1
        tick(done, total)

    for group in groups:
        training = [r for r in records if r.group != group]
        learnt = (
            learn(prepared, training, names, progress, filter_name, pooling)
            if prior is None
            else Learnt(process, prior, Counting(process.sensors["viable_density"].sd, 0.0), float("nan"))
        )
        priors[group] = learnt.prior
        means = {c: mean_increments(s for r in training for s in steps(r, c)) for c in channels}
        for record in (r for r in records if r.group == group):
            one, far = _walk(record, learnt, means, filter_name)
            plain, _ = _walk(record, replace(learnt, discrepancy={}), means, filter_name)
            predictions += [p._replace(balances=q.mean) for p, q in zip(one, plain, strict=True)]
            ahead += far
        progress()
    density = [p for p in predictions if p.step.channel == "viable_density"]
    by_group = {g: _score("viable_density", [p for p in density if p.step.group == g]) for g in groups}
    return Backtest(
        tuple(s for c in channels if (s := _score(c, [p for p in predictions if p.step.channel == c])) is not None),
        tuple(_horizons(ahead)),
        {g: s for g, s in by_group.items() if s is not None},
        tuple(predictions),
        priors,
    )


def _walk(
    record: RecordedBatch, learnt: Learnt, means: Mapping[str, Mapping[int, float]], filter_name: str
) -> tuple[list[Prediction], list[Prediction]]:
    """Through a batch visit by visit, predict, then look: predictions of the next visit, and of all later ones."""
    batch = begun(learnt, record, filter_name)
    noted = learnt.counting.applied(record)
    wanted = {(s.channel, s.end): s for c in means for s in steps(record, c)}
    density = steps(record, "viable_density")
    one: list[Prediction] = []
    far: list[Prediction] = []
    days = list(HORIZON_DAYS)
    since = 0.0
    for at in sorted({m.sampled_at for m in record.final}):
        while days and at > days[0] + HORIZON_SLACK:
            if days.pop(0) - HORIZON_SLACK <= since:
                far += _forecast(batch, learnt.counting, density, since, means["viable_density"])
        due = [s for c in means if (s := wanted.get((c, at))) is not None]
        belief = believe_at(batch, at) if due else batch.belief
        for s in due:
            mean, sd = _reading(batch, learnt.counting, belief, s.channel)
            guess = s.before + expected_increment(s, means[s.channel])
            one.append(Prediction(s, mean, sd, s.before, guess, since))
        for m in noted.final:
            if m.sampled_at == at:
                batch = assimilate(batch, m)
        since = at
    return one, far


def _forecast(
    batch: Batch, counting: Counting, density: Sequence[Step], since: float, means: Mapping[int, float]
) -> list[Prediction]:
    """Every later count of the batch, predicted from what is known at `since`."""
    later = [s for s in density if s.end > since]
    found: list[Prediction] = []
    climbed = 0.0
    for s in later:
        climbed += expected_increment(s, means)
        mean, sd = _reading(batch, counting, believe_at(batch, s.end), s.channel)
        found.append(Prediction(s, mean, sd, later[0].before, later[0].before + climbed, since))
    return found


def _reading(batch: Batch, counting: Counting, belief: Belief, channel: str) -> tuple[float, float]:
    """Mean and standard deviation of a reading to come."""
    ahead = batch.filter.look(belief, (channel,), batch.course.at(belief.time))
    mean, variance = float(ahead.mean[-1]), float(ahead.cov[-1, -1])  # of ln (reading + limit) on the log scale
    if CHANNELS[channel].scale == "log":
        mean = on_scale(channel, float(np.exp(mean)) - CHANNELS[channel].limit)
    noise = (
        counting.variance(float(np.exp(mean)))
        if channel == "viable_density"
        else batch.process.sensors[channel].sd ** 2
    )
    return mean, float(np.sqrt(variance + noise))


def _score(channel: str, predictions: Sequence[Prediction]) -> ChannelScore | None:
    if not predictions:
        return None
    return ChannelScore(
        channel, "ln" if CHANNELS[channel].scale == "log" else "linear", len(predictions),
        rmse(p.error for p in predictions), float(np.mean([p.covered for p in predictions])),
        rmse(p.step.after - p.persistence for p in predictions), rmse(p.step.after - p.group_mean for p in predictions),
        float(np.mean([p.crps for p in predictions])), rmse(p.step.after - p.balances for p in predictions),
    )  # fmt: skip


def _horizons(ahead: Sequence[Prediction]) -> list[HorizonScore]:
    scores: list[HorizonScore] = []
    for day in HORIZON_DAYS:
        for low, high in AHEAD:
            mine = [p for p in ahead if abs(p.since - day) <= HORIZON_SLACK and low <= p.step.end - p.since < high]
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
