"""Why did this batch end as it did: posterior probabilities of causes, and what each of them cost.

1. Every change of `twin.retrospect.causes` predicts the readings of the whole batch in its own way; the bank of
   `twin.estimation.diagnosis` gives the likelihoods, readings that the screen held back included. The pH is left out: it tells
   of the gas balance, where plant and model differ most, and made probabilities worse on donors that no study scores.
2. What is left as nothing wrong is divided by what the smoothed batch says of the donor and of the seed.
3. Read-backs that fall short of the recipe are evidence too: sound batches do not show them (`EXCUSED`).
4. The effect of a cause is what the batch lost by it: the smoothed batch is run again without the cause, with the same
   donor, the same start and the same shocks (`twin.retrospect.paths`), and compared path by path.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf
from typing import NamedTuple

import numpy as np
from scipy.stats import norm

from twin.bioreactor import Control, Coordinates, Kinetics, State
from twin.estimation.belief import N_STATE, draws
from twin.estimation.diagnosis import CELLS, Bank, Explanation, Weighed, heeded, likelihoods
from twin.estimation.pumps import FOLLOWS, Asked, corrected
from twin.estimation.tune import prepared
from twin.futures import Schedule, quantiles, run_futures
from twin.history import Batch, replay
from twin.inputs import Course, Drive, altered
from twin.retrospect.causes import CAUSES, EARLY, POOR, SLOW, Family, Name, bank, families
from twin.retrospect.paths import Change, Paths, paths, rerun
from twin.retrospect.recorded import Deviation, deviations
from twin.sensors import CHANNELS

SILENT = ("ph",)
"""Channels that are not weighed."""
EXCUSED = 0.002
"""Probability that a sound batch shows a recorded shortfall which has nothing to do with how it ended (asm)."""
OWNED = 0.05
"""Prior probability of a late feed, or of missed doses, that the read-backs show (asm)."""
LEAST = 0.02
"""The effect of a cause that is less probable is not asked for."""
GROWTH = ("mu_max", "tau_lag")
"""What makes a donor slow."""
SPOKE = 1.0
"""A channel whose log-likelihood gains less does not point to a cause."""

Spread = tuple[float, float, float]
"""5, 50 and 95 % quantiles."""


class Found(NamedTuple):
    """The likeliest change that stands for a cause."""

    kind: str  # of `twin.estimation.diagnosis.Kind`; "donor", "seed", "recorded" or "nothing"
    target: str
    size: float
    since: float  # [d]
    until: float  # [d]
    pointers: Mapping[str, float]  # gain of log-likelihood over nothing wrong, by channel


@dataclass(frozen=True, slots=True, eq=False)
class Cause:
    """One cause of a deviation."""

    name: Name
    probability: float
    found: Found
    effect: Spread | None = None  # of the cause on the viable cells at the end [1e9 cells]; None: not asked for
    evidence: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Attribution:
    """What a finished batch deviated by, and why."""

    at: float  # [d]
    readings: int  # that were weighed
    causes: tuple[Cause, ...]  # all of them, the likeliest first; probabilities sum to 1
    outcome: Spread  # viable cells at the end [1e9 cells]
    expected: Spread | None  # of a donor not yet seen under the recipe, at the same day; None: no recipe was given
    deviations: tuple[Deviation, ...]  # of the read-backs from the recipe

    @property
    def best(self) -> Cause:
        return self.causes[0]


class Weighing(NamedTuple):
    """The posterior before effects: what the study scores."""

    batch: Batch  # prepared
    paths: Paths  # smoothed draws under nothing wrong
    causes: tuple[Cause, ...]
    deviations: tuple[Deviation, ...]
    readings: int


def weighed(batch: Batch, at: float, asked: Asked | None = None, *, n: int = 200, seed: int = 0) -> Weighing:
    """Posterior probabilities of the causes of a batch that ended at `at` [d]; see the module.

    `asked` says what the recipe asked at a time, `n` draws of the smoothed batch judge donor and seed. Raises ValueError for
    a batch without readings or shorter than a day.
    """
    quick = replay(prepared(batch), 0)
    readings = [m for m in heeded(quick, 0.0, at, without=("unit_slip",)) if m.channel not in SILENT]
    if not readings or at < 1.0:
        raise ValueError(
            f"batch {batch.id!r}: expected readings of at least a day, got {len(readings)} until day {at:g}"
        )
    known = families(quick, at, readings)
    columns = bank(quick, at, known)
    found = likelihoods(quick, columns, 0.0, at, readings)
    drawn = paths(quick, at, n, seed)
    departures = () if asked is None else deviations(quick, asked, at)
    causes = ranked(quick, known, columns, found, drawn, departures)
    return Weighing(quick, drawn, causes, departures, found.readings)


def ranked(
    batch: Batch,
    known: tuple[Family, ...],
    columns: Bank,
    found: Weighed,
    drawn: Paths,
    departures: tuple[Deviation, ...],
) -> tuple[Cause, ...]:
    """All causes with their posterior probabilities, the likeliest first."""
    log = found.score - found.score[0] + np.log(columns.weight)
    p = np.exp(log - log.max())
    p /= p.sum()
    benign = float(p[(columns.owner < 0) | columns.minor].sum())
    mass, best = dict.fromkeys(CAUSES, 0.0), dict[Name, Found]()
    for cause in CAUSES:
        owners = [i for i, f in enumerate(known) if f.cause == cause and not f.minor]
        mine = np.flatnonzero(np.isin(columns.owner, owners) & ~columns.minor)
        if owners and mine.size:
            mass[cause] = float(p[mine].sum())
            best[cause] = _found(known, columns, found, int(mine[np.argmax(p[mine])]))
    slow, z_donor = _slow(batch, drawn)
    poor, z_seed = _poor(batch, drawn)
    mass["slow_donor"], mass["poor_seed"] = benign * slow * (1.0 - 0.5 * poor), benign * poor * (1.0 - 0.5 * slow)
    mass["nothing"] = benign * (1.0 - slow) * (1.0 - poor)
    begin, end = batch.prior.time, float(drawn.t[-1])
    best["nothing"] = Found("nothing", "", 1.0, begin, end, {})
    best["slow_donor"] = Found("donor", "growth", z_donor, begin, end, {})
    best["poor_seed"] = Found("seed", "viable", z_seed, begin, end, {})
    shown = {d.cause: d for d in sorted(departures, key=lambda d: d.until - d.since)}
    plain = mass["nothing"]
    for cause in ("late_feed", "cytokine_missed"):
        if cause in shown:
            more, d = plain * OWNED / EXCUSED, shown[cause]
            if more > mass[cause]:
                best[cause] = Found("recorded", d.actuator, d.applied / d.asked, d.since, d.until, {})
            mass[cause] += more
    total = sum(mass.values())
    causes = [Cause(c, m / total, best[c], evidence=_words(best[c])) for c, m in mass.items() if c in best]
    return tuple(sorted(causes, key=lambda c: -c.probability))


def _found(known: tuple[Family, ...], columns: Bank, found: Weighed, column: int) -> Found:
    family = known[int(columns.owner[column])]
    gains = {c: float(s[column] - s[0]) for c, s in found.channels.items()}
    pointers = {c: g for c, g in sorted(gains.items(), key=lambda item: -item[1]) if g >= SPOKE}
    size, since, until = float(columns.size[column]), float(columns.onset[column]), float(columns.until[column])
    return Found(family.kind, family.target, size, since, until, pointers)


def early_growth(mu_max: np.ndarray, tau_lag: np.ndarray) -> np.ndarray:
    """ln of ln fold over the first `EARLY` days where nothing but the lag holds the cells back. Arguments are logarithms."""
    tau = np.exp(tau_lag)
    return mu_max + np.log(EARLY + tau * np.expm1(-EARLY / tau))


def _growth_rows(batch: Batch) -> list[int]:
    return [N_STATE + batch.layout.parameters.index(n) for n in GROWTH if n in batch.layout.parameters]


def _slow(batch: Batch, drawn: Paths) -> tuple[float, float]:
    """Probability that the donor is slow, and its early growth in standard deviations of the population."""
    if "mu_max" not in batch.layout.parameters:
        return 0.0, 0.0
    usual = np.log([getattr(batch.process.theta.cell, n) for n in GROWTH])
    prior, own = draws(batch.prior, 4000, np.random.default_rng(17)), drawn.points.mean(axis=0)

    def grown(points: np.ndarray) -> np.ndarray:
        known = np.repeat(usual[:, None], points.shape[1], axis=1)
        for row, n in enumerate(GROWTH):
            if n in batch.layout.parameters:
                known[row] = points[N_STATE + batch.layout.parameters.index(n)]
        return early_growth(*known)

    everyone, found = grown(prior), grown(own)
    p = float(norm.cdf((np.quantile(everyone, SLOW) - found.mean()) / max(float(found.std()), 1e-9)))
    return p, float((found.mean() - everyone.mean()) / everyone.std())


def _poor(batch: Batch, drawn: Paths) -> tuple[float, float]:
    """Probability that the seed is poor, and its viable cells in standard deviations of the usual ones."""
    i = Coordinates._fields.index("viable")
    z = (drawn.points[0, i] - batch.prior.mean[i]) / float(np.sqrt(batch.prior.cov[i, i]))
    return float(norm.cdf((norm.ppf(POOR) - z.mean()) / max(float(z.std()), 1e-9))), float(z.mean())


def _words(f: Found) -> str:
    told = ", ".join(f"{c} +{g:.0f}" for c, g in list(f.pointers.items())[:3])
    window = f"from day {f.since:.1f}" + ("" if f.until == inf else f" to {f.until:.1f}")
    match f.kind:
        case "nothing":
            return ""
        case "donor" | "seed":
            what = "early growth" if f.kind == "donor" else "viable cells at inoculation"
            return f"{what} {f.size:+.1f} sd of the population"
        case "recorded":
            return f"read-backs of {f.target} at {f.size:.2f} of the recipe {window}"
        case "sensor":
            scale = f"x{np.exp(f.size):.2f}" if CHANNELS[f.target].scale == "log" else f"{f.size:+.2g}"
            what = f"{f.target} reads {scale}"
        case "stuck_on":
            what = f"{f.target} delivers {f.size:.2g}"
        case "delivery":
            what = f"{f.target} delivers {f.size:.2g} of its read-back"
        case _:
            what = f"{f.target or f.kind} x{f.size:.2g}"
    return f"{what} {window}" + (f"; ln likelihood {told}" if told else "")


# --- what it cost ------------------------------------------------------------------------------------------------------


def attribute(
    batch: Batch, at: float, asked: Asked | None = None, schedule: Schedule | None = None, *, n: int = 200, seed: int = 0,
    most: int = 3,
) -> Attribution:  # fmt: skip
    """Causes of a finished batch's deviation, with the effects of the `most` likeliest; see the module.

    `asked` is the recipe at the readings that were known (None: departures from it are not judged), `schedule` the recipe on
    simulated states (None: nothing is expected of the batch, and a biased sensor is taken to have moved nothing).
    """
    known = weighed(batch, at, asked, n=n, seed=seed)
    causes = tuple(
        replace(c, effect=effect_of(known, c, asked, schedule, n=n, seed=seed))
        if k < most and c.probability >= LEAST
        else c
        for k, c in enumerate(known.causes)
    )
    end = State(*rerun(known.batch, known.paths)[-1])
    expected = None
    if schedule is not None:
        empty = replace(known.batch, evidence=(), innovations=(), checkpoints=())
        ahead = run_futures(empty, empty.prior.time, schedule, n=2 * n, seed=seed, harvest_at=at)
        expected = quantiles(ahead.harvested.viable_cells)
    return Attribution(at, known.readings, causes, quantiles(end.viable_cells), expected, known.deviations)


def effect_of(
    known: Weighing, cause: Cause, asked: Asked | None, schedule: Schedule | None, *, n: int = 200, seed: int = 0
) -> Spread:
    """Viable cells at the end [1e9 cells] less those that there would have been without the cause."""
    batch, drawn, f = known.batch, known.paths, cause.found
    change = Change()
    match f.kind:
        case "delivery" | "stuck_on" | "bag":
            real = as_it_was(batch, cause)
            change, batch, drawn = Change(course=batch.course), real, paths(real, float(drawn.t[-1]), n, seed)
        case "recorded" if asked is not None:
            change = Change(course=_as_asked(batch, [d for d in known.deviations if d.cause == cause.name], asked))
        case "donor":
            change = _median_growth(batch, drawn)
        case "seed":
            change = _median_seed(batch)
        case "growth" | "uptake" | "yield" | "death":
            change = _without_shift(f)
        case "sensor":
            if schedule is None or f.target not in FOLLOWS.get(batch.process.recipe.policy, ()):
                return 0.0, 0.0, 0.0  # nothing acted on it
            batch = _silenced(batch, f)
            drawn = paths(batch, float(drawn.t[-1]), n, seed)
            change = _unbiased(f, schedule)
        case _:
            return 0.0, 0.0, 0.0
    was, would = rerun(batch, drawn)[-1], rerun(batch, drawn, change)[-1]
    return quantiles(State(*was).viable_cells - State(*would).viable_cells)


def as_it_was(batch: Batch, cause: Cause) -> Batch:
    """The batch under the inputs that `cause` says it really had; the same batch where it says nothing of them."""
    f = cause.found
    if f.kind not in ("delivery", "stuck_on", "bag"):
        return batch
    return corrected(batch, Explanation(f.kind, f.target, cause.probability, f.size, f.since, 0.0), f.until)


def _as_asked(batch: Batch, departures: list[Deviation], asked: Asked) -> Course:
    """The course had the pumps done what the recipe asked, hour by hour."""
    course = batch.course
    for d in departures:
        for t in np.arange(d.since, d.until - 1e-9, 1.0 / 24.0):
            control = asked(float(t) + 1e-3)
            if control is None:
                continue

            def really(
                drive: Drive, rate: float = float(getattr(control, d.actuator)), name: str = d.actuator
            ) -> Drive:
                return drive._replace(control=drive.control._replace(**{name: rate}))

            course = altered(course, float(t), min(float(t) + 1.0 / 24.0, d.until), really)
    return course


def _median_growth(batch: Batch, drawn: Paths) -> Change:
    """The donor grows as the population's median does: the paths of mu_max and tau_lag are moved as a whole."""
    rows = _growth_rows(batch)
    factor = np.exp(batch.prior.mean[rows, None] - drawn.points[:, rows].mean(axis=0))
    fields = [Kinetics._fields.index(batch.layout.names[i]) for i in rows]
    return Change(cells=lambda t, cell: _times(cell, fields, factor))


