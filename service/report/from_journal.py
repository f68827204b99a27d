"""A batch's report from its journal: what came in, what was concluded, what was sent. Pure: rows in, `ReportData` out.

Everything shown is what was known and said at the time; nothing is recomputed (that is `celltwin replay`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np

from service.journal import Head, Row
from service.messages import (
    NO_LINKS,
    Alarm,
    BatchEnd,
    BatchStart,
    Estimate,
    ForecastMessage,
    MeasurementMessage,
    Override,
    ReadBack,
    Rejected,
    control_fact,
    days,
    decode,
    linked,
    measurement_fact,
)
from service.report.data import (
    ESTIMATED,
    Alert,
    Band,
    Consistency,
    Curve,
    Decided,
    Judged,
    Limit,
    Outcome,
    ReportData,
    Samples,
    outcome_of,
)
from twin.config import ConfigError, load_config, load_limits, load_targets
from twin.evidence import ACTUATORS, Measurement
from twin.process import Limits, Target
from twin.units import CANONICAL

FORECAST_DAY = 6.0
"""The forecast that the report holds to account: the first one made on or after this day [d]."""


LATE = 0.25
"""A value that comes longer than this after its sample [d] is marked: the twin has decided without it."""

HELD_BACK = ("rejected", "unit_slip", "quarantined")


class UnknownBatch(LookupError):
    """The journal holds no such batch; the message names those it holds."""


@dataclass(slots=True)
class _Found:
    """What the rows of one batch hold, in order of arrival."""

    estimates: list[Estimate] = field(default_factory=list)
    forecasts: list[ForecastMessage] = field(default_factory=list)
    decisions: list[Mapping[str, Any]] = field(default_factory=list)
    overrides: set[str] = field(default_factory=set)  # basis of every override sent
    alarms: list[Alarm] = field(default_factory=list)
    told: list[tuple[MeasurementMessage, datetime]] = field(default_factory=list)  # and what time the twin was at
    readings: dict[str, Measurement] = field(default_factory=dict)  # by id, the highest version
    readbacks: list[ReadBack] = field(default_factory=list)
    end: BatchEnd | None = None
    rejected: int = 0
    mode: str = ""
    version: str = ""  # of the program
    digest: str = ""  # of everything the batch was opened with


def batches(rows: Iterable[Row]) -> tuple[tuple[str, BatchStart], ...]:
    """Every batch of a journal: its unit's topic root and its start, in order of arrival."""
    found: dict[tuple[str, str], BatchStart] = {}
    for row in rows:
        if row.kind == "received" and row.topic.endswith("/event/batch_start"):
            message = _decoded(row)
            if isinstance(message, BatchStart):
                found.setdefault((row.topic.removesuffix("/event/batch_start"), message.batch), message)
    return tuple((root, message) for (root, _), message in found.items())


