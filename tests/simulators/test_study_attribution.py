"""The study of causes: what it injects is what it says, and what it finds is counted rightly."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from controllers.recipes import recipe_asked
from simulators.recording import record
from simulators.study.attribution import (
    DAYS,
    INJECTED,
    ORDINARY,
    RECORDED,
    SLOW,
    STUDY,
    Job,
    befalls,
    deviant,
    figures,
    run,
    surroundings,
    tables,
    told,
)
from twin.config import load_config
from twin.donors.prior import preset_prior
from twin.retrospect.recorded import deviations

PROCESS = load_config("car_nk")


def test_every_cause_has_twenty_batches_under_both_recipes_and_half_are_shown_where_they_can_be() -> None:
    jobs = STUDY.jobs(STUDY.batches, 0, "car_nk", None)
    count = Counter(j.cause for j in jobs)
    assert count == {**dict.fromkeys(INJECTED, 20), "nothing": 40}
    for cause in INJECTED:
        mine = [j for j in jobs if j.cause == cause]
        assert Counter(j.recipe for j in mine) == {"time_steps": 10, "density_steps": 10}
        assert sum(j.shown for j in mine) == (10 if cause in RECORDED else 0)
    assert len({j.seed for j in jobs}) == len(jobs)


def test_donors_are_ordinary_or_slow_as_stated() -> None:
    for seed in range(3600, 3606):
        for slow in (False, True):
            donor = deviant(PROCESS, seed, slow)
            z = np.log(donor.cell.mu_max / PROCESS.theta.cell.mu_max) / PROCESS.donor_sd["mu_max"]
            assert (SLOW[0] <= z <= SLOW[1]) if slow else z > ORDINARY


@pytest.mark.slow
@pytest.mark.parametrize("cause", INJECTED)
def test_sizes_are_within_what_is_stated(cause: str) -> None:
    job = Job(3610, cause, False, "time_steps", "car_nk", None)
    donor = deviant(PROCESS, job.seed, False)
    healthy = record(PROCESS, donor, seed=job.seed, recipe=job.recipe, days=DAYS, scenario=surroundings())
    for seed in range(5):
        faults = befalls(job, healthy, np.random.default_rng(seed))
        assert len(faults) == (0 if cause == "slow_donor" else 1)
        for f in faults:
            span = f.until - f.onset
            low, high = {"clogged_pump": (0.3, 0.6), "wrong_medium": (0.4, 0.7), "cytokine_missed": (0.0, 0.0)}.get(cause, (-9.0, 9.0))  # fmt: skip
            assert low <= f.magnitude <= high
            assert cause != "late_feed" or 1.5 <= span <= 3.0
            assert cause != "cytokine_missed" or 3.0 <= span <= 5.0


@pytest.mark.slow
def test_a_late_feed_that_is_shown_is_in_the_read_backs_and_a_hidden_one_is_not() -> None:
    for shown in (True, False):
        job = Job(3620, "late_feed", shown, "time_steps", "car_nk", None)
        donor = deviant(PROCESS, job.seed, False)
        healthy = record(PROCESS, donor, seed=job.seed, recipe=job.recipe, days=DAYS, scenario=surroundings())
        (fault,) = befalls(job, healthy, np.random.default_rng(1))
        played = record(PROCESS, donor, seed=job.seed, recipe=job.recipe, days=DAYS, scenario=surroundings(), faults=(fault,))  # fmt: skip
        batch = told(played, preset_prior(PROCESS))
        found = deviations(batch, recipe_asked(batch), DAYS)
        assert len(found) == shown
        for d in found:
            assert (d.since, d.until) == (pytest.approx(fault.onset, abs=0.1), pytest.approx(fault.until, abs=0.1))
        assert batch.process.recipe.numbers["days"]


@pytest.mark.slow
def test_a_row_is_scored_and_tabulated() -> None:
    rows = [
        run(Job(3630 + k, c, False, "time_steps", "car_nk", None)) for k, c in enumerate(("wrong_medium", "nothing"))
    ]
    assert [r["named"] for r in rows] == ["wrong_medium", "nothing"]
    for r in rows:
        assert sum(p for _, p, _ in r["ranked"]) == pytest.approx(1.0, abs=1e-9)
    bag, sound = rows
    assert bag["effect"][0] <= bag["effect"][1] <= bag["effect"][2]
    assert sound["doubled"]["viable_cells"][1] > 0.0
    found = {f.name: f for f in figures(rows)}
    assert found["cause named first"].low == 0.8
    assert found["cause named first"].value == 1.0
    confusion = tables(rows)[0]
    assert sum(int(line[1]) for line in confusion.rows) == 2
    assert sum(int(cell) for line in confusion.rows for cell in line[2:] if cell != "") == 2
