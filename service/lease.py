"""One writer for one data directory, and a fencing epoch that grows at each of its starts (SAFETY S6).

The lock is the kernel's: it falls with the process, however that dies. The epoch is on disk before anybody uses it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import uuid
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

from twin.config import ConfigError

LOCK, LEASE = "lock", "lease.json"


@dataclass(frozen=True, slots=True)
class Lease:
    """What this run may call itself."""

    epoch: int  # 1 at the first start of this data directory
    name: str  # of the data directory, for ever: the broker keeps our backlog under it


@contextlib.contextmanager
def hold(folder: Path) -> Generator[None]:
    """Lock `folder` for the duration of the block. Raises ConfigError when another process holds it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(
            f"{folder}: cannot be used as data directory: {error.strerror}; name another as data"
        ) from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(
                f"{folder}: another service runs on this data directory; stop it or name another as data"
            ) from None
        yield
    finally:
        os.close(handle)


def take(folder: Path, at_least: int = 0) -> Lease:
    """The next epoch of the locked `folder`, above `at_least` (what its journal knows), durable on return.

    Raises ConfigError when the lease is damaged or cannot be written.
    """
    path = folder / LEASE
    last = Lease(0, f"celltwin-{uuid.uuid4().hex[:12]}")
    if path.is_file():
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            last = Lease(int(content["epoch"]), str(content["name"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{path}: damaged ({error}); restore it, or remove it: the epoch then goes on from the journal's"
            ) from None
    lease = Lease(max(last.epoch, at_least) + 1, last.name)
    fresh = path.with_suffix(".new")
    try:
        with fresh.open("w", encoding="utf-8") as out:
            json.dump({"epoch": lease.epoch, "name": lease.name}, out)
            out.flush()
            os.fsync(out.fileno())
        fresh.replace(path)
        parent = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(parent)
        finally:
            os.close(parent)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be written: {error.strerror}; free the disk or name another data directory"
        ) from None
    return lease
