"""Pictures of a conditioning: what is drawn is what was given, axes name their units, nothing hides behind a scale."""

from __future__ import annotations

from typing import Any

import numpy as np

from service.report.conditioning_plots import Effect, Readings, by_day, design_space, fan, forest, front, setting_label
from service.report.data import Band, Limit

T = np.linspace(0.0, 6.0, 25)
AHEAD = np.linspace(6.0, 14.0, 33)


def band(t: np.ndarray, level: float) -> Band:
    return Band(t, 0.8 * level + 0.0 * t, level + 0.0 * t, 1.2 * level + 0.0 * t)


def drawn(**more: Any) -> dict[str, Any]:
    """A map whose P rises from corner to corner."""
    xs, ys = np.array([20.0, 50.0, 100.0]), np.array([0.0, 1.0, 2.0])
    p = np.add.outer(ys / 2.0, (xs - 20.0) / 80.0) / 2.0
    return {
        "x": {"name": "cspr_pl_per_cell_d", "unit": "pL/cell/d", "log": True, "values": xs},
        "y": {"name": "perfusion_max", "unit": "VVD", "log": False, "values": ys},
        "p": p, "mc_error": 0.02 + 0.0 * p, "n": 500, "level": 0.9, "share": 1 / 9, "boundary": [[[84.0, 2.0], [100.0, 1.6]]], **more,
    }  # fmt: skip


def test_a_fan_draws_past_future_readings_and_limits() -> None:
    figure = fan(
        {"viable_density": band(T, 2.0), "viability": band(T, 0.9)}, {"viable_density": band(AHEAD, 9.0)},
        {"viable_density": Readings(T[::8], 2.0 + 0.0 * T[::8], 0.1 + 0.0 * T[::8])},
        {"viable_density": [Limit("at_least", 9.5, "dose")]}, {"viable_density": "1e6 cells/mL"},
        now=6.0, harvest=(11.0, 12.0, 13.0), heading="B1",
    )  # fmt: skip
    density, viability = figure.axes[:2]
    assert density.get_title("left") == "Viable cell density" and density.get_title("right") == "10⁶ cells/mL"
    assert viability.get_xlabel() == "days since inoculation"
    assert density.get_xlim()[0] < 0.0 < 14.0 <= density.get_xlim()[1]
    assert density.get_ylim()[0] <= 1.6 and density.get_ylim()[1] >= 1.2 * 9.0
    (legend,) = figure.legends
    assert {t.get_text() for t in legend.get_texts()} == {
        "believed, 90 %",
        "forecast, 90 %",
        "harvest, 90 %",
        "readings, 90 %",
    }


def test_a_forest_shows_every_parameter_within_its_axis() -> None:
    effects = [
        Effect("mu_max", (0.8, 1.25), (0.7, 0.8, 0.9), "informed", ("viable_density", "ph")),
        Effect("v_C", (0.3, 3.0), (0.25, 1.0, 3.5), "not observable yet", ()),
    ]
    (axes,) = forest(effects, "B1").axes
    assert [t.get_text() for t in axes.get_yticklabels()] == ["Cytokine uptake", "Growth rate"]
    low, high = axes.get_xlim()
    assert low < 0.25 and high > 3.5
    assert "informed: viable cell density, pH" in {t.get_text() for t in axes.texts}


def test_probabilities_by_day_keep_to_a_scale_of_zero_to_one() -> None:
    days = np.array([0.0, 1.0, 2.0])
    (axes,) = by_day(days, {"viability": np.array([0.9, 0.95, 1.0])}, np.array([0.2, 0.4, 0.6]), "B1", 2.0).axes
    assert axes.get_ylim()[0] <= 0.0 and axes.get_ylim()[1] >= 1.0
    assert axes.get_ylabel() == "probability to pass"


def test_a_map_names_its_settings_and_says_where_nothing_reaches_the_level() -> None:
    figure = design_space(drawn(), "Design space", {"found": (50.0, 1.0), "elsewhere": (500.0, 1.0)})
    axes, _ = figure.axes
    assert axes.get_xlabel() == "perfusion per cell [pL/cell/d]"
    assert axes.get_ylabel() == "highest perfusion [vessel volumes/d]"
    assert "11 % of the map reaches 0.9" in axes.get_title("left")
    assert {t.get_text() for t in figure.legends[0].get_texts()} == {"found", "P = 0.9"}
    nowhere = design_space(drawn(level=0.99, share=0.0, boundary=[], p=0.5 * np.asarray(drawn()["p"])), "Design space")
    assert "nowhere 0.99: at most 0.50" in nowhere.axes[0].get_title("left")


def test_a_front_draws_one_point_a_budget() -> None:
    plans = [
        {"budget": b, "p": p, "mc_error": 0.01, "policy": q}
        for b, p, q in ((4.0, 0.1, "cspr"), (8.0, 0.5, "lactate_p"))
    ]
    (axes,) = front(plans, {"budget": 8.0, "p": 0.3}, "What medium buys").axes
    assert axes.get_xlabel() == "medium budget of a batch [vessel volumes]"
    labels = axes.get_legend_handles_labels()[1]
    assert set(labels) == {"best plan: cspr", "best plan: lactate_p", "present recipe"}


def test_settings_are_named_for_people() -> None:
    assert setting_label("perfusion[1]", "VVD") == "perfusion 2 [vessel volumes/d]"
    assert setting_label("inoculation", "1e6 cells/mL") == "inoculation [10⁶ cells/mL]"
