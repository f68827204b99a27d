"""A synthetic manufacturing history: the 28-day records of virtual donors, for the donor fit. No measured data in it.

Each donor goes through the stages of `configs/stages`: collection, isolation, activation, transduction, seed train,
bioreactor under the local recipe, harvest, formulation, thaw. Cultures run on the plant (`simulators.plant`), which is
not the model; every count is a simulated reading. A stage that grows cells is a recorded batch of its own, with its own
clock and `stage` in its metadata; cells into and out of the other stages stand in the bioreactor batch's metadata as
``cells_in_STAGE`` and ``cells_out_STAGE`` [1e9 cells].

Assumed (asm): in static culture cells grow at .75 of the stirred rate (so that the seed train ends near 6 doublings, as
the preset's initial state says), spread .10 of ln; the seed train is inoculated at .25e6/mL, activation at .3e6/mL.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from controllers.recipes import harvest_due, recipe_control
from simulators.donors import VirtualDonor, virtual_donor
from simulators.instruments import HOUR, ChannelSpec, Device, Instrument
from simulators.plant import PlantState, carry, inoculate, withdraw
from twin.bioreactor import Control
from twin.evidence import ControlApplied, Measurement, Reading
from twin.process import Process, Stage
from twin.records import RecordedBatch, write_tidy
from twin.records.record import by_time

STATIC = 0.75  # growth in static culture over that in the stirred vessel (asm)
STATIC_SD = 0.10  # its spread over donors, of ln (asm)
COUNT_CV = 0.07  # of a cell count (SCIENCE section 3: 5-10 %)
NOTE = "SYNTHETIC: made by simulators/history.py, no measured data"

COUNTER = Instrument(
    "counter", {"viable_density": ChannelSpec(0.08), "viability": ChannelSpec(0.02)},
    interval=1.0, delay=(1 * HOUR, 4 * HOUR), late_probability=0.05, late=(4 * HOUR, 24 * HOUR), dropout=0.03, sample=0.003,
)  # fmt: skip
ANALYSER = Instrument(
    "analyser",
    {"glucose": ChannelSpec(0.04), "lactate": ChannelSpec(0.04), "glutamine": ChannelSpec(0.08), "ammonia": ChannelSpec(0.08)},
    interval=1.0, delay=(0.5 * HOUR, 4 * HOUR), dropout=0.02, sample=0.002,
)  # fmt: skip
FLOW = Instrument(
    "flow", {"car_fraction": ChannelSpec(0.03), "exhausted_fraction": ChannelSpec(0.03)},
    interval=3.5, delay=(4 * HOUR, 24 * HOUR), sample=0.002,
)  # fmt: skip
"""Laboratory routine of the bioreactor stage, noise as in SCIENCE section 3: counts and analyser daily, flow twice a week."""


def synthetic_history(
    process: Process, donors: int = 17, seed: int = 17, mismatch: float = 1.0
) -> tuple[RecordedBatch, ...]:
    """Records of `donors` virtual donors (three batches each). Same arguments, same records."""
    seeds = np.random.SeedSequence(seed).generate_state(donors)
    return tuple(
        batch
        for k, s in enumerate(seeds, start=1)
        for batch in _donor_record(process, f"SYN-D{k:02d}", int(s), mismatch)
    )  # fmt: skip


def write_history(process: Process, folder: Path, donors: int = 17, seed: int = 17) -> tuple[Path, ...]:
    """Write `synthetic_history` as tidy tables (measurements, actions, batches) with a note of what it is."""
    written = write_tidy(synthetic_history(process, donors, seed), folder / "measurements.csv")
    note = folder / "README.txt"
    note.write_text(f"{NOTE}; process {process.name}, {donors} donors, seed {seed}.\n", encoding="utf-8")
    return (*written, note)


def _donor_record(process: Process, name: str, seed: int, mismatch: float) -> tuple[RecordedBatch, ...]:
    donor = replace(virtual_donor(process, seed, mismatch), id=name)
    stages = {s.name: s for s in process.stages}
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(28,)))
    static = donor.cell.mu_max * STATIC * float(np.exp(STATIC_SD * rng.standard_normal()))
    slow = replace(donor, cell=donor.cell._replace(mu_max=static))
    activation, doublings, fold = _static_culture(
        process, slow, stages["activation"], 0.30, 0.0, donor.initial.activation, (3.0,), rng
    )
    seed_train, doublings, refold = _static_culture(
        process, slow, stages["seed_train"], 0.25, doublings, 1.0, (2.0, 4.0), rng
    )
    ready = replace(donor, initial=donor.initial._replace(doublings=doublings))
    bioreactor, harvested = _bioreactor(process, ready, seed)
    cells = _stage_cells(stages, harvested, {"activation": fold, "seed_train": refold}, rng)
    note = {"synthetic": NOTE}
    day = stages["bioreactor"].start
    parts = (
        ("-activation", activation, (), {"stage": "activation", "stage_day": stages["activation"].start}),
        ("-seed_train", seed_train, (), {"stage": "seed_train", "stage_day": stages["seed_train"].start}),
        (
            "",
            bioreactor[0],
            bioreactor[1],
            {"stage": "bioreactor", "stage_day": day, "volume_l": donor.initial.volume, **cells},
        ),
    )
    return tuple(
        RecordedBatch(name + suffix, name, name, process.name, None, measured, actions, {**note, **extra})
        for suffix, measured, actions, extra in parts
    )


def _counts(x: PlantState, at: float, rng: np.random.Generator) -> list[Measurement]:
    density = float(x.viable * np.exp(COUNT_CV * rng.standard_normal()))
    viability = float(np.clip(x.viability + 0.02 * rng.standard_normal(), 0.0, 1.0))
    known = at + float(rng.uniform(1, 4)) * HOUR
    return [
        Measurement(f"count-{at:g}", "viable_density", density, at, known),
        Measurement(f"viability-{at:g}", "viability", viability, at, known),
    ]


def _static_culture(
    process: Process, donor: VirtualDonor, stage: Stage, density: float, doublings: float, awake: float,
    counted: tuple[float, ...], rng: np.random.Generator,
) -> tuple[tuple[Measurement, ...], float, float]:  # fmt: skip
    """Counts of a static culture of fresh medium, its doublings at the end, and viable cells out over in.

    No perfusion; cytokine as in the recipe.
    """
    share = float(donor.initial.car_fraction)
    start = process.initial._replace(
        car_positive=density * share, car_negative=density * (1.0 - share), dead=0.08 * density,
        doublings=max(doublings, 1e-6), activation=awake, exhausted=donor.initial.exhausted,
    )  # fmt: skip
    plant = replace(donor.plant(process), days=donor.days[20:], pumps=Control(1.0, 1.0, 1.0, 1.0))
    x = inoculate(start, donor.structure._replace(age_gap=0.0))
    u, length, at = Control(cytokine_dose=process.recipe.cytokine_dose), stage.end - stage.start, 0.0
    readings = _counts(x, 0.0, rng)
    for stop in (*counted, length):
        x = carry(plant, x, u, at, stop - at)
        readings += _counts(x, stop, rng)
        at = stop
    return tuple(sorted(readings, key=by_time)), float(x.doublings), float(x.viable) / density


def _bioreactor(
    process: Process, donor: VirtualDonor, seed: int
) -> tuple[tuple[tuple[Measurement, ...], tuple[ControlApplied, ...]], float]:
    """Samples and pump read-backs of one bioreactor batch under the local recipe, and the viable cells harvested [1e9]."""
    plant, x = donor.plant(process), donor.start()
    sequence = np.random.SeedSequence(seed, spawn_key=(10,))
    devices = [Device.install(i, sequence, frozenset(process.sensors)) for i in (COUNTER, ANALYSER, FLOW)]
    measured: list[Measurement] = []
    applied: list[ControlApplied] = []
    current: Mapping[str, float] = {}
    now = 0.0
    while True:
        for device in devices:
            if device.is_due(now):
                day = plant.days[min(int(now + 1e-9), len(plant.days) - 1)]
                measured += device.measure(now, now, x, plant, day)
                x = withdraw(x, device.spec.sample)
        known = _newest(measured, now)
        if harvest_due(process.recipe, now, known, float(x.volume)):
            applied.append(ControlApplied(f"harvest@{now!r}", now, "harvest", 1.0))
            break
        u = recipe_control(process.recipe, now, known)
        for actuator in ("perfusion", "cytokine_dose"):
            rate = float(getattr(u, actuator))
            if current.get(actuator) != rate:
                applied.append(ControlApplied(f"{actuator}@{now!r}", now, actuator, rate))
        current = {"perfusion": float(u.perfusion), "cytokine_dose": float(u.cytokine_dose)}
        x = carry(plant, x, u, now, HOUR)
        now = round((now + HOUR) * 24) / 24
    return (tuple(sorted(measured, key=by_time)), tuple(sorted(applied, key=lambda a: (a.at, a.actuator)))), float(
        x.viable_cells
    )


def _newest(measured: list[Measurement], now: float) -> dict[str, Reading]:
    """The newest sample of each channel that is known by `now`."""
    known: dict[str, Reading] = {}
    for m in measured:
        if m.received_at <= now and (m.channel not in known or m.sampled_at > known[m.channel].sampled_at):
            known[m.channel] = Reading(m.value, m.sampled_at, m.received_at)
    return known


def _stage_cells(
    stages: Mapping[str, Stage], harvested: float, folds: Mapping[str, float], rng: np.random.Generator
) -> dict[str, float]:
    """Counted cells into and out of every stage around the bioreactor [1e9 cells]; `folds`: growth of those that grow.

    Collection is of NK cells: 2.0-2.4e10 nucleated cells of which 11-12 +/- 4-6 % are NK (SCIENCE section 2).
    """
    cells: dict[str, float] = {}

    def count(true: float) -> float:
        return float(true * np.exp(COUNT_CV * rng.standard_normal()))

    def through(name: str, into: float) -> float:
        s = stages[name]
        out = into * folds.get(name, s.yield_mean * float(np.exp(s.yield_sd_ln * rng.standard_normal())))
        cells[f"cells_in_{name}"], cells[f"cells_out_{name}"] = count(into), count(out)
        return out

    x = float(rng.uniform(20.0, 24.0)) * float(np.clip(0.115 * np.exp(0.4 * rng.standard_normal()), 0.03, 0.35))
    for name in ("collection", "isolation", "activation", "transduction", "seed_train"):
        x = through(name, x)
    x = harvested
    for name in ("harvest", "formulation", "thaw"):
        x = through(name, x)
    return cells
