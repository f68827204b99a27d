"""Draws of a belief, put right where growth is curved.

A belief is Gaussian in the logarithms of state and kinetics, and growth is not linear in them: a replicative limit low
enough to have stopped a culture that is seen to grow keeps the weight that a straight line gives it. What the readings
inform of these coordinates together is how fast the cells grow now. So draws are proposed from the Gaussian and resampled
by how likely their own growth rate makes the readings, over how likely the tangent at the mean does. That takes out what
cannot be; it does not add what the Gaussian has no draws for, and it takes the mean as it is believed.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from twin.bioreactor import Theta, physiology
from twin.estimation.belief import N_STATE, Belief, Layout, draws, split

PROPOSED = 8
"""Gaussian draws a draw that is kept."""

HEAVIEST = 0.98
"""Weights above this quantile are cut down to it (truncated importance sampling, Ionides 2008)."""

STEP = 1e-4
"""Step of the differences [ln]."""


def informed_draws(
    belief: Belief, prior: Belief, layout: Layout, theta: Theta, n: int, rng: np.random.Generator
) -> Float[np.ndarray, "size n"]:
    """`n` joint draws of the coordinates of `belief`, one a column; plain draws where no reading has informed growth.

    How much the readings have said of ln growth is the precision of the belief less that of the kinetics under `prior`,
    both along the tangent. `theta` holds the kinetics that are not learnt.
    """
    points = draws(belief, PROPOSED * n, rng)
    weight = _weight(belief, prior, layout, theta, points)
    # systematic resampling, then in random order
    place = (rng.random() + np.arange(n)) / n * weight.sum()
    return points[:, rng.permutation(np.searchsorted(np.cumsum(weight), place).clip(0, weight.size - 1))]


def _weight(belief: Belief, prior: Belief, layout: Layout, theta: Theta, points: np.ndarray) -> np.ndarray:
    def growth(at: np.ndarray) -> np.ndarray:
        x, cell, _ = split(at, layout, theta.cell)
        return np.log(physiology(x, theta._replace(cell=cell)).mu)

    moving, learnt = slice(0, layout.error_start), slice(N_STATE, layout.error_start)
    mean, even = belief.mean[:, None], np.ones(points.shape[1])
    with np.errstate(all="ignore"):
        here = growth(mean)
        slope = (growth(mean + STEP * np.eye(layout.size)[:, moving]) - here) / STEP
        after = float(slope @ belief.cov[moving, moving] @ slope)
        before = float(slope[N_STATE:] @ prior.cov[learnt, learnt] @ slope[N_STATE:])
        if not (0.0 < after < before and np.isfinite(before)):
            return even
        straight, curved = slope @ (points - mean)[moving], growth(points) - here
        log = 0.5 * (1.0 / after - 1.0 / before) * (straight * straight - curved * curved)
    log = np.where(np.isfinite(log), log, -np.inf)
    if log.max() == -np.inf:
        return even
    return np.exp(np.minimum(log, np.quantile(log, HEAVIEST)) - log.max())