def _without_shift(f: Found) -> Change:
    rows = [Kinetics._fields.index(name) for name in CELLS[f.kind]]
    return Change(cells=lambda t, cell: _times(cell, rows, 1.0 / f.size) if t >= f.since - 1e-9 else cell)


def _times(cell: np.ndarray, rows: list[int], factor: np.ndarray | float) -> np.ndarray:
    cell = cell.copy()
    cell[rows] *= factor
    return cell


def _median_seed(batch: Batch) -> Change:
    """As many cells at inoculation as usual, as viable as they were."""
    viable, dead = Coordinates._fields.index("viable"), Coordinates._fields.index("dead")

    def start(x: np.ndarray) -> np.ndarray:
        moved, lift = x.copy(), batch.prior.mean[viable] - x[viable]
        moved[viable] += lift
        moved[dead] += lift
        return moved

    return Change(start=start)


def _silenced(batch: Batch, f: Found) -> Batch:
    """The batch without what a channel said from the day on which it began to lie."""
    kept = tuple(m for m in batch.evidence if m.channel != f.target or m.sampled_at < f.since)
    return replay(replace(batch, evidence=kept, checkpoints=(), innovations=()), 0)


def _unbiased(f: Found, schedule: Schedule) -> Change:
    """The recipe asks what it asks of the true state, and not what it asked of what was read."""

    def read(x: State) -> State:
        factor = np.exp(f.size)
        if f.target == "lactate":
            return x._replace(lactate=x.lactate * factor)
        return x._replace(car_positive=x.car_positive * factor, car_negative=x.car_negative * factor)

    def hand(t: float, x: State, was: State) -> Control:
        if t < f.since:
            return Control()
        right, wrong = schedule(t, x), schedule(t, read(was))
        return Control(*(np.asarray(a) - np.asarray(b) for a, b in zip(right, wrong, strict=True)))

    return Change(hand=hand)
