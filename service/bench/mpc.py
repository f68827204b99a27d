"""`celltwin bench mpc`: the controller's solvers beside do-mpc on one problem and horizon, agreement and robustness included.

Every row solves the same instants one after the other, each from the last solution; a time is that of one solve. Objectives
are compared instant by instant, each from the same state: all rows transcribe by the same collocation with limits at nodes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from service.bench import mpc_peers, timing
from service.bench.mpc_bad import bad_states, cold_starts
from service.bench.mpc_problem import STAGES, Case, in_turn, recorded
from service.bench.timing import Owed, Row, Timed, machine, run_rows
from twin.native.build import compiler
from twin.process import Process

NOMINAL, TREE = "24 moves of 6 h, 12 states, 3 inputs", "the same, 9 scenarios that share the first move"
DEFAULT, TUNED, LEAN = "do-mpc, default", "do-mpc, tuned", "lean collocation, IPOPT"
OURS, BARE, ONCE = "ours", "ours, no compiler", "ours, one real-time iteration"
CASES, TREES = 6, 3
ROUNDS = 3
STARTS, STATES = 100, 1000
PACKAGES = ("numpy", "scipy", "casadi", "piqp", "do-mpc")


def rows_nominal(process: Process, cases: list[Case], effort: float) -> list[Row]:
    """Peers first; without do-mpc, lean collocation leads."""
    times = max(1, round(3 * effort))
    rows = [Row(LEAN, NOMINAL, partial(mpc_peers.Lean(process).in_turn, cases), times, 1.0 / len(cases))]
    if mpc_peers.installed():
        rows = [
            Row(name, NOMINAL, partial(mpc_peers.DoMpc(process, 1, tuned).in_turn, cases), times, 1.0 / len(cases))
            for name, tuned in ((DEFAULT, False), (TUNED, True))
        ] + rows
    return rows


def ours(process: Process, cases: list[Case], effort: float, label: str, scenarios: int = 1) -> list[Row]:
    """Our rows: converged, and by real-time iterations from a first solution that is not timed."""
    group = NOMINAL if scenarios == 1 else TREE
    first = in_turn(process, cases[:1], scenarios)[0]

    def run() -> np.ndarray:
        return np.array([f.cost for f in in_turn(process, cases, scenarios)])

    def iterate() -> None:
        in_turn(process, cases[1:], scenarios, True, first)

    times = max(1, round((6 if scenarios == 1 else 2) * effort))
    once = ONCE if label == OURS else f"{ONCE}, no compiler"
    return [
        Row(label, group, run, times, 1.0 / len(cases)),
        Row(once, group, iterate, times, 1.0 / (len(cases) - 1)),
    ]


def peers_tree(process: Process, cases: list[Case], advance: Callable[[float], None]) -> list[Timed]:
    """do-mpc with nine scenarios: one cold solve each, which may take minutes."""
    done: list[Timed] = []
    for name, tuned in ((DEFAULT, False), (TUNED, True)) if mpc_peers.installed() else ():
        peer = mpc_peers.DoMpc(process, 9, tuned)
        begun = time.process_time()
        costs = peer.in_turn(cases[:1])
        done.append(Timed(name, TREE, (1e3 * (time.process_time() - begun),), costs))
        advance(1.0)
    return done


def measure(process: Process, seed: int, effort: float, advance: Callable[[float], None]) -> dict[str, Any]:
    """All rows, as `--json` gives them. `advance` is told of every round, `ROUNDS + 7` in all."""
    cases = recorded(process, seed, CASES)
    label = OURS if compiler() else BARE
    done = run_rows([*rows_nominal(process, cases, effort), *ours(process, cases, effort, label)], ROUNDS, advance)
    done += peers_tree(process, cases, advance)
    done += run_rows(ours(process, cases[:TREES], effort, label, 9), 1, advance)
    if compiler():
        done += without_compiler(process, seed, effort)
    advance(1.0)
    if not mpc_peers.installed():
        done.append(Timed("do-mpc", NOMINAL, (), None, "not installed: pip install 'celltwin[bench]'"))
    failed = cold_starts(process, seed, STARTS)
    advance(1.0)
    left, silent = bad_states(process, seed, STATES)
    advance(2.0)
    rows = [row for group in (NOMINAL, TREE) for row in figures([t for t in done if t.group == group])]
    return {
        "rows": rows,
        "owed": [o._asdict() for o in [*_owed(done, rows), *_robust(failed, left, silent)]],
        "problem": {"process": process.name, "coordinates": 12, "moves": STAGES, "instants": len(cases), "seed": seed},
        "machine": {"clock": "CPU time of the process", **machine(PACKAGES)},
    }


def figures(done: list[Timed]) -> list[dict[str, Any]]:
    """One group: medians, how each row compares with the first, and its objectives with the reference's."""
    rows: list[dict[str, Any]] = []
    reference = next((t.posterior for name in (LEAN, TUNED) for t in done if t.name == name), None)
    for t in done:
        row: dict[str, Any] = {"name": t.name, "group": t.group}
        if t.skipped:
            row |= {"median_ms": None, "p95_ms": None, "ratio": None, "agreement": None, "skipped": t.skipped}
        else:
            median, first = float(np.median(t.ms)), t.base_ms or float(np.median(done[0].ms))
            row |= {"median_ms": median, "p95_ms": float(np.percentile(t.ms, 95)), "base_ms": first,
                    "ratio": first / median, "agreement": _apart(t.posterior, reference)}  # fmt: skip
        rows.append(row)
    return rows


