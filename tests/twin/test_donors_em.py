"""The population by the filter itself, on reactors that obey the model: a shifted population is found."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from simulators.matched import matched_run
from twin.config import load_config
from twin.donors.em import population
from twin.donors.prior import DonorPrior, preset_prior

PROCESS = load_config("car_nk")


def shifted(prior: DonorPrior, by: dict[str, float]) -> DonorPrior:
    mean = prior.mean.copy()
    for name, shift in by.items():
        mean[prior.names.index(name)] += shift
    return replace(prior, mean=mean)


def test_two_donors_say_nothing_of_a_population() -> None:
    with pytest.raises(ValueError, match="at least three donors, not 2"):
        population(PROCESS, preset_prior(PROCESS), [(), ()])


@pytest.mark.slow
def test_a_shifted_population_is_found() -> None:
    """Growth 25 % quicker and glucose uptake 25 % lower than the preset says: most of it is learnt from eight donors."""
    told = preset_prior(PROCESS)
    true = shifted(told, {"mu_max": 0.25, "a_G": -0.25})
    runs = [matched_run(PROCESS, 50 + k, 8, every=4, prior=true) for k in range(8)]
    learnt, likelihoods = population(PROCESS, told, [r.facts for r in runs], rounds=3)
    for name in ("mu_max", "a_G"):
        drawn = float(np.mean([r.truth[-1][r.empty.layout.index(name)] for r in runs]))
        before, after = told.mean[told.names.index(name)] - drawn, learnt.mean[learnt.names.index(name)] - drawn
        assert abs(after) < 0.6 * abs(before), name
    assert likelihoods[1] > likelihoods[0]
    assert np.linalg.eigvalsh(learnt.cov).min() > 0.0
    assert set(PROCESS.considered) <= set(learnt.names)
