"""What fusing is worth on the mismatched plant: against the sensors alone, and against the model alone.

Healthy rigs, 14 days under the process's recipe. Every 6 h what was believed by the facts known then stands beside the
truth; the model alone is the donor prior carried under the pumps' rates as they ran, with no reading at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from simulators.recording import Recording, record
from simulators.study.base import Figure, OneDonor, Row, Study, Table, one_each
from simulators.study.tracking import live, true_at, within
from twin.batch import believe_at, start, tell
from twin.estimation.belief import marginals
from twin.evidence import Measurement
from twin.history import Batch

DAYS, EVERY = 14.0, 0.25
QUANTITIES = (
    "viable_density", "dead_density", "viability", "car_fraction", "exhausted_fraction", "glucose", "lactate", "glutamine",
    "ammonia", "cytokine", "doublings",
)  # fmt: skip
SENSED = ("viable_density", "viability", "car_fraction", "glucose", "lactate", "glutamine", "ammonia")
"""Quantities of the NRMSE: those that a sensor reads."""


def run(job: OneDonor) -> Row:
    """Errors, coverage and spread of one batch, with sensors and without, every 6 h."""
    process, prior = job.given
    recording = record(process, job.seed, seed=job.seed, days=DAYS)
    begun = start("study", process, prior)
    blind = begun
    for fact in recording.facts:
        if not isinstance(fact, Measurement):
            blind = tell(blind, fact)
    batch, times, fused = begun, [], _empty()
    for moment in live(recording, begun, EVERY):
        batch = moment.batch
        times.append(moment.at)
        _score(fused, batch, recording, moment.at)
    alone = _empty()
    for t in times:
        _score(alone, blind, recording, t)
    raman = [m for m in recording.facts if isinstance(m, Measurement) and m.channel == "raman_glucose"][::6]
    return {
        "seed": job.seed,
        "times": times,
        "fused": fused,
        "alone": alone,
        "truth": {q: true_at(recording, q, np.array(times)).tolist() for q in QUANTITIES},
        "raman": [m.value - float(true_at(recording, "glucose", m.sampled_at)) for m in raman],
        "raman_fused": [_glucose(batch, recording, m.sampled_at) for m in raman],
    }


def _empty() -> dict[str, dict[str, list[Any]]]:
    return {q: {"error": [], "held": [], "sd": []} for q in QUANTITIES}


def _score(into: dict[str, dict[str, list[Any]]], batch: Batch, recording: Recording, t: float) -> None:
    believed = marginals(believe_at(batch, t), batch.layout)
    for q in QUANTITIES:
        true = float(true_at(recording, q, t))
        into[q]["error"].append(believed[q].mean - true)
        into[q]["held"].append(within(believed[q], true))
        into[q]["sd"].append(believed[q].sd)


def _glucose(batch: Batch, recording: Recording, t: float) -> float:
    """Error of the filtered glucose at `t`: from the readings sampled until then."""
    return marginals(believe_at(batch, t), batch.layout)["glucose"].mean - float(true_at(recording, "glucose", t))


def _all(rows: Sequence[Row], source: str, quantity: str, what: str) -> np.ndarray:
    return np.array([v for r in rows for v in r[source][quantity][what]], dtype=float)


def _rmse(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def figures(rows: Sequence[Row]) -> tuple[Figure, ...]:
    """Raman after fusion, NRMSE against the model alone, CAR+ fraction against its prior."""
    raw, fused = (np.array([v for r in rows for v in r[k]]) for k in ("raman", "raman_fused"))
    ratios = []
    for q in SENSED:
        scale = float(np.std([v for r in rows for v in r["truth"][q]]))
        ratios.append((_rmse(_all(rows, "fused", q, "error")) / scale, _rmse(_all(rows, "alone", q, "error")) / scale))
    mean_fused, mean_alone = np.mean(ratios, axis=0)
    car, prior_sd = _all(rows, "fused", "car_fraction", "error"), _all(rows, "alone", "car_fraction", "sd")
    after = np.array([t > 1.0 / 24.0 + 1.0 for r in rows for t in r["times"]])
    n = len(rows)
    return (
        Figure("Raman glucose RMSE as read [mM]", _rmse(raw), n=raw.size),
        Figure("Raman glucose RMSE after fusion [mM]", _rmse(fused), n=fused.size),
        Figure("cut in Raman glucose RMSE by fusion", 1.0 - _rmse(fused) / _rmse(raw), low=0.5, n=n),
        Figure("mean NRMSE, model alone", float(mean_alone), n=n),
        Figure("mean NRMSE, estimator", float(mean_fused), n=n),
        Figure("cut in NRMSE against the model alone", float(1.0 - mean_fused / mean_alone), low=0.4, n=n),
        Figure(
            "CAR+ fraction RMSE over its prior sd", _rmse(car[after]) / float(np.mean(prior_sd[after])), high=0.5, n=n
        ),
        *(
            Figure(f"90 % coverage of {q}", float(_all(rows, "fused", q, "held").mean()), low=lo, high=hi, n=n)
            for q, lo, hi in (("viable_density", 0.85, 0.95), ("glucose", 0.85, None))
        ),
    )


def tables(rows: Sequence[Row]) -> tuple[Table, ...]:
    """Every quantity: error and coverage by part of the batch."""
    times = np.array([t for r in rows for t in r["times"]])
    spans = ((0.0, 3.0), (3.0, 6.0), (6.0, 10.0), (10.0, 14.1))
    body: list[tuple[Any, ...]] = []
    for q in QUANTITIES:
        error, held, sd = (_all(rows, "fused", q, k) for k in ("error", "held", "sd"))
        truth = np.array([v for r in rows for v in r["truth"][q]])
        by_span = [f"{held[(times > lo) & (times <= hi)].mean():.2f}" for lo, hi in spans]
        body.append(
            (q, f"{_rmse(error):.3g}", f"{np.median(np.abs(error) / np.abs(truth)):.3f}", f"{np.median(error / truth):+.3f}",
             f"{np.median(sd / np.abs(truth)):.3f}", f"{held.mean():.2f}", *by_span)
        )  # fmt: skip
    columns = (
        "quantity",
        "RMSE",
        "median |rel|",
        "median rel",
        "stated sd",
        "held",
        *(f"d {lo:g}-{hi:.0f}" for lo, hi in spans),
    )
    return (Table("belief by what was known, 90 % intervals", columns, tuple(body)),)


STUDY = Study("What fusing is worth: mismatched plant, healthy rigs, 14 days", 20, one_each, run, figures, tables)
