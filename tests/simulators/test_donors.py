"""Virtual donors: reproducible, spread as the preset says, departing from the model as much as asked."""

from __future__ import annotations

import numpy as np
import pytest

from simulators.donors import median_donor, virtual_donor
from simulators.plant import NEUTRAL, DayEffect
from twin.bioreactor import to_coordinates
from twin.config import load_config, make_process

PROCESS = load_config("car_nk")
MANY = [virtual_donor(PROCESS, s) for s in range(600)]


def test_the_same_number_is_the_same_donor() -> None:
    assert virtual_donor(PROCESS, 7) == virtual_donor(PROCESS, 7)
    assert virtual_donor(PROCESS, 7).cell != virtual_donor(PROCESS, 8).cell
    assert virtual_donor(PROCESS, 7).id == "D07"


def test_kinetics_are_spread_as_the_preset_says() -> None:
    for name, sd in PROCESS.donor_sd.items():
        ln = np.log([getattr(d.cell, name) for d in MANY])
        centre = np.log(getattr(PROCESS.theta.cell, name))
        assert ln.mean() == pytest.approx(centre, abs=4 * sd / np.sqrt(len(MANY))), name
        assert ln.std() == pytest.approx(sd, rel=0.15), name


def test_what_has_no_spread_is_the_same_in_all() -> None:
    fixed = [n for n in PROCESS.theta.cell._fields if n not in PROCESS.donor_sd]
    assert fixed
    for name in fixed:
        assert {getattr(d.cell, name) for d in MANY[:50]} == {getattr(PROCESS.theta.cell, name)}


def test_late_growers_last_shorter_and_tolerate_less() -> None:
    table = {n: np.log([getattr(d.cell, n) for d in MANY]) for n in ("mu_max", "tau_lag", "K_L", "PD_max", "k_C")}
    assert np.corrcoef(table["K_L"], table["PD_max"])[0, 1] == pytest.approx(0.4, abs=0.12)
    assert np.corrcoef(table["mu_max"], table["tau_lag"])[0, 1] == pytest.approx(-0.3, abs=0.12)
    assert abs(np.corrcoef(table["mu_max"], table["k_C"])[0, 1]) < 0.12


def test_seeding_is_spread_as_the_process_says() -> None:
    ln = np.log([to_coordinates(d.initial) for d in MANY])
    sd = np.array(PROCESS.initial_sd)
    free = [i for i, n in enumerate(PROCESS.initial_sd._fields) if n not in ("exhausted", "activation")]
    assert ln.std(axis=0)[free] == pytest.approx(sd[free], rel=0.15)


def test_no_mismatch_is_the_model_with_the_same_cells() -> None:
    exact, real = virtual_donor(PROCESS, 3, mismatch=0.0), virtual_donor(PROCESS, 3)
    assert exact.structure == NEUTRAL
    assert set(exact.days) == {DayEffect()}
    assert tuple(exact.pumps) == (1.0, 1.0, 1.0, 1.0)
    assert exact.vessel == PROCESS.theta.vessel
    assert (exact.cell, exact.initial) == (real.cell, real.initial)
    assert real.structure != NEUTRAL


def test_structure_lies_where_it_was_published() -> None:
    for d in MANY[:200]:
        s = d.structure
        assert 1.5 <= min(s.hill_lactate, s.hill_ammonia, s.hill_death) <= max(s.hill_lactate, s.hill_death) <= 3.0
        assert all(0.9 < g < 1.1 for g in d.pumps)
        assert s.glucose_switch == 2.0
    assert np.std([d.pumps.perfusion for d in MANY]) == pytest.approx(0.03, rel=0.2)


def test_mean_age_is_kept_when_cells_are_told_apart() -> None:
    for d in MANY[:50]:
        assert d.start().doublings == pytest.approx(d.initial.doublings)
        assert d.start().age_old > d.start().age_young


@pytest.mark.parametrize("wrong", [-0.1, 2.5, float("nan")])
def test_a_mismatch_out_of_range_is_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match="mismatch"):
        virtual_donor(PROCESS, 1, mismatch=wrong)


def test_the_median_donor_is_the_preset() -> None:
    d = median_donor(PROCESS)
    assert (d.cell, d.initial) == (PROCESS.theta.cell, PROCESS.initial)


@pytest.mark.parametrize("preset", ["t_cell", "cho"])
def test_other_presets_have_donors_too(preset: str) -> None:
    from twin.config import configs_dir

    if not (configs_dir() / "presets" / f"{preset}.yaml").is_file():
        pytest.skip(f"preset {preset} is not there")
    process = make_process(preset)
    donor = virtual_donor(process, 1)
    assert donor.cell != process.theta.cell
    assert donor.start().viable > 0.0
