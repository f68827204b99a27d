"""Speed of the core, side by side in one run: `make bench`. Absolute times move with the machine; read the ratios."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import casadi as ca
import numpy as np
import pytest

from twin.batch import Batch, assimilate, start
from twin.bioreactor import Control, State, physiology
from twin.config import load_config
from twin.donors.prior import preset_prior
from twin.estimation.filters import FILTERS
from twin.estimation.model import BioreactorModel
from twin.evidence import Measurement
from twin.futures import run_futures
from twin.inputs import Drive
from twin.integrate import STEP, advance, substeps
from twin.native.build import load
from twin.native.columns import Columns
from twin.sensors import CHANNELS, reading
from twin.transition import (
    N_CELL,
    Advance,
    advance_many,
    advance_tangents,
    flat,
    jacobian_function,
    observe_many,
    observe_tangents,
    step_function,
)

PROCESS = load_config("car_nk")
HELD = Control(perfusion=0.5, cytokine_dose=300.0)


THETA = flat(PROCESS.theta)
HOUR = 1 / 24


def numpy_advance(x: np.ndarray, u: np.ndarray, theta: np.ndarray, span: float) -> np.ndarray:
    return np.array(advance(State(*x), Control(*u), PROCESS.theta, span))


def c_advance(m: int) -> Advance:
    """What CasADi's own code generator makes of the step, column after column."""
    mapped = step_function().map(m)
    generator = ca.CodeGenerator("columns.c")
    generator.add(mapped)
    library = load("columns", str(generator.dump()))
    if library is None:
        pytest.skip("no C compiler on this machine")
    routed = Columns(step_function(), {1, 3}, {0: 0}, compiled=False)
    routed._mapped = lambda m: ca.external(mapped.name(), library._name)  # in place of the virtual machine

    def advance(x: np.ndarray, u: np.ndarray, theta: np.ndarray, span: float) -> np.ndarray:
        n = substeps(span)
        return routed(x, u, theta, span / n, times=n)[0]

    return advance


def columns(m: int) -> tuple[np.ndarray, np.ndarray]:
    x = np.array(PROCESS.initial)[:, None] * np.exp(0.3 * np.random.default_rng(1).standard_normal((13, m)))
    return x, np.repeat(THETA[:, None], m, axis=1)


TRANSITIONS: dict[str, Callable[[int], Advance]] = {
    "numpy": lambda m: numpy_advance,
    "casadi": lambda m: advance_many(compiled=False),
    "casadi c": c_advance,
    "simd": lambda m: advance_many(),
}


@pytest.mark.parametrize("name", list(TRANSITIONS))
@pytest.mark.parametrize("span", [STEP, HOUR], ids=["15 min", "one hour"])
def test_transition(benchmark: Any, name: str, span: float) -> None:
    benchmark.group = f"53 sigma points, {'15 min' if span == STEP else 'one hour'}"
    x, theta = columns(53)
    benchmark(TRANSITIONS[name](53), x, np.array(HELD), theta, span)


@pytest.mark.benchmark(group="500 reactors of 53 sigma points, 15 min")
@pytest.mark.parametrize("name", list(TRANSITIONS))
def test_transition_of_a_fleet(benchmark: Any, name: str) -> None:
    x, theta = columns(500 * 53)
    benchmark.pedantic(TRANSITIONS[name](500 * 53), (x, np.array(HELD), theta, STEP), rounds=5, warmup_rounds=1)


def numpy_observe(x: np.ndarray, theta: np.ndarray, errors: np.ndarray) -> np.ndarray:
    state, phys = State(*x), physiology(State(*x), PROCESS.theta)
    k = len(CHANNELS)
    return np.array([reading(c, state, phys, errors[i], errors[k + i]) for i, c in enumerate(CHANNELS)])


@pytest.mark.benchmark(group="readings of every channel at 53 sigma points")
@pytest.mark.parametrize("name", ["numpy", "casadi", "simd"])
def test_observe(benchmark: Any, name: str) -> None:
    routes = {
        "numpy": numpy_observe,
        "casadi": observe_many(tuple(CHANNELS), compiled=False),
        "simd": observe_many(tuple(CHANNELS)),
    }
    x, theta = columns(53)
    benchmark(routes[name], x, theta, np.zeros((2 * len(CHANNELS), 53)))


def chained_jacobians(
    x: np.ndarray, u: np.ndarray, theta: np.ndarray, span: float, dx: np.ndarray, dcell: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    n, step = substeps(span), jacobian_function()
    for _ in range(n):
        new, by_x, by_theta = (np.asarray(a) for a in step(x, u, theta, span / n))
        x, dx = new.ravel(), by_x @ dx + by_theta @ dcell
    return x, dx


@pytest.mark.parametrize("name", ["casadi, chained Jacobians", "casadi", "simd"])
@pytest.mark.parametrize("span", [STEP, HOUR], ids=["15 min", "one hour"])
def test_tangents(benchmark: Any, name: str, span: float) -> None:
    benchmark.group = f"derivatives by 13 states and 8 parameters, {'15 min' if span == STEP else 'one hour'}"
    routes = {
        "casadi, chained Jacobians": chained_jacobians,
        "casadi": advance_tangents(compiled=False),
        "simd": advance_tangents(),
    }
    directions = np.eye(13, 21), np.eye(N_CELL, 21, k=13)
    benchmark(routes[name], np.array(PROCESS.initial), np.array(HELD), THETA, span, *directions)


@pytest.mark.benchmark(
    group="readings of every channel and their derivatives by 13 states, 8 parameters and every error"
)
@pytest.mark.parametrize("name", ["casadi", "simd"])
def test_observe_tangents(benchmark: Any, name: str) -> None:
    observe, k = observe_tangents(tuple(CHANNELS), compiled=name == "simd"), len(CHANNELS)
    directions = np.eye(13, 21 + k), np.eye(N_CELL, 21 + k, k=13), np.eye(2 * k, 21 + k, k=21)
    benchmark(observe, np.array(PROCESS.initial), THETA, np.zeros(2 * k), *directions)


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
