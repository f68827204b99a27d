"""Are forecasts of the harvest and of release as sure as they may be? On the mismatched plant, under the recipe's own harvest.

Every donor's batch runs as the edge runs it, until its counted dose or its latest day, and the twin that is told of it
forecasts the harvest on every day; on day 0, told nothing, it has the population alone. Truth is what is in the vessel when
the plant is harvested. A batch that has been harvested is no longer asked about: later days have fewer batches.

Reported from seed 0 upwards. Nothing in the forecast was chosen on these donors: what was, was chosen on seeds from 3000.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import kstest

from controllers.recipes import recipe_schedule
from simulators.recording import record
from simulators.study.base import Figure, OneDonor, Row, Study, Table, one_each
from simulators.study.tracking import live
from twin.batch import start
from twin.bioreactor import State
from twin.futures import Ensemble, passes, release, run_futures
from twin.history import Batch
from twin.process import Process
from twin.scores import (
    Z95,
    Power,
    Warned,
    bootstrap,
    brier,
    coverage_power,
    crps,
    logistic_calibration,
    pit,
    roc,
    warned,
)

DAYS = (0, 3, 6, 8, 10)
"""Days of the forecasts that are scored; on day 0 nothing has been told."""
OWED = 6
"""The day from which calibration is owed."""
FUTURES = 300
SEVENTEEN = 17
CAR_CELLS = "viable CAR+ cells"
QUANTITIES = (CAR_CELLS, "viability", "viable_cells", "car_fraction", "exhausted_fraction", "day")
"""What is foretold of the harvest: cells in 1e9, its day in days, the rest fractions."""
RELEASE = "release"
"""All targets together."""


def run(job: OneDonor) -> Row:
    """One batch to its harvest, a forecast of it on every whole day until then."""
    process, prior = job.given
    recording = record(process, job.seed, seed=job.seed, days=process.recipe.harvest_latest, ignore_harvest=False)
    end = {name: float(course[-1]) for name, course in recording.truth.items()}
    truth = {
        **{q: end[q] for q in QUANTITIES[1:-1]},
        CAR_CELLS: end["viable_cells"] * end["car_fraction"],
        "day": end["time"],
    }
    batch = start("study", process, prior)
    days = [_ahead(batch, 0, process, job.seed, truth)]
    for moment in live(recording, batch, 1.0):
        if moment.at > end["time"] - 1e-6:
            break
        days.append(_ahead(moment.batch, round(moment.at), process, job.seed, truth))
    met = {t.cqa: t.met(end[t.cqa]) for t in process.targets}
    return {"seed": job.seed, "truth": truth, "met": {**met, RELEASE: all(met.values())}, "days": days}


def _ahead(batch: Batch, day: int, process: Process, seed: int, truth: Row) -> dict[str, Any]:
    ensemble = run_futures(batch, float(day), recipe_schedule(process.recipe), n=FUTURES, seed=seed)
    p = {t.cqa: float(passes(t, ensemble.harvested).mean()) for t in process.targets}
    p[RELEASE] = float(release(ensemble, process.targets).mean())
    if day not in DAYS:
        return {"day": day, "p": p}
    rng, told = np.random.default_rng([seed, day, 5]), {}
    for name, values in foretold(ensemble).items():
        low, middle, high = np.quantile(values, [0.05, 0.5, 0.95])
        told[name] = {
            "q05": float(low), "q50": float(middle), "q95": float(high), "crps": float(crps(values, np.array(truth[name]))),
            "pit": float(pit(values, np.array(truth[name]), rng)),
        }  # fmt: skip
    return {"day": day, "p": p, "told": told}


def foretold(ensemble: Ensemble) -> dict[str, np.ndarray]:
    """`QUANTITIES` of every future at its harvest, in their order."""
    x: State = ensemble.harvested
    values = (x.car_positive * x.volume, x.viability, x.viable_cells, x.car_fraction, x.exhausted)
    return dict(zip(QUANTITIES, (*values, ensemble.t[ensemble.harvest]), strict=True))


class _Told:
    """Forecasts of one quantity from one day, over the batches that were then running."""

    def __init__(self, rows: Sequence[Row], quantity: str, day: int) -> None:
        pairs = [(r, d) for r in rows for d in r["days"] if d["day"] == day]
        told = [d["told"][quantity] for _, d in pairs]
        self.n = len(pairs)
        truth = np.array([r["truth"][quantity] for r, _ in pairs])
        self.held = np.array([t["q05"] for t in told]) <= truth
        self.held &= truth <= np.array([t["q95"] for t in told])
        self.pit, self.crps = np.array([t["pit"] for t in told]), np.array([t["crps"] for t in told])
        self.prior = np.array([r["days"][0]["told"][quantity]["crps"] for r, _ in pairs])

    @property
    def coverage(self) -> tuple[float, float]:
        """Share in the 90 % band, and +/- (binomial)."""
        share = float(self.held.mean())
        return share, Z95 * float(np.sqrt(share * (1.0 - share) / self.n))

    @property
    def gain(self) -> tuple[float, float]:
        """CRPS below that of the prior alone on the same batches, as a share of it, and +/- (bootstrap)."""
        return _share_below(self.crps, self.prior)

    @property
    def uniform(self) -> float:
        """Kolmogorov-Smirnov p of the PIT."""
        return float(kstest(self.pit, "uniform").pvalue)


def _share_below(mine: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    low, high = bootstrap(lambda k: 1.0 - float(mine[k].mean() / theirs[k].mean()), mine.size, np.random.default_rng(1))
    return 1.0 - float(mine.mean() / theirs.mean()), 0.5 * (high - low)


def chances(rows: Sequence[Row], cqa: str, day: int) -> tuple[np.ndarray, np.ndarray]:
    """P(pass) of every batch running on `day`, and whether it passed."""
    pairs = [(d["p"][cqa], r["met"][cqa]) for r in rows for d in r["days"] if d["day"] == day]
    return np.array([p for p, _ in pairs]), np.array([m for _, m in pairs], dtype=bool)


def _less_brier(p: np.ndarray, met: np.ndarray) -> tuple[float, float]:
    """Brier score less the base rate's, and +/- (bootstrap)."""

    def less(k: np.ndarray) -> float:
        found = brier(p[k], met[k])
        return found.score - found.base

    low, high = bootstrap(less, p.size, np.random.default_rng(2))
    return less(np.arange(p.size)), 0.5 * (high - low)


