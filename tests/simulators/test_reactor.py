"""The virtual bioreactor as a wire sees it: ordered facts, late results, read-backs, overrides, an honest verdict."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from controllers.recipes import recipe_control
from simulators import Budget, Caps, Override, VirtualBioreactor, edge_settings, load_scenario, median_donor
from simulators.donors import TYPICAL
from twin.config import load_config
from twin.evidence import ControlApplied, Event, Fact, Measurement
from twin.process import Target
from twin.sensors import MONITORED

PROCESS = load_config("car_nk")
OPEN = edge_settings(PROCESS.recipe, PROCESS.limits, Caps(floor=0.5), Budget(2.0, 9.0, 600.0, 6000.0))


def told(fact: Fact) -> float:
    return fact.received_at if isinstance(fact, Measurement) else fact.at


def play(rig: VirtualBioreactor, until: float = 99.0) -> list[Fact]:
    facts: list[Fact] = []
    while not rig.finished and rig.next_tick <= until + 1e-9:
        facts += rig.tick()
    return facts


def test_facts_come_in_order_and_the_last_of_a_tick_is_the_newest() -> None:
    rig, clock = VirtualBioreactor(PROCESS, 3, seed=3), -1.0
    while not rig.finished:
        due = rig.next_tick
        facts = rig.tick()
        times = [told(f) for f in facts]
        assert times == sorted(times)
        assert times[0] >= clock
        clock = times[-1]
        own = [f.sampled_at if isinstance(f, Measurement) else f.at for f in facts]
        assert own[-1] == max(own)
        if not rig.finished:
            assert due < clock < due + 0.01 * rig.step + 0.001


def test_the_first_tick_starts_the_batch() -> None:
    facts = VirtualBioreactor(PROCESS, 3).tick()
    assert isinstance(facts[0], Event)
    assert facts[0].kind == "batch_start"
    pumps = {f.actuator: f.rate for f in facts if isinstance(f, ControlApplied)}
    assert pumps["cytokine_dose"] == PROCESS.recipe.cytokine_dose
    assert any(isinstance(f, Measurement) and f.channel == "ph" for f in facts)


def test_the_last_facts_are_the_harvest_and_the_end() -> None:
    facts = play(VirtualBioreactor(PROCESS, 3, seed=3, online=False))
    harvest, end = facts[-2:]
    assert isinstance(harvest, ControlApplied)
    assert (harvest.actuator, harvest.rate) == ("harvest", 1.0)
    assert isinstance(end, Event)
    assert end.kind == "batch_end"
    assert end.detail["outcome"] == "harvested"


def test_same_seed_same_facts_another_seed_others() -> None:
    once, again = (play(VirtualBioreactor(PROCESS, 5, seed=5), 6.0) for _ in range(2))
    assert repr(once) == repr(again)
    other = play(VirtualBioreactor(PROCESS, 5, seed=6), 6.0)
    assert repr(once) != repr(other)


def test_one_long_tick_is_many_short_ones() -> None:
    assert VirtualBioreactor(PROCESS, 5, seed=5).tick(4.0) == play(VirtualBioreactor(PROCESS, 5, seed=5), 4.0)


def test_without_probes_the_batch_is_the_same() -> None:
    full, lab = VirtualBioreactor(PROCESS, 8, seed=8), VirtualBioreactor(PROCESS, 8, seed=8, online=False)
    a, b = play(full), play(lab)
    assert full.outcome() == lab.outcome()
    counts = [(m.id, m.value) for m in a if isinstance(m, Measurement) and m.channel in ("viable_density", "lactate")]
    assert counts == [
        (m.id, m.value) for m in b if isinstance(m, Measurement) and m.channel in ("viable_density", "lactate")
    ]
    assert len(b) < 0.5 * len(a)


def test_ids_are_unique() -> None:
    ids = [f.id for f in play(VirtualBioreactor(PROCESS, 2, seed=2))]
    assert len(set(ids)) == len(ids)


def test_laboratory_results_come_late_but_carry_the_time_of_the_sample() -> None:
    counts = [
        m
        for seed in range(6)
        for m in play(VirtualBioreactor(PROCESS, seed, seed=seed, online=False))
        if isinstance(m, Measurement) and m.channel == "viable_density"
    ]
    lags = 24 * np.array([m.received_at - m.sampled_at for m in counts])
    assert len(counts) > 50
    assert lags.min() > 0.999  # at the next tick after 1 h, less the seconds between the facts of a tick
    assert lags.max() <= 26.0
    assert (lags > 5.0).any()
    drawn = np.array([m.sampled_at for m in counts])
    assert np.abs(drawn - np.round(drawn)).max() < 0.001  # daily, at the same hour


def test_the_operator_knows_only_what_was_handed_over() -> None:
    rig = VirtualBioreactor(PROCESS, 3, seed=3)
    rig.tick()
    assert rig.readings == {}
    seen: dict[str, float] = {}
    for fact in play(rig, 5.0):
        if isinstance(fact, Measurement) and fact.channel in ("viable_density", "lactate"):
            seen[fact.channel] = fact.value
    assert {k: rig.readings[k].value for k in seen} == seen
    assert "capacitance" not in rig.readings


def test_every_actuator_is_read_back_at_least_every_six_hours() -> None:
    facts = play(VirtualBioreactor(PROCESS, 3, seed=3), 8.0)
    for actuator in ("perfusion", "feed", "bleed", "cytokine_dose"):
        at = [f.at for f in facts if isinstance(f, ControlApplied) and f.actuator == actuator]
        assert np.diff([*at, 8.0]).max() < 0.25 + 0.01


def ask(rig: VirtualBioreactor, rate: float, actuator: str = "perfusion", hours: float = 6.0, n: int = 1) -> Override:
    return Override(f"c{n}-{actuator}", 1, n, actuator, rate, rig.clock, rig.clock + hours / 24, PROCESS.recipe.version)


def test_an_override_moves_the_pump_and_lapses_when_the_twin_falls_silent() -> None:
    rig = VirtualBioreactor(PROCESS, 3, seed=3, settings=OPEN)
    rig.tick(4.0)
    before = rig.applied.perfusion
    assert rig.command(ask(rig, before + 0.2)).accepted
    told_back = [f for f in rig.tick() if isinstance(f, ControlApplied) and f.actuator == "perfusion"]
    assert told_back[0].rate == pytest.approx(before + 0.2)
    assert told_back[0].cmd_id == "c1-perfusion"
    assert told_back[0].at == pytest.approx(4.0, abs=0.001)
    rig.tick(4.0 + 7 / 24)
    assert rig.applied == recipe_control(PROCESS.recipe, rig.clock, rig.readings)
    rig.command(ask(rig, rig.applied.perfusion + 0.2, n=2))
    rig.tick()
    assert rig.applied.perfusion != recipe_control(PROCESS.recipe, rig.clock, rig.readings).perfusion


def test_a_harvest_override_ends_the_batch_at_once() -> None:
    rig = VirtualBioreactor(PROCESS, 3, seed=3, settings=OPEN)
    rig.tick(9.0)
    assert rig.command(ask(rig, 1.0, "harvest")).accepted
    facts = rig.tick()
    assert rig.finished
    assert [type(f).__name__ for f in facts] == ["ControlApplied", "Event"]
    outcome = rig.outcome()
    assert outcome.reason == "override"
    assert outcome.day == pytest.approx(9.0)
    assert rig.tick() == []


def test_the_twin_can_hold_a_harvest_back_but_not_beyond_the_latest_day() -> None:
    free, held = (VirtualBioreactor(PROCESS, 5, seed=5, settings=OPEN, online=False) for _ in range(2))
    play(free)
    n = 0
    while not held.finished:
        held.command(ask(held, 0.0, "harvest", n=(n := n + 1)))
        held.tick()
    assert free.outcome().reason == "dose counted"
    assert held.outcome().reason == "latest day"
    assert held.outcome().day == pytest.approx(PROCESS.recipe.harvest_latest)


def test_the_verdict_rests_on_the_true_vessel() -> None:
    rig = VirtualBioreactor(PROCESS, 5, seed=5, online=False)
    with pytest.raises(RuntimeError, match="still running"):
        rig.outcome()
    play(rig)
    outcome, x = rig.outcome(), rig.state
    assert outcome.cqas["viable_cells"] == pytest.approx(x.viable * x.volume)
    assert outcome.missed == tuple(t.cqa for t in PROCESS.targets if not t.met(outcome.cqas[t.cqa]))
    assert outcome.passed == (outcome.missed == ())
    strict = replace(PROCESS, targets=(*PROCESS.targets, Target("lactate", "at_most", 0.1, "mM")))
    judged = VirtualBioreactor(strict, 5, seed=5, online=False)
    play(judged)
    assert not judged.outcome().passed
    assert "lactate" in judged.outcome().missed


def test_truth_has_one_row_a_tick_in_canonical_units() -> None:
    rig = VirtualBioreactor(PROCESS, median_donor(PROCESS, TYPICAL), seed=1, online=False)
    play(rig, 5.0)
    truth = rig.truth
    assert set(truth) == set(VirtualBioreactor.TRUTH)
    assert truth["time"] == pytest.approx(np.arange(121) / 24)
    assert truth["viability"].max() <= 1.0
    assert truth["perfusion"][0] == 0.0  # no count is known yet
    assert truth["perfusion"][-1] > 0.0
    assert (np.diff(truth["medium_vv"]) >= 0).all()


def test_delivered_medium_differs_from_the_commanded_by_the_pumps_error() -> None:
    rig = VirtualBioreactor(
        replace(PROCESS, recipe=replace(PROCESS.recipe, policy="constant", numbers={"perfusion": (1.0,)})), 4
    )
    play(rig, 6.0)
    commanded = float(np.mean(rig.truth["perfusion"][1:]) * 6.0)
    delivered = float(rig.truth["medium_vv"][-1])
    assert commanded == pytest.approx(6.0)
    assert delivered != pytest.approx(commanded, rel=1e-3)
    assert delivered == pytest.approx(commanded, rel=0.15)


def test_channels_that_the_process_does_not_read_are_not_sent() -> None:
    offline = replace(PROCESS, sensors={k: v for k, v in PROCESS.sensors.items() if k in ("viable_density", "lactate")})
    sent = {f.channel for f in play(VirtualBioreactor(offline, 3, seed=3), 3.0) if isinstance(f, Measurement)}
    assert sent - set(MONITORED) == {"viable_density", "lactate"}


def test_a_careless_laboratory_tells_less_and_later() -> None:
    def lab(name: str) -> list[Measurement]:
        rigs = [VirtualBioreactor(PROCESS, s, seed=s, scenario=load_scenario(name), online=False) for s in range(4)]
        return [f for rig in rigs for f in play(rig, 8.0) if isinstance(f, Measurement)]

    kept, careless = lab("nominal"), lab("careless")
    assert len(careless) < 0.95 * len(kept)
    assert np.mean([m.received_at - m.sampled_at for m in careless]) > 1.5 * np.mean(
        [m.received_at - m.sampled_at for m in kept]
    )


def calibrated(seed: int, **days: tuple[float, ...]) -> list[Fact]:
    return play(
        VirtualBioreactor(PROCESS, 3, seed=seed, scenario=replace(load_scenario("nominal"), calibrations=days)), 6.0
    )


def test_a_calibration_is_told_after_the_readings_that_it_does_not_concern() -> None:
    plain, facts = calibrated(3), calibrated(3, ph=(2.0, 4.0), raman_glucose=(3.0,))
    events = [f for f in facts if isinstance(f, Event) and f.kind == "calibration"]
    assert [(e.id, round(e.at, 3), dict(e.detail)) for e in events] == [
        ("calibration-ph-1", 2.0, {"channel": "ph"}),
        ("calibration-raman_glucose-1", 3.0, {"channel": "raman_glucose"}),
        ("calibration-ph-2", 4.0, {"channel": "ph"}),
    ]
    before, after = ({f.id: f.value for f in fs if isinstance(f, Measurement)} for fs in (plain, facts))
    assert list(before) == list(after)
    first = {"ph": events[0].at, "raman_glucose": events[1].at}
    for f in facts:
        if isinstance(f, Measurement):
            assert (before[f.id] != f.value) == (f.sampled_at > first.get(f.channel, 99.0)), f


def test_a_calibration_draws_the_error_anew_about_zero() -> None:
    def error(seed: int, **days: tuple[float, ...]) -> float:
        """Mean error of the lactate spectra of the first half day but the two before the calibration."""
        rig = VirtualBioreactor(PROCESS, 3, seed=seed, scenario=replace(load_scenario("nominal"), calibrations=days))
        read = [f for f in rig.tick(0.5) if isinstance(f, Measurement) and f.channel == "raman_lactate"]
        return float(np.mean([m.value - rig.signals[m.id] for m in read[2:]]))

    kept = np.array([error(s) for s in range(60)])
    drawn = np.array([error(s, raman_lactate=(0.02,)) for s in range(60)])
    assert kept.std() == pytest.approx(1.8, rel=0.3)
    assert drawn.std() == pytest.approx(1.8, rel=0.3)
    assert abs(drawn.mean()) < 4 * 1.8 / np.sqrt(60)
    assert abs(np.corrcoef(kept, drawn)[0, 1]) < 0.4
