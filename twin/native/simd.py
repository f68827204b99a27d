"""A CasADi graph as C for many columns at once: lanes of a vector register are columns of a structure of arrays.

The instruction list of an SX `Function` is written out with GCC's vector extensions, which gcc and clang lower to what
the CPU has. Every operation is the one that CasADi's virtual machine executes, in its order and with its rounding;
transcendental functions go lane by lane through the same libm. So both give the same bits, and NaN stays NaN.
What is the same for all columns is computed once per call, what does not change from step to step once per column.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import casadi as ca

PRELUDE = r"""
#include <math.h>
#include <string.h>
#if defined LANES
#elif defined __AVX512F__
#define LANES 8
#elif defined __AVX__
#define LANES 4
#else
#define LANES 2
#endif
#define INLINE static inline __attribute__((always_inline))
typedef double lane __attribute__((vector_size(LANES * 8)));
typedef long long mask __attribute__((vector_size(LANES * 8)));
typedef double row __attribute__((vector_size(LANES * 8), aligned(8), may_alias));
INLINE lane splat(double a) { lane y; for (int l = 0; l < LANES; ++l) y[l] = a; return y; }
INLINE lane pick(mask c, lane a) { return (lane)(c & (mask)a); }
INLINE lane root(lane a) { lane y; for (int l = 0; l < LANES; ++l) y[l] = sqrt(a[l]); return y; }
/* fmin and fmax that keep the first of two equals, as the virtual machine's do: of 0 and -0, libm's may keep either */
INLINE double least(double a, double b) { return a <= b || b != b ? a : b; }
INLINE double most(double a, double b) { return a >= b || b != b ? a : b; }
/* through libm, lane by lane */
#define UNARY(f) static __attribute__((noinline, unused)) lane each_##f(lane a, long w) { \
  double x[LANES]; memcpy(x, &a, sizeof x); \
  for (long l = 0; l < w; ++l) x[l] = f(x[l]); \
  memcpy(&a, x, sizeof a); return a; }
#define BINARY(f) static __attribute__((noinline, unused)) lane each_##f(lane a, lane b, long w) { \
  double x[LANES], y[LANES]; memcpy(x, &a, sizeof x); memcpy(y, &b, sizeof y); \
  for (long l = 0; l < w; ++l) x[l] = f(x[l], y[l]); \
  memcpy(&a, x, sizeof a); return a; }
/* by the C library's vector versions, which round otherwise (within 4 units in the last place) */
#if LANES == 8
#define VECTOR(f) extern lane _ZGVeN8v_##f(lane); INLINE lane each_##f(lane a, long w) { (void)w; return _ZGVeN8v_##f(a); }
#elif defined __AVX2__
#define VECTOR(f) extern lane _ZGVdN4v_##f(lane); INLINE lane each_##f(lane a, long w) { (void)w; return _ZGVdN4v_##f(a); }
#else
#define VECTOR(f) UNARY(f)
#endif
/* columns j..m-1 of `rows` rows, the last one repeated to fill the lanes */
INLINE void gather(double* pad, const double* p, long rows, long m, long j) {
  for (long e = 0; e < rows; ++e)
    for (long l = 0; l < LANES; ++l) pad[e * LANES + l] = p[e * m + (j + l < m ? j + l : m - 1)];
}
INLINE void scatter(double* r, const double* pad, long rows, long m, long j) {
  for (long e = 0; e < rows; ++e)
    for (long l = 0; j + l < m; ++l) r[e * m + j + l] = pad[e * LANES + l];
}
"""

_ARITHMETIC = {
    ca.OP_ADD: "{0} + {1}", ca.OP_SUB: "{0} - {1}", ca.OP_MUL: "{0} * {1}", ca.OP_DIV: "{0} / {1}", ca.OP_NEG: "-{0}",
    ca.OP_SQ: "{0} * {0}", ca.OP_TWICE: "2.0 * {0}", ca.OP_INV: "1.0 / {0}", ca.OP_ASSIGN: "{0}",
}  # fmt: skip
_COMPARISON = {ca.OP_LT: "<", ca.OP_LE: "<=", ca.OP_EQ: "==", ca.OP_NE: "!="}
_JUNCTION = {ca.OP_AND: "&", ca.OP_OR: "|"}
_TRUTH = frozenset({*_COMPARISON, *_JUNCTION, ca.OP_NOT})
_COMMUTE = frozenset({ca.OP_ADD, ca.OP_MUL})
_UNARY = {
    getattr(ca, f"OP_{name.upper()}"): name
    for name in ("exp", "log", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh", "log1p", "expm1",
                 "erf", "fabs", "floor", "ceil")
}  # fmt: skip
_BINARY = {ca.OP_POW: "pow", ca.OP_CONSTPOW: "pow", ca.OP_FMIN: "least", ca.OP_FMAX: "most", ca.OP_ATAN2: "atan2",
           ca.OP_HYPOT: "hypot", ca.OP_FMOD: "fmod", ca.OP_COPYSIGN: "copysign"}  # fmt: skip
_LIBM = {**_UNARY, **_BINARY}
_VECTORED = frozenset({"exp", "log", "sin", "cos", "tanh"})
"""What GNU's libmvec has for vectors."""
_KNOWN = frozenset({*_ARITHMETIC, *_TRUTH, *_LIBM, ca.OP_SQRT, ca.OP_IF_ELSE_ZERO, ca.OP_INPUT, ca.OP_CONST})