def collect(rows: Iterable[Row], batch: str, head: Head | None = None, unit: str | None = None) -> ReportData:
    """The report of `batch` (of `unit`, where several had one of that name) from a journal's rows. Raises UnknownBatch."""
    kept = list(rows)
    known = batches(kept)
    mine = [(root, m) for root, m in known if m.batch == batch and unit in (None, root.rpartition("/")[2])]
    if not mine:
        held = ", ".join(f"{m.batch} (unit {root.rpartition('/')[2]})" for root, m in known) or "none"
        where = "" if unit is None else f" of unit {unit!r}"
        raise UnknownBatch(f"no batch {batch!r}{where} in this journal; it holds {held}")
    if len(mine) > 1:
        units = ", ".join(root.rpartition("/")[2] for root, _ in mine)
        raise UnknownBatch(f"batch {batch!r} ran on units {units}; name one with --unit")
    root, opened = mine[0]
    found = _read([r for r in kept if r.kind == "started" or r.topic.startswith(f"{root}/")], opened)
    targets, limits, remarks = _limits(opened)
    start = opened.at
    until = max(
        (days(e.at, start) for e in found.estimates),
        default=max((m.sampled_at for m in found.readings.values()), default=0.0),
    )
    inputs = _inputs(found.readbacks, start, opened.volume_l)
    ended = found.end is not None or "harvest" in inputs
    estimates = _over_time(
        [(e.at, {k: (q.mean, q.q05, q.q95) for k, q in e.state.items()}) for e in found.estimates], start
    )
    learnt = _over_time(
        [(e.at, {k: (q.mean, q.q05, q.q95) for k, q in e.parameters.items()}) for e in found.estimates], start
    )
    units = {
        **CANONICAL,
        **{k: q.unit for e in found.estimates[-1:] for k, q in (*e.state.items(), *e.parameters.items())},
    }
    shown, judged = _shown(found.forecasts, start), _judged(found.estimates, start)
    if ended:
        remarks = (*remarks, ESTIMATED)
    return ReportData(
        batch=batch, origin="recorded", until=until, policy=str(found.decisions[-1]["plan"]["policy"]) if found.decisions else "",
        facts={"donor": opened.donor or "unknown", "preset": opened.preset, "recipe": opened.recipe,
               "volume": f"{opened.volume_l:g} L", "mode": found.mode},
        started=start, units=units, estimates=estimates, samples=_samples(found.readings.values(), judged),
        inputs={k: v for k, v in inputs.items() if k in ACTUATORS}, limits=_lines(targets, limits), parameters=learnt,
        p_pass=_p_pass(found.forecasts, start), p_release=_p_release(found.forecasts, start),
        forecast_from=None if shown is None else days(shown.from_, start),
        forecast={} if shown is None else _bands(shown, start),
        decisions=tuple(_decided(d, found.overrides) for d in found.decisions),
        alerts=tuple(Alert(days(a.since, start), a.code, a.severity, a.message) for a in found.alarms),
        judged=judged, consistency=_consistency(found.estimates, start),
        revisions=_revisions(found.estimates, start),
        ended=ended, outcome=_outcome(found, estimates, inputs, targets, until) if ended else None,
        provenance=_provenance(root, found, head), remarks=remarks,
    )  # fmt: skip


def _decoded(row: Row) -> Any:
    """The message of a received row, or None where it was refused."""
    try:
        return decode("/".join(row.topic.split("/")[4:]), row.payload)
    except Rejected:
        return None


def _read(rows: Iterable[Row], opened: BatchStart) -> _Found:
    found, running = _Found(), ""
    for row in rows:
        suffix = "/".join(row.topic.split("/")[4:])
        if row.kind == "received":
            message = _decoded(row)
            if isinstance(message, BatchStart):
                running = message.batch
            elif getattr(message, "batch", None) == opened.batch:
                _receive(found, message, found.estimates[-1].at if found.estimates else opened.at)
        elif row.kind == "decision":
            decision = json.loads(row.payload)
            if decision.get("batch") == opened.batch:
                found.decisions.append(decision)
        elif row.kind == "note" or row.kind == "started":
            _note(found, json.loads(row.payload), opened.batch)
        elif row.kind == "rejected":
            found.rejected += running == opened.batch
        elif row.kind in ("estimate", "sent") and row.payload:
            _sent(found, decode(suffix, row.payload), opened.batch)
    found.readings = _readings(found.told, opened)
    return found


def _readings(told: Iterable[tuple[MeasurementMessage, datetime]], opened: BatchStart) -> dict[str, Measurement]:
    """What the laboratory and the probes stand by at the end: of every reading the highest version, retracted ones marked."""
    links, kept = NO_LINKS, list[tuple[MeasurementMessage, datetime]]()
    for message, heard in told:
        try:
            links = linked(links, message)
        except Rejected:
            continue
        kept.append((message, heard))
    readings: dict[str, Measurement] = {}
    for message, heard in kept:
        received = days(max(heard, message.sampled_at), opened.at)
        fact = measurement_fact(message, opened.at, received, links)
        if fact.id not in readings or fact.version > readings[fact.id].version:
            readings[fact.id] = fact
    return readings


def _receive(found: _Found, message: Any, heard: datetime) -> None:
    if isinstance(message, MeasurementMessage):
        found.told.append((message, heard))
    elif isinstance(message, ReadBack):
        found.readbacks.append(message)
    elif isinstance(message, BatchEnd):
        found.end = message


def _sent(found: _Found, message: Any, batch: str) -> None:
    if getattr(message, "batch", None) != batch:
        return
    match message:
        case Estimate():
            found.estimates.append(message)
        case ForecastMessage():
            found.forecasts.append(message)
        case Override():
            found.overrides.add(message.basis_hash)
        case Alarm():
            found.alarms.append(message)
        case _:
            pass


def _note(found: _Found, content: Any, batch: str) -> None:
    if isinstance(content, dict):
        found.mode = str(content.get("mode", found.mode))
        found.version = str(content.get("version", found.version))
        if content.get("batch") == batch and "digest" in content:
            found.digest = str(content["digest"])


