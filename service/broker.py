"""The embedded development broker: what `celltwin demo` and the tests talk to. Loopback only, gone when we are gone.

Rule 1: mosquitto (MQTT v5) where it is installed, else amqtt (MQTT 3.1.1, pure Python); each in its own process.
Rule 2: a queue that cannot silently drop: mosquitto's default of 1000 waiting messages is raised; amqtt keeps the queue of
a session only if it has a user name, so its URL carries one. What amqtt has sent and not seen acknowledged it does not
send again (measured on 0.12.1): a client must repeat what is not answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from pathlib import Path
from typing import Literal

from service.mqtt import BrokerError

Kind = Literal["auto", "mosquitto", "amqtt"]

USER = "celltwin"  # amqtt drops the queue of an anonymous session
START_TIMEOUT = 20.0  # [s]
SBIN = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin")  # where packages put mosquitto beside the user's PATH


class NoBroker(BrokerError):
    """The development broker cannot be started; the message names the remedy."""


def find_mosquitto() -> str | None:
    """Path of the mosquitto executable, or None."""
    return shutil.which("mosquitto", path=os.pathsep.join([os.environ.get("PATH", ""), *SBIN]))


def free_port() -> int:
    """A TCP port on loopback that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def mosquitto_conf(port: int, store: Path | None) -> str:
    """Configuration of a loopback mosquitto. With a `store`, every acknowledged message is on disk: the broker may be killed."""
    keep = [
        "persistence true",
        f"persistence_location {store}/",
        "autosave_on_changes true",
        "autosave_interval 1",
    ]
    return "\n".join([
        f"listener {port} 127.0.0.1",
        "allow_anonymous true",
        *(["user root"] if os.geteuid() == 0 else []),  # else it becomes `mosquitto` and cannot write its own store
        *(keep if store is not None else ["persistence false"]),
        "max_queued_messages 0",
        "max_inflight_messages 500",
        "set_tcp_nodelay true",
        "log_type error",
        "log_type warning",
        "",
    ])  # fmt: skip


@contextlib.contextmanager
def development_broker(prefer: Kind = "auto", port: int | None = None, store: Path | None = None) -> Generator[str]:
    """A broker on loopback for the duration of the block; yields its URL.

    `store`: folder of mosquitto's persistence; without one its memory ends with the block. Raises NoBroker.
    """
    executable = find_mosquitto() if prefer != "amqtt" else None
    if prefer == "mosquitto" and executable is None:
        raise NoBroker("mosquitto is not installed: install it (Debian: apt install mosquitto) or use the amqtt broker")
    at = port or free_port()
    if _listens(at):
        raise NoBroker(f"port {at} is taken on 127.0.0.1: stop what listens there or choose another port")
    with tempfile.TemporaryDirectory(prefix="celltwin-broker-") as scratch:
        folder = Path(scratch)
        log = folder / "broker.log"
        if executable is not None:
            if store is not None:
                store.mkdir(parents=True, exist_ok=True)
            conf = folder / "mosquitto.conf"
            conf.write_text(mosquitto_conf(at, store))
            command, url = [executable, "-c", str(conf)], f"mqtt://127.0.0.1:{at}"
        else:
            command, url = [sys.executable, "-m", "service.broker", str(at)], f"mqtt://{USER}@127.0.0.1:{at}"
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        with log.open("wb") as out:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=out, stderr=out, env=environment, start_new_session=True
            )
        try:
            _wait_until_listening(process, at, log)
            yield url
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5.0)
            process.kill()
            process.wait()
            if process.stdin is not None:
                process.stdin.close()


def _wait_until_listening(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        if process.poll() is not None:
            last = log.read_text(errors="replace").strip().splitlines() or ["no output"]
            raise NoBroker(f"the development broker stopped at once (exit {process.returncode}): {last[-1]}")
        if _listens(port):
            return
        time.sleep(0.02)
    raise NoBroker(f"the development broker did not listen on 127.0.0.1:{port} within {START_TIMEOUT:.0f} s")


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=0.5):
        return True
    return False


async def _amqtt(port: int) -> None:
    """Serve until our parent closes our standard input: an orphaned broker would hold the port for ever."""
    from amqtt.broker import Broker  # type: ignore[import-untyped]

    broker = Broker({
        "listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{port}"}},
        "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": False}},
    })  # fmt: skip
    await broker.start()
    await asyncio.to_thread(sys.stdin.buffer.read)
    await broker.shutdown()


if __name__ == "__main__":
    asyncio.run(_amqtt(int(sys.argv[1])))
