"""The problems of `celltwin bench filter`, drawn once with a seed: car_nk, 15 min ahead, eight readings at one instant.

The belief is that of a batch on its third day, after readings every three hours of a virtual donor drawn from the prior.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from twin.batch import apply, assimilate, start
from twin.bioreactor import Control
from twin.config import load_config
from twin.donors.prior import preset_prior
from twin.estimation.belief import Belief, Layout
from twin.estimation.filters import Filter
from twin.estimation.fleet import Beliefs, Fleet, fuse_fleet, look_fleet, predict_fleet, stack
from twin.estimation.model import BioreactorModel
from twin.evidence import ControlApplied, Measurement
from twin.history import Batch
from twin.inputs import Drive
from twin.process import Process
from twin.sensors import CHANNELS

PROBES = ("capacitance", "raman_glucose", "raman_lactate", "ph", "do", "oxygen_uptake", "weight", "glucose")
QUARTER = 1.0 / 96.0  # d
START = 3.0  # d: the belief that is stepped
HELD = Control(perfusion=0.5, cytokine_dose=300.0)


@dataclass(frozen=True)
class Problem:
    """What every implementation is given."""

    process: Process
    layout: Layout
    model: BioreactorModel
    filters: tuple[Filter, Filter]  # ukf, ekf
    seed: int
    reactors: int

    @property
    def r(self) -> np.ndarray:
        """Variances of the eight readings on their compared scales [8]."""
        return np.square([self.process.sensors[c].sd for c in PROBES])

    @property
    def gate(self) -> np.ndarray:
        """Gates of the eight readings [8]."""
        return np.array([self.process.sensors[c].gate for c in PROBES])

    @property
    def noise(self) -> np.ndarray:
        """Process noise of a quarter of an hour [n, n]."""
        return self.model.process_noise(self.beliefs[0], QUARTER)

    @cached_property
    def fleet(self) -> Fleet:
        """The models of all reactors."""
        return Fleet([self.process] * self.reactors, self.layout)

    @cached_property
    def drives(self) -> tuple[Drive, ...]:
        """Of every reactor its own pump rates and medium; of the first, `HELD` and the process's medium."""
        rng, medium = np.random.default_rng([self.seed, 0]), self.process.theta.medium
        own = [
            Drive(HELD._replace(perfusion=float(p)), medium._replace(glucose=float(g)))
            for p, g in zip(rng.uniform(0.3, 0.8, self.reactors), rng.uniform(20.0, 30.0, self.reactors), strict=True)
        ]
        return (Drive(HELD, medium), *own[1:])

    @cached_property
    def donors(self) -> np.ndarray:
        """True coordinates of every reactor at inoculation [n, R], drawn from the prior."""
        prior, rng = self._prior, np.random.default_rng([self.seed, 1])
        return prior.mean[:, None] + np.linalg.cholesky(prior.cov) @ rng.standard_normal(
            (prior.mean.size, self.reactors)
        )

    @cached_property
    def beliefs(self) -> Beliefs:
        """Of every reactor, on day `START`."""
        return self._grown[0]

    @cached_property
    def readings(self) -> np.ndarray:
        """Of every reactor a quarter of an hour after `START`, on the compared scales [R, 8]."""
        return self._grown[1]

    @property
    def _prior(self) -> Belief:
        return start("bench", self.process, preset_prior(self.process)).prior

    @cached_property
    def _grown(self) -> tuple[Beliefs, np.ndarray]:
        rng = np.random.default_rng([self.seed, 2])
        beliefs, truth = stack([self._prior] * self.reactors), self.donors
        for hour in range(3, round(24 * START) + 1, 3):
            truth = self._truth(truth, 1.0 / 8.0)
            beliefs = predict_fleet(self.fleet, beliefs, self.drives, hour / 24.0)
            outlooks = look_fleet(self.fleet, beliefs, PROBES)
            beliefs, _ = fuse_fleet(beliefs, outlooks, self._read(truth, rng), self.r[None], self.gate[None])
        return beliefs, self._read(self._truth(truth, QUARTER), rng)

    def _truth(self, points: np.ndarray, span: float) -> np.ndarray:
        moved = [self.model.advance(points[:, i : i + 1], drive, span) for i, drive in enumerate(self.drives)]
        return np.concatenate(moved, axis=1)

    def _read(self, points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        z = self.model.observe(points, PROBES, self.drives[0]).T
        return z + np.sqrt(self.r) * rng.standard_normal(z.shape)

    # --- 24 h again ----------------------------------------------------------------------------------------------------

    @cached_property
    def day(self) -> tuple[Belief, np.ndarray]:
        """The belief of the first reactor on day `START`, and a day of its readings [96, 8] every quarter of an hour."""
        rng, truth = np.random.default_rng([self.seed, 3]), self.donors[:, :1]
        drive, rows = self.drives[0], list[np.ndarray]()
        truth = self.model.advance(truth, drive, START)
        for _ in range(96):
            truth = self.model.advance(truth, drive, QUARTER)
            z = self.model.observe(truth, PROBES, drive).T
            rows.append(z[0] + np.sqrt(self.r) * rng.standard_normal(len(PROBES)))
        return self.beliefs[0], np.array(rows)

    @cached_property
    def late(self) -> float:
        """A count of the sample drawn on day `START`, on the compared scale, that is told a day late."""
        belief, _ = self.day
        return float(self.model.observe(belief.mean[:, None], ("viable_density",), self.drives[0])[0, 0])

    def batch(self) -> tuple[Batch, Measurement]:
        """A batch that has seen the day, and the count that comes late."""
        belief, rows = self.day
        batch = replace(start("bench", self.process, preset_prior(self.process)), prior=belief)
        for name, rate in zip(HELD._fields, HELD, strict=True):
            batch = apply(batch, ControlApplied(name, 0.0, name, float(rate)))
        for k, row in enumerate(rows):
            at = START + (k + 1) * QUARTER
            for channel, y in zip(PROBES, row, strict=True):
                batch = assimilate(batch, Measurement(f"{channel}{k}", channel, value_of(channel, y), at, at))
        refused = [i for i in batch.innovations if not i.accepted]
        if refused:
            raise ValueError(f"seed {self.seed}: {refused[0]} is not accepted; take another seed")
        count = Measurement("late", "viable_density", value_of("viable_density", self.late), START, START + 1.0)
        return batch, count


def make_problem(seed: int = 1, reactors: int = 500) -> Problem:
    """The problem of car_nk for so many reactors."""
    process = load_config("car_nk")
    batch = start("bench", process, preset_prior(process), shadow="ekf")
    assert batch.shadow is not None  # noqa: S101 - asked for in the line above
    model = BioreactorModel(process, batch.layout)
    return Problem(process, batch.layout, model, (batch.filter, batch.shadow), seed, reactors)


def value_of(channel: str, y: float) -> float:
    """A reading on the compared scale, in the unit of its channel."""
    c = CHANNELS[channel]
    return float(np.exp(y)) - c.limit if c.scale == "log" else float(y)