def _limits(opened: BatchStart) -> tuple[tuple[Target, ...], Limits | None, tuple[str, ...]]:
    """Targets and limits by name; a name that the shipped configuration does not know is a remark, not a failure."""
    targets, limits, remarks = tuple[Target, ...](), None, list[str]()
    try:
        targets = load_targets(opened.targets)
    except ConfigError as error:
        remarks.append(f"No CQA limits are drawn: {error}")
    try:
        limits = load_config(opened.preset).limits
    except ConfigError:
        limits = load_limits("car_nk")
        remarks.append(f"Operating limits are those of car_nk: no process is configured for {opened.preset}.")
    return targets, limits, tuple(remarks)


def _lines(targets: tuple[Target, ...], limits: Limits | None) -> dict[str, tuple[Limit, ...]]:
    lines: dict[str, tuple[Limit, ...]] = {
        t.cqa: (Limit(t.sense, t.value, f"release {'≥' if t.sense == 'at_least' else '≤'} {t.value:g}"),)
        for t in targets
    }
    if limits is not None:
        lines["lactate"] = (Limit("at_most", limits.lactate_soft, f"≤ {limits.lactate_soft:g}"),
                            Limit("at_most", limits.lactate_hard, f"hard ≤ {limits.lactate_hard:g}"))  # fmt: skip
        lines["glucose"] = (Limit("at_least", limits.glucose_min, f"≥ {limits.glucose_min:g}"),)
        lines["ammonia"] = (Limit("at_most", limits.ammonia_max, f"≤ {limits.ammonia_max:g}"),)
        lines["cytokine"] = (Limit("at_least", limits.cytokine_min, f"≥ {limits.cytokine_min:g}"),)
        lines["perfusion"] = (Limit("at_most", limits.perfusion_max, f"≤ {limits.perfusion_max:g}"),)
    return lines


def _over_time(said: list[tuple[datetime, dict[str, tuple[float, float, float]]]], start: datetime) -> dict[str, Band]:
    """(mean, q05, q95) by name at many times, to bands by name."""
    series: dict[str, list[tuple[float, float, float, float]]] = {}
    for at, values in said:
        for name, (mean, low, high) in values.items():
            series.setdefault(name, []).append((days(at, start), low, mean, high))
    return {name: Band(*np.array(sorted(rows)).T) for name, rows in series.items()}


def _samples(readings: Iterable[Measurement], judged: Mapping[str, Judged]) -> dict[str, Samples]:
    refused = {(c, at) for c, j in judged.items() for at, v in zip(j.t, j.verdict, strict=True) if v in HELD_BACK}
    by_channel: dict[str, list[tuple[float, float, bool, bool, bool]]] = {}
    for m in readings:
        used = not m.retracted and (m.channel, m.sampled_at) not in refused
        late = m.received_at - m.sampled_at > LATE
        by_channel.setdefault(m.channel, []).append((m.sampled_at, m.value, used, late, m.version > 1))
    columns = {channel: np.array(sorted(rows)).T for channel, rows in by_channel.items()}
    return {c: Samples(t, value, *(mark.astype(bool) for mark in marks)) for c, (t, value, *marks) in columns.items()}


def _judged(estimates: Iterable[Estimate], start: datetime) -> dict[str, Judged]:
    """What became of every reading that was once the newest of its channel, as it was last said."""
    said: dict[str, dict[float, tuple[str, float]]] = {}
    for e in estimates:
        for channel, v in (e.health.newest if e.health is not None else {}).items():
            ratio = v.ratio if v.ratio is not None else float("nan")
            said.setdefault(channel, {})[days(v.at, start)] = (v.verdict, ratio)
    return {
        channel: Judged(
            np.array([t for t, _ in rows]), tuple(v for _, (v, _) in rows), np.array([r for _, (_, r) in rows])
        )
        for channel, rows in ((c, sorted(by_time.items())) for c, by_time in sorted(said.items()))
    }


def _consistency(estimates: Iterable[Estimate], start: datetime) -> dict[str, Consistency]:
    rows: dict[str, list[tuple[float, float, float, float]]] = {}
    for e in estimates:
        for channel, w in (e.health.channels if e.health is not None else {}).items():
            if w.nis is not None and w.high is not None:
                rows.setdefault(channel, []).append((days(e.at, start), w.nis, w.low, w.high))
    return {channel: Consistency(*np.array(sorted(said)).T) for channel, said in sorted(rows.items())}


