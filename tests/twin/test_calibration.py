"""Is the filter honest? Model-matched reactors: truth drawn from the very model, so NIS and NEES must be near 1."""

from __future__ import annotations

import pytest

from simulators.study import calibration
from simulators.study.base import Row


def rows(name: str, whole: bool) -> list[Row]:
    """Ten reactors of three weeks; `celltwin study calibration` measures a hundred."""
    return [calibration.run(calibration.Job(seed, "car_nk", None, name, whole)) for seed in range(10)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ukf", "ekf"])
def test_innovations_and_errors_are_as_large_as_the_filter_says(name: str) -> None:
    found = rows(name, whole=True)
    nis, nees, beyond, refused = (f.value for f in calibration.figures(found))
    assert 0.93 < nis < 1.07
    assert 0.8 < nees < (1.25 if name == "ukf" else 1.4)  # linearised, it is a little too sure
    assert beyond < (0.06 if name == "ukf" else 0.15)
    assert refused < 0.01
    assert all(r["repairs"] == 0 for r in found)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ukf", "ekf"])
def test_with_what_data_inform_best_chi_square_holds(name: str) -> None:
    nis, nees, beyond, refused = (f.value for f in calibration.figures(rows(name, whole=False)))
    assert 0.97 < nis < 1.03
    assert 0.9 < nees < 1.1
    assert beyond < 0.04
    assert refused < 0.002
