"""CasADi functions as vector code: the virtual machine's bits, whatever the graph, the values and the number of columns."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
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
    np.testing.assert_array_equal(
        np.where(np.isnan(a), 0, a).view(np.int64), np.where(np.isnan(b), 0, b).view(np.int64)
    )


UNARY = [ca.exp, ca.log, ca.sin, ca.cos, ca.tan, ca.asin, ca.acos, ca.atan, ca.sinh, ca.cosh, ca.tanh, ca.log1p, ca.expm1,
         ca.erf, ca.fabs, ca.floor, ca.ceil, ca.sqrt, ca.logic_not, lambda x: -x, lambda x: 1 / x, lambda x: x * x,
         lambda x: x + x, lambda x: x**2.5]  # fmt: skip
BINARY = [ca.fmin, ca.fmax, ca.atan2, ca.hypot, ca.fmod, ca.copysign, ca.power, ca.logic_and, ca.logic_or,
          lambda x, y: x + y, lambda x, y: x - y, lambda x, y: x * y, lambda x, y: x / y, lambda x, y: x < y,
          lambda x, y: x <= y, lambda x, y: x == y, lambda x, y: x != y, lambda x, y: ca.if_else(x < y, x, y),
          lambda x, y: ca.if_else(x, y, 3.0), lambda x, y: ca.if_else(ca.logic_not(x <= y), y, x)]  # fmt: skip


def every_operation() -> ca.Function:
    """Each operation on two columns, on a column and what is held, and on held values alone (p, q)."""
    a, b, p, q = (ca.SX.sym(n) for n in "abpq")
    of_columns = [f(a) for f in UNARY] + [f(x, y) for f in BINARY for x, y in ((a, b), (a, p), (p, b))]
    of_held = [f(p) for f in UNARY] + [f(p, q) for f in BINARY]
    return ca.Function("every_operation", [a, b, p, q], [ca.vertcat(*of_columns), ca.vertcat(*of_held)])


@pytest.fixture(scope="module")
def both() -> tuple[Columns, Columns]:
    f = every_operation()
    return Columns(f, {2, 3}), Columns(f, {2, 3}, compiled=False)


@needs_compiler
@given(data=st.data())
def test_every_operation_on_every_value_gives_the_bits_of_the_virtual_machine(
    both: tuple[Columns, Columns], data: st.DataObject
) -> None:
    compiled, interpreted = both
    assert compiled.compiled
    assert not interpreted.compiled
    m = data.draw(st.integers(1, 19))
    a, b = data.draw(hnp.arrays(float, (2, m), elements=anything))
    inputs = (a[None], b[None], data.draw(anything), data.draw(anything))
    for got, want in zip(compiled(*inputs), interpreted(*inputs), strict=True):
        assert_same_bits(got, want)


@needs_compiler
@pytest.mark.parametrize("lanes", [2, 4, 8])
def test_the_width_of_the_registers_changes_no_bit(
    both: tuple[Columns, Columns], lanes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, f"-DLANES={lanes}"))
    columns, rng = Columns(every_operation(), {2, 3}), np.random.default_rng(lanes)
    inputs = (rng.standard_normal((1, 21)), rng.standard_normal((1, 21)), 0.3, -0.2)
    assert columns.compiled
    for got, want in zip(columns(*inputs), both[1](*inputs), strict=True):
        assert_same_bits(got, want)


def recursion() -> ca.Function:
    """A column's pair that swaps as it decays, beside a clock that all columns share."""
    x, clock, rate = ca.SX.sym("x", 2), ca.SX.sym("clock"), ca.SX.sym("rate")
    return ca.Function(
        "recursion", [x, clock, rate], [ca.vertcat(x[1], x[0] * ca.exp(-rate * clock)), clock + 0.1 * rate]
    )


@pytest.mark.parametrize("compiled", [pytest.param(True, marks=needs_compiler), False])
@pytest.mark.parametrize("m", [1, 2, 8, 21])
def test_outputs_become_inputs(compiled: bool, m: int) -> None:
    """Against the loop in Python, where the clock belongs to all columns and where each has its own."""
    f, x = recursion(), np.random.default_rng(m).standard_normal((2, m))
    shared = Columns(f, {1, 2}, {0: 0, 1: 1}, compiled)
    own = Columns(f, {2}, {0: 0, 1: 1}, compiled)
    for n in (1, 2, 5):
        want, clock = x, 0.5
        for _ in range(n):
            want, clock = np.array([want[1], want[0] * np.exp(-0.7 * clock)]), clock + 0.1 * 0.7
        end, last = shared(x, 0.5, 0.7, times=n)
        np.testing.assert_allclose(end, want, rtol=1e-14)
        assert last.shape == (1,) and last[0] == pytest.approx(clock, rel=1e-14)
        each, clocks = own(x, np.full((1, m), 0.5), 0.7, times=n)
        np.testing.assert_array_equal(each, end)
        np.testing.assert_array_equal(clocks, np.full((1, m), last[0]))


