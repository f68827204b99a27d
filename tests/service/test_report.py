"""The report page: complete, self-contained, safe with hostile text, the same bytes for the same data."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from service.report import plots
from service.report.data import Alert, Band, Criterion, Curve, Decided, Limit, Outcome, ReportData, Samples
from service.report.page import number, render, write_report
from twin.bioreactor import Control
from twin.config import load_config
from twin.integrate import advance

UNITS = {
    "viable_density": "1e6 cells/mL", "viability": "dimensionless", "glucose": "mM", "lactate": "mM", "ammonia": "mM",
    "cytokine": "IU/mL", "perfusion": "1/d", "cytokine_dose": "IU/mL/d", "viable_cells": "1e9 cells", "mu_max": "1/d",
}  # fmt: skip


def example() -> ReportData:
    """Twelve days of the shipped process under stepped perfusion, with made-up bands and noise (seeded)."""
    process, rng = load_config("car_nk"), np.random.default_rng(7)
    t = np.arange(0.0, 12.01, 0.125)
    perfusion = np.select([t < 2.5, t < 5, t < 8], [0.0, 0.4, 0.9], 1.4)
    states = [process.initial]
    for rate in perfusion[:-1]:
        states.append(advance(states[-1], Control(perfusion=float(rate), cytokine_dose=90.0), process.theta, 0.125))
    true = {
        "viable_density": np.array([s.viable for s in states]),
        "viability": np.array([s.viability for s in states]),
        **{n: np.array([getattr(s, n) for s in states]) for n in ("glucose", "lactate", "ammonia", "cytokine")},
        "car_fraction": np.array([s.car_fraction for s in states]),
    }

    def band(value: np.ndarray, width: float = 0.12) -> Band:
        spread = width * (0.4 + np.exp(-t / 4))
        mid = value * np.exp(0.3 * spread * np.sin(1.3 * t))
        return Band(t, mid * np.exp(-1.6 * spread), mid, mid * np.exp(1.6 * spread))

    def samples(name: str, every: int, sd: float) -> Samples:
        at = np.arange(4, t.size, every)
        value = true[name][at] * np.exp(sd * rng.standard_normal(at.size))
        used = np.ones(at.size, dtype=bool)
        if name == "glucose":
            value[5], used[5] = value[5] * 1.8, False
        return Samples(t[at], value, used)

    future = t[t >= 6.0]
    grow = 0.05 + 0.05 * (future - 6.0)
    mid = np.interp(future, t, true["viable_density"]) * np.exp(-0.03 * (future - 6.0))
    criteria = (
        Criterion("viable_cells", 21.3, Limit("at_least", 20.0, "dose"), "1e9 cells"),
        Criterion("viability", 0.86, Limit("at_least", 0.80, "release"), "dimensionless"),
        Criterion("car_fraction", 0.54, Limit("at_least", 0.2, "release"), "dimensionless"),
        Criterion("exhausted_fraction", 0.11, Limit("at_most", 0.35, "release"), "dimensionless"),
    )
    worse = (criteria[0]._replace(value=18.2), *criteria[1:])
    days = np.arange(0.25, 12.0, 0.25)
    return ReportData(
        batch="B001", origin="simulated", until=12.0, policy="mpc", units=UNITS,
        facts={"donor": "D07", "preset": "car_nk", "recipe": "cspr_100", "volume": "1 L"},
        started=datetime(2026, 11, 2, 6, tzinfo=UTC),
        estimates={k: band(v) for k, v in true.items()},
        truth={k: Curve(t, v) for k, v in true.items()} | {"mu_max": Curve(t[[0, -1]], np.array([0.88, 0.88]))},
        samples={"viable_density": samples("viable_density", 8, 0.08), "glucose": samples("glucose", 6, 0.04),
                 "lactate": samples("lactate", 6, 0.04),
                 "raman_glucose": Samples(t, true["glucose"] + 0.8 + 0.8 * rng.standard_normal(t.size), np.ones(t.size, bool))},
        inputs={"perfusion": Curve(t, perfusion), "cytokine_dose": Curve(t[:1], np.array([90.0]))},
        recipe_inputs={"perfusion": Curve(t, np.clip(0.1 * true["viable_density"], 0, 2))},
        limits={"lactate": (Limit("at_most", 20.0, "≤ 20"),), "glucose": (Limit("at_least", 5.0, "≥ 5"),),
                "viability": (Limit("at_least", 0.8, "release ≥ 0.8"),)},
        parameters={"mu_max": band(np.full(t.size, 0.85), 0.2)},
        p_pass={"viable_cells": Curve(days, 1 / (1 + np.exp(-(days - 4)))), "viability": Curve(days, 0.9 + 0.008 * days)},
        p_release=Curve(days, 0.95 / (1 + np.exp(-(days - 4)))),
        forecast_from=6.0, forecast={"viable_density": Band(future, mid * np.exp(-1.6 * grow), mid, mid * np.exp(1.6 * grow))},
        decisions=tuple(
            Decided(float(d), bool(d > 1), bool(d > 11.7), "solved", {"perfusion": float(np.interp(d, t, perfusion)), "cytokine_dose": 90.0},
                    ("override: lactate would pass 20 mM in 31 h under the recipe", "perfusion 0.90 -> 1.15 VVD"))
            for d in days
        ),
        alerts=(Alert(4.25, "channel_lost-capacitance", "warning", "no capacitance for 6 h"),),
        ended=True, outcome=Outcome("mpc", 11.75, criteria, 6.4), others=(Outcome("cspr_100", 12.5, worse, 7.1),),
        provenance={"journal head": "9f2c41aa" * 8, "celltwin": "0.1.0", "seed": "7"},
        remarks=("This batch is simulated: the plant differs in structure from the model that estimates it.",),
    )  # fmt: skip


@pytest.fixture(scope="module")
def data() -> ReportData:
    return example()


@pytest.fixture(scope="module")
def page(data: ReportData) -> str:
    return render(data)


class _Wellformed(HTMLParser):
    """Collects sources and events, and refuses tags that close out of order."""

    VOID = ("meta", "br", "link", "img", "input", "hr")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.urls: list[str] = []
        self.handlers: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.urls += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href", "action")]
        self.handlers += [k for k, _ in attrs if k.startswith("on")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> out of order"


def parsed(page: str) -> _Wellformed:
    parser = _Wellformed()
    parser.feed(page)
    assert parser.open == []
    return parser


def test_page_asks_nothing_of_the_network_and_runs_no_script(page: str) -> None:
    seen = parsed(page)
    assert [u for u in seen.urls if not u.startswith("#")] == []
    assert "script" not in seen.tags
    assert seen.handlers == []
    assert "default-src 'none'" in page
    assert re.findall(r"url\((?!#|['\"]?#)[^)]*\)", page) == []
    assert "@import" not in page


def test_page_shows_every_part_that_has_data(page: str) -> None:
    for heading in ("Outcome", "in the vessel", "pumps did", "How sure", "early forecast", "learnt", "Decisions", "Alarms",
                    "Provenance", "Read this first"):  # fmt: skip
        assert heading in page, heading
    assert page.count("<svg") == 5
    assert "Meets every criterion" in page
    assert "lactate would pass 20 mM in 31 h" in page


def test_a_running_batch_with_little_data_has_a_page_without_empty_parts() -> None:
    page = render(ReportData(batch="B1", origin="measured", until=0.5))
    parsed(page)
    assert "Running" in page
    assert "<section" not in page
    assert "<svg" not in page


def test_the_same_data_give_the_same_bytes(page: str) -> None:
    assert render(example()) == page


HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&"


def test_text_from_data_is_never_markup(data: ReportData) -> None:
    hurt = replace(
        data, batch=HOSTILE, policy=HOSTILE, facts={HOSTILE: HOSTILE}, remarks=(HOSTILE,), provenance={HOSTILE: HOSTILE},
        alerts=(Alert(1.0, HOSTILE, HOSTILE, HOSTILE),), units={**UNITS, "glucose": HOSTILE},
        decisions=(Decided(1.0, True, False, HOSTILE, {HOSTILE: 1.0}, (HOSTILE,)),),
        limits={"glucose": (Limit("at_least", 5.0, HOSTILE),)}, p_pass={HOSTILE: data.p_pass["viability"]},
        outcome=Outcome(HOSTILE, 1.0, (Criterion(HOSTILE, 1.0, Limit("at_most", 2.0, HOSTILE), HOSTILE),), 1.0),
    )  # fmt: skip
    seen = parsed(render(hurt))
    assert "script" not in seen.tags
    assert "img" not in seen.tags
    assert seen.handlers == []


def test_verdict_follows_the_criteria(data: ReportData) -> None:
    assert data.outcome is not None
    assert data.verdict == "passed"
    good = data.outcome.criteria
    missed = replace(data.outcome, criteria=(good[0]._replace(value=19.9), *good[1:]))
    assert replace(data, outcome=missed).verdict == "failed"
    nan = replace(data.outcome, criteria=(good[0]._replace(value=float("nan")), *good[1:]))
    assert nan.verdict == "failed"
    unknown = replace(data.outcome, criteria=(good[0]._replace(value=None), *good[1:]))
    assert replace(data, outcome=unknown).verdict == "ended"
    assert replace(data, outcome=None, ended=False).verdict == "running"
    assert replace(data, outcome=replace(data.outcome, criteria=())).verdict == "ended"


def test_estimates_are_drawn_where_the_data_are(data: ReportData) -> None:
    figure = plots.estimates(data, names=("glucose",))
    assert figure is not None
    (axes,) = [a for a in figure.axes if a.get_visible()][:1]
    lines = {line.get_label(): line for line in axes.lines}
    np.testing.assert_array_equal(lines["belief, 90 % band"].get_ydata(), data.estimates["glucose"].mid)
    np.testing.assert_array_equal(lines["truth (simulated)"].get_ydata(), data.truth["glucose"].value)
    s = data.samples["glucose"]
    np.testing.assert_array_equal(lines["samples"].get_xdata(), s.t[s.used])
    np.testing.assert_array_equal(lines["samples retracted or refused"].get_ydata(), s.value[~s.used])


def test_a_rate_holds_until_the_next_read_back(data: ReportData) -> None:
    figure = plots.inputs(replace(data, inputs={"perfusion": Curve(np.array([0.0, 3.0]), np.array([0.2, 0.7]))}))
    assert figure is not None
    line = next(x for x in figure.axes[0].lines if x.get_label() == "as pumped")
    assert line.get_drawstyle() == "steps-post"
    np.testing.assert_array_equal(line.get_xdata(), [0.0, 3.0, 12.0])
    np.testing.assert_array_equal(line.get_ydata(), [0.2, 0.7, 0.7])


def test_numbers_for_people() -> None:
    assert [number(None), number(float("nan")), number(0.123456), number(1234.5, 4)] == ["–", "–", "0.123", "1234"]


def test_report_is_written_where_asked(tmp_path: Path) -> None:
    small = ReportData(batch="B1", origin="measured", until=0.5)
    path = write_report(small, tmp_path / "deep" / "report.html")
    assert path.read_text(encoding="utf-8") == render(small)
