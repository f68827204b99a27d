"""Lines for a person, few enough to be read."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

EVERY = 60.0
"""Between two lines of one kind [s]."""


class Sparing:
    """Says at most one line of a kind in `every` seconds, and how many it kept back."""

    def __init__(
        self, say: Callable[[str], None], every: float = EVERY, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._say, self._every, self._clock = say, every, clock
        self._lock = threading.Lock()
        self._last: dict[str, tuple[float, int]] = {}  # when a kind was said, and how often not since

    def __call__(self, kind: str, line: str) -> None:
        """Say `line`, unless one of its `kind` was said a moment ago."""
        now = self._clock()
        with self._lock:
            said, kept = self._last.get(kind, (float("-inf"), 0))
            hold_back = now - said < self._every
            self._last[kind] = (said, kept + 1) if hold_back else (now, 0)
        if hold_back:
            return
        self._say(f"{line} (and {kept} more like it)" if kept else line)
