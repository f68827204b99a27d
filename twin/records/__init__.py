"""Recorded batches: tidy and wide files to evidence and back.

Rule 1: a file is read whole or refused with a `DataError` that names file, row, column and what was expected.
Rule 2: what is left out on purpose is counted with its reason (`Records.skipped`).
Rule 3: units are parsed (`twin.units`), never guessed.
"""

from __future__ import annotations

from pathlib import Path

from twin.records.mapping import Mapping, detect, load_mapping, mapping_names
from twin.records.record import DataError, RecordedBatch, Records, Skip
from twin.records.tidy import read_tidy
from twin.records.wide import read_wide
from twin.records.write import write_tidy

__all__ = [
    "DataError", "Mapping", "RecordedBatch", "Records", "Skip",
    "load_mapping", "mapping_names", "read_batches", "read_records", "read_tidy", "read_wide", "write_tidy",
]  # fmt: skip


def read_records(path: str | Path, mapping: str | Mapping | None = None) -> Records:
    """Everything in a tidy or wide file, with what was left out.

    `mapping` is a shipped name, a YAML file, a `Mapping`, or None: tidy, or the one mapping that fits the header. A folder
    is read through its ``measurements.csv`` or ``measurements.parquet``.
    Raises DataError naming file, row, column and expectation, and ConfigError for a faulty mapping file.
    """
    path = Path(path)
    if path.is_dir():
        inside = [p for suffix in ("csv", "parquet") if (p := path / f"measurements.{suffix}").is_file()]
        if len(inside) != 1:
            raise DataError(path, "is a folder; expected exactly one of measurements.csv, measurements.parquet in it")
        path = inside[0]
    if not path.is_file():
        raise DataError(path, "no such file")
    if mapping == "tidy":
        return read_tidy(path)
    chosen = load_mapping(mapping) if isinstance(mapping, str) else mapping or detect(path)
    return read_tidy(path) if chosen is None else read_wide(path, chosen)


def read_batches(path: str | Path, mapping: str | Mapping | None = None) -> list[RecordedBatch]:
    """The batches of `read_records`."""
    return list(read_records(path, mapping).batches)
