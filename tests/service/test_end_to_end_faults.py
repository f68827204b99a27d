"""Separate processes and a real broker: what is wrong is said in one line or one message, and nothing else stops."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from service.broker import free_port
from service.messages import MeasurementMessage
from service.mqtt import Posting
from tests.service.processes import (
    SITE,
    Site,
    Spy,
    check_all_valid,
    end,
    finish,
    needs_mosquitto,
    one_line_exit_2,
    until,
)


@pytest.mark.slow
def test_bad_messages_are_answered_and_the_service_lives(site: Site, spy: Spy) -> None:
    serve = site.serve()
    until(lambda: bool(spy.on("status")))
    bad = {
        "measurement/glucose": [
            b"",
            b"{",
            b"\xff\xfe",
            b'{"value": NaN}',
            b"[" * 5000,
            b'{"a":1,"a":2}',
            b"x" * 100_000,
        ],
        "event/batch_start": [b"null", b'{"batch": "../../etc"}'],
        "measurement/unheard_of": [json.dumps({**MeasurementMessage.example, "channel": "unheard_of"}).encode()],
        "event/party": [b"{}"],
        "query/everything": [b"{}"],
        "actuator/sonar/deep": [b"{}"],
    }
    count = sum(len(v) for v in bad.values())
    for suffix, payloads in bad.items():
        for payload in payloads:
            spy.say(Posting(f"{SITE}/r1/{suffix}", payload))
    spy.say(Posting(f"{SITE}/r2/measurement/ph", b"{}"))  # another unit: not ours to answer
    until(lambda: len(spy.on("rejected")) >= count)
    check_all_valid(spy.on("rejected"))
    assert {h.content["reason"] for h in spy.on("rejected")} >= {
        "not_json", "not_utf8", "not_finite", "nested_too_deep", "duplicate_key", "too_large", "unknown_channel", "unknown_kind",
        "unknown_verb",
    }  # fmt: skip
    assert serve.poll() is None
    result = finish(site.edge(recipe="./short1.yaml"))
    assert result["outcome"]["day"] == pytest.approx(1.0)
    assert len(spy.on("rejected")) == count
    assert spy.on("rejected", unit="r2") == []
    end(serve)


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["serve", "edge"])
def test_a_broker_that_is_not_there(tmp_path: Path, verb: str) -> None:
    site = Site(tmp_path, f"mqtt://127.0.0.1:{free_port()}")
    process = site.serve() if verb == "serve" else site.edge()
    one_line_exit_2(process, site.url, "refused", "is it running")


@pytest.mark.slow
def test_wrong_input_of_edge_is_one_line(site: Site, tmp_path: Path) -> None:
    bad = tmp_path / "bad.csv"
    bad.write_text("batch,channel\nx,y\n")
    one_line_exit_2(site.edge("--replay", str(tmp_path / "none.csv")), "none.csv", "no such file")
    one_line_exit_2(site.edge("--replay", str(bad)), "bad.csv")
    one_line_exit_2(site.edge(preset="martian"), "martian")
    one_line_exit_2(site.edge(scenario="paradise"), "paradise")
    one_line_exit_2(site.start("edge", "-c", str(tmp_path / "none.yaml")), "none.yaml")


@needs_mosquitto
@pytest.mark.slow
def test_two_services_on_one_data_directory(site: Site, spy: Spy) -> None:
    first = site.serve()
    until(lambda: bool(spy.on("status")))
    one_line_exit_2(site.serve(), "another service runs on this data directory")
    assert spy.on("status")[-1].content["state"] == "online"
    end(first)
