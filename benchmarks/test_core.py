"""Speed of the core, side by side in one run: `make bench`. Absolute times move with the machine; read the ratios."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from twin.batch import Batch, assimilate, start
from twin.bioreactor import Control, State
from twin.config import load_config
from twin.donors.prior import preset_prior
from twin.estimation.filters import FILTERS
from twin.estimation.model import BioreactorModel
from twin.evidence import Measurement
from twin.futures import run_futures
from twin.inputs import Drive
from twin.integrate import advance
from twin.transition import Advance, advance_compiled, advance_interpreted, compiled_library, flat

PROCESS = load_config("car_nk")
HELD = Control(perfusion=0.5, cytokine_dose=300.0)


def numpy_advance(x: np.ndarray, u: np.ndarray, theta: np.ndarray, span: float) -> np.ndarray:
    return np.array(advance(State(*x), Control(*u), PROCESS.theta, span))


def transitions() -> dict[str, Advance]:
    library = compiled_library()
    known: dict[str, Advance] = {"numpy": numpy_advance, "casadi": advance_interpreted()}
    return known if library is None else {**known, "compiled": advance_compiled(library)}


@pytest.mark.benchmark(group="51 sigma points, one hour")
@pytest.mark.parametrize("name", ["numpy", "casadi", "compiled"])
def test_transition(benchmark: Any, name: str) -> None:
    if name not in transitions():
        pytest.skip("no C compiler on this machine")
    x = np.repeat(np.array(PROCESS.initial)[:, None], 51, axis=1)
    theta = np.repeat(flat(PROCESS.theta)[:, None], 51, axis=1)
    benchmark(transitions()[name], x, np.array(HELD), theta, 1 / 24)


def begun(name: str) -> Batch:
    return start("b", PROCESS, preset_prior(PROCESS), name)


@pytest.mark.benchmark(group="one prediction of 15 min")
@pytest.mark.parametrize("name", list(FILTERS))
def test_predict(benchmark: Any, name: str) -> None:
    batch = begun(name)
    drive = Drive(HELD, BioreactorModel(PROCESS, batch.layout).process.theta.medium)
    benchmark(batch.filter.predict, batch.prior, drive, 1 / 96)


@pytest.mark.benchmark(group="a day of 8 hourly sensors into the belief")
@pytest.mark.parametrize("name", list(FILTERS))
def test_assimilate_a_day(benchmark: Any, name: str) -> None:
    channels = {"capacitance": 0.3, "raman_glucose": 24.0, "raman_lactate": 1.0, "ph": 7.2, "oxygen_uptake": 0.02,
                "do": 48.0, "weight": 1.0, "viability": 0.92}  # fmt: skip

    def day() -> None:
        batch = begun(name)
        for hour in range(1, 25):
            for channel, value in channels.items():
                batch = assimilate(batch, Measurement(f"{channel}{hour}", channel, value, hour / 24, hour / 24))

    benchmark.pedantic(day, rounds=3, warmup_rounds=1)


@pytest.mark.benchmark(group="futures to harvest, 14 days")
@pytest.mark.parametrize("n", [200, 1000])
def test_futures(benchmark: Any, n: int) -> None:
    batch = begun("ukf")
    schedule: Callable[[float, State], Control] = lambda t, x: HELD  # noqa: E731
    benchmark.pedantic(run_futures, (batch, 0.0, schedule), {"n": n}, rounds=3, warmup_rounds=1)