def figures(rows: Sequence[Row]) -> tuple[Figure, ...]:
    """What is owed from day 6, the seventeen, and warnings."""
    found: list[Figure] = []
    for quantity in (CAR_CELLS, "viability"):
        told = _Told(rows, quantity, OWED)
        (share, half), (gain, wide), p = told.coverage, told.gain, told.uniform
        count = coverage_power(told.n)
        found += [
            Figure(f"{quantity} from day {OWED}: in the 90 % band", share, low=0.85, high=0.95, n=told.n, note=f"+/-{half:.3f}; {int(told.held.sum())} held; {count}"),
            Figure(f"{quantity} from day {OWED}: CRPS below prior only", gain, low=0.30, n=told.n, note=f"+/-{wide:.3f}"),
            Figure(f"{quantity} from day {OWED}: PIT uniform, p", p, low=0.05, n=told.n, note="Kolmogorov-Smirnov"),
        ]  # fmt: skip
    p, met = chances(rows, RELEASE, OWED)
    cal, (less, half) = logistic_calibration(p, met, FUTURES), _less_brier(p, met)
    parted = "; outcomes are separated: penalised" if cal.separated else ""
    found += [
        Figure(f"P(release) from day {OWED}: calibration slope", cal.slope, low=0.8, high=1.2, n=p.size, note=f"+/-{Z95 * cal.slope_sd:.2f}; intercept {cal.intercept:+.2f} +/-{Z95 * cal.intercept_sd:.2f}{parted}"),
        Figure(f"P(release) from day {OWED}: Brier less base rate's", less, high=0.0, n=p.size, note=f"+/-{half:.3f}; released {met.mean():.3f}, foretold {p.mean():.3f}"),
    ]  # fmt: skip
    return (*found, *_seventeen(rows), *_warnings(rows))


def _seventeen(rows: Sequence[Row]) -> list[Figure]:
    if len(rows) < SEVENTEEN:
        return []
    found: list[Figure] = []
    for quantity in (CAR_CELLS, "viability"):
        told = _Told(rows[:SEVENTEEN], quantity, OWED)
        power: Power = coverage_power(told.n)
        found.append(
            Figure(
                f"first {told.n} donors, {quantity} from day {OWED}: in the 90 % band", float(told.held.sum()),
                low=power.low, high=power.high, n=told.n, note=str(power),
            )
        )  # fmt: skip
    return found


def warned_of(rows: Sequence[Row]) -> Warned | None:
    """First warnings by P(fail); None where no batch failed, or a half has none that passed."""
    failed = np.array([not r["met"][RELEASE] for r in rows])
    if not failed.any() or failed[::2].all() or failed[1::2].all():
        return None
    return warned(courses(rows), failed)


def pits(rows: Sequence[Row], quantity: str, day: int) -> np.ndarray:
    """Where the truth lay in the forecast of `quantity` from `day`, by batch: 0 to 1."""
    return np.array([d["told"][quantity]["pit"] for r in rows for d in r["days"] if d["day"] == day])


