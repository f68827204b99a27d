"""The desk of one unit: what the twin makes of every message, as a pure state machine.

The live service, a restart and `celltwin replay` all call the same three functions, so what was decided can be recomputed:

    step(desk, suffix, payload, at)   one received message          -> (desk, outputs)   never raises for a bad message
    estimate(desk)                    after the inbox was drained   -> (desk, outputs)
    watch(desk, at)                   from time to time, wall clock -> (desk, outputs)

Rule 1. No clock: `at` is the journalled receive time. Under `clock: event` it is not even looked at.
Rule 2. Outputs are values. The driver journals those with a `kind`, in order, and only then publishes those with `publish`.
        Each run begins with the row of `service.replay.started_entry`: it says what the desks depend on besides messages.
Rule 3. A message is refused as a whole, with a stable reason, and leaves the desk as it was.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

import numpy as np

from controllers.loop import Session, receive
from controllers.outlook import declared
from controllers.plan import Decision
from service.desk.alarms import after_estimate, alarms, silence
from service.desk.answers import answer
from service.desk.facts import fact_of, heard, joined
from service.desk.health import look
from service.desk.records import AlarmText, Desk, Memory, Output, Running, Settings, Told, note, output
from service.desk.views import (
    decision_record,
    estimate_message,
    forecast_message,
    override_messages,
    plan_message,
    seed_of,
)
from service.messages import (
    Ack,
    ApproveQuery,
    BatchEnd,
    BatchStart,
    Calibration,
    EventMessage,
    ForecastMessage,
    ForecastQuery,
    MeasurementMessage,
    MediumChange,
    Message,
    OperatorAction,
    ReadBack,
    Rejected,
    Rejection,
    StageChange,
    StateQuery,
    WhatIfQuery,
    decode,
    event_fact,
    linked,
    root_of,
)
from service.messages.base import one_line
from twin.batch import assimilate
from twin.estimation.diagnosis import Diagnosis, diagnose
from twin.evidence import Measurement, Refused
from twin.history import Batch

RISK = 0.5
"""Probability of release below which an alarm is raised."""


def step(desk: Desk, suffix: str, payload: bytes, at: datetime) -> Told:
    """One received message, raw. Whatever it is, the answer is a desk and what to say; a refusal is said as `rejected`."""
    try:
        return handle(desk, decode(suffix, payload), at)
    except Rejected as error:
        return refuse(desk, f"{desk.root}/{suffix}", error, at)
    except Exception as error:  # noqa: BLE001 - whatever a message provokes, the service stays up and says so
        return refuse(desk, f"{desk.root}/{suffix}", Rejected("internal", f"{type(error).__name__}: {error}"), at)


def refuse(desk: Desk, topic: str, error: Rejected, at: datetime) -> Told:
    """Say that a message was refused."""
    said = Rejection(
        topic=one_line(topic), reason=error.reason, detail=error.detail, at=at, seq=desk.seq, epoch=desk.epoch
    )  # fmt: skip
    return replace(desk, seq=desk.seq + 1), (output(said, "rejected"),)


def handle(desk: Desk, message: Message, at: datetime) -> Told:
    """One decoded message. Raises `Rejected`; the desk is then as it was."""
    match message:
        case BatchStart():
            return _begin(desk, message, at)
        case (
            MeasurementMessage()
            | ReadBack()
            | BatchEnd()
            | StageChange()
            | Calibration()
            | MediumChange()
            | OperatorAction()
        ):
            return _take(desk, _of_batch(desk, message.batch), message, at)
        case Ack():
            return _acknowledged(desk, message, at)
        case StateQuery() | ForecastQuery() | WhatIfQuery() | ApproveQuery():
            return answer(desk, message)
        case _:
            raise Rejected("unknown_topic", f"{message.suffix!r} is what the twin sends, not what it takes")


def estimate(desk: Desk) -> Told:
    """What is believed at the newest time, and the alarms that follow; nothing when no batch has started."""
    running = desk.running
    if running is None:
        return desk, ()
    session = running.session
    seen = look(session.batch, session.clock)
    said = estimate_message(session, running.start, running.opened.units, desk.seq, desk.epoch, seen)
    desk, more = after_estimate(replace(desk, seq=desk.seq + 1), running, seen, said.at)
    return desk, (output(said, "estimate"), *more)


def watch(desk: Desk, at: datetime) -> Told:
    """Under the wall clock: say it when the edge of a running batch has fallen silent. `at` is journalled as the row's time."""
    running = desk.running
    if running is None or desk.settings.clock == "event":
        return desk, ()
    return alarms(desk, "edge_silent", silence(running, at), at)


