"""The course of inputs is a step function of the facts, whatever the order in which they were told."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twin.batch import apply, control_at, medium_at, note, perfused, start
from twin.config import load_config
from twin.donors.prior import preset_prior
from twin.evidence import ControlApplied, Event
from twin.inputs import course

PROCESS = load_config("car_nk")
EMPTY = start("b", PROCESS, preset_prior(PROCESS))

FACTS = st.lists(
    st.one_of(
        st.builds(
            lambda at, actuator, rate: ("applied", at, actuator, rate),
            st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0, 3.0]), st.sampled_from(["perfusion", "feed"]), st.sampled_from([0.0, 0.2, 1.0]),
        ),
        st.builds(lambda at, glucose: ("medium", at, "glucose", glucose), st.sampled_from([0.5, 1.0, 2.5]), st.sampled_from([10.0, 30.0])),
        st.builds(lambda at, channel: ("calibration", at, channel, 0.0), st.sampled_from([0.5, 2.0]), st.sampled_from(["ph", "do"])),
    ),
    max_size=9,
)  # fmt: skip


@given(facts=FACTS, seed=st.integers(0, 99))
@settings(max_examples=120, deadline=None)
def test_any_order_of_telling_gives_the_same_course(facts: list[tuple[str, float, str, float]], seed: int) -> None:
    told = list(enumerate(facts))
    random.Random(seed).shuffle(told)
    batch = EMPTY
    for number, (kind, at, name, value) in told:
        if kind == "applied":
            batch = apply(batch, ControlApplied(f"a{number}", at, name, value))
        else:
            detail = {"glucose": value} if kind == "medium" else {"channel": name}
            batch = note(batch, Event(f"e{number}", kind, at, detail))
    whole = course(PROCESS.theta.medium, batch.applied, batch.events)
    for t in (0.0, 0.25, 0.5, 0.75, 1.0, 1.6, 2.0, 2.7, 5.0):
        assert batch.course.at(t) == whole.at(t)
        spoken = [a for a in batch.applied if a.actuator == "perfusion" and a.at <= t]
        assert control_at(batch, t).perfusion == (spoken[-1].rate if spoken else 0.0)
        bags = [e for e in batch.events if e.kind == "medium" and e.at <= t]
        assert medium_at(batch, t).glucose == (bags[-1].detail["glucose"] if bags else PROCESS.theta.medium.glucose)
    assert sorted(batch.course.calibrations) == sorted(whole.calibrations)


def test_perfused_volumes_are_the_integral_of_the_read_backs() -> None:
    batch = EMPTY
    for k, (at, rate) in enumerate([(0.0, 0.0), (2.0, 0.5), (3.5, 1.0)]):
        batch = apply(batch, ControlApplied(f"p{k}", at, "perfusion", rate))
    assert perfused(batch, 1.0) == 0.0
    assert perfused(batch, 3.0) == pytest.approx(0.5)
    assert perfused(batch, 5.0) == pytest.approx(0.75 + 1.5)


def test_spans_end_at_changes_and_calibrations() -> None:
    batch = apply(EMPTY, ControlApplied("p", 1.0, "perfusion", 0.5))
    batch = note(batch, Event("c", "calibration", 1.5, {"channel": "ph"}))
    spans = list(batch.course.spans(0.5, 2.0))
    assert [(end, drive.control.perfusion, done) for end, drive, done in spans] == [
        (1.0, 0.0, ()), (1.5, 0.5, ("ph",)), (2.0, 0.5, ()),
    ]  # fmt: skip
    assert [end for end, *_ in batch.course.spans(1.5, 1.8)] == [1.8]
