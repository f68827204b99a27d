"""What a campaign of virtual batches says about a policy."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from simulators.plant import PlantState
from twin.gas import Gas
from twin.process import Target

Row = Mapping[str, Any]
"""One finished batch as `simulators.campaign.row_of` writes it."""

Z95 = 1.959963984540054


def wilson(passed: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson score interval of a proportion, 95 % by default. Raises ValueError unless 0 <= passed <= n, n > 0."""
    if not 0 <= passed <= n or n < 1:
        raise ValueError(f"{passed} of {n} is no proportion")
    p = passed / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def margin(targets: Sequence[Target], cqas: Mapping[str, float]) -> float:
    """Smallest relative distance of a batch from its targets: negative where one is missed, inf without targets."""
    distances = [
        (cqas[t.cqa] / t.value - 1.0) if t.sense == "at_least" else (1.0 - cqas[t.cqa] / t.value) for t in targets
    ]
    return min(distances, default=math.inf)


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """Figures of one policy over its batches (at least one), true values throughout.

    `pass` with its 95 % Wilson interval `pass_ci`; `days` and `medium_vv` (vessel volumes delivered), means over all
    batches; `harvest_cv` the coefficient of variation of viable density over passed batches (None for fewer than two);
    `missed` how often each target was missed; `worst` the batch farthest below a target.
    """
    if not rows:
        raise ValueError("a summary needs at least one batch")
    n, passed = len(rows), sum(bool(r["passed"]) for r in rows)
    density = np.array([r["viable_density"] for r in rows if r["passed"]], dtype=float)
    missed = Counter(cqa for r in rows for cqa in str(r["missed"]).split(",") if cqa)
    worst = min(rows, key=lambda r: (r["margin"], r["donor"]))
    return {
        "pass": passed / n,
        "pass_ci": list(wilson(passed, n)),
        "days": _mean(rows, "day"),
        "medium_vv": _mean(rows, "medium_vv"),
        "medium_vv_passed": _mean([r for r in rows if r["passed"]], "medium_vv"),
        "harvest_cv": float(density.std(ddof=1) / density.mean()) if density.size > 1 else None,
        "n": n,
        "cytokine": _mean(rows, "cytokine"),
        "lactate_peak": float(max(r["lactate_peak"] for r in rows)),
        "missed": dict(sorted(missed.items())),
        "worst": {k: worst[k] for k in ("donor", "missed", "margin", "day", "viable_cells", "viability", "medium_vv")},
    }


def _mean(rows: Sequence[Row], key: str) -> float | None:
    return float(np.mean([r[key] for r in rows])) if rows else None


def paired(a: Sequence[Row], b: Sequence[Row]) -> dict[str, Any]:
    """Two policies on the donors that both met: who passed where, the sign test's p, and the medium that b takes less.

    A donor is met again when number, seed and scenario agree.
    """

    def key(r: Row) -> tuple[Any, ...]:
        return r["donor"], r["seed"], r["scenario"]

    by_a, by_b = {key(r): r for r in a}, {key(r): r for r in b}
    common = sorted(set(by_a) & set(by_b))
    only_a = sum(bool(by_a[k]["passed"]) and not by_b[k]["passed"] for k in common)
    only_b = sum(bool(by_b[k]["passed"]) and not by_a[k]["passed"] for k in common)
    both = [k for k in common if by_a[k]["passed"] and by_b[k]["passed"]]
    discordant = only_a + only_b
    tail = sum(math.comb(discordant, i) for i in range(min(only_a, only_b) + 1)) / 2**discordant
    return {
        "n": len(common),
        "only_first": only_a,
        "only_second": only_b,
        "p": min(1.0, 2.0 * tail),
        "medium_saved": float(np.mean([by_a[k]["medium_vv"] - by_b[k]["medium_vv"] for k in both])) if both else None,
    }


def cqas(x: PlantState, gas: Gas) -> Mapping[str, float]:
    """True quality attributes by the names of `twin.process.Target`."""
    return {
        "viable_cells": float(x.viable_cells),
        "viable_density": float(x.viable),
        "viability": float(x.viability),
        "car_fraction": float(x.car_fraction),
        "exhausted_fraction": float(x.exhausted),
        "lactate": float(x.lactate),
        "ammonia": float(x.ammonia),
        "ph": float(gas.ph),
    }
