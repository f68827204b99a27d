"""Rows of a benchmark, timed in turns: what disturbs the machine disturbs all of them alike."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from twin.native.build import compiler


class Posterior(NamedTuple):
    """What a row computed: one Gaussian, or several stacked."""

    mean: np.ndarray  # [..., n]
    cov: np.ndarray  # [..., n, n]


class Owed(NamedTuple):
    """A figure that is promised, and what was measured."""

    claim: str
    limit: float
    measured: float | None  # None: it could not be, see `why`
    met: bool
    answer: bool = False  # about what is computed, not about how long it takes
    why: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """One implementation of the problem of a group; the first row of a group is what the others are held to."""

    name: str
    group: str
    run: Callable[[], Any]  # -> what it computed
    times: int  # how often it is timed in all
    scale: float = 1.0  # the work of the group over the work that is timed


class Timed(NamedTuple):
    """A row as it ran, or why it did not."""

    name: str
    group: str
    ms: tuple[float, ...]
    posterior: Any | None  # what it computed
    skipped: str = ""
    base_ms: float | None = None  # median of the first row of the group, where that was timed in another process


def run_rows(rows: Sequence[Row], rounds: int, advance: Callable[[float], None]) -> list[Timed]:
    """Every row once untimed, then `rounds` rounds in which each takes its share of its times.

    All rows are one thread that computes, so CPU time is what they would take on a machine of their own; by the clock on
    the wall, the long ones would pay for whatever else runs.
    """
    posteriors = [row.run() for row in rows]
    seconds: list[list[float]] = [[] for _ in rows]
    for k in range(rounds):
        for row, taken in zip(rows, seconds, strict=True):
            while len(taken) * rounds < row.times * (k + 1):
                begun = time.process_time()
                row.run()
                taken.append((time.process_time() - begun) * row.scale)
        advance(1.0)
    return [
        Timed(row.name, row.group, tuple(1e3 * s for s in taken), posterior)
        for row, taken, posterior in zip(rows, seconds, posteriors, strict=True)
    ]


def without_compiler(bench: str, given: dict[str, Any]) -> list[dict[str, Any]]:
    """What `answer(given)` of `service.bench.<bench>` says in a process of its own that is to find no compiler."""
    done = subprocess.run(
        [sys.executable, "-m", "service.bench", bench, json.dumps(given)],
        env={**os.environ, "CELLTWIN_COMPILER": "none"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(f"the run without a compiler failed: {done.stderr.strip().splitlines()[-1:]}")
    return list(json.loads(done.stdout))


def apart(a: Posterior, b: Posterior) -> float:
    """Largest difference of two posteriors, means and standard deviations, in standard deviations of `b`."""
    sd_a, sd_b = (np.sqrt(np.diagonal(p.cov, 0, -2, -1)) for p in (a, b))
    return float(np.max(np.maximum(np.abs(a.mean - b.mean), np.abs(sd_a - sd_b)) / sd_b))


def machine(packages: Sequence[str]) -> dict[str, Any]:
    """What the figures were measured on."""
    tool = compiler()
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "compiler": Path(tool).name if tool else None,
        **{name: _version(name) for name in packages},
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or "unknown")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
