"""What runs here: version, commit and content of the code, interpreter, platform, packages."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from service.tracking import digest
from twin.config import configs_dir

PACKAGES = (
    "celltwin", "arviz", "casadi", "filterpy", "immutables", "mlflow-skinny", "numba", "numpy", "nutpie", "pandas", "piqp",
    "pyarrow", "pymc", "pytensor", "scipy",
)  # fmt: skip
"""Packages that can change a result, or its record."""

NUMERICS = ("casadi", "filterpy", "numpy", "piqp", "scipy")
"""Those of them that the last digits of a simulated batch hang on; besides them, the compiler and the CPU that it builds for."""

ROOMS = ("twin", "controllers", "simulators", "service")
HOME = Path(__file__).resolve().parents[2]
"""The folder that holds the four packages."""


def code() -> dict[str, Any]:
    """Package version, SHA-256 of the source and the shipped configurations, and commit and dirty flag in a checkout."""
    return {"version": _version("celltwin"), "source_sha256": source_sha256(), **_git()}


def source_sha256(of: Sequence[str] = ROOMS) -> str:
    """SHA-256 over every file of the packages `of` and of the shipped configurations, wherever they are installed."""
    rooms = {name: HOME / name for name in of}
    files = {
        f"{name}/{p.relative_to(room).as_posix()}": digest.of_file(p)
        for name, room in rooms.items()
        for p in sorted(room.rglob("*"))
        if p.suffix in (".py", ".css", ".c", ".h") and p.is_file()
    }
    held = configs_dir()
    files |= {
        f"configs/{p.relative_to(held).as_posix()}": digest.of_file(p) for p in sorted(held.rglob("*")) if p.is_file()
    }
    return digest.of_value(files)


def _git() -> dict[str, Any]:
    if not (HOME / ".git").exists() or shutil.which("git") is None:
        return {"commit": None, "dirty": None}
    commit, changed = _ask_git("rev-parse", "HEAD"), _ask_git("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit or None, "dirty": None if changed is None else bool(changed)}


def _ask_git(*words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(HOME), "-c", "core.fsmonitor=false", *words],
            capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def environment() -> dict[str, Any]:
    """Python, platform, C compiler, threads and packages."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "compiler": _compiler(),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "packages": {name: v for name in PACKAGES if (v := _version(name))},
    }


def numerics() -> dict[str, str | None]:
    """Versions of `NUMERICS`, the C compiler, and a digest of what it builds for: kernels are this machine's own."""
    from twin.native.build import compiler, native

    tool = compiler()
    built_for = None if tool is None else digest.of_value(native(tool))
    return {**{name: _version(name) for name in NUMERICS}, "compiler": _compiler(), "built_for": built_for}


@cache
def _compiler() -> str | None:
    from twin.native.build import compiler

    if (found := compiler()) is None:
        return None
    try:
        told = subprocess.run([found, "--version"], capture_output=True, text=True, timeout=30, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return found
    return told.splitlines()[0] if told else found


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def python() -> list[str]:
    """The command that starts this program, in a process of its own."""
    return [sys.executable, "-m", "service.cli"]
