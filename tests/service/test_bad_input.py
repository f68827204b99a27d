"""Bad input through the wire: refused with a reason, journalled, said on `rejected`, and the belief is the same to the last bit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from controllers.loop import basis_of
from service.messages import Calibration, MediumChange, time_text
from tests.service.batch_driver import START, Sent, batch_start, course, read_back, reading
from tests.service.rig import Rig, said
from twin.batch import believe_at
from twin.history import Batch

NOW = 11.0
"""Day that the rig is at: late enough for a result to be too late."""


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    made = Rig(tmp_path_factory.mktemp("bad"), changes={"mode": "shadow"})
    made.take(course(0.3))
    made.take([reading("temperature", 37.0, "degC", day) for day in (3.0, 6.0, 9.0, NOW)])
    assert not said(made.sent, "rejected")
    yield made
    made.journal.close()


def batch(rig: Rig) -> Batch:
    running = rig.runner.desks["u"].running
    assert running is not None
    assert running.session.clock == NOW
    return running.session.batch


def raw(sent: Sent, value: str) -> tuple[str, Any]:
    """A reading whose value is written as `value`, whatever JSON makes of it."""
    text = json.dumps({**sent[1], "value": "HERE"}).replace('"HERE"', value)
    return sent[0], text.encode()


GLUCOSE = reading("glucose", 20.0, "mM", NOW)
KNOWN = reading("glucose", 4.5, "g/L", 22 / 86400)  # its time and name are taken

CASES: dict[str, tuple[tuple[str, Any], str]] = {
    "NaN": (raw(GLUCOSE, "NaN"), "not_finite"),
    "infinite": (raw(GLUCOSE, "Infinity"), "not_finite"),
    "minus infinite": (raw(GLUCOSE, "-Infinity"), "not_finite"),
    "beyond double": (raw(GLUCOSE, "1e999"), "not_finite"),
    "dashes": (raw(GLUCOSE, '"--"'), "bad_type"),
    "number as text": (raw(GLUCOSE, '"20.0"'), "bad_type"),
    "null": (raw(GLUCOSE, "null"), "bad_type"),
    "true": (raw(GLUCOSE, "true"), "bad_type"),
    "negative": (reading("glucose", -0.1, "mM", NOW), "out_of_range"),
    "viability above 100 %": (reading("viability", 100.1, "percent", NOW), "out_of_range"),
    "pH of 2": (reading("ph", 2.0, "pH", NOW), "out_of_range"),
    "cells/mL as 1e6 cells/mL": (reading("viable_density", 2e6, "1e6 cells/mL", NOW), "out_of_range"),
    "frozen reactor": (reading("temperature", -3.0, "degC", NOW), "out_of_range"),
    "overflow by its unit": (reading("glucose", 1e307, "g/L", NOW), "out_of_range"),
    "a spread of zero": (reading("glucose", 20.0, "mM", NOW, sd=0.0), "bad_value"),
    "an absurd spread": (reading("glucose", 20.0, "mM", NOW, sd=1e9), "bad_sd"),
    "a spread whose square is nothing": (reading("ph", 7.2, "pH", NOW, sd=1e-200), "bad_sd"),
    "from the future": (reading("glucose", 20.0, "mM", NOW + 3.6), "from_the_future"),
    "a year ahead": (reading("glucose", 20.0, "mM", NOW + 365.0), "from_the_future"),
    "a pump from the future": (read_back("perfusion", 0.5, NOW + 3.6), "from_the_future"),
    "before inoculation": (reading("glucose", 20.0, "mM", -0.1, id="early", seq=1), "before_start"),
    "older than is replayed": (reading("glucose", 20.0, "mM", NOW - 10.01), "too_late"),
    "a correction older than is replayed": ((KNOWN[0], {**KNOWN[1], "version": 2, "value": 4.4}), "too_late"),
    "another value under a known name": (reading("temperature", 36.0, "degC", 9.0), "conflict"),
    "unknown batch": (reading("glucose", 20.0, "mM", NOW, batch="B999"), "unknown_batch"),
    "a pump of an unknown batch": (read_back("perfusion", 0.5, NOW, batch="B999"), "unknown_batch"),
    "unknown channel": (reading("sodium", 140.0, "mM", NOW), "unknown_channel"),
    "no unit": (("measurement/glucose", {k: v for k, v in GLUCOSE[1].items() if k != "unit"}), "bad_unit"),
    "a unit of something else": (reading("glucose", 20.0, "kg", NOW), "bad_unit"),
    "a pump that cannot be": (read_back("perfusion", 500.0, NOW), "out_of_range"),
    "a negative rate": (read_back("perfusion", -0.5, NOW), "bad_value"),
    "a pump nobody has": (("actuator/stirrer", read_back("perfusion", 0.5, NOW)[1]), "unknown_actuator"),
    "calibration of nothing": (
        ("event/calibration", {**Calibration.example, "channel": "sodium", "at": time_text(START + timedelta(days=NOW))}),
        "unknown_channel",
    ),
    "a medium nobody has": (
        ("event/medium", {**MediumChange.example, "medium": "tea", "at": time_text(START + timedelta(days=NOW))}),
        "unknown_entry",
    ),
    "the same batch started otherwise": (batch_start(volume_l=2.0), "batch_exists"),
    "no JSON": (("measurement/glucose", b"{"), "not_json"),
    "a payload bomb": (("measurement/glucose", b"[" * 70_000), "too_large"),
}  # fmt: skip


@pytest.mark.parametrize("case", list(CASES))
def test_it_is_refused_journalled_and_leaves_the_belief_as_it_was(rig: Rig, case: str) -> None:
    sent, reason = CASES[case]
    before, rows = batch(rig), rig.journal.head.n
    now = believe_at(before, NOW)
    posted = rig.take([sent])
    (refusal,) = said(posted, "rejected")
    assert refusal["reason"] == reason
    assert refusal["topic"].endswith(sent[0])
    assert refusal["detail"]
    assert len(posted) == 1  # no estimate, no plan
    kept = [row for row in rig.journal.rows() if row.n > rows]
    assert [row.kind for row in kept] == ["received", "rejected"]
    assert kept[0].topic.endswith(sent[0])
    assert json.loads(kept[1].payload)["reason"] == reason
    after = batch(rig)
    assert after is before
    again = believe_at(after, NOW)
    assert (again.mean.tobytes(), again.cov.tobytes()) == (now.mean.tobytes(), now.cov.tobytes())
    assert basis_of(after, again) == basis_of(before, now)


def test_one_that_is_good_after_all_of_them_moves_the_belief(rig: Rig) -> None:
    before = batch(rig)
    assert not said(rig.take([GLUCOSE]), "rejected")
    assert batch(rig).belief != before.belief


def test_under_the_wall_clock_a_minute_ahead_is_the_future(tmp_path: Path) -> None:
    made = Rig(tmp_path, changes={"mode": "shadow", "clock": "wall"})
    ahead = (made.now() - START) / timedelta(days=1) + 2 / 1440
    made.take([batch_start()])
    posted = made.take([reading("glucose", 20.0, "mM", ahead)])
    assert [r["reason"] for r in said(posted, "rejected")] == ["from_the_future"]
    running = made.runner.desks["u"].running
    assert running is not None
    assert running.session.batch.evidence == ()