def restarted(desk: Desk, settings: Settings, epoch: int) -> Desk:
    """The desk under a new run of the service: new fencing epoch, perhaps new settings; the batch goes on."""
    return replace(desk, settings=settings, epoch=epoch, seq=0)


# --- batches ---------------------------------------------------------------------------------------------------------


def _begin(desk: Desk, message: BatchStart, at: datetime) -> Told:
    running = desk.running
    if running is not None and running.message.batch == message.batch:
        if running.message.model_copy(update={"seq": message.seq, "epoch": message.epoch}) == message:
            return desk, ()  # said twice, as QoS 1 may
        raise Rejected("batch_exists", f"batch {message.batch!r} has started with other content; name another")
    if message.batch in desk.finished:
        raise Rejected("batch_exists", f"batch {message.batch!r} has been on this unit before; name another")
    opened = desk.settings.open(message)
    outputs: list[Output] = []
    finished = desk.finished
    if running is not None:
        finished = (*finished, running.message.batch)
        if not running.session.ended:
            outputs.append(note("batch_superseded", running.message.batch, message.at))
    desk, cleared = alarms(replace(desk, memory=Memory()), "", {}, message.at)
    outputs.extend(cleared)
    fresh = Running(Session(opened.batch), opened, opened.policy, message.at, message, at)
    session, _ = receive(fresh.session, event_fact(message, message.at), fresh.policy)
    outputs.append(note("batch_started", message.batch, message.at, opened.digest))
    return replace(desk, running=replace(fresh, session=session), finished=finished), tuple(outputs)


def _of_batch(desk: Desk, batch: str) -> Running:
    running = desk.running
    if running is None or running.message.batch != batch:
        known = "none is running" if running is None else f"{running.message.batch!r} is"
        raise Rejected(
            "unknown_batch", f"batch {batch!r} is not on unit {desk.unit!r} ({known}); send event/batch_start first"
        )
    return running


def _take(desk: Desk, running: Running, message: MeasurementMessage | ReadBack | EventMessage, at: datetime) -> Told:
    if isinstance(message, MeasurementMessage):
        running = replace(running, links=linked(running.links, message))
    fact = fact_of(desk, running, message, at)
    session, decisions = running.session, tuple[Decision, ...]()
    try:
        if session.ended and isinstance(fact, Measurement):
            batch = assimilate(session.batch, fact)  # a late laboratory value: nothing is decided any more
            session = replace(session, batch=batch, clock=max(session.clock, fact.received_at))
        else:
            session, decisions = receive(session, fact, running.policy)
        if isinstance(message, MeasurementMessage):
            batch = joined(session.batch, message.id, root_of(running.links, message.id))
            session = replace(session, batch=batch)
    except Refused as error:
        raise Rejected(error.reason, str(error)) from None
    alive = heard(running, message, at)
    lives, running = alive is not running, replace(alive, session=session)
    outputs: list[Output] = []
    for k, decision in enumerate(decisions):
        desk, running, said = _announce(desk, running, decision, newest=k == len(decisions) - 1)
        outputs.extend(said)
    if session.ended and isinstance(message, BatchEnd):
        outputs.append(note("batch_ended", message.batch, message.at))
        desk, cleared = alarms(desk, "", {}, message.at)
        outputs.extend(cleared)
    desk, cleared = _alive(desk, running, at) if lives else (desk, ())
    return replace(desk, running=running), (*outputs, *cleared)


def _alive(desk: Desk, running: Running, at: datetime) -> Told:
    """The edge has given a sign of life: it is not silent, unless every probe of it is still lost."""
    return (desk, ()) if silence(running, None) else alarms(desk, "edge_silent", {}, at)


# --- decisions -------------------------------------------------------------------------------------------------------


