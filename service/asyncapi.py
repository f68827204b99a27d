"""The AsyncAPI 3.0 document of the MQTT interface, generated from the classes that decode and encode the messages.

`document()` is committed as docs/asyncapi.json (`python -m service.asyncapi > docs/asyncapi.json`);
`validate(topic, payload)` holds one observed message against it.
"""

from __future__ import annotations

import copy
import json
import re
import sys
from functools import cache
from typing import Any

from service.messages.base import MAX_BYTES, REASONS, ROOT, ActuatorName, Message, Rejected
from service.messages.codec import CLASSES, class_of, strict_json
from service.messages.incoming import CHANNEL_NAMES, QueryMessage
from service.messages.outgoing import Alarm, ReplyMessage

VERSION = "1.2.0"
ID = "^[A-Za-z0-9_-]{1,64}$"
QUERIES: tuple[type[Message], ...] = QueryMessage.__args__  # type: ignore[attr-defined]

_PARAMETERS: dict[str, dict[str, Any]] = {
    "site": {"description": "Name of the site, 1 to 64 of A-Z a-z 0-9 _ -"},
    "unit": {"description": "Name of the reactor at that site"},
    "channel": {"description": "What is measured", "enum": list(CHANNEL_NAMES)},
    "actuator": {"description": "Which pump", "enum": list(ActuatorName.__args__)},  # type: ignore[attr-defined]
    "cmd_id": {"description": "The override that is acknowledged"},
    "code": {"description": "Stable code of the alarm, with the channel after a hyphen where one is meant"},
    "client": {"description": "Who asked"},
}


class Invalid(ValueError):
    """A message that is not valid under the document; one line."""


@cache
def _document() -> dict[str, Any]:
    schemas: dict[str, Any] = {}
    channels: dict[str, Any] = {}
    operations: dict[str, Any] = {}
    messages: dict[str, Any] = {}
    for cls in CLASSES:
        name = cls.__name__
        schemas[name] = _schema(cls, schemas)
        messages[name] = {
            "name": name,
            "title": cls.title,
            "summary": " ".join((cls.__doc__ or "").split()),
            "contentType": "application/json",
            "payload": {"$ref": f"#/components/schemas/{name}"},
            "examples": [{"name": "example", "payload": copy.deepcopy(dict(cls.example))}],
        }
        if issubclass(cls, QUERIES) or cls is ReplyMessage:
            messages[name]["correlationId"] = {"location": "$message.payload#/correlation"}
        channels[name] = {
            "address": f"{ROOT}/{{site}}/{{unit}}/{cls.address}",
            "title": cls.title,
            "messages": {name: {"$ref": f"#/components/messages/{name}"}},
            "parameters": {
                p: {"$ref": f"#/components/parameters/{p}"}
                for p in re.findall(r"{(\w+)}", "{site}{unit}" + cls.address)
            },
        }
        if cls is Alarm:
            channels[name]["description"] = "Retained until cleared; an empty payload clears the alarm."
        action = "receive" if cls.direction == "to_twin" else "send"
        operations[f"{action}{name}"] = {
            "action": action,
            "channel": {"$ref": f"#/channels/{name}"},
            "title": cls.title,
            "messages": [{"$ref": f"#/channels/{name}/messages/{name}"}],
            "bindings": {"mqtt": _binding(cls)},
        }
        if issubclass(cls, QUERIES):
            operations[f"{action}{name}"]["reply"] = {
                "address": {"location": "$message.payload#/reply_to"},
                "channel": {"$ref": "#/channels/ReplyMessage"},
            }
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "celltwin",
            "version": VERSION,
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
            "description": _DESCRIPTION,
        },
        "defaultContentType": "application/json",
        "servers": {
            "site": {
                "host": "broker.example:8883",
                "protocol": "mqtts",
                "protocolVersion": "5",
                "description": "The broker of the site. MQTT 3.1.1 only for a development broker on loopback.",
            }
        },
        "channels": channels,
        "operations": operations,
        "components": {"messages": messages, "schemas": schemas, "parameters": _PARAMETERS},
    }


def document() -> dict[str, Any]:
    """The AsyncAPI 3.0 document as plain JSON values; the caller's own copy."""
    return copy.deepcopy(_document())


def text() -> str:
    """The document as it is committed: sorted, indented, newline at the end."""
    return json.dumps(_document(), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def validate(topic: str, payload: bytes) -> None:
    """Hold one observed message (full topic, payload) against the document. Raises `Invalid`.

    Independent of the decoder's field rules: only the JSON schema of the document is asked. Needs `jsonschema`.
    """
    match = re.fullmatch(re.escape(ROOT) + r"/([A-Za-z0-9_-]{1,64})/([A-Za-z0-9_-]{1,64})/(.+)", topic)
    if match is None:
        raise Invalid(f"{topic}: not below {ROOT}/{{site}}/{{unit}}/")
    try:
        cls, _ = class_of(match[3])
        if cls is Alarm and not payload:
            return
        content = strict_json(payload)
    except Rejected as error:
        raise Invalid(f"{topic}: {error}") from None
    problem = next(iter(_validator(cls.__name__).iter_errors(content)), None)
    if problem is not None:
        raise Invalid(f"{topic}: {problem.json_path}: {problem.message[:200]}")


@cache
def _validator(name: str) -> Any:
    import jsonschema

    schema = {"$ref": f"#/components/schemas/{name}", "components": {"schemas": _document()["components"]["schemas"]}}
    return jsonschema.Draft7Validator(schema, format_checker=jsonschema.FormatChecker())


def _schema(cls: type[Message], shared: dict[str, Any]) -> dict[str, Any]:
    """JSON schema of a message as it travels; nested pieces move to `shared`."""
    schema = cls.model_json_schema(by_alias=True, mode="validation", ref_template="#/components/schemas/{model}")
    for name, piece in schema.pop("$defs", {}).items():
        shared.setdefault(name, piece)
    for name, field in cls.model_fields.items():
        if field.exclude:  # travels in the topic
            schema["properties"].pop(name, None)
            schema["required"] = [r for r in schema.get("required", []) if r != name]
    return schema


def _binding(cls: type[Message]) -> dict[str, Any]:
    binding: dict[str, Any] = {"qos": 1, "retain": cls.retain, "bindingVersion": "0.2.0"}
    if cls.expires:
        binding["messageExpiryInterval"] = {"type": "integer", "minimum": 1}
    return binding


_DESCRIPTION = (
    "Digital twin of a bioreactor. Payloads are JSON objects of at most "
    f"{MAX_BYTES} bytes, UTF-8, without NaN, Infinity, duplicate or unknown keys. Times are ISO 8601 with a zone. "
    "Meaning lives in the payload: an override ends at `valid_until` whatever the transport does, and an answer goes to "
    "`reply_to` with its `correlation`; a question may name both by the MQTT v5 response topic and correlation data instead, "
    "and its answer carries the correlation data back. Everything that is refused is answered on `rejected` with a stable reason.\n\n"
    "Reasons:\n" + "\n".join(f"- `{code}`: {what}" for code, what in REASONS.items())
)


if __name__ == "__main__":
    sys.stdout.write(text())
