"""Recorded batches to tidy CSV or Parquet, such that reading them back gives the same records."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from twin.records.record import RecordedBatch
from twin.units import CANONICAL

_MEASUREMENTS = ("batch", "donor", "time_d", "channel", "value", "unit", "sd", "available_d", "version", "id")
_ACTIONS = ("batch", "time_d", "actuator", "rate", "unit", "until_d", "id", "cmd_id")
_BATCHES = ("batch", "donor", "group", "preset", "start", "volume")


def write_tidy(batches: Iterable[RecordedBatch], path: Path) -> tuple[Path, ...]:
    """Write ``path`` (.csv or .parquet) with its ``_actions`` and ``_batches`` siblings; returns what was written.

    Values are in canonical units. Raises ValueError for another suffix or for metadata that would collide with a column.
    """
    if path.suffix not in (".csv", ".parquet"):
        raise ValueError(f"{path}: expected a name that ends in .csv or .parquet")
    batches = tuple(batches)
    extra = sorted({key for b in batches for key in b.metadata if key != "volume_l"})
    clash = [key for key in extra if key in _BATCHES]
    if clash:
        raise ValueError(f"metadata keys {clash} are columns of the batches table")
    measurements = [
        (b.id, b.donor, m.sampled_at, m.channel, m.value, CANONICAL[m.channel], m.sd, m.received_at, m.version, m.id)
        for b in batches
        for m in b.measurements
    ]
    actions = [
        (b.id, a.at, a.actuator, a.rate, CANONICAL[a.actuator], None, a.id, a.cmd_id)
        for b in batches
        for a in b.actions
    ]
    headers = [
        (b.id, b.donor, b.group, b.preset, b.start.isoformat() if b.start else None, b.metadata.get("volume_l"),
         *(b.metadata.get(key) for key in extra))
        for b in batches
    ]  # fmt: skip
    stem = path.stem.removesuffix("_measurements")
    base = "" if path.stem == "measurements" else f"{stem}_"
    tables = (
        (path, _MEASUREMENTS, measurements),
        (path.with_name(f"{base}actions{path.suffix}"), _ACTIONS, actions),
        (path.with_name(f"{base}batches{path.suffix}"), (*_BATCHES, *extra), headers),
    )
    for target, columns, rows in tables:
        _write(target, columns, rows)
    return tuple(target for target, _, _ in tables)


def _write(path: Path, columns: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(columns)
            writer.writerows([repr(c) if isinstance(c, float) else "" if c is None else c for c in row] for row in rows)
        return
    import pyarrow as pa  # heavy, and most files are CSV
    import pyarrow.parquet as parquet

    cells = {name: [row[k] for row in rows] for k, name in enumerate(columns)}
    for name, column in cells.items():
        if any(isinstance(c, str) for c in column):  # one column, one type: metadata of both kinds become text
            cells[name] = [c if c is None or isinstance(c, str) else repr(c) for c in column]
    parquet.write_table(pa.table(cells), path)
