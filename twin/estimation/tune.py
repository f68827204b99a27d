"""Process and measurement noise from historical batches: the multipliers that make their innovations most likely.

The log-likelihood of a batch is the sum over its readings of ln N(innovation; 0, S), each conditional on all before it
(prediction-error decomposition, Schweppe 1965). A wild reading costs a fixed amount: it neither decides what the noise is
nor rewards a filter that is too sure of itself. Noises are scaled in groups, `Knob`, and the logarithm
of every multiplier carries a weak normal prior about 0, so that a knob of which the data say nothing stays where it was.
The search is COBYQA (Ragonneau 2022): trust regions, quadratic models, no derivatives.

Only the noise is tuned: kinetics, initial state and sensor errors at calibration stay as configured.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize

from twin.batch import start
from twin.bioreactor import Coordinates
from twin.estimation.screen import Innovation
from twin.evidence import Measurement
from twin.history import Batch, Checkpoint, absorb, instants
from twin.process import Process
from twin.sensors import SensorError

PULL = 1.0
"""Standard deviation of the prior of ln multiplier: a factor of e either way is nothing unusual."""

REACH = 3.0
"""Largest |ln multiplier| looked at."""

PROBE = 0.3
"""Step of ln multiplier with which the curvature of the likelihood is first felt for."""

SETTLED = 1.0
"""A search that gains less [nats] has settled: no likelihood ratio would tell the difference."""

ENOUGH = 8
"""A sensor with fewer readings in all batches is left as it is."""

MINUTE = 1.0 / 1440.0


class Knob(NamedTuple):
    """Noises that are scaled together."""

    name: str
    noise: tuple[str, ...] = ()  # process noise of these `Coordinates`
    sd: tuple[str, ...] = ()  # noise of readings of these channels
    walk: tuple[str, ...] = ()  # walk of the errors of these channels' sensors
    parameters: bool = False  # walk of the donor parameters
    restless: bool = False  # walk of those that have one of their own


KNOBS = (
    Knob("growth", noise=("viable",)),
    Knob("death", noise=("dead",)),
    Knob("carbon", noise=("glucose", "lactate")),
    Knob("nitrogen", noise=("glutamine", "ammonia")),
    Knob("car_odds", noise=("car_odds",)),
    Knob("exhaustion", noise=("exhausted",)),
    Knob("strong_ion", noise=("strong_ion",)),
    Knob("volume", noise=("volume",)),
    Knob("parameter_walk", parameters=True),
    Knob("restless", restless=True),
    Knob("counter", sd=("viable_density", "dead_density", "total_density", "viability")),
    Knob("analyser", sd=("glucose", "lactate", "glutamine", "ammonia")),
    Knob("immunoassay", sd=("cytokine",)),
    Knob("cytometer", sd=("car_fraction", "exhausted_fraction")),
    Knob("capacitance", sd=("capacitance",)),
    Knob("capacitance_walk", walk=("capacitance",)),
    Knob("raman", sd=("raman_glucose", "raman_lactate")),
    Knob("raman_walk", walk=("raman_glucose", "raman_lactate")),
    Knob("ph", sd=("ph",)),
    Knob("ph_walk", walk=("ph",)),
    Knob("do", sd=("do",)),
    Knob("do_walk", walk=("do",)),
    Knob("oxygen_uptake", sd=("oxygen_uptake",)),
    Knob("oxygen_uptake_walk", walk=("oxygen_uptake",)),
    Knob("weight", sd=("weight",)),
)
"""One a device and one a kind of unexplained biology. Cytokine, doublings and activation keep their process noise: no
routine reading tells it from that of growth."""

_NEEDS: Mapping[str, frozenset[str]] = {
    "death": frozenset({"viability", "dead_density", "total_density"}),
    "carbon": frozenset({"glucose", "lactate", "raman_glucose", "raman_lactate"}),
    "nitrogen": frozenset({"glutamine", "ammonia"}),
    "car_odds": frozenset({"car_fraction"}),
    "exhaustion": frozenset({"exhausted_fraction"}),
    "strong_ion": frozenset({"ph"}),
    "volume": frozenset({"weight"}),
}
"""Channels of which a kind of process noise needs at least one, else nothing speaks of it."""


class Score(NamedTuple):
    """How likely the readings of some batches were."""

    log_likelihood: float
    readings: int
    nis: Mapping[str, float]  # mean over the readings of a channel, wild ones clipped; 1 when the noise is right

    @property
    def per_reading(self) -> float:
        """Nats a reading; NaN without any."""
        return self.log_likelihood / self.readings if self.readings else float("nan")


@dataclass(frozen=True, slots=True)
class Tuned:
    """What a search found."""

    process: Process  # with the tuned noise
    multipliers: Mapping[str, float]  # by knob
    evaluations: int
    converged: bool  # False: the evaluations were used up


def log_likelihood(innovations: Iterable[Innovation], process: Process) -> float:
    """Gaussian log-likelihood of innovations in nats; a wild reading costs what one at its gate would at least cost.

    At least: under the noise alone of `process`'s sensor. Gates and those noises do not depend on what is tuned.
    """
    found = [*innovations]
    s, nis = np.array([i.s for i in found]), np.array([i.nis for i in found])
    wild = np.array([np.log(2.0 * np.pi * x.sd**2) + x.gate**2 for x in (process.sensors[i.channel] for i in found)])
    return float(-0.5 * np.sum(np.fmin(np.log(2.0 * np.pi * s) + nis, wild)))


def prepared(batch: Batch) -> Batch:
    """A batch whose readings within one minute are of one instant: several times faster to go through again.

    Nothing moves by more than half a minute, and no reading past a change of the inputs or a calibration.
    """
    turns = np.array(sorted({*batch.course.since, *(when for when, _ in batch.course.calibrations)}))

    def moved(m: Measurement) -> Measurement:
        at = round(m.sampled_at / MINUTE) * MINUTE
        low, high = sorted((at, m.sampled_at))
        return m if ((turns >= low) & (turns <= high)).any() else replace(m, sampled_at=at)

    evidence = sorted(map(moved, batch.evidence), key=lambda m: (m.sampled_at, m.channel, m.id))
    return replace(batch, evidence=tuple(evidence), checkpoints=(), innovations=())


def innovations(batch: Batch, process: Process) -> list[Innovation]:
    """What the batch's readings would have said under another process: prior, filter and screen begin anew."""
    anew = replace(start(batch.id, process, batch.donor_prior, batch.filter.name), course=batch.course)
    point, found = Checkpoint(0, anew.prior), list[Innovation]()
    for group in instants(batch.evidence):
        point, new = absorb(anew, point, group)
        found += new
    return found


