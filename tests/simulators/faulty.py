"""Shared by the tests of faults: perfect instruments, and what a target said."""

from __future__ import annotations

from dataclasses import replace

from simulators import Scenario, load_scenario
from simulators.instruments import ChannelSpec
from twin.config import load_config
from twin.evidence import ControlApplied, Fact, Measurement

PROCESS = load_config("car_nk")


def quiet(name: str = "nominal") -> Scenario:
    """Perfect instruments: what they read is the signal."""
    scenario = load_scenario(name)
    silent = tuple(
        replace(i, dropout=0.0, late_probability=0.0, channels=dict.fromkeys(i.channels, ChannelSpec(0.0)))
        for i in scenario.instruments
    )
    return replace(scenario, instruments=silent)


def of(facts: tuple[Fact, ...], target: str) -> dict[str, tuple[float, float]]:
    """Id -> (time, value) of a channel or read-back."""
    name = target.rpartition(":")[2]
    out: dict[str, tuple[float, float]] = {}
    for f in facts:
        if isinstance(f, Measurement) and f.channel == name:
            out[f.id] = (f.sampled_at, f.value)
        elif isinstance(f, ControlApplied) and f.actuator == name:
            out[f.id] = (f.at, f.rate)
    return out
