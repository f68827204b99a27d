"""CSV and Parquet to rows of plain cells, each with the line an editor shows; numbers and times read strictly."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeAlias

from twin.records.record import DataError

Cell: TypeAlias = str | float | int | bool | datetime | None
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_GROUPED = re.compile(r"[-+]?\d{1,3}(,\d{3})+(\.\d*)?")


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of one file. `lines` are the line numbers of a CSV, or row numbers (from 1) of a Parquet file."""

    path: Path
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    lines: tuple[int, ...]

    def index(self, column: str) -> int:
        """Position of a column. Raises DataError with the columns that there are."""
        if column not in self.columns:
            raise DataError(self.path, f"missing; the file has: {', '.join(self.columns)}", column=column)
        return self.columns.index(column)


def read_table(path: Path, header_row: int = 1) -> Table:
    """The whole file; `header_row` is the line that names the columns, lines above it are passed over.

    Byte-order marks and blanks around names are dropped, wholly empty lines are passed over. Raises DataError for a file
    that cannot be read, a repeated or empty column name, and a row with too many or too few cells.
    """
    if not path.is_file():
        raise DataError(path, "no such file")
    if path.suffix.lower() in (".parquet", ".pq"):
        return _read_parquet(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, strict=True)
            content = [(reader.line_num, row) for row in reader]
    except UnicodeDecodeError as error:
        raise DataError(
            path, f"not UTF-8 text ({error.reason} at byte {error.start}); expected CSV or Parquet"
        ) from error
    except (OSError, csv.Error) as error:
        raise DataError(path, f"cannot be read as CSV: {error}") from error
    if len(content) < header_row:
        raise DataError(path, f"has {len(content)} lines; expected the column names on line {header_row}")
    columns = tuple(cell.strip() for cell in content[header_row - 1][1])
    _check_names(path, columns)
    rows: list[tuple[Cell, ...]] = []
    lines: list[int] = []
    for line, row in content[header_row:]:
        if not any(cell.strip() for cell in row):
            continue
        if len(row) != len(columns):
            raise DataError(path, f"has {len(row)} cells; expected {len(columns)} as in the header", row=line)
        rows.append(tuple(cell.strip() or None for cell in row))
        lines.append(line)
    return Table(path, columns, tuple(rows), tuple(lines))


def header(path: Path, line: int) -> tuple[str, ...]:
    """Column names on one line of a CSV (stripped), or of a Parquet file; empty where there is no such line."""
    if path.suffix.lower() in (".parquet", ".pq"):
        return read_table(path).columns if line == 1 else ()
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            for number, row in enumerate(csv.reader(stream), start=1):
                if number == line:
                    return tuple(cell.strip() for cell in row)
    except UnicodeDecodeError as error:
        raise DataError(
            path, f"not UTF-8 text ({error.reason} at byte {error.start}); expected CSV or Parquet"
        ) from error
    except (OSError, csv.Error) as error:
        raise DataError(path, f"cannot be read as CSV: {error}") from error
    return ()


def _read_parquet(path: Path) -> Table:
    import pyarrow.parquet as parquet  # heavy, and most files are CSV

    try:
        table: Any = parquet.read_table(path)
    except (OSError, ValueError) as error:
        raise DataError(path, f"cannot be read as Parquet: {error}") from error
    columns = tuple(str(name).strip() for name in table.column_names)
    _check_names(path, columns)
    values = [column.to_pylist() for column in table.columns]
    rows = tuple(zip(*values, strict=True)) if values else ()
    return Table(path, columns, rows, tuple(range(1, len(rows) + 1)))


def _check_names(path: Path, columns: Sequence[str]) -> None:
    for name in columns:
        if not name:
            raise DataError(path, "a column has no name in the header")
        if columns.count(name) > 1:
            raise DataError(path, "appears more than once in the header", column=name)


def is_blank(cell: Cell) -> bool:
    """Whether a cell holds nothing (an empty text or a Parquet null)."""
    return cell is None or (isinstance(cell, str) and not cell.strip())


def text_of(cell: Cell) -> str:
    """A cell as text: numbers without a trailing ``.0``, so that codes survive a table that stored them as floats."""
    if isinstance(cell, float) and cell.is_integer() and abs(cell) < 1e15:
        return str(int(cell))
    return "" if cell is None else str(cell).strip()


def number_of(cell: Cell, *, thousands: bool = False, percent: bool = False) -> float:
    """A cell as a finite number. Raises ValueError saying what is wrong.

    `thousands` admits ``1,234.5``; `percent` admits a percent sign after the number (the unit must then be percent).
    """
    if isinstance(cell, bool) or cell is None or isinstance(cell, datetime):
        raise ValueError(f"{cell!r} is not a number")
    if isinstance(cell, (int, float)):
        value = float(cell)
    else:
        text = cell.strip()
        if percent and text.endswith("%"):
            text = text[:-1].rstrip()
        if thousands and _GROUPED.fullmatch(text):
            text = text.replace(",", "")
        if not _NUMBER.fullmatch(text):
            hint = ""
            if "%" in text:
                hint = "; a percent sign needs a column whose unit is percent"
            elif _GROUPED.fullmatch(text):
                hint = "; grouped thousands must be declared in the mapping"
            raise ValueError(f"{cell!r} is not a number{hint}")
        value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{cell!r} is not a finite number")
    return value


def time_of(cell: Cell) -> datetime:
    """A cell as an instant with its zone (ISO 8601). Raises ValueError saying what is wrong."""
    if isinstance(cell, datetime):
        instant = cell
    else:
        try:
            instant = datetime.fromisoformat(text_of(cell))
        except ValueError:
            raise ValueError(f"{cell!r} is not an ISO 8601 time such as 2026-11-21T08:00:00+00:00") from None
    if instant.tzinfo is None:
        raise ValueError(f"{cell!r} has no time zone; expected for instance 2026-11-21T08:00:00+00:00")
    return instant
