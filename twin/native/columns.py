"""A CasADi function over the columns of NumPy arrays: machine code where a compiler is found, else the virtual machine."""

from __future__ import annotations

import ctypes
from collections.abc import Collection, Mapping
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from twin.native.build import address, load
from twin.native.simd import Kernel
from twin.native.vectors import over_columns

BLOCK = 512
"""Columns at once on the virtual machine: their intermediate values stay in the cache."""


class Columns:
    """`function` over m columns, `times` times; both routes give the same bits.

    Unless `loose` allows the C library's vector functions, where it has them: quicker, and within rounding.

    Inputs in `uniform` are vectors [elements] (floats, where they have one element) that hold for all columns; the others
    are [elements, m]. `feedback` maps inputs to the outputs that they become at the next time. The outputs are arrays
    [elements, m], or [elements] where nothing in them varies over the columns.
    """

    def __init__(
        self,
        function: Any,
        uniform: Collection[int] = (),
        feedback: Mapping[int, int] | None = None,
        compiled: bool = True,
        loose: bool = False,
    ) -> None:
        self.function, self._feedback = function, dict(feedback or {})
        self._kernel = Kernel(function, uniform, feedback)
        sizes = [function.numel_in(i) for i in range(function.n_in())]
        self._inputs = [(n, i not in uniform) for i, n in enumerate(sizes)]
        self._first = next(i for i, (_, wide) in enumerate(self._inputs) if wide)
        self._outputs = [(function.numel_out(j), j in self._kernel.wide_out) for j in range(function.n_out())]
        self._wanted, self._loose = compiled, loose
        self._over = lru_cache(16)(lambda m: over_columns(function, uniform, self._kernel.wide_out, m))

    @cached_property
    def _entry(self) -> Any | None:
        """The C function, built at first use."""
        library: Any | None = None
        for loose in (True, False) if self._loose else (False,):
            if self._wanted and library is None:
                needs = ("-lmvec",) if loose else ()
                library = load(self.function.name(), self._kernel.source(loose), vector=True, needs=needs)
        if library is None:
            return None
        scalars = [ctypes.c_double if n == 1 and not wide else ctypes.c_void_p for n, wide in self._inputs]
        entry = library.kernel
        entry.argtypes = [*scalars, *[ctypes.c_void_p] * len(self._outputs), ctypes.c_long, ctypes.c_long]
        entry.restype = None
        return entry

    @property
    def compiled(self) -> bool:
        """Does this run as machine code?"""
        return self._entry is not None

    @property
    def pointer(self) -> Any | None:
        """Where the machine code is, for C that calls it (`Kernel` says with what); None where there is none."""
        return None if self._entry is None else ctypes.cast(self._entry, ctypes.c_void_p)

    def __call__(self, *given: Any, times: int = 1) -> list[np.ndarray]:
        """The outputs; ValueError names the shapes expected where those given do not fit (C would read past the end)."""
        shape = np.shape(given[self._first])
        m = shape[-1] if shape else 0
        arrays: list[Any] = []
        passed: list[Any] = []
        for a, (n, wide) in zip(given, self._inputs, strict=True):
            if n > 1 or wide:
                a = np.asarray(a, float, order="C")
                if not m or a.shape != ((n, m) if wide else (n,)):
                    raise ValueError(self._misfit(given))
                passed.append(address(a))
            else:
                passed.append(a)
            arrays.append(a)
        entry = self._entry
        if entry is None:
            return self._interpreted(arrays, times, m)
        outputs = [np.empty((n, m) if wide else n) for n, wide in self._outputs]
        entry(*passed, *[address(a) for a in outputs], times, m)
        return outputs

    def _interpreted(self, arrays: list[Any], times: int, m: int) -> list[np.ndarray]:
        """On the virtual machine, some columns after the other."""
        outputs = [np.empty((n, m) if wide else n) for n, wide in self._outputs]
        for j in range(0, m, BLOCK):
            part = slice(j, min(j + BLOCK, m))
            given = [
                np.array(a[:, part] if wide else np.reshape(a, n), dtype=float, order="C")
                for a, (n, wide) in zip(arrays, self._inputs, strict=True)
            ]
            results = [np.empty((n, part.stop - j) if wide else n) for n, wide in self._outputs]
            memory, run = self._over(part.stop - j).buffer()
            for i, a in enumerate(given):
                memory.set_arg(i, a.data)
            for i, a in enumerate(results):
                memory.set_res(i, a.data)
            for _ in range(times):
                run()
                for i, k in self._feedback.items():
                    given[i][:] = results[k]
            for a, result, (_, wide) in zip(outputs, results, self._outputs, strict=True):
                a[..., part if wide else slice(None)] = result
        return outputs

    def _misfit(self, given: tuple[Any, ...]) -> str:
        names = [self.function.name_in(i) for i in range(len(self._inputs))]
        expected = [f"{name} [{n}{', m' if wide else ''}]" for name, (n, wide) in zip(names, self._inputs, strict=True)]
        return (
            f"{self.function.name()}: expected {', '.join(expected)}; got {', '.join(str(np.shape(a)) for a in given)}"
        )
