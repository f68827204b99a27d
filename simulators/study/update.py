"""The fast update of one donor beside NUTS, on the mismatched plant: at days 3, 6, 10 and 14, by laboratory values alone.

Truth is the posterior of the same model (`twin.donors.conditional`), not the donor: this asks whether the sampling is
right. NUTS itself fails where the posterior has two peaks (growth slows by lactate or by the replicative limit); donor-days
where it did are counted and not compared. Every donor is told once more with readings that contradict the model: from
day 3 to day 6 counts shrink by half, while uptake goes on as of a culture that grows.

The population is the artefact that is shipped for the process and was fitted to laboratory values, whatever `--prior`
says: an update needs the fit's noise too. Without one it is the prior that is given.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from simulators.recording import record
from simulators.study.base import Figure, OneDonor, Row, Study, Table, one_each
from twin.config import configs_dir
from twin.donors.artefact import Artefact, load_artefact
from twin.donors.conditional import conditional_nuts
from twin.donors.data import COUNTS, prepare_one
from twin.donors.sample import import_arviz
from twin.donors.target import SEED, Target, population_of
from twin.donors.update import KHAT, update
from twin.evidence import ControlApplied, Measurement
from twin.records import RecordedBatch

DAYS = (3.0, 6.0, 10.0, 14.0)
DRAWS, TUNE, CHAINS = 1000, 200, 2
SOUND = (1.02, 400.0)
"""R-hat and effective sample size that NUTS must reach to be a truth."""


def run(job: OneDonor) -> Row:
    """Update and NUTS at every day, and the gate on the same donor with contradictory readings."""
    process, prior = job.given
    shipped = configs_dir() / "priors" / process.name
    artefact = load_artefact(shipped) if shipped.is_dir() else Artefact(prior, np.empty((0, len(prior.names))), {}, {})
    batch = recorded(job)
    update(artefact, process, batch, DAYS[0])  # loads what is loaded once
    found: list[dict[str, Any]] = []
    for day in DAYS:
        began = time.perf_counter()
        fast = update(artefact, process, batch, day)
        wall = time.perf_counter() - began
        target = Target(population_of(artefact, process), prepare_one(batch, process, day), process)
        chains = conditional_nuts(target, fast.mean, fast.cov, draws=DRAWS, tune=TUNE, chains=CHAINS, seed=job.seed + 1)
        az = import_arviz()
        data = az.convert_to_dataset(chains)
        kept = len(artefact.prior.names) + len(SEED)
        mean, sd = chains.mean(axis=(0, 1))[:kept], chains.std(axis=(0, 1))[:kept]
        against = update(artefact, process, contradicted(batch), day)
        found.append({
            "day": day, "wall": wall, "khat": fast.khat, "ess": fast.ess, "due": fast.refit_due, "reasons": fast.reasons,
            "off": (fast.mean[:kept] - mean) / sd, "ratio": np.sqrt(np.diagonal(fast.cov))[:kept] / sd,
            "r_hat": float(az.rhat(data)["x"].max()), "nuts_ess": float(az.ess(data)["x"].min()),
            "fires": against.refit_due, "p": min(fast.agreement.values()), "p_against": min(against.agreement.values()),
        })  # fmt: skip
    return {"seed": job.seed, "days": found, "names": (*artefact.prior.names, *SEED)}


def recorded(job: OneDonor) -> RecordedBatch:
    """The batch of a virtual donor as a laboratory keeps it: no probes."""
    process, _ = job.given
    told = record(process, job.seed, seed=job.seed, days=DAYS[-1], online=False).facts
    readings = tuple(f for f in told if isinstance(f, Measurement))
    actions = tuple(f for f in told if isinstance(f, ControlApplied))
    donor = f"virtual donor {job.seed}"
    return RecordedBatch(donor, donor, donor, process.name, None, readings, actions)


def contradicted(batch: RecordedBatch) -> RecordedBatch:
    """Counts that shrink to half of the last one by day 3 until day 6, and stay there; all else as it was read."""
    counts = [m for m in batch.measurements if m.channel == COUNTS and m.sampled_at <= 3.0]
    last = max(counts, key=lambda m: m.sampled_at).value

    def told(m: Measurement) -> Measurement:
        if m.channel != COUNTS or m.sampled_at <= 3.0:
            return m
        return replace(m, value=last * (1.0 - 0.5 * min((m.sampled_at - 3.0) / 3.0, 1.0)))

    return replace(batch, measurements=tuple(told(m) for m in batch.measurements))


def figures(rows: Sequence[Row]) -> tuple[Figure, ...]:
    """Agreement with NUTS, time, and the gate."""
    days = [d for r in rows for d in r["days"]]
    sound = [d for d in days if d["r_hat"] < SOUND[0] and d["nuts_ess"] > SOUND[1]]
    late = [d for d in days if d["day"] >= 6.0]
    wall, khat = np.array([d["wall"] for d in days]), np.array([d["khat"] for d in days])
    found = [
        Figure("donor-days where NUTS is no truth (R-hat, ESS)", 1.0 - len(sound) / len(days), n=len(days)),
        Figure("wall time of an update, 99 % [s]", float(np.quantile(wall, 0.99)), n=len(days), note=f"median {np.median(wall):.2f}; owed < 1 on two idle cores"),
        Figure("k-hat, 95 %", float(np.quantile(khat, 0.95)), n=len(days), note=f"median {np.median(khat):.2f}; above {KHAT}: {np.mean(khat > KHAT):.3f}"),
        Figure("gate fires on the donor as it is", float(np.mean([d["due"] for d in days])), n=len(days)),
        Figure("gate fires on contradictory readings, from day 6", float(np.mean([d["fires"] for d in late])), low=0.95, n=len(late)),
    ]  # fmt: skip
    trusted = [d for d in sound if d["khat"] <= KHAT]
    if trusted:
        off, ratio = np.abs([d["off"] for d in trusted]), np.abs(np.array([d["ratio"] for d in trusted]) - 1.0)
        found[:0] = [
            Figure("|mean - NUTS| / sd, 95 % of donor-days and parameters", float(np.quantile(off, 0.95)), high=0.1, n=len(trusted), note=f"mean {off.mean():.3f}; largest {off.max():.2f}"),
            Figure("|sd / NUTS - 1|, 95 %", float(np.quantile(ratio, 0.95)), high=0.1, n=len(trusted), note=f"mean {ratio.mean():.3f}; largest {ratio.max():.2f}"),
        ]  # fmt: skip
    return tuple(found)


def tables(rows: Sequence[Row]) -> tuple[Table, ...]:
    """The same by day, and by parameter."""
    by_day: list[tuple[Any, ...]] = []
    for k, day in enumerate(DAYS):
        own = [r["days"][k] for r in rows]
        khat, ess = [d["khat"] for d in own], [d["ess"] for d in own]
        off, ratio = np.abs([d["off"] for d in own]), np.array([d["ratio"] for d in own])
        by_day.append((
            f"{day:g}", f"{np.median(khat):.2f}", f"{np.max(khat):.2f}", f"{np.median(ess):.0f}", f"{off.mean():.3f}", f"{ratio.mean():.3f}",
            f"{np.median([d['nuts_ess'] for d in own]):.0f}", f"{np.min([d['p'] for d in own]):.3f}", f"{np.median([d['p_against'] for d in own]):.1e}",
        ))  # fmt: skip
    off = np.array([d["off"] for r in rows for d in r["days"]])
    ratio = np.array([d["ratio"] for r in rows for d in r["days"]])
    by_name = [
        (n, f"{np.abs(off[:, i]).mean():.3f}", f"{off[:, i].mean():+.3f}", f"{ratio[:, i].mean():.3f}")
        for i, n in enumerate(rows[0]["names"])
    ]
    return (
        Table(
            "by day (all donors)",
            ("day", "k-hat median", "largest", "ESS", "|off|/sd", "sd ratio", "ESS of NUTS", "least p", "contradicted"),
            tuple(by_day),
        ),
        Table("by parameter (all donor-days)", ("parameter", "|off|/sd", "off/sd", "sd ratio"), tuple(by_name)),
    )  # fmt: skip


STUDY = Study("One donor by Laplace and importance sampling, beside NUTS", 4, one_each, run, figures, tables)
