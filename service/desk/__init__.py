"""The desk of one unit: pure functions from messages to what the twin says. See `service.desk.verbs`."""

from __future__ import annotations

from service.desk.opening import ConfiguredOpening, Opened, Opening
from service.desk.records import Desk, Output, Running, Settings, Told
from service.desk.verbs import estimate, handle, refuse, restarted, step, watch

__all__ = [
    "ConfiguredOpening", "Desk", "Opened", "Opening", "Output", "Running", "Settings", "Told",
    "estimate", "handle", "refuse", "restarted", "step", "watch",
]  # fmt: skip