def score(process: Process, batches: Sequence[Batch], against: Process | None = None) -> Score:
    """Log-likelihood of all readings of `batches` under `process`; a batch keeps its own initial volume.

    What is compared with it needs the same `against` (None: `process`): it says what a wild reading costs.
    """
    found = [i for b in batches for i in innovations(b, in_vessel(process, b))]
    by_channel: dict[str, list[float]] = {}
    for i in found:
        by_channel.setdefault(i.channel, []).append(min(i.nis, process.sensors[i.channel].gate ** 2))
    nis = {k: float(np.mean(v)) for k, v in sorted(by_channel.items())}
    return Score(log_likelihood(found, against or process), len(found), nis)


def in_vessel(process: Process, batch: Batch) -> Process:
    volume = batch.process.initial.volume
    return replace(process, initial=process.initial._replace(volume=volume))


def relevant(process: Process, batches: Sequence[Batch], knobs: Sequence[Knob] = KNOBS) -> tuple[Knob, ...]:
    """The knobs of which the batches' readings can say something, sensors that the process lacks left out."""
    counts = Counter(m.channel for b in batches for m in b.evidence if m.channel in process.sensors and m.sd is None)
    measured = {m.channel for b in batches for m in b.evidence if m.channel in process.sensors}
    enough = {c for c, n in counts.items() if n >= ENOUGH}
    found: list[Knob] = []
    for knob in knobs:
        sd = tuple(c for c in knob.sd if c in enough)
        walk = tuple(c for c in knob.walk if c in enough and process.sensors[c].error is not None)
        spoken_of = bool(measured) and (knob.name not in _NEEDS or not measured.isdisjoint(_NEEDS[knob.name]))
        inner = knob.noise or knob.parameters or (knob.restless and process.restless)
        if sd or walk or (inner and spoken_of):
            found.append(knob._replace(sd=sd, walk=walk))
    return tuple(found)


def turned(process: Process, knobs: Sequence[Knob], multipliers: Iterable[float]) -> Process:
    """The process with the noises of every knob scaled."""
    noise, sensors, parameter_walk = process.noise._asdict(), dict(process.sensors), process.parameter_walk
    restless = dict(process.restless)
    for knob, factor in zip(knobs, map(float, multipliers), strict=True):
        for name in knob.noise:
            noise[name] *= factor
        for channel in knob.sd:
            sensors[channel] = replace(sensors[channel], sd=sensors[channel].sd * factor)
        for channel in knob.walk:
            error = sensors[channel].error
            if error is not None:
                wider = SensorError(error.name, error.sd, error.walk * factor)
                sensors[channel] = replace(sensors[channel], error=wider)
        if knob.parameters:
            parameter_walk *= factor
        if knob.restless:
            restless = {name: walk * factor for name, walk in restless.items()}
    tuned = replace(process, noise=Coordinates(**noise), parameter_walk=parameter_walk, restless=restless)
    return replace(tuned, sensors=sensors)


