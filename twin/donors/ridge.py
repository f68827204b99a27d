"""Growth that slows is explained by lactate or by the replicative limit: coordinates in which a sampler can walk between.

Data tell how much growth is lost late in a batch, hardly which of the two took it: in K_L and PD_max the posterior is a
narrow ridge that bends around a corner, along which chains hardly move. With

    A = ln (L/K_L)^2        at the highest lactate of the donor's batch
    B = ln (PD/PD_max)^6    at its last doublings
    total = ln (e^A + e^B)  what is lost in all, to first order
    split = A - B           which of the two took it

total is what the data know and split what they do not. The map (A, B) -> (total, split) keeps volumes (its determinant is -1)
and K_L, PD_max are log-linear in A, B: the density needs no correction but a constant (`volume`). Where a sampler walks changes,
the model does not.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from twin.donors.data import COUNTS, FitData
from twin.donors.sample import Density

LACTATE, LIMIT = "K_L", "PD_max"
POWER_LACTATE, POWER_LIMIT = 2.0, 6.0
"""Exponents of the two inhibitions (`twin.kinetics`)."""


class Ridge(NamedTuple):
    """Where a density holds ln K_L and ln PD_max of every donor, and what they are compared with."""

    lactate: Int[np.ndarray, " d"]  # places of ln K_L
    limit: Int[np.ndarray, " d"]  # places of ln PD_max
    highest: Float[np.ndarray, " d"]  # ln of the highest lactate that was read [mM]
    doublings: Float[np.ndarray, " d"]  # ln of the doublings at the last count


def ridge(data: FitData, owners: tuple[str, ...], variable: str, columns: tuple[str, ...]) -> Ridge | None:
    """The ridges of a model whose unconstrained `variable` is [donor, column]; None where it lacks either parameter.

    What they are compared with need not be exact: any other choice straightens less well, and is as right.
    """
    if not {LACTATE, LIMIT} <= set(columns) or variable not in owners:
        return None
    first, n = owners.index(variable), len(columns)
    starts = first + n * np.arange(len(data.donors))
    highest, doublings = np.empty(len(data.donors)), np.empty(len(data.donors))
    for d in range(len(data.donors)):
        batches = np.flatnonzero(data.donor_of == d)
        read = (
            [data.samples["lactate"].value[data.samples["lactate"].column == b] for b in batches]
            if "lactate" in data.samples
            else []
        )
        highest[d] = np.log(max([float(v.max()) for v in read if v.size] + [1.0]))
        folds: list[float] = []
        for b in batches:
            counts, own = data.samples[COUNTS], data.samples[COUNTS].column == b
            values = np.maximum(counts.value[own][np.argsort(counts.time[own])], 1e-3)
            folds.append(float(np.log2(max(values.max() / values[0], 2.0))))
        doublings[d] = np.log(float(np.mean(data.initial.doublings)) + max(folds))
    return Ridge(starts + columns.index(LACTATE), starts + columns.index(LIMIT), highest, doublings)


def straight(q: Float[np.ndarray, "... n"], at: Ridge | None) -> Float[np.ndarray, "... n"]:
    """(total, split) in the places of ln K_L and ln PD_max; a copy where there is no ridge."""
    v = np.array(q, dtype=float)
    if at is not None:
        a = POWER_LACTATE * (at.highest - v[..., at.lactate])
        b = POWER_LIMIT * (at.doublings - v[..., at.limit])
        v[..., at.lactate], v[..., at.limit] = np.logaddexp(a, b), a - b
    return v


def bent(v: Float[np.ndarray, "... n"], at: Ridge | None) -> Float[np.ndarray, "... n"]:
    """The inverse of `straight`."""
    q = np.array(v, dtype=float)
    if at is not None:
        total, split = q[..., at.lactate], q[..., at.limit]
        a, b = total - np.logaddexp(0.0, -split), total - np.logaddexp(0.0, split)
        q[..., at.lactate] = at.highest - a / POWER_LACTATE
        q[..., at.limit] = at.doublings - b / POWER_LIMIT
    return q


def volume(at: Ridge | None) -> float:
    """ln |dq/dv|: what an integral over v lacks of the one over q."""
    return 0.0 if at is None else -at.lactate.size * float(np.log(POWER_LACTATE * POWER_LIMIT))


def slopes(
    gradient: Float[np.ndarray, "... n"], v: Float[np.ndarray, "... n"], at: Ridge | None
) -> Float[np.ndarray, "... n"]:
    """A gradient by q as one by v."""
    found = np.array(gradient, dtype=float)
    if at is not None:
        share = 1.0 / (1.0 + np.exp(-v[..., at.limit]))
        by_a, by_b = -found[..., at.lactate] / POWER_LACTATE, -found[..., at.limit] / POWER_LIMIT
        found[..., at.lactate] = by_a + by_b
        found[..., at.limit] = (1.0 - share) * by_a - share * by_b
    return found


def straightened(target: Density, at: Ridge | None) -> Density:
    """The same density with (total, split) in place of ln K_L and ln PD_max; itself where there is no ridge."""
    if at is None:
        return target

    def value_and_gradient(v: np.ndarray) -> tuple[Any, Any]:
        value, gradient = target.value_and_gradient(bent(v, at))
        return value, slopes(np.asarray(gradient), v, at)

    return target._replace(
        start=straight(target.start, at),
        value_and_gradient=value_and_gradient,
        expand=lambda v: target.expand(bent(v, at)),
    )
