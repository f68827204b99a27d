"""A whole batch in one call: virtual bioreactor, twin and policy, run by the verbs that the service runs.

A recipe is the edge alone; no filter is run for it. Any other policy sits in a `controllers.loop.Session`: the edge keeps
its recipe, the twin's decisions become expiring overrides, and what the edge lets through is what happens.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from controllers import make_policy, make_recipe
from controllers.loop import Session, receive
from controllers.plan import Decision, Policy
from controllers.policies import RecipePolicy, find_policy
from simulators.donors import VirtualDonor
from simulators.edge import HARVEST, Ack, Caps, Override
from simulators.faults import Fault
from simulators.reactor import Outcome, VirtualBioreactor
from simulators.scenario import Scenario, load_scenario
from twin.batch import start
from twin.donors.prior import DonorPrior, preset_prior
from twin.evidence import ACTUATORS, Fact, Refused
from twin.process import Limits, Process, Recipe


@dataclass(frozen=True, slots=True, eq=False)
class BatchResult:
    """One virtual batch, finished."""

    policy: str
    donor: str
    seed: int
    outcome: Outcome
    truth: dict[str, np.ndarray]  # by the names of `VirtualBioreactor.TRUTH`
    facts: tuple[Fact, ...]  # everything the wire would have carried, in order
    decisions: tuple[Decision, ...]  # none for a recipe
    acks: tuple[Ack, ...]
    refused: tuple[str, ...]  # facts that the twin refused, and why
    session: Session | None  # as it stood at the end; None for a recipe

    @property
    def passed(self) -> bool:
        """Harvested in time with every target met, on the true vessel."""
        return self.outcome.passed


def run_closed_loop(
    process: Process,
    policy: str | Recipe | Policy = "mpc",
    *,
    donor: VirtualDonor | int | None = None,
    seed: int = 0,
    scenario: Scenario | str = "nominal",
    donor_prior: DonorPrior | None = None,
    filter_name: str = "ukf",
    faults: Iterable[Fault] = (),
    **settings: Any,
) -> BatchResult:
    """Run one batch to its harvest. Deterministic: same arguments, same result to the last bit.

    Args:
        process: what is fixed before the batch; its recipe is the edge's own when `policy` is no recipe.
        policy: "mpc", a recipe's name or `Recipe`, any `controllers.plan.Policy`, or where one is found: "module:Class".
        donor: a `VirtualDonor`, its number, or None for number `seed`.
        seed: of the instruments.
        scenario: an entry of `configs/scenarios`, a file, or a `Scenario`.
        donor_prior: what the twin knows of donors; None: the preset's published spreads.
        filter_name: "ukf" or "ekf".
        faults: what goes wrong on the rig.
        settings: of the policy, when it is given by name; for "mpc" the fields of `controllers.mpc.MpcSettings`.

    Raises ConfigError for an unknown policy, recipe or scenario.
    """
    surroundings = load_scenario(scenario) if isinstance(scenario, str) else scenario
    name, recipe, chosen = resolve_policy(process, policy, surroundings, settings)
    if chosen is None:
        process = replace(process, recipe=recipe)
    rig = VirtualBioreactor(process, donor, seed=seed, scenario=surroundings, online=chosen is not None, faults=faults)
    session = None
    if chosen is not None:
        batch = start(f"virtual-{rig.donor.id}-{seed}", process, donor_prior or preset_prior(process), filter_name)
        session = Session(batch)
    facts: list[Fact] = []
    decisions: list[Decision] = []
    refused: list[str] = []
    while not rig.finished:
        for fact in rig.tick():
            facts.append(fact)
            if session is None or chosen is None:
                continue
            try:
                session, taken = receive(session, fact, chosen)
            except Refused as refusal:
                refused.append(f"{fact.id}: {refusal.reason}: {refusal}")
                continue
            for decision in taken:
                decisions.append(decision)
                for override in overrides(decision, len(decisions), recipe.version, process.limits):
                    rig.command(override)
    return BatchResult(
        name, rig.donor.id, seed, rig.outcome(), rig.truth, tuple(facts), tuple(decisions), tuple(rig.acks), tuple(refused), session
    )  # fmt: skip


def resolve_policy(
    process: Process, policy: str | Recipe | Policy, scenario: Scenario, settings: dict[str, Any]
) -> tuple[str, Recipe, Policy | None]:
    """Name, the edge's recipe, and the policy that the twin runs (None: the edge is alone)."""
    if isinstance(policy, Recipe):
        return policy.name, policy, None
    if isinstance(policy, RecipePolicy):
        return policy.name, policy.recipe, None
    if not isinstance(policy, str):
        return policy_name(policy), process.recipe, policy
    if ":" in policy:
        return policy, process.recipe, find_policy(policy, process, **settings)
    if policy != "mpc":
        recipe = make_recipe(policy, process, **settings)
        return policy, recipe, None
    return policy, process.recipe, make_policy("mpc", process, **{**mpc_caps(scenario.caps), **settings})


def policy_name(policy: str | Recipe | Policy) -> str:
    """What a policy is called in tables: its own `name`, else that of its class or function."""
    if isinstance(policy, str):
        return policy
    return str(getattr(policy, "name", None) or getattr(policy, "__name__", None) or type(policy).__name__)


def mpc_caps(caps: Caps) -> dict[str, float]:
    """What the MPC should know of the edge's caps, as its settings."""
    return {"k1": caps.of_recipe_max, "k2": caps.of_recipe_now, "cap_floor": caps.floor}


def overrides(
    decision: Decision, seq: int, recipe_version: int, limits: Limits, epoch: int = 1
) -> tuple[Override, ...]:
    """The overrides that a decision asks for: one per actuator that may run at all, and harvest (1: now; 0: not yet).

    None if the decision refrains.
    """
    if decision.control is None:
        return ()
    rates = {a: float(getattr(decision.control, a)) for a in ACTUATORS if getattr(limits, f"{a}_max") > 0.0}
    rates[HARVEST] = 1.0 if decision.harvest else 0.0
    return tuple(
        Override(
            cmd_id=f"{decision.basis[:16]}-{seq}-{name}",
            epoch=epoch,
            seq=seq,
            actuator=name,
            rate=rate,
            valid_from=decision.at,
            valid_until=decision.valid_until,
            recipe_version=recipe_version,
            basis_hash=decision.basis,
        )
        for name, rate in rates.items()
    )
