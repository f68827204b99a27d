"""C source to a loaded library: compiled once, kept under its hash, shared by every process of this user."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

FLAGS = ("-O2", "-ffp-contract=off", "-fno-math-errno", "-fPIC", "-shared")
"""Without contraction an operation rounds once, as in CasADi's virtual machine: the same bits on every route."""
TIMEOUT = 240.0  # s

_window: Any = (ctypes.c_char * 0).from_buffer


def cache_dir() -> Path:
    """Where compiled libraries are kept: CELLTWIN_CACHE, else the user's cache folder."""
    base = os.environ.get("CELLTWIN_CACHE") or os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "celltwin"


def compiler() -> str | None:
    """CELLTWIN_COMPILER, else gcc, cc or clang on PATH; None where there is none or CELLTWIN_COMPILER=none."""
    found = os.environ.get("CELLTWIN_COMPILER") or shutil.which("gcc") or shutil.which("cc") or shutil.which("clang")
    return None if found == "none" else found


@cache
def native(compiler: str) -> str:
    """What the compiler makes of ``-march=native`` here, its version included; empty where it does not know the flag."""
    try:
        dry = subprocess.run([compiler, "-march=native", "-###", "-E", "-x", "c", os.devnull],
                             check=True, capture_output=True, timeout=10, text=True)  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ""
    return dry.stderr


def load(name: str, source: str, vector: bool = False, needs: tuple[str, ...] = ()) -> Any | None:
    """`source` as a ctypes library, built where no earlier process has; None where no compiler works.

    With `vector` it is built for this machine's CPU, which is then part of the key: machines may share a cache. `needs` are
    libraries to link; where one is missing, the result is None. The build is atomic: processes that build at once leave one
    whole file.
    """
    tool = compiler()
    if tool is None:
        return None
    machine = native(tool) if vector else ""
    flags = [*FLAGS, "-march=native"] if machine else [*FLAGS]
    key = hashlib.sha256("\n".join([source, tool, *flags, *needs, machine]).encode()).hexdigest()[:24]
    target = cache_dir() / f"{name}-{key}.so"
    try:
        if not target.is_file():
            target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
                code, built = Path(scratch) / f"{name}.c", Path(scratch) / f"{name}.so"
                code.write_text(source)
                subprocess.run([tool, *flags, "-o", built, code, *needs, "-lm"], check=True, capture_output=True, timeout=TIMEOUT)  # fmt: skip
                built.replace(target)
        return ctypes.CDLL(str(target))
    except (OSError, subprocess.SubprocessError):
        return None


def address(a: np.ndarray) -> Any:
    """The memory of a C-contiguous array as an argument for C; a third of the cost of `a.ctypes` where it is writable."""
    try:
        return _window(a)
    except TypeError:
        return a.ctypes.data
