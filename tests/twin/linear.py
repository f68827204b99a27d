"""A linear reactor for tests that know the answer: every belief of it is one large Gaussian, solved at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from types import MappingProxyType
from typing import Any

import numpy as np
from scipy.linalg import block_diag, expm

from twin.batch import start
from twin.config import load_config
from twin.donors.prior import preset_prior
from twin.estimation.belief import Belief, Layout
from twin.estimation.filters import FILTERS
from twin.evidence import ControlApplied, Event, Measurement
from twin.history import Batch, replay
from twin.inputs import Drive, course
from twin.process import Process
from twin.sensors import Sensor, SensorError

PROCESS = load_config("car_nk")
LAYOUT = Layout(("mu_max",), ("raman_glucose_offset", "do_offset"))
N = LAYOUT.size
EMPTY: Mapping[str, np.ndarray] = MappingProxyType({})


def sensor(channel: str, sd: float, error: str | None, gate: float = 1e3) -> Sensor:
    return Sensor(channel, "", sd, gate, 1.0, SensorError(error, 0.7, 0.1) if error else None, "made up", "laboratory")


SENSORS = {
    "raman_glucose": sensor("raman_glucose", 0.3, "raman_glucose_offset"),
    "raman_lactate": sensor("raman_lactate", 0.2, None),
    "do": sensor("do", 0.5, "do_offset"),
}


class Linear:
    """dx = (F x + B u) dt + dw with constant matrices, exactly discretised; errors walk. Readings are rows of H."""

    def __init__(self, rng: np.random.Generator, noise: float = 0.3) -> None:
        moving = LAYOUT.error_start
        self.changing, self.moving = 13, moving
        self.F = np.zeros((N, N))
        self.F[:13, :moving] = 0.4 * rng.normal(size=(13, moving)) / np.sqrt(N) - 0.3 * np.eye(13, moving)
        self.B = np.zeros(N)
        self.B[:13] = rng.normal(size=13)
        factor = block_diag(rng.normal(size=(13, 13)) / 4, 0.1, 0.2, 0.3)
        self.Q = noise * factor @ factor.T
        self.H = {c: rng.normal(size=N) * (np.arange(N) < 13) for c in SENSORS}
        self.H["raman_glucose"][LAYOUT.index("raman_glucose_offset")] = 1.0
        self.H["do"][LAYOUT.index("do_offset")] = 1.0

    def discrete(self, span: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Transition, response to a unit input, and noise over a span (Van Loan 1978)."""
        wide = np.zeros((2 * N, 2 * N))
        wide[:N, :N], wide[:N, N:], wide[N:, N:] = -self.F, self.Q, self.F.T
        blocks = expm(wide * span)
        transition = blocks[N:, N:].T
        forced = np.zeros((N + 1, N + 1))
        forced[:N, :N], forced[:N, N] = self.F, self.B
        noise = transition @ blocks[:N, N:]
        return transition, expm(forced * span)[:N, N], (noise + noise.T) / 2

    def advance(self, points: np.ndarray, drive: Drive, span: float) -> np.ndarray:
        transition, response, _ = self.discrete(span)
        wide = np.vstack([points, np.zeros((N - points.shape[0], points.shape[1]))])
        return (transition @ wide + (response * drive.control.perfusion)[:, None])[: points.shape[0]]

    def advance_jacobian(self, mean: np.ndarray, drive: Drive, span: float) -> tuple[np.ndarray, np.ndarray]:
        return self.advance(mean[:, None], drive, span)[:, 0], self.discrete(span)[0]

    def process_noise(self, belief: Belief, span: float) -> np.ndarray:
        return self.discrete(span)[2]

    def observe(self, points: np.ndarray, channels: Sequence[str], drive: Any) -> np.ndarray:
        return np.array([self.H[c] @ points for c in channels])

    def observe_jacobian(self, mean: np.ndarray, channels: Sequence[str], drive: Any) -> tuple[np.ndarray, np.ndarray]:
        rows = np.array([self.H[c] for c in channels])
        return rows @ mean, rows


