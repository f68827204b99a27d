"""What a recorded batch is, what was left out of it, and the one error that bad data raises."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import MappingProxyType

from twin.evidence import ControlApplied, Measurement

EMPTY: Mapping[str, str | float] = MappingProxyType({})


class DataError(ValueError):
    """Data that cannot be used: one line naming file, row (as an editor counts lines), column and what was expected."""

    def __init__(self, path: Path | str, problem: str, *, row: int | None = None, column: str | None = None) -> None:
        place = [str(path)]
        if row is not None:
            place.append(f"row {row}")
        if column is not None:
            place.append(f"column {column}")
        super().__init__(" ".join(f"{': '.join(place)}: {problem}".split()))
        self.path, self.row, self.column = str(path), row, column


@dataclass(frozen=True, slots=True)
class RecordedBatch:
    """One culture as it was recorded. Times in days since inoculation, values in canonical units (`twin.units`)."""

    id: str
    donor: str  # what the hierarchy pools over: a donor, or a clone that stands in for one
    group: str  # what leave-one-group-out leaves out: donor, clone, feeding strategy
    preset: str | None
    start: datetime | None  # inoculation, with its zone
    measurements: tuple[Measurement, ...]  # by sampling time; every version of an amended value
    actions: tuple[ControlApplied, ...]  # by time
    metadata: Mapping[str, str | float] = field(default_factory=lambda: EMPTY)  # volume_l, medium, covariates, outcome

    @property
    def final(self) -> tuple[Measurement, ...]:
        """The measurements with superseded versions left out."""
        newest: dict[str, Measurement] = {}
        for m in self.measurements:
            if m.id not in newest or m.version > newest[m.id].version:
                newest[m.id] = m
        return tuple(m for m in self.measurements if newest[m.id] is m)


@dataclass(frozen=True, slots=True)
class Skip:
    """Readings that were not taken over, counted with the reason."""

    column: str
    reason: str
    count: int


@dataclass(frozen=True, slots=True)
class Records:
    """What a file held: the batches, and everything that was left out of them."""

    path: str
    mapping: str  # name of the column mapping, or "tidy"
    batches: tuple[RecordedBatch, ...]
    skipped: tuple[Skip, ...]


def by_time(m: Measurement) -> tuple[float, str, str, int]:
    """Order of measurements in a record."""
    return (m.sampled_at, m.channel, m.id, m.version)
