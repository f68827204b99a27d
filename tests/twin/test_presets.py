"""The presets are complete, say where every number comes from, and grow as their cells do."""

from __future__ import annotations

import numpy as np
import pytest

from twin.bioreactor import Control, State, physiology
from twin.config import load_config, load_preset
from twin.integrate import advance
from twin.units import CANONICAL


@pytest.mark.parametrize("name", ["cho", "t_cell"])
def test_every_number_has_a_source_and_an_honest_tag(name: str) -> None:
    preset = load_preset(name)
    for kind in (preset.cell, preset.vessel, preset.initial):
        for field, number in kind.items():
            assert number.source.strip(), field
            if number.basis == "pub":  # a published value names where
                assert any(
                    mark in number.source
                    for mark in ("PMC", "J Biol", "elife", "eLife", "hybridoma", "SCIENCE", "vector")
                ), field


@pytest.mark.parametrize("name", ["cho", "t_cell"])
def test_sensors_speak_canonical_units(name: str) -> None:
    for sensor in load_config(name).sensors.values():
        assert sensor.unit == CANONICAL[sensor.channel]


def test_cho_grows_as_measured_without_cytokine_and_its_volume_grows_with_the_feed() -> None:
    process = load_config("cho")
    x = process.initial
    three_days = advance(x, Control(), process.theta, 3.0)
    growth = float(np.log(three_days.viable / x.viable)) / 3.0
    assert 0.45 < growth < 0.95  # clonalyzer .63-.95 /d, nistcho .5-.8 /d
    fed = advance(x, Control(feed=0.1), process.theta, 3.0)
    assert fed.volume / x.volume == pytest.approx(np.exp(0.3), rel=1e-6)
    assert fed.car_fraction < 1e-5 and fed.exhausted <= x.exhausted * 1.001
    starved_of_cytokine = x._replace(cytokine=0.1)
    ratio = physiology(starved_of_cytokine, process.theta).mu / physiology(x, process.theta).mu
    assert ratio == pytest.approx(1.0, abs=0.02)


def test_cho_stops_growing_and_stays_in_the_physical_range() -> None:
    process = load_config("cho")
    x = process.initial
    for _ in range(14):
        x = advance(x, Control(), process.theta, 1.0)
        assert all(np.isfinite(v) and v > 0 for v in x)
    phys = physiology(x, process.theta)
    assert phys.mu < 0.15 and 2.0 < x.doublings < 8.0


def test_t_cells_reach_a_dose_under_perfusion_and_die_without_cytokine() -> None:
    process = load_config("t_cell")

    def grown(dose: float) -> State:
        x = process.initial
        for day in range(14):
            perfusion = (0.0, 0.25, 0.5, 0.75, 1.0)[min(4, day // 3)]
            x = advance(x, Control(perfusion=perfusion, cytokine_dose=dose), process.theta, 1.0)
        return x

    dosed = grown(300.0)
    assert 15.0 < dosed.viable < 45.0 and dosed.viability > 0.8
    assert grown(0.0).viable < 0.25 * dosed.viable
    nk = load_config("car_nk")
    assert process.theta.cell.mu_max > nk.theta.cell.mu_max
