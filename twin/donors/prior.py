"""The donor prior: what is known of a new donor's kinetics before the first sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from twin.process import Process

DEFAULT_PARAMETERS = ("mu_max", "tau_lag", "k_d0", "a_G", "a_Q", "Y_LG", "K_L", "PD_max")
"""Kinetics that routine data inform (SCIENCE section 1: at most eight); the rest keep their medians in the filter."""


@dataclass(frozen=True, slots=True, eq=False)
class DonorPrior:
    """Gaussian over ln of some `Kinetics` fields for a donor not yet seen, the population's own uncertainty included."""

    names: tuple[str, ...]
    mean: Float[np.ndarray, " p"]  # of the logarithm
    cov: Float[np.ndarray, "p p"]  # full: correlated parameters are learnt together
    provenance: Mapping[str, str] = field(default_factory=dict)


def preset_prior(process: Process, names: tuple[str, ...] = DEFAULT_PARAMETERS) -> DonorPrior:
    """Prior from the preset's medians and published donor spreads, uncorrelated: what one has before any fit.

    Raises ValueError for a parameter whose preset gives no donor spread.
    """
    fixed = [n for n in names if n not in process.donor_sd]
    if fixed:
        raise ValueError(f"preset {process.name!r} gives no donor spread for {', '.join(fixed)}")
    return DonorPrior(
        names,
        np.log([getattr(process.theta.cell, n) for n in names]),
        np.diag([process.donor_sd[n] ** 2 for n in names]),
        {"basis": f"preset {process.name}: literature medians and donor spreads"},
    )


def considering(prior: DonorPrior, process: Process) -> DonorPrior:
    """The prior, and the process's `considered` kinetics at their preset's spread where it knows nothing of them.

    What no data inform must still widen what is believed (Schmidt's consider parameters): a donor's cytokine uptake is
    not the median because it was never measured.
    """
    new = tuple(n for n in process.considered if n not in prior.names)
    if not new:
        return prior
    more, p = preset_prior(process, new), len(prior.names)
    cov = np.zeros((p + len(new), p + len(new)))
    cov[:p, :p], cov[p:, p:] = prior.cov, more.cov
    return DonorPrior((*prior.names, *new), np.concatenate([prior.mean, more.mean]), cov, prior.provenance)
