"""A PyMC model's log-density as CasADi instructions: the model stays the only definition, its graph is replayed.

PyTensor's linkers either interpret every node, which is slow, or compile them, which takes long before the first draw
(`celltwin bench donors` times its compiled gradient). Here the graph of the log-density is walked once with arrays of CasADi symbols in place of
numbers: operations that only arrange values run PyTensor's own code, the others are written below. CasADi's virtual
machine evaluates the result and its reverse-mode gradient without compiling anything. The trajectories of the bioreactor
(`twin.donors.op`) are too large for that: they stay the compiled sweeps, and the graph is cut there.

    before   q -> x0, kinetics                      CasADi, and its vector-Jacobian product
    sweeps   x0, kinetics -> path                   C (`twin.donors.adjoint`)
    after    q, path -> outputs                     CasADi, and its gradient
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from operator import add, mul
from typing import Any, NamedTuple

import casadi as ca
import numpy as np
from jaxtyping import Float

from twin.donors.op import Trajectory

# PyTensor and CasADi are untyped where it matters here: variables and symbols are Any.

_Function = Callable[..., list[np.ndarray]]


class Evaluation(NamedTuple):
    """A traced graph: what it computes from the flat unconstrained coordinates q [n]."""

    value_and_gradient: Callable[
        [Float[np.ndarray, " n"]], tuple[float, Float[np.ndarray, " n"]]
    ]  # of the first output
    outputs: Callable[[Float[np.ndarray, " n"]], list[np.ndarray]]  # all others, in their shapes


def traced(joined: Any, outputs: Sequence[Any]) -> Evaluation:
    """`outputs` (PyTensor) as functions of `joined`, the vector of coordinates; the first is a scalar to be differentiated.

    Raises NotImplementedError for an operation that is not known here, ValueError for more than one trajectory.
    """
    from pytensor.graph.fg import FunctionGraph
    from pytensor.graph.rewriting.utils import rewrite_graph

    graph = FunctionGraph([joined], list(outputs), clone=True)
    rewrite_graph(graph, include=("canonicalize", "stabilize"))
    nodes = [n for n in graph.toposort() if isinstance(n.op, Trajectory)]
    n = int(joined.type.shape[0])
    q = ca.SX.sym("q", n)
    known: dict[Any, Any] = {graph.inputs[0]: _array(ca.vertsplit(q), (n,))}
    cut = _Cut.of(nodes[0], known, q) if nodes else None
    for node in nodes:
        if cut is None or (node is not nodes[0] and not cut.same(node, known, q)):
            raise ValueError("two trajectories that differ in one model: join their batches into one")
        known[node.outputs[0]] = cut.path
    ends = [_evaluate(out, known) for out in graph.outputs]
    path, used = cut.read(ends) if cut is not None else (ca.SX(0, 1), np.empty(0, dtype=int))
    target = _flat(ends[0])
    joint = ca.vertcat(q, path)
    slope = ca.densify(ca.gradient(target, joint))
    first = _called("celltwin_density", [q, path], [target, slope[:n], slope[n:]])
    rest = _called("celltwin_expand", [q, path], [_flat(e) for e in ends[1:]])
    shapes = [np.shape(e) for e in ends[1:]]

    def value_and_gradient(at: np.ndarray) -> tuple[float, np.ndarray]:
        if cut is None:
            value, gradient, _ = first(at, _NONE)
            return float(value[0]), gradient
        whole, run = cut.forward(at)
        value, gradient, weight = first(at, whole.ravel()[used])
        back = np.zeros(whole.size)
        back[used] = weight
        return float(value[0]), gradient + run(back.reshape(whole.shape))

    def expand(at: np.ndarray) -> list[np.ndarray]:
        read = cut.forward(at)[0].ravel()[used] if cut is not None else _NONE
        return [v.reshape(s) for v, s in zip(rest(at, read), shapes, strict=True)]

    return Evaluation(value_and_gradient, expand)


_NONE = np.empty(0)


class _Cut(NamedTuple):
    """The trajectory taken out of the graph."""

    op: Trajectory
    before: _Function  # q -> x0, kinetics, flat
    back: _Function  # q, weights of both -> gradient
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    path: np.ndarray  # symbols [steps + 1, 13, d]

    @classmethod
    def of(cls, node: Any, known: dict[Any, Any], q: Any) -> _Cut:
        op: Trajectory = node.op
        start, cell = (_evaluate(v, known) for v in node.inputs)
        both = ca.vertcat(_flat(start), _flat(cell))
        weight = ca.SX.sym("w", both.numel())
        back = ca.densify(ca.jtimes(both, q, weight, True))
        shape = (len(op.controls) + 1, *start.shape)
        symbols = _array(ca.vertsplit(ca.SX.sym("path", int(np.prod(shape)))), shape)
        return cls(
            op, _called("celltwin_before", [q], [_flat(start), _flat(cell)]), _called("celltwin_back", [q, weight], [back]),
            (start.shape, cell.shape), symbols,
        )  # fmt: skip

    def same(self, node: Any, known: dict[Any, Any], q: Any) -> bool:
        """Is this the same trajectory? PyMC rewrites likelihood and potential apart, so that equal parts may look different."""
        at = 0.1 * np.random.default_rng(0).standard_normal(q.numel())
        other = _called("celltwin_other", [q], [_flat(_evaluate(v, known)) for v in node.inputs])
        near = (np.allclose(a, b, rtol=1e-9, atol=0.0) for a, b in zip(self.before(at), other(at), strict=True))
        return node.op is self.op and all(near)

    def read(self, ends: Sequence[np.ndarray]) -> tuple[Any, np.ndarray]:
        """The symbols of the path that the outputs read, and their places in it."""
        used = _needed(ends, self.path)
        return ca.vertcat(*self.path.ravel()[used]), used

    def forward(self, at: np.ndarray) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
        """The path, and what takes its weights back to q."""
        op, (s, c) = self.op, self.shapes
        start, cell = self.before(at)
        theta = op.theta(cell.reshape(c))
        path = op.sweeps.forward(start.reshape(s), op.controls, theta, op.span)

        def run(weight: np.ndarray) -> np.ndarray:
            by_start, by_cell = op.sweeps.backward(path, op.controls, theta, op.span, weight)
            return self.back(at, np.concatenate([by_start.ravel(), by_cell.ravel()]))[0]

        return path, run


def _needed(ends: Sequence[np.ndarray], path: np.ndarray) -> np.ndarray:
    """Places in the path that the outputs depend on."""
    places = {name: k for k, name in enumerate(e.name() for e in path.ravel())}
    free = ca.symvar(ca.vertcat(*map(_flat, ends)))
    return np.array(sorted(places[s.name()] for s in free if s.name() in places), dtype=int)


def _called(name: str, inputs: Sequence[Any], outputs: Sequence[Any]) -> _Function:
    """A CasADi function on the memory of NumPy vectors."""
    function = ca.Function(name, list(inputs), list(outputs))
    memory, run = function.buffer()
    sizes = [function.numel_out(j) for j in range(function.n_out())]

    def call(*given: np.ndarray) -> list[np.ndarray]:
        held = [np.array(a, dtype=float, order="C") for a in given]
        results = [np.empty(n) for n in sizes]
        for i, a in enumerate(held):
            if a.size:
                memory.set_arg(i, a.data)
        for j, a in enumerate(results):
            if a.size:
                memory.set_res(j, a.data)
        run()
        return results

    return call


# --- arrays of symbols --------------------------------------------------------------------------------------------------


def _array(elements: Sequence[Any], shape: tuple[int, ...]) -> np.ndarray:
    """Symbols as an array of objects; NumPy would try to look into each."""
    flat = np.empty(len(elements), dtype=object)
    for k, e in enumerate(elements):
        flat[k] = e
    return flat.reshape(shape)


def _flat(value: Any) -> Any:
    return ca.vertcat(*np.asarray(value).ravel())


def _evaluate(variable: Any, known: dict[Any, Any]) -> np.ndarray:
    """The value of a variable, numbers or symbols; everything on the way is kept in `known`."""
    pending = [variable]
    while pending:
        v = pending[-1]
        if v in known:
            pending.pop()
        elif v.owner is None:
            if not hasattr(v, "data"):
                raise NotImplementedError(f"{v}: neither a coordinate nor a constant")
            known[v] = np.asarray(v.data)
            pending.pop()
        else:
            # a check's conditions hold wherever unconstrained coordinates are transformed: they are not evaluated
            inputs = v.owner.inputs[:1] if type(v.owner.op).__name__ == "CheckParameterValue" else v.owner.inputs
            missing = [i for i in inputs if i not in known]
            if missing:
                pending += missing
                continue
            known.update(zip(v.owner.outputs, _apply(v.owner, [known[i] for i in inputs]), strict=True))
            pending.pop()
    return known[variable]


def _apply(node: Any, inputs: list[Any]) -> list[Any]:
    """The outputs of a node."""
    op, kind = node.op, type(node.op).__name__
    if not any(isinstance(i, np.ndarray) and i.dtype == object for i in inputs):
        return [np.asarray(v) for v in _performed(node, inputs)]
    if kind == "Elemwise":
        return [_elementwise(op.scalar_op, inputs)]
    if kind == "Blockwise":
        return [_blockwise(op.core_op, inputs)]
    if kind in _KNOWN:
        return [_boxed(_KNOWN[kind](op, *inputs))]
    if kind in _ARRANGING:
        inputs = [inputs[0].astype(object), *inputs[1:]]  # what is put into an array of numbers may be a symbol
        return [_boxed(v) for v in _performed(node, inputs)]
    raise NotImplementedError(f"the log-density has an operation that is not known here: {op}")


def _performed(node: Any, inputs: list[Any]) -> list[Any]:
    """By PyTensor's own code."""
    storage: list[list[Any]] = [[None] for _ in node.outputs]
    node.op.perform(node, inputs, storage)
    return [s[0] for s in storage]


