"""The posterior of one donor by NUTS: the truth that the fast update is held to. Many seconds where the update takes tenths."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float

from twin.donors.sample import Density, chain
from twin.donors.target import Target


def conditional_nuts(
    target: Target, centre: np.ndarray, cov: np.ndarray, *, draws: int, tune: int, chains: int, seed: int
) -> Float[np.ndarray, "chains draws d"]:
    """Draws of all coordinates of `Target.names` by nutpie; `centre` [d] and `cov` [d, d] only set where and how it begins."""
    root = np.linalg.cholesky(cov)

    def value_and_gradient(v: np.ndarray) -> tuple[Any, Any]:
        value, gradient = target.value_and_gradient((centre + root @ v)[None])
        return value[0], root.T @ gradient[0]

    d = centre.size
    density = Density(np.zeros(d), value_and_gradient, lambda v: [v], ("u",), np.zeros(d, dtype=bool))
    found = [chain(density, draws, tune, seed + 1000 * k)[0] for k in range(chains)]
    return centre + np.stack(found) @ root.T
