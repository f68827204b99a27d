"""The bioreactor trajectory as one PyTensor operation with an exact gradient.

Why not `pytensor.scan`: the gradient of one RK4 step of the 13 states is a graph of tens of thousands of nodes, which takes
PyTensor's linkers minutes to compile. This operation is vector code from the same step, its adjoint by reverse differentiation
(`twin.donors.adjoint`), built once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytensor.tensor as pt
from jaxtyping import Float
from pytensor.graph.basic import Apply
from pytensor.graph.op import Op

from twin.bioreactor import Theta
from twin.donors.adjoint import Sweeps, sweeps
from twin.transition import flat

# PyTensor is untyped where it matters here: variables are Any.


class Trajectory(Op):
    """(x0 [13, d], learnt kinetics [p, d]) -> path [steps + 1, 13, d] under fixed controls."""

    def __init__(
        self,
        controls: Float[np.ndarray, "steps 4 d"],
        theta: Theta,
        names: tuple[str, ...],
        span: float,
        compiled: bool = True,
    ) -> None:
        self.controls = np.ascontiguousarray(controls, dtype=float)
        self.base = np.tile(flat(theta)[:, None], controls.shape[2])
        self.learnt = [theta.cell._fields.index(n) for n in names]
        self.span = span
        self.sweeps: Sweeps = sweeps(names, compiled)
        self.adjoint = _Adjoint(self)

    def theta(self, cell: Float[np.ndarray, "p d"]) -> Float[np.ndarray, "53 d"]:
        """All parameters, the learnt kinetics put in."""
        full = self.base.copy()
        full[self.learnt] = cell
        return full

    def make_node(self, x0: Any, cell: Any) -> Apply:
        return Apply(self, [pt.as_tensor(x0, dtype="float64"), pt.as_tensor(cell, dtype="float64")], [pt.dtensor3()])

    def perform(self, node: Apply, inputs: Any, outputs: Any) -> None:
        outputs[0][0] = self.sweeps.forward(inputs[0], self.controls, self.theta(inputs[1]), self.span)

    def infer_shape(self, fgraph: Any, node: Apply, shapes: Any) -> list[tuple[Any, ...]]:
        return [(len(self.controls) + 1, *shapes[0])]

    def L_op(self, inputs: Any, outputs: Any, output_grads: Any) -> list[Any]:  # noqa: N802 - PyTensor's name
        """Gradients with respect to x0 and kinetics, given that with respect to the path."""
        return list(self.adjoint(inputs[1], outputs[0], output_grads[0]))


class _Adjoint(Op):
    """(learnt kinetics [p, d], path, weight of the path) -> gradients with respect to x0 and the learnt kinetics."""

    def __init__(self, forward: Trajectory) -> None:
        self.forward = forward

    def make_node(self, cell: Any, path: Any, weight: Any) -> Apply:
        return Apply(
            self, [pt.as_tensor(v, dtype="float64") for v in (cell, path, weight)], [pt.dmatrix(), pt.dmatrix()]
        )

    def perform(self, node: Apply, inputs: Any, outputs: Any) -> None:
        f, (cell, path, weight) = self.forward, inputs
        outputs[0][0], outputs[1][0] = f.sweeps.backward(path, f.controls, f.theta(cell), f.span, weight)

    def infer_shape(self, fgraph: Any, node: Apply, shapes: Any) -> list[tuple[Any, ...]]:
        return [(shapes[1][1], shapes[1][2]), shapes[0]]
