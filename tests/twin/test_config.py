"""Configuration is read strictly: every mistake is one line that names file, field and expectation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from twin import config
from twin.bioreactor import Kinetics
from twin.config import (
    ConfigError,
    configs_dir,
    load_config,
    load_limits,
    load_medium,
    load_preset,
    load_recipe,
    load_targets,
)


@pytest.mark.parametrize("path", sorted((configs_dir() / "processes").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_process_loads(path: Path) -> None:
    process = load_config(path.stem)
    assert process.name
    assert all(v > 0 for v in process.initial_sd)
    assert process.sensors


@pytest.mark.parametrize("path", sorted((configs_dir() / "presets").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_number_of_a_preset_has_unit_basis_and_source(path: Path) -> None:
    preset = load_preset(path.stem)
    for number in (*preset.cell.values(), *preset.vessel.values(), *preset.initial.values()):
        assert number.unit
        assert number.source
        assert number.basis in {"pub", "calc", "asm", "fit"}


@pytest.mark.parametrize("path", sorted((configs_dir() / "recipes").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_recipe_loads(path: Path) -> None:
    assert load_recipe(path.stem).name == path.stem


def _edited(tmp_path: Path, kind: str, name: str, **changes: object) -> str:
    content = yaml.safe_load((configs_dir() / kind / f"{name}.yaml").read_text(encoding="utf-8"))
    for key, value in changes.items():
        if value is None:
            del content[key]
        else:
            content[key] = value
    path = tmp_path / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return str(path)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"unknown presets entry 'car_t'; known: .*car_nk"):
        load_preset("car_t")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_preset(str(tmp_path / "none.yaml"))


def test_unknown_and_missing_fields_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cspr_100\.yaml: field colour: .*not permitted"):
        load_recipe(_edited(tmp_path, "recipes", "cspr_100", colour="blue"))
    with pytest.raises(ConfigError, match="field policy: Field required"):
        load_recipe(_edited(tmp_path, "recipes", "cspr_100", policy=None))
    with pytest.raises(ConfigError, match="field perfusion_max"):
        load_limits(_edited(tmp_path, "limits", "car_nk", perfusion_max=-1))


def test_a_preset_without_a_parameter_or_with_a_strange_one_is_refused(tmp_path: Path) -> None:
    cell = yaml.safe_load((configs_dir() / "presets" / "car_nk.yaml").read_text(encoding="utf-8"))["cell"]
    without = {k: v for k, v in cell.items() if k != "mu_max"}
    with pytest.raises(ConfigError, match=r"field cell: missing \['mu_max'\]"):
        load_preset(_edited(tmp_path, "presets", "car_nk", cell=without))
    with pytest.raises(ConfigError, match=r"unknown \['mu_min'\]"):
        load_preset(_edited(tmp_path, "presets", "car_nk", cell={**cell, "mu_min": cell["mu_max"]}))


def test_a_number_without_unit_or_source_is_not_a_parameter(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unit: Field required"):
        load_medium(
            _edited(tmp_path, "media", "standard_perfusion", glucose={"value": 5.0, "basis": "asm", "source": "x"})
        )


def test_nan_is_not_a_number(tmp_path: Path) -> None:
    number = {"value": float("nan"), "unit": "mM", "basis": "asm", "source": "x"}
    with pytest.raises(ConfigError, match="finite"):
        load_medium(_edited(tmp_path, "media", "standard_perfusion", glucose=number))


def test_the_dose_is_the_target_s_and_without_one_the_recipe_s() -> None:
    process = load_config("car_nk")
    asked = next(t for t in process.targets if t.cqa == "viable_cells")
    assert (process.aims, process.dose) == (process.targets, asked.value)
    twice = replace(process, targets=(*process.targets, replace(asked, value=2.0 * asked.value)))
    assert twice.dose == 2.0 * asked.value
    none = replace(process, targets=tuple(t for t in process.targets if t.cqa != "viable_cells"))
    assert none.dose == process.recipe.harvest_cells
    assert none.aims[-1] == replace(asked, value=process.recipe.harvest_cells)
    ceiling = replace(process, targets=(replace(asked, sense="at_most"),))
    assert ceiling.dose == process.recipe.harvest_cells


def test_a_target_has_exactly_one_side(tmp_path: Path) -> None:
    both = {"at_least": 0.8, "at_most": 0.9, "unit": "dimensionless", "source": "x"}
    with pytest.raises(ConfigError, match="exactly one of at_least, at_most"):
        load_targets(_edited(tmp_path, "targets", "car_nk_release", viability=both))


def test_broken_yaml_and_duplicate_keys_are_refused(tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text("name: [", encoding="utf-8")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_recipe(str(broken))
    twice = tmp_path / "twice.yaml"
    twice.write_text("name: a\nname: b\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="duplicate key 'name'"):
        load_recipe(str(twice))


def test_the_preset_holds_every_kinetic_parameter_once() -> None:
    assert set(load_preset("car_nk").cell) == set(Kinetics._fields)


def test_configurations_travel_with_the_packages() -> None:
    assert (configs_dir() / "presets" / "car_nk.yaml").is_file()
    assert config.locate("presets", "car_nk").is_file()
