"""What a message means for the batch on the desk: once, when it was drawn, as a version of what it corrects."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from controllers.loop import basis_of
from service.desk import Desk, estimate
from service.messages import MediumChange, time_text
from tests.service.batch_driver import (
    START,
    Driver,
    batch_end,
    batch_start,
    contents,
    course,
    fresh,
    read_back,
    reading,
    reason,
    tell,
)
from twin.batch import apply, assimilate, start


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


def evidence(desk: Desk) -> tuple[Any, ...]:
    """What a batch knows, but for when it learnt it."""
    assert desk.running is not None
    batch = desk.running.session.batch
    superseded = sorted(batch.superseded, key=lambda m: (m.sampled_at, m.channel, m.id, m.version))
    facts = ([replace(m, received_at=0.0) for m in known] for known in (batch.evidence, superseded))
    return (*facts, batch.belief, basis_of(batch, batch.belief))


CHAIN = (
    reading("lactate", 2.0, "mM", 0.4, id="A"),
    reading("lactate", 2.2, "mM", 0.4, id="B", supersedes="A", version=2),
    reading("lactate", 2.4, "mM", 0.4, id="C", supersedes="B", version=3),
)


@pytest.mark.parametrize("order", list(permutations(range(3))))
@pytest.mark.parametrize("last", ["good", "bad"])
def test_a_chain_of_corrections_counts_once_in_any_order(played: Driver, order: tuple[int, ...], last: str) -> None:
    chain = (*CHAIN[:2], (CHAIN[2][0], {**CHAIN[2][1], "quality": last}))
    expected, said = tell(played.desk, *chain)
    assert said == []
    desk, said = tell(played.desk, *(chain[k] for k in order), chain[order[0]])
    assert said == []
    assert evidence(desk) == evidence(expected)
    about = [m.value for m in evidence(desk)[0] if m.channel == "lactate"]
    assert about == ([2.4] if last == "good" else [])


def test_a_correction_may_overtake_two_others(played: Driver) -> None:
    fourth = reading("lactate", 2.6, "mM", 0.4, id="D", supersedes="C", version=4)
    expected, _ = tell(played.desk, *CHAIN, fourth)
    desk, said = tell(played.desk, CHAIN[0], fourth, CHAIN[1], CHAIN[2])
    assert said == []
    assert evidence(desk) == evidence(expected)


def test_a_chain_that_contradicts_itself_is_refused(played: Driver) -> None:
    desk, _ = tell(played.desk, *CHAIN)
    for sent in (
        reading("lactate", 2.0, "mM", 0.4, id="A", supersedes="C", version=4),  # in a circle
        reading("lactate", 2.0, "mM", 0.4, id="C", supersedes="A", version=4),  # has corrected B before
    ):
        after, said = tell(desk, sent)
        assert reason(said) == "conflict"
        assert after.running is desk.running


def test_a_retracted_value_informs_nothing_and_is_kept(played: Driver) -> None:
    first = reading("lactate", 9.0, "mM", 0.4, id="A")
    told, _ = tell(played.desk, first)
    assert evidence(told)[2] != evidence(played.desk)[2]
    by_version = reading("lactate", 9.0, "mM", 0.4, id="A", version=2, quality="bad")
    by_name = reading("lactate", 9.0, "mM", 0.4, id="B", supersedes="A", version=2, quality="bad")
    for retraction in (by_version, by_name):
        for sent in ((first, retraction), (retraction, first), (first, retraction, first, retraction)):
            desk, said = tell(played.desk, *sent)
            assert said == []
            assert evidence(desk)[0] == evidence(played.desk)[0]
            assert evidence(desk)[2:] == evidence(played.desk)[2:]
            kept = [(m.version, m.retracted) for m in evidence(desk)[1] if m.id == "A"]
            assert sorted(kept) == [(1, False), (2, True)]


def test_a_retracted_value_may_be_given_again(played: Driver) -> None:
    """The laboratory withdraws a count and repeats it: the repetition counts."""
    first = reading("lactate", 9.0, "mM", 0.4, id="A")
    void = reading("lactate", 9.0, "mM", 0.4, id="A", version=2, quality="bad")
    again = reading("lactate", 2.1, "mM", 0.4, id="A", version=3)
    desk, said = tell(played.desk, first, void, again)
    assert said == []
    assert [m.value for m in evidence(desk)[0] if m.channel == "lactate"] == [2.1]
    assert evidence(desk)[2] == evidence(tell(played.desk, again)[0])[2]


def test_a_value_that_was_bad_from_the_start_is_recorded_and_informs_nothing(played: Driver) -> None:
    desk, said = tell(played.desk, reading("lactate", 9.0, "mM", 1.2, quality="bad"))
    assert said == []
    assert evidence(desk)[0] == evidence(played.desk)[0]
    assert evidence(desk)[2:] == evidence(played.desk)[2:]
    assert [(m.value, m.retracted) for m in evidence(desk)[1]] == [(9.0, True)]
    assert estimate(desk)[1][0].payload != b""


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


def test_the_pure_core_agrees(played: Driver) -> None:
    """The desk adds nothing to `twin.batch`: the same facts in another order give the same belief, bit for bit."""
    assert played.desk.running is not None
    batch = played.desk.running.session.batch
    again = start(batch.id, batch.process, batch.donor_prior)
    for c in batch.applied:
        again = apply(again, c)
    for m in reversed(batch.evidence):
        again = assimilate(again, m)
    assert again.belief == batch.belief