def _boxed(value: Any) -> np.ndarray:
    """An array even of a single symbol."""
    if isinstance(value, np.ndarray):
        return value
    box = np.empty((), dtype=object)
    box[()] = value
    return box


_ARRANGING = frozenset({
    "Subtensor", "AdvancedSubtensor", "AdvancedSubtensor1", "IncSubtensor", "AdvancedIncSubtensor", "AdvancedIncSubtensor1",
    "DimShuffle", "Reshape", "ExtractDiag",
})  # fmt: skip
"""Operations that move values and do not look at them (or only add)."""


def _sum(op: Any, x: np.ndarray) -> Any:
    return np.add.reduce(x.reshape(-1)) if op.axis is None else np.add.reduce(x, axis=tuple(op.axis))


def _cumulated(op: Any, x: np.ndarray) -> Any:
    if op.mode != "add":
        raise NotImplementedError(f"the log-density has an operation that is not known here: {op}")
    return np.add.accumulate(x, axis=op.axis)


def _alloc(_: Any, value: np.ndarray, *shape: Any) -> np.ndarray:
    return np.broadcast_to(value, tuple(int(n) for n in shape)).copy()


def _make_vector(_: Any, *values: np.ndarray) -> np.ndarray:
    return _array([v[()] if isinstance(v, np.ndarray) else v for v in values], (len(values),))


