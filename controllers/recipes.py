"""The recipes that users run today (SCIENCE section 4), each as one formula with two readers.

`recipe_control` is the operator's view (and the edge's): the formula at the last laboratory readings.
`recipe_schedule` is the model's view: the same formula at the simulated state, vectorised over futures.

==============  =============================================================  ================================
policy          perfusion P [VVD]                                              `Recipe.numbers`
==============  =============================================================  ================================
time_steps      the last of ``perfusion`` whose day has come, 0 before         days [d], perfusion [VVD]
density_steps   ``perfusion[k]``, k = how many densities are reached           densities [1e6/mL], perfusion
cspr            min(P_max, CSPR Xv / 1000)                                     cspr_pl_per_cell_d, perfusion_max
lactate_p       clip(gain (L - setpoint), 0, P_max)                            gain, setpoint [mM], perfusion_max
constant        P                                                              perfusion
none            0                                                              -
==============  =============================================================  ================================

Before the first reading there is nothing to act on: density_steps, cspr and lactate_p then perfuse at 0 VVD. Feed and
cytokine dosing are held at the recipe's rates from inoculation on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from controllers.plan import Reading
from twin.bioreactor import Control, State
from twin.config import ConfigError
from twin.kinetics import Scalar
from twin.process import Recipe

if TYPE_CHECKING:
    from twin.history import Batch

Schedule: TypeAlias = Callable[[float, State], Control]
"""(time [d], State of arrays, one column a future) -> Control of arrays of the same shape."""

NUMBERS: Mapping[str, tuple[str, ...]] = {
    "time_steps": ("days", "perfusion"),
    "density_steps": ("densities", "perfusion"),
    "cspr": ("cspr_pl_per_cell_d", "perfusion_max"),
    "lactate_p": ("gain", "setpoint", "perfusion_max"),
    "constant": ("perfusion",),
    "none": (),
}
"""The numbers that each policy needs; all but days, densities and the steps' perfusion are single."""


ACTED_ON = ("viable_density", "total_density", "viability", "lactate")
"""Laboratory channels that some policy goes by."""


def check_recipe(recipe: Recipe) -> None:
    """Refuse a recipe whose numbers do not fit its policy: ConfigError naming recipe, field and expectation."""
    where = f"recipe {recipe.name}"
    wanted = NUMBERS[recipe.policy]
    missing, unknown = [k for k in wanted if k not in recipe.numbers], [k for k in recipe.numbers if k not in wanted]
    if missing or unknown:
        asked = f"{recipe.policy} needs {list(wanted)}"
        raise ConfigError(f"{where}: field numbers: {asked}: missing {missing}, unknown {unknown}")
    for key, values in recipe.numbers.items():
        if not all(0.0 <= v < math.inf for v in values):
            raise ConfigError(f"{where}: field numbers.{key}: finite numbers >= 0 are needed, not {list(values)}")
    steps = {"time_steps": ("days", 0), "density_steps": ("densities", 1)}.get(recipe.policy)
    if steps is None:
        for key in wanted:
            if len(recipe.numbers[key]) != 1:
                raise ConfigError(f"{where}: field numbers.{key}: one number is needed, not {len(recipe.numbers[key])}")
        return
    key, extra = steps
    edges, rates_ = recipe.numbers[key], recipe.numbers["perfusion"]
    if list(edges) != sorted(edges) or len(rates_) != len(edges) + extra:
        raise ConfigError(
            f"{where}: field numbers.{key}: must ascend, with {len(edges) + extra} perfusion rates, not {len(rates_)}"
        )


def _perfusion(recipe: Recipe, t: Scalar, viable: Scalar, lactate: Scalar) -> Scalar:
    """The table above, in NumPy. `viable` [1e6 cells/mL], `lactate` [mM]; returns VVD."""
    n = recipe.numbers
    if recipe.policy == "time_steps":
        steps = np.array([0.0, *n["perfusion"]])
        return steps[np.searchsorted(n["days"], np.asarray(t) + 1e-9, side="right")]
    if recipe.policy == "density_steps":
        return np.asarray(n["perfusion"])[np.searchsorted(n["densities"], viable, side="right")]
    if recipe.policy == "cspr":
        return np.minimum(n["perfusion_max"][0], n["cspr_pl_per_cell_d"][0] * np.asarray(viable) / 1000.0)
    if recipe.policy == "lactate_p":
        return np.clip(n["gain"][0] * (np.asarray(lactate) - n["setpoint"][0]), 0.0, n["perfusion_max"][0])
    return n["perfusion"][0] if recipe.policy == "constant" else 0.0


def counted_density(readings: Mapping[str, Reading]) -> float | None:
    """Viable density [1e6 cells/mL] from the last count; total count times viability where that is how it is entered."""
    if "viable_density" in readings:
        return readings["viable_density"].value
    if "total_density" in readings and "viability" in readings:
        return readings["total_density"].value * readings["viability"].value
    return None


def recipe_control(recipe: Recipe, now: float, readings: Mapping[str, Reading]) -> Control:
    """What the recipe asks of the pumps at `now` [d], given the newest known laboratory readings (floats).

    A policy without the reading that it needs perfuses at 0 VVD (see above). Raises ConfigError for unusable numbers.
    """
    check_recipe(recipe)
    viable, lactate = counted_density(readings), readings.get("lactate")
    needs = {"density_steps": viable, "cspr": viable, "lactate_p": lactate}
    blind = needs.get(recipe.policy, 0.0) is None
    perfusion = 0.0 if blind else float(_perfusion(recipe, now, viable or 0.0, lactate.value if lactate else 0.0))
    return Control(perfusion, recipe.feed, 0.0, recipe.cytokine_dose)


def recipe_asked(batch: Batch) -> Callable[[float], Control]:
    """What the recipe of a batch asked of its pumps at a time [d], by the laboratory readings known then."""
    from twin.batch import latest  # and with it casadi, which takes a second to import

    laboratory = replace(batch, evidence=tuple(m for m in batch.evidence if m.channel in ACTED_ON))
    return lambda t: recipe_control(batch.process.recipe, t, latest(laboratory, t))


def recipe_schedule(recipe: Recipe) -> Schedule:
    """The recipe on simulated states: perfect, undelayed readings. Raises ConfigError for unusable numbers."""
    check_recipe(recipe)

    def schedule(t: float, x: State) -> Control:
        like = np.zeros(np.shape(x.volume))
        perfusion = like + _perfusion(recipe, t, x.viable, x.lactate)
        return Control(perfusion, like + recipe.feed, like, like + recipe.cytokine_dose)

    return schedule


def harvest_due(recipe: Recipe, now: float, readings: Mapping[str, Reading], volume: float) -> bool:
    """Whether the recipe ends the batch at `now` [d]: the dose is reached on counted cells, or it is the latest day.

    `volume` [L] times the counted density [1e6 cells/mL] is the viable cells in the vessel [1e9].
    """
    if now >= recipe.harvest_latest - 1e-9:
        return True
    viable = counted_density(readings)
    return viable is not None and viable * volume >= recipe.harvest_cells
