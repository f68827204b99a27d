"""Straightened coordinates: another walk through the same density."""

from __future__ import annotations

import numpy as np
import pytest

from twin.donors.ridge import Ridge, straightened
from twin.donors.sample import Density

AT = Ridge(np.array([0, 2]), np.array([1, 3]), np.log([18.0, 25.0]), np.log([12.0, 9.0]))
CENTRE, SD = np.array([3.4, 2.9, 3.4, 2.9, 0.2]), np.array([0.25, 0.3, 0.25, 0.3, 1.0])


def gaussian(q: np.ndarray) -> tuple[float, np.ndarray]:
    z = (q - CENTRE) / SD
    return -0.5 * float(z @ z), -z / SD


TARGET = Density(CENTRE + 0.1, gaussian, lambda q: [q], ("q",), np.zeros(5, dtype=bool), ("q",) * 5)


def test_the_start_is_the_same_point() -> None:
    there = straightened(TARGET, AT)
    np.testing.assert_allclose(there.expand(there.start)[0], TARGET.start, rtol=1e-13)
    assert there.value_and_gradient(there.start)[0] == pytest.approx(gaussian(TARGET.start)[0], rel=1e-12)


def test_gradient_is_that_of_differences() -> None:
    there, rng = straightened(TARGET, AT), np.random.default_rng(2)
    for _ in range(5):
        v = there.start + 0.5 * rng.standard_normal(5)
        _, slope = there.value_and_gradient(v)
        for k in range(5):
            step = 1e-6 * np.eye(5)[k]
            up, down = (there.value_and_gradient(v + s)[0] for s in (step, -step))
            assert slope[k] == pytest.approx((up - down) / 2e-6, rel=1e-5, abs=1e-6)


def test_volumes_are_kept_up_to_a_constant() -> None:
    """So that the density needs no correction: the determinant of dq/dv is the same everywhere."""
    there, rng = straightened(TARGET, AT), np.random.default_rng(3)

    def determinant(v: np.ndarray) -> float:
        h = 1e-6
        columns = [(there.expand(v + h * e)[0] - there.expand(v - h * e)[0]) / (2 * h) for e in np.eye(5)]
        return float(np.linalg.det(np.array(columns)))

    first, *others = (determinant(there.start + 2.0 * rng.standard_normal(5)) for _ in range(6))
    np.testing.assert_allclose(others, first, rtol=1e-6)


def test_without_a_ridge_nothing_changes() -> None:
    assert straightened(TARGET, None) is TARGET
