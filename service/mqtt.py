"""The transport: messages in through a queue, messages out by `publish`. No meaning lives here.

Rule 1: callbacks only put values on a queue. An exception in one would kill paho's network thread unseen.
Rule 2: a message is acknowledged by its reader, after the reader has committed it; unacknowledged ones come again.
Rule 3: everything that a connection needs (subscriptions, greeting, last will) is renewed at every connect.
Rule 4: MQTT v5; 3.1.1 only on loopback, where the embedded broker may speak nothing else. No plain text off loopback.
"""

from __future__ import annotations

import contextlib
import ipaddress
import queue
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import paho.mqtt.client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from service.notes import Sparing

KEEPALIVE = 20  # [s]
SESSION_EXPIRY = 30 * 86400  # the broker keeps our backlog for a whole batch [s]
OUTGOING_WINDOW = 200  # unconfirmed QoS-1 messages on their way
BACKOFF = (1, 30)  # first and longest pause between attempts to reconnect [s]


class BrokerError(RuntimeError):
    """The broker cannot be used; one line that names it and the remedy."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where the broker is and how to log in."""

    host: str
    port: int
    user: str | None = None
    password: str | None = None
    tls: bool = False
    ca_file: Path | None = None  # None: the system's certificate authorities
    cert_file: Path | None = None  # client certificate and key, where the broker asks for them
    key_file: Path | None = None

    def __str__(self) -> str:
        return f"{'mqtts' if self.tls else 'mqtt'}://{self.host}:{self.port}"

    @property
    def loopback(self) -> bool:
        """Whether every address of the host is this very machine."""
        with contextlib.suppress(ValueError):
            return ipaddress.ip_address(self.host).is_loopback
        try:
            found = {str(info[4][0]) for info in socket.getaddrinfo(self.host, self.port)}
        except OSError:
            return False
        return bool(found) and all(ipaddress.ip_address(a.partition("%")[0]).is_loopback for a in found)


