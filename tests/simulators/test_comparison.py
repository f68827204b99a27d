"""Two policies on the same donors: each statistic against its textbook form, and a donor counts once."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest, ttest_rel, wilcoxon

from simulators.campaign import NONE, fault_label, named_faults
from simulators.comparison import against, by_fault, difference_interval, holm, matched, paired, usual_base
from simulators.faults import CONTRACT, PUMP_MODES, SENSOR_MODES, Fault, every_fault, parse_fault
from simulators.metrics import dose, mean_interval, pass_interval, summarise, wilson
from simulators.scenario import load_scenario
from twin.config import load_config

RNG = np.random.default_rng(11)


def row(
    donor: int, passed: bool, medium: float = 6.0, *, seed: int = 0, fault: str = NONE, **more: Any
) -> dict[str, Any]:
    return {
        "policy": "p", "donor": donor, "seed": seed, "scenario": "nominal", "fault": fault, "passed": passed,
        "missed": "" if passed else "viability", "margin": 0.1, "day": 10.0, "medium_vv": medium, "viable_cells": 21.0,
        "viable_density": 21.0, "viability": 0.9, "cytokine": 1.0, "lactate_peak": 20.0, "error": "", **more,
    }  # fmt: skip


def two(n: int = 30) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    a = [row(d, bool(RNG.random() < 0.6), 6.0 + RNG.normal(), viable_cells=20.0 + RNG.normal()) for d in range(n)]
    b = [row(d, bool(RNG.random() < 0.8), 5.0 + RNG.normal(), viable_cells=21.0 + RNG.normal()) for d in range(n)]
    return a, b


def test_with_one_batch_a_donor_the_tests_are_the_textbooks() -> None:
    a, b = two()
    r = paired(a, b)
    lost, won = (
        sum(x["passed"] is k and y["passed"] is not k for x, y in zip(a, b, strict=True)) for k in (True, False)
    )
    assert (r["n"], r["donors"], r["only_first"], r["only_second"]) == (30, 30, lost, won)
    assert r["p"] == pytest.approx(binomtest(lost, lost + won).pvalue)  # McNemar's, exact
    x, y = (np.array([q["medium_vv"] for q in rows]) for rows in (a, b))
    assert r["medium"]["p_t"] == pytest.approx(ttest_rel(y, x).pvalue)
    assert r["medium"]["ci"] == pytest.approx(list(ttest_rel(y, x).confidence_interval()))
    assert r["medium"]["p_wilcoxon"] == pytest.approx(wilcoxon(y - x).pvalue)
    assert r["medium"]["difference"] == pytest.approx(float(np.mean(y - x)))
    assert r["day"] == {"difference": 0.0, "ci": [0.0, 0.0], "p_t": 1.0, "p_wilcoxon": 1.0}


def test_donors_that_all_differ_alike_give_t_nothing_to_go_by() -> None:
    a, b = ([row(d, True, 6.0 + 0.1 * d - less, day=10.0 - less) for d in range(5)] for less in (0.0, 0.25))
    told = paired(a, b)
    for name in ("day", "medium"):  # the medium's differences are alike up to rounding
        assert told[name]["difference"] == pytest.approx(-0.25)
        assert (told[name]["ci"], told[name]["p_t"]) == (None, None)
        assert told[name]["p_wilcoxon"] == pytest.approx(2.0**-4)


def test_donors_of_one_number_in_two_processes_are_no_pair() -> None:
    assert matched([row(0, True, process="car_nk")], [row(0, True, process="t_cell")]) == []
    assert len(matched([row(0, True, process="cho")], [row(0, True, process="cho")])) == 1


def test_turning_a_comparison_round_turns_its_signs() -> None:
    a, b = two()
    there, back = paired(a, b), paired(b, a)
    assert there["pass_difference"] == pytest.approx(-back["pass_difference"])
    assert there["pass_difference_ci"] == pytest.approx([-v for v in reversed(back["pass_difference_ci"])])
    assert there["cells"]["ci"] == pytest.approx([-v for v in reversed(back["cells"]["ci"])])
    assert there["medium"]["p_t"] == pytest.approx(back["medium"]["p_t"])


def test_the_interval_of_the_pass_difference_holds_it_and_covers() -> None:
    """Newcombe's interval on correlated pairs: 95 % coverage within simulation error."""
    rng, held = np.random.default_rng(3), 0
    for _ in range(400):
        hard = rng.normal(size=40)
        pairs = [(row(d, h + rng.normal() > 0.0), row(d, h + rng.normal() > -0.7)) for d, h in enumerate(hard)]
        low, high = difference_interval(pairs)
        seen = float(np.mean([float(y["passed"]) - float(x["passed"]) for x, y in pairs]))
        assert low - 1e-12 <= seen <= high + 1e-12
        held += low <= 0.18971 <= high  # Phi(.7 / sqrt 2) - 1/2
    assert 0.92 <= held / 400 <= 0.985


