"""Every sensor fault of the vocabulary, on every channel, from several days: found? how soon? is the estimate still right?

One batch a cell on the mismatched plant, donors in turn: the fault begins at its onset and stays until the batch ends `AFTER` days later.
A fault is found when the twin raises an alarm about the channel (stuck, contradicted, drift, biased, unit slip, lost) or
refuses its readings, at or after the onset. Viable density and glucose are held against the truth every hour of the fault.
The same batches without a fault give the false alarms.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from simulators.faults import SENSOR_MODES, Fault
from simulators.recording import Recording, afflict, record
from simulators.study.base import Figure, Row, Study, Table
from simulators.study.tracking import HOUR, live, lived, true_at, within
from twin.batch import start
from twin.config import load_config
from twin.donors.prior import DonorPrior, preset_prior
from twin.estimation.health import channel_alarms
from twin.estimation.pumps import readback_alarms
from twin.evidence import Measurement
from twin.history import Batch
from twin.sensors import compared

CHANNELS = (
    "ph", "do", "capacitance", "raman_glucose", "raman_lactate", "temperature", "weight", "viable_density", "viability",
    "car_fraction", "oxygen_uptake", "readback:perfusion",
)  # fmt: skip
"""The twelve channels of the safety contract."""
ONSETS = (1.0, 6.0, 14.0)
AFTER = 4.0
HELD = ("viable_density", "glucose")


class Job(NamedTuple):
    """One donor, and the faults that befall copies of its batch."""

    seed: int
    process: str
    prior: DonorPrior | None
    faults: tuple[Fault, ...]


def jobs(batches: int, first: int, process: str, prior: DonorPrior | None) -> Sequence[Job]:
    """Every cell of the table once, dealt out to `batches` donors."""
    cells = [Fault(channel, mode, onset) for onset in ONSETS for channel in CHANNELS for mode in SENSOR_MODES]
    rng = np.random.default_rng([first, 0xDEA1])
    order = [cells[i] for i in rng.permutation(len(cells))]
    return [Job(first + k, process, prior, tuple(order[k::batches])) for k in range(min(batches, len(cells)))]


def run(job: Job) -> Row:
    """The faulty batches of one job, and the fault-free one."""
    process = load_config(job.process)
    prior = job.prior or preset_prior(process)
    days = max(f.onset for f in job.faults) + AFTER
    healthy = record(process, job.seed, seed=job.seed, days=days)
    begun = start("study", process, prior)
    cells: list[dict[str, Any]] = []
    for onset in sorted({f.onset for f in job.faults}):
        before, told = lived(healthy, begun, onset - HOUR / 2.0)  # the same batch until the fault begins
        for fault in (f for f in job.faults if f.onset == onset):
            if fault.target in healthy.heeded or fault.kind != "sensor":
                recording = record(process, job.seed, seed=job.seed, days=onset + AFTER, faults=(fault,))
            else:
                recording = afflict(healthy, (fault,))
            if recording.facts[:told] != healthy.facts[:told]:
                raise RuntimeError(f"{fault.name} changed what was told before its onset")
            cells.append(_live_through(recording, before, told, fault))
    return {"seed": job.seed, "cells": cells, "healthy": _fault_free(healthy, process, prior, days)}


def _live_through(recording: Recording, batch: Batch, told: int, fault: Fault) -> dict[str, Any]:
    """From the onset for `AFTER` days, hour by hour."""
    found: float | None = None
    how, finite, slipped = "", True, 0
    held: dict[str, list[bool]] = {q: [] for q in HELD}
    for moment in live(recording, batch, told=told, after=fault.onset - HOUR):
        if moment.at > fault.onset + AFTER + 1e-6:
            break
        batch = moment.batch
        finite = finite and batch.belief.finite
        if found is None:
            found, how = _noticed(moment.batch, moment.refused, fault, moment.at)
        believed = moment.believed
        for q in HELD:
            held[q].append(within(believed[q], float(true_at(recording, q, moment.at))))
    faint = 0
    if fault.mode == "unit_slip" and fault.target in batch.process.sensors:
        sensor = batch.process.sensors[fault.target]
        for m in recording.facts:
            if not (isinstance(m, Measurement) and m.channel == fault.target and fault.active(m.sampled_at)):
                continue
            verdicts = [i.verdict for i in batch.innovations if i.channel == m.channel and i.time == m.sampled_at]
            if not set(verdicts) & {"accepted", "widened"}:
                continue
            off = abs(float(compared(m.channel, m.value)) - float(compared(m.channel, recording.signals[m.id])))
            slipped, faint = (slipped + 1, faint) if off > sensor.gate * sensor.sd else (slipped, faint + 1)
    return {
        "channel": fault.target, "mode": fault.mode, "onset": fault.onset, "found": found is not None, "how": how,
        "hours": None if found is None else 24.0 * (found - fault.onset), "finite": finite, "slipped": slipped, "faint": faint,
        **{f"held_{q}": (int(np.sum(held[q])), len(held[q])) for q in HELD},
    }  # fmt: skip


def _noticed(batch: Batch, refused: Row, fault: Fault, now: float) -> tuple[float | None, str]:
    name = fault.actuator
    if refused.get(name, -1.0) >= fault.onset - 1e-6:
        return now, "refused"
    for alarm in channel_alarms(batch, now) if fault.kind == "sensor" else readback_alarms(batch, now):
        if alarm.channel in (name, f"readback_{name}") and alarm.since >= fault.onset - 1e-6:
            return now, alarm.code
    return None, ""


def _fault_free(recording: Recording, process: Any, prior: DonorPrior, days: float) -> dict[str, Any]:
    """Alarms raised about a rig on which nothing is wrong, and coverage."""
    raised: list[tuple[str, str, float]] = []
    standing: set[tuple[str, str]] = set()
    held: dict[str, list[bool]] = {q: [] for q in HELD}
    for moment in live(recording, start("study", process, prior)):
        alarms = (*channel_alarms(moment.batch, moment.at), *readback_alarms(moment.batch, moment.at))
        now = {(a.channel, a.code) for a in alarms}
        raised += [(*key, moment.at) for key in now - standing]
        standing = now
        believed = moment.believed
        for q in HELD:
            held[q].append(within(believed[q], float(true_at(recording, q, moment.at))))
    return {"days": days, "raised": raised, **{f"held_{q}": (int(np.sum(held[q])), len(held[q])) for q in HELD}}


def _cells(rows: Sequence[Row]) -> list[dict[str, Any]]:
    return [c for r in rows for c in r["cells"]]


def _held(cells: Iterable[Row], quantity: str) -> float:
    inside, asked = np.sum([c[f"held_{quantity}"] for c in cells], axis=0)
    return float(inside / asked)


def figures(rows: Sequence[Row]) -> tuple[Figure, ...]:
    """What is owed."""
    cells, healthy = _cells(rows), [r["healthy"] for r in rows]
    days = sum(h["days"] for h in healthy)
    raised = [a for h in healthy for a in h["raised"]]
    slips = [c for c in cells if c["mode"] == "unit_slip"]
    per_day = len(raised) / days
    kinds: dict[str, int] = {}
    for channel, code, _ in raised:
        kinds[f"{channel} {code}"] = kinds.get(f"{channel} {code}", 0) + 1
    return (
        Figure(
            "false alarms per fault-free batch-day",
            per_day,
            high=0.05,
            n=len(healthy),
            note=", ".join(f"{k} x{v}" for k, v in kinds.items()),
        ),
        Figure("NaN escapes", float(sum(not c["finite"] for c in cells)), high=0.0, n=len(cells)),
        Figure(
            "slipped readings taken in",
            float(sum(c["slipped"] for c in slips)),
            high=0.0,
            n=len(slips),
            note=f"and {sum(c['faint'] for c in slips)} that the slip moved by less than the gate of the sensor's noise: "
            + ", ".join(sorted({c["channel"] for c in slips if c["slipped"] or c["faint"]})),
        ),
        *(
            Figure(f"90 % coverage of {q} during faults", _held(cells, q), low=0.85, high=0.95, n=len(cells))
            for q in HELD
        ),
        *(Figure(f"90 % coverage of {q} without faults", _held(healthy, q), n=len(healthy)) for q in HELD),
        Figure("faults found within four days", float(np.mean([c["found"] for c in cells])), n=len(cells)),
    )


def tables(rows: Sequence[Row]) -> tuple[Table, ...]:
    """Found (fraction), median hours, coverage: mode by channel; and by mode and onset."""
    cells = _cells(rows)
    grid: list[tuple[Any, ...]] = []
    for mode in SENSOR_MODES:
        line: list[Any] = [mode]
        for channel in CHANNELS:
            mine = [c for c in cells if c["mode"] == mode and c["channel"] == channel]
            hours = [c["hours"] for c in mine if c["found"]]
            line.append(f"{len(hours)}/{len(mine)} {np.median(hours):.0f}h" if hours else f"0/{len(mine)}")
        grid.append(tuple(line))
    onsets = tuple(f"onset day {o:g}" for o in ONSETS)
    return (
        Table("found within four days, median hours to it", ("mode", *CHANNELS), tuple(grid)),
        Table("found / viable density held / glucose held", ("mode", *onsets), _by_onset(cells, "mode", SENSOR_MODES)),
        Table(
            "found / viable density held / glucose held", ("channel", *onsets), _by_onset(cells, "channel", CHANNELS)
        ),
    )


def _by_onset(cells: Sequence[Row], key: str, names: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """A line a name: of every onset the fraction found and the coverages."""

    def told(mine: Sequence[Row]) -> str:
        figures = [float(np.mean([c["found"] for c in mine])), *(_held(mine, q) for q in HELD)]
        return " / ".join(f"{f:.2f}" for f in figures)

    return tuple((n, *(told([c for c in cells if c[key] == n and c["onset"] == o]) for o in ONSETS)) for n in names)


STUDY = Study("Sensor faults on the mismatched plant", 12, jobs, run, figures, tables)
