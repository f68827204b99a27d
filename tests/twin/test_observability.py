"""What the data inform: closed forms on a linear reactor, and what it says of a bioreactor day by day."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from simulators import record
from tests.twin.linear import LAYOUT, Everything, Linear, N, linear_batch, prior
from twin.batch import believe_at, start
from twin.config import load_config
from twin.donors.prior import preset_prior
from twin.estimation.belief import Belief
from twin.estimation.filters import FILTERS
from twin.estimation.observability import Informed, observability, verdict
from twin.estimation.tune import prepared
from twin.evidence import ControlApplied, Event, Measurement
from twin.history import Batch, replay
from twin.inputs import course

NOW = 1.4


def readings(rng: np.random.Generator) -> list[Measurement]:
    when = {"raman_glucose": (0.1, 0.25, 0.5, 1.2), "raman_lactate": (0.25, 0.8, 1.2), "do": (0.5, 0.7, 1.3)}
    return [
        Measurement(f"{c}{t}", c, float(rng.normal(0.0, 2.0)), t, t, confirmed=True)
        for c, ts in when.items()
        for t in ts
    ]


@pytest.mark.parametrize("name", FILTERS)
def test_on_a_linear_model_ratios_and_shares_are_those_of_the_joint_gaussian(name: str) -> None:
    """Shares by hand: the variance of every coordinate now, given one more reading after the other, by dense solves."""
    rng = np.random.default_rng(6)
    model = Linear(rng)
    facts = (ControlApplied("p", 0.2, "perfusion", 1.0), Event("c", "calibration", 0.7, {"channel": "do"}))
    batch = linear_batch(model, prior(rng), readings(rng), facts, name)
    found = observability(batch, NOW)
    variances, told = [], list[str]()
    for count in range(len(batch.evidence) + 1):
        part = replace(batch, evidence=batch.evidence[:count])
        variances.append(np.diagonal(Everything(part, model, [NOW]).at(NOW)[1]))
        told += [batch.evidence[count].channel] if count < len(batch.evidence) else []
    gained = 0.5 * np.log(np.array(variances[:-1]) / np.array(variances[1:]))  # nats [reading, coordinate]
    assert [f.name for f in found] == list(LAYOUT.names)
    for i, f in enumerate(found):
        assert f.prior_sd == pytest.approx(np.sqrt(variances[0][i]), rel=1e-7)
        assert f.posterior_sd == pytest.approx(np.sqrt(variances[-1][i]), rel=1e-7)
        assert f.ratio == pytest.approx(np.exp(-f.nats), rel=1e-6)
        shares = dict(f.channels)
        assert sum(shares.values()) == pytest.approx(1.0) and list(shares.values()) == sorted(
            shares.values(), reverse=True
        )
        for channel, share in shares.items():
            exact = gained[[c == channel for c in told], i].sum()
            assert share * f.nats == pytest.approx(exact, abs=1e-7)


def still(noise: float = 1e-12) -> Linear:
    """A reactor in which nothing moves and each of three channels reads one coordinate, one of them with an offset."""
    model = Linear(np.random.default_rng(0), noise=noise)
    model.F, model.B = np.zeros((N, N)), np.zeros(N)
    model.H = {c: np.zeros(N) for c in model.H}
    model.H["raman_lactate"][LAYOUT.index("lactate")] = 1.0
    for i in ("glucose", "raman_glucose_offset"):
        model.H["raman_glucose"][LAYOUT.index(i)] = 1.0
    model.H["do"][LAYOUT.index("do_offset")] = 1.0
    return model


def test_repeated_readings_of_a_constant() -> None:
    """Prior variance 1, n readings of noise r: posterior variance 1 / (1 + n / r); of the rest nothing is known."""
    believed = Belief(0.0, np.zeros(N), np.eye(N))
    told = [Measurement(f"m{k}", "raman_lactate", 0.1, 0.1 * k, 1.0, confirmed=True) for k in range(1, 6)]
    found = {f.name: f for f in observability(linear_batch(still(), believed, told), 1.0)}
    lactate, variance = found["lactate"], 0.2**2
    assert lactate.ratio == pytest.approx((1.0 + 5.0 / variance) ** -0.5, rel=1e-6)
    assert lactate.verdict == "informed" and lactate.channels == (("raman_lactate", pytest.approx(1.0)),)
    for name in set(LAYOUT.names) - {"lactate"}:
        assert found[name].ratio == pytest.approx(1.0) and found[name].verdict == "not observable yet"
        assert found[name].entangled == ()
    assert [found[n].kind for n in ("viable", "mu_max", "do_offset")] == ["state", "parameter", "sensor error"]


def test_a_sum_that_is_read_ties_its_terms() -> None:
    """Glucose and the offset of its probe, of equal prior: the correlation goes to -1 / (1 + 1 / (n / r))."""
    believed = Belief(0.0, np.zeros(N), np.eye(N))
    told = [Measurement(f"m{k}", "raman_glucose", 0.1, 0.1 * k, 1.0, confirmed=True) for k in range(1, 9)]
    found = {f.name: f for f in observability(linear_batch(still(), believed, told), 1.0)}
    weight = 8.0 / 0.3**2
    rho = -weight / (1.0 + weight)
    (tie,) = found["glucose"].entangled
    assert (tie.other, tie.known) == ("raman_glucose_offset", "combination")
    assert tie.correlation == pytest.approx(rho, rel=1e-6) and tie.left == pytest.approx(np.sqrt(1 - rho**2), rel=1e-4)
    (back,) = found["raman_glucose_offset"].entangled
    assert back.other == "glucose" and back.correlation == tie.correlation


def test_evidence_after_now_is_not_used() -> None:
    rng = np.random.default_rng(7)
    model = Linear(rng)
    believed, all_of_them = prior(rng), readings(rng)
    batch = linear_batch(model, believed, all_of_them)
    until = linear_batch(model, believed, [m for m in all_of_them if m.sampled_at <= 0.6])
    assert observability(batch, 0.6) == observability(until, 0.6)
    assert [f.posterior_sd for f in observability(batch, 0.6)] == list(np.sqrt(np.diagonal(believe_at(batch, 0.6).cov)))
    for bad in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="now: expected a day from 0 on"):
            observability(batch, bad)


def test_verdicts_are_by_share_of_variance_explained() -> None:
    assert [verdict(r) for r in (0.1, 0.7, 0.71, 0.95, 0.96, 1.3)] == [
        "informed", "informed", "weakly", "weakly", "not observable yet", "not observable yet",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def rig() -> tuple[Batch, Mapping[str, np.ndarray]]:
    """Fourteen days of a virtual donor on a plant that is not the model, and what was true."""
    process = load_config("car_nk")
    heard = record(process, 1000, seed=1000, days=14.0)
    applied = [f for f in heard.facts if isinstance(f, ControlApplied)]
    evidence = sorted((f for f in heard.facts if isinstance(f, Measurement)), key=lambda m: (m.sampled_at, m.channel))
    inputs = course(process.theta.medium, applied, ())
    batch = replace(start("b", process, preset_prior(process)), course=inputs, evidence=tuple(evidence))
    return replay(prepared(batch), 0), heard.truth


@pytest.mark.slow
def test_on_a_bioreactor_parameters_come_into_sight_when_the_science_says(
    rig: tuple[Batch, Mapping[str, np.ndarray]],
) -> None:
    batch, truth = rig

    def on(day: float) -> dict[str, Informed]:
        return {f.name: f for f in observability(batch, day)}

    early, late = on(4.0), on(13.0)
    assert np.interp(4.0, truth["time"], truth["lactate"]) < 15.0 < np.interp(13.0, truth["time"], truth["lactate"])
    assert early["K_L"].verdict == "not observable yet" and late["K_L"].ratio < early["K_L"].ratio - 0.05
    assert early["tau_lag"].ratio < 0.75 and early["mu_max"].ratio < 0.8
    assert late["a_G"].verdict == late["Y_LG"].verdict == "informed"
    assert late["k_C"].verdict == "not observable yet" and late["v_C"].ratio > 0.9  # needs an ELISA
    assert late["car_odds"].channels[0][0] == "car_fraction"
    assert late["exhausted"].channels[0][0] == "exhausted_fraction"
    assert late["raman_glucose_offset"].channels[0][0] == "raman_glucose"
    for f in late.values():
        assert f.posterior_sd > 0.0 and np.isfinite(f.prior_sd)
        assert sum(s for _, s in f.channels) == pytest.approx(1.0)
