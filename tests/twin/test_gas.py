"""Gas and acid-base: limits that can be checked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from twin.gas import carbonate, osmolality, oxygen_balance
from twin.kinetics import hill2, inhibition, monod, ph_optimum, senescence, smooth_max, smooth_min


def test_oxygen_is_at_set_point_until_supply_fails_and_never_negative() -> None:
    assert oxygen_balance(1.0, 0.10, 0.21, 10.0) == pytest.approx(0.10, abs=1e-4)
    limited = oxygen_balance(0.15 * 240, 0.10, 0.21, 10.0)
    assert limited == pytest.approx(0.21 - 0.15, abs=1e-4)
    assert 0.0 < oxygen_balance(1e4, 0.10, 0.21, 10.0) < 1e-3


def test_the_co2_loop_holds_its_ph_while_it_can() -> None:
    bicarbonate, pco2, ph = carbonate(32.0, 1.0, 7.2, 5.0, 9.0)
    assert bicarbonate == pytest.approx(29.0, abs=0.02)
    assert ph == pytest.approx(7.2, abs=0.01)
    assert ph == pytest.approx(6.1 + np.log10(bicarbonate / (0.0307 * pco2)), abs=1e-12)


def test_acid_without_bicarbonate_lowers_ph_by_henderson_hasselbalch() -> None:
    bicarbonate, pco2, ph = carbonate(8.0, 60.0, 7.2, 5.0, 9.0)
    lowest = 5.0 + 60.0 / (24 * 0.0307 * 9.0)
    assert pco2 == pytest.approx(lowest, rel=0.02)
    assert ph < 7.2
    assert bicarbonate == pytest.approx(5.0, abs=0.1)


def test_rate_laws_at_their_constants() -> None:
    assert monod(0.6, 0.6) == 0.5
    assert inhibition(30.0, 30.0) == 0.5
    assert hill2(40.0, 40.0) == 0.5
    assert senescence(18.0, 18.0) == 0.5
    assert ph_optimum(7.15, 7.15, 0.77) == 1.0
    assert ph_optimum(6.9, 7.15, 0.77) == pytest.approx(0.90, abs=0.005)
    assert ph_optimum(7.4, 7.15, 0.77) == pytest.approx(0.90, abs=0.005)


def test_smooth_switches_bracket_the_sharp_ones() -> None:
    a = np.linspace(-2, 2, 41)
    assert (smooth_max(a, 0.0, 0.1) >= np.maximum(a, 0.0)).all()
    assert (smooth_min(a, 0.0, 0.1) <= np.minimum(a, 0.0)).all()
    assert smooth_max(0.0, 0.0, 0.1) == pytest.approx(0.05)


def test_osmolality_of_fresh_medium_is_physiological() -> None:
    assert 270 < osmolality(25.0, 0.5, 6.0, 32.0) < 310
