"""What the desk says of the health of its estimate: flags, figures, alarms, and how few of them one event makes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.desk import Desk, estimate
from service.journal import Journal
from service.messages import instant
from service.replay import replay, resume
from tests.service.batch_driver import (
    START,
    Driver,
    Sent,
    batch_end,
    configuration,
    contents,
    course,
    reading,
    same,
    tell,
)
from twin.batch import assimilate, start
from twin.estimation import health
from twin.history import Batch


def batch_of(desk: Desk) -> Batch:
    assert desk.running is not None
    return desk.running.session.batch


def looked(desk: Desk) -> tuple[Desk, dict[str, Any], dict[str, dict[str, Any]]]:
    """The desk after an estimate, the estimate, and the alarms said with it by code; {} where one is cleared."""
    desk, said = estimate(desk)
    up = [o for o in said if o.suffix.startswith("alarm/")]
    return (
        desk,
        contents(list(said), "estimate")[0],
        dict(zip((o.suffix[6:] for o in up), contents(up, ""), strict=True)),
    )


def in_grams(desk: Desk, day: float, **changes: Any) -> Sent:
    """A glucose of the size that is believed, in g/L, stated as mM."""
    believed = contents(list(estimate(desk)[1]), "estimate")[0]["state"]["glucose"]["mean"]
    return reading("glucose", believed * 0.180156, "mM", day, id="slip", **changes)


def stuck(day: float, n: int = 6) -> list[Sent]:
    return [reading("capacitance", 0.4321, "pF/cm", day + k / 100) for k in range(n)]


def test_figures_are_those_of_the_twin(played: Driver) -> None:
    desk, said, _ = looked(played.desk)
    batch, now = batch_of(desk), 1.1
    part = said["health"]
    assert desk.running is not None
    h = health.health(batch, desk.running.session.clock)
    assert (part["nis"], part["honest"], part["repairs"], part["window_days"]) == (h.nis, h.honest, h.repairs, 1.0)
    assert set(part["channels"]) == set(h.channels) == {"capacitance", "raman_glucose", "raman_lactate"}
    for channel, w in h.channels.items():
        shown = part["channels"][channel]
        assert (shown["n"], shown["nis"], shown["low"], shown["high"], shown["ratio"]) == (
            w.n,
            w.nis,
            w.low,
            w.high,
            w.ratio,
        )
    assert set(part["newest"]) == set(batch.watches)
    assert part["newest"]["viability"]["verdict"] == "accepted"
    assert batch.shadow is not None
    assert part["shadow_gap"] == h.apart
    assert 0.0 < part["shadow_gap"] < 3.0
    assert now > 0.0


def test_without_a_shadow_there_is_no_gap(tmp_path: Path) -> None:
    driver = Driver(configuration(tmp_path, shadow=False), Journal.open(tmp_path))
    for sent in course(0.2):
        driver.send(sent, look=False)
    assert batch_of(driver.desk).shadow is None
    assert looked(driver.desk)[1]["health"]["shadow_gap"] is None


def test_a_shadow_changes_no_belief(played: Driver) -> None:
    batch = batch_of(played.desk)
    alone = replace(start(batch.id, batch.process, batch.donor_prior), course=batch.course)
    for m in batch.evidence:
        alone = assimilate(alone, m)
    assert alone.belief == batch.belief


def test_a_late_fact_that_moves_the_belief_is_counted_with_its_jump(played: Driver) -> None:
    before = looked(played.desk)[1]["health"]["revisions"]
    desk, _ = tell(played.desk, reading("lactate", 0.85, "mM", 0.4, id="late"))
    after = looked(desk)[1]["health"]["revisions"]
    assert after["n"] == before["n"] + 1
    assert after["cause"] == "late"
    assert after["last"] == batch_of(desk).revisions[-1].jump > 0.0
    assert after["at"] == "2026-11-01T09:36:00Z"


def test_a_stuck_probe_is_flagged_said_once_and_cleared_when_it_fits_again(played: Driver) -> None:
    desk, _ = tell(played.desk, *stuck(1.12))
    desk, said, up = looked(desk)
    assert "quarantined:capacitance:stuck" in said["flags"]
    assert said["health"]["newest"]["capacitance"]["verdict"] == "quarantined"
    alarm = up["stuck-capacitance"]
    assert (alarm["channel"], alarm["severity"]) == ("capacitance", "warning")
    assert alarm["since"] == "2026-11-02T04:04:48Z"  # the sixth reading
    assert looked(desk)[2] == {}
    ok = float(np.exp(batch_of(desk).newest.belief.mean[0])) * 0.5
    for k in range(12):
        gain = np.exp(batch_of(desk).belief.mean[batch_of(desk).layout.index("capacitance_gain")])
        desk, _ = tell(desk, reading("capacitance", ok * gain * (1.0 + 0.001 * k), "pF/cm", 1.19 + k / 500))
        desk, said, up = looked(desk)
        if up:
            break
    assert up == {"stuck-capacitance": {}}
    assert not [f for f in said["flags"] if "capacitance" in f]


def test_a_unit_slip_is_no_refusal_and_its_alarm_says_what_to_send(played: Driver) -> None:
    slip = in_grams(played.desk, 1.15)
    desk, said = tell(played.desk, slip)
    assert [o.suffix for o in said] == []
    assert batch_of(desk).evidence[-1].id == "slip"
    desk, body, up = looked(desk)
    assert "unit_slip:glucose" in body["flags"]
    assert body["health"]["newest"]["glucose"]["verdict"] == "unit_slip"
    alarm = up["unit_slip-glucose"]
    assert alarm["message"].startswith(f"slip reads {slip[1]['value']:.4g}: g/L stated as mM: ")
    assert alarm["action"].startswith("send version 2 of slip: with the right value, or with quality confirmed")
    right = reading("glucose", slip[1]["value"], "g/L", 1.15, id="slip", version=2)
    desk, body, up = looked(tell(desk, right)[0])
    assert up == {"unit_slip-glucose": {}}
    assert body["health"]["newest"]["glucose"]["verdict"] == "accepted"


def test_a_value_that_a_person_confirms_is_taken_in(played: Driver) -> None:
    slip = in_grams(played.desk, 1.15)
    held, _ = tell(played.desk, slip)
    desk, said = tell(looked(held)[0], (slip[0], {**slip[1], "version": 2, "quality": "confirmed"}))
    assert [o.suffix for o in said] == []
    assert batch_of(desk).evidence[-1].confirmed
    desk, body, up = looked(desk)
    assert up["unit_slip-glucose"] == {}
    assert body["health"]["newest"]["glucose"]["verdict"] == "widened"
    i = batch_of(desk).layout.index("glucose")
    assert batch_of(desk).belief.mean[i] < batch_of(held).belief.mean[i] - 0.3
    again, said = tell(held, (slip[0], {**slip[1], "quality": "confirmed"}))  # the same version with other content
    assert [o.suffix for o in said] == ["rejected"]
    assert again.running is held.running


# --- few alarms ------------------------------------------------------------------------------------------------------


def raising(monkeypatch: pytest.MonkeyPatch, *found: tuple[str, str], severity: health.Severity = "warning") -> None:
    """The twin's own alarms, made to order."""
    made = tuple(health.Alarm(c, channel, 1.0, severity, "what", "do") for c, channel in found)  # type: ignore[arg-type]
    monkeypatch.setattr("twin.estimation.health.alarms", lambda batch, now, state: made)