class Value(NamedTuple):
    """One value of the graph: an operation on earlier values, an element of an input, or a constant."""

    op: int
    args: tuple[int, ...]  # numbers of values; of an input: its number and the element
    constant: str = ""


class Graph(NamedTuple):
    """The values of a function in their order, equal ones merged, and which of them its outputs are."""

    values: list[Value]
    outputs: list[list[int]]


def graph_of(function: Any) -> Graph:
    """The instruction list of an SX function with dense outputs; NotImplementedError names an operation not known here."""
    known: dict[Value, int] = {}
    work: dict[int, int] = {}
    outputs = [[-1] * function.numel_out(j) for j in range(function.n_out())]
    for k in range(function.n_instructions()):
        op, given = function.instruction_id(k), function.instruction_input(k)
        if op == ca.OP_OUTPUT:
            j, element = function.instruction_output(k)
            outputs[j][element] = work[given[0]]
            continue
        if op not in _KNOWN:
            names = [n for n in dir(ca) if n.startswith("OP_") and getattr(ca, n) == op]
            raise NotImplementedError(f"{function.name()}: no vector code for the operation {'/'.join(names)}")
        if op == ca.OP_CONST:
            value = Value(op, (), _literal(function.instruction_constant(k)))
        elif op == ca.OP_INPUT:
            value = Value(op, tuple(given))
        else:
            args = tuple(work[w] for w in given)
            value = Value(op, tuple(sorted(args)) if op in _COMMUTE else args)
        work[function.instruction_output(k)[0]] = known.setdefault(value, len(known))
    if any(-1 in out for out in outputs):
        raise ValueError(f"{function.name()}: outputs must be dense")
    return Graph(list(known), outputs)


def _literal(value: float) -> str:
    """A constant of C, exact and of type double; never an operator's neighbour unbracketed."""
    if value != value:
        return "NAN"
    return f"({float(value).hex()})" if abs(value) != float("inf") else f"({'-' if value < 0 else ''}INFINITY)"


