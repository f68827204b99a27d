"""What the twin says: beliefs, forecasts, plans and decisions as messages. Pure; days become wire time only here."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import numpy as np

from controllers.loop import Session, basis_of
from controllers.plan import Decision
from service.desk.health import Look, flags, health_part, look
from service.messages import (
    Band,
    Changed,
    Consistency,
    Estimate,
    ForecastMessage,
    HarvestWindow,
    Override,
    PlanMessage,
    Quantiles,
    Quantity,
    Series,
    Shifted,
    WhatIfPart,
    canonical_json,
    instant,
)
from service.messages.base import one_line
from twin import futures
from twin.batch import Batch
from twin.bioreactor import State
from twin.estimation.belief import Z90, Belief, draws, lognormal, split
from twin.evidence import ACTUATORS
from twin.futures import Forecast
from twin.units import CANONICAL
from twin.whatif.paired import Shift, WhatIf

SAMPLES = 1000
"""Joint draws behind the marginals of an estimate; always the same standard normals, so that estimates move smoothly."""

POINTS = 60
"""Most instants that a band on the wire has."""

HALF = POINTS // 2
"""The same where one answer has the bands of a forecast and of its differences: it must fit in a message."""

STATE_UNITS: Mapping[str, str] = {
    "viable_density": "1e6 cells/mL", "dead_density": "1e6 cells/mL", "viability": "dimensionless",
    "car_fraction": "dimensionless", "viable_cells": "1e9 cells", "glucose": "mM", "lactate": "mM", "glutamine": "mM",
    "ammonia": "mM", "cytokine": "IU/mL", "doublings": "doublings", "exhausted_fraction": "dimensionless",
    "strong_ion": "mEq/L", "activation": "dimensionless", "volume": "L",
}  # fmt: skip
"""Quantities of an estimate and their units."""

PREDICTED = (
    "viable_density", "viability", "viable_cells", "car_fraction", "glucose", "lactate", "glutamine", "ammonia", "cytokine",
    "exhausted_fraction", "volume",
)  # fmt: skip
"""Quantities of a plan's predicted course."""


def quantities(x: State) -> dict[str, Any]:
    """The named quantities of a state, in `STATE_UNITS`; fields may be arrays."""
    return {
        "viable_density": x.viable, "dead_density": x.dead, "viability": x.viability, "car_fraction": x.car_fraction,
        "viable_cells": x.viable_cells, "glucose": x.glucose, "lactate": x.lactate, "glutamine": x.glutamine,
        "ammonia": x.ammonia, "cytokine": x.cytokine, "doublings": x.doublings, "exhausted_fraction": x.exhausted,
        "strong_ion": x.strong_ion, "activation": x.activation, "volume": x.volume,
    }  # fmt: skip


def estimate_message(
    session: Session, start: datetime, units: Mapping[str, str], seq: int, epoch: int, seen: Look | None = None
) -> Estimate:
    """What is believed as `seen` (default: at the session's clock). `units`: of the kinetic parameters."""
    batch, seen = session.batch, seen or look(session.batch, session.clock)
    belief = seen.belief
    return Estimate(
        batch=batch.id, at=instant(seen.at, start), basis=basis_of(batch, belief), state=_state(belief, batch),
        parameters=_parameters(belief, batch, units) if belief.finite else {},
        flags=(*flags(seen), *(("ended",) if session.ended else ())), nis=_consistency(batch),
        health=health_part(seen, batch, start), seq=seq, epoch=epoch,
    )  # fmt: skip


def _state(belief: Belief, batch: Batch) -> dict[str, Quantity]:
    if not belief.finite:
        return {}
    points = draws(belief, SAMPLES, np.random.default_rng(20_261_121))
    x, _, _ = split(points, batch.layout, batch.process.theta.cell)
    named = quantities(x)
    values = np.array([np.broadcast_to(v, (SAMPLES,)) for v in named.values()])
    low, high = np.quantile(values, [0.05, 0.95], axis=1)
    columns = zip(
        named, values.mean(axis=1).tolist(), values.std(axis=1).tolist(), low.tolist(), high.tolist(), strict=True
    )
    return {
        name: Quantity(mean=mean, sd=sd, q05=q05, q95=q95, unit=STATE_UNITS[name])
        for name, mean, sd, q05, q95 in columns
        if all(math.isfinite(v) for v in (mean, sd, q05, q95))
    }


