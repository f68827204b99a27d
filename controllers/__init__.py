"""What we decide: policies (recipes, MPC), the guard, and the loop that every driver runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from controllers.plan import Decision, Plan, Policy, Reading, Situation
from controllers.policies import RecipePolicy
from controllers.recipes import NUMBERS, check_recipe
from twin.config import ConfigError, load_recipe
from twin.process import Process, Recipe

POLICIES = ("mpc", "cspr", "density_steps", "lactate_p", "time_steps", "constant")
USUAL = {"cspr": "cspr_100", "lactate_p": "lactate_p_8", "constant": "constant_2"}
"""The shipped recipe that a policy's short name stands for."""


def make_policy(name: str, process: Process, **settings: Any) -> Policy:
    """A policy by name, ready for `controllers.loop.decide`.

    "mpc" takes the fields of `controllers.mpc.MpcSettings` as settings. Every other name is a recipe's policy ("cspr" stands
    for cspr_100, "lactate_p" for lactate_p_8, "constant" for constant_2) or a recipe entry ("cspr_50", a file); its settings
    are the recipe's numbers, e.g. ``make_policy("cspr", process, cspr_pl_per_cell_d=80)``. Feed, dosing and harvest rule are
    those of the process's own recipe: only the perfusion is another's. Raises ConfigError naming what was expected.
    """
    if name == "mpc":
        from controllers.mpc import make_mpc  # casadi takes a second to import; recipes do without it

        return make_mpc(process, **settings)
    return RecipePolicy(make_recipe(name, process, **settings))


def make_recipe(name: str, process: Process, **numbers: float | tuple[float, ...]) -> Recipe:
    """The recipe of `process` with the perfusion policy `name` in place of its own; see `make_policy`."""
    base = load_recipe(USUAL.get(name, name))
    unknown = [k for k in numbers if k not in NUMBERS[base.policy]]
    if unknown:
        raise ConfigError(f"policy {name}: unknown settings {unknown}; known: {list(NUMBERS[base.policy])}")
    given = {k: tuple(map(float, v)) if isinstance(v, tuple | list) else (float(v),) for k, v in numbers.items()}
    recipe = replace(
        process.recipe,
        name=base.name if not given else f"{base.name}*",
        policy=base.policy,
        numbers={**base.numbers, **given},
        version=base.version,
    )
    check_recipe(recipe)
    return recipe


__all__ = ["POLICIES", "Decision", "Plan", "Policy", "Reading", "Situation", "make_policy", "make_recipe"]