def _revisions(estimates: Iterable[Estimate], start: datetime) -> Curve | None:
    """Jumps of the belief, the newest one where several came between two estimates."""
    found: list[tuple[float, float]] = []
    before = 0
    for e in estimates:
        if e.health is not None and e.health.revisions.n > before:
            before = e.health.revisions.n
            if e.health.revisions.last is not None:
                found.append((days(e.at, start), e.health.revisions.last))
    return Curve(*np.array(found).T) if found else None


def _inputs(readbacks: Iterable[ReadBack], start: datetime, volume: float) -> dict[str, Curve]:
    by_actuator: dict[str, list[tuple[float, float]]] = {}
    for message in readbacks:
        fact = control_fact(message, start, volume)
        by_actuator.setdefault(fact.actuator, []).append((fact.at, fact.rate))
    return {actuator: Curve(*np.array(sorted(rows)).T) for actuator, rows in by_actuator.items()}


def perfused(perfusion: Curve, until: float) -> float:
    """Vessel volumes that a perfusion rate [VVD], held from each instant to the next, delivers by `until` [d]."""
    edges = np.minimum(np.append(perfusion.t, max(until, perfusion.t[-1])), until)
    return float(np.sum(perfusion.value * np.diff(edges)))


def _p_pass(forecasts: list[ForecastMessage], start: datetime) -> dict[str, Curve]:
    series: dict[str, list[tuple[float, float]]] = {}
    for f in forecasts:
        for name, p in f.p_pass.items():
            series.setdefault(name, []).append((days(f.from_, start), p))
    return {name: Curve(*np.array(sorted(rows)).T) for name, rows in series.items()}


def _p_release(forecasts: list[ForecastMessage], start: datetime) -> Curve | None:
    rows = sorted((days(f.from_, start), f.p_release) for f in forecasts)
    return Curve(*np.array(rows).T) if rows else None


def _shown(forecasts: list[ForecastMessage], start: datetime) -> ForecastMessage | None:
    late = [f for f in forecasts if days(f.from_, start) >= FORECAST_DAY - 1e-9]
    return late[0] if late else forecasts[-1] if forecasts else None


def _bands(message: ForecastMessage, start: datetime) -> dict[str, Band]:
    return {
        name: Band(np.array([days(t, start) for t in b.t]), *(np.array(q) for q in (b.q05, b.q50, b.q95)))
        for name, b in message.bands.items()
        if b.t
    }


def _decided(decision: Mapping[str, Any], overrides: set[str]) -> Decided:
    plan = decision["plan"]
    first = plan["controls"][0] if plan["controls"] else []
    return Decided(
        at=float(decision["at"]), sent=decision["basis"] in overrides and decision["control"] is not None,
        harvest=bool(decision["harvest"]), status=str(plan["status"]),
        rates={n: float(v) for n, v in zip(ACTUATORS, first, strict=False)}, reasons=tuple(map(str, decision["reasons"])),
    )  # fmt: skip


def _outcome(
    found: _Found, estimates: Mapping[str, Band], inputs: Mapping[str, Curve], targets: tuple[Target, ...], until: float
) -> Outcome:
    harvest = inputs.get("harvest")
    harvested = harvest is not None or (found.end is not None and found.end.outcome == "harvested")
    day = float(harvest.t[0]) if harvest is not None else until

    def at_end(cqa: str) -> float | None:
        band = estimates.get(cqa)
        return None if band is None else float(np.interp(day, band.t, band.mid))

    aborted = found.end is not None and found.end.outcome == "aborted"
    medium = perfused(inputs["perfusion"], day) if "perfusion" in inputs else None
    policy = str(found.decisions[-1]["plan"]["policy"]) if found.decisions else ""
    values = {t.cqa: at_end(t.cqa) for t in targets}
    return outcome_of(policy, day, values, () if aborted else targets, medium, harvested=harvested)


def _provenance(root: str, found: _Found, head: Head | None) -> dict[str, str]:
    said = {
        "unit": root,
        "samples, estimates, decisions": f"{len(found.readings)}, {len(found.estimates)}, {len(found.decisions)}",
        "messages refused": str(found.rejected),
    }
    if found.version:
        said["celltwin"] = found.version
    if found.digest:
        said["opened with (SHA-256 of process, prior, policy)"] = found.digest
    if head is not None:
        said["journal head"] = f"row {head.n}: {head.hash}"
    return said