def later(desk: Desk, hours: float) -> Desk:
    assert desk.running is not None
    session = desk.running.session
    return replace(desk, running=replace(desk.running, session=replace(session, clock=session.clock + hours / 24.0)))


CHANNELS = ("viable_density", "viability", "glucose", "lactate", "glutamine", "ammonia", "cytokine", "car_fraction",
            "exhausted_fraction", "ph", "do", "weight")  # fmt: skip


def test_ten_alarms_at_once_are_ten_and_eleven_are_a_flood(played: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    raising(monkeypatch, *(("stuck", c) for c in CHANNELS[:10]))
    assert set(looked(played.desk)[2]) == {f"stuck-{c}" for c in CHANNELS[:10]}
    raising(monkeypatch, *(("stuck", c) for c in CHANNELS[:11]))
    desk, said, up = looked(played.desk)
    assert set(up) == {"alarm_flood"}
    assert "11 alarms in ten minutes" in up["alarm_flood"]["message"]
    assert sum(f.startswith("quarantined:") for f in said["flags"]) == 11  # the estimate hides nothing
    assert looked(desk)[2] == {}
    desk, _, up = looked(later(desk, 0.2))
    assert set(up) == {"alarm_flood", *(f"stuck-{c}" for c in CHANNELS[:11])}  # over: what still stands is said
    assert up["alarm_flood"] == {}


def test_in_a_flood_what_is_critical_is_said_all_the_same(played: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tuple(health.Alarm("stuck", c, 1.0, "warning", "what", "do") for c in CHANNELS)
    worst = health.Alarm("contradicted", "do", 1.0, "critical", "what", "do")
    monkeypatch.setattr("twin.estimation.health.alarms", lambda batch, now, state: (*made, worst))
    assert set(looked(played.desk)[2]) == {"alarm_flood", "contradicted-do"}


def test_an_alarm_that_flaps_is_a_flood_too(played: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    desk, said = played.desk, 0
    for _ in range(30):
        raising(monkeypatch, ("stuck", "ph"))
        desk, _, up = looked(desk)
        said += len(up)
        raising(monkeypatch)
        desk, _, up = looked(desk)
        said += len(up)
    assert "alarm_flood" in desk.alarms
    assert said <= 22  # ten times up and down, and the flood


def test_an_alarm_about_the_whole_estimate_outlives_its_cause(played: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    raising(monkeypatch, ("overconfident", ""))
    desk, said, up = looked(played.desk)
    assert set(up) == {"overconfident"}
    assert "overconfident" in said["flags"]
    raising(monkeypatch)
    desk, said, up = looked(later(desk, 5.9))
    assert up == {}
    assert "overconfident" not in said["flags"]
    assert looked(later(desk, 0.2))[2]["overconfident"] == {}


def test_the_end_of_the_batch_clears_them(played: Driver) -> None:
    desk, _, up = looked(tell(played.desk, *stuck(1.12))[0])
    assert "stuck-capacitance" in up
    desk, said = tell(desk, batch_end(1.3))
    assert ("alarm/stuck-capacitance", b"") in [(o.suffix, o.payload) for o in said]
    assert looked(desk)[2] == {}


def test_alarms_and_what_is_remembered_of_them_are_rebuilt_from_the_journal(tmp_path: Path) -> None:
    driver = Driver(configuration(tmp_path), Journal.open(tmp_path))
    for sent in course(0.8):
        driver.send(sent, look=False)
    driver.look()
    for sent in (*stuck(0.84), in_grams(driver.desk, 0.92)):
        driver.send(sent)
    assert {"stuck-capacitance", "unit_slip-glucose"} <= set(driver.desk.alarms)
    assert replay(driver.journal, "B001").mismatches == ()
    resumed = resume(driver.journal, driver.config, 2)
    assert resumed.mismatches == ()
    desk = resumed.desks["u"]
    assert same(desk, driver.desk)
    assert desk.memory == driver.desk.memory
    assert desk.memory.onsets[-1] == instant(0.92, START)
    assert looked(desk)[2] == {}  # nothing is said twice