def _announce(desk: Desk, running: Running, decision: Decision, *, newest: bool) -> tuple[Desk, Running, list[Output]]:
    """Journal a decision; publish plan, forecast and, in closed mode, overrides. Only the newest one may act."""
    batch, start, now = running.session.batch, running.start, running.session.clock
    outputs = [Output("plan", decision_record(decision, batch), "decision", publish=False)]
    if not newest:
        return desk, running, outputs
    if desk.settings.mode == "closed" and decision.valid_until > now:
        overrides = override_messages(decision, batch, desk.root, start, desk.seq, desk.epoch)
        outputs.extend(output(o, "sent") for o in overrides)
        desk = replace(desk, seq=desk.seq + len(overrides))
    plan = plan_message(decision, batch, start, desk.seq, desk.epoch)
    desk = replace(desk, seq=desk.seq + 1)
    outputs.append(output(plan, "sent"))
    diagnosis, unjudged = _diagnosed(batch, decision.at, running.diagnosis)
    running = replace(running, diagnosis=diagnosis)
    ahead = _ahead(desk, running, decision)
    if ahead is not None:
        desk, running = replace(desk, seq=desk.seq + 1), replace(running, forecast=ahead)
        outputs.append(output(ahead, "sent"))
    wanted: dict[str, AlarmText] = {}
    if decision.control is None and desk.settings.mode == "closed":
        why = "; ".join(decision.reasons)
        wanted["decision-no_override"] = AlarmText(
            "warning", None, why, "the edge keeps to its recipe; see the reasons"
        )
    if unjudged is not None:
        wanted["decision-no_diagnosis"] = AlarmText(
            "warning",
            None,
            f"pumps, bag and cells were not judged: {unjudged}",
            "see the estimate; weigh what is delivered",
        )
    if ahead is None:
        why = "no forecast can be made from the belief"
        wanted["decision-no_forecast"] = AlarmText("critical", None, why, "see the estimate")
    elif ahead.p_release < RISK:
        why = f"probability of release {ahead.p_release:.2f}"
        wanted["decision-release_at_risk"] = AlarmText("warning", None, why, "see the forecast; consider to intervene")
    desk, said = alarms(desk, "decision-", wanted, plan.at)
    return desk, running, [*outputs, *said]


def _diagnosed(batch: Batch, at: float, standing: Diagnosis | None) -> tuple[Diagnosis | None, str | None]:
    """What explains the last days: the pumps, the bag, the cells, or nothing; or why that cannot be said.

    At inoculation there is nothing to explain yet: neither.
    """
    if not at > 0.0:
        return None, None
    try:
        with np.errstate(all="ignore"):
            found = diagnose(batch, at, standing)
    except (ArithmeticError, ValueError) as error:  # numpy's LinAlgError is a ValueError
        return None, f"{type(error).__name__}: {error}"
    return (found, None) if np.isfinite(found.best.posterior) else (None, "the belief is not a number")


def _ahead(desk: Desk, running: Running, decision: Decision) -> ForecastMessage | None:
    """Where the batch is heading: under the plan where it is acted on, else under the recipe. None from a sick belief."""
    batch = running.session.batch
    followed = decision.plan if decision.control is not None and desk.settings.mode == "closed" else None
    try:
        futures = declared(batch, decision.at, followed, n=desk.settings.futures, seed=seed_of(batch.id, decision.at))
        return forecast_message(futures, batch, running.start, desk.seq, desk.epoch)
    except (ArithmeticError, ValueError):  # numpy's LinAlgError is a ValueError
        return None


def _acknowledged(desk: Desk, message: Ack, at: datetime) -> Told:
    if (running := desk.running) is None:
        raise Rejected("unknown_batch", f"no batch has started on unit {desk.unit!r}: no override waits for an answer")
    refused = f"override {message.cmd_id} refused: {message.reason}"
    text = AlarmText("warning", None, refused, "the edge keeps to its recipe")
    alive = heard(running, message, at)
    desk, said = alarms(desk, "override_refused", {} if message.accepted else {"override_refused": text}, message.at)
    desk, cleared = _alive(desk, alive, at) if alive is not running else (desk, ())
    return replace(desk, running=alive), (*said, *cleared)
