"""Monte-Carlo standard errors: how far another run of the sampler may come out."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def standard_errors(draws: Float[np.ndarray, "n p"], chains: int) -> Float[np.ndarray, "2 p"]:
    """Monte-Carlo standard errors of mean and standard deviation of each column.

    `draws` holds the chains one after another. By the effective sample sizes of the draws and of their centred squares
    (Vehtari 2021), the second by the delta method.
    """
    from twin.donors.sample import import_arviz

    az = import_arviz()
    squares = (draws - draws.mean(axis=0)) ** 2
    size, size_of_squares = (
        az.ess({"x": x.reshape(chains, -1, draws.shape[1])}, method="mean")["x"].to_numpy() for x in (draws, squares)
    )
    variance = squares.mean(axis=0)
    of_variance = ((squares**2).mean(axis=0) - variance**2) / size_of_squares
    return np.sqrt(np.array([variance / size, of_variance / (4.0 * variance)]))
