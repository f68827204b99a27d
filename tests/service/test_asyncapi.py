"""The published document: current, valid, complete, and able to tell a good message from a bad one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import jsonschema.validators
import pytest

from service.asyncapi import Invalid, document, text, validate
from service.messages import CLASSES, INCOMING, REASONS, ROOT, Alarm, Message, decode, encode

UNIT = f"{ROOT}/siteA/unit1"


def test_the_committed_document_is_current(root: Path) -> None:
    committed = (root / "docs" / "asyncapi.json").read_text(encoding="utf-8")
    assert committed == text(), "regenerate: python -m service.asyncapi > docs/asyncapi.json"


def test_it_describes_every_message_and_every_topic_of_the_interface() -> None:
    addresses = {c["address"].removeprefix(f"{ROOT}/{{site}}/{{unit}}/") for c in document()["channels"].values()}
    kinds = ("batch_start", "batch_end", "stage", "calibration", "medium", "operator_action")
    verbs = ("whatif", "forecast", "state", "approve")
    assert addresses == {
        "measurement/{channel}", "actuator/{actuator}", "override/{actuator}", "ack/{cmd_id}", "estimate", "forecast",
        "plan", "alarm/{code}", "status", "rejected", "reply/{client}",
        *(f"event/{k}" for k in kinds), *(f"query/{v}" for v in verbs),
    }  # fmt: skip


def test_overrides_are_never_retained_and_expire() -> None:
    bindings = {name: op["bindings"]["mqtt"] for name, op in document()["operations"].items()}
    assert bindings["sendOverride"]["retain"] is False
    assert "messageExpiryInterval" in bindings["sendOverride"]
    assert {n for n, b in bindings.items() if b["retain"]} == {
        "sendEstimate", "sendForecastMessage", "sendPlanMessage", "sendAlarm", "sendStatusMessage",
    }  # fmt: skip
    assert {b["qos"] for b in bindings.values()} == {1}


def test_directions_follow_the_interface() -> None:
    receives = {n.removeprefix("receive") for n, op in document()["operations"].items() if op["action"] == "receive"}
    assert receives == {c.__name__ for c in INCOMING}


def test_every_reference_leads_somewhere() -> None:
    doc = document()

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            if isinstance(ref := node.get("$ref"), str):
                target: Any = doc
                for part in ref.removeprefix("#/").split("/"):
                    target = target[part]
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(doc)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
def test_schemas_are_schemas_and_hold_their_example(cls: type[Message]) -> None:
    schema = document()["components"]["schemas"][cls.__name__]
    jsonschema.Draft7Validator.check_schema(schema)
    assert schema["additionalProperties"] is False
    topic = f"{UNIT}/{cls.example_topic}"
    validate(topic, json.dumps(cls.example).encode())
    validate(topic, encode(decode(cls.example_topic, json.dumps(cls.example).encode())))
    with pytest.raises(Invalid):
        validate(topic, json.dumps({**cls.example, "surprise": 1}).encode())


@pytest.mark.parametrize(
    ("suffix", "change"),
    [
        ("measurement/glucose", {"value": "3"}),
        ("measurement/glucose", {"sampled_at": "yesterday"}),
        ("measurement/glucose", {"id": "a b"}),
        ("override/perfusion", {"rate": -1}),
        ("override/perfusion", {"actuator": "valve"}),
        ("estimate", {"state": {"glucose": {"mean": 1}}}),
        ("forecast", {"p_release": 1.5}),
        ("status", {"mode": "open"}),
    ],
)
def test_it_finds_what_is_wrong(suffix: str, change: dict[str, Any]) -> None:
    cls = next(c for c in CLASSES if c.example_topic == suffix)
    with pytest.raises(Invalid, match=suffix):
        validate(f"{UNIT}/{suffix}", json.dumps({**cls.example, **change}).encode())


@pytest.mark.parametrize("topic", ["other/v1/a/b/estimate", f"{UNIT}/nonsense", f"{ROOT}/a b/c/estimate", UNIT])
def test_a_foreign_topic_is_invalid(topic: str) -> None:
    with pytest.raises(Invalid):
        validate(topic, b"{}")


def test_an_empty_payload_clears_an_alarm_and_nothing_else() -> None:
    validate(f"{UNIT}/{Alarm.example_topic}", b"")
    with pytest.raises(Invalid):
        validate(f"{UNIT}/estimate", b"")


def test_every_reason_is_documented() -> None:
    description = document()["info"]["description"]
    assert all(f"`{reason}`" in description for reason in REASONS)


def test_the_document_is_the_callers_own_copy() -> None:
    document()["channels"].clear()
    assert document()["channels"]


def _meta_schema() -> dict[str, Any]:
    """AsyncAPI's own schema from the npm package @asyncapi/specs, where somebody has installed it."""
    name = Path("@asyncapi", "specs", "schemas", "3.0.0.json")
    folders = [Path(p) for p in os.environ.get("NODE_PATH", "").split(os.pathsep) if p]
    if (npm := shutil.which("npm")) is not None:
        found = subprocess.run([npm, "root", "-g"], capture_output=True, text=True, check=False, timeout=60)
        folders.append(Path(found.stdout.strip()))
    for folder in folders:
        if (folder / name).is_file():
            schema: dict[str, Any] = json.loads((folder / name).read_text(encoding="utf-8"))
            return schema
    pytest.skip(
        "npm package @asyncapi/specs not found (npm install -g @asyncapi/specs, or name its node_modules in NODE_PATH)"
    )


def test_it_is_valid_asyncapi_3() -> None:
    schema = _meta_schema()
    validator = jsonschema.validators.validator_for(schema)(schema)
    assert [e.message[:200] for e in validator.iter_errors(document())] == []
    broken = document()
    del broken["info"]["title"]
    broken["operations"]["sendEstimate"]["action"] = "shout"
    assert list(validator.iter_errors(broken))