class Kernel:
    """C entry ``void kernel(inputs..., outputs..., long n, long m)``: `function` over m columns, n times.

    Inputs named in `uniform` are the same in all columns: the entry takes them as vectors (as a double, where they have
    one element), the others as matrices [elements, m]. `feedback` maps inputs to the outputs that they become at the
    next of the n times. An output in which something varies is a matrix, else a vector. Matrices are C-contiguous;
    outputs alias no input. ValueError where an input and the output it becomes differ in this.
    """

    def __init__(self, function: Any, uniform: Collection[int] = (), feedback: Mapping[int, int] | None = None) -> None:
        self._graph, self._feedback = graph_of(function), dict(feedback or {})
        self._sizes = [function.numel_in(i) for i in range(function.n_in())]
        self._varies: list[bool] = []  # over the columns
        self._moves: list[bool] = []  # from one time to the next
        for op, args, _ in self._graph.values:
            drawn = op == ca.OP_INPUT
            self._varies.append(args[0] not in uniform if drawn else any(self._varies[a] for a in args))
            self._moves.append(args[0] in self._feedback if drawn else any(self._moves[a] for a in args))
        self._wide_in = [i for i in range(len(self._sizes)) if i not in uniform]
        self.wide_out = [j for j, out in enumerate(self._graph.outputs) if any(self._varies[v] for v in out)]
        for i, j in self._feedback.items():
            if (i in self._wide_in) != (j in self.wide_out):
                raise ValueError(
                    f"{function.name()}: input {i} and output {j} must both vary over the columns, or neither"
                )
        self._carried: dict[int, int] = {}  # uniform values that columns use -> their place in c[]

    # ------------------------------------------------------------------------------------------------- expressions
    def _double(self, value: int) -> str:
        """A uniform value where uniform values are computed."""
        return self._graph.values[value].constant or f"s{value}"

    def _operand(self, value: int) -> str:
        """A value where columns are computed: a lane or, where it is uniform, a double."""
        if self._varies[value]:
            return f"v{value}"
        return self._graph.values[value].constant or f"c[{self._carried.setdefault(value, len(self._carried))}]"

    def _lane(self, value: int) -> str:
        return self._operand(value) if self._varies[value] else f"splat({self._operand(value)})"

    def _mask(self, value: int) -> str:
        true = self._varies[value] and self._graph.values[value].op in _TRUTH
        return f"k{value}" if true else f"({self._lane(value)} != splat(0.0))"

    def _scalar(self, value: int) -> str:
        """Statement that computes a uniform value, as CasADi's C does."""
        op, args, constant = self._graph.values[value]
        if constant:
            return ""
        a = [] if op == ca.OP_INPUT else [self._double(x) for x in args]
        if op == ca.OP_INPUT:
            i, e = args
            text = f"f{i}[{e}]" if i in self._feedback else f"i{i}" if self._sizes[i] == 1 else f"i{i}[{e}]"
        elif op in _ARITHMETIC:
            text = _ARITHMETIC[op].format(*a)
        elif op in _COMPARISON:
            text = f"{a[0]} {_COMPARISON[op]} {a[1]}"
        elif op in _JUNCTION:
            text = f"{a[0]} {2 * _JUNCTION[op]} {a[1]}"
        elif op == ca.OP_NOT:
            text = f"!{a[0]}"
        elif op == ca.OP_IF_ELSE_ZERO:
            text = f"{a[0]} ? {a[1]} : 0.0"
        else:
            text = f"{'sqrt' if op == ca.OP_SQRT else _LIBM[op]}({', '.join(a)})"
        return f"const double s{value} = {text};"

    def _vector(self, value: int) -> str:
        """Statement that computes a value of every column; a truth value as k (all bits) beside its v (1 or 0)."""
        op, args, _ = self._graph.values[value]
        if op in _TRUTH:
            if op in _COMPARISON:
                text = f" {_COMPARISON[op]} ".join(self._lane(x) for x in args)
            else:
                text = (
                    f" {_JUNCTION[op]} ".join(self._mask(x) for x in args)
                    if op in _JUNCTION
                    else f"~{self._mask(args[0])}"
                )
            return f"const mask k{value} = {text}; const lane v{value} = pick(k{value}, splat(1.0));"
        if op in _ARITHMETIC:
            text = _ARITHMETIC[op].format(*(self._operand(x) for x in args))
        elif op == ca.OP_IF_ELSE_ZERO:
            text = f"pick({self._mask(args[0])}, {self._lane(args[1])})"
        else:
            a = ", ".join(self._lane(x) for x in args)
            text = f"root({a})" if op == ca.OP_SQRT else f"each_{_LIBM[op]}({a}, w)"
        return f"const lane v{value} = {text};"

    # ------------------------------------------------------------------------------------------------------- source
    def source(self, loose: bool = False) -> str:
        """The C of a library whose one entry is this kernel; `loose`: with libmvec's functions, not to the same bits."""
        ops = sorted({value.op for value in self._graph.values} & _LIBM.keys())

        def kind(op: int) -> str:
            return "BINARY" if op in _BINARY else "VECTOR" if loose and _LIBM[op] in _VECTORED else "UNARY"

        calls = sorted({f"{kind(op)}({_LIBM[op]})" for op in ops})
        group = self._group()  # first: it says which uniform values are carried over
        return "\n".join([PRELUDE, *calls, group, self._entry()])

    def _group(self) -> str:
        """One register of columns through n times."""
        before: list[str] = []
        during: list[str] = []
        for value, (op, args, _) in enumerate(self._graph.values):
            if not self._varies[value]:
                continue
            if op != ca.OP_INPUT:
                (during if self._moves[value] else before).append(self._vector(value))
                continue
            i, e = args
            moving = i in self._feedback
            before.append(f"{f'lane q{i}_{e}' if moving else f'const lane v{value}'} = *(const row*)(i{i} + {e} * ld);")
            if moving:
                during.append(f"const lane v{value} = q{i}_{e};")
        last = {j: i for i, j in self._feedback.items()}
        wide = [(j, e, v) for j in self.wide_out for e, v in enumerate(self._graph.outputs[j])]
        during += [f"q{last[j]}_{e} = {self._lane(v)};" for j, e, v in wide if j in last]
        after = [f"*(row*)(o{j} + {e} * lr) = {f'q{last[j]}_{e}' if j in last else self._lane(v)};" for j, e, v in wide]
        given = [f"const double* i{i}" for i in self._wide_in] + [f"double* o{j}" for j in self.wide_out]
        return "\n".join([
            f"static void group(const double* c, {', '.join(given)}, long ld, long lr, long n, long w) {{",
            *before, "for (long k = 0; k < n; ++k) {", *during, "}", *after, "}",
        ])  # fmt: skip

    def _entry(self) -> str:
        outputs, wide, wide_out = self._graph.outputs, self._wide_in, self.wide_out
        held = [i for i in self._feedback if i not in wide]
        # where something uniform moves, all columns go through one time before the next begins, in place
        abreast = bool(held)
        at = {i: f"o{self._feedback[i]}" if abreast and i in self._feedback else f"i{i}" for i in wide}
        given = [
            f"double i{i}" if n == 1 and i not in wide else f"const double* i{i}" for i, n in enumerate(self._sizes)
        ]
        places = {v: f"c[{k}] = s{v};" for v, k in self._carried.items()}
        once, each = (
            [f"{self._scalar(v)} {places.get(v, '')}" for v, varies in enumerate(self._varies)
             if not varies and self._moves[v] == moving] for moving in (False, True)
        )  # fmt: skip
        ends = [f"o{j}[{e}] = {self._double(v)};" for j, out in enumerate(outputs) if j not in wide_out
                for e, v in enumerate(out)]  # fmt: skip
        turns = [f"f{i}[{e}] = {self._double(v)};" for i in held for e, v in enumerate(outputs[self._feedback[i]])]
        whole = ", ".join([*(f"{at[i]} + j" for i in wide), *(f"o{j} + j" for j in wide_out)])
        rest = ", ".join([*(f"p{i}" for i in wide), *(f"r{j}" for j in wide_out)])
        times = "1" if abreast else "n"
        columns = [
            f"for (long j = 0; j + LANES <= m; j += LANES) group(c, {whole}, m, m, {times}, LANES);",
            "if (m % LANES) {", "const long j = m - m % LANES;",
            *(f"gather(p{i}, {at[i]}, {self._sizes[i]}, m, j);" for i in wide),
            f"group(c, {rest}, LANES, LANES, {times}, m - j);",
            *(f"scatter(o{j}, r{j}, {len(outputs[j])}, m, j);" for j in wide_out), "}",
        ]  # fmt: skip
        body = ["for (long k = 0; k < n; ++k) {", *each, *columns, *ends, *turns, "}"] if abreast else [*columns, *ends]
        return "\n".join([
            f"void kernel({', '.join([*given, *(f'double* o{j}' for j in range(len(outputs)))])}, long n, long m) {{",
            f"double c[{len(places) + 1}];",
            *(f"double f{i}[{self._sizes[i]}]; memcpy(f{i}, i{i}, sizeof f{i});" for i in held),
            *(f"double p{i}[{self._sizes[i]} * LANES];" for i in wide),
            *(f"double r{j}[{len(outputs[j])} * LANES];" for j in wide_out),
            *(f"memcpy({p}, i{i}, sizeof(double) * {self._sizes[i]} * m);" for i, p in at.items() if p[0] == "o"),
            *once, *body, "}\n",
        ])  # fmt: skip
