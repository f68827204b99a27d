"""Runs told otherwise than they were."""

from __future__ import annotations

from dataclasses import replace

from simulators.matched import Run
from twin.evidence import ControlApplied


def reported(run: Run, gain: float, since: float) -> Run:
    """The run as it is told when the perfusion pump delivers `gain` times what it reports, from day `since` on."""
    facts = tuple(
        replace(f, rate=f.rate / gain)
        if isinstance(f, ControlApplied) and f.actuator == "perfusion" and f.at >= since
        else f
        for f in run.facts
    )
    return run._replace(facts=facts)
