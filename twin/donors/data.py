"""Recorded batches to the arrays that the donor fit reads. Everything that cannot be used is refused here, by name.

A batch whose metadata say ``stage: activation`` or ``seed_train`` is a static culture and is fitted by its counts alone;
every other batch is a bioreactor batch. Cells into and out of a stage stand in the metadata of the bioreactor batch as
``cells_in_STAGE`` and ``cells_out_STAGE`` [1e9 cells], covariates of the donor under their own names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from twin.bioreactor import State
from twin.evidence import ACTUATORS, ControlApplied, Measurement
from twin.process import Process, Stage
from twin.records import RecordedBatch
from twin.records.record import by_time
from twin.sensors import impossible

STATIC_STAGES = ("activation", "seed_train")
COUNTS = "viable_density"
FRACTIONS = ("viability", "car_fraction", "exhausted_fraction")
"""Channels whose noise is in the unit; that of the others is relative."""
FITTED = (COUNTS, "glucose", "lactate", "glutamine", "ammonia", *FRACTIONS)
"""Channels that the bioreactor stage is fitted to, where the batch has them."""

MIN_DONORS = 4
MIN_COUNTS = 4
MOST_GAIN = 3.0
"""Cells out over cells in of a stage that grows none: above it no error of counting (sd .07 each) explains the two counts."""


class FitError(ValueError):
    """Data or a posterior that a donor prior must not rest on; one line with the remedy."""


class Samples(NamedTuple):
    """Readings of one channel, flat over batches."""

    time: Float[np.ndarray, " n"]  # [d since inoculation]
    column: Int[np.ndarray, " n"]  # which batch
    value: Float[np.ndarray, " n"]  # canonical unit
    sd: Float[np.ndarray, " n"]  # relative for counts and concentrations, in the unit for viability


class StaticCultures(NamedTuple):
    """Counts of activation and seed train."""

    samples: Samples  # `column` counts cultures
    donor: Int[np.ndarray, " c"]
    lagging: Float[np.ndarray, " c"]  # 1: starts from rest (activation), 0: cells already grow
    length: Float[np.ndarray, " c"]  # [d]


class StageCounts(NamedTuple):
    """Counted cells around the bioreactor, ln of 1e9 cells, NaN where nobody counted."""

    stages: tuple[Stage, ...]  # in the order of the process, the bioreactor left out
    into: Float[np.ndarray, "s b"]
    outof: Float[np.ndarray, "s b"]
    harvested: Float[np.ndarray, " b"]  # day of harvest [d since inoculation], NaN where not yet


@dataclass(frozen=True, slots=True, eq=False)
class FitData:
    """What the hierarchical model conditions on."""

    donors: tuple[str, ...]
    batches: tuple[str, ...]  # bioreactor batches, one column each
    donor_of: Int[np.ndarray, " d"]
    horizon: float  # last bioreactor sample [d]
    applied: tuple[tuple[ControlApplied, ...], ...]
    initial: State  # of arrays [d]: first readings where there are any, else the process's expectation
    samples: dict[str, Samples]
    static: StaticCultures | None
    chain: StageCounts | None
    covariates: Mapping[str, Float[np.ndarray, " donors"]]  # standardised over the donors
    sha256: str  # of all that was read

    def controls(self, steps: int, span: float) -> Float[np.ndarray, "steps 4 d"]:
        """Mean rate of every actuator over each step: what was pumped in total is exact."""
        out = np.zeros((steps, len(ACTUATORS), len(self.batches)))
        edges = np.arange(steps + 1) * span
        for column, facts in enumerate(self.applied):
            for k, actuator in enumerate(ACTUATORS):
                own = [(a.at, a.rate) for a in facts if a.actuator == actuator]
                if own:
                    at, rate = np.array(own).T
                    pumped = np.concatenate([[0.0], np.cumsum(rate[:-1] * np.diff(at))])
                    k0 = np.clip(np.searchsorted(at, edges, side="right") - 1, 0, None)
                    total = np.where(edges >= at[0], pumped[k0] + rate[k0] * (edges - at[k0]), 0.0)
                    out[:, k, column] = np.diff(total) / span
        return out


def prepare(batches: Sequence[RecordedBatch], process: Process, covariates: Sequence[str] = ()) -> FitData:
    """Check and arrange. Raises FitError naming the batch or donor and the remedy."""
    reactor = [b for b in batches if b.metadata.get("stage", "bioreactor") not in STATIC_STAGES]
    donors = tuple(sorted({b.donor for b in reactor}))
    if len(donors) < MIN_DONORS:
        raise FitError(
            f"{len(donors)} donors with a bioreactor batch ({', '.join(donors) or 'none'}); a spread between donors needs at "
            f"least {MIN_DONORS}: add donors, or condition on the preset prior instead of fitting"
        )
    for b in reactor:
        counted = {m.sampled_at for m in b.final if m.channel == COUNTS and m.value > 0}
        if len(counted) < MIN_COUNTS:
            raise FitError(
                f"batch {b.id!r} of donor {b.donor!r} has {len(counted)} positive {COUNTS} samples; at least {MIN_COUNTS} at "
                "different times are needed: complete its counts or leave the batch out"
            )
        _demand_actions(b, process)
        if b.preset not in (None, process.name):
            raise FitError(
                f"batch {b.id!r} is of preset {b.preset!r}, not {process.name!r}: leave it out, or give its preset"
            )
    _demand_different(batches)
    chain = _chain(reactor, process)
    columns = {b.id: k for k, b in enumerate(reactor)}
    samples = {c: s for c in FITTED if (s := _samples(c, reactor, columns, process)).time.size}
    return FitData(
        donors=donors,
        batches=tuple(b.id for b in reactor),
        donor_of=np.array([donors.index(b.donor) for b in reactor]),
        horizon=float(np.nanmax([*(s.time.max() for s in samples.values()), *(chain.harvested if chain else ())])),
        applied=tuple(tuple(sorted(b.actions, key=lambda a: a.at)) for b in reactor),
        initial=_initial(reactor, process),
        samples=samples,
        static=_static(batches, donors, process),
        chain=chain,
        covariates={name: _covariate(name, reactor, donors) for name in covariates},
        sha256=data_hash(batches),
    )


def prepare_one(record: RecordedBatch, process: Process, until: float | None = None) -> FitData:
    """One bioreactor batch as it was known by day `until` [d]: one donor, one column.

    Raises FitError, naming the batch, where it has no count by then, an impossible reading, or no actions.
    """
    known = [m for m in record.measurements if until is None or (m.sampled_at <= until and m.received_at <= until)]
    final = replace(record, measurements=tuple(sorted(known, key=by_time))).final
    kept = tuple(m for m in final if m.channel in FITTED and not m.retracted)
    record = replace(record, measurements=kept)
    if not any(m.channel == COUNTS for m in kept):
        by = "" if until is None else f" by day {until:g}"
        raise FitError(f"batch {record.id!r} has no {COUNTS} sample{by}: its donor cannot be told from the population")
    for m in kept:
        if why := impossible(m.channel, m.value):
            raise FitError(f"batch {record.id!r}: {m.id!r}: {why}: correct or retract it")
    _demand_actions(record, process)
    return FitData(
        donors=(record.donor,),
        batches=(record.id,),
        donor_of=np.zeros(1, dtype=int),
        horizon=max(m.sampled_at for m in kept if m.channel in FITTED),
        applied=(tuple(sorted(record.actions, key=lambda a: a.at)),),
        initial=_initial([record], process),
        samples={c: s for c in FITTED if (s := _samples(c, [record], {record.id: 0}, process)).time.size},
        static=None,
        chain=None,
        covariates={},
        sha256=data_hash([record]),
    )


def _demand_different(batches: Sequence[RecordedBatch]) -> None:
    """No impossible reading, no batch twice, no stage of a donor twice before the bioreactor."""
    seen: dict[tuple[object, ...], str] = {}
    for b in batches:
        for m in b.final:
            if why := impossible(m.channel, m.value):
                raise FitError(f"batch {b.id!r}: {m.id!r}: {why}: correct or retract it")
        keys: list[tuple[object, ...]] = [("readings", *((m.channel, m.sampled_at, m.value) for m in b.final))]
        if b.metadata.get("stage") in STATIC_STAGES:
            keys.append((b.donor, b.metadata["stage"]))
        for key in keys:
            if key in seen and len(key) > 1:
                what = "the same readings" if key[0] == "readings" else f"another {key[1]} of donor {key[0]!r}"
                raise FitError(f"batch {b.id!r} has {what} as {seen[key]!r}: leave one out")
            seen[key] = b.id


def _demand_actions(b: RecordedBatch, process: Process) -> None:
    if not any(a.actuator in ACTUATORS and a.rate > 0 for a in b.actions) and process.recipe.cytokine_dose > 0:
        raise FitError(
            f"batch {b.id!r} has no perfusion, feed or cytokine_dose in its actions; process {process.name!r} is "
            "perfused and dosed: give the actions table that goes with the measurements"
        )


def data_hash(batches: Sequence[RecordedBatch]) -> str:
    """SHA-256 over every fact of the batches, independent of their order in the file."""
    text = sorted(f"{b.id}|{b.donor}|{sorted(b.metadata.items())}|{b.measurements!r}|{b.actions!r}" for b in batches)
    return hashlib.sha256("\n".join(text).encode()).hexdigest()


def _sd(m: Measurement, process: Process) -> float:
    default = process.sensors[m.channel].sd if m.channel in process.sensors else None
    if m.sd is None or m.sd <= 0:
        if default is None:
            raise FitError(f"no noise is known for channel {m.channel!r}: give `sd`, or a sensor set that has it")
        return default
    return m.sd if m.channel in FRACTIONS else m.sd / max(m.value, 1e-9)


def _samples(channel: str, batches: Sequence[RecordedBatch], columns: dict[str, int], process: Process) -> Samples:
    """All readings but an analyte's first one a batch, which is where the trajectory starts."""
    rows: list[tuple[float, int, float, float]] = []
    for b in batches:
        own = [m for m in b.final if m.channel == channel]
        skip_first = channel not in (COUNTS, *FRACTIONS)
        first = min((m.sampled_at for m in own), default=0.0)
        rows += [
            (m.sampled_at, columns[b.id], m.value, _sd(m, process))
            for m in own
            if not (skip_first and m.sampled_at == first and first < 0.5)
        ]
    time, column, value, sd = (np.array(v) for v in zip(*rows, strict=True)) if rows else (np.array([]),) * 4
    return Samples(time, column.astype(int), value, sd)


