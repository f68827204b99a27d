"""The transport against the real brokers: mosquitto over v5, amqtt over 3.1.1."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from service.broker import USER, NoBroker, development_broker, find_mosquitto, free_port, mosquitto_conf
from service.mqtt import Address, BrokerError, Link, Posting, Received, parse_address, speaks_v5

needs_mosquitto = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")
BOTH = [pytest.param("mosquitto", marks=needs_mosquitto), "amqtt"]
TOPIC = "celltwin/v1/site/unit/event/x"
OTHER = "celltwin/v1/site/unit/actuator/feed"


@pytest.fixture(params=BOTH)
def broker(request: pytest.FixtureRequest) -> Iterator[str]:
    with development_broker(request.param) as url:
        yield url


def until(met: Callable[[], bool], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not met():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def take(link: Link, n: int, seconds: float = 10.0) -> list[Received]:
    got: list[Received] = []
    deadline = time.monotonic() + seconds
    while len(got) < n and time.monotonic() < deadline:
        got += link.drain(0.1)
    return got


def open_link(url: str, name: str, *topics: str, **options: object) -> Link:
    link = Link(parse_address(url), name, topics, **options)  # type: ignore[arg-type]
    link.connect()
    return link


def test_each_broker_speaks_its_version(broker: str) -> None:
    assert speaks_v5(parse_address(broker)) == (USER not in broker)
    link = open_link(broker, "a")
    assert link.v5 == (USER not in broker)
    link.close()


def test_messages_arrive_in_order_and_whole(broker: str) -> None:
    reader, writer = open_link(broker, "reader", "celltwin/v1/site/unit/event/#"), open_link(broker, "writer")
    time.sleep(0.2)  # the subscription
    for k in range(300):
        writer.publish(Posting(TOPIC, f"{k}".encode()))
    got = take(reader, 300)
    assert [m.payload for m in got] == [f"{k}".encode() for k in range(300)]
    assert {m.topic for m in got} == {TOPIC}
    reader.close()
    writer.close()


def test_what_is_not_acknowledged_comes_again_and_what_is_does_not(mosquitto: str) -> None:
    reader, writer = open_link(mosquitto, "reader", TOPIC), open_link(mosquitto, "writer")
    time.sleep(0.2)
    for k in range(10):
        writer.publish(Posting(TOPIC, f"{k}".encode()))
    first = take(reader, 10)
    for m in first[:4]:
        reader.acknowledge(m)
    time.sleep(0.3)
    reader.close()  # as a crash would: six were taken and never committed
    for k in range(10, 15):
        writer.publish(Posting(TOPIC, f"{k}".encode()))
    time.sleep(0.3)
    again = open_link(mosquitto, "reader", TOPIC)
    got = take(again, 11)
    assert sorted(int(m.payload) for m in got) == list(range(4, 15))
    again.close()
    writer.close()


def test_what_is_sent_while_we_are_away_waits_for_us(broker: str) -> None:
    reader, writer = open_link(broker, "reader", TOPIC), open_link(broker, "writer")
    time.sleep(0.2)
    reader.close()
    for k in range(20):
        writer.publish(Posting(TOPIC, f"{k}".encode()))
    time.sleep(0.3)
    again = open_link(broker, "reader", TOPIC)
    assert [int(m.payload) for m in take(again, 20)] == list(range(20))
    again.close()
    writer.close()


def test_an_acknowledgement_of_an_earlier_connection_is_not_sent(mosquitto: str) -> None:
    reader, writer = open_link(mosquitto, "reader", TOPIC), open_link(mosquitto, "writer")
    time.sleep(0.2)
    writer.publish(Posting(TOPIC, b"once"))
    (old,) = take(reader, 1)
    reader._client.reconnect()  # type: ignore[union-attr]
    (new,) = take(reader, 1)
    assert (new.payload, new.link) == (b"once", old.link + 1)
    reader.acknowledge(old)
    reader.close()
    back = open_link(mosquitto, "reader", TOPIC)
    assert [m.payload for m in take(back, 1)] == [b"once"]
    back.close()
    writer.close()


def test_last_will_and_greeting_are_renewed_at_every_connect(mosquitto: str) -> None:
    """GIVEN a client with a will that loses its link twice, WHEN it heals, THEN offline and online alternate, retained."""
    status = "celltwin/v1/site/unit/status"
    watcher = open_link(mosquitto, "watcher", status)
    one = Link(
        parse_address(mosquitto), "one", (TOPIC,),
        will=Posting(status, b"offline", retain=True), greeting=lambda: [Posting(status, b"online", retain=True)],
    )  # fmt: skip
    one.connect()
    said = [m.payload for m in take(watcher, 1)]
    for _ in range(2):
        assert one.flush(5.0)
        one._client.socket().shutdown(2)  # type: ignore[union-attr]
        said += [m.payload for m in take(watcher, 2)]
    assert said == [b"online", b"offline", b"online", b"offline", b"online"]
    probe = open_link(mosquitto, "probe")
    probe.publish(Posting(TOPIC, b"still subscribed"))
    assert [m.payload for m in take(one, 1)] == [b"still subscribed"]
    late = open_link(mosquitto, "late", status)
    assert [(m.payload, m.retained) for m in take(late, 1)] == [(b"online", True)]
    for link in (watcher, one, probe, late):
        link.close()


def test_closing_waits_for_what_was_said(broker: str) -> None:
    reader, writer = open_link(broker, "reader", TOPIC), open_link(broker, "writer")
    time.sleep(0.2)
    for k in range(2000):
        writer.publish(Posting(TOPIC, f"{k}".encode()))
    writer.close()
    assert len(_take_all(reader, 2000)) == 2000
    reader.close()


def test_messages_said_while_the_link_is_down_go_out_when_it_is_back(mosquitto: str) -> None:
    reader, writer = open_link(mosquitto, "reader", TOPIC), open_link(mosquitto, "writer")
    time.sleep(0.2)
    writer._client.socket().shutdown(2)  # type: ignore[union-attr]
    assert until(lambda: not writer.connected)
    for k in range(20):
        writer.publish(Posting(TOPIC, f"{k}".encode()))
    assert not writer.flush(5.0)
    assert until(lambda: writer.connected)
    assert writer.flush(5.0)
    assert [m.payload for m in take(reader, 20)] == [f"{k}".encode() for k in range(20)]
    reader.close()
    writer.close()


def test_a_clean_goodbye_sends_the_farewell_and_not_the_will(broker: str) -> None:
    status = "celltwin/v1/site/unit/status"
    watcher = open_link(broker, "watcher", status)
    one = open_link(broker, "one", will=Posting(status, b"will", retain=True))
    time.sleep(0.2)
    one.close([Posting(status, b"goodbye", retain=True)])
    assert [m.payload for m in take(watcher, 1)] == [b"goodbye"]
    assert take(watcher, 1, seconds=0.4) == []
    watcher.close()


def test_expired_messages_are_dropped_by_a_v5_broker(mosquitto: str) -> None:
    reader, writer = open_link(mosquitto, "reader", TOPIC), open_link(mosquitto, "writer")
    time.sleep(0.2)
    reader.close()
    writer.publish(Posting(TOPIC, b"short", expiry=1))
    writer.publish(Posting(TOPIC, b"long", expiry=600))
    time.sleep(2.2)
    reader = open_link(mosquitto, "reader", TOPIC)
    assert [m.payload for m in take(reader, 2, seconds=1.0)] == [b"long"]
    reader.close()
    writer.close()


def test_a_live_retained_message_shows_its_flag_where_asked(mosquitto: str) -> None:
    edge = open_link(mosquitto, "edge", TOPIC, own_retained=True)
    plain = open_link(mosquitto, "plain", TOPIC)
    time.sleep(0.2)
    plain.publish(Posting(TOPIC, b"r", retain=True))
    assert [m.retained for m in take(edge, 1)] == [True]
    assert [m.retained for m in take(plain, 1)] == [False]
    edge.close()
    plain.close()


def test_a_question_shows_where_its_answer_goes_and_the_answer_whose_it_is(mosquitto: str) -> None:
    """MQTT v5 request and response: response topic and correlation data arrive, and the latter goes back untouched."""
    twin, asker = open_link(mosquitto, "twin", TOPIC), open_link(mosquitto, "asker", OTHER)
    marks = Properties(PacketTypes.PUBLISH)
    marks.ResponseTopic, marks.CorrelationData = OTHER, b"\x00\xffraw"
    asker._client.publish(TOPIC, b"{}", qos=1, properties=marks)  # type: ignore[union-attr]
    asker.publish(Posting(TOPIC, b"plain"))
    asked, plain = take(twin, 2)
    assert (asked.response_topic, asked.correlation) == (OTHER, b"\x00\xffraw")
    assert (plain.response_topic, plain.correlation) == ("", b"")
    twin.publish(Posting(asked.response_topic, b"answer", correlation=asked.correlation))
    (answer,) = take(asker, 1)
    assert (answer.payload, answer.correlation) == (b"answer", b"\x00\xffraw")
    twin.close()
    asker.close()


def test_a_broker_of_3_1_1_carries_the_payload_alone() -> None:
    with development_broker("amqtt") as url:
        reader, writer = open_link(url, "reader", TOPIC), open_link(url, "writer")
        writer.publish(Posting(TOPIC, b"answer", expiry=60, correlation=b"c"))
        (got,) = take(reader, 1)
        assert (got.payload, got.response_topic, got.correlation) == (b"answer", "", b"")
        reader.close()
        writer.close()


@needs_mosquitto
def test_backlog_survives_a_killed_broker(tmp_path: Path) -> None:
    """kill -9 of mosquitto a moment after the acknowledgements loses none of them."""
    port, conf = free_port(), tmp_path / "m.conf"
    conf.write_text(mosquitto_conf(port, tmp_path))

    def start() -> subprocess.Popen[bytes]:
        process = subprocess.Popen([str(find_mosquitto()), "-c", str(conf)])
        assert until(lambda: _listens(port))
        return process

    first = start()
    url = f"mqtt://127.0.0.1:{port}"
    reader = open_link(url, "reader", TOPIC)
    time.sleep(0.2)
    reader.close()
    writer = open_link(url, "writer")
    infos = [writer.publish(Posting(TOPIC, f"{k}".encode())) for k in range(300)]
    assert until(lambda: all(i.is_published() for i in infos), 30.0)
    time.sleep(1.2)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    writer.close()
    second = start()
    try:
        reader = open_link(url, "reader", TOPIC)
        assert sorted(int(m.payload) for m in _take_all(reader, 300)) == list(range(300))
        reader.close()
    finally:
        second.kill()
        second.wait()


def _take_all(link: Link, n: int) -> list[Received]:
    got: list[Received] = []
    deadline = time.monotonic() + 10
    while len(got) < n and time.monotonic() < deadline:
        fresh = link.drain(0.1)
        for m in fresh:
            link.acknowledge(m)
        got += fresh
    return got


def _listens(port: int) -> bool:
    try:
        return speaks_v5(Address("127.0.0.1", port), 0.5)
    except OSError:
        return False


def test_a_broker_that_is_not_there_is_named_in_one_line() -> None:
    url = f"mqtt://127.0.0.1:{free_port()}"
    with pytest.raises(BrokerError, match=f"^broker {url}: .*refused; is it running"):
        open_link(url, "a")


def test_plain_text_stays_on_loopback() -> None:
    with pytest.raises(BrokerError, match="plain text is allowed on loopback only; use mqtts"):
        Link(Address("192.0.2.7", 1883), "a", ()).connect()


@pytest.mark.parametrize(
    "url", ["localhost", "http://x", "mqtt://", "mqtt://h:port", "mqtt://h:99999", "mqtt://h/path"]
)
def test_a_wrong_url_is_refused(url: str) -> None:
    with pytest.raises(BrokerError, match="write mqtt://host:1883"):
        parse_address(url)


def test_an_address_keeps_user_and_password_and_never_prints_them() -> None:
    address = parse_address("mqtts://twin:s%40t@plant.example:9999")
    assert (address.user, address.password, address.port, address.tls) == ("twin", "s@t", 9999, True)
    assert str(address) == "mqtts://plant.example:9999"
    assert parse_address("mqtt://h").port == 1883
    assert parse_address("mqtts://h").port == 8883


@pytest.mark.parametrize(
    ("host", "is_it"), [("localhost", True), ("127.0.0.9", True), ("::1", True), ("192.0.2.1", False)]
)
def test_loopback(host: str, is_it: bool) -> None:
    assert Address(host, 1883).loopback is is_it


@pytest.mark.parametrize("kind", ["mosquitto", "amqtt"])
def test_a_taken_port_is_reported(kind: Literal["mosquitto", "amqtt"]) -> None:
    if kind == "mosquitto" and find_mosquitto() is None:
        pytest.skip("mosquitto is not installed")
    with development_broker("amqtt") as url:
        port = parse_address(url).port
        with pytest.raises(NoBroker, match=f"port {port} is taken"), development_broker(kind, port=port):
            pass


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="needs /proc/net")
def test_the_embedded_brokers_listen_on_loopback_only(broker: str) -> None:
    port = f"{parse_address(broker).port:04X}"
    tables = [Path(p) for p in ("/proc/net/tcp", "/proc/net/tcp6") if Path(p).exists()]
    rows = [line.split() for table in tables for line in table.read_text().splitlines()[1:]]
    listening = {row[1].split(":")[0] for row in rows if row[3] == "0A" and row[1].endswith(f":{port}")}
    assert listening == {"0100007F"}


@needs_mosquitto
def test_a_publish_that_the_access_list_denies_is_said(tmp_path: Path) -> None:
    """GIVEN a broker whose ACL grants no writing, WHEN a client publishes under v5, THEN it says so; its link stays up."""
    port, notes = free_port(), list[str]()
    (tmp_path / "acl").write_text("topic read #\n")
    conf = tmp_path / "mosquitto.conf"
    conf.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\nuser root\nacl_file {tmp_path / 'acl'}\n")
    with subprocess.Popen([str(find_mosquitto()), "-c", str(conf)], stderr=subprocess.DEVNULL) as broker:
        link = Link(parse_address(f"mqtt://127.0.0.1:{port}"), "mute", (TOPIC,), note=notes.append)
        try:
            assert until(lambda: _connects(link))
            for _ in range(5):
                link.publish(Posting(TOPIC, b"{}"))
            link.publish(Posting(OTHER, b"{}"))
            assert link.flush(5.0)
            assert until(lambda: len(notes) == 2), notes
            for topic, note in zip((TOPIC, OTHER), notes, strict=True):  # each topic family once, not each message
                assert f"a message on {topic} was not accepted: Not authorized" in note
            assert link.connected
        finally:
            link.close()
            broker.terminate()


def _connects(link: Link) -> bool:
    try:
        link.connect()
    except BrokerError:
        return False
    return True
