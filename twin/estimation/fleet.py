"""Hundreds of reactors at once: the unscented filter of `twin.estimation.filters` over stacked beliefs.

Same algorithm, same numbers as one reactor at a time, to rounding; only the loop over reactors is gone.
`predict_fleet` carries every reactor to its next instant, `look_fleet` says what its sensors would read there,
`fuse_fleet` conditions it on the readings that pass their gates. A reading that does not pass is reported and left
out: what to make of it is a matter of that reactor's own history, and `twin.estimation.screen` rules on it.

Reactors share the layout of their coordinates and nothing else: each has its own process, drive and instant. One whose
belief is not finite stays so, alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple, TypeAlias

import numpy as np
from filterpy.kalman import MerweScaledSigmaPoints
from jaxtyping import Bool, Float, Int

from twin.bioreactor import (
    Control,
    Coordinates,
    Kinetics,
    Medium,
    State,
    Theta,
    Vessel,
    from_coordinates,
    to_coordinates,
)
from twin.estimation.belief import N_STATE, Belief, Layout
from twin.estimation.filters import root
from twin.estimation.model import BioreactorModel, initial_belief, make_layout
from twin.inputs import IDLE, Drive
from twin.integrate import FLOOR, rk4, substeps
from twin.native.columns import Columns
from twin.process import Process
from twin.transition import N_CELL, N_THETA, N_VESSEL, flat, step_function

SPREAD = float(np.sqrt(3.0))  # of the sigma points, as in `twin.estimation.filters.ukf`
COLUMNS = 2048
"""Sigma points that are worked on at once: so many stay in the cache of a core."""
QUIET = np.errstate(all="ignore")
"""A belief that is not finite says so itself (`Beliefs.finite`), and passes no gate."""


@dataclass(frozen=True, slots=True, eq=False)
class Beliefs:
    """Beliefs of R reactors over one layout of n coordinates."""

    time: Float[np.ndarray, " R"]  # [d since inoculation], of each
    mean: Float[np.ndarray, "R n"]
    cov: Float[np.ndarray, "R n n"]
    repairs: Int[np.ndarray, " R"]

    def __len__(self) -> int:
        return self.time.size

    def __getitem__(self, reactor: int) -> Belief:
        """The belief of one reactor."""
        return Belief(
            float(self.time[reactor]), self.mean[reactor].copy(), self.cov[reactor].copy(), int(self.repairs[reactor])
        )

    def __iter__(self) -> Iterator[Belief]:
        return (self[i] for i in range(len(self)))

    def replaced(self, reactor: int, belief: Belief) -> Beliefs:
        """These beliefs with that of one reactor put in its place: what its screen, or its replay, made of it."""
        time, mean, cov, repairs = self.time.copy(), self.mean.copy(), self.cov.copy(), self.repairs.copy()
        time[reactor], mean[reactor], cov[reactor] = belief.time, belief.mean, belief.cov
        repairs[reactor] = belief.repairs
        return Beliefs(time, mean, cov, repairs)

    @property
    def finite(self) -> Bool[np.ndarray, " R"]:
        """Whether each belief is of numbers."""
        return np.logical_and(np.isfinite(self.mean).all(1), np.isfinite(self.cov).all((1, 2)))


def stack(beliefs: Sequence[Belief]) -> Beliefs:
    """Beliefs of one layout, stacked. Raises ValueError where their sizes differ or there is none."""
    if len({b.mean.size for b in beliefs}) != 1:
        raise ValueError(f"beliefs of one size are expected, got sizes {sorted({b.mean.size for b in beliefs})}")
    return Beliefs(
        np.array([b.time for b in beliefs], dtype=float),
        np.array([b.mean for b in beliefs]),
        np.array([b.cov for b in beliefs]),
        np.array([b.repairs for b in beliefs], dtype=int),
    )


class Fleet:
    """The models of R reactors, the stacked counterpart of `BioreactorModel`; immutable after construction.

    Raises ValueError where there is no process, or the sensors of one have other errors than the layout.
    """

    def __init__(self, processes: Sequence[Process], layout: Layout) -> None:
        if not processes:
            raise ValueError("a fleet of one reactor or more is expected, got none")
        self.processes, self.layout = tuple(processes), layout
        kinds = {id(p): p for p in self.processes}
        for process in kinds.values():
            if make_layout(process, layout.parameters) != layout:
                raise ValueError(f"process {process.name!r}: its sensors have other errors than {list(layout.errors)}")
        models = {key: BioreactorModel(p, layout) for key, p in kinds.items()}
        members = np.array([id(p) for p in self.processes])
        self.kinds = [(model, np.flatnonzero(members == key)) for key, model in models.items()]
        self.theta = np.empty((N_THETA, len(self.processes)))
        self.noise = np.empty((len(self.processes), layout.size, layout.size))  # per day
        parameters = np.zeros(len(layout.parameters))
        for model, rows in self.kinds:
            anywhere = initial_belief(model.process, layout, parameters, np.diag(parameters))
            self.theta[:, rows] = flat(model.process.theta)[:, None]
            self.noise[rows] = model.process_noise(anywhere, 1.0)
        self.learnt = [Kinetics._fields.index(name) for name in layout.parameters]
        points = MerweScaledSigmaPoints(layout.size, alpha=1.0, beta=2.0, kappa=3.0 - layout.size)
        self.weight = float(points.Wc[-1])  # of every sigma point but the central one
        self.excess = float(np.sum(points.Wc)) - 2.0

    def __len__(self) -> int:
        return len(self.processes)


class Outlooks(NamedTuple):
    """Predicted readings of k channels (noise apart) of R reactors, and how they go with the coordinates."""

    mean: Float[np.ndarray, "R k"]  # on the compared scale of each channel
    cov: Float[np.ndarray, "R k k"]
    cross: Float[np.ndarray, "R n k"]  # covariance of the coordinates with them


class Innovations(NamedTuple):
    """What readings said against what was expected of them, [R, k]; NaN where there was none."""

    residual: Float[np.ndarray, "R k"]  # on the compared scale
    s: Float[np.ndarray, "R k"]  # its variance under the model
    ratio: Float[np.ndarray, "R k"]  # |residual| over its gate: above 1 the reading is not believed
    accepted: Bool[np.ndarray, "R k"]


Span: TypeAlias = float | Float[np.ndarray, " R"]


@QUIET
def predict_fleet(fleet: Fleet, beliefs: Beliefs, drives: Sequence[Drive], until: Span) -> Beliefs:
    """Every belief carried to `until` [d], one for all or one for each, with the drive of its reactor held.

    Where no time passes a belief stays as it is. Reactors are stepped together where their spans take the same number
    of integration steps. Raises ValueError where the numbers of reactors differ.
    """
    if not len(fleet) == len(beliefs) == len(drives):
        raise ValueError(f"a fleet of {len(fleet)}, {len(beliefs)} beliefs and {len(drives)} drives do not match")
    time = np.maximum(np.asarray(until, dtype=float), beliefs.time)
    spans = time - beliefs.time
    steps = np.array([substeps(span) if span > 0.0 else 0 for span in spans])
    control = np.array([d.control for d in drives], dtype=float).T
    medium = np.array([d.medium for d in drives], dtype=float).T
    mean, cov, repairs = beliefs.mean.copy(), beliefs.cov.copy(), beliefs.repairs.copy()
    for n in np.unique(steps[steps > 0]):
        for rows in _blocks(np.flatnonzero(steps == n), fleet):
            drive = Drive(Control(*control[:, rows]), Medium(*medium[:, rows]))
            mean[rows], cov[rows], repaired = _carried(fleet, rows, mean[rows], cov[rows], drive, spans[rows], int(n))
            repairs[rows] += repaired
    return Beliefs(time, mean, cov, repairs)


@QUIET
def look_fleet(fleet: Fleet, beliefs: Beliefs, channels: Sequence[str]) -> Outlooks:
    """What the sensors of all reactors would read now. Raises KeyError for an unknown channel, ValueError as above."""
    if len(fleet) != len(beliefs):
        raise ValueError(f"a fleet of {len(fleet)}, {len(beliefs)} beliefs do not match")
    count, k, n = len(beliefs), len(channels), fleet.layout.size
    out = Outlooks(np.empty((count, k)), np.empty((count, k, k)), np.empty((count, n, k)))
    for model, members in fleet.kinds:
        drive = Drive(IDLE, model.process.theta.medium)  # no sensor reads the pumps or the medium that is fed
        for rows in _blocks(members, fleet):
            factor, _ = _roots(beliefs.cov[rows])
            points = _sigma_points(beliefs.mean[rows], factor)
            z = model.observe(points.reshape(n, -1), channels, drive).reshape(k, *points.shape[1:])
            out.mean[rows], out.cov[rows], paired = _moments(fleet, z.transpose(1, 0, 2))
            out.cross[rows] = factor @ paired.transpose(0, 2, 1)
    return out


@QUIET
def fuse_fleet(
    beliefs: Beliefs,
    outlooks: Outlooks,
    y: Float[np.ndarray, "R k"],
    r: Float[np.ndarray, "#R k"],
    gate: Float[np.ndarray, "#R k"],
) -> tuple[Beliefs, Innovations]:
    """Readings of one instant into the beliefs: those that pass ``|innovation| <= gate sqrt(S)``, channel by channel.

    `y` is on the compared scales, NaN where a reactor has no reading of a channel; `r` is the variance of the noise
    there, `gate` in standard deviations. As in `twin.estimation.screen.fuse` each reading is held against the belief
    that the accepted ones before it left.
    """
    count, k = y.shape
    r, gate = np.broadcast_to(r, y.shape), np.broadcast_to(gate, y.shape)
    expected, cov, cross = outlooks.mean.copy(), outlooks.cov.copy(), outlooks.cross.transpose(0, 2, 1).copy()
    residual, s, taken = np.empty((count, k)), np.empty((count, k)), np.zeros((count, k), dtype=bool)
    for j in range(k):
        s[:, j] = cov[:, j, j] + r[:, j]
        residual[:, j] = y[:, j] - expected[:, j]
        taken[:, j] = np.abs(residual[:, j]) <= gate[:, j] * np.sqrt(s[:, j])  # a NaN is not taken
        # what later readings have in common with this one, where it is taken in
        share = np.where(taken[:, j, None], cov[:, j, j + 1 :] / s[:, j, None], 0.0)
        expected[:, j + 1 :] += share * np.where(taken[:, j], residual[:, j], 0.0)[:, None]
        cov[:, j + 1 :, j + 1 :] -= share[:, :, None] * cov[:, None, j, j + 1 :]
        cross[:, j + 1 :] -= share[:, :, None] * cross[:, None, j]
    ratio = np.abs(residual) / (gate * np.sqrt(s))
    # each reading's own part: along `told`, orthogonal to the readings before it
    told = np.where(taken[:, :, None], cross / np.sqrt(s)[:, :, None], 0.0)
    by = np.where(taken, residual / np.sqrt(s), 0.0)
    mean, after = beliefs.mean + (by[:, None, :] @ told)[:, 0], np.empty_like(beliefs.cov)
    for i in range(0, count, 32):
        part = told[i : i + 32]
        np.subtract(beliefs.cov[i : i + 32], part.transpose(0, 2, 1) @ part, out=after[i : i + 32])
    s[np.isnan(y)] = np.nan
    return Beliefs(beliefs.time, mean, after, beliefs.repairs), Innovations(residual, s, ratio, taken)


# --- blocks of reactors ------------------------------------------------------------------------------------------------


def _carried(
    fleet: Fleet, rows: np.ndarray, mean: np.ndarray, cov: np.ndarray, drive: Drive, spans: np.ndarray, n: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and covariance of some reactors `spans` days on in n steps, and which covariances had to be repaired."""
    factor, repaired = _roots(cov)
    moving = fleet.layout.error_start
    points = _sigma_points(mean, factor[:, :, :moving])  # points along the resting coordinates move as the centre does
    size, b, w = points.shape
    theta = _theta(fleet, rows, points)
    theta[-len(Medium._fields) :] = np.repeat(np.array(drive.medium), w, axis=1)
    state, control = _physical(points.reshape(size, -1)), np.repeat(np.array(drive.control), w, axis=1)
    carried = _stepped(state, control, theta, np.repeat(spans / n, w), n)
    moved = np.log(np.array(to_coordinates(carried))).reshape(N_STATE, b, w)
    centre, own, paired = _moments(fleet, moved.transpose(1, 0, 2))
    with_rest = paired @ factor[:, N_STATE:, :moving].transpose(0, 2, 1)
    out_mean, out = mean.copy(), cov.copy()
    out_mean[:, :N_STATE] = centre
    for i in np.flatnonzero(repaired):
        out[i] = factor[i] @ factor[i].T
    out[:, :N_STATE, :N_STATE], out[:, :N_STATE, N_STATE:] = own, with_rest
    out[:, N_STATE:, :N_STATE] = with_rest.transpose(0, 2, 1)
    out += fleet.noise[rows] * spans[:, None, None]
    return out_mean, out, repaired