def _initial(batches: Sequence[RecordedBatch], process: Process) -> State:
    """Start of every batch: analyte readings of the first half day plugged in, the rest as the process expects.

    A plug-in carries its reading's error (4-8 %) into the start; dilution and uptake forget it within about a day.
    """
    n = len(batches)
    fields = {name: np.full(n, float(value)) for name, value in process.initial._asdict().items()}
    for k, b in enumerate(batches):
        for m in sorted(b.final, key=lambda m: -m.sampled_at):
            if m.sampled_at < 0.5 and m.channel in ("glucose", "lactate", "glutamine", "ammonia"):
                fields[m.channel][k] = max(m.value, 1e-3)
        volume = b.metadata.get("volume_l")
        fields["volume"][k] = float(volume) if isinstance(volume, float) else fields["volume"][k]
    return State(**fields)


def _static(batches: Sequence[RecordedBatch], donors: tuple[str, ...], process: Process) -> StaticCultures | None:
    cultures = [
        b for b in batches
        if b.metadata.get("stage") in STATIC_STAGES and b.donor in donors
        and len({m.sampled_at for m in b.final if m.channel == COUNTS and m.value > 0}) >= 2
    ]  # fmt: skip
    if not cultures:
        return None
    for b in cultures:
        if bad := [m.id for m in b.final if m.channel == COUNTS and m.value <= 0.0]:
            raise FitError(
                f"batch {b.id!r}: {bad[0]!r}: a static culture counted at nothing has no growth: correct or retract it"
            )
    samples = _samples(COUNTS, cultures, {b.id: k for k, b in enumerate(cultures)}, process)
    return StaticCultures(
        samples,
        np.array([donors.index(b.donor) for b in cultures]),
        np.array([1.0 if b.metadata["stage"] == "activation" else 0.0 for b in cultures]),
        np.array([samples.time[samples.column == k].max() for k in range(len(cultures))]),
    )


