"""Scenarios: which instruments watch, how far the plant departs from the model, what the edge allows. Data, read strictly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from simulators.edge import Budget, Caps
from simulators.instruments import HOUR, SIGNALS, ChannelSpec, Instrument
from twin.config import ConfigError, configs_dir, parse, read_yaml

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
Span = tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0)]]


@dataclass(frozen=True, slots=True)
class Scenario:
    """A virtual plant's surroundings."""

    name: str
    mismatch: float  # departure of plant from model, see `simulators.donors.virtual_donor`
    tick: float  # how often the edge steps and probes are read [d]
    instruments: tuple[Instrument, ...]
    caps: Caps
    budget: Budget
    calibrations: Mapping[str, tuple[float, ...]] = field(default_factory=dict)  # planned, by channel, ascending [d]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class _Channel(_Strict):
    noise: float = Field(ge=0)
    bias: float = Field(default=0.0, ge=0)
    walk: float = Field(default=0.0, ge=0)
    drift: float = Field(default=0.0, ge=0)
    source: str


class _Late(_Strict):
    probability: float = Field(ge=0, le=1)
    hours: Span


class _Instrument(_Strict):
    interval_h: float | None = Field(default=None, gt=0)  # null: at every tick
    first_h: float = Field(default=0.0, ge=0)
    age_h: float = Field(default=0.0, ge=0)
    delay_h: Span = (0.0, 0.0)
    late: _Late | None = None
    dropout: float = Field(default=0.0, ge=0, lt=1)
    sample_ml: float = Field(default=0.0, ge=0)
    laboratory: bool = False
    channels: dict[str, _Channel] = Field(min_length=1)

    @model_validator(mode="after")
    def _sound(self) -> _Instrument:
        unknown = [c for c in self.channels if c not in SIGNALS]
        if unknown:
            raise ValueError(f"channels {unknown} are unknown; known: {', '.join(SIGNALS)}")
        for span in (self.delay_h, self.late.hours if self.late else (0.0, 0.0)):
            if span[0] > span[1]:
                raise ValueError(f"hours {list(span)} must ascend")
        if not self.laboratory and self.delay_h != (0.0, 0.0):
            raise ValueError("an online instrument has an age_h; delay_h is for laboratory: true")
        return self


class _Caps(_Strict):
    of_recipe_max: float = Field(default=2.0, ge=1)
    of_recipe_now: float = Field(default=3.0, ge=1)
    floor: float = Field(default=0.0, ge=0)
    slew: float = Field(default=0.5, gt=0)


class _Budget(_Strict):
    day: float = Field(default=0.0, ge=0)
    batch: float = Field(default=0.0, ge=0)
    cytokine_day: float = Field(default=0.0, ge=0)
    cytokine_batch: float = Field(default=0.0, ge=0)


class _Scenario(_Strict):
    name: Name
    title: str
    mismatch: float = Field(default=1.0, ge=0, le=2)
    tick_h: float = Field(default=1.0, gt=0, le=6)
    instruments: dict[Name, _Instrument]
    caps: _Caps = _Caps()
    budget: _Budget = _Budget()
    calibrations: dict[str, tuple[Annotated[float, Field(gt=0)], ...]] = {}


def scenario_path(name: str) -> Path:
    """Where the scenario `name` (an entry of `configs/scenarios`, or a file) lies. Raises ConfigError with known names."""
    if name.endswith((".yaml", ".yml")) or "/" in name:
        path = Path(name)
        if not path.is_file():
            raise ConfigError(f"{name}: no such scenario file")
        return path
    path = configs_dir() / "scenarios" / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml")))
        raise ConfigError(f"unknown scenario {name!r}; known: {known}")
    return path


@cache
def load_scenario(name: str = "nominal") -> Scenario:
    """A scenario by name or file. Raises ConfigError naming file, field and expectation."""
    path = scenario_path(name)
    return make_scenario(read_yaml(path), str(path))


def make_scenario(content: Mapping[str, Any] | Any, where: str) -> Scenario:
    """A scenario from parsed YAML; `where` names it in errors."""
    s = parse(_Scenario, content, where)
    seen: dict[str, str] = {}
    for name, device in s.instruments.items():
        for channel in device.channels:
            if channel in seen:
                raise ConfigError(
                    f"{where}: field instruments.{name}.channels.{channel}: {seen[channel]} reads it already"
                )
            seen[channel] = name
        if device.age_h >= s.tick_h:
            raise ConfigError(f"{where}: field instruments.{name}.age_h: must be less than tick_h, {s.tick_h:g} h")
    for channel, days in s.calibrations.items():
        if channel not in seen:
            raise ConfigError(f"{where}: field calibrations.{channel}: no instrument reads it; read: {', '.join(seen)}")
        if list(days) != sorted(set(days)):
            raise ConfigError(f"{where}: field calibrations.{channel}: days must ascend, not {list(days)}")
    return Scenario(
        name=s.name,
        mismatch=s.mismatch,
        tick=s.tick_h * HOUR,
        instruments=tuple(_instrument(name, i, s.tick_h) for name, i in s.instruments.items()),
        caps=Caps(**s.caps.model_dump()),
        budget=Budget(**s.budget.model_dump()),
        calibrations=s.calibrations,
    )


def _instrument(name: str, i: _Instrument, tick_h: float) -> Instrument:
    return Instrument(
        name=name,
        channels={k: ChannelSpec(c.noise, c.bias, c.walk, c.drift) for k, c in i.channels.items()},
        interval=(i.interval_h or tick_h) * HOUR,
        first=i.first_h * HOUR,
        age=i.age_h * HOUR,
        delay=(i.delay_h[0] * HOUR, i.delay_h[1] * HOUR),
        late_probability=i.late.probability if i.late else 0.0,
        late=(i.late.hours[0] * HOUR, i.late.hours[1] * HOUR) if i.late else (0.0, 0.0),
        dropout=i.dropout,
        sample=i.sample_ml / 1000.0,
        laboratory=i.laboratory,
    )
