"""Configuration files: named YAML entries under `configs/`, read strictly into the frozen records of `twin.process`.

A name (``car_nk``) is looked up in the shipped folder of its kind; anything with a path separator or ``.yaml`` is a file.
Unknown keys, wrong types and missing units are refused with file and field.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from twin.bioreactor import Coordinates, Kinetics, Medium, State, Theta, Vessel
from twin.process import Limits, Process, Recipe, Stage, Target
from twin.sensors import CHANNELS, GrowthEffect, Sensor, SensorError

Kind = Literal["presets", "media", "recipes", "sensors", "targets", "limits", "stages", "processes", "noise"]
Basis = Literal["pub", "calc", "asm", "fit"]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
M = TypeVar("M", bound=BaseModel)


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names file, field and what was expected."""


def configs_dir() -> Path:
    """The folder of shipped configurations: beside the packages in a checkout, inside `twin` in a wheel."""
    here = Path(__file__).resolve().parent
    installed = here / "configs"
    return installed if installed.is_dir() else here.parent / "configs"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Number(_Strict):
    """One number with its unit, basis (pub, calc, asm, fit) and source."""

    value: float = Field(allow_inf_nan=False)
    unit: str
    basis: Basis
    source: str


class DonorNumber(Number):
    """A kinetic parameter with the spread of its logarithm over donors (null: fixed) and whether routine data see it."""

    donor_sd: float | None = Field(default=None, gt=0)
    seen: str


class InitialNumber(Number):
    sd_ln: float = Field(gt=0)


class PresetFile(_Strict):
    """A cell preset: kinetics, vessel, initial state."""

    name: Name
    title: str
    cell: dict[str, DonorNumber]
    vessel: dict[str, Number]
    initial: dict[str, InitialNumber]
    medium: Name


class _SensorError(_Strict):
    name: Name
    sd: float = Field(gt=0)
    walk: float = Field(ge=0)


class _Growth(_Strict):
    name: Name
    mean: float = Field(allow_inf_nan=False)
    sd: float = Field(gt=0)


class _Sensor(_Strict):
    unit: str
    sd: float = Field(gt=0)
    gate: float = Field(gt=0)
    stale_after: float = Field(gt=0)
    error: _SensorError | None = None
    growth: _Growth | None = None
    kind: Literal["probe", "laboratory"] = "laboratory"
    source: str


class _Target(_Strict):
    at_least: float | None = None
    at_most: float | None = None
    unit: str
    source: str


class _Stage(_Strict):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)
    start: float
    end: float
    yield_mean: float = Field(alias="yield", gt=0)
    sd_ln: float = Field(ge=0)
    source: str


class _Recipe(_Strict):
    name: Name
    version: int = Field(ge=1)
    policy: Literal["time_steps", "density_steps", "cspr", "lactate_p", "constant", "none"]
    numbers: dict[str, tuple[float, ...]] = {}
    feed: float = Field(default=0.0, ge=0)
    cytokine_dose: float = Field(default=0.0, ge=0)
    harvest_cells: float = Field(gt=0)
    harvest_latest: float = Field(gt=0)


class _Limits(_Strict):
    name: Name
    perfusion_max: float = Field(gt=0)
    perfusion_step: float = Field(gt=0)
    feed_max: float = Field(ge=0)
    bleed_max: float = Field(ge=0)
    cytokine_dose_max: float = Field(ge=0)
    glucose_min: float = Field(ge=0)
    lactate_soft: float = Field(gt=0)
    lactate_hard: float = Field(gt=0)
    ammonia_max: float = Field(gt=0)
    ph_min: float
    ph_max: float
    cytokine_min: float = Field(ge=0)
    oxygen_min: float = Field(default=Limits().oxygen_min, ge=0)
    osmolality_max: float = Field(default=Limits().osmolality_max, gt=0)
    volume_max: float = Field(gt=0)
    medium_budget: float = Field(gt=0)


class ProcessFile(_Strict):
    """Which entries make up a process."""

    name: Name
    preset: str
    medium: str
    recipe: str
    sensors: str
    targets: str
    limits: str
    stages: str
    considered: tuple[str, ...] = ()
    noise: str | None = None


class _SensorNoise(_Strict):
    sd: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    walk: float | None = Field(default=None, ge=0, allow_inf_nan=False)


class NoiseFile(_Strict):
    """Noise that replaces what process and sensors say of theirs, as `celltwin tune` writes it; what is not named stays."""

    name: Name
    source: str
    process: dict[
        str, Annotated[float, Field(gt=0, allow_inf_nan=False)]
    ] = {}  # of `Coordinates`, sd of ln per sqrt(day)
    parameter_walk: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    restless: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = {}  # of single kinetics
    sensors: dict[str, _SensorNoise] = {}


