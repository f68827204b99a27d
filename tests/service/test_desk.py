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
from service.cli.edge import process_of
from service.config import EdgeConfig
from service.desk import Desk, estimate, restarted, step
from service.messages import MediumChange, parse_time, time_text
from tests.service.batch_driver import (
    START,
    WALL,
    Driver,
    Sent,
    batch_start,
    contents,
    course,
    fresh,
    read_back,
    reading,
    reason,
    tell,
)
from twin.config import load_config
from twin.donors.artefact import save_prior
from twin.donors.prior import DonorPrior, preset_prior


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


def test_a_restart_changes_epoch_and_count_only(played: Driver) -> None:
    desk = restarted(played.desk, played.desk.settings, 2)
    assert (desk.epoch, desk.seq) == (2, 0)
    assert desk.running is played.desk.running


# --- answers ---------------------------------------------------------------------------------------------------------


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


def test_what_if_by_edits_answers_with_differences_and_their_errors(played: Driver) -> None:
    whole = ask(played.desk, "whatif", edits=["perfusion=0 for 2d", "harvest on 12"])
    changed = whole["whatif"]
    assert changed["edits"] == "perfusion=0 for 48h; harvest on 12"
    assert set(changed["p_release"]) == {"before", "after", "delta", "se"}
    assert changed["delta"]["lactate"]["q50"][8] > 0.0
    assert list(changed["harvested"]["day"]["after"].values()) == pytest.approx([12.0] * 3, abs=1e-3)
    assert whole["forecast"]["p_release"] == changed["p_release"]["after"]
    scaled = ask(played.desk, "whatif", actuator="perfusion", factor=0.0, hours=48.0)
    assert scaled["whatif"]["delta"] == ask(played.desk, "whatif", edit="perfusion*0 for two days")["whatif"]["delta"]
    nothing = ask(played.desk, "whatif", edits=[])["whatif"]["delta"]
    assert {v for band in nothing.values() for q in ("q05", "q50", "q95") for v in band[q]} == {0.0}


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"edit": "glucose*2"}, "unknown actuator 'glucose'"),
        (
            {"edit": "feed*2", "actuator": "feed", "factor": 2.0, "hours": 1.0},
            "expected one of edits, edit, or actuator",
        ),
        ({"actuator": "feed", "factor": 2.0}, "actuator with factor and hours"),
        ({}, "expected one of edits, edit"),
        ({"edit": "feed*2 from 50"}, "begins on day 50, the harvest is on day 14"),
        ({"edit": "harvest on 1"}, "has passed"),
    ],
)
def test_an_edit_that_cannot_be_is_answered_with_what_was_expected(
    played: Driver, asked: dict[str, Any], words: str
) -> None:
    said = ask(played.desk, "whatif", **asked)
    assert words in said.get("detail", said["reason"])
    assert said.get("ok", False) is False


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (reading("glucose", 20.0, "mM", 1.3, batch="B002"), "unknown_batch"),
        (reading("glucose", 20.0, "mM", -0.1, seq=0), "before_start"),
        (reading("glucose", 20.0, "mM", 9.0), "from_the_future"),
        (reading("glucose", 20.0, "mg", 1.3), "bad_unit"),
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


def test_a_batch_over_the_wire_has_the_process_of_the_notebook(tmp_path: Path) -> None:
    desk, _ = tell(fresh(tmp_path), batch_start())
    assert desk.running is not None
    assert repr(desk.running.session.batch.process) == repr(load_config("car_nk"))
    edge = EdgeConfig.model_validate(
        {"site": "s", "unit": "u", "broker": {"url": "mqtt://127.0.0.1"}, "development": True, "preset": "car_nk"}
    )
    assert repr(process_of(edge)[1]) == repr(load_config("car_nk"))


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
