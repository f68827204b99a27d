"""Units: every channel has a canonical unit, the table agrees with pint, and nothing is guessed."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twin import units
from twin.evidence import ACTUATORS
from twin.sensors import CHANNELS, MONITORED
from twin.units import CANONICAL, KIND, UnitError, scale_of, to_canonical


def test_every_channel_and_actuator_has_a_canonical_unit() -> None:
    assert set(CANONICAL) == {*CHANNELS, *MONITORED, *ACTUATORS, "harvest"}


@pytest.mark.parametrize("channel", sorted(CANONICAL))
def test_the_canonical_unit_is_the_identity(channel: str) -> None:
    assert to_canonical(channel, 0.25, CANONICAL[channel]) == 0.25
    assert scale_of(channel, CANONICAL[channel]) == 1.0


@pytest.mark.parametrize(
    ("channel", "value", "unit", "expected"),
    [
        ("glucose", 4.5, "g/L", 24.97835),  # 4.5 / 180.156
        ("lactate", 1.0, "g/L", 11.22712),  # the anion, 89.07
        ("glutamine", 292.28, "mg/L", 2.0),
        ("ammonia", 17.03, "mg/L", 1.0),
        ("glucose", 450.0, "mg/dL", 24.97835),
        ("raman_glucose", 0.0045, "kg/L", 24.97835),  # by pint
        ("viable_density", 2e6, "cells/mL", 2.0),
        ("viable_density", 3.0, "1e6 cells/mL", 3.0),
        ("dead_density", 1e3, "cells/microliter", 1.0),  # by pint
        ("viability", 97.0, "percent", 0.97),
        ("viability", 0.97, "dimensionless", 0.97),
        ("car_fraction", 55.0, "%", 0.55),
        ("do", 40.0, "percent", 40.0),
        ("do", 0.4, "dimensionless", 40.0),
        ("temperature", 98.6, "degF", 37.0),
        ("temperature", 310.15, "K", 37.0),
        ("oxygen_uptake", 48.0, "mM/d", 2.0),
        ("oxygen_uptake", 63.996, "mg/L/h", 2.0),
        ("weight", 500.0, "g", 0.5),
        ("diameter", 1.4e-5, "m", 14.0),
        ("perfusion", 0.5, "VVD", 0.5),
        ("perfusion", 0.05, "1/h", 1.2),
        ("cytokine_dose", 12.5, "IU/mL/h", 300.0),
    ],
)
def test_conversions(channel: str, value: float, unit: str, expected: float) -> None:
    assert to_canonical(channel, value, unit) == pytest.approx(expected, rel=1e-5)


def test_a_flow_in_volume_per_time_needs_the_volume() -> None:
    assert to_canonical("perfusion", 50.0, "mL/h", volume_l=2.4) == pytest.approx(0.5)
    assert to_canonical("feed", 1.0, "milliliter/minute", volume_l=1.44) == pytest.approx(1.0)
    assert to_canonical("cytokine_dose", 600e3, "IU/d", volume_l=2.0) == pytest.approx(300.0)
    for volume in (None, 0.0, -1.0, math.nan):
        with pytest.raises(UnitError, match="needs the working volume"):
            to_canonical("perfusion", 50.0, "mL/h", volume_l=volume)


@pytest.mark.parametrize(
    ("channel", "unit"),
    [
        ("glucose", None), ("glucose", ""), ("glucose", "  "), ("glucose", "mm"), ("glucose", "IU/mL"), ("glucose", "percent"),
        ("viability", "mM"), ("viability", "pct"), ("ph", "dimensionless"), ("viable_density", "mM"), ("viable_density", "cells"),
        ("viable_density", "1e6"), ("perfusion", "mL"), ("cytokine", "g/L"), ("temperature", "pH"), ("harvest", "1/d"),
        ("glucose", "9^9^9^9"), ("glucose", "(9^9)^9 mM"), ("glucose", "__import__('os')"), ("glucose", "mM" * 200), ("glucose", "0 mM"),
    ],
)  # fmt: skip
def test_an_absent_unknown_or_wrong_unit_is_refused_in_one_line(channel: str, unit: str | None) -> None:
    with pytest.raises(UnitError) as caught:
        to_canonical(channel, 1.0, unit)
    assert channel in str(caught.value) and "expected" in str(caught.value) and "\n" not in str(caught.value)


def test_an_unknown_channel_and_a_value_that_is_not_a_number_are_refused() -> None:
    with pytest.raises(UnitError, match="unknown channel"):
        to_canonical("glucoze", 1.0, "mM")
    for value in (math.nan, math.inf, -math.inf):
        with pytest.raises(UnitError, match="not a finite number"):
            to_canonical("glucose", value, "mM")
    with pytest.raises(UnitError, match="too large"):
        to_canonical("glucose", 1.7e308, "M")


@pytest.mark.parametrize("kind", sorted(set(units._PINT_UNIT)))
def test_the_table_agrees_with_pint(kind: str) -> None:
    channel = next(name for name, its in KIND.items() if its == kind)
    for text, affine in units._TABLE[kind].items():
        if text in ("1", "1/mL", "1/ml", "1e6/mL", "1e6/ml", "%", "vvd", "d^-1") or "\N{DEGREE SIGN}" in text:
            continue  # table only: pint reads a bare count or sign otherwise
        parsed = units._parsed(channel, kind, text)
        assert parsed.per_volume == affine.per_volume
        assert (parsed.scale, parsed.offset) == pytest.approx((affine.scale, affine.offset), rel=1e-9, abs=1e-9), text


@given(st.floats(1e-3, 1e3), st.floats(1e-2, 1e3))
def test_a_flow_scales_with_its_value_and_against_the_volume(value: float, volume: float) -> None:
    assert to_canonical("perfusion", value, "mL/h", volume_l=volume) == pytest.approx(value * 0.024 / volume)


def test_the_usual_units_do_not_import_pint() -> None:
    code = (
        "import sys; from twin.units import CANONICAL, to_canonical\n"
        "for c, u in CANONICAL.items(): to_canonical(c, 1.0, u)\n"
        "to_canonical('glucose', 1.0, 'g/L'); to_canonical('viable_density', 1.0, 'cells/mL')\n"
        "sys.exit('pint' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
