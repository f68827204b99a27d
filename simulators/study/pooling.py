"""Is it worth sharing between donors? Partial pooling beside complete and none, donor by donor, on a synthetic history.

`--batches` are the donors of one history (`simulators.history`, written by the plant, which is not the model), `--first` its
seed. Scored is ln p(a donor's whole bioreactor batch | all others), natural units (`twin.backtest.left_out`); stages around the
bioreactor are left out of the fits, so that leaving a batch out leaves out all that is known of its donor. Every donor is left
out by a fit that never saw him, and once more by importance weights over the draws of the fit of all (PSIS-LOO by donor): what
those are worth is a figure of its own. Then every donor's last count is foretold from the others and his own first days.
Nothing is read from `--prior`.

No pooling draws a donor from the preset's medians and spreads. The virtual donors are drawn from these too, the structure of the
plant aside: beside a population known beforehand, one learnt from 16 donors has little to win but how noise grows. Therefore no
pooling is shown a second time, told the noise that the others teach.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import t as student

from simulators.history import synthetic_history
from simulators.study.base import Figure, Row, Study, Table
from twin.backtest import left_out
from twin.backtest.pooling import Difference
from twin.config import load_config
from twin.donors.data import prepare_one
from twin.donors.fit import Settings, fit
from twin.donors.model import FIT_PARAMETERS
from twin.donors.prior import DonorPrior
from twin.donors.target import Population, Target
from twin.donors.update import KHAT, Update, posterior
from twin.process import Process
from twin.records import RecordedBatch
from twin.scores import coverage_power

DONORS, SEED = 17, 17
"""The history that the tutorial uses."""
WHOLE = Settings(cores=1)
REFIT = Settings(draws=600, tune=300, chains=2, cores=1)
COMPLETE = Settings(draws=180, tune=120, chains=2, cores=1)
DRAWS = 600
"""Draws of the population that a donor is left out of."""
UNTIL, COVERAGE = 6.0, 0.9
LABELS = {
    "partial": "partial pooling",
    "complete": "complete pooling",
    "none": "no pooling",
    "none_noise": "no pooling, noise known",
}


class Job(NamedTuple):
    """One fit: of all donors (`left` is -1) or of all but one."""

    pooling: str  # partial, complete
    left: int
    donors: int
    seed: int
    process: str


def jobs(batches: int, first: int, process: str, prior: DonorPrior | None) -> Sequence[Job]:
    """The hierarchical fit of all donors, then complete and partial pooling without each."""
    each = [Job(pooled, d, batches, first, process) for pooled in ("complete", "partial") for d in range(batches)]
    return [Job("partial", -1, batches, first, process), *each]


@cache
def history(process: str, donors: int, seed: int) -> tuple[Process, tuple[RecordedBatch, ...]]:
    """The process and one bioreactor batch a donor."""
    preset = load_config(process)
    return preset, left_out.bioreactor_alone(synthetic_history(preset, donors, seed))


def run(job: Job) -> Row:
    """The fit, and what it says of the donor whom it did not see (of every donor where it saw all)."""
    process, records = history(job.process, job.donors, job.seed)
    others = [r for k, r in enumerate(records) if k != job.left]
    if job.pooling == "complete":
        known, diagnostics = left_out.common(others, process, settings=COMPLETE)
        found = _told(known, records[job.left], process)[1]
        return {**job._asdict(), "r_hat": diagnostics.r_hat, "khat": found.khat, "log_density": found.log_evidence}
    result = fit(others, process, settings=WHOLE if job.left < 0 else REFIT)
    row: dict[str, Any] = {**job._asdict(), "r_hat": result.diagnostics.r_hat, "ess": result.diagnostics.ess_bulk}
    if job.left >= 0:
        population = left_out.learnt(result.posterior, process, FIT_PARAMETERS)
        found = _told(population, records[job.left], process)[1]
        return {
            **row,
            "log_density": found.log_evidence,
            "khat": found.khat,
            **_last(population, records[job.left], process),
        }
    draws = left_out.learnt(result.posterior, process, FIT_PARAMETERS, DRAWS)
    return {**row, "each": [_left_out(draws, r, process) for r in records]}


def _told(population: Population, record: RecordedBatch, process: Process, until: float | None = None) -> tuple[Target, Update]:  # fmt: skip
    target = Target(population, prepare_one(record, process, until), process)
    return target, posterior(target)


def _last(others: Population, record: RecordedBatch, process: Process) -> Row:
    """The last count, foretold from the others and the donor's own first days."""
    early = _told(others, record, process, UNTIL)[1]
    last = left_out.last_count(Target(others, prepare_one(record, process), process), early)
    return {
        "khat_early": early.khat,
        "day": last.day,
        "count": last.density,
        "below": last.below,
        "within": last.within(COVERAGE),
    }


def _left_out(draws: Population, record: RecordedBatch, process: Process) -> Row:
    """One donor without himself, with nothing learnt, and his last count from the others and his first days."""
    target, found = _told(left_out.without(draws, np.full(len(draws.mean), 1.0 / len(draws.mean))), record, process)
    left = left_out.left_out(left_out.evidence_by_draw(target, found, draws))
    none = _told(left_out.unpooled(process, draws.names), record, process)[1]
    quiet = _told(left_out.unpooled(process, draws.names, draws.drift), record, process)[1]
    return {
        "donor": record.donor, "readings": sum(s.time.size for s in target.data.samples.values()), "by_weights": left.log_density,
        "khat_left": left.khat, "none": none.log_evidence, "none_noise": quiet.log_evidence, "seen": found.log_evidence,
        "khat": max(u.khat for u in (found, none, quiet)), **_last(left_out.without(draws, left.weights), record, process),
    }  # fmt: skip


