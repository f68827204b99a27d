"""Being seen: the retained status of every unit, and the connections whose last wills take it back.

MQTT allows one last will a connection: the first configured unit's is the main connection's, each further unit has a
connection of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from service.mqtt import BrokerError, Link, Posting
from service.notes import Sparing

PAUSE = (1.0, 60.0)
"""First and longest pause between attempts at connections that fail [s]."""


class Beacons:
    """The further units' connections. Whatever becomes of them, the service itself goes on."""

    def __init__(
        self, make: Callable[[str], Link], say: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`make`: the unit's connection, not yet open, with its will and greeting."""
        self._make, self._say, self._clock = make, Sparing(say, clock=clock), clock
        self._up: dict[str, Link] = {}
        self._tried: frozenset[str] = frozenset()
        self._next, self._pause = float("-inf"), PAUSE[0]

    def look(self, units: Iterable[str]) -> None:
        """Connect for those of `units` that have no connection yet: new ones at once, failed ones after a growing pause."""
        missing = frozenset(units) - self._up.keys()
        due = missing if self._clock() >= self._next else missing - self._tried
        if not due:
            return
        failed: dict[str, list[str]] = {}
        for unit in sorted(due):
            link = self._make(unit)
            try:
                link.connect()
            except BrokerError as error:
                failed.setdefault(str(error), []).append(unit)
            else:
                self._up[unit] = link
        self._tried = missing - self._up.keys()
        if not failed:
            self._pause = PAUSE[0]
            return
        self._next, self._pause = self._clock() + self._pause, min(2.0 * self._pause, PAUSE[1])
        for error, names in failed.items():
            self._say(error, f"no last will yet for {', '.join(names)}: {error}")

    def close(self, farewell: Callable[[str], Posting]) -> None:
        """End every connection with its unit's `farewell`."""
        for unit, link in self._up.items():
            link.close([farewell(unit)])
        self._up.clear()
