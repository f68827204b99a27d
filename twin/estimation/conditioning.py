"""What can be done to a Gaussian belief at one instant: taken to a reading, widened, a sensor's error let go.

A belief and the readings that it predicts are one joint Gaussian, `twin.estimation.filters.Outlook`. When any of this is done
is for `twin.estimation.screen` to say.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg.blas import dger  # pyright: ignore[reportAttributeAccessIssue]

from twin.estimation.belief import Belief, Layout
from twin.estimation.filters import Outlook, symmetric
from twin.sensors import SensorError

INFLATE = 9.0
"""The predicted variance of the contradicting reading grows by this factor when the state is held wrong."""


def state_of(joint: Outlook, belief: Belief, n: int) -> Belief:
    """The coordinates of a joint Gaussian as a belief at the instant of `belief`."""
    return Belief(belief.time, joint.mean[:n], symmetric(joint.cov[:n, :n]), belief.repairs)


def condition(joint: Outlook, row: int, y: float, r: float) -> Outlook:
    """Gaussian conditioning of a joint Gaussian on a noisy reading `y` of its coordinate `row`."""
    return conditioned(Outlook(joint.mean.copy(), joint.cov.copy()), row, y, r)


def conditioned(joint: Outlook, row: int, y: float, r: float) -> Outlook:
    """As `condition`, in place: a third of the cost. What was given is spent."""
    mean, cov = joint
    column = cov[:, row].copy()
    s = float(column[row]) + r
    mean += column * ((y - float(mean[row])) / s)
    return Outlook(mean, dger(-1.0 / s, column, column, a=cov.T, overwrite_a=True).T)


def widened(belief: Belief, cross: np.ndarray, variance: float, layout: Layout, inflate: float = INFLATE) -> Belief:
    """Widened by rank one along what the reading depends on of state and donor; sensor errors are not touched."""
    doubt = cross.copy()
    doubt[layout.error_start :] = 0.0
    cov = belief.cov + (inflate - 1.0) / max(float(variance), 1e-300) * np.outer(doubt, doubt)
    return Belief(belief.time, belief.mean, cov, belief.repairs)


def let_go(belief: Belief, error: SensorError, layout: Layout) -> Belief:
    """The sensor's own error is at least as uncertain as at calibration again, about where it is believed to be."""
    cov, i = belief.cov.copy(), layout.index(error.name)
    cov[i, i] = max(cov[i, i], error.sd**2)
    return Belief(belief.time, belief.mean, cov, belief.repairs)