_KNOWN: dict[str, Callable[..., Any]] = {
    "CheckParameterValue": lambda op, x: x,
    "Sum": _sum,
    "Join": lambda op, axis, *parts: np.concatenate(parts, axis=int(axis)),
    "CumOp": _cumulated,
    "Dot": lambda op, a, b: np.dot(a, b),
    "Alloc": _alloc,
    "MakeVector": _make_vector,
    "Shape": lambda op, x: np.array(x.shape),
    "TensorFromScalar": lambda op, x: x,
    "ScalarFromTensor": lambda op, x: x,
    "SpecifyShape": lambda op, x, *shape: x,
}


_SCALAR: dict[str, Callable[..., Any]] = {
    "Add": lambda *a: reduce(add, a), "Mul": lambda *a: reduce(mul, a),
    "Sub": lambda x, y: x - y, "TrueDiv": lambda x, y: x / y, "Pow": lambda x, y: x**y, "Neg": lambda x: -x,
    "Sqr": lambda x: x * x, "Sqrt": ca.sqrt, "Exp": ca.exp, "Log": ca.log, "Log1p": ca.log1p, "Expm1": ca.expm1,
    "Abs": ca.fabs, "Sign": ca.sign, "Reciprocal": lambda x: 1.0 / x, "Tanh": ca.tanh,
    "Sigmoid": lambda x: 1.0 / (1.0 + ca.exp(-x)),
    "Softplus": lambda x: ca.fmax(x, 0.0) + ca.log1p(ca.exp(-ca.fabs(x))),
    "Maximum": ca.fmax, "Minimum": ca.fmin, "Switch": ca.if_else, "Cast": lambda x: x, "Identity": lambda x: x,
    "GT": lambda x, y: x > y, "GE": lambda x, y: x >= y, "LT": lambda x, y: x < y, "LE": lambda x, y: x <= y,
    "AND": ca.logic_and, "OR": ca.logic_or,
}  # fmt: skip


