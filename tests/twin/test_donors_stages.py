"""The chain of counted cells against the multivariate normal that it stands for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import multivariate_normal

pm = pytest.importorskip("pymc", reason="needs the donors extra")

from simulators.history import synthetic_history  # noqa: E402
from twin.config import load_config  # noqa: E402
from twin.donors.data import FitData, StageCounts, prepare  # noqa: E402
from twin.donors.stages import CELL_COUNT_CV, observe_chain  # noqa: E402

PROCESS = load_config("car_nk")


def counted(into: np.ndarray, outof: np.ndarray, names: tuple[str, ...], harvested: float = np.nan) -> FitData:
    stages = tuple(s for s in PROCESS.stages if s.name in names)
    data = prepare(synthetic_history(PROCESS, 4, 3), PROCESS)
    chain = StageCounts(stages, into, outof, np.full(4, harvested))
    return replace(data, chain=chain)


def potential(data: FitData, at: dict[str, Any], harvested: Any = 0.0, sd: Any = 0.0) -> float:
    with pm.Model(coords={"stage": [s.name for s in data.chain.stages]}) as model:  # type: ignore[union-attr]
        observe_chain(data, None, harvested * np.ones(4), sd * np.ones(4))
    (said,) = model.replace_rvs_by_values(model.potentials)
    value = model.compile_fn(said, inputs=model.value_vars, point_fn=True, on_unused_input="ignore")
    point = model.initial_point(0)
    return float(value({k: np.asarray(at.get(k, v)) for k, v in point.items()}))


def joint(mean: float, var: float, yields: np.ndarray, spreads: np.ndarray, seen: np.ndarray) -> float:
    """ln density of counts [in1, out1, in2, out2, ...] of one batch, NaN left out, written as one Gaussian."""
    k = len(yields)
    passed = np.repeat(np.arange(k + 1), 2)[1:-1]  # recoveries passed before each count
    centre = mean + np.concatenate([[0.0], np.cumsum(yields)])[passed]
    lower = (np.arange(k)[None] < passed[:, None]).astype(float)
    cov = var + lower @ np.diag(spreads**2) @ lower.T + CELL_COUNT_CV**2 * np.eye(2 * k)
    there = np.isfinite(seen)
    return float(multivariate_normal(centre[there], cov[np.ix_(there, there)]).logpdf(seen[there]))


@pytest.mark.parametrize("missing", [(), (1,), (0, 3)])
def test_a_chain_is_the_gaussian_it_stands_for(missing: tuple[int, ...]) -> None:
    rng = np.random.default_rng(4)
    seen = 1.0 + 0.3 * rng.standard_normal((4, 4))  # batch, count
    seen[0, list(missing)] = np.nan
    data = counted(seen[:, [0, 2]].T, seen[:, [1, 3]].T, ("collection", "isolation"))
    yields, spreads, m0, s0 = np.array([-0.1, -0.3]), np.array([0.12, 0.2]), 0.8, 0.5
    at = {"yield": yields, "yield_sd_log__": np.log(spreads), "ln_collected": m0, "collected_sd_log__": np.log(s0)}
    assert potential(data, at) == pytest.approx(sum(joint(m0, s0**2, yields, spreads, row) for row in seen), rel=1e-10)


def test_harvest_takes_what_the_bioreactor_holds() -> None:
    seen = np.log([[16.0, 13.0], [20.0, 15.5], [22.0, 17.0], [9.0, 7.7]])
    data = counted(seen[:, :1].T, seen[:, 1:].T, ("harvest",), harvested=12.0)
    at = {"yield": [-0.25], "yield_sd_log__": [np.log(0.08)], "ln_collected": 0.0, "collected_sd_log__": 0.0}
    wanted = sum(joint(2.9, 0.05**2, np.array([-0.25]), np.array([0.08]), row) for row in seen)
    assert potential(data, at, 2.9, 0.05) == pytest.approx(wanted, rel=1e-10)


def test_the_synthetic_history_balances() -> None:
    """Into a stage goes what came out of the one before: both counts differ by counting alone."""
    data = prepare(synthetic_history(PROCESS, 12, 9), PROCESS)
    chain = data.chain
    assert chain is not None
    names = [s.name for s in chain.stages]
    assert names == [
        "collection",
        "isolation",
        "activation",
        "transduction",
        "seed_train",
        "harvest",
        "formulation",
        "thaw",
    ]
    for i, name in enumerate(names[:-1]):
        if names[i + 1] != "harvest":  # between seed train and harvest lies the bioreactor
            off = chain.outof[i] - chain.into[i + 1]
            assert np.abs(off).max() < 5 * CELL_COUNT_CV * 2**0.5, name
    assert (chain.outof[names.index("activation")] > chain.into[names.index("activation")]).all()
