"""What a campaign of virtual batches says about a policy."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import stdtrit

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
    return _wilson(passed / n, n, z)


def _wilson(p: float, n: float, z: float = Z95) -> tuple[float, float]:
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def margin(targets: Sequence[Target], cqas: Mapping[str, float]) -> float:
    """Smallest relative distance of a batch from its targets: negative where one is missed, inf without targets."""
    distances = [
        (cqas[t.cqa] / t.value - 1.0) if t.sense == "at_least" else (1.0 - cqas[t.cqa] / t.value) for t in targets
    ]
    return min(distances, default=math.inf)


def dose(targets: Sequence[Target]) -> float | None:
    """Viable cells that a batch must yield [1e9]; None where no target asks for any."""
    return max((t.value for t in targets if t.cqa == "viable_cells" and t.sense == "at_least"), default=None)


OUTCOME = (
    "margin", "day", "medium_vv", "feed_vv", "cytokine", "viable_cells", "viable_density", "viability", "car_fraction",
    "exhausted_fraction", "lactate", "ammonia", "ph", "lactate_peak", "viability_low", "decisions", "lapsed", "overrides",
    "overrides_refused", "facts_refused",
)  # fmt: skip
"""Figures of a row; None where a batch raised and has no outcome."""


def finished(rows: Iterable[Row]) -> list[Row]:
    """The rows of batches that have an outcome."""
    return [r for r in rows if not r.get("error")]


def by_donor(rows: Sequence[Row], key: str) -> np.ndarray:
    """Mean of one figure over the batches of each donor, donors ascending."""
    found: dict[int, list[float]] = {}
    for r in rows:
        found.setdefault(int(r["donor"]), []).append(float(r[key]))
    return np.array([np.mean(found[d]) for d in sorted(found)])


def pass_interval(rows: Sequence[Row]) -> tuple[float, float]:
    """95 % interval of the pass fraction: Wilson's, over as many independent batches as these are worth.

    Batches of one donor are not independent: their number is divided by the design effect, the variance of the fraction
    between donors over the binomial one (Korn and Graubard 1998), at least 1. Where all or none passed, a donor counts once.
    """
    n, passed = len(rows), sum(bool(r["passed"]) for r in rows)
    shares = by_donor(rows, "passed")
    if shares.size == n:
        return wilson(passed, n)
    p, worth = passed / n, float(shares.size)
    if 0.0 < p < 1.0 and shares.size > 1:
        effect = float(shares.var(ddof=1)) / shares.size / (p * (1.0 - p) / n)
        worth = n / max(1.0, effect)
    return _wilson(p, worth)


def mean_interval(values: np.ndarray) -> tuple[float, float] | None:
    """95 % t interval of a mean of independent values; None for fewer than two."""
    if values.size < 2:
        return None
    half = float(stdtrit(values.size - 1, 0.975)) * float(values.std(ddof=1)) / math.sqrt(values.size)
    return float(values.mean()) - half, float(values.mean()) + half


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """Figures of one policy over its batches (at least one), true values throughout.

    `pass` with its 95 % interval `pass_ci` (`pass_interval`), a batch that raised counting as not passed; `days`, `medium_vv`
    (vessel volumes delivered) and `cells` (1e9 viable), means over all batches that ended, with 95 % t intervals over donors;
    `harvest_cv` the coefficient of variation of viable density over passed batches (None for fewer than two); `missed` how
    often each target was missed; `worst` the batch farthest below a target; `errors` how many raised; `lapsed` how many of all
    `decisions` asked for nothing (no usable plan, or readings too old), so that the edge kept to its recipe. None: no batch to say.
    """
    if not rows:
        raise ValueError("a summary needs at least one batch")
    n, passed, ended = len(rows), sum(bool(r["passed"]) for r in rows), finished(rows)
    density = np.array([r["viable_density"] for r in rows if r["passed"]], dtype=float)
    missed = Counter(cqa for r in rows for cqa in str(r["missed"]).split(",") if cqa)
    worst = min(ended, key=lambda r: (r["margin"], r["donor"])) if ended else None
    means = {"days": "day", "medium_vv": "medium_vv", "cells": "viable_cells"}
    intervals = {f"{name}_ci": mean_interval(by_donor(ended, key)) for name, key in means.items()}
    return {
        "pass": passed / n,
        "pass_ci": list(pass_interval(rows)),
        "days": _mean(ended, "day"),
        "medium_vv": _mean(ended, "medium_vv"),
        "medium_vv_passed": _mean([r for r in rows if r["passed"]], "medium_vv"),
        "cells": _mean(ended, "viable_cells"),
        **{name: None if ci is None else list(ci) for name, ci in intervals.items()},
        "harvest_cv": float(density.std(ddof=1) / density.mean()) if density.size > 1 else None,
        "n": n,
        "donors": len({r["donor"] for r in rows}),
        "errors": n - len(ended),
        **{k: sum(int(r.get(k) or 0) for r in ended) for k in ("decisions", "lapsed")},
        "cytokine": _mean(ended, "cytokine"),
        "lactate_peak": max((float(r["lactate_peak"]) for r in ended), default=None),
        "missed": dict(sorted(missed.items())),
        "worst": None if worst is None else {
            k: worst[k] for k in ("donor", "missed", "margin", "day", "viable_cells", "viability", "medium_vv")
        },
    }  # fmt: skip


def _mean(rows: Sequence[Row], key: str) -> float | None:
    return float(np.mean([r[key] for r in rows])) if rows else None


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