def test_repeating_a_donor_adds_no_evidence() -> None:
    a, b = two()
    once, thrice = paired(a, b), paired(*([{**r, "seed": k} for r in rows for k in range(3)] for rows in (a, b)))
    assert thrice["n"] == 90 and thrice["donors"] == 30
    assert thrice["p"] == once["p"]
    assert thrice["medium"]["p_t"] == pytest.approx(once["medium"]["p_t"])
    again = [{**r, "seed": k} for r in a for k in range(3)]
    wide, narrow = pass_interval(again), pass_interval(a)
    assert narrow == wilson(sum(r["passed"] for r in a), 30)
    assert wide[0] <= narrow[0] and wide[1] >= narrow[1]  # 29 donors' worth, not 90
    none = [row(d, False, seed=k) for d in range(5) for k in range(10)]
    assert pass_interval(none) == pytest.approx(wilson(0, 5))


def test_means_carry_t_intervals_over_donors() -> None:
    s = summarise([row(d, True, m, seed=k) for d, m in enumerate((4.0, 5.0, 9.0)) for k in range(4)])
    assert s["medium_vv_ci"] == pytest.approx(mean_interval(np.array([4.0, 5.0, 9.0])))
    assert mean_interval(np.array([1.0])) is None
    assert (s["n"], s["donors"], s["errors"]) == (12, 3, 0)


def test_holm_is_never_milder_than_bonferronis_first_step_nor_out_of_order() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    p = RNG.random(20) ** 3
    adjusted = np.array(holm(list(p)))
    assert (adjusted >= p).all() and (adjusted <= 1.0).all()
    assert (np.diff(adjusted[np.argsort(p)]) >= 0.0).all()
    assert adjusted[np.argmin(p)] == pytest.approx(min(1.0, 20 * p.min()))
    assert holm([]) == []


def test_every_policy_is_held_against_the_base_with_one_family_of_tests() -> None:
    a, b = two()
    found = against({"mpc": b, "cspr_100": a, "alone": [row(900, True)]}, "cspr_100")
    assert list(found) == ["mpc"]  # the other shares no donor
    family = [found["mpc"]["p"], *(found["mpc"][k]["p_t"] for k in ("medium", "cells", "day"))]
    assert found["mpc"]["p_holm"] == pytest.approx(holm(family)[0])
    assert found["mpc"]["medium"]["p_holm"] == pytest.approx(holm(family)[1])
    groups = {"mpc": b, "cspr_50": a, "cspr_100": a}
    summaries = {n: summarise(r) for n, r in groups.items()}
    assert usual_base(groups, summaries, "cspr_100") == "cspr_100"
    assert usual_base(groups, summaries) in ("cspr_50", "cspr_100")


def test_a_batch_that_raised_has_not_passed_and_moves_no_mean() -> None:
    lost = {
        **row(1, False),
        **dict.fromkeys(("margin", "day", "medium_vv", "viable_cells", "viable_density")),
        "error": "E: no",
    }
    s = summarise([row(0, True, 4.0), lost])
    assert (s["pass"], s["medium_vv"], s["errors"]) == (0.5, 4.0, 1)
    assert summarise([lost])["worst"] is None
    r = paired([row(0, True), row(1, True)], [row(0, True), lost])
    assert (r["only_first"], r["medium"]["difference"]) == (1, 0.0)


