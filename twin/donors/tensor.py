"""The process model inside PyTensor: `twin.bioreactor.rates` through `twin.integrate.rk4` in a scan over time.

One RK4 step is one scan step, vectorised over donors; every random variable enters the scan as a non-sequence, so that
the gradient is one backward scan. The trajectory is kept on the grid and read between grid points in ln coordinates.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytensor
import pytensor.tensor as pt
from jaxtyping import Float, Int

from twin.bioreactor import Control, State, Theta
from twin.integrate import FLOOR, rk4

SPAN = 1.0 / 24.0
"""Step of the scan [d]. At 1 h RK4 stays stable down to time constants of 1/66 d: the glucose of a depleted dense culture
(1/40 d) is inside, at 2 h it is not."""


class Grid(NamedTuple):
    """Where the samples lie between the steps of the scan: ``ln y(t) = (1-w) ln y[before] + w ln y[before+1]``."""

    before: Int[np.ndarray, " n"]  # index of the grid point at or before the sample
    weight: Float[np.ndarray, " n"]  # share of the next grid point
    donor: Int[np.ndarray, " n"]  # column of the sample's donor


def locate(times: Float[np.ndarray, " n"], donor: Int[np.ndarray, " n"], steps: int, span: float = SPAN) -> Grid:
    """Grid positions of samples at `times` [d] (ValueError outside the `steps` of `span` days)."""
    if times.size and (times.min() < 0 or times.max() > steps * span + 1e-9):
        raise ValueError(f"sample times {times.min():g}..{times.max():g} d are outside the grid 0..{steps * span:g} d")
    before = np.minimum(np.floor(times / span + 1e-9).astype(int), steps - 1)
    return Grid(before, times / span - before, donor.astype(int))


def trajectories(x0: State, controls: Float[np.ndarray, "steps 4 d"], theta: Theta, span: float = SPAN) -> State:
    """Integrate all donors over the steps of `controls`; fields of the result are PyTensor matrices [steps + 1, d].

    `x0` and `theta` hold floats or PyTensor vectors [d]; the result starts with `x0`.
    """
    n, n_x = controls.shape[2], len(State._fields)
    floor = np.array(FLOOR)[:, None]
    numbers = [*theta.cell, *theta.vessel, *theta.medium]
    symbolic = [k for k, value in enumerate(numbers) if isinstance(value, pt.TensorVariable)]
    kinds = (type(theta.cell), type(theta.vessel), type(theta.medium))

    def step(u: Any, before: Any, *given: Any) -> Any:
        values = list(numbers)
        for k, variable in zip(symbolic, given, strict=True):
            values[k] = variable
        parts, at = [], 0
        for kind in kinds:
            parts.append(kind(*values[at : at + len(kind._fields)]))
            at += len(kind._fields)
        x = rk4(State(*(before[k] for k in range(n_x))), Control(*(u[k] for k in range(4))), Theta(*parts), span)
        return pt.maximum(pt.stack(list(x)), floor)

    start = pt.stack([pt.zeros(n) + value for value in x0])
    later = pytensor.scan(
        step,
        sequences=[pt.as_tensor(controls)],
        outputs_info=[start],
        non_sequences=[numbers[k] for k in symbolic],
        return_updates=False,
        strict=True,
    )
    path = pt.concatenate([start[None], later])
    return State(*(path[:, k] for k in range(n_x)))


def read(path: Any, grid: Grid) -> Any:
    """A trajectory [steps + 1, d] at the samples of `grid`: linear in ln between grid points. PyTensor vector [n]."""
    a, b = path[grid.before, grid.donor], path[grid.before + 1, grid.donor]
    return pt.exp((1.0 - grid.weight) * pt.log(a) + grid.weight * pt.log(b))
