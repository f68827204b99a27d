"""The desk: what is said to every message, without broker, clock or file."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.asyncapi import validate
from service.desk import Desk, estimate, restarted, step, watch
from service.journal import Journal
from service.messages import MediumChange, parse_time, time_text
from service.replay import settings_of
from tests.service.batch_driver import (
    START,
    WALL,
    Driver,
    Sent,
    batch_end,
    batch_start,
    configuration,
    contents,
    course,
    read_back,
    reading,
)
from twin.batch import assimilate
from twin.config import load_config
from twin.donors.artefact import save_prior
from twin.donors.prior import DonorPrior, preset_prior


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Driver:
    """A day and a bit of a batch in closed mode; read only."""
    folder = tmp_path_factory.mktemp("desk")
    driver = Driver(configuration(folder), Journal.open(folder))
    for sent in course(1.1):
        driver.send(sent)
    assert not contents(driver.outputs, "rejected")
    return driver


def fresh(tmp_path: Path, **changes: Any) -> Desk:
    return Desk("s", "u", settings_of(configuration(tmp_path, **changes)), 1)


def tell(desk: Desk, *messages: Sent, at: Any = WALL) -> tuple[Desk, list[Any]]:
    outputs: list[Any] = []
    for suffix, content in messages:
        desk, said = step(desk, suffix, json.dumps(content).encode(), at)
        outputs.extend(said)
    return desk, outputs


def reason(outputs: list[Any]) -> str:
    assert [o.suffix for o in outputs] == ["rejected"]
    return str(json.loads(outputs[0].payload)["reason"])


def test_everything_said_is_valid_under_the_published_document(played: Driver) -> None:
    said = [o for o in played.outputs if o.publish]
    assert len(said) > 50
    for output in said:
        validate(f"{played.desk.root}/{output.suffix}", output.payload)


def test_every_message_counts_up(played: Driver) -> None:
    said = [json.loads(o.payload)["seq"] for o in played.outputs if o.publish and o.payload]
    assert sorted(said) == list(range(len(said)))


def test_a_decision_is_taken_every_six_hours_and_acted_on_once(played: Driver) -> None:
    plans = contents(played.outputs, "plan")
    assert [parse_time(p["at"]) - START for p in plans] == [timedelta(hours=6 * k) for k in range(1, 5)]
    overrides = contents(played.outputs, "override/perfusion")
    assert len(overrides) == len([p for p in plans if p["override"]]) > 0
    for o in overrides:
        assert parse_time(o["valid_until"]) - parse_time(o["valid_from"]) == timedelta(hours=7)
        assert o["unit"] == "1/d"
    assert len({o["cmd_id"] for o in contents(played.outputs, "override/")}) == len(
        contents(played.outputs, "override/")
    )


def test_overrides_and_plan_come_before_the_estimate_that_rests_on_them(played: Driver) -> None:
    suffixes = [o.suffix for o in played.outputs if o.publish]
    for k, suffix in enumerate(suffixes):
        if suffix.startswith("override/"):
            assert suffixes.index("plan", k) < suffixes.index("estimate", k)


def test_overrides_carry_an_expiry_and_are_never_retained(played: Driver) -> None:
    for o in played.outputs:
        assert (o.expires_at is not None) == o.suffix.startswith("override/")
        if o.suffix.startswith("override/"):
            assert not o.retain
        if o.suffix in ("estimate", "forecast") or (o.suffix == "plan" and o.publish):
            assert o.retain


def test_the_estimate_stands_at_the_newest_time_stamp(played: Driver) -> None:
    suffix, content = reading("capacitance", 0.3, "pF/cm", 1.2)
    _, said = step(played.desk, suffix, json.dumps(content).encode(), WALL)
    desk, outputs = estimate(tell(played.desk, (suffix, content))[0])
    assert not contents(said, "rejected")
    assert contents(outputs, "estimate")[0]["at"] == content["sampled_at"]
    assert desk.running is not None


def test_the_estimate_has_every_state_with_unit_and_order(played: Driver) -> None:
    last = contents(played.outputs, "estimate")[-1]
    assert set(last["state"]) >= {
        "viable_density", "dead_density", "viability", "viable_cells", "glucose", "lactate", "glutamine", "ammonia",
        "cytokine", "car_fraction", "exhausted_fraction", "volume",
    }  # fmt: skip
    for name, q in {**last["state"], **last["parameters"]}.items():
        assert q["q05"] < q["mean"] < q["q95"], name
        assert q["sd"] > 0
        assert q["unit"]
    assert {"mu_max", "capacitance_gain"} <= set(last["parameters"])
    assert set(last["nis"]) >= {"capacitance", "glucose", "viable_density"}


def test_the_forecast_is_of_the_future_and_probable(played: Driver) -> None:
    ahead = contents(played.outputs, "forecast")[-1]
    band = ahead["bands"]["viable_density"]
    assert parse_time(band["t"][0]) == parse_time(ahead["from"])
    assert len(band["t"]) <= 60
    assert all(low <= mid <= high for low, mid, high in zip(band["q05"], band["q50"], band["q95"], strict=True))
    assert set(ahead["p_pass"]) == {"viable_cells", "viability", "car_fraction", "exhausted_fraction"}
    assert 0 <= ahead["p_release"] <= min(ahead["p_pass"].values())


def test_nothing_is_sent_in_shadow_or_advisory_mode(tmp_path: Path) -> None:
    for mode in ("shadow", "advisory"):
        desk, said = tell(fresh(tmp_path, mode=mode), *course(0.3))
        assert desk.running is not None
        assert len(contents(said, "plan")) == 1
        assert contents(said, "forecast")
        assert not contents(said, "override/")


def test_the_same_commands_whoever_says_them(tmp_path: Path) -> None:
    """The id of a command depends on unit, batch, time and actuator: a restart cannot make a second one of it."""
    one, two = (tell(replace(fresh(tmp_path), epoch=e, seq=9 * e), *course(0.3))[1] for e in (1, 5))
    ids = [[o["cmd_id"] for o in contents(said, "override/")] for said in (one, two)]
    assert ids[0] == ids[1] != []
    assert {o["epoch"] for o in contents(two, "override/")} == {5}


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (reading("glucose", 20.0, "mM", 1.3, batch="B002"), "unknown_batch"),
        (reading("glucose", 20.0, "mM", -0.1, seq=0), "before_start"),
        (reading("glucose", 20.0, "mM", 9.0), "from_the_future"),
        (reading("glucose", 20.0, "mg", 1.3), "bad_unit"),
        (reading("glucose", 20.0, "mM", 1.3, quality="bad"), "bad_quality"),
        (read_back("perfusion", 0.5, 30.0), "from_the_future"),
        (batch_start(donor="other"), "batch_exists"),
        (("event/medium", {**MediumChange.example, "medium": "lemonade", "at": time_text(START + timedelta(days=1.3))}), "unknown_entry"),
        (("estimate", {}), "missing_field"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_and_changes_nothing(played: Driver, sent: Sent, code: str) -> None:
    desk, said = tell(played.desk, sent)
    assert reason(said) == code
    assert desk.running is played.desk.running
    assert estimate(desk)[1][0].payload.split(b'"seq"')[0] == estimate(played.desk)[1][0].payload.split(b'"seq"')[0]


def test_conflicting_content_under_one_id_is_refused(played: Driver) -> None:
    desk, _ = tell(played.desk, reading("glucose", 20.0, "mM", 1.2))
    _, said = tell(desk, reading("glucose", 21.0, "mM", 1.2))
    assert reason(said) == "conflict"


@pytest.mark.parametrize("field", ["preset", "medium", "recipe", "targets"])
def test_a_batch_of_unknown_entries_does_not_start(tmp_path: Path, field: str) -> None:
    desk, said = tell(fresh(tmp_path), batch_start(**{field: "none_such"}))
    assert reason(said) == "unknown_entry"
    assert "none_such" in said[0].payload.decode()
    assert desk.running is None


def test_a_prior_artefact_is_what_a_batch_starts_from(tmp_path: Path) -> None:
    process = load_config("car_nk")
    plain = preset_prior(process)
    sharp = DonorPrior(plain.names, plain.mean + 0.1, plain.cov / 4)
    points = np.random.default_rng(0).multivariate_normal(sharp.mean, sharp.cov, 50)
    save_prior(tmp_path / "own", sharp, points, {}, {"process": "car_nk"})
    save_prior(tmp_path / "foreign", sharp, points, {}, {"process": "cho"})
    desk, _ = tell(fresh(tmp_path, prior=str(tmp_path / "own")), batch_start())
    assert desk.running is not None
    batch = desk.running.session.batch
    assert batch.donor_prior.mean.tolist() == sharp.mean.tolist()
    usual, _ = tell(fresh(tmp_path), batch_start())
    assert usual.running is not None
    assert usual.running.opened.digest != desk.running.opened.digest
    desk, said = tell(fresh(tmp_path, prior=str(tmp_path / "foreign")), batch_start())
    assert (reason(said), desk.running) == ("unknown_entry", None)


def test_a_batch_larger_than_its_vessel_does_not_start(tmp_path: Path) -> None:
    assert reason(tell(fresh(tmp_path), batch_start(volume_l=50.0))[1]) == "out_of_range"


def test_facts_before_any_batch_are_refused(tmp_path: Path) -> None:
    desk, said = tell(fresh(tmp_path), reading("glucose", 20.0, "mM", 0.1))
    assert reason(said) == "unknown_batch"
    assert estimate(desk)[1] == ()


def test_a_defect_is_refused_as_internal_and_the_desk_stands(played: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("no such luck")

    monkeypatch.setattr("service.desk.verbs.receive", broken)
    desk, said = tell(played.desk, reading("glucose", 20.0, "mM", 1.2))
    assert reason(said) == "internal"
    assert desk.running is played.desk.running


# --- facts -----------------------------------------------------------------------------------------------------------


def test_said_twice_is_known_once(played: Driver) -> None:
    again = [*course(1.1)]
    desk, said = tell(played.desk, *again)
    assert said == []
    assert desk.running is not None
    assert played.desk.running is not None
    assert desk.running.session.batch.belief == played.desk.running.session.batch.belief


def test_a_correction_of_a_correction_is_of_the_first(played: Driver) -> None:
    assert played.desk.running is not None
    before = len(played.desk.running.session.batch.evidence)
    first = reading("lactate", 2.0, "mM", 0.4, id="A")
    second = reading("lactate", 2.2, "mM", 0.4, id="B", supersedes="A", version=2)
    third = reading("lactate", 2.4, "mM", 0.4, id="C", supersedes="B", version=3)
    desk, said = tell(played.desk, first, second, third, second)
    assert said == []
    assert desk.running is not None
    about = [m for m in desk.running.session.batch.evidence if m.id in ("A", "B", "C")]
    assert {m.id for m in about} == {"A"}
    assert max(about, key=lambda m: m.version).value == 2.4
    alone, _ = tell(played.desk, reading("lactate", 2.4, "mM", 0.4, id="A", version=3))
    assert alone.running is not None
    assert np.array_equal(desk.running.session.batch.belief.mean, alone.running.session.batch.belief.mean)
    assert before > 0


@pytest.mark.parametrize(
    ("actuator", "rate", "possible"),
    [("perfusion", 500.0, False), ("perfusion", 3.1, False), ("perfusion", 2.9, True), ("bleed", 0.2, False),
     ("bleed", 0.05, True), ("feed", 10.54, True), ("feed", 500.0, False), ("cytokine_dose", 901.0, False),
     ("cytokine_dose", 899.0, True)],
)  # fmt: skip
def test_a_read_back_that_no_pump_can_do_is_refused(played: Driver, actuator: str, rate: float, possible: bool) -> None:
    desk, said = tell(played.desk, read_back(actuator, rate, 1.12))
    if possible:
        assert "rejected" not in [o.suffix for o in said]
    else:
        assert reason(said) == "out_of_range"
        assert desk.running is played.desk.running


def test_a_bolus_of_a_recorded_fed_batch_is_taken(tmp_path: Path) -> None:
    begin = batch_start(preset="cho", medium="cho_fed_batch", recipe="none", targets="cho", volume_l=1.0)
    at = 3.2  # after a pause of three days
    desk, said = tell(
        fresh(tmp_path, policy="none", sensors="archive", limits="cho"),
        begin, read_back("feed", 10.54, at), read_back("feed", 0.0, at + 0.01), read_back("perfusion", 0.0, at + 0.02),
    )  # fmt: skip
    assert "rejected" not in [o.suffix for o in said], [o.payload for o in said if o.suffix == "rejected"]
    _, said = estimate(desk)
    assert not [f for f in json.loads(said[0].payload)["flags"] if f.startswith("belief")]


@pytest.mark.parametrize(("value", "flag"), [(float("nan"), "belief_not_finite"), (np.log(1e6), "belief_out_of_range")])
def test_an_impossible_belief_is_flagged_and_raises_an_alarm_once(
    played: Driver, monkeypatch: pytest.MonkeyPatch, value: float, flag: str
) -> None:
    assert played.desk.running is not None
    batch = played.desk.running.session.batch
    mean = batch.belief.mean.copy()
    mean[batch.layout.index("viable")] = value
    with monkeypatch.context() as patched:
        patched.setattr("service.desk.views.believe_at", lambda b, t: replace(b.belief, mean=mean))
        desk, said = estimate(played.desk)
        assert flag in json.loads(said[0].payload)["flags"]
        assert f"alarm/{flag}" in [o.suffix for o in said]
        assert [o.suffix for o in estimate(desk)[1]] == ["estimate"]
    assert (f"alarm/{flag}", b"") in [(o.suffix, o.payload) for o in estimate(desk)[1]]


def test_a_late_sample_counts_when_it_was_drawn(played: Driver) -> None:
    desk, said = tell(played.desk, reading("lactate", 2.0, "mM", 0.4))
    assert said == []
    assert desk.running is not None
    fact = next(m for m in desk.running.session.batch.evidence if m.channel == "lactate")
    assert (round(fact.sampled_at, 9), fact.received_at) == (0.4, desk.running.session.clock)


def test_a_new_medium_is_resolved_to_its_composition(played: Driver) -> None:
    at = time_text(START + timedelta(days=1.15))
    desk, said = tell(played.desk, ("event/medium", {**MediumChange.example, "at": at}))
    assert said == []
    assert desk.running is not None
    assert desk.running.session.batch.events[-1].detail["glucose"] == 25.0


def test_after_the_end_late_values_are_kept_and_nothing_is_decided(played: Driver) -> None:
    desk, said = tell(
        played.desk, batch_end(1.15), reading("lactate", 2.0, "mM", 1.1), reading("glucose", 20, "mM", 4.0)
    )
    assert [json.loads(o.payload)["note"] for o in said if o.suffix == "note"] == ["batch_ended"]
    assert not contents(said, "plan")
    assert desk.running is not None
    assert desk.running.session.batch.evidence[-1].channel == "glucose"
    assert "ended" in contents(list(estimate(desk)[1]), "estimate")[0]["flags"]


def test_a_new_batch_takes_the_place_of_the_old_one(played: Driver) -> None:
    later = time_text(START + timedelta(days=2))
    desk, said = tell(played.desk, batch_start(batch="B002", id="x", at=later))
    assert [json.loads(o.payload)["note"] for o in said if o.suffix == "note"] == ["batch_superseded", "batch_started"]
    assert desk.running is not None
    assert desk.running.message.batch == "B002"
    assert reason(tell(desk, reading("glucose", 20.0, "mM", 2.1))[1]) == "unknown_batch"
    assert reason(tell(desk, batch_start())[1]) == "batch_exists"


def test_the_volume_of_the_batch_converts_pump_rates(tmp_path: Path) -> None:
    desk, _ = tell(fresh(tmp_path), batch_start(volume_l=0.5), read_back("perfusion", 12.5, 0.1, unit="mL/h"))
    assert desk.running is not None
    assert desk.running.session.batch.applied[-1].rate == pytest.approx(0.6)
    assert desk.running.session.batch.process.initial.volume == 0.5


# --- the wall clock --------------------------------------------------------------------------------------------------


def test_under_the_wall_clock_now_is_when_we_heard(tmp_path: Path) -> None:
    desk = fresh(tmp_path, clock="wall")
    desk, said = tell(desk, batch_start(), reading("glucose", 20.0, "mM", 0.10), at=START + timedelta(days=0.2))
    assert contents(said, "rejected") == []
    assert desk.running is not None
    assert desk.running.session.clock == 0.2
    _, said = tell(desk, reading("glucose", 20.0, "mM", 0.3), at=START + timedelta(days=0.2))
    assert reason(said) == "from_the_future"


def test_silence_raises_an_alarm_that_the_next_message_clears(tmp_path: Path) -> None:
    heard = START + timedelta(hours=1)
    desk, _ = tell(fresh(tmp_path, clock="wall"), batch_start(), reading("glucose", 20.0, "mM", 0.01), at=heard)
    assert watch(desk, heard + timedelta(minutes=29))[1] == ()
    desk, said = watch(desk, heard + timedelta(minutes=31))
    assert contents(list(said), "alarm/edge_silent")[0]["severity"] == "critical"
    assert watch(desk, heard + timedelta(minutes=32))[1] == ()
    desk, after = tell(desk, reading("glucose", 20.0, "mM", 0.05), at=heard + timedelta(minutes=33))
    assert [(o.suffix, o.payload, o.retain) for o in after] == [("alarm/edge_silent", b"", True)]


def test_the_event_clock_knows_no_silence(played: Driver) -> None:
    assert watch(played.desk, WALL + timedelta(days=9))[1] == ()


# --- alarms, answers, restart ----------------------------------------------------------------------------------------


def test_a_lost_channel_raises_an_alarm_until_it_is_back(played: Driver) -> None:
    desk, said = estimate(tell(played.desk, reading("glucose", 20.0, "mM", 1.6))[0])
    codes = {a["code"] for a in contents(list(said), "alarm/")}
    assert codes == {"channel_lost-capacitance", "channel_lost-raman_glucose", "channel_lost-raman_lactate"}
    assert "lost:capacitance" in contents(list(said), "estimate")[0]["flags"]
    desk, said = estimate(tell(desk, reading("capacitance", 0.4, "pF/cm", 1.61))[0])
    assert [(o.suffix, o.payload) for o in said[1:]] == [("alarm/channel_lost-capacitance", b"")]


def test_a_refused_override_raises_an_alarm(played: Driver) -> None:
    at = time_text(START + timedelta(days=1.2))
    ack = {"cmd_id": "c1", "accepted": False, "applied_rate": None, "reason": "expired", "at": at, "seq": 1, "epoch": 1}
    desk, said = tell(played.desk, ("ack/c1", ack))
    assert contents(said, "alarm/override_refused")[0]["message"] == "override c1 refused: expired"
    _, said = tell(desk, ("ack/c1", {**ack, "accepted": True, "applied_rate": 0.5}))
    assert [(o.suffix, o.payload) for o in said] == [("alarm/override_refused", b"")]


def ask(desk: Desk, verb: str, root: str = "celltwin/v1/s/u", **more: Any) -> dict[str, Any]:
    _, said = tell(desk, (f"query/{verb}", {"reply_to": f"{root}/reply/panel", "correlation": "q7", **more}))
    if [o.suffix for o in said] == ["rejected"]:
        return dict(json.loads(said[0].payload))
    assert [(o.suffix, o.kind) for o in said] == [("reply/panel", None)]
    validate(f"{desk.root}/reply/panel", said[0].payload)
    answer = json.loads(said[0].payload)
    assert answer["correlation"] == "q7"
    return dict(answer)


def test_queries_are_answered_where_they_ask(played: Driver, tmp_path: Path) -> None:
    assert ask(played.desk, "state")["estimate"]["batch"] == "B001"
    assert ask(played.desk, "forecast")["forecast"]["p_pass"]
    assert ask(fresh(tmp_path), "state")["ok"] is False
    refused = ask(played.desk, "approve", basis="x", operator="ab", reason="why not")
    assert (refused["ok"], bool(refused["reason"])) == (False, True)
    assert ask(played.desk, "state", root="celltwin/v1/s/other")["reason"] == "bad_value"


def test_what_if_compares_like_with_like(played: Driver) -> None:
    same = ask(played.desk, "whatif", actuator="perfusion", factor=1.0, hours=6.0)["forecast"]["bands"]["lactate"]
    none = ask(played.desk, "whatif", actuator="perfusion", factor=0.0, hours=48.0)["forecast"]["bands"]["lactate"]
    again = ask(played.desk, "whatif", actuator="perfusion", factor=1.0, hours=6.0)["forecast"]["bands"]["lactate"]
    assert same == again
    assert same["q50"][0] == none["q50"][0]
    assert none["q50"][8] > same["q50"][8]  # two days without perfusion leave more lactate


def test_a_restart_changes_epoch_and_count_only(played: Driver) -> None:
    desk = restarted(played.desk, played.desk.settings, 2)
    assert (desk.epoch, desk.seq) == (2, 0)
    assert desk.running is played.desk.running


def test_a_belief_that_is_not_finite_is_said_and_sends_nothing(played: Driver) -> None:
    running = played.desk.running
    assert running is not None
    batch = running.session.batch
    prior = DonorPrior(batch.donor_prior.names, batch.donor_prior.mean, batch.donor_prior.cov)
    point = batch.checkpoints[-1]
    bad = replace(point, belief=replace(point.belief, mean=point.belief.mean * float("nan")))
    sick = replace(batch, donor_prior=prior, checkpoints=(*batch.checkpoints[:-1], bad))
    desk = replace(played.desk, running=replace(running, session=replace(running.session, batch=sick)))
    desk, said = tell(desk, reading("temperature", 37.0, "degC", 1.26))
    assert not contents(said, "override/")
    assert contents(said, "alarm/decision-no_override")
    flagged = contents(list(estimate(desk)[1]), "estimate")[0]
    assert flagged["flags"][0] == "belief_not_finite"
    assert flagged["state"] == {}


def test_the_pure_core_agrees(played: Driver) -> None:
    """The desk adds nothing to `twin.batch`: the same facts in another order give the same belief, bit for bit."""
    assert played.desk.running is not None
    batch = played.desk.running.session.batch
    again = replace(batch, evidence=(), superseded=(), innovations=(), checkpoints=())
    for m in reversed(batch.evidence):
        again = assimilate(again, m)
    assert again.belief == batch.belief
