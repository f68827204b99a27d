"""What we know: the process model, the estimator, the donors and the futures. Pure; no clock, no network.

The names a notebook meets first::

    from twin import Twin, load_config, read_batches
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from twin.config import load_config
    from twin.records import read_batches
    from twin.twin import Twin

__all__ = ["Twin", "load_config", "read_batches"]

_HOME = {"Twin": "twin.twin", "load_config": "twin.config", "read_batches": "twin.records"}


def __getattr__(name: str) -> Any:
    """Import lazily: `import twin` costs nothing until a name is used."""
    if name not in _HOME:
        raise AttributeError(f"module 'twin' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)
