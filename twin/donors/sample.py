"""Sampling the posterior: the log-density as a plain function, NUTS by nutpie (or PyMC where nutpie is absent).

The graph is replayed as CasADi instructions (`twin.donors.trace`): no C++ compiler is needed for it and nothing is cached.
"""

from __future__ import annotations

import multiprocessing
import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import arviz
    import pymc as pm


SCALES = ("L_cholesky-cov-packed__", "yield_sd_log__", "collected_sd_log__", "phi_sd_log__")
"""Unconstrained names of what sets a spread between donors (or a correlation)."""


TARGET_ACCEPT = 0.9
"""Of the step-size adaptation: small steps, for corners where growth slows by lactate or by the replicative limit."""


class Density(NamedTuple):
    """Unconstrained coordinates of a model and its log-density there."""

    start: np.ndarray  # [n]
    value_and_gradient: Callable[[np.ndarray], tuple[Any, Any]]
    expand: Callable[[np.ndarray], list[Any]]  # coordinates -> values of `names`
    names: tuple[str, ...]
    scales: np.ndarray  # [n] True for coordinates that set a spread (or a correlation)
    owners: tuple[str, ...] = ()  # [n] the unconstrained variable that each coordinate is of


def density(model: pm.Model, start: Mapping[str, np.ndarray] = MappingProxyType({})) -> Density:
    """The model's log-density over its flattened unconstrained variables, to begin at `start` where it says so."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "PyTensor could not link to a BLAS", UserWarning)  # nothing here uses one
        return _density(model, start)


def _density(model: pm.Model, start: Mapping[str, np.ndarray]) -> Density:
    from pymc.model.transform.optimization import freeze_dims_and_data
    from pymc.pytensorf import join_nonshared_inputs

    from twin.donors.trace import traced

    model = freeze_dims_and_data(model)
    point = {**model.initial_point(0), **start}
    free = [*model.free_RVs, *model.deterministics]
    outputs = [model.logp(), *model.replace_rvs_by_values(free)]
    joined_outputs, joined = join_nonshared_inputs(point, outputs, model.value_vars)
    evaluation = traced(joined, joined_outputs)
    scales = [np.full(np.size(point[v.name]), v.name in SCALES) for v in model.value_vars]
    return Density(
        np.concatenate([np.ravel(point[v.name]) for v in model.value_vars]),
        evaluation.value_and_gradient,
        evaluation.outputs,
        tuple(v.name or "" for v in free),
        np.concatenate(scales),
        tuple(v.name for v in model.value_vars for _ in range(np.size(point[v.name]))),
    )


def whitened(target: Density) -> Density:
    """The same density in coordinates of about unit spread and no correlation: u with q = centre + root u.

    Centre and root are the mode and inverse curvature with all spreads held at their starting values (the joint mode of a
    hierarchy is degenerate: spreads collapse); spreads keep their own coordinate, scaled by its curvature. This only
    prepares the sampler, which adapts on top of it; draws are from the same posterior.
    """
    from scipy.optimize import minimize

    free = ~target.scales

    def descend(part: np.ndarray) -> tuple[float, np.ndarray]:
        q = target.start.copy()
        q[free] = part
        value, gradient = target.value_and_gradient(q)
        return (-float(value), -np.asarray(gradient)[free]) if np.isfinite(value) else (1e10, np.zeros(part.size))

    found = minimize(descend, target.start[free], jac=True, method="L-BFGS-B", options={"maxiter": 300, "maxcor": 30})
    centre = target.start.copy()
    centre[free] = found.x
    curvature = np.diag(np.full(centre.size, 4.0))
    for i in range(centre.size):
        step = np.zeros(centre.size)
        step[i] = 1e-4
        up, down = target.value_and_gradient(centre + step)[1], target.value_and_gradient(centre - step)[1]
        column = -(np.asarray(up) - np.asarray(down)) / 2e-4
        if free[i]:
            curvature[free, i] = column[free]
        else:
            curvature[i, i] = max(float(column[i]), 4.0)
    values, vectors = np.linalg.eigh((curvature + curvature.T) / 2)
    root = vectors / np.sqrt(np.maximum(values, 0.1))

    def value_and_gradient(u: np.ndarray) -> tuple[Any, Any]:
        value, gradient = target.value_and_gradient(centre + root @ u)
        return value, root.T @ np.asarray(gradient)

    return Density(
        np.zeros(centre.size),
        value_and_gradient,
        lambda u: target.expand(centre + root @ u),
        target.names,
        target.scales,
    )


def nuts(
    model: pm.Model,
    target: Density,
    *,
    draws: int,
    tune: int,
    chains: int,
    seed: int,
    cores: int,
    tick: Callable[[float], None] | None = None,
) -> tuple[arviz.InferenceData, str]:
    """Posterior draws and the name of the sampler; `target` is the model's density in the coordinates to sample in.

    `tick` is called with 1 for every chain that ends.
    """
    if find_spec("nutpie") is None:
        return _by_pymc(model, draws, tune, chains, seed, cores), "pymc"
    target = whitened(target)
    jobs = [_Job(target, draws, tune, seed + 1000 * k) for k in range(chains)]
    results: list[tuple[np.ndarray, dict[str, np.ndarray]]] = []
    for result in _each(jobs, cores):
        results.append(result)
        if tick:
            tick(1)
    q, stats = np.stack([q for q, _ in results]), {k: np.stack([s[k] for _, s in results]) for k in results[0][1]}
    return _named(import_arviz(), model, target, q, stats), "nutpie"


class _Job(NamedTuple):
    target: Density
    draws: int
    tune: int
    seed: int


_queue: list[_Job] = []


def _each(jobs: list[_Job], cores: int) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """One chain after another in order; in forked processes where there are several cores and the system can fork.

    Not in threads: a gradient is Python around short calls, and Python runs one thread at a time.
    """
    if min(cores, len(jobs)) < 2 or "fork" not in multiprocessing.get_all_start_methods():
        yield from map(_chain, jobs)
        return
    _queue[:] = jobs  # children inherit it: the density cannot be pickled
    try:
        with multiprocessing.get_context("fork").Pool(min(cores, len(jobs))) as pool:
            yield from pool.imap(_queued, range(len(jobs)))
    finally:
        _queue.clear()


def _queued(k: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    return _chain(_queue[k])


def chain(target: Density, draws: int, tune: int, seed: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """One chain by nutpie: coordinates [draw, n] and the sampler's statistics [draw]. Begins within about 1 of the start."""
    return _chain(_Job(target, draws, tune, seed))


