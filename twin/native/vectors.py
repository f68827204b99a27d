"""A CasADi graph over columns without a compiler: one instruction of the virtual machine for all columns at once.

Mapped column by column, the virtual machine interprets every instruction m times. Over vectors it does so once, and the
loops within an instruction are CasADi's own machine code: the same operations, in the same order, with the same bits.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import casadi as ca

from twin.native.simd import graph_of


def over_columns(function: Any, uniform: Collection[int], wide_out: Collection[int], m: int) -> Any:
    """An SX function over m columns: inputs but for the `uniform` ones, and outputs in `wide_out`, are [m, elements]."""
    graph = graph_of(function)
    shapes = [(n,) if i in uniform else (m, n) for i, n in enumerate(map(function.numel_in, range(function.n_in())))]
    inputs = [ca.MX.sym(f"i{i}", *shape) for i, shape in enumerate(shapes)]
    drawn = [ca.vertsplit(x) if i in uniform else ca.horzsplit(x) for i, x in enumerate(inputs)]
    known: list[Any] = []
    for op, args, constant in graph.values:
        if constant:
            known.append(ca.MX(_number(constant)))
        elif op == ca.OP_INPUT:
            known.append(drawn[args[0]][args[1]])
        else:
            known.append(
                ca.MX.unary(op, known[args[0]]) if len(args) == 1 else ca.MX.binary(op, *map(known.__getitem__, args))
            )
    ones = ca.MX.ones(m)
    outputs = [
        ca.horzcat(*(known[v] if known[v].numel() == m else ones * known[v] for v in out)) if j in wide_out
        else ca.vertcat(*(known[v] for v in out))
        for j, out in enumerate(graph.outputs)
    ]  # fmt: skip
    return ca.Function(function.name(), inputs, outputs)


def _number(literal: str) -> float:
    """The constant that `graph_of` wrote in C."""
    text = literal.strip("()")
    return float(text.lower()) if text[-1] in "NY" else float.fromhex(text)