def tune(
    process: Process,
    batches: Sequence[Batch],
    knobs: Sequence[Knob] | None = None,
    *,
    evaluations: int = 250,
    pull: float = PULL,
    tick: Callable[[float], None] = lambda gained: None,
) -> Tuned:
    """The noise under which the readings of `batches` (as `prepared`) are most likely, prior included. Deterministic.

    Args:
        process: where the search begins and what the prior is about.
        batches: with all their evidence; filter and donor prior are the batches' own.
        knobs: what to scale; None: all that are `relevant`.
        evaluations: of the likelihood, at most; each goes through every batch once.
        pull: standard deviation of the prior of ln multiplier.
        tick: called after every evaluation with the best gain in log posterior so far [nats].

    Raises ValueError when there is nothing to tune.
    """
    chosen = relevant(process, batches, tuple(knobs or KNOBS))
    if not chosen:
        raise ValueError("no batch has a reading whose channel has a sensor in the process")
    if evaluations < (least := 4 * len(chosen) + 8):
        raise ValueError(f"evaluations: {len(chosen)} knobs need {least} or more, not {evaluations}")
    search = _Search(process, chosen, batches, pull, tick)
    logs = np.zeros(len(chosen))
    for _ in range(2):
        logs = np.clip(logs + search.matched(logs), -REACH, REACH)
    begin, scale = search.probed(logs)
    low, high = ((np.full(len(chosen), edge) - begin) / scale for edge in (-REACH, REACH))
    found = minimize(
        lambda z: search.loss(begin + scale * z), np.zeros(len(chosen)), method="COBYQA", bounds=np.column_stack([low, high]),
        options={"maxfev": evaluations - search.spent, "initial_tr_radius": 2.0, "final_tr_radius": 0.3},
        callback=search.settled,
    )  # fmt: skip
    multipliers = np.exp(search.best_at)
    return Tuned(
        turned(process, chosen, multipliers),
        {k.name: float(m) for k, m in zip(chosen, multipliers, strict=True)},
        search.spent,
        search.rests or bool(found.success),
    )


class _Search:
    """The log posterior of ln multipliers, and what has been seen of it."""

    def __init__(
        self,
        process: Process,
        knobs: Sequence[Knob],
        batches: Sequence[Batch],
        pull: float,
        tick: Callable[[float], None],
    ) -> None:
        self.process, self.knobs, self.batches, self.pull, self.tick = process, knobs, batches, pull, tick
        self.spent, self.reference, self.best, self.best_at = 0, 0.0, np.inf, np.zeros(len(knobs))
        self.course: list[float] = []  # the best so far, by evaluation
        self.felt, self.rests = 0, False  # evaluations before the quadratic model; whether the search has settled
        self.reference, self.best = self.loss(self.best_at), 0.0

    def loss(self, logs: np.ndarray) -> float:
        """Negative log posterior [nats], less than 0 where it is better than the configured noise."""
        return self._loss(logs)[0]

    def matched(self, logs: np.ndarray) -> np.ndarray:
        """Step of ln multiplier that makes mean squared innovations what they should be (Mehra 1972): half to twice.

        Of the noise of readings; 0 for other knobs. A place to begin, since process noise shows in innovations as well.
        """
        _, process, found = self._loss(logs)
        steps = np.zeros(len(self.knobs))
        for k, knob in enumerate(self.knobs):
            excess = [
                (i.residual**2 - i.s) / process.sensors[i.channel].sd ** 2
                for i in found
                if i.channel in knob.sd and i.ratio < 1.0
            ]
            if excess:
                steps[k] = 0.5 * np.log(np.clip(1.0 + np.mean(excess), 0.25, 4.0))
        return steps

    def probed(self, logs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where a parabola through three points a knob has its top, and the standard deviation of ln multiplier there."""
        centre = self.loss(logs)
        steps, scale = np.zeros(logs.size), np.zeros(logs.size)
        for k in range(logs.size):
            probe = np.zeros(logs.size)
            probe[k] = PROBE
            up, down = self.loss(logs + probe), self.loss(logs - probe)
            curvature = max((up + down - 2.0 * centre) / PROBE**2, 1.0 / self.pull**2)
            steps[k] = np.clip((down - up) / (2.0 * PROBE * curvature), -2.0 * PROBE, 2.0 * PROBE)
            scale[k] = curvature**-0.5
        self.loss(np.clip(logs + steps, -REACH, REACH))
        self.felt = self.spent
        return self.best_at, np.minimum(scale, PROBE)

    def settled(self, _: np.ndarray) -> None:
        """Ends the search once two evaluations a knob, the model's first points aside, have gained less than `SETTLED`."""
        span = 2 * len(self.knobs)
        if self.spent > self.felt + 2 * span and self.course[-1 - span] - self.best < SETTLED:
            self.rests = True
            raise StopIteration

    def _loss(self, logs: np.ndarray) -> tuple[float, Process, list[Innovation]]:
        process = turned(self.process, self.knobs, np.exp(logs))
        found = [i for b in self.batches for i in innovations(b, in_vessel(process, b))]
        loss = (
            0.5 * float(np.sum(np.square(logs))) / self.pull**2 - log_likelihood(found, self.process) - self.reference
        )
        self.spent += 1
        if loss < self.best:
            self.best, self.best_at = loss, np.array(logs)
        self.course.append(self.best)
        self.tick(-self.best if self.spent > 1 else 0.0)
        return loss, process, found
