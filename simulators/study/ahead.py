"""Counts foretold: 2.5 days ahead from days 3 and 6, and day 14 from day 6, on the mismatched plant.

The twin knows what had been told by the day of the forecast and which recipe the edge plays; every future follows the
recipe by its own counts. The forecast is the median of the futures, the error is against the true viable density. The
same with laboratory counts as the only sensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from controllers.recipes import recipe_schedule
from simulators.recording import Recording, record
from simulators.study.base import Figure, OneDonor, Row, Study, one_each
from simulators.study.tracking import live, true_at
from twin.batch import start
from twin.bioreactor import State
from twin.donors.prior import DonorPrior
from twin.futures import run_futures
from twin.process import Process

DAYS = 14.0
ASKED = ((3.0, 5.5), (6.0, 8.5), (6.0, 14.0))
"""(day of the forecast, day foretold)."""
FUTURES = 200


def run(job: OneDonor) -> Row:
    """Forecasts of one batch by the full twin and by counts alone."""
    process, prior = job.given
    recording = record(process, job.seed, seed=job.seed, days=DAYS)
    process = replace(process, recipe=replace(process.recipe, harvest_cells=1e9, harvest_latest=DAYS))
    counting = replace(process, sensors={"viable_density": process.sensors["viable_density"]})
    return {
        "seed": job.seed,
        "twin": _foretold(recording, process, prior),
        "counts": _foretold(recording, counting, prior),
        "truth": [float(true_at(recording, "viable_density", day)) for _, day in ASKED],
        "now": [float(true_at(recording, "viable_density", day)) for day, _ in ASKED],
    }


def _foretold(recording: Recording, process: Process, prior: DonorPrior) -> list[tuple[float, float, float]]:
    """5, 50 and 95 % of the viable density for every forecast asked for."""
    found: dict[tuple[float, float], tuple[float, float, float]] = {}
    days = {day for day, _ in ASKED}
    for moment in live(recording, start("study", process, prior), 0.25):
        if moment.at in days:
            schedule = recipe_schedule(process.recipe)
            ensemble = run_futures(moment.batch, moment.at, schedule, n=FUTURES, seed=1)
            density = State(*np.moveaxis(ensemble.states, 1, 0)).viable
            for day, until in ASKED:
                if day == moment.at:
                    k = int(np.argmin(np.abs(ensemble.t - until)))
                    low, middle, high = np.quantile(density[k], [0.05, 0.5, 0.95])
                    found[day, until] = (float(low), float(middle), float(high))
        if moment.at > max(days):
            break
    return [found[asked] for asked in ASKED]


def figures(rows: Sequence[Row]) -> tuple[Figure, ...]:
    """Mean relative errors and coverage."""
    truth = np.array([r["truth"] for r in rows])
    found: list[Figure] = []
    relative: dict[str, np.ndarray] = {}
    for source in ("twin", "counts"):
        bands = np.array([r[source] for r in rows])
        relative[source] = np.abs(bands[..., 1] / truth - 1.0)
        for k, ((day, until), owed) in enumerate(zip(ASKED, (0.13, 0.10, 0.22), strict=True)):
            error = relative[source][:, k]
            half = 1.96 * float(error.std()) / np.sqrt(len(rows))
            held = float(np.mean((bands[:, k, 0] <= truth[:, k]) & (truth[:, k] <= bands[:, k, 2])))
            bias = float(np.mean(bands[:, k, 1] / truth[:, k] - 1.0))
            found.append(
                Figure(
                    f"day {until:g} from day {day:g}, {source}: mean |relative error|", float(error.mean()),
                    high=owed if source == "twin" else None, n=len(rows),
                    note=f"+/-{half:.3f}; median {np.median(error):.3f}; bias {bias:+.3f}; 90 % band holds {held:.2f}",
                )
            )  # fmt: skip
    gain = relative["counts"][:, 2] - relative["twin"][:, 2]
    half = 1.96 * float(gain.std()) / np.sqrt(len(rows))
    found.append(
        Figure(
            "day 14 from day 6: error of counts alone less the twin's",
            float(gain.mean()),
            low=0.0,
            n=len(rows),
            note=f"+/-{half:.3f}, paired",
        )
    )
    return tuple(found)


STUDY: Study = Study("Counts foretold on the mismatched plant", 400, one_each, run, figures)