def _chain(batches: Sequence[RecordedBatch], process: Process) -> StageCounts | None:
    stages = tuple(s for s in process.stages if s.name != "bioreactor")
    into, outof = (np.full((len(stages), len(batches)), np.nan) for _ in range(2))
    for i, stage in enumerate(stages):
        for k, b in enumerate(batches):
            for end, table in (("in", into), ("out", outof)):
                key = f"cells_{end}_{stage.name}"
                cells = b.metadata.get(key)
                if cells is None:
                    continue
                if isinstance(cells, bool) or not isinstance(cells, (int, float)) or not 0.0 < cells < 1e6:
                    raise FitError(f"batch {b.id!r}: {key} is {cells!r}: it must be a number above 0 [1e9 cells]")
                table[i, k] = np.log(cells)
            if stage.name not in STATIC_STAGES and outof[i, k] - into[i, k] > np.log(MOST_GAIN):
                raise FitError(
                    f"batch {b.id!r}: {np.exp(outof[i, k]):.3g}e9 cells came out of {stage.name}, {np.exp(into[i, k]):.3g}e9 went "
                    "in, and it grows none: correct cells_in or cells_out"
                )
    if np.isnan(into).all() and np.isnan(outof).all():
        return None
    ended = [min((a.at for a in b.actions if a.actuator == "harvest"), default=np.nan) for b in batches]
    return StageCounts(stages, into, outof, np.array(ended, dtype=float))


def _covariate(name: str, batches: Sequence[RecordedBatch], donors: tuple[str, ...]) -> Float[np.ndarray, " donors"]:
    """A covariate of every donor, centred and in units of its standard deviation. FitError where it says nothing."""
    found: dict[str, float] = {}
    for b in batches:
        value = b.metadata.get(name)
        if isinstance(value, str) or value is None or not np.isfinite(float(value)):
            raise FitError(
                f"batch {b.id!r} of donor {b.donor!r}: covariate {name!r} is {value!r}: give every donor a number"
            )
        if found.setdefault(b.donor, float(value)) != float(value):
            raise FitError(
                f"donor {b.donor!r}: covariate {name!r} is {found[b.donor]:g} in one batch and {float(value):g} in {b.id!r}"
            )
    column = np.array([found[d] for d in donors])
    if column.std() == 0.0:
        raise FitError(f"covariate {name!r} is {column[0]:g} for every donor: it can explain nothing; leave it out")
    return (column - column.mean()) / column.std()
