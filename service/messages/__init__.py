"""The wire: schema classes of the MQTT interface, strict decoding, canonical encoding, conversion to facts.

`base` holds types and reason codes, `incoming` and `outgoing` the messages, `codec` bytes, `facts` days and units.
"""

from __future__ import annotations

from service.messages.base import MAX_BYTES, REASONS, ROOT, Message, Mode, Rejected, is_id, parse_time, time_text
from service.messages.codec import CLASSES, addressed, canonical_json, class_of, decode, decode_as, encode
from service.messages.facts import (
    NO_LINKS,
    Links,
    control_fact,
    control_message,
    days,
    event_fact,
    event_message,
    instant,
    linked,
    measurement_fact,
    measurement_message,
    root_of,
)
from service.messages.incoming import (
    INCOMING,
    Ack,
    ApproveQuery,
    BatchEnd,
    BatchStart,
    Calibration,
    EventMessage,
    ForecastQuery,
    Incoming,
    MeasurementMessage,
    MediumChange,
    OperatorAction,
    QueryMessage,
    ReadBack,
    StageChange,
    StateQuery,
    WhatIfQuery,
)
from service.messages.outgoing import (
    OUTGOING,
    Alarm,
    Band,
    Changed,
    Consistency,
    Estimate,
    ForecastMessage,
    HarvestWindow,
    HealthPart,
    Outgoing,
    Override,
    PlanMessage,
    Quantiles,
    Quantity,
    Rejection,
    ReplyMessage,
    Revised,
    Series,
    Severity,
    Shifted,
    StatusMessage,
    Verdict,
    WhatIfPart,
    Whiteness,
)

__all__ = [
    "CLASSES", "INCOMING", "MAX_BYTES", "NO_LINKS", "OUTGOING", "REASONS", "ROOT",
    "Ack", "Alarm", "ApproveQuery", "Band", "BatchEnd", "BatchStart", "Calibration", "Changed", "Consistency", "Estimate",
    "EventMessage", "ForecastMessage", "ForecastQuery", "HarvestWindow", "HealthPart", "Incoming", "Links", "MeasurementMessage",
    "MediumChange", "Message", "Mode", "OperatorAction", "Outgoing", "Override", "PlanMessage", "Quantiles", "Quantity",
    "QueryMessage", "ReadBack", "Rejected", "Rejection", "ReplyMessage", "Revised", "Series", "Severity", "Shifted", "StageChange", "StateQuery",
    "StatusMessage", "Verdict", "WhatIfPart", "WhatIfQuery", "Whiteness",
    "addressed", "canonical_json", "class_of", "control_fact", "control_message", "days", "decode", "decode_as", "encode",
    "event_fact", "event_message", "instant", "is_id", "linked", "measurement_fact", "measurement_message", "parse_time",
    "root_of", "time_text",
]  # fmt: skip
