"""What usually breaks filters: late results, outliers, a wrong donor prior, offsets, an outage. On the mismatched plant.

Every trouble befalls the same donors, and stands beside the same batches handled naively or untroubled. 14 days; hourly
from day 1 the belief by what was known then is held against the truth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from simulators.faults import Fault
from simulators.recording import Recording, record
from simulators.study.base import Figure, OneDonor, Row, Study, Table, one_each
from simulators.study.tracking import live, true_at
from twin.batch import believe_at, start
from twin.donors.prior import DonorPrior
from twin.estimation.belief import marginals
from twin.evidence import Fact, Measurement
from twin.process import Process

DAYS, EVERY = 14.0, 1.0 / 24.0
LATE = 23.75 / 24.0
JUDGED = ("viable", "car_odds", "dead", "glucose", "lactate", "glutamine", "ammonia")
"""Coordinates of NEES: those that routine data see."""


def run(job: OneDonor) -> Row:
    """Every trouble on one donor."""
    process, prior = job.given
    healthy = record(process, job.seed, seed=job.seed, days=DAYS)
    offsets = (
        Fault("raman_glucose", "bias", 0.0, size=1.5),
        Fault("capacitance", "bias", 0.0, size=float(np.log(1.2))),
    )
    biased = record(process, job.seed, seed=job.seed, days=DAYS, faults=offsets)
    stopped = record(
        process, job.seed, seed=job.seed, days=DAYS, faults=(Fault("pump:perfusion", "override", 8.0, 8.5, 0.0),)
    )
    clogged = record(
        process, job.seed, seed=job.seed, days=DAYS, faults=(Fault("pump:perfusion", "clog", 8.0, 8.5, 0.0),)
    )
    laboratory = _only(process, lambda c: not c.startswith("raman"))
    plain = replace(process, sensors={k: replace(s, error=None, growth=None) for k, s in process.sensors.items()})
    rng = np.random.default_rng([job.seed, 0x0F])
    spoilt = frozenset(
        m.id for m in healthy.facts
        if isinstance(m, Measurement) and rng.random() < 0.05 and m.channel in ("glucose", "lactate", "viable_density", "raman_glucose")
    )  # fmt: skip
    wrong = _wrong(prior)
    return {
        "seed": job.seed,
        "untroubled": _errors(healthy, process, prior),
        "untroubled, no Raman": _errors(healthy, laboratory, prior),
        "late results, in their place": _errors(healthy, process, prior, _late),
        "late results, taken as new": _errors(healthy, process, prior, _late_as_new),
        "late results, no Raman, in their place": _errors(healthy, laboratory, prior, _late),
        "late results, no Raman, taken as new": _errors(healthy, laboratory, prior, _late_as_new),
        "5 % outliers": _errors(healthy, process, prior, lambda f: _spoilt(f, spoilt)),
        "5 % outliers, gates open": _errors(healthy, _open(process), prior, lambda f: _spoilt(f, spoilt)),
        "wrong donor prior": _errors(healthy, process, wrong),
        "wrong donor prior, never doubted": _errors(healthy, replace(process, parameter_walk=0.0, restless={}), wrong),
        "Raman and capacitance off": _errors(biased, process, prior),
        "Raman and capacitance off, no errors learnt": _errors(biased, plain, prior),
        "perfusion stopped 12 h, said so": _errors(stopped, process, prior),
        "perfusion stopped 12 h, unsaid": _errors(clogged, process, prior),
    }


def _only(process: Process, wanted: Callable[[str], bool]) -> Process:
    return replace(process, sensors={k: s for k, s in process.sensors.items() if wanted(k)})


def _open(process: Process) -> Process:
    return replace(process, sensors={k: replace(s, gate=1e9) for k, s in process.sensors.items()})


def _wrong(prior: DonorPrior) -> DonorPrior:
    """A prior that is sure of another donor: growth and glucose uptake 2 sd off, every sd a third."""
    mean = prior.mean.copy()
    for name, way in (("mu_max", 2.0), ("a_G", -2.0)):
        i = prior.names.index(name)
        mean[i] += way * float(np.sqrt(prior.cov[i, i]))
    return DonorPrior(prior.names, mean, prior.cov / 9.0, prior.provenance)


def _late(fact: Fact) -> Fact:
    if isinstance(fact, Measurement) and fact.id.split("-")[0] in ("counter", "analyser", "cytometer"):
        return replace(fact, received_at=fact.sampled_at + LATE)
    return fact


def _late_as_new(fact: Fact) -> Fact:
    told = _late(fact)
    if isinstance(told, Measurement) and told.received_at - told.sampled_at >= LATE - 1e-9:
        return replace(told, sampled_at=told.received_at)
    return told


def _spoilt(fact: Fact, spoilt: frozenset[str]) -> Fact:
    """A reading blown up or down: x or / 1.6-3, Raman +/- 8-15 mM; the size hangs on the id alone."""
    if not isinstance(fact, Measurement) or fact.id not in spoilt:
        return fact
    u = np.random.default_rng([ord(c) for c in fact.id]).uniform(-1.0, 1.0)
    if fact.channel.startswith("raman"):
        return replace(fact, value=float(max(fact.value + np.sign(u) * (8.0 + 7.0 * abs(u)), -15.0)))
    return replace(fact, value=float(fact.value * np.exp(np.sign(u) * (0.47 + 0.63 * abs(u)))))


def _errors(
    recording: Recording, process: Process, prior: DonorPrior, edit: Callable[[Fact], Fact | None] = lambda f: f
) -> dict[str, Any]:
    """Glucose and density errors, coverage and NEES over the judged coordinates."""
    known = sorted((e for f in recording.facts if (e := edit(f)) is not None), key=_known)
    begun = start("study", process, prior)
    rows = [begun.layout.index(n) for n in JUDGED]
    told: dict[str, list[float]] = {k: [] for k in ("glucose", "density", "held_glucose", "held_density", "nees")}
    finite = True
    for moment in live(replace(recording, facts=tuple(known)), begun, EVERY):
        if not 1.0 <= moment.at <= DAYS:
            continue
        belief = believe_at(moment.batch, moment.at)
        finite = finite and belief.finite
        found = marginals(belief, begun.layout)
        for key, quantity in (("glucose", "glucose"), ("density", "viable_density")):
            true = float(true_at(recording, quantity, moment.at))
            told[key].append(found[quantity].mean - true if key == "glucose" else found[quantity].mean / true - 1.0)
            told[f"held_{key}"].append(float(found[quantity].q05 <= true <= found[quantity].q95))
        error = belief.mean[rows] - _coordinates(recording, moment.at)
        told["nees"].append(float(error @ np.linalg.solve(belief.cov[np.ix_(rows, rows)], error)) / len(rows))
    return {**told, "finite": finite}


def _known(fact: Fact) -> float:
    return fact.received_at if isinstance(fact, Measurement) else fact.at


def _coordinates(recording: Recording, t: float) -> np.ndarray:
    """ln of the judged coordinates of the true vessel."""
    f = float(true_at(recording, "car_fraction", t))
    density = float(true_at(recording, "viable_density", t))
    true = {q: float(true_at(recording, q, t)) for q in ("glucose", "lactate", "glutamine", "ammonia")}
    values = {
        "viable": density,
        "car_odds": f / (1.0 - f),
        "dead": float(true_at(recording, "dead_density", t)),
        **true,
    }
    return np.log([max(values[n], 1e-9) for n in JUDGED])


def figures(rows: Sequence[Row]) -> tuple[Figure, ...]:
    """Held to PERFORMANCE.md: late results to the figure itself, outliers and offsets to the ratio to the naive estimate."""
    n = len(rows)

    def rmse(trouble: str, what: str = "glucose") -> float:
        return float(np.sqrt(np.mean(np.square([e for r in rows for e in r[trouble][what]]))))

    def mean(trouble: str, what: str) -> float:
        return float(np.mean([e for r in rows for e in r[trouble][what]]))

    late, new = "late results, in their place", "late results, taken as new"
    blind, blind_new = "late results, no Raman, in their place", "late results, no Raman, taken as new"
    return (
        Figure("late results: glucose RMSE in their place [mM]", rmse(late), high=0.60, n=n, note=f"not late {rmse('untroubled'):.2f}, as new {rmse(new):.2f}"),
        Figure("late results: 90 % coverage of glucose in their place", mean(late, "held_glucose"), low=0.85, n=n, note=f"as new {mean(new, 'held_glucose'):.2f}"),
        Figure("late results, no Raman: glucose RMSE in their place [mM]", rmse(blind), high=0.60, n=n, note=f"not late {rmse('untroubled, no Raman'):.2f}, as new {rmse(blind_new):.2f}"),
        Figure("outliers: glucose RMSE [mM]", rmse("5 % outliers"), high=0.28 / 0.73 * rmse("5 % outliers, gates open"), n=n, note=f"gates open {rmse('5 % outliers, gates open'):.2f}, untroubled {rmse('untroubled'):.2f}"),
        Figure("wrong donor prior: NEES/n", mean("wrong donor prior", "nees"), high=2.0, n=n, note=f"right prior {mean('untroubled', 'nees'):.2f}; never doubted {mean('wrong donor prior, never doubted', 'nees'):.2f}"),
        Figure("offsets: glucose RMSE [mM]", rmse("Raman and capacitance off"), high=0.32 / 1.44 * rmse("Raman and capacitance off, no errors learnt"), n=n, note=f"no errors learnt {rmse('Raman and capacitance off, no errors learnt'):.2f}"),
        Figure("offsets: NEES/n", mean("Raman and capacitance off", "nees"), high=2.0, n=n, note=f"no errors learnt {mean('Raman and capacitance off, no errors learnt', 'nees'):.0f}"),
        Figure("outage said so: 90 % coverage of glucose", mean("perfusion stopped 12 h, said so", "held_glucose"), low=0.85, n=n),
        Figure("outage unsaid: 90 % coverage of glucose", mean("perfusion stopped 12 h, unsaid", "held_glucose"), low=0.85, n=n),
        Figure("beliefs that are not finite", float(sum(not r[k]["finite"] for r in rows for k in r if k != "seed")), high=0.0, n=n),
    )  # fmt: skip


def tables(rows: Sequence[Row]) -> tuple[Table, ...]:
    """Every trouble."""
    body: list[tuple[Any, ...]] = []
    for trouble in (k for k in rows[0] if k != "seed"):
        told = {
            k: np.array([e for r in rows for e in r[trouble][k]])
            for k in ("glucose", "density", "held_glucose", "held_density", "nees")
        }
        body.append(
            (trouble, f"{np.sqrt(np.mean(told['glucose'] ** 2)):.2f}", f"{told['held_glucose'].mean():.2f}",
             f"{np.sqrt(np.mean(told['density'] ** 2)):.3f}", f"{told['held_density'].mean():.2f}", f"{told['nees'].mean():.2f}")
        )  # fmt: skip
    columns = ("trouble", "glucose RMSE [mM]", "held", "density rel. RMSE", "held", "NEES/n of 7")
    return (Table("every hour from day 1, by what was known then", columns, tuple(body)),)


STUDY = Study("Troubles on the mismatched plant", 12, one_each, run, figures, tables)
