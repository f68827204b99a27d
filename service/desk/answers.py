"""Answers to queries: they look at a desk and change nothing on it but the count of messages."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import replace

from controllers import outlook
from service.desk.health import look
from service.desk.records import Desk, Running, Told, output
from service.desk.views import HALF, estimate_message, forecast_message, seed_of, whatif_part
from service.messages import (
    Estimate,
    ForecastMessage,
    ForecastQuery,
    QueryMessage,
    Rejected,
    ReplyMessage,
    StateQuery,
    WhatIfPart,
    WhatIfQuery,
    days,
    instant,
    time_text,
)
from service.messages.base import one_line
from twin.batch import Batch, as_known
from twin.futures import Schedule
from twin.history import replay
from twin.whatif.paired import whatif


def answer(desk: Desk, query: QueryMessage) -> Told:
    root, _, client = query.reply_to.rpartition("/reply/")
    if root != desk.root:
        raise Rejected("bad_value", f"reply_to must lie below {desk.root}/reply/")
    running, ok, reason = desk.running, True, "ok"
    belief, ahead, changed = None, None, None
    if running is None:
        ok, reason = False, "no batch has started on this unit"
    elif isinstance(query, StateQuery):
        ok, reason, belief = state_at(desk, running, query)
    elif isinstance(query, ForecastQuery):
        ahead = running.forecast
        ok, reason = (
            (True, "ok") if ahead is not None else (False, "no forecast yet: the first decision is 6 h after the start")
        )
    elif isinstance(query, WhatIfQuery):
        ok, reason, ahead, changed = what_if(desk, running, query)
    else:
        ok, reason = (
            False,
            "approvals are not taken over this interface; the mode is set in the service's configuration",
        )
    said = ReplyMessage(
        client=client, correlation=query.correlation, ok=ok, reason=reason, estimate=belief, forecast=ahead,
        whatif=changed, seq=desk.seq, epoch=desk.epoch,
    )  # fmt: skip
    return replace(desk, seq=desk.seq + 1), (output(said, None),)


def state_at(desk: Desk, running: Running, query: StateQuery) -> tuple[bool, str, Estimate | None]:
    """Whether a question about the state can be answered, why not, and the answer."""
    session, start = running.session, running.start
    at = session.clock if query.at is None else days(query.at, start)
    if not 0.0 <= at <= session.clock + 1e-9:
        newest = time_text(instant(session.clock, start))
        return (
            False,
            f"at: from {time_text(start)}, the start, to {newest}, the newest word; for later ask query/forecast",
            None,
        )
    batch = session.batch
    if query.known_by is not None:
        batch = as_known(batch, days(query.known_by, start))
    at = min(at, session.clock)
    batch = until(batch, at)
    asked = replace(session, batch=batch, ended=session.ended and at >= session.clock)
    seen = look(batch, at)
    return True, "ok", estimate_message(asked, start, running.opened.units, desk.seq, desk.epoch, seen)


def until(batch: Batch, at: float) -> Batch:
    """The batch without what was sampled after `at` [d]: the same belief there, and verdicts and health of that time."""
    count = bisect_right(batch.evidence, at, key=lambda m: m.sampled_at)
    if count == len(batch.evidence):
        return batch
    then = replace(
        batch,
        evidence=batch.evidence[:count],
        innovations=tuple(i for i in batch.innovations if i.time <= at),
        checkpoints=tuple(c for c in batch.checkpoints if c.count <= count),
    )
    return replay(then, count)


def what_if(
    desk: Desk, running: Running, query: WhatIfQuery
) -> tuple[bool, str, ForecastMessage | None, WhatIfPart | None]:
    """What edits of the schedule in force would change from now on; same seed as the plain forecast would have."""
    session, now = running.session, running.session.clock
    if session.ended:
        return False, "the batch has ended: nothing lies ahead", None, None
    try:
        batch, schedule = in_force(desk, running)
        found = whatif(
            batch, now, query.asked, schedule, n=desk.settings.futures, seed=seed_of(batch.id, now)
        )  # fmt: skip
    except (ArithmeticError, ValueError) as error:  # numpy's LinAlgError is a ValueError
        return False, one_line(str(error), 500), None, None
    ahead = forecast_message(found.after, session.batch, running.start, desk.seq, desk.epoch, HALF)
    return True, "ok", ahead, whatif_part(found, running.start)


def in_force(desk: Desk, running: Running) -> tuple[Batch, Schedule]:
    """The batch as it will be harvested, and what its pumps are expected to do: by the plan acted on, else the recipe."""
    session = running.session
    last = session.last.plan if session.last is not None and session.last.control is not None else None
    return outlook.in_force(session.batch, last if desk.settings.mode == "closed" else None)