def read_yaml(path: Path) -> Any:
    """Safe YAML with duplicate keys refused; errors name the file and the line."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        return yaml.load(text, Loader=_UniqueKeys)  # noqa: S506 - a SafeLoader subclass
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error


class _UniqueKeys(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]  # type: ignore[no-untyped-call]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key!r}", node.start_mark)
        return super().construct_mapping(node, deep)


def parse(model: type[M], content: Any, where: str) -> M:
    """Validate `content` as `model`; a ConfigError names `where` and the first offending field."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "(top level)"
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise ConfigError(f"{where}: field {field}: {first['msg']}{more}") from error


def locate(kind: Kind, name: str) -> Path:
    """Path of a named entry of `kind`, or of the file that `name` is. Raises ConfigError with the known names."""
    if name.endswith((".yaml", ".yml")) or "/" in name:
        path = Path(name)
        if not path.is_file():
            raise ConfigError(f"{name}: no such file")
        return path
    path = configs_dir() / kind / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml")))
        raise ConfigError(f"unknown {kind} entry {name!r}; known: {known}")
    return path


def _numbers(where: str, kind: str, given: Mapping[str, Any], wanted: tuple[str, ...]) -> None:
    missing, unknown = [k for k in wanted if k not in given], [k for k in given if k not in wanted]
    if missing or unknown:
        raise ConfigError(f"{where}: field {kind}: missing {missing}, unknown {unknown}")


@cache
def load_preset(name: str) -> PresetFile:
    """A cell preset by name or file."""
    path = locate("presets", name)
    preset = parse(PresetFile, read_yaml(path), str(path))
    _numbers(str(path), "cell", preset.cell, Kinetics._fields)
    _numbers(str(path), "vessel", preset.vessel, Vessel._fields)
    physical = set(State._fields) - {"car_positive", "car_negative", "dead"} | {"viable_density", "viability", "car_fraction"}  # fmt: skip
    _numbers(str(path), "initial", preset.initial, tuple(sorted(physical)))
    return preset


@cache
def load_medium(name: str) -> Medium:
    """A medium by name or file."""
    path = locate("media", name)
    content = read_yaml(path)
    fields = {k: v for k, v in content.items() if k != "name"} if isinstance(content, dict) else {}
    _numbers(str(path), "(top level)", fields, Medium._fields)
    return Medium(**{k: parse(Number, v, f"{path}: {k}").value for k, v in fields.items()})


@cache
def load_recipe(name: str) -> Recipe:
    """A recipe by name or file."""
    path = locate("recipes", name)
    return Recipe(**parse(_Recipe, read_yaml(path), str(path)).model_dump())


@cache
def load_sensors(name: str) -> Mapping[str, Sensor]:
    """A set of sensors by name or file, in the order of `twin.sensors.CHANNELS`."""
    path = locate("sensors", name)
    entries = {k: parse(_Sensor, v, f"{path}: {k}") for k, v in read_yaml(path).items() if k != "name"}
    unknown = [k for k in entries if k not in CHANNELS]
    if unknown:
        raise ConfigError(f"{path}: unknown channels {unknown}; known: {', '.join(CHANNELS)}")
    return {k: _sensor(k, entries[k]) for k in CHANNELS if k in entries}


def _sensor(channel: str, s: _Sensor) -> Sensor:
    error = SensorError(**s.error.model_dump()) if s.error else None
    growth = GrowthEffect(**s.growth.model_dump()) if s.growth else None
    return Sensor(channel, s.unit, s.sd, s.gate, s.stale_after, error, s.source, s.kind, growth)


@cache
def load_targets(name: str) -> tuple[Target, ...]:
    """CQA targets by name or file."""
    path = locate("targets", name)
    targets: list[Target] = []
    for cqa, content in read_yaml(path).items():
        if cqa == "name":
            continue
        t = parse(_Target, content, f"{path}: {cqa}")
        if (t.at_least is None) == (t.at_most is None):
            raise ConfigError(f"{path}: {cqa}: give exactly one of at_least, at_most")
        if t.at_least is not None:
            targets.append(Target(cqa, "at_least", t.at_least, t.unit))
        elif t.at_most is not None:
            targets.append(Target(cqa, "at_most", t.at_most, t.unit))
    return tuple(targets)


@cache
def load_limits(name: str) -> Limits:
    """Operating limits by name or file."""
    path = locate("limits", name)
    return Limits(**parse(_Limits, read_yaml(path), str(path)).model_dump(exclude={"name"}))


