"""The record of one run: all that it takes to say what ran, on what, with what result, and to run it again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from service.tracking import digest

FORMAT = 1


class RecordError(ValueError):
    """A record that cannot be used; one line saying why."""


@dataclass(frozen=True, slots=True)
class Record:
    """One run. Times are ISO 8601 UTC, digests SHA-256 in hexadecimal."""

    verb: str
    parameters: Mapping[str, Any]  # every argument of the verb by its name, defaults included
    inputs: Mapping[str, Mapping[str, Any]]  # by parameter: role, given, sha256 (null: made by the code)
    folder: str  # where it ran: relative paths start here
    code: Mapping[str, Any]  # version, source_sha256, commit, dirty
    environment: Mapping[str, Any]
    seeds: Mapping[str, int]
    began: str
    ended: str
    exit_code: int
    outputs: Mapping[str, str]  # digest of each result that must come out the same
    statistics: Mapping[str, tuple[float, float]]  # of a sampler: value and its Monte-Carlo standard error
    files: Mapping[str, str]  # digest of the bytes of each file kept with the run

    def to_json(self) -> str:
        """The record as JSON text."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1, sort_keys=True, allow_nan=False) + "\n"


def from_json(content: bytes, sha256: str | None) -> Record:
    """The record that was written with the digest `sha256`. Raises RecordError where it is none, altered, or of another format."""
    if sha256 is None or digest.of_bytes(content) != sha256:
        raise RecordError("its record was altered after it was written (SHA-256 differs)")
    try:
        held = json.loads(content)
        form = held.pop("format")
    except (ValueError, KeyError, AttributeError):
        raise RecordError("its record is not readable") from None
    if form != FORMAT or set(held) != {f.name for f in fields(Record)}:
        raise RecordError(f"its record has format {form!r}, this version reads {FORMAT}")
    held["statistics"] = {k: (float(a), float(b)) for k, (a, b) in held["statistics"].items()}
    return Record(**held)