def _apart(costs: np.ndarray | None, reference: np.ndarray | None) -> float | None:
    """Largest relative difference of objectives over the instants that both have; None where one failed."""
    if costs is None or reference is None:
        return None
    n = min(len(costs), len(reference))
    apart = float(np.max(np.abs(costs[:n] - reference[:n]) / np.abs(reference[:n])))
    return apart if np.isfinite(apart) else None


def _owed(done: list[Timed], rows: list[dict[str, Any]]) -> list[Owed]:
    by = {(row["group"], row["name"]): row for row in rows}
    owed: list[Owed] = []
    if mpc_peers.installed():
        least = [
            (NOMINAL, OURS, 15.0), (NOMINAL, BARE, 4.0), (NOMINAL, ONCE, 50.0), (TREE, OURS, 8.0), (TREE, ONCE, 50.0),
        ]  # fmt: skip
        owed = [
            Owed(f"{'9 scenarios: ' if group == TREE else ''}{name}: times {DEFAULT}, at least", limit, by[group, name]["ratio"],
                 by[group, name]["ratio"] >= limit)
            for group, name, limit in least if (group, name) in by
        ]  # fmt: skip
    for group, name in ((NOMINAL, OURS), (NOMINAL, BARE), (NOMINAL, TUNED), (TREE, OURS)):
        row = by.get((group, name))
        if row is None or (group == TREE and not mpc_peers.installed()):  # only do-mpc solves nine scenarios beside us
            continue
        off = row["agreement"]
        what = f"{'9 scenarios: ' if group == TREE else ''}{name}: objective, relative difference, at most"
        why = "" if off is not None else "no objective of both to compare: a solve failed or was given up"
        owed.append(Owed(what, 1e-6, off, off is not None and off <= 1e-6, name != TUNED, why))
    return owed


def _robust(failed: int, left: int, silent: int) -> list[Owed]:
    return [
        Owed(f"failures of {STARTS} random cold starts beyond the soft lactate limit, at most", 0, failed, failed == 0, answer=True),
        Owed(f"plans that leave from {STATES} random bad states, at most", 0, left, left == 0, answer=True),
        Owed("of these without a reason, at most", 0, silent, silent == 0, answer=True),
    ]  # fmt: skip


def without_compiler(process: Process, seed: int, effort: float) -> list[Timed]:
    """Our nominal rows in a process of its own that is to find no compiler; the first peer is timed there again."""
    return [
        Timed(
            t["name"], NOMINAL, tuple(t["ms"]), None if t["costs"] is None else np.array(t["costs"]), "", t["base_ms"]
        )
        for t in timing.without_compiler("mpc", {"process": process.name, "seed": seed, "effort": effort})
    ]


def answer(told: str) -> str:
    """What that process prints."""
    from twin.config import load_config

    given = json.loads(told)
    process = load_config(given["process"])
    cases = recorded(process, given["seed"], CASES)
    first = rows_nominal(process, cases, given["effort"])[0]
    done = run_rows([first, *ours(process, cases, given["effort"], BARE)], ROUNDS, lambda _: None)
    base = float(np.median(done[0].ms))
    return json.dumps(
        [
            {
                "name": t.name,
                "ms": t.ms,
                "base_ms": base,
                "costs": None if t.posterior is None else t.posterior.tolist(),
            }
            for t in done[1:]
        ]
    )