def test_worse_under_a_fault_is_said_of_passes_and_of_cells() -> None:
    base = [row(d, True, fault=f, viable_cells=20.0) for f in ("none", "ph/nan@6", "do/off@6") for d in range(10)]
    mine = [row(d, f != "ph/nan@6" or d > 0, fault=f, viable_cells=19.5 if f == "do/off@6" else 19.7)
            for f in ("none", "ph/nan@6", "do/off@6") for d in range(10)]  # fmt: skip
    table = {r["fault"]: r for r in by_fault({"cspr_100": base, "mpc": mine}, "cspr_100")}
    assert {f: r["worse"] for f, r in table.items()} == {"none": False, "ph/nan@6": True, "do/off@6": True}
    assert next(iter(table)) == "none"
    assert table["ph/nan@6"]["pass_difference"] == pytest.approx(-0.1)
    assert table["do/off@6"]["cells_difference"] == pytest.approx(-0.025)
    assert len(matched(base, mine)) == 30  # a batch is met again only under its own fault


def test_cells_beyond_the_dose_do_not_count() -> None:
    """Who harvests at the dose is not worse than who overshoots it; who falls short of it is."""
    over = [row(d, True, viable_cells=22.0, dose=20.0) for d in range(4)]
    groups = {"cspr_100": over} | {
        name: [row(d, True, viable_cells=cells, dose=20.0) for d in range(4)]
        for name, cells in (("at", 20.1), ("short", 19.5))
    }
    told = {r["policy"]: r for r in by_fault(groups, "cspr_100")}
    assert {n: r["worse"] for n, r in told.items()} == {"at": False, "short": True}
    assert (told["at"]["cells"], told["at"]["base_cells"], told["at"]["cells_difference"]) == (20.0, 20.0, 0.0)
    assert told["short"]["cells_difference"] == pytest.approx(-0.025)
    whole = by_fault({n: [{**r, "dose": None} for r in rows] for n, rows in groups.items()}, "cspr_100")
    assert all(r["worse"] for r in whole)


def test_the_dose_is_the_process_s_target_of_cells() -> None:
    targets = load_config("car_nk").targets
    assert dose(targets) == next(t.value for t in targets if t.cqa == "viable_cells")
    assert dose([t for t in targets if t.cqa != "viable_cells"]) is None


def test_one_name_is_one_fault() -> None:
    sizes = (0.12345678, 0.12345679, 1e-6, 1.0 / 24.0)
    assert len({fault_label(Fault("ph", "drift", 6.0, size=s)) for s in sizes}) == len(sizes)
    assert all(parse_fault(fault_label(f)) == f for f in (Fault("ph", "drift", 1.0 / 3.0, size=s) for s in sizes))


def test_the_vocabulary_is_every_mode_on_every_channel_and_pump() -> None:
    every = every_fault()
    assert len(every) == len(set(every)) == len(CONTRACT) * len(SENSOR_MODES) + 3 * len(PUMP_MODES)
    assert all(parse_fault(fault_label(f)) == f for f in every)
    assert parse_fault("pump:perfusion/clog=0.1@3") == Fault("pump:perfusion", "clog", 3.0, size=0.1)
    befalls = named_faults(["all"], load_scenario())
    assert befalls[0] == () and len(befalls) == 1 + len(every)
    assert named_faults([], load_scenario()) == ((),)
    assert named_faults(["ph/nan", "none", "ph/nan@6"], load_scenario()) == ((Fault("ph", "nan", 6.0),), ())


@pytest.mark.parametrize(
    ("name", "said"),
    [("ph", "TARGET/MODE"), ("ph/nan@soon", "numbers"), ("ph/melted", "unknown mode"), ("soul/off", "unknown target"),
     ("total_density/off", "no instrument")],
)  # fmt: skip
def test_an_unknown_fault_is_told(name: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        named_faults([name], load_scenario())


def test_margins_without_targets_do_not_stop_a_summary() -> None:
    assert summarise([row(0, True, margin=math.inf)])["worst"]["margin"] == math.inf
