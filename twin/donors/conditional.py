"""The posterior of one donor by NUTS: the truth that the fast update is held to. Many seconds where the update takes tenths."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float

from twin.donors.ridge import bent, ridge, straight, straightened
from twin.donors.sample import Density, chain
from twin.donors.target import Target


def conditional_nuts(
    target: Target, centre: np.ndarray, cov: np.ndarray, *, draws: int, tune: int, chains: int, seed: int
) -> Float[np.ndarray, "chains draws d"]:
    """Draws of all coordinates of `Target.names` by nutpie; `centre` [d] and `cov` [d, d] only set where and how it begins."""

    def value_and_gradient(u: np.ndarray) -> tuple[Any, Any]:
        value, gradient = target.value_and_gradient(u[None])
        return value[0], gradient[0]

    d = centre.size
    plain = Density(centre, value_and_gradient, lambda u: [u], ("u",), np.zeros(d, dtype=bool), ("u",) * d)
    at = ridge(target.data, plain.owners, "u", target.names)
    walked_on = straightened(plain, at)
    near = straight(np.random.default_rng(0).multivariate_normal(centre, cov, size=4 * d * d), at)
    begun, root = walked_on.start, np.linalg.cholesky(np.cov(near.T))

    def moved(v: np.ndarray) -> tuple[Any, Any]:
        value, gradient = walked_on.value_and_gradient(begun + root @ v)
        return value, root.T @ gradient

    walked = Density(np.zeros(d), moved, lambda v: [v], ("v",), np.zeros(d, dtype=bool))
    found = [chain(walked, draws, tune, seed + 1000 * k)[0] for k in range(chains)]
    return np.array([bent(begun + one @ root.T, at) for one in found])
