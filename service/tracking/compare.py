"""Two runs side by side: what they rest on, and what came of them. Values in, values out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from service.tracking.record import Record

LIMIT = 4.0
"""Largest distance of two sampled statistics, in their combined Monte-Carlo standard errors: chance oversteps it for
one statistic in 16 000 (two-sided normal), so for the 16 of eight parameters in one rerun of 1000."""

ABSENT = "absent"
ENVIRONMENT = ("python", "platform", "machine", "compiler", "threads")


@dataclass(frozen=True, slots=True)
class Difference:
    """Something that a run rests on and that is not as it was."""

    kind: str  # code | configuration | data | environment
    what: str
    then: str
    now: str

    @property
    def blocks(self) -> bool:
        """Is a rerun refused for it? Another environment is told only."""
        return self.kind != "environment"

    def __str__(self) -> str:
        return f"{self.kind}: {self.what} was {self.then}, is {self.now}"


@dataclass(frozen=True, slots=True)
class Row:
    """One result, then and now."""

    name: str
    then: str
    now: str  # a digest in full, an exit code, or a statistic with its error
    distance: float | None  # in combined Monte-Carlo standard errors; None: compared for equality
    equal: bool
    counts: bool = True  # does the verdict rest on it?


def differences(
    then: Record, code: Mapping[str, Any], inputs: Mapping[str, str | None], environment: Mapping[str, Any]
) -> list[Difference]:
    """What is not as it was: `code` and `environment` as `service.tracking.provenance` tells them, digests of inputs by parameter."""
    found: list[Difference] = []
    if then.code["version"] != code["version"]:
        found.append(Difference("code", "version", str(then.code["version"]), str(code["version"])))
    if then.code["source_sha256"] != code["source_sha256"]:
        found.append(Difference("code", "source", source(then.code), source(code)))
    for name, held in then.inputs.items():
        now = inputs.get(name)
        if held["sha256"] != now:
            kind = "data" if held["role"] in ("data", "prior") else "configuration"
            found.append(Difference(kind, f"{name} {held['given']}", short(held["sha256"]), short(now)))
    packages, held_now = then.environment.get("packages", {}), environment.get("packages", {})
    pairs = {k: (then.environment.get(k), environment.get(k)) for k in ENVIRONMENT} | {
        k: (packages.get(k), held_now.get(k)) for k in sorted({*packages, *held_now} - {"celltwin"})
    }
    found += [Difference("environment", k, str(a), str(b)) for k, (a, b) in pairs.items() if a != b]
    return found


def source(code: Mapping[str, Any]) -> str:
    """A code version in a few words."""
    commit = (
        f", commit {str(code['commit'])[:12]}{' with changes' if code['dirty'] else ''}" if code.get("commit") else ""
    )
    return f"{short(code['source_sha256'])}{commit}"


def short(sha256: str | None) -> str:
    """The first digits of a digest."""
    return ABSENT if sha256 is None else sha256[:12]


def compared(
    then: Record,
    exit_code: int,
    outputs: Mapping[str, str],
    statistics: Mapping[str, tuple[float, float]],
    sampled: bool,
) -> list[Row]:
    """Every result of the rerun beside the record's. Of a sampler the statistics decide, and equal bits are told only."""
    rows = [Row("exit code", str(then.exit_code), str(exit_code), None, then.exit_code == exit_code)]
    for name in (*then.outputs, *(n for n in outputs if n not in then.outputs)):
        a, b = then.outputs.get(name), outputs.get(name)
        rows.append(Row(name, a or ABSENT, b or ABSENT, None, a is not None and a == b, counts=not sampled))
    if sampled:
        names = (*then.statistics, *(n for n in statistics if n not in then.statistics))
        rows += [_statistic(n, then.statistics.get(n), statistics.get(n)) for n in names]
    return rows


def _statistic(name: str, then: tuple[float, float] | None, now: tuple[float, float] | None) -> Row:
    away = None if then is None or now is None else distance(then, now)
    return Row(name, _told(then), _told(now), away, equal=away is not None and away <= LIMIT)


def _told(statistic: tuple[float, float] | None) -> str:
    return ABSENT if statistic is None else f"{statistic[0]:.4f} +- {statistic[1]:.4f}"


def distance(then: tuple[float, float], now: tuple[float, float]) -> float:
    """Distance of two estimates in their combined standard errors; 0 where they are the same number, infinite without an error."""
    if then[0] == now[0]:
        return 0.0
    error = math.hypot(then[1], now[1])
    away = abs(then[0] - now[0]) / error if error > 0.0 else math.inf
    return away if not math.isnan(away) else math.inf


def same(rows: list[Row]) -> bool:
    """Did the rerun give the same? A run that left nothing to compare has shown nothing."""
    decisive = [r for r in rows if r.counts]
    return all(r.equal for r in decisive) and len(decisive) > 1
