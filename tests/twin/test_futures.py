"""Futures: closed forms of the marginals, common random numbers, agreement with the filter."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from twin.batch import Batch, assimilate, believe_at, start
from twin.bioreactor import Control, State
from twin.config import load_config
from twin.donors.prior import preset_prior
from twin.estimation.belief import draws, logitnormal, lognormal, marginals, split
from twin.evidence import Measurement
from twin.futures import FUTURE_STEP, LATE, forecast, release, run_futures
from twin.process import DEFAULT_NOISE, Process
from twin.transition import advance_many, flat
from twin.twin import Twin

PROCESS = load_config("car_nk")


def begun() -> Batch:
    return assimilate(start("b", PROCESS, preset_prior(PROCESS)), Measurement("x", "viable_density", 0.8, 1.0, 1.0))


def cspr(t: float, x: State) -> Control:
    return Control(perfusion=np.minimum(2.0, 0.1 * x.viable), cytokine_dose=300.0)


def test_marginals_agree_with_a_million_draws() -> None:
    batch = begun()
    belief = believe_at(batch, 1.5)
    x, _, _ = split(draws(belief, 400_000, np.random.default_rng(0)), batch.layout, PROCESS.theta.cell)
    named = marginals(belief, batch.layout)
    for name, values in (("viable_density", x.viable), ("viability", x.viability), ("car_fraction", x.car_fraction)):
        m = named[name]
        assert m.mean == pytest.approx(values.mean(), rel=2e-3)
        assert m.sd == pytest.approx(values.std(), rel=1e-2)
        assert m.q05 == pytest.approx(np.quantile(values, 0.05), rel=1e-2)
        assert m.q95 == pytest.approx(np.quantile(values, 0.95), rel=1e-2)


def test_closed_forms_of_certain_quantities() -> None:
    assert lognormal(np.log(3.0), 0.0)[:2] == (pytest.approx(3.0), 0.0)
    assert logitnormal(0.0, 0.0).mean == pytest.approx(0.5)
    assert logitnormal(0.0, 4.0).mean == pytest.approx(0.5)


def test_futures_have_the_moments_of_the_filter_one_day_ahead() -> None:
    """Where the filter's noise is biology's and no more."""
    process = replace(PROCESS, noise=DEFAULT_NOISE)
    batch = assimilate(start("b", process, preset_prior(process)), Measurement("x", "viable_density", 0.8, 1.0, 1.0))
    ensemble = run_futures(batch, 1.0, lambda t, x: Control(cytokine_dose=0.0), n=4000, seed=1, harvest_at=2.0)
    predicted = believe_at(batch, 2.0)
    logs = np.log(ensemble.harvested.viable)
    assert logs.mean() == pytest.approx(predicted.mean[0], abs=4 * logs.std() / 4000**0.5 + 0.01)
    assert logs.std() == pytest.approx(predicted.cov[0, 0] ** 0.5, rel=0.06)


def test_an_empty_edit_changes_nothing_exactly() -> None:
    one = run_futures(begun(), 1.0, cspr, n=40, seed=3)
    two = run_futures(begun(), 1.0, lambda t, x: cspr(t, x), n=40, seed=3)
    np.testing.assert_array_equal(one.states, two.states)


def test_what_if_the_feed_rises_shifts_glucose_by_its_first_order_value() -> None:
    """Feed .05 VVD for six hours of 500 mM raises glucose by about .25 x .05 x (500 - G)."""
    with_feed = replace(PROCESS, noise=type(PROCESS.noise)(*[0.0] * 13))
    batch = assimilate(
        start("b", with_feed, preset_prior(with_feed)), Measurement("x", "viable_density", 0.8, 1.0, 1.0)
    )

    def glucose(feed: float) -> np.ndarray:
        return run_futures(batch, 1.0, lambda t, x: Control(feed=feed), n=50, seed=1, harvest_at=1.25).harvested.glucose

    shift = glucose(0.05) - glucose(0.0)
    assert shift.mean() == pytest.approx(0.25 * 0.05 * (500 - 24), rel=0.03)


def test_forecast_is_deterministic_and_its_probabilities_are_consistent() -> None:
    first, second = (forecast(begun(), 1.0, cspr, n=64, seed=5) for _ in range(2))
    assert first.p_pass == second.p_pass
    assert first.p_release <= min(first.p_pass.values())
    assert 1.0 < first.harvest[0] <= first.harvest[1] <= first.harvest[2] <= PROCESS.recipe.harvest_latest
    band = first.bands["viable_density"]
    assert (band.q05 <= band.q50).all()
    assert (band.q50 <= band.q95).all()


def test_release_needs_every_target() -> None:
    ensemble = run_futures(begun(), 1.0, cspr, n=64, seed=5)
    everything = release(ensemble, PROCESS.targets)
    impossible = replace(PROCESS.targets[0], value=1e9)
    assert everything.any()
    assert not release(ensemble, (*PROCESS.targets, impossible)).any()


def test_a_hopeless_culture_has_no_useful_day_left() -> None:
    batch = begun()
    for k in range(4):
        batch = assimilate(batch, Measurement(f"d{k}", "viable_density", 0.02, 12.0 + 0.3 * k, 12.0 + 0.3 * k))
    late = forecast(batch, 13.0, cspr, n=32, seed=1, intervene=True)
    assert late.p_release == 0.0
    assert late.last_useful_day is None


def test_the_notebook_handle_tells_the_same_story() -> None:
    twin = Twin.start(PROCESS).tell(Measurement("x", "viable_density", 0.8, 1.0, 1.0))
    assert twin.belief(1.5) == believe_at(begun(), 1.5)
    table = twin.trajectory([1.0, 2.0])
    assert set(table.columns) == {"time_d", "quantity", "mean", "sd", "q05", "q95"}
    held = twin.forecast(1.0, Control(perfusion=0.5, cytokine_dose=300.0), n=16)
    assert 0.0 <= held.p_release <= 1.0
    assert twin.donor(1.0)["mu_max"].mean > 0


def test_the_coarser_step_of_futures_agrees_with_the_filter_s() -> None:
    """Fourteen days at 30 min against 15 min, perfused by density: within 1e-4 of every state."""
    theta = flat(PROCESS.theta)[:, None]
    coarse = fine = np.array(PROCESS.initial)[:, None]
    for _ in range(56):
        u = np.array([min(2.0, 0.1 * float(fine[0, 0] + fine[1, 0])), 0.0, 0.0, 300.0])
        coarse, fine = advance_many(FUTURE_STEP)(coarse, u, theta, 0.25), advance_many()(fine, u, theta, 0.25)
    np.testing.assert_allclose(coarse, fine, rtol=1e-4)


def daily(days: int, delay: float = 0.1, process: Process = PROCESS) -> Batch:
    batch = start("b", process, preset_prior(process))
    for day in range(days + 1):
        batch = assimilate(batch, Measurement(f"c{day}", "viable_density", 0.6 * 1.5**day, float(day), day + delay))
    return batch


def test_an_operator_sees_counts_once_a_day_and_some_hours_late() -> None:
    seen: list[tuple[float, np.ndarray]] = []

    def watched(t: float, x: State) -> Control:
        seen.append((t, x.viable))
        return cspr(t, x)

    ensemble = run_futures(daily(6), 6.5, watched, n=40, seed=1)
    changes = [t for (_, a), (t, b) in pairwise(seen) if not np.allclose(a, b, rtol=1e-9)]
    np.testing.assert_allclose(changes, np.arange(7.0, 14.0) + 0.1)
    assert seen[0][1] == pytest.approx(0.6 * 1.5**6)  # the last that is known
    at = int(np.argmin(np.abs(ensemble.t - 7.0)))
    read = dict(seen)[changes[0]] / State(*ensemble.states[at]).viable
    assert 0.04 < np.log(read).std() < 0.13  # noise .08, gain .03


def test_the_harvest_falls_due_on_counted_cells() -> None:
    ensemble = run_futures(daily(6), 6.5, cspr, n=100, seed=1)
    days = ensemble.t[ensemble.harvest]
    early = days < 13.9
    assert early.sum() > 20
    np.testing.assert_allclose(days[early] % 1.0, 0.1, atol=1e-6)
    dose = ensemble.harvested.viable_cells[early] / PROCESS.recipe.harvest_cells
    assert dose.min() < 1.0 < np.median(dose)  # a count may flatter, and cells grow until it is known


def test_a_total_count_and_its_viability_are_a_count() -> None:
    batch = start("b", PROCESS, preset_prior(PROCESS))
    for channel, value in (("total_density", 2.0), ("viability", 0.9)):
        batch = assimilate(batch, Measurement(channel, channel, value, 3.0, 3.1))
    seen: list[float] = []

    def watched(t: float, x: State) -> Control:
        seen.append(float(x.viable[0]))
        return Control()

    run_futures(batch, 3.2, watched, n=4, harvest_at=3.5)
    assert seen[0] == pytest.approx(1.8)


def test_without_a_sensor_of_counts_the_state_itself_is_seen() -> None:
    blind = replace(PROCESS, sensors={"capacitance": PROCESS.sensors["capacitance"]})
    batch = start("b", blind, preset_prior(blind))
    seen: list[np.ndarray] = []

    def watched(t: float, x: State) -> Control:
        seen.append(x.viable)
        return Control()

    ensemble = run_futures(batch, 1.0, watched, n=8, harvest_at=3.0)
    truth = State(*np.moveaxis(ensemble.states, 1, 0)).viable
    np.testing.assert_allclose(np.array(seen), truth[:-1], rtol=1e-12)


def test_kinetics_that_show_late_differ_between_futures_as_between_donors() -> None:
    alike = replace(PROCESS, donor_sd={k: v for k, v in PROCESS.donor_sd.items() if k not in LATE})
    spread = [
        float(np.std(np.log(run_futures(daily(6, process=p), 6.5, cspr, n=300, harvest_at=14.0).harvested.exhausted)))
        for p in (PROCESS, alike)
    ]
    assert spread[0] > 1.2 * spread[1]
