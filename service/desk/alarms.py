"""Alarms: which are up, when they go, and how one event is kept from becoming many. A function of what the desk was told.

A code is one cause, with the channel after a hyphen where one is meant; what is up has a retained message of its own.

1. **Root cause.** When every probe of an edge is lost, that is one `edge_silent`, and no alarm a probe.
2. **Storm.** More than `MOST` new alarms of health within `STORM` are one `alarm_flood` that names them; what is critical
   is said all the same. When fewer than half as many are new, the flood is over and what still stands is said.
3. **Hysteresis.** Channels have it in `twin.estimation.screen`; what is said of the whole estimate stays up for `HOLD`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from types import MappingProxyType

from service.desk.health import Look
from service.desk.records import AlarmText, Desk, Memory, Output, Running, Told, output
from service.messages import Alarm, Severity, instant, time_text
from service.messages.base import one_line
from twin.estimation import health
from twin.estimation.pumps import pump_alarms
from twin.history import Batch

SILENCE = timedelta(minutes=30)
"""How long the edge of a running batch may give no sign of life before an alarm, under the wall clock."""

STORM = timedelta(minutes=10)
MOST = 10
"""More new alarms in ten minutes than one person can take in (EEMUA 191; ISA-18.2)."""

HOLD = timedelta(hours=6)
"""How long an alarm about the whole estimate outlives its cause, in batch time."""

DOUBTS: Mapping[str, str] = {
    "belief_not_finite": "the belief is not a number",
    "belief_out_of_range": "the belief lies where no culture can be",
}
"""Flags of an estimate that raise an alarm, and what they say."""

OTHERS = ("edge_silent", "override_refused", "decision-", *DOUBTS)
"""Alarms with a cause of their own; all others are of health."""

SEVERITIES: Mapping[str, Severity] = {"information": "info", "warning": "warning", "critical": "critical"}


def alarms(desk: Desk, family: str, wanted: Mapping[str, AlarmText], at: datetime) -> Told:
    """Raise the `wanted` alarms that are not up yet, clear those whose code begins with `family` that are no longer wanted."""
    return _settled(desk, frozenset(c for c in desk.alarms if c.startswith(family)), wanted, at)


def _settled(desk: Desk, mine: frozenset[str], wanted: Mapping[str, AlarmText], at: datetime) -> Told:
    up, outputs, seq = dict(desk.alarms), list[Output](), desk.seq
    for code in sorted(mine - wanted.keys()):
        del up[code]
        outputs.append(Output(f"alarm/{code}", b"", "sent", publish=True, retain=True))
    for code, text in sorted(wanted.items()):
        if code in up and text.since in (None, up[code].since):
            continue
        up[code] = Alarm.model_validate({
            "code": code, "severity": text.severity, "since": text.since or at, "channel": text.channel,
            "message": one_line(text.message, 400), "action": one_line(text.action, 400),
            "batch": desk.running.message.batch if desk.running else None, "seq": seq, "epoch": desk.epoch,
        })  # fmt: skip
        seq += 1
        outputs.append(output(up[code], "sent"))
    return replace(desk, alarms=MappingProxyType(up), seq=seq), tuple(outputs)


# --- the edge --------------------------------------------------------------------------------------------------------


def silence(running: Running, at: datetime | None) -> dict[str, AlarmText]:
    """The alarm that the edge is silent, if it is: no sign of life until `at` (None: not asked), or every probe lost."""
    if running.session.ended:
        return {}
    action = "check the edge, its power and the broker; laboratory samples carry the estimate until then"
    if at is not None and at - running.heard > SILENCE:
        return {
            "edge_silent": AlarmText(
                "critical", None, f"no sign of life of the edge since {time_text(running.heard)}", action
            )
        }
    probes = _lost_probes(running.session.batch, running.session.clock)
    if probes:
        return {"edge_silent": AlarmText("critical", None, f"every probe is lost: {', '.join(probes)}", action)}
    return {}


def _lost_probes(batch: Batch, now: float) -> tuple[str, ...]:
    """The probes that were heard, when there are several and all of them are lost."""
    probes = {c for c in batch.watches if batch.process.sensors[c].kind == "probe"}
    lost = {a.channel for a in health.channel_alarms(batch, now) if a.code == "lost"}
    return tuple(sorted(probes)) if len(probes) > 1 and probes <= lost else ()


# --- health ----------------------------------------------------------------------------------------------------------


def after_estimate(desk: Desk, running: Running, look: Look, at: datetime) -> Told:
    """The alarms that follow from an estimate at `at`."""
    ended = running.session.ended
    doubts = {
        flag: AlarmText("critical", None, text, "look at the last read-backs and samples; the edge keeps to its recipe")
        for flag, text in DOUBTS.items()
        if flag in look.doubts and not ended
    }
    desk, worse = alarms(desk, "belief_", doubts, at)
    quiet = silence(running, None)
    if quiet or desk.settings.clock == "event":  # under the wall clock `watch` ends it, and a sign of life
        desk, edge = alarms(desk, "edge_silent", quiet, at)
    else:
        edge = ()
    wanted = {} if ended else _of_health(desk, running, look)
    desk, more = _of_storm(*_held(desk, wanted, at), at)
    return desk, (*worse, *edge, *more)


def _of_health(desk: Desk, running: Running, look: Look) -> dict[str, AlarmText]:
    """Alarms of `twin.estimation.health` by code, those of one cause as one."""
    batch, found = running.session.batch, dict[str, AlarmText]()
    about_pumps = pump_alarms(running.diagnosis) if running.diagnosis is not None else ()
    for a in (*look.alarms, *about_pumps):
        if a.code == "not_finite":  # `belief_not_finite` says it
            continue
        sensor = batch.process.sensors.get(a.channel)
        if a.code == "lost" and sensor is not None and sensor.kind == "probe" and "edge_silent" in desk.alarms:
            continue
        message, action = _slip(batch, a) if a.code == "unit_slip" else (a.message, a.action)
        code = f"{a.code}-{a.channel}" if a.channel else a.code
        since = instant(a.since, running.start) if a.channel else None
        found[code] = AlarmText(SEVERITIES[a.severity], a.channel or None, message or a.code, action, since)
    return found


def _slip(batch: Batch, a: health.Alarm) -> tuple[str, str]:
    """Message and action that name the value in question."""
    at = max((i.time for i in batch.innovations if i.channel == a.channel and i.verdict == "unit_slip"), default=None)
    m = next((m for m in reversed(batch.evidence) if (m.channel, m.sampled_at) == (a.channel, at)), None)
    if m is None:
        return a.message, a.action
    action = (
        f"send version {m.version + 1} of {m.id}: with the right value, or with quality confirmed if it is right as it is; "
        "it is not used until then"
    )
    return f"{m.id} reads {m.value:.4g}: {a.message}", action


def _held(desk: Desk, wanted: dict[str, AlarmText], at: datetime) -> tuple[Desk, dict[str, AlarmText]]:
    """Hysteresis: alarms about the whole estimate that were up and are wanted no longer stay for `HOLD`."""
    last = {c: at for c, text in wanted.items() if text.since is None}
    for code, when in desk.memory.wanted.items():
        if (
            code not in wanted
            and code in desk.alarms
            and at - when < HOLD
            and desk.running
            and not desk.running.session.ended
        ):
            up = desk.alarms[code]
            wanted = {**wanted, code: AlarmText(up.severity, up.channel, up.message, up.action)}
            last[code] = when
    return replace(desk, memory=desk.memory._replace(wanted=MappingProxyType(last))), wanted


def _of_storm(desk: Desk, wanted: dict[str, AlarmText], at: datetime) -> Told:
    """`wanted` alarms of health, or in a storm those that are up, what is critical, and one `alarm_flood`."""
    before, flood = desk.memory, "alarm_flood" in desk.alarms
    new = [c for c in wanted if c not in desk.alarms and c not in before.held]
    onsets = (*(t for t in before.onsets if at - t < STORM), *(at for _ in new))[-10 * MOST :]
    held = frozenset[str]()
    if len(onsets) > (MOST // 2 if flood else MOST):
        held = frozenset(c for c, text in wanted.items() if c not in desk.alarms and text.severity != "critical")
        said = f"{len(onsets)} alarms in ten minutes; held back: {', '.join(sorted(held)) or 'none'}"
        one = AlarmText(
            "critical",
            None,
            said,
            "look for one cause: power, network, gas, a wrong batch; then at the estimate's flags",
        )
        wanted = {**{c: text for c, text in wanted.items() if c not in held}, "alarm_flood": one}
    mine = frozenset(c for c in desk.alarms if not c.startswith(OTHERS))
    desk = replace(desk, memory=Memory(onsets, held, before.wanted))
    return _settled(desk, mine, wanted, at)