def prior(rng: np.random.Generator) -> Belief:
    factor = block_diag(rng.normal(size=(14, 14)), 0.7, 0.7)
    return Belief(0.0, rng.normal(size=N), factor @ factor.T + 0.05 * np.eye(N))


def linear_batch(
    model: Linear,
    believed: Belief,
    measurements: Sequence[Measurement],
    facts: Sequence[ControlApplied | Event] = (),
    filter_name: str = "ukf",
    process: Process | None = None,
) -> Batch:
    """A batch of the linear reactor with all its evidence taken in."""
    known = process or replace(PROCESS, sensors=SENSORS)
    empty = start("linear", PROCESS, preset_prior(PROCESS, ("mu_max",)))
    applied = [f for f in facts if isinstance(f, ControlApplied)]
    events = [f for f in facts if isinstance(f, Event)]
    evidence = sorted(measurements, key=lambda m: (m.sampled_at, m.channel, m.id))
    batch = replace(
        empty, process=known, layout=LAYOUT, filter=FILTERS[filter_name](model, N), prior=believed,
        course=course(PROCESS.theta.medium, applied, events), evidence=tuple(evidence),
    )  # fmt: skip
    return replay(batch, 0)


class Everything:
    """The joint Gaussian of the coordinates at all nodes, before and given all readings, in one go: no recursion back.

    `jumps` are covariances added just before a reading, by its id; readings `without` are left out.
    """

    def __init__(
        self, batch: Batch, model: Linear, times: Sequence[float] = (), jumps: Mapping[str, np.ndarray] = EMPTY,
        without: Sequence[str] = (),
    ) -> None:  # fmt: skip
        changes = [*batch.course.since, *(when for when, _ in batch.course.calibrations)]
        stops = sorted({0.0, *changes, *times, *(m.sampled_at for m in batch.evidence)})
        self.nodes, self.joint = [0.0], (batch.prior.mean, batch.prior.cov)
        seen: list[tuple[int, Measurement]] = []  # readings and the nodes they are of
        for a, b in pairwise([0.0, *stops]):
            if b > a:
                transition, response, noise = model.discrete(b - a)
                push = response * batch.course.at(a).control.perfusion
                for when, channel in batch.course.calibrations:
                    if when == b:
                        i = LAYOUT.index(f"{channel}_offset")
                        transition[i], push[i], noise[i], noise[:, i] = 0.0, 0.0, 0.0, 0.0
                        noise[i, i] = 0.7**2
                self._move(b, transition, push, noise)
            for m in batch.evidence:
                if m.sampled_at == b and m.id in jumps:
                    self._move(b, np.eye(N), np.zeros(N), jumps[m.id])
                if m.sampled_at == b and m.id not in without:
                    seen.append((len(self.nodes) - 1, m))
        mean, cov = self.joint
        rows = np.zeros((len(seen), mean.size))
        for row, (k, m) in zip(rows, seen, strict=True):
            row[N * k : N * (k + 1)] = model.H[m.channel]
        noise = np.diag([batch.process.sensors[m.channel].sd ** 2 for _, m in seen])
        self.expected, self.spread = rows @ mean, rows @ cov @ rows.T + noise  # of the readings
        gain = np.linalg.solve(self.spread, rows @ cov).T
        self.mean = mean + gain @ (np.array([m.value for _, m in seen]) - self.expected)
        self.cov = cov - gain @ rows @ cov

    def _move(self, to: float, transition: np.ndarray, push: np.ndarray, noise: np.ndarray) -> None:
        mean, cov = self.joint
        n = mean.size
        onward = transition @ cov[n - N :]
        corner = onward[:, n - N :] @ transition.T + noise
        self.joint = np.append(mean, transition @ mean[n - N :] + push), np.block([[cov, onward.T], [onward, corner]])
        self.nodes.append(to)

    def at(self, t: float) -> tuple[np.ndarray, np.ndarray]:
        """Mean and covariance at the last node of an instant."""
        k = len(self.nodes) - 1 - self.nodes[::-1].index(t)
        here = slice(N * k, N * (k + 1))
        return self.mean[here], self.cov[here, here]