def _chain(job: _Job) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """One chain: coordinates [draw, n] and the sampler's statistics [draw]."""
    import nutpie
    from nutpie.compiled_pyfunc import from_pyfunc

    target, n = job.target, job.target.start.size

    def make_density() -> Callable[[np.ndarray], tuple[float, np.ndarray]]:
        def call(x: np.ndarray) -> tuple[float, np.ndarray]:
            value, gradient = target.value_and_gradient(np.array(x))
            if not np.isfinite(value) or not np.isfinite(gradient).all():
                return -np.inf, np.zeros(n)
            return float(value), np.asarray(gradient)

        return call

    def make_expand(*_: Any) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
        return lambda x: {"q": np.array(x)}

    def begin(seed: int) -> np.ndarray:
        return target.start + np.random.default_rng(seed).standard_normal(n)

    compiled = from_pyfunc(
        n, make_density, make_expand, [np.dtype("float64")], [(n,)], ["q"], make_initial_point_fn=begin
    )
    trace = nutpie.sample(
        compiled, draws=job.draws, tune=job.tune, chains=1, cores=1, seed=job.seed, progress_bar=False,
        low_rank_modified_mass_matrix=True,
        maxdepth=8, target_accept=TARGET_ACCEPT, save_warmup=False,
    )  # fmt: skip
    stats = {str(k): np.asarray(v)[0] for k, v in trace.sample_stats.data_vars.items() if v.ndim == 2}
    return np.asarray(trace.posterior["q"])[0], stats


def _named(
    az: Any, model: pm.Model, target: Density, q: np.ndarray, stats: dict[str, np.ndarray]
) -> arviz.InferenceData:
    """Draws [chain, draw, n] in unconstrained coordinates to the model's own variables, with their coordinates."""
    flat_draws = [target.expand(np.ascontiguousarray(v)) for v in q.reshape(-1, q.shape[-1])]
    posterior = {
        name: np.stack([np.asarray(d[k]) for d in flat_draws]).reshape(*q.shape[:2], *np.shape(flat_draws[0][k]))
        for k, name in enumerate(target.names)
    }
    dims = {k: [str(d) for d in v] for k, v in model.named_vars_to_dims.items() if k in posterior}
    coords = {k: list(v) for k, v in model.coords.items() if v is not None and len(v)}
    return az.from_dict(
        posterior=posterior, sample_stats=stats, coords=coords, dims=dims,
    )  # fmt: skip


def _by_pymc(model: pm.Model, draws: int, tune: int, chains: int, seed: int, cores: int) -> arviz.InferenceData:
    import pymc as pm

    with model:
        return pm.sample(
            draws=draws, tune=tune, chains=chains, cores=cores, random_seed=seed, progressbar=False,
            target_accept=TARGET_ACCEPT, compile_kwargs={"mode": "FAST_COMPILE"},
        )  # fmt: skip


def import_arviz() -> Any:
    """ArviZ without its announcement of the next major version."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        import arviz
    return arviz