def donors(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One row a donor: what the refit without him says; by weights where there was none."""
    each: list[dict[str, Any]] = [
        {**e, "partial": e["by_weights"]} for e in next(r for r in rows if "each" in r)["each"]
    ]
    for r in rows:
        if r["left"] >= 0 and r["pooling"] == "complete":
            each[r["left"]]["complete"] = r["log_density"]
        elif r["left"] >= 0:
            told = {k: r[k] for k in ("day", "count", "below", "within")}
            each[r["left"]] |= {**told, "partial": r["log_density"], "refit": True}
    return each


def compared(rows: Sequence[Row]) -> dict[str, Difference]:
    """Partial pooling less each alternative, paired by donor: complete, none, and none that knows the noise."""
    each = donors(rows)
    n, readings, partial = len(each), sum(e["readings"] for e in each), np.array([e["partial"] for e in each])
    found: dict[str, Difference] = {}
    for name in ("complete", "none", "none_noise"):
        other = np.array([e[name] for e in each])
        gap = partial - other
        found[name] = Difference(
            "whole batch", "complete" if name == "complete" else "none", readings, n, float(partial.mean()),
            float(other.mean()), float(gap.mean()), float(gap.std(ddof=1) / np.sqrt(n)), int((gap > 0).sum()),
        )  # fmt: skip
    return found


def figures(rows: Sequence[Row]) -> tuple[Figure, ...]:
    """Predictive densities, paired differences, how far the weights are to be trusted, and coverage of the last count."""
    each, whole = donors(rows), next(r for r in rows if "each" in r)
    n = len(each)
    found = [
        Figure(f"ln predictive density of a donor's batch, {label} (mean)", float(np.mean(v)), n=n, note=f"+/- {np.std(v, ddof=1) / np.sqrt(n):.2g} (SE over donors)")
        for name, label in LABELS.items() for v in [[e[name] for e in each]]
    ]  # fmt: skip
    owed = {"complete": 0.0, "none": 0.0}
    found += [
        Figure(f"partial less {LABELS[k]}", d.difference, low=owed.get(k), n=n, note=_said(d))
        for k, d in compared(rows).items()
    ]
    power, held = coverage_power(n, COVERAGE), sum(e["within"] for e in each)
    found.append(
        Figure(f"last counts in the {COVERAGE:.0%} band, by the others and days 0-{UNTIL:g}", held, low=power.low, high=power.high, n=n, note=str(power))
    )  # fmt: skip
    left = np.array([e["khat_left"] for e in each])
    off = np.array([abs(e["by_weights"] - e["partial"]) if "refit" in e else np.nan for e in each])
    sound = np.isfinite(off) & (left <= KHAT)
    found.append(Figure("k-hat of leaving out by weights, largest", float(left.max()), n=n, note=f"median {np.median(left):.2f}; above {KHAT:g}: {(left > KHAT).sum()}"))  # fmt: skip
    if np.isfinite(off).any():
        trusted = (
            f"largest {off[sound].max():.2f} of {sound.sum()} with k-hat <= {KHAT:g}" if sound.any() else "none trusted"
        )
        found.append(
            Figure(
                "|by weights - by refit|, largest", float(np.nanmax(off)), n=int(np.isfinite(off).sum()), note=trusted
            )
        )
    sampling = [r[k] for r in (*rows, *each) for k in ("khat", "khat_early") if k in r]
    found += [
        Figure("k-hat of a donor's own draws, largest", max(sampling), n=len(sampling), note=f"above {KHAT:g}: {sum(k > KHAT for k in sampling)}"),
        Figure("R-hat of the fits, largest", max(r["r_hat"] for r in rows), n=len(rows), note=f"of all donors: {whole['r_hat']:.3f}, ESS {whole['ess']:.0f}"),
    ]  # fmt: skip
    return tuple(found)


def _said(d: Difference) -> str:
    low, high = d.interval95
    least = d.se * (d.needed + float(student.ppf(0.8, d.groups - 1)))
    return (
        f"+/- {d.se:.2g} (paired SE; 95 %: {low:.3g} to {high:.3g}); ahead in {d.better} of {d.groups}; "
        f"80% power only against {least:.2g} or more"
    )


def tables(rows: Sequence[Row]) -> tuple[Table, ...]:
    """Donor by donor."""
    each = donors(rows)
    dense = [
        (e["donor"], e["readings"], *(f"{e[k]:.1f}" for k in LABELS), f"{e['by_weights']:.1f}", f"{e['khat_left']:.2f}", f"{e['seen']:.1f}")
        for e in each
    ]  # fmt: skip
    last = [
        (e["donor"], f"{e['day']:.1f}", f"{e['count']:.3g}", f"{e['below']:.3f}", "yes" if e["within"] else "no")
        for e in each
    ]
    return (
        Table(
            "ln predictive density of a donor's batch; partial also by weights, and where he was seen",
            ("donor", "readings", *LABELS.values(), "by weights", "k-hat", "seen"),
            tuple(dense),
        ),
        Table("last count [1e6 cells/mL], by the others and the first days", ("donor", "day", "count", "P(lower)", "in the band"), tuple(last)),
    )  # fmt: skip


STUDY = Study(
    "Partial pooling beside complete and none, a donor left out at a time",
    DONORS, jobs, run, figures, tables, first=SEED, least=5,
)  # fmt: skip
