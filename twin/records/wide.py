"""Wide laboratory files, one sample a row, through a column mapping."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from twin.evidence import ControlApplied, Measurement
from twin.records.mapping import ChannelColumn, Mapping, fields
from twin.records.record import DataError, RecordedBatch, Records, Skip, by_time
from twin.records.table import Table, is_blank, number_of, read_table, text_of
from twin.sensors import impossible
from twin.units import UnitError, scale_of, to_canonical


class _Sample(NamedTuple):
    """One row of the file, placed in its batch."""

    line: int
    day: float  # time in the file, whole days of a day.feed code
    after_feed: bool
    at: float  # [d since inoculation]
    readings: dict[str, Measurement]  # by channel


def read_wide(path: Path, mapping: Mapping) -> Records:
    """Batches of a wide file. Raises DataError naming file, row, column and expectation.

    Blank cells, values that feed rows compute, and feed rows that repeat the analysis before the feed are left out and
    counted in the result. A row after a feed becomes a bolus (`ControlApplied` of feed, on and off) from the mapping's
    dilution; what the analyser then read is kept as the evidence of what the feed brought.
    """
    table = read_table(path, mapping.header_row)
    for column in mapping.used:
        table.index(column)
    for column in table.columns:
        if column not in mapping.used and column not in mapping.ignore:
            raise DataError(
                path,
                f"not in mapping {mapping.name!r}; map it or list it under `ignore` with the reason",
                column=column,
            )
    skipped: Counter[tuple[str, str]] = Counter()
    samples: dict[str, list[_Sample]] = {}
    about: dict[str, tuple[str, str, dict[str, str | float]]] = {}
    for position, line in enumerate(table.lines):
        batch = _fill(table, position, mapping.batch)
        kept: dict[str, str | float] = {c: text_of(table.rows[position][table.index(c)]) for c in mapping.metadata}
        found = (_fill(table, position, mapping.donor), _fill(table, position, mapping.group), kept)
        if about.setdefault(batch, found) != found:
            raise DataError(
                path, f"donor, group or metadata of batch {batch!r} differ from its rows above: {found}", row=line
            )
        sample = _sample(table, position, mapping, skipped)
        before = samples.setdefault(batch, [])
        if before and sample.at == before[-1].at:
            raise DataError(
                path,
                f"repeats the time of batch {batch!r} on row {before[-1].line}",
                row=line,
                column=mapping.time.column,
            )
        if before and sample.at < before[-1].at:
            raise DataError(
                path,
                f"goes back in time: batch {batch!r} had {before[-1].day:g} on row {before[-1].line}",
                row=line,
                column=mapping.time.column,
            )
        before.append(sample)
    if not samples:
        raise DataError(path, "holds no rows below the header")
    batches: list[RecordedBatch] = []
    for batch, rows in samples.items():
        donor, group, metadata = about[batch]
        actions = _feeds(batch, rows, mapping, path, skipped)
        readings = sorted((m for s in rows for m in s.readings.values()), key=by_time)
        batches.append(
            RecordedBatch(
                batch,
                donor,
                group,
                mapping.preset,
                None,
                tuple(readings),
                actions,
                {k: v for k, v in metadata.items() if v},
            )
        )
    skips = tuple(Skip(column, reason, n) for (column, reason), n in sorted(skipped.items()))
    return Records(str(path), mapping.name, tuple(batches), skips)


def _fill(table: Table, position: int, template: str) -> str:
    text = template
    for column in fields(template):
        cell = table.rows[position][table.index(column)]
        if is_blank(cell):
            raise DataError(table.path, "is empty; expected a name", row=table.lines[position], column=column)
        text = text.replace("{" + column + "}", text_of(cell))
    return text


def _number(table: Table, position: int, column: str, *, thousands: bool = False, percent: bool = False) -> float:
    try:
        return number_of(table.rows[position][table.index(column)], thousands=thousands, percent=percent)
    except ValueError as error:
        raise DataError(table.path, str(error), row=table.lines[position], column=column) from None


def _sample(table: Table, position: int, mapping: Mapping, skipped: Counter[tuple[str, str]]) -> _Sample:
    column, line = mapping.time.column, table.lines[position]
    if is_blank(table.rows[position][table.index(column)]):
        raise DataError(table.path, "is empty; expected the sampling time", row=line, column=column)
    time = _number(table, position, column)
    if time < 0:
        raise DataError(table.path, f"{time:g} is before inoculation; expected 0 or more", row=line, column=column)
    after_feed = mapping.feed_rows is not None and not time.is_integer()
    if mapping.feed_rows is not None and after_feed:
        day, k = math.floor(time), round(10 * (time - math.floor(time)))
        if abs(10 * (time - day) - k) > 1e-6:
            raise DataError(table.path, f"{time!r} is not a day code; expected n or n.k", row=line, column=column)
        at = day + mapping.feed_rows.sampled
    else:
        day, at = time, time / 24.0 if mapping.time.unit == "h" else time
    readings: dict[str, Measurement] = {}
    for entry in mapping.channels:
        if is_blank(table.rows[position][table.index(entry.column)]):
            skipped[entry.column, "blank"] += 1
        elif after_feed and mapping.feed_rows is not None and entry.channel in mapping.feed_rows.computed:
            skipped[entry.column, "computed after a feed, not measured"] += 1
        elif (reading := _reading(table, position, entry, at, skipped)) is not None:
            readings[entry.channel] = reading
    return _Sample(line, float(day), after_feed, at, readings)


def _reading(
    table: Table, position: int, entry: ChannelColumn, at: float, skipped: Counter[tuple[str, str]]
) -> Measurement | None:
    line = table.lines[position]
    raw = _number(table, position, entry.column, thousands=entry.thousands, percent=entry.unit in ("percent", "%"))
    divisor = 1.0
    if entry.per is not None:
        if is_blank(table.rows[position][table.index(entry.per)]):
            skipped[entry.column, f"no {entry.per} to divide by"] += 1
            return None
        divisor = _number(table, position, entry.per)
        if divisor <= 0:
            raise DataError(
                table.path,
                f"{divisor:g} cannot divide {entry.column}; expected a number above 0",
                row=line,
                column=entry.per,
            )
    try:
        value = to_canonical(entry.channel, raw / divisor, entry.unit)
    except UnitError as error:
        raise DataError(table.path, str(error), row=line, column=entry.column) from None
    if (problem := impossible(entry.channel, value)) is not None:
        raise DataError(table.path, problem, row=line, column=entry.column)
    sd = None
    if entry.sd is not None and not is_blank(table.rows[position][table.index(entry.sd)]):
        spread = _number(table, position, entry.sd)
        n = 1.0
        if entry.replicates is not None:
            n = _number(table, position, entry.replicates)
            if n < 1:
                raise DataError(table.path, f"{n:g} is not a number of replicates", row=line, column=entry.replicates)
        if spread < 0:
            raise DataError(table.path, f"{spread:g} is not a standard deviation", row=line, column=entry.sd)
        sd = spread / math.sqrt(n) / divisor * scale_of(entry.channel, entry.unit) or None
    return Measurement(f"{entry.channel}@{at!r}", entry.channel, value, at, at, sd)


def _feeds(
    batch: str, rows: list[_Sample], mapping: Mapping, path: Path, skipped: Counter[tuple[str, str]]
) -> tuple[ControlApplied, ...]:
    """Bolus feeds, one for every feed row whose analysis differs from that before the feed.

    A feed row that repeats the earlier analysis word for word was copied forward: it is no evidence of a feed, and its
    readings are dropped (the rows are edited in place).
    """
    rule = mapping.feed_rows
    if rule is None:
        return ()
    columns = {c.channel: c.column for c in mapping.channels}
    actions: list[ControlApplied] = []
    before: _Sample | None = None
    for row in rows:
        if not row.after_feed:
            before = row
            continue
        if before is None or before.day != row.day:
            raise DataError(
                path, f"batch {batch!r} has a row after a feed on day {row.day:g}, but none before it", row=row.line
            )
        same = {c for c, m in row.readings.items() if c in before.readings and m.value == before.readings[c].value}
        if row.readings and same == set(row.readings):
            for channel in same:
                skipped[columns[channel], "feed row repeats the analysis before the feed; no feed assumed"] += 1
            row.readings.clear()
            continue
        start, end = row.day + rule.at, row.day + rule.at + rule.lasts
        rate = -math.log(rule.dilution) / rule.lasts
        actions.append(ControlApplied(f"feed@{start!r}", start, "feed", rate))
        actions.append(ControlApplied(f"feed@{end!r}", end, "feed", 0.0))
    return tuple(actions)
