"""The same filter as users of Stone-Soup write it: models over all sigma points at once. An optional extra."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np

from service.bench.peers import by_rk4
from service.bench.problem import PROBES, QUARTER, Problem
from service.bench.timing import Posterior


def installed() -> bool:
    """Is the extra there?"""
    return find_spec("stonesoup") is not None


def _of(module: str) -> Any:
    return import_module(f"stonesoup.{module}")  # by name: the types of an extra are not there to be checked


def one_step(problem: Problem) -> Callable[[], Posterior]:
    """One quarter of an hour of the first reactor: unscented predictor and updater over RK4 in NumPy."""
    array, state = _of("types.array"), _of("types.state")
    n, drive, numbers = problem.layout.size, problem.drives[0], array.StateVectors
    begin = datetime(2000, 1, 1, tzinfo=UTC)
    end = begin + timedelta(days=QUARTER)

    class Bioreactor(_of("models.transition.nonlinear").GaussianTransitionModel, _of("models.base").TimeVariantModel):
        @property
        def ndim_state(self) -> int:
            return n

        def function(self, state: Any, noise: Any = False, **given: Any) -> Any:
            span = given["time_interval"] / timedelta(days=1)
            return by_rk4(problem, np.asarray(state.state_vector), drive, span).view(numbers)

        def covar(self, **given: Any) -> Any:
            return problem.noise.view(array.CovarianceMatrix)

    class Probes(_of("models.measurement.nonlinear").NonLinearGaussianMeasurement):
        @property
        def ndim_meas(self) -> int:
            return len(PROBES)

        def function(self, state: Any, noise: Any = False, **given: Any) -> Any:
            return problem.model.observe(np.asarray(state.state_vector), PROBES, drive).view(numbers)

    probes = Probes(ndim_state=n, mapping=tuple(range(n)), noise_covar=np.diag(problem.r))
    spread = {"alpha": 1.0, "beta": 2.0, "kappa": 3.0 - n}
    predictor = _of("predictor.kalman").UnscentedKalmanPredictor(Bioreactor(), **spread)
    updater = _of("updater.kalman").UnscentedKalmanUpdater(probes, **spread)
    belief, z = problem.beliefs[0], problem.readings[0]
    detection, hypothesis = _of("types.detection").Detection, _of("types.hypothesis").SingleHypothesis

    def run() -> Posterior:
        prior = state.GaussianState(belief.mean[:, None], belief.cov, timestamp=begin)  # afresh: predictions are cached
        said = detection(array.StateVector(z), timestamp=end, measurement_model=probes)
        after = updater.update(hypothesis(predictor.predict(prior, timestamp=end), said))
        return Posterior(np.asarray(after.state_vector, dtype=float)[:, 0], np.asarray(after.covar, dtype=float))

    return run
