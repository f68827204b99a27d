"""The stages around the bioreactor: static cultures that grow, and recoveries that lose cells, as one chain of counts.

    ln N_0 ~ N(m_0, s_0^2)                       NK cells collected from a donor
    ln N_{k+1} = ln N_k + m_k + s_k e            a stage that grows no cells: its recovery, with the donor's effect
    ln N_{k+1} = ln N_k + integral of growth     activation and seed train, by the donor's own growth rate and lag
    harvest takes what the bioreactor holds      ln N = ln(viable cells of the trajectory) at the recorded harvest
    counts        normal on ln N, sd `CELL_COUNT_CV`, into and out of every stage; nobody need count them all

Given growth, the chain is linear and Gaussian: cell numbers and donor effects are integrated out exactly, by a scalar Kalman
filter along the stages. Cells go forward only: into a stage goes what came out of the one before; the bioreactor, inoculated
by density, begins anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from twin.bioreactor import LN2
from twin.donors.data import STATIC_STAGES, FitData, StaticCultures

if TYPE_CHECKING:
    from collections.abc import Callable

CELL_COUNT_CV = 0.07  # of a count of cells (SCIENCE section 3: 5-10 %)
COLLECTED = (2.5, 0.5)
"""Median NK cells of a collection [1e9] (22e9 nucleated, 11-12 % NK: SCIENCE section 2) and the spread of ln over donors."""
STATIC_GROWTH = (0.75, 0.10)
"""Growth in static culture over that in the stirred vessel, and its spread of ln over donors (asm)."""


class Static:
    """Growth of the donors in static culture: rate and lag [donor], and the noise of its counts. Adds the likelihood."""

    def __init__(self, static: StaticCultures | None, donors: int, kinetic: Callable[[str], Any]) -> None:
        import pymc as pm
        import pytensor.tensor as pt

        ln_phi = pm.Normal("ln_phi", np.log(STATIC_GROWTH[0]), 0.25)
        spread = pm.LogNormal("phi_sd", np.log(STATIC_GROWTH[1]), 0.5)
        e = pm.Normal("e", 0.0, spread, dims="donor")
        self.rate = kinetic("mu_max") * pt.exp(ln_phi + e)
        self.lag, self.death = kinetic("tau_lag") * pt.ones(donors), kinetic("k_d0") * pt.ones(donors)
        self.drift = pm.LogNormal("q_static", np.log(0.03), 0.8)
        if static is not None:
            self._observe(static)

    def grown(self, t: Any, donor: Any, lagging: Any) -> Any:
        """Time-integral of the growth rate [ln units] over the first t days."""
        import pytensor.tensor as pt

        tau = self.lag[donor]
        return self.rate[donor] * (t - lagging * tau * (1.0 - pt.exp(-t / tau)))

    def _observe(self, static: StaticCultures) -> None:
        import pymc as pm
        import pytensor.tensor as pt

        s, donor = static.samples, static.donor
        first = np.array([s.value[s.column == k][np.argmin(s.time[s.column == k])] for k in range(len(donor))])
        seeded = pm.Normal("ln_seeded", np.log(first), 0.3, shape=len(donor))
        of = donor[s.column]
        predicted = seeded[s.column] + self.grown(s.time, of, static.lagging[s.column]) - self.death[of] * s.time
        scale = pt.sqrt(s.sd**2 + self.drift**2 * s.time)
        pm.StudentT("seen_static", nu=4.0, mu=predicted, sigma=scale, observed=np.log(s.value))

    def doublings(self, static: StaticCultures, expected: np.ndarray) -> Any:
        """Doublings [donor] with which cells enter the bioreactor; as `expected` where a donor lacks one of the cultures."""
        import pytensor.tensor as pt

        total = pt.zeros(len(expected))
        total = pt.inc_subtensor(total[static.donor], self.grown(static.length, static.donor, static.lagging))
        whole = np.bincount(static.donor, minlength=len(expected)) == len(STATIC_STAGES)
        return pt.switch(whole, pt.maximum(total / LN2, 0.5), expected)


def observe_chain(data: FitData, static: Static | None, harvested: Any, harvested_sd: Any) -> None:
    """Likelihood of all counted cells; without static cultures the chain begins anew behind activation and seed train.

    `harvested` [b]: ln of the viable cells in the bioreactor at its harvest; `harvested_sd` [b]: its scale beyond counting.
    """
    import pymc as pm
    import pytensor.tensor as pt

    if data.chain is None:
        return
    chain, b = data.chain, len(data.batches)
    recovering = [i for i, s in enumerate(chain.stages) if s.name not in STATIC_STAGES]
    m = pm.Normal("yield", np.log([chain.stages[i].yield_mean for i in recovering]), 0.3, dims="stage")
    s = pm.LogNormal(
        "yield_sd", np.log([max(chain.stages[i].yield_sd_ln, 0.05) for i in recovering]), 0.5, dims="stage"
    )
    m0 = pm.Normal("ln_collected", np.log(COLLECTED[0]), COLLECTED[1])
    s0 = pm.LogNormal("collected_sd", np.log(0.4), 0.5)
    mean, variance, total = m0 * pt.ones(b), s0**2 * pt.ones(b), 0.0
    for i, stage in enumerate(chain.stages):
        if stage.name == "harvest":
            known = np.isfinite(chain.harvested)
            mean = pt.switch(known, harvested, _first(chain.into[i], chain.outof[i]))
            variance = pt.switch(known, harvested_sd**2, 1.0)
        mean, variance, said = _counted(mean, variance, chain.into[i])
        total = total + said
        if i in recovering:
            k = recovering.index(i)
            mean, variance = mean + m[k], variance + s[k] ** 2
        elif static is not None:
            length = stage.end - stage.start
            lagging = 1.0 if stage.name == STATIC_STAGES[0] else 0.0
            donor = data.donor_of
            mean = mean + static.grown(length, donor, lagging) - static.death[donor] * length
            variance = variance + static.drift**2 * length
        else:
            mean, variance = pt.as_tensor(_first(chain.outof[i], chain.outof[i])), 1.0 * pt.ones(b)
        mean, variance, said = _counted(mean, variance, chain.outof[i])
        total = total + said
    pm.Potential("stage_counts", total)


def _first(into: np.ndarray, outof: np.ndarray) -> np.ndarray:
    """What was counted, as the centre of a start that says nothing; 0 where nothing was."""
    return np.nan_to_num(np.where(np.isfinite(into), into, outof))


def _counted(mean: Any, variance: Any, seen: np.ndarray) -> tuple[Any, Any, Any]:
    """ln N after a count, and what the count says: log-density summed over batches. NaN: not counted."""
    import pytensor.tensor as pt

    counted = np.isfinite(seen).astype(float)
    total = variance + CELL_COUNT_CV**2
    off = counted * (np.nan_to_num(seen) - mean)
    gain = counted * variance / total
    said = pt.sum(-0.5 * counted * (off**2 / total + pt.log(2.0 * np.pi * total)))
    return mean + gain * off, variance * (1.0 - gain), said