@cache
def load_stages(name: str) -> tuple[Stage, ...]:
    """Process stages by name or file."""
    path = locate("stages", name)
    stages = {k: parse(_Stage, v, f"{path}: {k}") for k, v in read_yaml(path).items() if k != "name"}
    return tuple(Stage(k, s.start, s.end, s.yield_mean, s.sd_ln, s.source) for k, s in stages.items())


def initial_state(preset: PresetFile) -> tuple[State, Coordinates]:
    """Expected state at inoculation and the standard deviation of ln of its coordinates (delta method)."""
    value = {k: n.value for k, n in preset.initial.items()}
    sd = {k: n.sd_ln for k, n in preset.initial.items()}
    density, viability, fraction = value.pop("viable_density"), value.pop("viability"), value.pop("car_fraction")
    sd_density, sd_dead, sd_fraction = sd.pop("viable_density"), sd.pop("viability"), sd.pop("car_fraction")
    dead = density * (1.0 - viability) / viability
    return (
        State(car_positive=density * fraction, car_negative=density * (1.0 - fraction), dead=dead, **value),
        Coordinates(
            viable=sd_density,
            car_odds=sd_fraction / (1.0 - fraction),
            dead=(sd_density**2 + sd_dead**2) ** 0.5,
            **sd,
        ),
    )


def make_process(
    preset: str,
    *,
    name: str | None = None,
    medium: str | None = None,
    recipe: str = "cspr_100",
    sensors: str = "online",
    targets: str = "car_nk_release",
    limits: str = "car_nk",
    stages: str | None = None,
    considered: tuple[str, ...] = (),
    noise: str | None = None,
) -> Process:
    """Assemble a process from named entries (or files). Raises ConfigError for a considered parameter without a spread."""
    entry = load_preset(preset)
    cell = Kinetics(**{k: n.value for k, n in entry.cell.items()})
    vessel = Vessel(**{k: n.value for k, n in entry.vessel.items()})
    initial, initial_sd = initial_state(entry)
    spreads = {k: n.donor_sd for k, n in entry.cell.items() if n.donor_sd is not None}
    if unknown := [k for k in considered if k not in spreads]:
        raise ConfigError(
            f"process {name or entry.name}: field considered: preset {preset!r} gives no donor spread for {unknown}"
        )
    process = Process(
        name=name or entry.name,
        theta=Theta(cell, vessel, load_medium(medium or entry.medium)),
        donor_sd=spreads,
        initial=initial,
        initial_sd=initial_sd,
        recipe=load_recipe(recipe),
        targets=load_targets(targets),
        limits=load_limits(limits),
        sensors=load_sensors(sensors),
        stages=load_stages(stages) if stages else (),
        considered=considered,
    )
    return process if noise is None else with_noise(process, noise)


def with_noise(process: Process, name: str) -> Process:
    """The process with the noise of an entry of ``noise`` (or a file). Raises ConfigError for what the process lacks."""
    path = locate("noise", name)
    given = parse(NoiseFile, read_yaml(path), str(path))
    sensors = dict(process.sensors)
    if unknown := sorted(set(given.process) - set(Coordinates._fields)):
        raise ConfigError(f"{path}: field process: unknown {unknown}; known: {', '.join(Coordinates._fields)}")
    if unknown := sorted(set(given.sensors) - set(sensors)):
        raise ConfigError(f"{path}: field sensors: process {process.name!r} has no sensor for {unknown}")
    if unknown := sorted(set(given.restless) - set(Kinetics._fields)):
        raise ConfigError(f"{path}: field restless: unknown {unknown}; known: {', '.join(Kinetics._fields)}")
    for channel, found in given.sensors.items():
        sensor, error = sensors[channel], sensors[channel].error
        if found.walk is not None:
            if error is None:
                raise ConfigError(f"{path}: field sensors.{channel}.walk: this sensor has no error that could walk")
            error = error._replace(walk=found.walk)
        sensors[channel] = replace(sensor, sd=found.sd or sensor.sd, error=error)
    walk = process.parameter_walk if given.parameter_walk is None else given.parameter_walk
    noise, restless = process.noise._replace(**given.process), {**process.restless, **given.restless}
    return replace(process, noise=noise, parameter_walk=walk, restless=restless, sensors=sensors)


def load_config(name: str) -> Process:
    """The process called `name` under `configs/processes` (or described in the file `name`).

    Raises ConfigError naming file, field and expectation.
    """
    path = locate("processes", name)
    p = parse(ProcessFile, read_yaml(path), str(path))
    return make_process(
        p.preset, name=p.name, medium=p.medium, recipe=p.recipe, sensors=p.sensors,
        targets=p.targets, limits=p.limits, stages=p.stages, considered=p.considered, noise=p.noise,
    )  # fmt: skip
