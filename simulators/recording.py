"""Batches in open loop: what a rig tells and what is true, with nobody listening. Food for studies of the estimator.

`record` plays a batch; `afflict` puts sensor faults into one that is already played, fifty times faster and to the
same bytes, because a vessel does not know what its probes say.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from controllers import make_recipe
from simulators.donors import VirtualDonor
from simulators.edge import edge_settings
from simulators.faults import Fault, Mishaps, heard
from simulators.reactor import VirtualBioreactor
from simulators.scenario import Scenario, load_scenario
from twin.evidence import ControlApplied, Fact, Measurement
from twin.process import Process, Recipe


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """One virtual batch as it was told, and as it was."""

    process: Process  # as the twin may know it; its recipe is the one that was played
    donor: VirtualDonor
    seed: int
    scenario: Scenario
    faults: tuple[Fault, ...]
    facts: tuple[Fact, ...]  # in the order in which a wire would have carried them
    truth: Mapping[str, np.ndarray]  # by the names of `VirtualBioreactor.TRUTH`, one value a tick
    signals: Mapping[str, float]  # what a perfect device would have read, by id of the measurement
    heeded: frozenset[str]  # channels that the edge acted on: their faults change the batch itself


def record(
    process: Process,
    donor: VirtualDonor | int | None = None,
    *,
    seed: int = 0,
    scenario: Scenario | str = "nominal",
    recipe: Recipe | str | None = None,
    faults: Iterable[Fault] = (),
    days: float = 14.0,
    ignore_harvest: bool = True,
    online: bool = True,
) -> Recording:
    """Let the edge run its own recipe for `days` [d], with no twin. Deterministic: same arguments, same bytes.

    Args:
        process: what is fixed before the batch.
        donor: a `VirtualDonor`, its number, or None for number `seed`.
        seed: of the instruments and of the faults.
        scenario: an entry of `configs/scenarios`, a file, or a `Scenario`.
        recipe: by name or record; None: the process's own.
        faults: what goes wrong on the rig.
        days: length [d]; with `ignore_harvest` False an earlier harvest ends the batch.
        ignore_harvest: go on whatever is counted and however late it is.
        online: False leaves the probes out.

    Raises ConfigError for an unknown recipe or scenario, ValueError for a length that is not above 0 and at most 365 d.
    """
    if not 0.0 < days <= 365.0:
        raise ValueError(f"days: more than 0 and at most 365 are needed, not {days!r}")
    surroundings = load_scenario(scenario) if isinstance(scenario, str) else scenario
    played = make_recipe(recipe, process) if isinstance(recipe, str) else recipe or process.recipe
    process = replace(process, recipe=played)
    if ignore_harvest:
        played = replace(played, harvest_cells=math.inf, harvest_latest=math.inf)
    settings = edge_settings(played, process.limits, surroundings.caps, surroundings.budget)
    faults = tuple(faults)
    rig = VirtualBioreactor(
        process, donor, seed=seed, scenario=surroundings, settings=settings, online=online, faults=faults
    )
    facts = tuple(rig.tick(until=days))
    return Recording(
        process, rig.donor, seed, surroundings, faults, facts, rig.truth, rig.signals, _heeded(played, surroundings)
    )


def afflict(recording: Recording, faults: Iterable[Fault]) -> Recording:
    """The recording as it would have been told with `faults`: the same bytes as `record` with them.

    Raises ValueError for a recording that has faults already, and for a fault that changes the batch itself: of a pump, or
    of a channel that the edge acted on.
    """
    faults = tuple(faults)
    if recording.faults:
        raise ValueError(f"the recording has faults already: {', '.join(f.name for f in recording.faults)}")
    for f in faults:
        if f.kind == "pump" or f.target in recording.heeded:
            raise ValueError(f"{f.name}: changes the batch itself; play it with record(..., faults=...)")
    mishaps = Mishaps(faults, recording.seed)
    said: dict[str, float | None] = {}
    for fact in sorted(recording.facts, key=_drawn):
        if isinstance(fact, Measurement) and mishaps.touches(fact.channel):
            said[fact.id] = mishaps.say(fact.channel, fact.sampled_at, fact.value, recording.signals[fact.id])
        elif isinstance(fact, ControlApplied) and mishaps.touches(f"readback:{fact.actuator}"):
            said[fact.id] = mishaps.say(f"readback:{fact.actuator}", fact.at, fact.rate, fact.rate)
    return replace(recording, faults=faults, facts=tuple(heard(recording.facts, said)))


def _drawn(fact: Fact) -> float:
    return fact.sampled_at if isinstance(fact, Measurement) else fact.at


def _heeded(recipe: Recipe, scenario: Scenario) -> frozenset[str]:
    """Channels that the recipe goes by, the harvest rule included."""
    read = {c for i in scenario.instruments if i.laboratory for c in i.channels}
    counts = {"viable_density"} if "viable_density" in read else set[str]()
    counts |= {"total_density", "viability"} if "total_density" in read else set()
    acts = {"density_steps": counts, "cspr": counts, "lactate_p": {"lactate"}}.get(recipe.policy, set[str]())
    return frozenset(acts | counts if math.isfinite(recipe.harvest_cells) else acts)