def _roots(cov: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lower Cholesky factors [b, n, n], and which covariances had lost definiteness and were repaired."""
    try:
        return np.linalg.cholesky(cov), np.zeros(len(cov), dtype=bool)
    except np.linalg.LinAlgError:  # one of them: find it, mend it
        each = [root(c) for c in cov]
        return np.array([factor.T for factor, _ in each]), np.array([mended for _, mended in each])


def _sigma_points(mean: np.ndarray, factor: np.ndarray) -> Float[np.ndarray, "n b w"]:
    """Points of all reactors: centre, + and - along each column of the factor."""
    b, n, k = factor.shape
    points = np.empty((n, b, 2 * k + 1))
    offsets, centre = SPREAD * factor.transpose(1, 0, 2), mean.T[:, :, None]
    points[:, :, :1] = centre
    np.add(centre, offsets, out=points[:, :, 1 : k + 1])
    np.subtract(centre, offsets, out=points[:, :, k + 1 :])
    return points


def _theta(fleet: Fleet, rows: np.ndarray, points: np.ndarray) -> Float[np.ndarray, "p m"]:
    """Flat theta of every point; the medium is the process's own."""
    theta = np.repeat(fleet.theta[:, rows], points.shape[2], axis=1)
    learnt = points[N_STATE : fleet.layout.error_start]
    theta[fleet.learnt] = np.exp(learnt).reshape(len(learnt), -1)
    return theta


def _physical(columns: np.ndarray) -> State:
    return from_coordinates(Coordinates(*np.exp(columns[:N_STATE])))


def _unflat(theta: np.ndarray) -> Theta:
    cell, vessel = N_CELL, N_CELL + N_VESSEL
    return Theta(Kinetics(*theta[:cell]), Vessel(*theta[cell:vessel]), Medium(*theta[vessel:]))


@cache
def _steps() -> Columns:
    return Columns(step_function(), (), {0: 0})


def _stepped(x: State, u: np.ndarray, theta: np.ndarray, dt: np.ndarray, n: int) -> State:
    """n steps of `twin.integrate`, of `dt` days in each column [m]; of so many columns NumPy is the second fastest."""
    if _steps().compiled:
        return State(*_steps()(np.array(x), u, theta, dt[None], times=n)[0])
    control, known = Control(*u), _unflat(theta)
    for _ in range(n):
        x = State(*(np.maximum(a, low) for a, low in zip(rk4(x, control, known, dt), FLOOR, strict=True)))
    return x


def _moments(fleet: Fleet, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of values [b, k, w] at sigma points: mean [b, k], covariance [b, k, k], and half of what pairs differ by [b, k, n].

    The weights of the library in another order of summation: about the central point, so that no weight is negative.
    """
    d = values - values[:, :, :1]
    off = fleet.weight * d.sum(2)
    pairs, k = d[:, :, 1:], values.shape[2] // 2
    own = fleet.weight * (pairs @ pairs.transpose(0, 2, 1)) + fleet.excess * off[:, :, None] * off[:, None, :]
    return values[:, :, 0] + off, own, fleet.weight * SPREAD * (d[:, :, 1 : k + 1] - d[:, :, k + 1 :])


def _blocks(rows: np.ndarray, fleet: Fleet) -> Iterator[np.ndarray]:
    each = max(1, COLUMNS // (2 * fleet.layout.size + 1))
    return (rows[i : i + each] for i in range(0, rows.size, each))
