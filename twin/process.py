"""The process as data, in ISA-88 words: stages, recipe, CQA targets, limits. No behaviour lives here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from twin.bioreactor import Coordinates, State, Theta
from twin.sensors import Sensor


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of the 28 days; days count from collection (the bioreactor's own clock starts at its inoculation)."""

    name: str
    start: float  # [d]
    end: float  # [d]
    yield_mean: float  # cells out over cells in, median over donors (1 where the stage conserves cells)
    yield_sd_ln: float  # spread of its logarithm over donors
    source: str


@dataclass(frozen=True, slots=True)
class Target:
    """A critical quality attribute at harvest and its acceptance limit."""

    cqa: str  # viable_cells | viable_density | viability | car_fraction | exhausted_fraction | lactate | ammonia
    sense: Literal["at_least", "at_most"]
    value: float
    unit: str

    def met(self, value: float) -> bool:
        return value >= self.value if self.sense == "at_least" else value <= self.value


@dataclass(frozen=True, slots=True)
class Limits:
    """Operating limits of the bioreactor stage (SCIENCE section 4). Rates in VVD, cytokine in IU/mL/d."""

    perfusion_max: float = 2.0
    perfusion_step: float = 0.5  # largest change of perfusion from one decision to the next [VVD]
    feed_max: float = 0.05
    bleed_max: float = 0.0
    cytokine_dose_max: float = 600.0
    glucose_min: float = 5.0  # mM
    lactate_soft: float = 20.0  # mM
    lactate_hard: float = 30.0  # mM
    ammonia_max: float = 3.0  # mM
    ph_min: float = 6.9
    ph_max: float = 7.4
    cytokine_min: float = 50.0  # IU/mL
    oxygen_min: float = 0.0  # dissolved, mM; 0: no floor but what the cells feel
    osmolality_max: float = 600.0  # mOsm/kg; 600: far above what a culture comes to, no ceiling
    volume_max: float = 1e9  # L
    medium_budget: float = 8.0  # vessel volumes a batch


@dataclass(frozen=True, slots=True)
class Recipe:
    """The locally stored, approved recipe: a named policy with its numbers, and the harvest rule."""

    name: str
    policy: Literal["time_steps", "density_steps", "cspr", "lactate_p", "constant", "none"]
    numbers: Mapping[str, tuple[float, ...]] = field(default_factory=dict)  # the policy's own parameters
    feed: float = 0.0  # VVD, held
    cytokine_dose: float = 0.0  # IU/mL/d, held
    harvest_cells: float = 20.0  # harvest when this many viable cells are counted [1e9 cells]
    harvest_latest: float = 14.0  # harvest at the latest on this day [d]
    version: int = 1


DEFAULT_NOISE = Coordinates(
    viable=0.04, car_odds=0.02, dead=0.10, glucose=0.04, lactate=0.04, glutamine=0.05, ammonia=0.05,
    cytokine=0.10, doublings=0.01, exhausted=0.10, strong_ion=0.03, activation=0.05, volume=0.002,
)  # fmt: skip
"""Standard deviation of ln that the states gather per sqrt(day), beyond what the model explains (SCIENCE: 3-6 %)."""


@dataclass(frozen=True, slots=True)
class Process:
    """Everything that is fixed before a batch starts: model, recipe, targets, limits, sensors."""

    name: str
    theta: Theta  # population medians with the vessel and the medium in use
    donor_sd: Mapping[str, float]  # donor standard deviation of ln, of Kinetics fields
    initial: State  # expected state at inoculation
    initial_sd: Coordinates  # standard deviation of ln of each coordinate at inoculation
    recipe: Recipe
    targets: tuple[Target, ...]
    limits: Limits
    sensors: Mapping[str, Sensor]
    stages: tuple[Stage, ...] = ()
    noise: Coordinates = DEFAULT_NOISE  # process noise, standard deviation of ln per sqrt(day)
    parameter_walk: float = 0.01  # the same for the learnt donor parameters: donor-day effects
    restless: Mapping[str, float] = field(default_factory=dict[str, float])  # the same for single ones that change more
    considered: tuple[
        str, ...
    ] = ()  # kinetics whose spread over donors the filter carries although no prior has learnt them

    @property
    def aims(self) -> tuple[Target, ...]:
        """What a harvest is held to: the targets, and the recipe's dose where none of them speaks of viable cells."""
        if any(t.cqa == "viable_cells" for t in self.targets):
            return self.targets
        return (*self.targets, Target("viable_cells", "at_least", self.recipe.harvest_cells, "1e9 cells"))

    @property
    def dose(self) -> float:
        """Viable cells that a batch must come to [1e9]: the largest that is asked for, else what the recipe harvests at."""
        asked = (t.value for t in self.aims if t.cqa == "viable_cells" and t.sense == "at_least")
        return max(asked, default=self.recipe.harvest_cells)
