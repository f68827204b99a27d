"""Scenario files: shipped ones load, mistakes are told in one line with file and field."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from simulators.scenario import load_scenario, make_scenario, scenario_path
from twin.config import ConfigError, configs_dir, load_config
from twin.sensors import MONITORED

GOOD = yaml.safe_load(scenario_path("nominal").read_text())


@pytest.mark.parametrize("name", sorted(p.stem for p in (configs_dir() / "scenarios").glob("*.yaml")))
def test_shipped_scenarios_load_and_serve_the_process(name: str) -> None:
    scenario = load_scenario(name)
    assert scenario.name == name
    channels = {c for i in scenario.instruments for c in i.channels}
    assert channels <= {*load_config("car_nk").sensors, *MONITORED}
    assert {"viable_density", "viability", "glucose", "lactate"} <= channels


def test_matched_departs_in_nothing_but_the_plant() -> None:
    nominal, matched = load_scenario("nominal"), load_scenario("matched")
    assert matched.mismatch == 0.0
    assert matched.instruments == nominal.instruments


def test_hours_become_days() -> None:
    counter = next(i for i in load_scenario("nominal").instruments if i.name == "counter")
    assert counter.interval == pytest.approx(1.0)
    assert counter.delay == pytest.approx((1 / 24, 4 / 24))


def test_calibrations_are_planned_by_channel_and_none_is_shipped() -> None:
    assert make_scenario(changed("calibrations", {"ph": [7, 14.5]}), "lab.yaml").calibrations == {"ph": (7.0, 14.5)}
    assert load_scenario("nominal").calibrations == {}


def changed(path: str, value: object) -> dict[str, object]:
    content = yaml.safe_load(yaml.safe_dump(GOOD))
    at = content
    *way, last = path.split(".")
    for key in way:
        at = at[key]
    at[last] = value
    return content


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("mismatch", -1, "mismatch"),
        ("mismatch", "much", "mismatch"),
        ("colour", "red", "colour"),
        ("tick_h", 0, "tick_h"),
        ("instruments.counter.interval_h", 0, "interval_h"),
        ("instruments.counter.delay_h", [4, 1], "ascend"),
        ("instruments.counter.dropout", 1.0, "dropout"),
        ("instruments.counter.channels.colour", {"noise": 0.1, "source": "x"}, "colour"),
        ("instruments.counter.channels.viability.noise", float("nan"), "noise"),
        ("instruments.counter.channels.glucose", {"noise": 0.1, "source": "x"}, "reads it already"),
        ("instruments.raman.age_h", 2.0, "age_h"),
        ("instruments.raman.delay_h", [1, 2], "age_h"),
        ("budget.day", -1, "budget.day"),
        ("calibrations", {"colour": [7]}, "calibrations.colour: no instrument reads it"),
        ("calibrations", {"ph": [9, 7]}, "calibrations.ph: days must ascend"),
        ("calibrations", {"ph": [7, 7]}, "calibrations.ph: days must ascend"),
        ("calibrations", {"ph": [0]}, "calibrations.ph"),
        ("calibrations", {"ph": "weekly"}, "calibrations.ph"),
        ("caps.of_recipe_now", 0.5, "of_recipe_now"),
    ],
)
def test_mistakes_are_named(path: str, value: object, said: str) -> None:
    with pytest.raises(ConfigError, match=r"lab\.yaml") as error:
        make_scenario(changed(path, value), "lab.yaml")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_unknown_names_and_files() -> None:
    with pytest.raises(ConfigError, match="known: careless"):
        load_scenario("nowhere")
    with pytest.raises(ConfigError, match="no such scenario file"):
        load_scenario("nowhere/lab.yaml")


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(changed("name", "mine")))
    assert load_scenario(str(path)).name == "mine"
