"""How far a target is held back so that it is met with a given chance, as the belief has it.

The belief is carried along the recipe's course by the filter's own prediction, process noise included. Its quantities are
log-normal, viability and the CAR+ fraction logit-normal: a target is met with probability p where the plan's median keeps z_p
standard deviations from it, in ln or in log odds. The spread is taken not to hang on the plan, and every target is held to its
chance by itself; all together have at least 1 less the sum of what each may miss. Nothing is held back by more than `MOST`: early
beliefs are wide, and the loop learns before harvest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.special import expit, logit
from scipy.stats import norm

from controllers.mpc.objective import N_PATH, PATH, PATH_SCALE
from twin.bioreactor import Control, Theta
from twin.estimation.belief import FRACTIONS, Belief, Layout, transformed
from twin.estimation.filters import ukf
from twin.estimation.model import BioreactorModel
from twin.inputs import Drive
from twin.process import Process, Target

SPREAD = ("viable_cells", "viable_density", "viability", "car_fraction", "exhausted_fraction", "lactate", "ammonia")

MOST = {"ln": 0.35, "fraction": 0.08}
"""The most that a target is held back: of ln of an amount, and of a fraction."""


@dataclass(frozen=True, slots=True, eq=False)
class Foreseen:
    """Standard deviations at the harvests and nodes to come."""

    sd: Mapping[str, np.ndarray]  # by quantity, [N + 1] of ln or log odds, now first

    def strict(self, t: Target, h: int, chance: float, floor: float) -> float:
        """The value that the plan's median is to meet, `h` moves ahead; `floor`: sd of ln that no belief shows (of cells)."""
        cells = t.cqa in ("viable_cells", "viable_density")
        back = _deviations(chance, np.hypot(self.sd[t.cqa][h], floor if cells else 0.0))
        sign = 1.0 if t.sense == "at_least" else -1.0
        if t.cqa not in FRACTIONS:
            return t.value * float(np.exp(sign * min(back, MOST["ln"])))
        held = float(expit(logit(min(max(t.value, 1e-6), 1.0 - 1e-6)) + sign * back))
        return t.value + float(np.clip(held - t.value, -MOST["fraction"], MOST["fraction"]))

    def back_offs(self, hard_lactate: float, n: int, chance: float) -> np.ndarray:
        """What the hard limit of lactate [mM] is held back by at the next `n` nodes, [n, 9] in units of `PATH_SCALE`."""
        out, row = np.zeros((n, N_PATH)), PATH.index("lactate_hard")
        back = np.minimum(_deviations(chance, self.sd["lactate"][1 : n + 1]), MOST["ln"])
        out[:, row] = hard_lactate * -np.expm1(-back) / PATH_SCALE[row]
        return out


def _deviations(chance: float, sd: Any) -> Any:
    """So many standard deviations as `chance` asks for; none for an even one, however wide."""
    return norm.ppf(chance) * sd if chance > 0.5 else 0.0 * np.ones_like(sd)


def foreseen(
    belief: Belief, layout: Layout, process: Process, theta: Theta, moves: np.ndarray, step: float
) -> Foreseen:
    """The belief's spread along `moves` [N, 3] of `step` days: perfusion, feed [VVD], cytokine dose [IU/mL/d].

    `theta` holds the medium in use, and the kinetics that the belief does not.
    """
    k = layout.error_start
    own = Layout(layout.parameters, ())
    model = BioreactorModel(replace(process, theta=theta, sensors={}), own)
    predict = ukf(model, k).predict
    ahead = Belief(belief.time, belief.mean[:k], belief.cov[:k, :k])
    rows = [_spread(ahead, own)]
    for i, (perfusion, feed, dose) in enumerate(moves, start=1):
        drive = Drive(Control(float(perfusion), float(feed), 0.0, float(dose)), theta.medium)
        ahead = predict(ahead, drive, belief.time + i * step)
        rows.append(_spread(ahead, own))
    return Foreseen(dict(zip(SPREAD, np.array(rows).T, strict=True)))


def _spread(belief: Belief, layout: Layout) -> list[float]:
    """Standard deviations; without an end where the belief has none, so that nothing is taken for known."""
    variances = (transformed(belief, layout, name)[1] for name in SPREAD)
    return [float(np.sqrt(max(v, 0.0))) if np.isfinite(v) else np.inf for v in variances]