def _parameters(belief: Belief, batch: Batch, units: Mapping[str, str]) -> dict[str, Quantity]:
    layout, found = batch.layout, dict[str, Quantity]()
    for name in layout.parameters:
        i = layout.index(name)
        m = lognormal(float(belief.mean[i]), float(belief.cov[i, i]))
        found[name] = Quantity(mean=m.mean, sd=m.sd, q05=m.q05, q95=m.q95, unit=units.get(name, ""))
    for name in layout.errors:
        i = layout.index(name)
        mean, sd = float(belief.mean[i]), float(np.sqrt(max(belief.cov[i, i], 0.0)))
        by_name = {"gain": "ln", "growth": "ln d"}  # of readings compared by their logarithm; growth: per 1/d
        unit = by_name.get(name.rpartition("_")[2]) or next(
            (s.unit for s in batch.process.sensors.values() if s.error is not None and s.error.name == name), ""
        )
        found[name] = Quantity(mean=mean, sd=sd, q05=mean - Z90 * sd, q95=mean + Z90 * sd, unit=unit)
    return found


def _consistency(batch: Batch, newest: int = 50) -> dict[str, Consistency]:
    by_channel: dict[str, list[tuple[float, bool]]] = {}
    for i in batch.innovations:
        by_channel.setdefault(i.channel, []).append((i.nis, i.accepted))
    return {
        channel: Consistency(
            mean=float(np.mean([n for n, _ in kept])), n=len(kept), accepted=sum(accepted for _, accepted in kept)
        )
        for channel, said in by_channel.items()
        if (kept := [(n, a) for n, a in said[-newest:] if math.isfinite(n)])
    }


def plan_message(decision: Decision, batch: Batch, start: datetime, seq: int, epoch: int) -> PlanMessage:
    """The plan behind a decision, its predicted effect, and the guard's verdict."""
    plan = decision.plan
    schedule = {
        name: Series(unit=CANONICAL[name], values=tuple(_round(getattr(u, name)) for u in plan.controls))
        for name in (ACTUATORS if plan.controls else ())
    }
    predicted: dict[str, Series] = {}
    for name in PREDICTED if plan.states else ():
        values = [_round(float(quantities(x)[name])) for x in plan.states]
        if all(math.isfinite(v) for v in values):
            predicted[name] = Series(unit=STATE_UNITS[name], values=tuple(values))
    return PlanMessage(
        batch=batch.id, at=instant(decision.at, start), policy=_word(plan.policy), status=plan.status,
        detail=one_line(plan.detail, 500), cost=plan.cost if math.isfinite(plan.cost) else None,
        t=tuple(instant(plan.issued_at + k * plan.step, start) for k in range(len(plan.controls) + 1)),
        schedule=schedule, predicted=predicted,
        harvest_at=None if plan.harvest_at is None else instant(plan.harvest_at, start),
        harvest=decision.harvest, override=decision.control is not None, valid_until=instant(decision.valid_until, start),
        basis=decision.basis, reasons=tuple(one_line(r, 500) for r in decision.reasons), seq=seq, epoch=epoch,
    )  # fmt: skip


def override_messages(
    decision: Decision, batch: Batch, root: str, start: datetime, seq: int, epoch: int
) -> tuple[Override, ...]:
    """The overrides of a decision, one an actuator that the limits allow to run at all; none when the guard said no.

    Harvest is always among them: 1 begins it, 0 holds back the recipe's counted dose while the override is valid.
    The command's id depends on unit, batch, time and actuator only: said twice, it is the same command.
    """
    if decision.control is None:
        return ()
    limits = batch.process.limits
    rates = {a: float(getattr(decision.control, a)) for a in ACTUATORS if getattr(limits, f"{a}_max") > 0.0}
    rates["harvest"] = 1.0 if decision.harvest else 0.0
    return tuple(
        Override.model_validate({
            "batch": batch.id, "cmd_id": _command(root, batch.id, decision.at, name), "actuator": name, "rate": rate,
            "unit": CANONICAL[name], "valid_from": instant(decision.at, start),
            "valid_until": instant(decision.valid_until, start), "basis_hash": decision.basis,
            "recipe_version": batch.process.recipe.version, "seq": seq + k, "epoch": epoch,
        })
        for k, (name, rate) in enumerate(rates.items())
    )  # fmt: skip


