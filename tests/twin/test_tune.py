"""Innovation likelihood against one dense density, and noise that was put in and is found again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import multivariate_normal

from simulators.matched import matched_run, told
from tests.twin.linear import Everything, Linear, linear_batch, prior
from twin.batch import apply, assimilate, note, start
from twin.bioreactor import Coordinates
from twin.config import ConfigError, configs_dir, load_config
from twin.donors.prior import preset_prior
from twin.estimation.filters import FILTERS
from twin.estimation.screen import Innovation
from twin.estimation.tune import (
    KNOBS,
    innovations,
    log_likelihood,
    prepared,
    relevant,
    score,
    tune,
    turned,
)
from twin.evidence import ControlApplied, Event, Measurement
from twin.history import Batch

PROCESS = load_config("car_nk")


def knobs(*names: str) -> list:
    return [k for k in KNOBS if k.name in names]


@pytest.mark.parametrize("name", FILTERS)
def test_innovations_have_the_density_of_all_readings_at_once(name: str) -> None:
    rng = np.random.default_rng(4)
    model = Linear(rng)
    facts = (ControlApplied("p", 0.2, "perfusion", 1.0), Event("c", "calibration", 0.7, {"channel": "do"}))
    readings = [
        Measurement(f"{c}{t}", c, float(rng.normal(0.0, 2.0)), t, t, confirmed=True)
        for c, times in {"raman_glucose": (0.1, 0.25, 0.5), "raman_lactate": (0.25, 0.8), "do": (0.5, 0.7)}.items()
        for t in times
    ]
    batch = linear_batch(model, prior(rng), readings, facts, name)
    whole = Everything(batch, model)
    density = multivariate_normal(whole.expected, whole.spread).logpdf([m.value for m in batch.evidence])
    assert max(i.ratio for i in batch.innovations) < 1.0
    assert log_likelihood(batch.innovations, batch.process) == pytest.approx(density, abs=1e-8)


def test_a_wild_reading_costs_a_fixed_amount_whatever_the_filter_believed() -> None:
    def one(residual: float, s: float) -> Innovation:
        return Innovation(1.0, "glucose", residual, s, residual**2 / s, 1.0, "rejected")

    sensor = PROCESS.sensors["glucose"]
    cost = -0.5 * (np.log(2 * np.pi * sensor.sd**2) + sensor.gate**2)
    for wild in (one(1e3, 0.5), one(1e6, 0.5), one(1e3, 0.002)):
        assert log_likelihood([wild], PROCESS) == pytest.approx(cost)
    expected = -0.5 * (np.log(2 * np.pi * 0.5) + 0.02)
    assert log_likelihood([one(0.1, 0.5)], PROCESS) == pytest.approx(expected)
    assert log_likelihood([], PROCESS) == 0.0


def batch_of(*facts: Measurement | ControlApplied | Event) -> Batch:
    batch = start("b", PROCESS, preset_prior(PROCESS))
    for f in facts:
        batch = (
            assimilate(batch, f)
            if isinstance(f, Measurement)
            else apply(batch, f)
            if isinstance(f, ControlApplied)
            else note(batch, f)
        )
    return batch


@given(st.lists(st.floats(0.0, 2.0), min_size=1, max_size=12), st.lists(st.floats(0.001, 2.0), max_size=4))
def test_readings_move_by_half_a_minute_at_most_and_never_past_a_change(
    times: list[float], changes: list[float]
) -> None:
    facts = [ControlApplied(f"p{k}", t, "perfusion", 0.1 * (k + 1)) for k, t in enumerate(changes)]
    evidence = tuple(Measurement(f"m{k}", "weight", 1.0, t, t) for k, t in enumerate(sorted(times)))
    batch = replace(batch_of(*facts, Event("c", "calibration", 1.0, {"channel": "do"})), evidence=evidence)
    moved = {m.id: m.sampled_at for m in prepared(batch).evidence}
    for m in evidence:
        assert abs(moved[m.id] - m.sampled_at) <= 0.5 / 1440 + 1e-12
        assert batch.course.at(m.sampled_at) == batch.course.at(moved[m.id])
        assert (m.sampled_at >= 1.0) == (moved[m.id] >= 1.0)
    assert list(moved.values()) == sorted(moved.values())


def test_what_no_reading_speaks_of_is_not_tuned() -> None:
    counts = [Measurement(f"x{k}", "viable_density", 0.5, 0.1 * k, 0.1 * k) for k in range(9)]
    few = [Measurement(f"p{k}", "ph", 7.2, 0.1 * k, 0.1 * k) for k in range(3)]
    named = {k.name: k for k in relevant(PROCESS, [batch_of(*counts, *few)])}
    assert set(named) == {
        "growth",
        "parameter_walk",
        "restless",
        "strong_ion",
        "counter",
    }  # pH too seldom for its own noise
    assert named["counter"].sd == ("viable_density",)
    assert relevant(PROCESS, [batch_of()]) == ()
    with pytest.raises(ValueError, match="no batch has a reading"):
        tune(PROCESS, [batch_of()])


@given(st.lists(st.floats(0.1, 10.0), min_size=len(KNOBS), max_size=len(KNOBS)))
def test_a_turn_and_its_inverse_leave_the_process_as_it_was(multipliers: list[float]) -> None:
    there = turned(PROCESS, KNOBS, multipliers)
    again = turned(there, KNOBS, [1.0 / m for m in multipliers])
    np.testing.assert_allclose(again.noise, PROCESS.noise, rtol=1e-12)
    assert PROCESS.restless and again.restless == pytest.approx(PROCESS.restless, rel=1e-12)
    assert again.parameter_walk == pytest.approx(PROCESS.parameter_walk, rel=1e-12)
    for channel, sensor in PROCESS.sensors.items():
        assert again.sensors[channel].sd == pytest.approx(sensor.sd, rel=1e-12)
        assert (again.sensors[channel].error is None) == (sensor.error is None)
        assert there.sensors[channel].gate == sensor.gate
    untouched = {"cytokine", "doublings", "activation"}
    for name in Coordinates._fields:
        assert (getattr(there.noise, name) == getattr(PROCESS.noise, name)) or name not in untouched


def test_going_through_a_batch_again_gives_the_innovations_it_had() -> None:
    batch = told(matched_run(PROCESS, seed=1, days=2, every=6))
    again = innovations(prepared(batch), PROCESS)
    assert len(again) == len(batch.innovations)
    np.testing.assert_allclose([i.residual for i in again], [i.residual for i in batch.innovations], atol=1e-9)
    assert score(PROCESS, [prepared(batch)]).log_likelihood == pytest.approx(
        log_likelihood(batch.innovations, PROCESS), abs=1e-6
    )


@pytest.mark.slow
def test_noise_that_was_configured_wrongly_is_found_again() -> None:
    """Four matched reactors of six days; the process is three times too restless, a probe said to be too good or too bad."""
    wrong = {"growth": 3.0, "capacitance": 0.5, "raman": 2.0, "ph": 0.4}
    chosen = knobs(*wrong)
    batches = [prepared(told(matched_run(PROCESS, seed, 6, every=2))) for seed in range(4)]
    began = turned(PROCESS, chosen, [wrong[k.name] for k in chosen])
    found = tune(began, batches, chosen, evaluations=60)
    assert found.evaluations <= 60
    for name, factor in wrong.items():
        assert factor * found.multipliers[name] == pytest.approx(1.0, rel=0.35), name
    true = score(PROCESS, batches, against=began).log_likelihood
    assert score(found.process, batches, against=began).log_likelihood > true - 1.0


def noise_file(folder: Path, **content: object) -> str:
    """A process file that names a noise of the given content, or none where there is none."""
    noise, process = folder / "noise.yaml", folder / f"process{len(content)}.yaml"
    noise.write_text(yaml.safe_dump({"name": "n", "source": "made up", **content}), encoding="utf-8")
    shipped = yaml.safe_load((configs_dir() / "processes" / "car_nk.yaml").read_text(encoding="utf-8"))
    named = {"noise": str(noise)} if content else {}
    process.write_text(yaml.safe_dump({k: v for k, v in shipped.items() if k != "noise"} | named), encoding="utf-8")
    return str(process)


def test_a_process_file_names_its_noise(tmp_path: Path) -> None:
    named = noise_file(
        tmp_path, process={"viable": 0.07}, parameter_walk=0.0, sensors={"ph": {"sd": 0.01}, "do": {"walk": 0.3}}
    )
    process, plain = load_config(named), load_config(noise_file(tmp_path))
    assert process.noise == plain.noise._replace(viable=0.07) and process.parameter_walk == 0.0
    assert process.sensors["ph"] == replace(plain.sensors["ph"], sd=0.01)
    was = plain.sensors["do"]
    assert was.error is not None
    assert process.sensors["do"] == replace(was, error=was.error._replace(walk=0.3))
    assert process.sensors["weight"] == plain.sensors["weight"]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ({"process": {"vible": 0.1}}, r"field process: unknown \['vible'\]; known: viable"),
        ({"process": {"viable": 0.0}}, "field process.viable"),
        ({"sensors": {"diameter": {"sd": 0.1}}}, "no sensor for"),
        ({"sensors": {"weight": {"walk": 0.1}}}, "field sensors.weight.walk: this sensor has no error"),
        ({"sensors": {"ph": {"sd": float("nan")}}}, "field sensors.ph.sd"),
        ({"walk": 1.0}, "field walk"),
    ],
)
def test_a_faulty_noise_file_is_refused_with_file_and_field(
    tmp_path: Path, content: dict[str, object], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint) as error:
        load_config(noise_file(tmp_path, **content))
    assert "noise.yaml" in str(error.value)
