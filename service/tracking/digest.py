"""SHA-256 of what a number means rather than of how it was packed: time stamps, compression and key order do not count."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from service.cli.console import plain
from twin.donors.artefact import DRAWS, MANIFEST, SUMMARY


def of_bytes(content: bytes) -> str:
    """SHA-256 of bytes, hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def of_value(value: Any, without: Collection[str] = ()) -> str:
    """SHA-256 of a value with a JSON form, keys sorted, every bit of its floats.

    `without` names entries to leave out, by dotted path (``campaign.wall_s``). Raises TypeError for what has no JSON form.
    """
    return of_bytes(canonical(pruned(plain(value), without)).encode())


def canonical(value: Any) -> str:
    """The one JSON text of a plain value."""
    return json.dumps(value, sort_keys=True, allow_nan=False, ensure_ascii=False, separators=(",", ":"))


def pruned(value: Any, without: Collection[str], at: str = "") -> Any:
    """`value` without the entries at the dotted paths `without`."""
    if not isinstance(value, Mapping):
        return value
    return {k: pruned(v, without, f"{at}{k}.") for k, v in value.items() if f"{at}{k}" not in without}


def of_file(path: Path) -> str:
    """SHA-256 of a file's bytes. Raises OSError."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def of_path(path: Path) -> str:
    """SHA-256 of a file, or of a folder: the names and contents of its files, hidden ones left out. Raises OSError."""
    if not path.is_dir():
        return of_file(path)
    inside = (p for p in sorted(path.rglob("*")) if p.is_file())
    named = {p.relative_to(path).as_posix(): p for p in inside}
    return of_value({name: of_file(p) for name, p in named.items() if not _hidden(name)})


def _hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__pycache__" for part in name.split("/"))


def of_prior(path: Path) -> str:
    """SHA-256 of what a donor-prior artefact says (folder or its manifest): its Gaussian, summaries and draws. Raises OSError."""
    folder = path.parent if path.name == MANIFEST else path
    return of_value({"summary": of_json(folder / SUMMARY), "draws": of_arrays(folder / DRAWS)})


def of_json(path: Path, without: Collection[str] = ()) -> str:
    """SHA-256 of a JSON file's value. Raises OSError; a file that is no JSON counts by its bytes."""
    content = path.read_bytes()
    try:
        return of_value(json.loads(content), without)
    except ValueError:
        return of_bytes(content)


def of_arrays(path: Path) -> str:
    """SHA-256 of the arrays of an npz file: names, types, shapes, bits. Raises OSError; what is no npz counts by its bytes."""
    try:
        with np.load(path, allow_pickle=False) as held:
            return of_value({name: [a.dtype.str, list(a.shape), of_bytes(a.tobytes())] for name, a in held.items()})
    except (ValueError, EOFError, BadZipFile):
        return of_file(path)


def of_table(path: Path) -> str:
    """SHA-256 of a Parquet table: columns, rows and their order. Raises OSError; what is no Parquet counts by its bytes."""
    import pandas as pd

    try:
        frame = pd.read_parquet(path)
    except ValueError:
        return of_file(path)
    return of_value({str(c): frame[c].tolist() for c in frame.columns})
