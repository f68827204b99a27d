"""What the controller weighs, in one currency: vessel volumes of perfusion medium."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from twin.config import ConfigError
from twin.process import Process

CQAS = ("viable_cells", "viable_density", "viability", "car_fraction", "exhausted_fraction", "lactate", "ammonia")
"""Targets at harvest that the model can predict."""

SOLVERS = ("sqp", "ipopt")
SCENARIOS = (1, 9, 27)
_WHOLE = ("search", "max_iter", "sqp_iter", "scenarios", "robust")


class Prices(NamedTuple):
    """Weights of the objective [volumes of medium per unit]; they enter the solver as parameters.

    Slack prices are exact penalties: above the multiplier that a feasible constraint has, so a slack is used only where
    no plan meets the constraint (the dose: 300 volumes per unit of ln) or where its price is paid knowingly (soft limits).
    """

    medium: float = 1.0  # per vessel volume perfused
    feed: float = 15.0  # per vessel volume of concentrate: about its nutrients' worth in medium
    dose: float = 0.0003  # per IU/mL of cytokine dosed; a recipe's 300 IU/mL/d is .09 a day
    move_perfusion: float = 0.2  # per VVD^2 of change between steps
    move_dose: float = 0.02  # per (300 IU/mL/d)^2 of change between steps
    glucose: float = 0.10  # per mM d below the limit
    lactate: float = 0.03  # per mM d above the soft limit
    lactate_hard: float = 10.0  # per mM d above the hard limit
    ammonia: float = 0.3  # per mM d above the limit
    cytokine: float = 0.05  # per IU/mL d below the limit
    ph: float = 5.0  # per pH d outside the band
    oxygen: float = 20.0  # per mM d of dissolved oxygen below the limit
    osmolality: float = 0.01  # per mOsm/kg d above the limit
    end_lactate: float = 0.20  # per mM above the soft limit at harvest: a harvest may slip, the culture must bear it
    end_ammonia: float = 1.0  # per mM above the limit at harvest, likewise
    quadratic: float = 0.05  # share of every slack's price that its square pays, besides
    target_ln: float = 300.0  # per ln of a missed amount at harvest (cells, density)
    target: float = 150.0  # per unit of a missed fraction at harvest (viability, CAR+, exhaustion)
    budget: float = 40.0  # per volume of medium beyond the batch's budget
    day: float = 0.30  # per day until harvest: vessel time, and the risk that a day carries


@dataclass(frozen=True, slots=True)
class MpcSettings:
    """Everything that can be chosen about the controller. Times in days."""

    prices: Prices = field(default_factory=Prices)
    harvest_latest: float | None = None  # [d]; None: the recipe's latest day
    search: int = 2  # harvest steps looked at on either side of the last plan's
    growth_sd: float = 0.025  # ln sd per day of cells to come that the belief's mean does not tell
    confidence: float = 1.64  # standard deviations of ln cells that the dose is met with (1.64: 95 %)
    chance: float | None = None  # P by which the belief has every target met at harvest; None: the margins here
    sd_floor: float = 0.05  # ln sd of the cell number that no belief shows: the counter's own bias, losses
    give_up: float = 2.5  # beyond so many standard deviations short of the dose, the recipe's rates are as good as any
    fraction_margin: float = 0.02  # margin of viability, CAR+ and exhaustion at harvest
    budget_reserve: float = 0.03  # share of the medium budget held back (pump gain errors)
    hard_reserve: float = 0.05  # share of the hard lactate limit held back: a plan may not touch it
    dose_floor: float = 0.6  # least cytokine dosing, as a share of the recipe's: dosing is never optional
    solver: str = "sqp"  # "sqp", with IPOPT as its fall-back, or "ipopt"
    real_time: bool = False  # one iteration from the last plan, where there is one, in place of a converged solution
    max_iter: int = 80  # interior-point iterations; no time limit: results must not hang on how busy a machine is
    sqp_iter: int = 60  # SQP iterations
    deadline: float | None = None  # [s] for all solves of a decision; None: none, results do not depend on the clock
    scenarios: int = 1  # futures that one plan serves: 1, 9 or 27
    robust: int = 1  # first moves that the scenarios share
    k1: float | None = 2.0  # the edge's cap: every rate <= k1 x the recipe's largest; None: no such cap
    k2: float | None = 3.0  # the edge's cap: every rate <= k2 x what the recipe would do then; None: no such cap
    cap_floor: float = 0.0  # [VVD] perfusion allowed where k2 x the recipe's rate is less; k1 still holds


def settings_for(process: Process, **given: Any) -> MpcSettings:
    """Settings from keywords; names of `Prices` are taken too. ConfigError as `check`, or for a target without a prediction."""
    check(given)
    strange = [t.cqa for t in process.targets if t.cqa not in CQAS]
    if strange:
        raise ConfigError(f"mpc: targets {strange} cannot be predicted; known: {list(CQAS)}")
    own = set(MpcSettings.__dataclass_fields__)
    whole: dict[str, Any] = {k: int(given[k]) for k in _WHOLE if k in given}
    prices = given.pop("prices", Prices())._replace(**{k: float(v) for k, v in given.items() if k in Prices._fields})
    return MpcSettings(prices=prices, **{**{k: v for k, v in given.items() if k in own}, **whole})


def check(given: Mapping[str, Any]) -> None:
    """ConfigError for a name that no setting or price has, an impossible value, or settings that mean nothing together."""
    own = set(MpcSettings.__dataclass_fields__)
    unknown = [k for k in given if k not in own and k not in Prices._fields]
    if unknown:
        raise ConfigError(f"mpc: unknown settings {unknown}; known: {sorted(own | set(Prices._fields))}")
    if given.get("solver", "sqp") not in SOLVERS:
        raise ConfigError(f"mpc: field solver: one of {list(SOLVERS)} is needed, not {given['solver']!r}")
    if given.get("scenarios", 1) not in SCENARIOS:
        raise ConfigError(f"mpc: field scenarios: one of {list(SCENARIOS)} is needed, not {given['scenarios']!r}")
    for name, value in given.items():
        if name in ("prices", "solver") or value is None:
            continue
        if name == "real_time":
            if not isinstance(value, bool):
                raise ConfigError(f"mpc: field real_time: true or false is needed, not {value!r}")
        elif isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value < math.inf:
            raise ConfigError(f"mpc: field {name}: a finite number >= 0 is needed, not {value!r}")
        elif name == "chance" and not 0.5 <= value < 1.0:
            raise ConfigError(f"mpc: field chance: a probability from .5 to below 1 is needed, not {value!r}")
        elif name in _WHOLE and (value != int(value) or value < 1):
            raise ConfigError(f"mpc: field {name}: a whole number of 1 or more is needed, not {value!r}")
    _together(given)


def _together(given: Mapping[str, Any]) -> None:
    """ConfigError for settings that are sound one by one and mean nothing together."""
    if given.get("scenarios", 1) == 1:
        if given.get("chance") is not None and given.get("solver") == "ipopt":
            raise ConfigError(
                "mpc: field chance: holds limits back on the way, which the solver ipopt does not; drop one of them"
            )
    elif given.get("chance") is not None:
        raise ConfigError(
            "mpc: field chance: is kept by margins of one future, not by several scenarios; drop one of them"
        )
    elif given.get("solver") == "ipopt":
        raise ConfigError("mpc: field solver: ipopt plans for one future; scenarios need sqp")
