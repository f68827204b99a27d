"""What was believed, and what is believed of a past time: `query/state`."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from controllers.loop import basis_of
from service.desk import Desk
from service.desk.answers import until
from service.messages import time_text
from tests.service.batch_driver import START, Driver, contents, reading, tell
from twin.batch import as_known, believe_at
from twin.history import Batch


def batch_of(desk: Desk) -> Batch:
    assert desk.running is not None
    return desk.running.session.batch


def wire(day: float) -> str:
    return time_text(START + timedelta(days=day))


def ask(desk: Desk, **about: Any) -> dict[str, Any]:
    content = {"reply_to": "celltwin/v1/s/u/reply/p", "correlation": "c", **about}
    after, said = tell(desk, ("query/state", content))
    assert after.running is desk.running
    return contents(said, "reply/p")[0]


@pytest.fixture(scope="module")
def revised(played: Driver) -> Desk:
    """A desk that has heard on day 1.1 of a lactate of day 0.4."""
    desk, said = tell(played.desk, reading("lactate", 0.85, "mM", 0.4, id="late"))
    assert said == []
    return desk


def test_now_is_the_newest_estimate(revised: Desk) -> None:
    reply = ask(revised)
    assert reply["ok"]
    assert ask(revised, at=reply["estimate"]["at"])["estimate"]["basis"] == reply["estimate"]["basis"]
    assert ask(revised, known_by=reply["estimate"]["at"])["estimate"]["state"] == reply["estimate"]["state"]


def test_belief_then_and_belief_now_of_the_same_time_differ_by_what_came_late(revised: Desk, played: Driver) -> None:
    now, then = ask(revised, at=wire(0.5)), ask(revised, at=wire(0.5), known_by=wire(0.5))
    assert now["estimate"]["at"] == then["estimate"]["at"] == wire(0.5)
    assert now["estimate"]["state"]["lactate"]["mean"] > then["estimate"]["state"]["lactate"]["mean"]
    untold = ask(played.desk, at=wire(0.5), known_by=wire(0.5))["estimate"]
    assert then["estimate"]["state"] == untold["state"]
    assert "lactate" in now["estimate"]["health"]["newest"]
    assert "lactate" not in then["estimate"]["health"]["newest"]
    assert then["estimate"]["health"]["revisions"]["n"] == 0


def test_what_was_expected_then_of_a_later_time(revised: Desk) -> None:
    """A prediction: at day 1 with what was known on day 0.5."""
    seen = ask(revised, at=wire(1.0), known_by=wire(0.5))["estimate"]
    assert (
        seen["state"]["viable_density"]["sd"] > ask(revised, at=wire(1.0))["estimate"]["state"]["viable_density"]["sd"]
    )
    batch = as_known(batch_of(revised), 0.5)
    assert seen["basis"] == basis_of(batch, believe_at(batch, 1.0))


@pytest.mark.parametrize("day", [0.0, 0.2, 0.5, 0.75, 1.05])
def test_the_batch_of_a_past_time_believes_there_what_the_whole_one_does(revised: Desk, day: float) -> None:
    whole = batch_of(revised)
    past = until(whole, day)
    assert believe_at(past, day) == believe_at(whole, day)
    assert past.innovations == tuple(i for i in whole.innovations if i.time <= day)
    assert all(w.at <= day for w in past.watches.values())


@pytest.mark.parametrize("day", [-0.1, 1.6, 40.0])
def test_a_time_that_is_no_past_of_this_batch_is_refused(revised: Desk, day: float) -> None:
    reply = ask(revised, at=wire(day))
    assert not reply["ok"]
    assert reply["estimate"] is None
    assert "query/forecast" in reply["reason"]