def _warnings(rows: Sequence[Row]) -> list[Figure]:
    """Warnings at a threshold that the other half of the donors chose, 5 % false alarms there."""
    failed, said = np.array([not r["met"][RELEASE] for r in rows]), warned_of(rows)
    if said is None:
        return []
    harvest = np.array([r["truth"]["day"] for r in rows])
    lead = np.where(np.isfinite(said.first), harvest - said.first, 0.0)[failed]
    low, high = bootstrap(lambda k: float(np.median(lead[k])), lead.size, np.random.default_rng(3))
    seen, passed = np.isfinite(said.first[failed]), int((~failed).sum())
    share, half = float(seen.mean()), Z95 * float(np.sqrt(seen.mean() * (1.0 - seen.mean()) / seen.size))
    alarms = said.false_alarms
    return [
        Figure("warning: false alarms on the half that did not choose the threshold", alarms, n=passed, note=f"+/-{Z95 * np.sqrt(alarms * (1 - alarms) / passed):.3f}; 0.05 chosen; P(fail) {said.threshold[0]:.2f}, {said.threshold[1]:.2f}"),
        Figure("warning: failing batches warned of before harvest", share, n=seen.size, note=f"+/-{half:.3f}"),
        Figure("warning: median lead before harvest [d]", float(np.median(lead)), n=lead.size, note=f"95 % {low:.1f} to {high:.1f}; a batch not warned of leads by 0"),
    ]  # fmt: skip


def courses(rows: Sequence[Row]) -> list[tuple[list[float], list[float]]]:
    """Days from 1 on, and P(fail) as forecast on each, by batch."""
    told = [[d for d in r["days"] if d["day"] > 0] for r in rows]
    return [([float(d["day"]) for d in days], [1.0 - d["p"][RELEASE] for d in days]) for days in told]


def tables(rows: Sequence[Row]) -> tuple[Table, ...]:
    """Every quantity and every P(pass), by day of the forecast."""
    harvest: list[tuple[Any, ...]] = []
    passed: list[tuple[Any, ...]] = []
    for day in DAYS:
        n = sum(d["day"] == day for r in rows for d in r["days"])
        if n < 2:
            continue
        for quantity in QUANTITIES:
            told = _Told(rows, quantity, day)
            (share, half), (gain, wide) = told.coverage, told.gain
            mean, spread = float(told.crps.mean()), Z95 * float(told.crps.std() / np.sqrt(n))
            harvest.append(
                (quantity, day, n, f"{share:.3f} +/-{half:.3f}", f"{mean:.3g} +/-{spread:.2g}", f"{gain:.2f} +/-{wide:.2f}", f"{told.uniform:.3f}")
            )  # fmt: skip
        passed += [_chance(rows, cqa, day) for cqa in rows[0]["met"]]
    return (
        Table("Harvest foretold", ("quantity", "from day", "n", "in 90 % band", "CRPS", "below prior only", "PIT uniform, p"), tuple(harvest)),
        Table("P(pass) foretold", ("target", "from day", "n", "passed", "foretold", "Brier", "less base rate's", "slope", "intercept", "AUC"), tuple(passed)),
    )  # fmt: skip


def _chance(rows: Sequence[Row], cqa: str, day: int) -> tuple[Any, ...]:
    p, met = chances(rows, cqa, day)
    less, half = _less_brier(p, met)
    slope, intercept, auc = "forecasts alike", "", "one outcome"
    if np.ptp(p) > 0.0:
        cal = logistic_calibration(p, met, FUTURES)
        slope = f"{cal.slope:.2f} +/-{Z95 * cal.slope_sd:.2f}{' (separated)' if cal.separated else ''}"
        intercept = f"{cal.intercept:+.2f} +/-{Z95 * cal.intercept_sd:.2f}"
    if 0 < met.sum() < met.size:

        def area(k: np.ndarray) -> float:
            return roc(p[k], met[k]).auc if 0 < met[k].sum() < k.size else float("nan")

        low, high = bootstrap(area, p.size, np.random.default_rng(4), 200)
        auc = f"{area(np.arange(p.size)):.3f} +/-{0.5 * (high - low):.3f}"
    rate = float(met.mean())
    spread = Z95 * float(np.sqrt(rate * (1.0 - rate) / met.size))
    return (
        cqa, day, met.size, f"{rate:.3f} +/-{spread:.3f}", f"{p.mean():.3f}", f"{brier(p, met).score:.3f}", f"{less:+.3f} +/-{half:.3f}",
        slope, intercept, auc,
    )  # fmt: skip


STUDY = Study("Harvest and release foretold on the mismatched plant", 400, one_each, run, figures, tables)