def _command(root: str, batch: str, at: float, actuator: str) -> str:
    return hashlib.sha256(f"{root}\n{batch}\n{at!r}\n{actuator}".encode()).hexdigest()[:32]


def decision_record(decision: Decision, batch: Batch) -> bytes:
    """Everything of a decision, numbers to the last bit, as the journal keeps it and replay compares it."""
    plan = decision.plan
    return canonical_json({
        "batch": batch.id, "at": decision.at, "control": None if decision.control is None else list(map(_exact, decision.control)),
        "harvest": decision.harvest, "valid_until": decision.valid_until, "basis": decision.basis,
        "reasons": list(decision.reasons),
        "plan": {
            "issued_at": plan.issued_at, "step": plan.step, "status": plan.status, "cost": _exact(plan.cost),
            "harvest_at": plan.harvest_at, "policy": plan.policy, "detail": plan.detail,
            "controls": [list(map(_exact, u)) for u in plan.controls], "states": [list(map(_exact, x)) for x in plan.states],
        },
    })  # fmt: skip


def forecast_message(
    forecast: Forecast, batch: Batch, start: datetime, seq: int, epoch: int, most: int = POINTS
) -> ForecastMessage:
    """A forecast in wire time; bands of more than `most` instants are thinned, the last one kept."""
    bands = _bands(forecast.bands, start, most)
    q05, at, q95 = (_when(v, start) for v in forecast.harvest)
    useful = forecast.last_useful_day
    return ForecastMessage.model_validate({
        "batch": batch.id, "from": instant(forecast.from_time, start), "bands": bands,
        "p_pass": {k: float(v) for k, v in forecast.p_pass.items()}, "p_release": float(forecast.p_release),
        "harvest": HarvestWindow(at=at, q05=q05, q95=q95),
        "last_useful_day": float(useful) if useful is not None and math.isfinite(useful) else None,
        "seq": seq, "epoch": epoch,
    })  # fmt: skip


def _bands(bands: Mapping[str, futures.Band], start: datetime, most: int) -> dict[str, Band]:
    found: dict[str, Band] = {}
    for name, band in bands.items():
        keep = _thinned(len(band.t), most)
        rows = [[_round(float(v)) for v in q[keep]] for q in (band.q05, band.q50, band.q95)]
        if all(math.isfinite(v) for row in rows for v in row):
            times = tuple(instant(float(v), start) for v in band.t[keep])
            found[name] = Band(t=times, q05=tuple(rows[0]), q50=tuple(rows[1]), q95=tuple(rows[2]))
    return found


def whatif_part(found: WhatIf, start: datetime) -> WhatIfPart:
    """What an edit would change, in wire time."""

    def shifted(shift: Shift, unit: str) -> Shifted:
        three = [Quantiles(q05=_round(a), q50=_round(b), q95=_round(c)) for a, b, c in shift]
        return Shifted(unit=unit, before=three[0], after=three[1], delta=three[2])

    harvested = {k: shifted(v, STATE_UNITS[k]) for k, v in found.harvested.items()}
    harvested |= {"day": shifted(found.harvest, "d"), "medium": shifted(found.medium, "vessel volumes")}
    return WhatIfPart(
        edits=one_line(str(found.edits), 500), futures=found.n, delta=_bands(found.delta, start, HALF), harvested=harvested,
        p_pass={k: Changed(**v._asdict()) for k, v in found.p_pass.items()},
        p_release=Changed(**found.p_release._asdict()), capped=found.capped,
    )  # fmt: skip


def seed_of(batch_id: str, at: float) -> int:
    """Seed of the forecast at `at` [d]: the same batch and time, the same futures."""
    return int.from_bytes(hashlib.sha256(f"{batch_id}\n{at!r}".encode()).digest()[:8], "big")


def _thinned(n: int, most: int) -> np.ndarray:
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(int))


def _when(day: float | None, start: datetime) -> datetime | None:
    return instant(float(day), start) if day is not None and math.isfinite(day) else None


def _round(value: float) -> float:
    return float(f"{value:.6g}") if math.isfinite(value) else value


def _exact(value: float) -> float | str:
    return float(value) if math.isfinite(value) else repr(float(value))


def _word(text: str) -> str:
    return "".join(c if c.isascii() and (c.isalnum() or c in "_-") else "_" for c in text)[:64] or "policy"
