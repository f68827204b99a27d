"""Two policies on the same donors: who passes where the other does not, and what it costs. Pure statistics of rows.

Batches are paired when process, donor, seed, scenario and fault agree. Batches of one donor are not independent, so that a donor
counts once: its mean difference, or which way its passes differ. With one batch a donor the test of passes is McNemar's
exact one. Differences are always the second policy's less the first's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import binomtest, ttest_1samp, wilcoxon

from simulators.metrics import Row, finished, mean_interval, pass_interval

MEASURED = {"medium": "medium_vv", "cells": "viable_cells", "day": "day"}
"""Figures that are compared, by the column they stand in: vessel volumes, 1e9 viable cells, days."""

ALLOWANCE = 0.02
"""How much worse than the recipe a policy may be under a fault, in pass rate and as a share of its cells up to the dose."""


def meeting(row: Row) -> tuple[Any, ...]:
    """What two policies must share for their batches to be a pair."""
    return str(row.get("process", "")), row["donor"], row["seed"], row["scenario"], row.get("fault", "none")


def matched(a: Sequence[Row], b: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Pairs of batches that both policies ran, in order."""
    by_a, by_b = {meeting(r): r for r in a}, {meeting(r): r for r in b}
    return [(by_a[k], by_b[k]) for k in sorted(set(by_a) & set(by_b))]


def paired(a: Sequence[Row], b: Sequence[Row]) -> dict[str, Any]:
    """Policy `b` against `a` on the donors that both met.

    `n` pairs of `donors`; `only_first` and `only_second` donors on which one passed more often, `p` McNemar's exact test of
    them; `pass_difference` with its 95 % interval (Newcombe 1998, method 10); for each of `MEASURED` the mean difference over
    pairs that ended, its 95 % t interval, and the paired t test's and Wilcoxon's p (None for fewer than two donors);
    `medium_saved`, what `b` takes less where both passed, and its share of what `a` takes.
    """
    pairs = matched(a, b)
    gain = _by_donor(pairs, [float(bool(y["passed"])) - float(bool(x["passed"])) for x, y in pairs])
    first, second = int((gain < 0.0).sum()), int((gain > 0.0).sum())
    both = [(x, y) for x, y in pairs if x["passed"] and y["passed"]]
    ended = [(x, y) for x, y in pairs if len(finished((x, y))) == 2]
    saved = [float(x["medium_vv"]) - float(y["medium_vv"]) for x, y in both]
    return {
        "n": len(pairs),
        "donors": int(gain.size),
        "only_first": first,
        "only_second": second,
        "p": float(binomtest(first, first + second).pvalue) if first + second else 1.0,
        "pass_difference": _rate(pairs, 1) - _rate(pairs, 0) if pairs else None,
        "pass_difference_ci": list(difference_interval(pairs)) if pairs else None,
        **{name: _moved(ended, key) for name, key in MEASURED.items()},
        "medium_saved": float(np.mean(saved)) if saved else None,
        "medium_saved_share": sum(saved) / sum(float(x["medium_vv"]) for x, _ in both) if saved else None,
    }


def _rate(pairs: Sequence[tuple[Row, Row]], side: int) -> float:
    return sum(bool(pair[side]["passed"]) for pair in pairs) / len(pairs)


def _by_donor(pairs: Sequence[tuple[Row, Row]], differences: Sequence[float]) -> np.ndarray:
    found: dict[int, list[float]] = {}
    for (x, _), d in zip(pairs, differences, strict=True):
        found.setdefault(int(x["donor"]), []).append(d)
    return np.array([np.mean(found[d]) for d in sorted(found)])


def _moved(pairs: Sequence[tuple[Row, Row]], key: str) -> dict[str, Any]:
    """Mean difference of one figure, a donor counting once, its t interval, and two tests that it is 0.

    Donors that all differ by the same amount show no spread for t to go by: neither interval nor p, unless that amount is 0.
    """
    d = _by_donor(pairs, [float(y[key]) - float(x[key]) for x, y in pairs])
    ci = mean_interval(d)
    told = {"difference": float(d.mean()) if d.size else None, "ci": None if ci is None else list(ci)}
    if d.size < 2:
        return {**told, "p_t": None, "p_wilcoxon": None}
    if np.ptp(d) > 1e-9 * np.abs(d).max():
        p_t = _p_value(ttest_1samp(d, 0.0))
    elif not d.any():
        p_t = 1.0
    else:
        p_t, told["ci"] = None, None
    apart = d[d != 0.0]
    return {**told, "p_t": p_t, "p_wilcoxon": _p_value(wilcoxon(apart)) if apart.size else 1.0}


def _p_value(test: Any) -> float:
    return float(test.pvalue)


