"""How verbs speak: tables and progress for people, one JSON object for machines, one line for mistakes."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

console = Console(highlight=False)
"""What people read: standard output, or standard error when standard output belongs to `--json`."""


def speak_json(wanted: bool) -> None:
    """Move everything meant for people to standard error (True) or back to standard output (False)."""
    console.stderr = wanted


def fail(message: str) -> NoReturn:
    """One line on standard error, naming the place and the remedy; exit 2."""
    print(f"celltwin: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)


def emit_json(value: Any) -> None:
    """One JSON object on standard output, strict: NaN and infinities become null, arrays lists, records objects."""
    sys.stdout.write(json.dumps(plain(value), allow_nan=False, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def plain(value: Any) -> Any:
    """`value` in terms of dict, list, str, int, float, bool and None. Raises TypeError on what has no such form."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if hasattr(value, "_asdict"):  # a NamedTuple
        return plain(value._asdict())
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(v) for v in (sorted(value) if isinstance(value, (set, frozenset)) else value)]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # NumPy scalars and arrays
        return plain(value.tolist())
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    raise TypeError(f"{type(value).__name__} has no JSON form")


class Advance(Protocol):
    """Moves a progress bar on."""

    def __call__(self, amount: float = 1.0) -> None: ...


@contextmanager
def progress(description: str, total: float | None = None) -> Generator[Advance]:
    """A progress bar on standard error while the block runs; the value given is `advance(amount)`.

    Nothing is drawn where standard error is not a terminal. `total` None shows a pulse instead of a fraction.
    """
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty(),
    )  # fmt: skip
    with bar:
        task = bar.add_task(description, total=total)

        def advance(amount: float = 1.0) -> None:
            bar.advance(task, amount)

        yield advance
