"""The log-density replayed as CasADi instructions against PyMC's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pm = pytest.importorskip("pymc", reason="needs the donors extra")

from twin.donors.sample import density  # noqa: E402


def model_of_many_operations() -> Any:
    """Correlated effects, transforms, indexing, Student-t and positive-only distributions; no trajectory."""
    rng = np.random.default_rng(1)
    of = np.array([0, 1, 1, 2, 2, 2])
    with pm.Model() as model:
        m = pm.Normal("m", 0.3, 1.0, shape=2)
        chol, _, _ = pm.LKJCholeskyCov("L", n=2, eta=4.0, sd_dist=pm.LogNormal.dist(0.0, 0.4, shape=2))
        own = pm.MvNormal("own", m, chol=chol, shape=(3, 2))
        q = pm.HalfNormal("q", 0.2)
        share = pm.Beta("share", 2.0, 3.0)
        pm.Deterministic("odds", share / (1.0 - share))
        scale = pm.math.sqrt(0.1**2 + q**2 * np.arange(6.0))
        pm.StudentT("y", 4.0, mu=pm.math.log(pm.math.exp(own[of, 0]) + 0.1), sigma=scale, observed=rng.normal(size=6))
        pm.Normal("z", pm.math.maximum(own[:, 1], -5.0) * share, 0.5, observed=rng.normal(size=3))
    return model


def test_value_gradient_and_variables_are_those_of_pymc() -> None:
    model = model_of_many_operations()
    found = density(model)
    rng = np.random.default_rng(2)
    log_density, gradient = model.compile_logp(), model.compile_dlogp()
    point, owners = model.initial_point(0), np.array(found.owners)
    for _ in range(3):
        q = 0.4 * rng.standard_normal(found.start.size)
        at = {n: q[owners == n].reshape(v.shape) for n, v in point.items()}
        value, slope = found.value_and_gradient(q)
        assert value == pytest.approx(float(log_density(at)), rel=1e-12)
        parts = np.split(gradient(at), np.cumsum([point[v.name].size for v in model.value_vars])[:-1])
        for v, part in zip(model.value_vars, parts, strict=True):
            np.testing.assert_allclose(slope[owners == v.name], part, rtol=1e-9, atol=1e-9)
        shown = dict(zip(found.names, found.expand(q), strict=True))
        assert shown["q"] == pytest.approx(np.exp(at["q_log__"]), rel=1e-14)
        assert shown["odds"] == pytest.approx(np.exp(at["share_logodds__"]), rel=1e-12)
        np.testing.assert_allclose(shown["own"], at["own"], rtol=1e-15)
        packed = at["L_cholesky-cov-packed__"]  # ln L11, L21, ln L22
        spread = np.hypot(packed[1], np.exp(packed[2]))
        np.testing.assert_allclose(shown["L_stds"], [np.exp(packed[0]), spread], rtol=1e-12)
        assert shown["L_corr"][0, 1] == pytest.approx(packed[1] / spread, rel=1e-12)


def test_an_operation_that_is_not_known_is_named() -> None:
    with pm.Model() as model:
        x = pm.Normal("x")
        pm.Potential("p", pm.math.erf(x))
    with pytest.raises(NotImplementedError, match="[Ee]rf"):
        density(model)
