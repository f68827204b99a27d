"""`celltwin serve`: the twin as an MQTT service."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.console import emit_json

if TYPE_CHECKING:
    from service.config import ServiceConfig
    from service.runner import Runner

POLL = 0.5  # longest wait for a message before the wall clock is looked at [s]
WATCH = 60.0  # between two looks at who has fallen silent [s]


def serve(
    config: Annotated[Path, typer.Option("-c", "--config", help="Service configuration (YAML).")],
    json: Annotated[bool, typer.Option("--json", help="On stopping, one JSON object on standard output.")] = False,
) -> None:
    """Run the twin as an MQTT service for one reactor or a fleet, until interrupted.

    Exit 0: stopped on request. Exit 2: the configuration, the journal or the broker cannot be used.
    """
    from service.config import load_service

    settings = load_service(config)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    served = run(settings, stop, _say)
    if json:
        emit_json(
            {
                "epoch": served.epoch,
                "units": list(served.units),
                "rejected": served.refused,
                "rows": served.journal.head.n,
            }
        )


def run(config: ServiceConfig, stop: threading.Event, say: Callable[[str], None]) -> Runner:
    """Serve until `stop` is set. Raises ConfigError, JournalError or BrokerError, each one line with the remedy."""
    from service.journal import Journal
    from service.lease import hold, take
    from service.mqtt import Link, Posting
    from service.presence import Beacons
    from service.replay import newest_epoch
    from service.runner import GROUP, Runner, status, subscriptions

    release, since = _release(), datetime.now(UTC)
    with hold(config.data), Journal.open(config.data) as journal:
        lease = take(config.data, at_least=newest_epoch(journal))
        address = config.broker.address()
        if not address.tls:
            say(f"development: plain text on loopback, {address}; never use this off this machine")

        def presence(unit: str, online: bool) -> Posting:
            return status(config, unit, lease.epoch, since, release, online=online)

        named = config.units if config.units != "*" else ()
        main = named[0] if named else None  # the unit whose last will is ours

        def greeting() -> list[Posting]:
            first = [presence(main, True)] if main is not None else []
            return [*first, *list(runner.posted.values())]

        def beacon(unit: str) -> Link:
            return Link(
                address, f"{lease.name}-{unit}", (), will=presence(unit, False), greeting=lambda: [presence(unit, True)]
            )

        def look() -> None:
            if link.connected:  # else the broker is away, which the main connection has said
                beacons.look(u for u in (*named, *runner.units) if u != main)

        beacons = Beacons(beacon, say)
        link = Link(
            address, lease.name, subscriptions(config), greeting=greeting, note=say,
            will=presence(main, False) if main is not None else None,
        )  # fmt: skip
        runner = Runner(config, journal, lease.epoch, release, lambda: datetime.now(UTC), link.publish, say)
        runner.rebuild()
        link.connect()
        try:
            look()
            runner.resume()
            say(
                f"epoch {lease.epoch}, {config.mode}, {address} (MQTT {'5' if link.v5 else '3.1.1'}), journal {journal.path}"
            )
            looked = time.monotonic()
            while not stop.is_set():
                group = link.drain(POLL)
                for first in range(0, len(group), GROUP):
                    runner.take(group[first : first + GROUP], link.acknowledge)
                look()
                if time.monotonic() - looked >= WATCH:
                    looked = time.monotonic()
                    runner.watch()
        finally:
            beacons.close(lambda unit: presence(unit, False))
            link.close([presence(main, False)] if main is not None else [])
    return runner


def _release() -> str:
    try:
        return version("celltwin")
    except PackageNotFoundError:
        return "0+checkout"


def _say(line: str) -> None:
    import sys

    print(f"celltwin serve: {line}", file=sys.stderr, flush=True)