@needs_compiler
def test_a_column_does_not_depend_on_its_neighbours() -> None:
    columns = Columns(recursion(), {1, 2}, {0: 0, 1: 1})
    x = np.random.default_rng(0).standard_normal((2, 13))
    together = columns(x, 0.5, 0.7, times=3)[0]
    for j in range(13):
        np.testing.assert_array_equal(columns(x[:, j : j + 1], 0.5, 0.7, times=3)[0][:, 0], together[:, j])


@pytest.mark.parametrize("compiled", [pytest.param(True, marks=needs_compiler), False])
def test_arrays_of_any_layout_are_read_and_none_is_written(compiled: bool) -> None:
    columns = Columns(recursion(), {1, 2}, {0: 0, 1: 1}, compiled)
    x = np.random.default_rng(0).standard_normal((2, 11))
    want = columns(x, 0.5, 0.7, times=2)[0]
    frozen = x.copy()
    frozen.setflags(write=False)
    for layout in (frozen, np.asfortranarray(x), np.repeat(x, 2, axis=1)[:, ::2], x.tolist()):
        np.testing.assert_array_equal(columns(layout, 0.5, 0.7, times=2)[0], want)
    np.testing.assert_array_equal(x, frozen)


@pytest.mark.parametrize("wrong", [np.ones((3, 4)), np.ones(2), np.ones((2, 4, 1)), np.ones((2, 0)), 1.0])
def test_shapes_that_do_not_fit_are_named(wrong: np.ndarray | float) -> None:
    with pytest.raises(ValueError, match=r"recursion: expected i0 \[2, m\], i1 \[1\], i2 \[1\]; got"):
        Columns(recursion(), {1, 2}, {0: 0, 1: 1})(wrong, 0.5, 0.7)


def test_what_cannot_be_written_as_vector_code_is_named() -> None:
    x = ca.SX.sym("x", 2)
    with pytest.raises(NotImplementedError, match="OP_SIGN"):
        Kernel(ca.Function("f", [x], [ca.sign(x)]))
    with pytest.raises(ValueError, match="dense"):
        Kernel(ca.Function("f", [x], [ca.jacobian(x * x, x)]))
    with pytest.raises(ValueError, match="both vary"):
        Kernel(ca.Function("f", [x, ca.SX.sym("y", 2)], [x, x]), uniform={0}, feedback={1: 0})


# ---------------------------------------------------------------------------------------------------------- the build
SOURCE = "double twice(double x) { return 2 * x; }\n"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CELLTWIN_CACHE", str(tmp_path))
    return tmp_path / "celltwin"


@needs_compiler
def test_a_library_is_built_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadPoolExecutor(4) as pool:  # four that find no library build at once
        libraries = list(pool.map(lambda _: build.load("twice", SOURCE), range(4)))
    assert all(library is not None for library in libraries)
    assert len(list(cache.iterdir())) == 1

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("compiled a second time")

    monkeypatch.setattr(subprocess, "run", refuse)
    assert build.load("twice", SOURCE) is not None


@needs_compiler
def test_source_and_processor_are_part_of_the_key(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build.load("twice", SOURCE)
    build.load("twice", SOURCE + "/* */")
    build.load("twice", SOURCE, vector=True)
    monkeypatch.setattr(build, "native", lambda compiler: "another processor")
    build.load("twice", SOURCE, vector=True)
    assert len(list(cache.iterdir())) == 4


@pytest.mark.parametrize("tool", ["none", "/bin/false", "/nowhere/cc"])
def test_without_a_compiler_the_virtual_machine_runs(tool: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELLTWIN_COMPILER", tool)
    columns = Columns(recursion(), {1, 2}, {0: 0, 1: 1})
    assert columns(np.ones((2, 3)), 0.5, 0.7)[0].shape == (2, 3)
    assert not columns.compiled
    assert not cache.exists() or not list(cache.iterdir())


@needs_compiler
def test_source_that_does_not_compile_is_no_library(cache: Path) -> None:
    assert build.load("broken", "int f( {") is None
    assert not list(cache.iterdir())
