"""A virtual bioreactor as a Gymnasium environment, ``celltwin/Bioreactor-v0``: bring your own policy.

Importing this module registers it (extra ``celltwin[gym]``); nothing else of the program needs Gymnasium::

    env = gymnasium.make("simulators.environment:celltwin/Bioreactor-v0", donor=7)

It is the rig of the campaigns: the same plant, which is not the model, the same instruments, and the same edge, so that an
action is an override within the scenario's caps and budget, over the recipe. What a policy earns here it earns there.

==============  ======================================================================================================
action          four numbers from 0 to 1: perfusion, feed and cytokine dose as shares of the operating limits; harvest
                now if above 1/2. Until then the recipe's own harvest is held back. The edge refuses a harvest before
                half of the dose has been counted, and the batch goes on (``info["refused"]``).
observation     "readings": what an operator sees. Day; each channel's newest plausible reading in its canonical unit and
                the reading's age [d], -1 before the first; commanded rates [VVD, IU/mL/d]; the perfusion that the recipe
                would run [VVD]; medium commanded so far [vessel volumes].
                "belief": the twin's mean and sd of `BELIEVED` in place of the readings; its filter then runs on every fact
reward          less what the step cost, in vessel volumes of medium, at the prices of the predictive controller
                (`controllers.mpc.settings.Prices`): medium, feed, dose, moves, days, soft limits exceeded by the true
                vessel, and at the end what is missed of every target, the medium budget exceeded, and waste carried
terminated      harvested; with `stop_beyond_limits` also where true lactate or volume is beyond its hard limit
truncated       the recipe's latest day
info            day, donor, seed, `recipe` (what the recipe would do, as an action), `refused`; at the end `outcome`
==============  ======================================================================================================

Names of the observation's entries: `Bioreactor.names`. `seed` of `reset` draws the donor, unless one is given, and the
instruments: the same seed and actions give the same bits. `options` of `reset`: donor, seed (of the instruments).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any, Literal, cast

import numpy as np

try:
    import gymnasium
except ModuleNotFoundError as absent:
    raise ModuleNotFoundError("this needs gymnasium: pip install 'celltwin[gym]'", name="gymnasium") from absent

from controllers.mpc.objective import (
    Economy,
    closing_terms,
    limit_vector,
    path_violations,
    running_cost,
    slack_cost,
    target_shortfall,
)
from controllers.mpc.settings import Prices
from controllers.plan import Decision, Plan
from controllers.recipes import harvest_due, recipe_control
from simulators.campaign import shows
from simulators.closed_loop import overrides
from simulators.faults import Fault, parse_fault
from simulators.reactor import VirtualBioreactor
from simulators.scenario import Scenario, load_scenario
from twin.bioreactor import Control
from twin.config import load_config
from twin.donors.prior import DonorPrior
from twin.evidence import Fact, Measurement, Refused
from twin.process import Process
from twin.sensors import AIR_SATURATION, CHANNELS, MONITORED, impossible
from twin.twin import Twin

ID = "celltwin/Bioreactor-v0"
MOVED = ("perfusion", "feed", "cytokine_dose")
"""What an action sets, before harvest."""
BELIEVED = (
    "viable_density", "viability", "viable_cells", "car_fraction", "exhausted_fraction", "glucose", "lactate", "glutamine",
    "ammonia", "cytokine",
)  # fmt: skip
"""Quantities of the twin's belief that are observed."""
MOST = 1e6
"""Nothing that is observed is larger."""
NEVER = -1.0
DOSE_MOVE = 300.0  # IU/mL/d, the unit of `Prices.move_dose`