def _elementwise(scalar: Any, inputs: list[Any]) -> np.ndarray:
    """One scalar operation over broadcast arrays of symbols and numbers."""
    f = _SCALAR.get(type(scalar).__name__)
    if f is None or (type(scalar).__name__ == "Cast" and "float" not in scalar.o_type.dtype):
        raise NotImplementedError(f"the log-density has an operation that is not known here: {scalar}")
    shape = np.broadcast_shapes(*(np.shape(i) for i in inputs))
    rows = zip(*(np.broadcast_to(i, shape).ravel().tolist() for i in inputs), strict=True)
    return _array([ca.SX(f(*row)) for row in rows], shape)


def _blockwise(core: Any, inputs: list[np.ndarray]) -> np.ndarray:
    """Linear algebra on small matrices, over leading axes."""
    kind = type(core).__name__
    if kind == "Cholesky" and core.lower:
        (a,) = inputs
        return _each(_cholesky, (a, 2))
    if kind == "SolveTriangular" and core.lower and not core.unit_diagonal:
        return _each(_forward_substitution, (inputs[0], 2), (inputs[1], core.b_ndim))
    raise NotImplementedError(f"the log-density has an operation that is not known here: {core}")


def _each(f: Callable[..., np.ndarray], *given: tuple[np.ndarray, int]) -> np.ndarray:
    lead = np.broadcast_shapes(*(a.shape[: a.ndim - k] for a, k in given))
    wide = [np.broadcast_to(a, (*lead, *a.shape[a.ndim - k :])) for a, k in given]
    results = [f(*(a[i] for a in wide)) for i in np.ndindex(*lead)]
    return _array([e for r in results for e in r.ravel()], (*lead, *results[0].shape))


def _cholesky(a: np.ndarray) -> np.ndarray:
    n = len(a)
    root = _array([ca.SX(0.0)] * (n * n), (n, n))
    for i in range(n):
        for j in range(i + 1):
            left = a[i, j] - sum((root[i, k] * root[j, k] for k in range(j)), ca.SX(0.0))
            root[i, j] = ca.sqrt(left) if i == j else left / root[j, j]
    return root


def _forward_substitution(root: np.ndarray, b: np.ndarray) -> np.ndarray:
    x = _array([ca.SX(0.0)] * b.size, b.shape)
    for i in range(len(b)):
        x[i] = (b[i] - sum((root[i, k] * x[k] for k in range(i)), ca.SX(0.0))) / root[i, i]
    return x
