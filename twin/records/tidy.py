"""Tidy tables: one measurement a row, with the actions and the batches in sibling files.

``run.csv`` goes with ``run_actions.csv`` and ``run_batches.csv``; ``measurements.csv`` (or ``run_measurements.csv``) goes
with ``actions.csv`` and ``batches.csv`` (``run_actions.csv``, ``run_batches.csv``). Both siblings are optional.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from twin.evidence import ACTUATORS, ControlApplied, Measurement
from twin.records.record import DataError, RecordedBatch, Records, Skip, by_time
from twin.records.table import Cell, Table, is_blank, number_of, read_table, text_of, time_of
from twin.sensors import CHANNELS, MONITORED, impossible
from twin.units import UnitError, scale_of, to_canonical

MEASUREMENT_COLUMNS = ("batch", "channel", "value", "unit")
MEASUREMENT_OPTIONAL = ("donor", "time_d", "time", "sd", "available_d", "source", "sample", "version", "id")
ACTION_COLUMNS = ("batch", "time_d", "actuator", "rate", "unit")
ACTION_OPTIONAL = ("until_d", "id", "cmd_id")
BATCH_KNOWN = ("batch", "donor", "group", "preset", "start", "volume")
SECONDS_PER_DAY = 86400.0


class _Header(NamedTuple):
    """What the batches table says of one batch."""

    donor: str | None = None
    group: str | None = None
    preset: str | None = None
    start: datetime | None = None
    volume_l: float | None = None
    metadata: Mapping[str, str | float] = {}


class _Row:
    """One row by column name, with errors that name the place."""

    def __init__(self, table: Table, position: int) -> None:
        self.table, self.position = table, position

    @property
    def line(self) -> int:
        return self.table.lines[self.position]

    def cell(self, column: str) -> Cell:
        if column not in self.table.columns:
            return None
        return self.table.rows[self.position][self.table.columns.index(column)]

    def error(self, column: str | None, problem: str) -> DataError:
        return DataError(self.table.path, problem, row=self.line, column=column)

    def text(self, column: str) -> str:
        cell = self.cell(column)
        if is_blank(cell):
            raise self.error(column, "is empty; expected a name")
        return text_of(cell)

    def number(self, column: str) -> float:
        cell = self.cell(column)
        if is_blank(cell):
            raise self.error(column, "is empty; expected a number (leave the row out where there is none)")
        try:
            return number_of(cell)
        except ValueError as error:
            raise self.error(column, str(error)) from None

    def optional(self, column: str) -> float | None:
        return None if is_blank(self.cell(column)) else self.number(column)

    def instant(self, column: str) -> datetime:
        try:
            return time_of(self.cell(column))
        except ValueError as error:
            raise self.error(column, str(error)) from None


def _rows(table: Table) -> Iterator[_Row]:
    return (_Row(table, i) for i in range(len(table.rows)))


def siblings(path: Path) -> tuple[Path | None, Path | None]:
    """Paths of the actions and batches tables that go with a measurements file (None where there is none)."""
    stem = path.stem
    base = "" if stem == "measurements" else stem.removesuffix("_measurements") + "_"
    found = [path.with_name(f"{base}{kind}{path.suffix}") for kind in ("actions", "batches")]
    return (found[0] if found[0].is_file() else None, found[1] if found[1].is_file() else None)


def _check_columns(table: Table, required: tuple[str, ...], optional: tuple[str, ...]) -> None:
    for column in required:
        table.index(column)
    for column in table.columns:
        if column not in (*required, *optional):
            raise DataError(table.path, f"unknown; known: {', '.join((*required, *optional))}", column=column)


def _read_headers(path: Path) -> dict[str, _Header]:
    table = read_table(path)
    table.index("batch")
    headers: dict[str, _Header] = {}
    for row in _rows(table):
        name = row.text("batch")
        if name in headers:
            raise row.error("batch", f"{name!r} appears twice")
        volume = row.optional("volume")
        if volume is not None and volume <= 0:
            raise row.error("volume", f"{volume!r} is not a working volume; expected litres above 0")
        metadata: dict[str, str | float] = {} if volume is None else {"volume_l": volume}
        for column in table.columns:
            cell = row.cell(column)
            if column in BATCH_KNOWN or is_blank(cell):
                continue
            try:
                metadata[column] = number_of(cell)
            except ValueError:
                metadata[column] = text_of(cell)

        def named(column: str, row: _Row = row) -> str | None:
            return None if is_blank(row.cell(column)) else row.text(column)

        start = None if is_blank(row.cell("start")) else row.instant("start")
        headers[name] = _Header(named("donor"), named("group"), named("preset"), start, volume, metadata)
    return headers


def _sampled_at(row: _Row, start: datetime | None) -> float:
    if not is_blank(row.cell("time_d")):
        return row.number("time_d")
    if is_blank(row.cell("time")):
        raise row.error("time_d", "is empty; expected days since inoculation (or `time`, ISO 8601 with zone)")
    if start is None:
        raise row.error("time", "needs the batch's `start` in the batches table, to count days from")
    return (row.instant("time") - start).total_seconds() / SECONDS_PER_DAY


def _measurement(row: _Row, start: datetime | None) -> Measurement:
    channel = row.text("channel")
    if channel not in CHANNELS and channel not in MONITORED:
        raise row.error("channel", f"unknown {channel!r}; known: {', '.join(sorted((*CHANNELS, *MONITORED)))}")
    raw, unit = row.number("value"), row.cell("unit")
    try:
        unit_text = None if is_blank(unit) else text_of(unit)
        value = to_canonical(channel, raw, unit_text)
    except UnitError as error:
        raise row.error("unit", str(error)) from None
    if (problem := impossible(channel, value)) is not None:
        raise row.error("value", problem)
    sd = row.optional("sd")
    if sd is not None:
        if sd <= 0:
            raise row.error("sd", f"{sd!r} is not a standard deviation; expected a number above 0, or nothing")
        sd *= scale_of(channel, unit_text)
    at = _sampled_at(row, start)
    if at < 0:
        raise row.error("time_d", f"{at!r} is before inoculation; expected 0 or more")
    available = row.optional("available_d")
    if available is not None and available < at:
        raise row.error("available_d", f"{available!r} is before the sample was drawn ({at!r})")
    version = row.optional("version")
    if version is not None and (version < 1 or not version.is_integer()):
        raise row.error("version", f"{version!r} is not a version; expected 1, 2, ...")
    if not is_blank(row.cell("id")):
        identity = row.text("id")
    elif not is_blank(row.cell("sample")):
        identity = f"{channel}#{row.text('sample')}"
    else:
        identity = f"{channel}@{at!r}"
    if not is_blank(row.cell("source")) and is_blank(row.cell("id")):
        identity += f"/{row.text('source')}"
    return Measurement(identity, channel, value, at, at if available is None else available, sd, int(version or 1))


def _read_actions(path: Path, headers: Mapping[str, _Header], known: set[str]) -> dict[str, list[ControlApplied]]:
    """Rates as read-backs: each row sets a rate; `until_d` sets it back to 0 unless a row takes over at that time."""
    table = read_table(path)
    _check_columns(table, ACTION_COLUMNS, ACTION_OPTIONAL)
    actions: dict[str, list[ControlApplied]] = {}
    pending: dict[
        tuple[str, str], tuple[float, float | None]
    ] = {}  # (batch, actuator) -> start and end of the last row
    for row in _rows(table):
        batch, actuator, at = row.text("batch"), row.text("actuator"), row.number("time_d")
        if batch not in known:
            raise row.error("batch", f"{batch!r} has no measurements and no row in the batches table")
        if actuator not in (*ACTUATORS, "harvest"):
            raise row.error("actuator", f"unknown {actuator!r}; known: {', '.join((*ACTUATORS, 'harvest'))}")
        unit = row.cell("unit")
        volume = headers[batch].volume_l if batch in headers else None
        try:
            rate = to_canonical(
                actuator, row.number("rate"), None if is_blank(unit) else text_of(unit), volume_l=volume
            )
        except UnitError as error:
            raise row.error(
                "unit", f"{error} (the volume comes from the batches table)" if "volume" in str(error) else str(error)
            ) from None
        if rate < 0:
            raise row.error("rate", f"{rate:g} is negative; expected a rate of 0 or more")
        until = row.optional("until_d")
        if until is not None and until <= at:
            raise row.error("until_d", f"{until!r} is not after time_d {at!r}")
        done = actions.setdefault(batch, [])
        last = pending.get((batch, actuator))
        if last is not None:
            start, end = last
            if at <= start or (end is not None and at < end):
                until_text = "" if end is None else f" (it lasts until {end!r})"
                raise row.error(
                    "time_d", f"{at!r} is not after the row before of {actuator}, which starts at {start!r}{until_text}"
                )
            if end is not None and at > end:
                done.append(ControlApplied(f"{actuator}@{end!r}", end, actuator, 0.0))
        pending[batch, actuator] = (at, until)
        identity = f"{actuator}@{at!r}" if is_blank(row.cell("id")) else row.text("id")
        command = None if is_blank(row.cell("cmd_id")) else row.text("cmd_id")
        done.append(ControlApplied(identity, at, actuator, rate, command))
    for (batch, actuator), (_, end) in pending.items():
        if end is not None:
            actions[batch].append(ControlApplied(f"{actuator}@{end!r}", end, actuator, 0.0))
    return actions


def read_tidy(path: Path) -> Records:
    """Batches of a tidy measurements file and its siblings. Raises DataError naming file, row, column, expectation."""
    table = read_table(path)
    _check_columns(table, MEASUREMENT_COLUMNS, MEASUREMENT_OPTIONAL)
    if "time_d" not in table.columns and "time" not in table.columns:
        raise DataError(
            path, "missing; expected days since inoculation (or `time`, ISO 8601 with zone)", column="time_d"
        )
    actions_path, batches_path = siblings(path)
    headers = _read_headers(batches_path) if batches_path else {}
    measurements: dict[str, dict[tuple[str, int], Measurement]] = {name: {} for name in headers}
    donors: dict[str, str] = {name: h.donor for name, h in headers.items() if h.donor}
    skipped: Counter[tuple[str, str]] = Counter()
    for row in _rows(table):
        batch = row.text("batch")
        if batches_path and batch not in headers:
            raise row.error("batch", f"{batch!r} has no row in {batches_path.name}")
        if not is_blank(row.cell("donor")):
            donor = row.text("donor")
            if donors.setdefault(batch, donor) != donor:
                raise row.error("donor", f"{donor!r}, but batch {batch!r} has donor {donors[batch]!r} elsewhere")
        m = _measurement(row, headers.get(batch, _Header()).start)
        seen = measurements.setdefault(batch, {})
        earlier = seen.get((m.id, m.version))
        if earlier is None:
            seen[m.id, m.version] = m
        elif earlier == m:
            skipped[m.channel, "repeats an earlier row word for word"] += 1
        else:
            raise row.error(
                None,
                f"duplicate id {m.id!r} version {m.version} with another content; "
                "give a higher version to amend it, or tell replicates apart in the column sample",
            )
    actions = _read_actions(actions_path, headers, set(measurements)) if actions_path else {}
    batches: list[RecordedBatch] = []
    for name, found in measurements.items():
        h = headers.get(name, _Header())
        donor = donors.get(name)
        if donor is None:
            raise DataError(
                path, f"batch {name!r} has no donor; give one in this file or in the batches table", column="donor"
            )
        batches.append(
            RecordedBatch(
                name, donor, h.group or donor, h.preset, h.start,
                tuple(sorted(found.values(), key=by_time)),
                tuple(sorted(actions.get(name, ()), key=lambda a: (a.at, a.actuator))), h.metadata,
            )
        )  # fmt: skip
    if not batches:
        raise DataError(path, "holds no rows; expected one measurement a row")
    return Records(str(path), "tidy", tuple(batches), tuple(Skip(c, why, n) for (c, why), n in sorted(skipped.items())))
