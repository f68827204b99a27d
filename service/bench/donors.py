"""`celltwin bench donors`: the hierarchical fit beside PyMC's own sampler, on one model and one data set, in one run.

Both sample the same PyMC model. The peer is `pm.sample` as a user would call it; it is given a budget of CPU time, and what
it says is scored by its effective draws over the CPU time of those draws alone, its warm-up not counted: that favours it.
Ours is scored with everything in it (graph, start, warm-up, all chains). The effective number of a hundred draws of a chain that
has hardly converged is noise: read the ratio as its order of magnitude, the gradients' as exact.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from service.bench.timing import Owed, machine
from twin.donors.data import prepare
from twin.donors.fit import PACKAGES, POPULATION, Settings, fit
from twin.donors.model import FIT_PARAMETERS, build, starting_scales
from twin.donors.sample import density, import_arviz
from twin.process import Process
from twin.records import RecordedBatch

if TYPE_CHECKING:
    import arviz
    import pymc as pm

GRADIENT, POSTERIOR = "log-density and gradient", "posterior: CPU time an effective draw of the worst parameter"
ADVANCES = 5.0
LEAST = 100
"""Draws that the peer keeps at the least, whatever the budget."""
BUDGET = 240.0
"""CPU time of the peer [s], its compilation not counted."""
WALL = 90.0
"""Longest wall time of the whole fit [s], graph and start included."""


def measure(
    records: Sequence[RecordedBatch],
    process: Process,
    seed: int,
    effort: float,
    advance: Callable[[float], None],
    sampling: Settings = Settings(),  # noqa: B008
) -> dict[str, Any]:
    """Rows, what is owed, and the fit's diagnostics. `effort` scales the peer's budget; 0 leaves its sampling out."""
    model = build(prepare(records, process), process)
    logging.getLogger("pytensor").setLevel(logging.CRITICAL)  # a rewrite that it skips is told with a traceback
    rows = _gradients(model, starting_scales(process), advance)
    began, cpu = time.perf_counter(), _cpu()
    result = fit(records, process, settings=sampling._replace(seed=seed))
    wall, spent = time.perf_counter() - began, _cpu() - cpu
    advance(2.0)
    ours = _least_ess(result.posterior)
    peer = _peer(model, effort * BUDGET, seed) if effort > 0 else None
    advance(2.0)
    each = 1e3 * spent / ours
    if peer is not None:
        rows.append(_row(f"PyMC's NUTS, its {peer[2]} draws alone", POSTERIOR, 1e3 * peer[0] / peer[1], None, 1.0))
    base = rows[-1]["median_ms"] if peer is not None else each
    rows.append(_row(f"ours: {result.sampler}, everything", POSTERIOR, each, None, base / each))
    d = result.diagnostics
    far = rows[1]["agreement"]
    owed = [
        Owed("gradient, from PyMC's, relative, at most", 1e-8, far, far <= 1e-8, answer=True),
        Owed("wall time of the whole fit [s], at most", WALL, wall, wall <= WALL),
        Owed("R-hat below", 1.01, d.r_hat, d.r_hat < 1.01, answer=True),
        Owed("bulk ESS above", 400.0, d.ess_bulk, d.ess_bulk > 400.0, answer=True),
        Owed("divergent draws at most", 0.0, float(d.divergent), d.divergent == 0, answer=True),
        *(
            [Owed("effective draws per CPU-s over PyMC's at least", 10.0, base / each, base / each >= 10.0)]
            if peer
            else []
        ),
    ]
    return {
        "rows": rows,
        "owed": [o._asdict() for o in owed],
        "problem": {"coordinates": int(density(model).start.size), "donors": len({r.donor for r in records}), "parameters": list(FIT_PARAMETERS)},
        "fit": {
            "wall_s": wall, "cpu_s": spent, "ess": ours, "r_hat": d.r_hat, "ess_bulk": d.ess_bulk, "ess_tail": d.ess_tail,
            "divergent": d.divergent, "draws": d.draws, "worst": d.worst,
            "peer": None if peer is None else {"cpu_s": peer[0], "ess": peer[1], "draws": peer[2]},
        },
        "machine": machine(PACKAGES),
    }  # fmt: skip


def _row(
    name: str, group: str, ms: float, agreement: float | None, ratio: float, p95: float | None = None
) -> dict[str, Any]:
    return {
        "name": name, "group": group, "median_ms": ms, "p95_ms": ms if p95 is None else p95, "ratio": ratio,
        "agreement": agreement, "skipped": "",
    }  # fmt: skip


def _gradients(model: pm.Model, start: dict[str, np.ndarray], advance: Callable[[float], None]) -> list[dict[str, Any]]:
    """PyMC's compiled gradient and ours at the same points: CPU times, and the largest relative difference."""
    ours = density(model, start)
    owners, rng = np.array(ours.owners), np.random.default_rng(1)
    points = ours.start + 0.02 * rng.standard_normal((20, ours.start.size))
    function = model.logp_dlogp_function(ravel_inputs=True)
    function.set_extra_values({})
    order = [v.name for v in model.value_vars]
    places = np.concatenate([np.flatnonzero(owners == n) for n in order])
    seconds: tuple[list[float], list[float]] = ([], [])
    off = 0.0
    for q in points:
        mine = np.ascontiguousarray(q[places])
        begun = time.process_time()
        value, gradient = function(mine)
        middle = time.process_time()
        said, slope = ours.value_and_gradient(q)
        seconds[0].append(middle - begun)
        seconds[1].append(time.process_time() - middle)
        off = max(
            off,
            abs(float(value) - said) / abs(said),
            float(np.abs(gradient - slope[places]).max() / np.abs(slope).max()),
        )
    advance(1.0)
    ms = [1e3 * np.array(s[2:]) for s in seconds]
    base = float(np.median(ms[0]))
    return [
        _row("PyMC: PyTensor, compiled as pm.sample does", GRADIENT, base, None, 1.0, float(np.quantile(ms[0], 0.95))),
        _row("ours: replayed graph, vector adjoint", GRADIENT, float(np.median(ms[1])), off, base / float(np.median(ms[1])),
             float(np.quantile(ms[1], 0.95))),
    ]  # fmt: skip


def _peer(model: pm.Model, budget: float, seed: int) -> tuple[float, float, int] | None:
    """CPU time of pm.sample's draws after warm-up [s], their least effective number, and how many there were."""
    import pymc as pm

    at: list[tuple[bool, float]] = []

    def clock(trace: Any, draw: Any) -> None:
        at.append((bool(draw.tuning), time.process_time()))
        if at[-1][1] - at[0][1] > budget and sum(not t for t, _ in at) >= LEAST:
            raise KeyboardInterrupt

    with model:
        trace = pm.sample(
            draws=2000, tune=150, chains=1, cores=1, random_seed=seed, progressbar=False, callback=clock,
            compute_convergence_checks=False,
        )  # fmt: skip
    kept = [t for tuning, t in at if not tuning]
    warmed = max((t for tuning, t in at if tuning), default=at[0][1])
    return kept[-1] - warmed, _least_ess(trace), len(kept)


def _least_ess(draws: arviz.InferenceData) -> float:
    """Smallest bulk effective sample size over the population and the donors."""
    known = draws["posterior"]
    found = import_arviz().ess(draws, var_names=[n for n in POPULATION if n in known])
    return float(min(np.nanmin(np.asarray(v)) for v in found.data_vars.values()))


def _cpu() -> float:
    """CPU time of this process and of its children that have ended [s]."""
    t = os.times()
    return t.user + t.system + t.children_user + t.children_system