def difference_interval(pairs: Sequence[tuple[Row, Row]]) -> tuple[float, float]:
    """95 % interval of the second's pass rate less the first's, on at least one pair: Newcombe's method 10.

    The limits of the two rates (`pass_interval`), squared and added, less what their correlation over pairs takes away.
    """
    a, b = [x for x, _ in pairs], [y for _, y in pairs]
    p, q = _rate(pairs, 0), _rate(pairs, 1)
    (p_low, p_high), (q_low, q_high) = pass_interval(a), pass_interval(b)
    phi = _correlation(pairs)
    down, up = (q - q_low, p_high - p), (q_high - q, p - p_low)
    low, high = (
        math.sqrt(max(0.0, first * first - 2.0 * phi * first * second + second * second))
        for first, second in (down, up)
    )
    return max(-1.0, q - p - low), min(1.0, q - p + high)


def _correlation(pairs: Sequence[tuple[Row, Row]]) -> float:
    """Correlation of the two passes over pairs, its positive numerator corrected for continuity as Newcombe does."""
    n = len(pairs)
    both = sum(bool(x["passed"] and y["passed"]) for x, y in pairs)
    one = sum(bool(x["passed"]) for x, _ in pairs)
    other = sum(bool(y["passed"]) for _, y in pairs)
    scale = math.sqrt(one * (n - one) * other * (n - other))
    if scale == 0.0:
        return 0.0
    numerator = both * (n - one - other + both) - (one - both) * (other - both)
    return (max(numerator - n / 2.0, 0.0) if numerator > 0 else numerator) / scale


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment: p values such that rejecting all below a level keeps the family's error at that level."""
    n, worst = len(p), 0.0
    adjusted = [0.0] * n
    for k, i in enumerate(sorted(range(n), key=lambda i: p[i])):
        worst = max(worst, min(1.0, (n - k) * p[i]))
        adjusted[i] = worst
    return adjusted


def against(groups: Mapping[str, Sequence[Row]], base: str) -> dict[str, dict[str, Any]]:
    """Every policy that shares donors with `base`, as `paired`, with p values adjusted by Holm's method.

    One family are all policies and figures at once: `p_holm` of McNemar's and the t tests; `p_wilcoxon_holm` of Wilcoxon's
    with McNemar's again, for who prefers ranks.
    """
    found = {name: r for name, rows in groups.items() if name != base and (r := paired(groups[base], rows))["n"]}
    for kind, into in (("p_t", "p_holm"), ("p_wilcoxon", "p_wilcoxon_holm")):
        tests = [(r, r["p"]) for r in found.values()]
        tests += [(r[name], r[name][kind]) for r in found.values() for name in MEASURED if r[name][kind] is not None]
        for (where, _), p in zip(tests, holm([p for _, p in tests]), strict=True):
            where[into] = p
    return found


def usual_base(groups: Mapping[str, Sequence[Row]], summaries: Mapping[str, Mapping[str, Any]], own: str = "") -> str:
    """The policy that others are held against: `own` (the edge's recipe) if it ran, else the recipe that passed most."""
    if own in groups:
        return own
    recipes = [n for n in groups if not n.startswith("mpc") and ":" not in n] or list(groups)
    return max(recipes, key=lambda n: (summaries[n]["pass"], -(summaries[n]["medium_vv"] or 0.0)))


def _useful(row: Row) -> float:
    """Viable cells up to the dose [1e9]; 0 of a batch that raised."""
    dose = row.get("dose")
    return min(float(row["viable_cells"] or 0.0), math.inf if dose is None else float(dose))


def by_fault(groups: Mapping[str, Sequence[Row]], base: str, allowance: float = ALLOWANCE) -> list[dict[str, Any]]:
    """Every policy against `base` under each fault that both met: one record a fault and policy.

    `worse`: by more than `allowance` in pass rate, or in mean viable cells as a share of `base`'s. `cells` and `base_cells`
    [1e9] count up to the dose, the `dose` of a row, because no patient is given more: who harvests at the dose is not worse
    than who overshoots it. A row without one (None) counts whole. A batch that raised has not passed and has no cells.
    """
    found: list[dict[str, Any]] = []
    for fault in sorted(
        {str(r.get("fault", "none")) for rows in groups.values() for r in rows}, key=lambda f: (f != "none", f)
    ):
        under = {n: [r for r in rows if r.get("fault", "none") == fault] for n, rows in groups.items()}
        for name, rows in under.items():
            pairs = matched(under[base], rows) if name != base else []
            if not pairs:
                continue
            mine, its = (sum(_useful(p[k]) for p in pairs) / len(pairs) for k in (1, 0))
            medium = [float(y["medium_vv"]) - float(x["medium_vv"]) for x, y in pairs if len(finished((x, y))) == 2]
            difference = _rate(pairs, 1) - _rate(pairs, 0)
            found.append({
                "fault": fault, "policy": name, "n": len(pairs), "pass": _rate(pairs, 1), "base_pass": _rate(pairs, 0),
                "pass_difference": difference, "pass_difference_ci": list(difference_interval(pairs)), "cells": mine, "base_cells": its,
                "cells_difference": mine / its - 1.0 if its > 0.0 else 0.0,
                "medium_difference": float(np.mean(medium)) if medium else None,
                "worse": difference < -allowance - 1e-12 or mine < (1.0 - allowance) * its,
            })  # fmt: skip
    return found