def parse_address(url: str) -> Address:
    """``mqtt://[user[:password]@]host[:port]`` or ``mqtts://...``. Raises BrokerError."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise BrokerError(f"broker url {url!r}: {error}; write mqtt://host:1883 or mqtts://host:8883") from None
    if parts.scheme not in ("mqtt", "mqtts") or not host or parts.path not in ("", "/") or parts.query:
        raise BrokerError(f"broker url {url!r} is not understood; write mqtt://host:1883 or mqtts://host:8883")
    tls = parts.scheme == "mqtts"
    user = unquote(parts.username) if parts.username else None
    password = unquote(parts.password) if parts.password else None
    return Address(host, port or (8883 if tls else 1883), user, password, tls)


@dataclass(frozen=True, slots=True)
class Received:
    """A message as it came in. `link` counts connections: an acknowledgement holds on the link it came by."""

    topic: str
    payload: bytes
    retained: bool
    duplicate: bool
    qos: int
    mid: int
    link: int
    response_topic: str = ""  # v5 only, like the next: where and how the sender of a question expects the answer
    correlation: bytes = b""


@dataclass(frozen=True, slots=True)
class Posting:
    """A message to go out. What is v5 only never stands there only: the payload says it too."""

    topic: str
    payload: bytes
    retain: bool = False
    expiry: int | None = None  # seconds until the broker may drop it (v5)
    correlation: bytes = b""  # what the question was marked with that this answers (v5)


def speaks_v5(address: Address, timeout: float = 3.0) -> bool:
    """Whether the broker answers an MQTT v5 CONNECT as v5. OSError propagates."""
    name = b"celltwin-probe"
    body = b"\x00\x04MQTT\x05\x02\x00\x05\x00" + len(name).to_bytes(2, "big") + name
    with socket.create_connection((address.host, address.port), timeout=timeout) as plain:
        link: socket.socket = (
            _context(address).wrap_socket(plain, server_hostname=address.host) if address.tls else plain
        )
        link.settimeout(timeout)
        link.sendall(b"\x10" + bytes([len(body)]) + body)
        with contextlib.suppress(TimeoutError, ConnectionError):
            answer = link.recv(4)
            # 3.1.1 answers 20 02 00 rc; v5 has a property length after rc and codes 0x00 or >= 0x80
            return len(answer) == 4 and answer[0] == 0x20 and answer[1] > 2 and answer[3] != 0x84
    return False


def _context(address: Address) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=address.ca_file)
    if address.cert_file is not None:
        context.load_cert_chain(address.cert_file, address.key_file)
    return context


class Link:
    """One client connection that heals itself. Read `inbox`, `acknowledge` what is committed, `publish`."""

    def __init__(
        self,
        address: Address,
        client_id: str,
        subscriptions: Sequence[str],
        *,
        will: Posting | None = None,
        greeting: Callable[[], Sequence[Posting]] = tuple,
        note: Callable[[str], None] = lambda line: None,
        own_retained: bool = False,
    ) -> None:
        """`greeting` gives what to publish at every connect (status, retained outputs); `note` takes lines for a person.

        `own_retained`: show the retain flag of live messages too (v5), so that a retained command can be refused.
        """
        self.address, self.client_id = address, client_id
        self.inbox: queue.SimpleQueue[Received] = queue.SimpleQueue()
        self._subscriptions, self._will, self._greeting, self._note = tuple(subscriptions), will, greeting, note
        self._own_retained = own_retained
        self._link, self._up, self._refused, self._closing = 0, threading.Event(), "", False
        self._client: paho.Client | None = None
        self._unconfirmed, self._lock = 0, threading.Lock()
        self._topics: dict[int, str] = {}  # of what is not confirmed yet, by message id
        self._early: dict[int, str] = {}  # confirmed before `publish` has come back: the refusal, or empty
        self._complain = Sparing(note)
        self.v5 = True

    def connect(self, timeout: float = 10.0) -> None:
        """Connect once; later losses are healed with back-off in the background. Raises BrokerError."""
        if not self.address.tls and not self.address.loopback:
            raise BrokerError(
                f"broker {self.address}: plain text is allowed on loopback only; use mqtts:// (TLS) for a broker off this machine"
            )
        try:
            self.v5 = not self.address.loopback or speaks_v5(self.address)
            client = self._client = self._build()
            client.connect(self.address.host, self.address.port, keepalive=KEEPALIVE, **self._session())
        except (OSError, ssl.SSLError) as error:
            reason = error.strerror or str(error) or type(error).__name__
            raise BrokerError(f"broker {self.address}: {reason}; is it running, and is broker.url right?") from None
        client.loop_start()
        if not self._up.wait(timeout):
            self.close()
            why = self._refused or f"no answer to CONNECT within {timeout:g} s"
            raise BrokerError(f"broker {self.address}: {why}; check user, password file and access list")

    @property
    def connected(self) -> bool:
        return self._up.is_set()

    def publish(self, posting: Posting) -> paho.MQTTMessageInfo:
        """Hand over one QoS-1 message; it is kept and sent again until the broker confirms it."""
        if self._client is None:
            raise BrokerError(f"broker {self.address}: not connected")
        with self._lock:
            self._unconfirmed += 1
        info = self._client.publish(
            posting.topic, posting.payload, qos=1, retain=posting.retain,
            properties=_properties(posting) if self.v5 else None,
        )  # fmt: skip
        with self._lock:  # not held above: paho confirms under a lock of its own
            refusal = self._early.pop(info.mid, None)
            if refusal is None:
                self._topics[info.mid] = posting.topic
        self._say_refused(posting.topic, refusal or "")
        return info

    def flush(self, timeout: float) -> bool:
        """Wait until the broker has confirmed all that was published; False after `timeout` seconds or on a lost link."""
        deadline = time.monotonic() + timeout
        while self._unconfirmed > 0:
            if time.monotonic() > deadline or self._client is None or not self._client.is_connected():
                return False
            time.sleep(0.005)
        return True

    def acknowledge(self, received: Received) -> None:
        """Tell the broker that this message is safe with us. Of an earlier link: nothing to do, it comes again."""
        if self._client is not None and received.link == self._link and received.qos > 0:
            self._client.ack(received.mid, received.qos)

    def drain(self, timeout: float) -> list[Received]:
        """Wait up to `timeout` seconds for a message, then take all that are waiting."""
        try:
            got = [self.inbox.get(timeout=timeout)]
        except queue.Empty:
            return []
        with contextlib.suppress(queue.Empty):
            while True:
                got.append(self.inbox.get_nowait())
        return got

    def close(self, farewell: Sequence[Posting] = (), timeout: float = 5.0) -> None:
        """Say goodbye in order: all that waits and `farewell` is sent (the last will is not), then the connection ends."""
        client = self._client
        if client is None:
            return
        if self._up.is_set():
            for posting in farewell:
                self.publish(posting)
            self.flush(timeout)
        self._closing = True
        client.disconnect()
        client.loop_stop()
        self._client = None

    # -- below: what paho calls, in its network thread -----------------------------------------------------------

    def _build(self) -> paho.Client:
        protocol = paho.MQTTv5 if self.v5 else paho.MQTTv311
        options: dict[str, Any] = {} if self.v5 else {"clean_session": False}
        client = paho.Client(
            paho.CallbackAPIVersion.VERSION2, client_id=self.client_id, protocol=protocol, manual_ack=True, **options
        )
        client.suppress_exceptions = True
        client.max_inflight_messages_set(OUTGOING_WINDOW)
        client.reconnect_delay_set(*BACKOFF)
        if self.address.user is not None:
            client.username_pw_set(self.address.user, self.address.password)
        if self.address.tls:
            client.tls_set_context(_context(self.address))
        if self._will is not None:
            client.will_set(self._will.topic, self._will.payload, qos=1, retain=self._will.retain)
        client.on_socket_open = _no_delay
        client.on_connect, client.on_disconnect, client.on_message = (
            self._on_connect,
            self._on_disconnect,
            self._on_message,
        )
        client.on_publish = self._on_publish
        client.on_subscribe = self._on_subscribe
        return client

    def _session(self) -> dict[str, Any]:
        if not self.v5:
            return {}
        properties = Properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = SESSION_EXPIRY
        return {"clean_start": False, "properties": properties}

    def _on_connect(self, client: paho.Client, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        if reason.is_failure:
            self._refused = f"refused: {reason}"
            self._note(f"broker {self.address}: {self._refused}")
            return
        self._link += 1
        options: Any = SubscribeOptions(qos=1, retainAsPublished=self._own_retained) if self.v5 else 1
        if self._subscriptions:
            client.subscribe([(topic, options) for topic in self._subscriptions])
        try:
            for posting in self._greeting():
                self.publish(posting)
        except Exception as error:  # noqa: BLE001 - an exception here would end paho's thread unseen
            self._note(f"broker {self.address}: greeting failed: {error}")
        if self._link > 1:
            self._note(f"broker {self.address}: connected again")
        if not self._subscriptions:  # else: when they are granted
            self._up.set()

    def _on_disconnect(self, client: paho.Client, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        lost = self._up.is_set() and not self._closing
        self._up.clear()
        if lost:
            self._note(f"broker {self.address}: connection lost ({reason}); trying again")

    def _on_publish(self, client: paho.Client, userdata: Any, mid: int, reason: Any, properties: Any) -> None:
        refusal = str(reason) if reason.is_failure else ""
        with self._lock:
            self._unconfirmed -= 1
            topic = self._topics.pop(mid, None)
            if topic is None:
                self._early[mid] = refusal
        if topic is not None:
            self._say_refused(topic, refusal)

    def _say_refused(self, topic: str, refusal: str) -> None:
        """An ACL that denies: said under v5 only, which is why 3.1.1 stays on loopback. Once a minute for a topic family."""
        if refusal:
            family = "/".join(topic.split("/")[:5])
            self._complain(family, f"broker {self.address}: a message on {topic} was not accepted: {refusal}")

    def _on_subscribe(self, client: paho.Client, userdata: Any, mid: int, reasons: Any, properties: Any) -> None:
        denied = [t for t, r in zip(self._subscriptions, reasons, strict=False) if r.is_failure]
        if denied:
            self._refused = f"refused the subscription to {', '.join(denied)}"
            self._note(f"broker {self.address}: {self._refused}; check the access list")
        if not denied or self._link > 1:  # at the start a denial is an error, later it is said and the rest goes on
            self._up.set()

    def _on_message(self, client: paho.Client, userdata: Any, m: paho.MQTTMessage) -> None:
        asked: Any = m.properties  # None under 3.1.1; an absent property has no attribute
        self.inbox.put(Received(
            _topic(m), bytes(m.payload), bool(m.retain), bool(m.dup), m.qos, m.mid, self._link,
            str(getattr(asked, "ResponseTopic", "")), bytes(getattr(asked, "CorrelationData", b"")),
        ))  # fmt: skip


def _properties(posting: Posting) -> Properties | None:
    """What v5 carries beside the payload."""
    if posting.expiry is None and not posting.correlation:
        return None
    properties = Properties(PacketTypes.PUBLISH)
    if posting.expiry is not None:
        properties.MessageExpiryInterval = max(1, min(posting.expiry, 2**32 - 1))
    if posting.correlation:
        properties.CorrelationData = posting.correlation
    return properties


def _topic(message: paho.MQTTMessage) -> str:
    try:
        return message.topic
    except UnicodeDecodeError:
        return "(topic is not UTF-8)"


def _no_delay(client: paho.Client, userdata: Any, sock: Any) -> None:
    """Without this every question and answer over loopback takes 45 ms (Nagle meets the delayed acknowledgement)."""
    with contextlib.suppress(OSError, AttributeError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
