"""CasADi functions as vector code: the virtual machine's bits, whatever the graph, the values and the number of columns."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import casadi as ca
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from twin.native import build
from twin.native.columns import Columns
from twin.native.simd import Kernel

needs_compiler = pytest.mark.skipif(build.compiler() is None, reason="no C compiler on this machine")
anything = st.floats(width=64) | st.sampled_from([0.0, -0.0, np.nan, np.inf, -np.inf, 5e-324, 1.0, -1.0, 710.0, 1e308])


def assert_same_bits(a: np.ndarray, b: np.ndarray) -> None:
    """Every bit but those inside a NaN."""
    np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
    np.testing.assert_array_equal(np.where(np.isnan(a), 0, a).view(np.int64), np.where(np.isnan(b), 0, b).view(np.int64))


def everything(held: bool = False) -> ca.Function:
    """Every operation that the kernels know, with each operand a column's or (where `held`) everybody's."""
    a, b, p = ca.SX.sym("a"), ca.SX.sym("b"), ca.SX.sym("p")
    unary = [ca.exp, ca.log, ca.sin, ca.cos, ca.tan, ca.asin, ca.acos, ca.atan, ca.sinh, ca.cosh, ca.tanh, ca.log1p,
             ca.expm1, ca.erf, ca.fabs, ca.floor, ca.ceil, ca.sqrt, lambda x: -x, lambda x: 1 / x, lambda x: x * x,
             lambda x: x + x, lambda x: ca.logic_not(x), lambda x: x**2.5]  # fmt: skip
    binary = [lambda x, y: x + y, lambda x, y: x - y, lambda x, y: x * y, lambda x, y: x / y, ca.fmin, ca.fmax, ca.atan2,
              ca.hypot, ca.fmod, ca.copysign, ca.power, lambda x, y: x < y, lambda x, y: x <= y, lambda x, y: x == y,
              lambda x, y: x != y, lambda x, y: ca.if_else(x < y, x, y), lambda x, y: ca.if_else(x, y, 3.0),
              lambda x, y: ca.if_else(ca.logic_not(x <= y), y, x)]  # fmt: skip
    pairs = [(a, b)] if not held else [(a, p), (p, b)]
    values = [f(x) for f in unary for x in ((a,) if not held else (p,)) for x in x] if False else []
    values += [f(x) for f in unary for x in ([p] if held else [a])]
    values += [f(x, y) for f in binary for x, y in pairs]
    if held:  # so that every output varies over the columns
        values = [v + 0 * a for v in values]
    return ca.Function("everything", [a, b, p], [ca.vertcat(*values)], ["a", "b", "p"], ["y"])


EVERYTHING = {held: (Columns(everything(held), {2}), Columns(everything(held), {2}, compiled=False)) for held in (False, True)}


@needs_compiler
@pytest.mark.parametrize("held", [False, True], ids=["of columns", "held"])
@given(data=st.data())
def test_every_operation_on_every_value_gives_the_bits_of_the_virtual_machine(held: bool, data: st.DataObject) -> None:
    m = data.draw(st.integers(1, 19))
    ab = data.draw(hnp.arrays(float, (2, m), elements=anything))
    compiled, interpreted = EVERYTHING[held]
    inputs = (ab[:1], ab[1:], data.draw(anything))
    assert compiled.compiled
    assert not interpreted.compiled
    assert_same_bits(compiled(*inputs)[0], interpreted(*inputs)[0])