class Bioreactor(gymnasium.Env[np.ndarray, np.ndarray]):
    """One batch an episode. See the module's table for actions, observations and reward."""

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - Gymnasium's own protocol

    def __init__(
        self,
        process: Process | str = "car_nk",
        *,
        donor: int | None = None,
        scenario: Scenario | str = "nominal",
        faults: Sequence[Fault | str] = (),
        dt: float = 0.25,
        observation: Literal["readings", "belief"] = "readings",
        donor_prior: DonorPrior | None = None,
        prices: Prices | None = None,
        stop_beyond_limits: bool = False,
        render_mode: None = None,
    ) -> None:
        """`donor` None draws one at each reset; `faults` as `simulators.faults.parse_fault` reads them; `dt` [d] of a step.

        Raises ValueError for a `dt` that is no whole number of the scenario's ticks or lasts a day, for an unknown fault or
        observation, and for a fault of a sensor that the scenario lacks; ConfigError for an unknown process or scenario.
        """
        self.process = load_config(process) if isinstance(process, str) else process
        self.scenario = load_scenario(scenario) if isinstance(scenario, str) else scenario
        self.faults = tuple(parse_fault(f) if isinstance(f, str) else f for f in faults)
        for fault in self.faults:
            if not shows(fault, self.scenario):
                raise ValueError(f"{fault.name}: no instrument of scenario {self.scenario.name} reads {fault.target}")
        ticks = dt / self.scenario.tick
        if not (ticks >= 0.999 and abs(ticks - round(ticks)) < 1e-6 and dt < 1.0 - self.scenario.tick):
            raise ValueError(
                f"dt {dt!r} d: a multiple of the scenario's tick, {24 * self.scenario.tick:g} h, below a day is needed"
            )
        if observation not in ("readings", "belief"):
            raise ValueError(f"observation {observation!r}: unknown; known: readings, belief")
        self.dt = dt
        self.render_mode = render_mode
        self._donor, self._observation, self._prior, self._stops = donor, observation, donor_prior, stop_beyond_limits
        limits = self.process.limits
        self._economy = Economy(prices or Prices(), list(limit_vector(limits, 0.0)))
        self._top = np.array([getattr(limits, f"{name}_max") for name in MOVED])
        reported = {*self.process.sensors, *MONITORED}
        self._channels = tuple(c for i in self.scenario.instruments for c in i.channels if c in reported)
        entries = self._entries()
        self.names = tuple(name for name, _, _ in entries)
        """What each entry of an observation is."""
        low, high = (np.array([e[k] for e in entries], dtype=np.float32) for k in (1, 2))
        self.observation_space = gymnasium.spaces.Box(low, high, dtype=np.float32)
        self.action_space = gymnasium.spaces.Box(0.0, 1.0, (len(MOVED) + 1,), np.float32)
        self._rig: VirtualBioreactor | None = None
        self._twin: Twin | None = None
        self._seen: dict[str, tuple[float, float]] = {}  # channel: newest reading, and when it was drawn [d]
        self._told = 0  # rows of the true course that have been paid for
        self._sent = 0

    def _entries(self) -> list[tuple[str, float, float]]:
        """Name, least and greatest value of every entry of an observation."""
        latest = self.process.recipe.harvest_latest + 1.0
        found = [("day", 0.0, latest)]
        if self._observation == "belief":
            for name in BELIEVED:
                found += [(name, 0.0, MOST), (f"{name}_sd", 0.0, MOST)]
        else:
            for name in self._channels:
                low, high = MONITORED[name] if name in MONITORED else (CHANNELS[name].low, CHANNELS[name].high)
                found += [(name, low, high), (f"{name}_age", NEVER, latest)]
        found += [(name, 0.0, MOST) for name in Control._fields]
        return [*found, ("recipe_perfusion", 0.0, MOST), ("medium_vv", 0.0, MOST)]

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Inoculate a new batch; the observation after the first samples. Raises ValueError for an unknown option."""
        super().reset(seed=seed)
        given = dict(options or {})
        drawn = self.np_random.integers(0, 2**31, size=2)
        donor = given.pop("donor", self._donor)
        self.donor, self.seed = int(drawn[0] if donor is None else donor), int(given.pop("seed", drawn[1]))
        if given:
            raise ValueError(f"reset: unknown options {sorted(given)}; known: donor, seed")
        self._rig = VirtualBioreactor(
            self.process, self.donor, seed=self.seed, scenario=self.scenario, faults=self.faults
        )
        self._twin = None if self._observation == "readings" else Twin.start(self.process, prior=self._prior)
        self._seen, self._sent = {}, 0
        self._hear(self._rig.tick())
        self._told = 1
        return self._observed(self._rig), self._info(self._rig, [])

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Run the rig for `dt`, or to its harvest. An action that is not finite leaves the edge to its recipe.

        Raises ValueError for an action of another shape, RuntimeError before `reset` and after the end.
        """
        rig = self._rig
        if rig is None or rig.finished:
            raise RuntimeError("the batch has ended or not begun: call reset()")
        asked = np.asarray(action, dtype=float)
        if asked.shape != self.action_space.shape:
            raise ValueError(
                f"action: {len(MOVED) + 1} numbers are expected ({', '.join(MOVED)}, harvest), not shape {asked.shape}"
            )
        refused = ["action: not finite; the edge keeps to its recipe"]
        if np.isfinite(asked).all():
            answers = [rig.command(o) for o in self._overrides(rig, np.clip(asked, 0.0, 1.0))]
            refused = [f"{a.cmd_id}: {a.reason}" for a in answers if not a.accepted]
        self._hear(rig.tick(until=rig.clock + self.dt))
        truth = {name: column[self._told - 1 :] for name, column in rig.truth.items()}
        self._told += truth["time"].size - 1
        if self._stops and not rig.finished:
            limits = self.process.limits
            for name, most in (("lactate", limits.lactate_hard), ("volume", limits.volume_max)):
                if truth[name].max() > most:
                    rig.stop(f"{name} beyond {most:g}")
        cost = self._cost(truth) + (self._missed(rig) if rig.finished else 0.0)
        info = self._info(rig, refused)
        late = rig.finished and rig.outcome().reason == "latest day"
        return self._observed(rig), -cost, rig.finished and not late, late, info

    def _overrides(self, rig: VirtualBioreactor, asked: np.ndarray) -> tuple[Any, ...]:
        """The action as the closed loop would send it: valid for this step and half a tick."""
        self._sent += 1
        rates = dict(zip(MOVED, (asked[: len(MOVED)] * self._top).tolist(), strict=True))
        control, now = Control(**rates), rig.clock
        plan = Plan(now, self.dt, (control,), (), "not_run", 0.0, None, "environment")
        decision = Decision(
            now,
            control,
            bool(asked[-1] > 0.5),
            now + self.dt + self.scenario.tick / 2.0,
            plan,
            f"environment-{self._sent}",
            (),
        )
        return overrides(decision, self._sent, self.process.recipe.version, self.process.limits)

    def _hear(self, facts: Sequence[Fact]) -> None:
        for fact in facts:
            if self._twin is not None:
                try:
                    self._twin = self._twin.tell(fact)
                except Refused:
                    continue
            if not isinstance(fact, Measurement) or impossible(fact.channel, fact.value) is not None:
                continue
            old = self._seen.get(fact.channel)
            if old is None or old[1] <= fact.sampled_at:
                self._seen[fact.channel] = (fact.value, fact.sampled_at)

    def _observed(self, rig: VirtualBioreactor) -> np.ndarray:
        now, applied = rig.clock, rig.applied
        told = [now]
        if self._twin is not None:
            believed = self._twin.estimate(now)
            told += [v for name in BELIEVED for v in (believed[name].mean, believed[name].sd)]
        else:
            for name in self._channels:
                value, at = self._seen.get(name, (0.0, None))
                told += [value, NEVER if at is None else max(0.0, now - at)]
        medium = float(rig.truth["perfusion"][1:].sum()) * self.scenario.tick
        told += [*applied, recipe_control(self.process.recipe, now, rig.readings).perfusion, medium]
        space = cast("gymnasium.spaces.Box", self.observation_space)
        return np.clip(np.nan_to_num(np.array(told, dtype=np.float32), nan=MOST), space.low, space.high)

    def _info(self, rig: VirtualBioreactor, refused: list[str]) -> dict[str, Any]:
        now = rig.clock
        recipe = recipe_control(self.process.recipe, now, rig.readings)
        shares = [float(getattr(recipe, n)) / t if t > 0.0 else 0.0 for n, t in zip(MOVED, self._top, strict=True)]
        due = harvest_due(self.process.recipe, now, rig.readings, float(rig.state.volume))
        told: dict[str, Any] = {
            "day": now, "donor": self.donor, "seed": self.seed, "recipe": np.array([*shares, float(due)]), "refused": refused,
        }  # fmt: skip
        return told | ({"outcome": asdict(rig.outcome())} if rig.finished else {})

    def _cost(self, truth: Mapping[str, np.ndarray]) -> float:
        """What the true course since the last step cost [volumes of medium]; its first row was paid for then."""
        own = {name: column[1:] for name, column in truth.items()}
        if not own["time"].size:
            return 0.0
        prices, hours = self._economy.prices, np.diff(truth["time"])
        control = Control(own["perfusion"], own["feed"], own["bleed"], own["cytokine_dose"])
        x = SimpleNamespace(
            **{n: own[n] for n in ("glucose", "lactate", "ammonia", "cytokine", "glutamine", "strong_ion")}
        )
        oxygen = own["do"] / 100.0 * AIR_SATURATION
        gases = SimpleNamespace(gas=SimpleNamespace(ph=own["ph"], oxygen=oxygen))
        beyond = path_violations(cast("Any", x), cast("Any", gases), self._economy)
        slacks = slack_cost([np.maximum(0.0, v) for v in beyond], hours, self._economy)
        moved = prices.move_perfusion * float(truth["perfusion"][1] - truth["perfusion"][0]) ** 2
        moved += prices.move_dose * (float(truth["cytokine_dose"][1] - truth["cytokine_dose"][0]) / DOSE_MOVE) ** 2
        held = running_cost(control, self._economy) * hours + slacks + prices.day * hours
        return float(np.sum(held)) + moved

    def _missed(self, rig: VirtualBioreactor) -> float:
        """What is missed at the end, on the true vessel [volumes of medium]."""
        x: Any = rig.state
        prices, total = self._economy.prices, 0.0
        for t in self.process.aims:
            if t.cqa == "ph":  # no attribute that the controller plans for
                continue
            short, logarithmic = target_shortfall(t.cqa, t.sense, x, t.value)
            total += (prices.target_ln if logarithmic else prices.target) * max(0.0, float(short))
        ends = closing_terms(x, rig.outcome().medium_vv, self.process.limits.medium_budget, self._economy)
        return total + sum(price * max(0.0, float(excess)) for excess, price in ends)


if ID not in gymnasium.registry:
    gymnasium.register(ID, entry_point="simulators.environment:Bioreactor")
