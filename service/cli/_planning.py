"""Plans of `celltwin condition`: settings as written, a search over them, a map of the design space; P(pass) by day."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from contourpy import contour_generator
from rich.table import Table

from controllers.design import POLICIES, DesignMap, Found, Range, design_map, search, usual_range
from controllers.prospect import UNITS, Cohort, names_of, over_populations, planned, play, settings_of, unit_of
from controllers.recipes import NUMBERS, recipe_schedule
from service.cli.console import console, fail, progress
from twin.batch import as_known
from twin.config import ConfigError
from twin.futures import forecast, last_useful_day
from twin.history import Batch
from twin.process import Process
from twin.records.record import RecordedBatch

PREFIX = "plan_"
"""Columns of the batches table that hold planned settings: ``plan_cytokine_dose``, ``plan_policy``."""

MAP_SIZE = 13
"""Settings a side of a map."""

SEARCHED, DECLARED = 8, 6
"""Donors of a search: tenths of `--futures` while it looks, and so many times `--futures` for what it declares."""

FEWER = 200
"""Futures at most where a forecast is made many times: day by day, and of interventions."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked beyond the posterior and the forecast."""

    settings: Sequence[str]
    search: bool
    within: Sequence[str]
    policies: str | None
    budget: float | None
    evaluations: int
    map_of: str | None
    level: float
    intervene: bool
    by_day: bool

    @property
    def unmeasured(self) -> RecordedBatch:
        """The batch of a plan without data."""
        return RecordedBatch("plan", "a donor not yet seen", "plan", None, None, (), ())

    def check(self, data: Path | None, mode: str) -> None:
        """Refuse what contradicts itself, before anything is read."""
        if data is None and mode != "prospective":
            fail(f"--mode {mode}: needs DATA, the measurements of a batch; only --mode prospective goes without")
        if self.settings and mode != "prospective":
            fail(f"--set: settings are planned before a batch; --mode {mode} takes what was done from DATA")
        if (self.search or self.map_of) and mode == "retrospective":
            fail("--search and --map look ahead: use --mode prospective, or realtime while the batch runs")
        if self.by_day and mode == "prospective":
            fail("--by-day: a plan has no days yet; use --mode realtime or retrospective")
        if any(text.partition("=")[0].strip() == "policy" for text in self.settings) and self.policies:
            fail(
                "--policies and --set policy=: a policy that is set is the only one that is searched; give one of them"
            )
        if not 0.0 < self.level < 1.0:
            fail(f"--level {self.level:g}: expected a probability above 0 and below 1")
        if self.budget is not None and not self.budget > 0.0:
            fail(f"--budget {self.budget:g}: expected vessel volumes above 0")

    def plan(self, process: Process, record: RecordedBatch, data: Path | None) -> Process:
        """The process as planned."""
        return plan_of(process, record.metadata, data, self.settings)

    def answer(
        self, known: Batch, at: float, mode: str, closed: bool, futures: int, seed: int, behind: int | None
    ) -> dict[str, Any]:
        """What the answer gains; `behind` are the donors that the prior knows the population from."""
        process = known.process
        within = ranges_of(process, self.within)
        axes = _axes(self.map_of) if self.map_of else ()
        held = self._held(process)
        if (self.search or axes) and closed:
            fail(f"--search and --map look ahead: batch {known.id!r} was harvested on day {at:g}")
        if at > 0.0 and "inoculation" in {*axes, *(r.name for r in within)}:
            fail(f"--within, --map: inoculation lies in the past of a batch that is on day {at:g}")
        only = process.recipe.policy if "policy" in {_pair(text)[0] for text in self.settings} else self.policies
        policies = _policies(process, only, {*axes, *held}) if self.search else (process.recipe.policy,)
        found: dict[str, Any] = {}
        best = process
        if self.search:
            result, found["search"] = searched(
                known, at, policies, within, held, self.budget, self.evaluations, futures, seed
            )
            best = result.best.plan
        if axes:
            found["map"] = mapped(known, at, best, axes, within, self.budget, self.level, futures, seed)
        if mode == "prospective":
            found = {"plan": plan_answer(known, at, self.budget, futures, seed), **found}
            for part, plan in (("plan", process), ("search", best)):
                if part in found:
                    found[part] |= _of_population(plan, known, behind, self.budget, min(futures, FEWER), seed)
        if mode == "realtime" and self.intervene:
            schedule = recipe_schedule(process.recipe)
            found["last_useful_day"] = (
                None if closed else last_useful_day(known, at, schedule, n=min(futures, FEWER), seed=seed, step=0.25)
            )
        if self.by_day:
            found["by_day"] = by_day(known, at, closed, futures, seed)
        return found

    def _held(self, process: Process) -> dict[str, float]:
        """What `--set` says stays as it is in a search; a policy that is set is the only one searched."""
        named = {_pair(text)[0] for text in self.settings} - {"policy"}
        return {k: v for k, v in settings_of(process).items() if k in named}


def _axes(text: str) -> tuple[str, str]:
    names = [n.strip() for n in text.split(",")]
    if len(names) != 2 or not all(names):
        fail(f"--map {text}: expected two settings, such as cspr_pl_per_cell_d,perfusion_max")
    return names[0], names[1]


def _policies(process: Process, given: str | None, needed: set[str]) -> tuple[str, ...]:
    """The policies to search: those named, else the usual ones that have every setting that is held or mapped."""
    chosen = tuple(p.strip() for p in given.split(",") if p.strip()) if given else POLICIES
    if not chosen:
        fail(f"--policies {given}: names none; known: {', '.join(NUMBERS)}")
    for policy in chosen:
        if policy not in NUMBERS:
            fail(f"--policies {given}: unknown policy {policy!r}; known: {', '.join(NUMBERS)}")
    able = tuple(p for p in chosen if needed <= set(names_of(planned(process, {}, p).recipe)))
    if not able or (given and able != chosen):
        lacking = next(p for p in chosen if p not in able)
        own = names_of(planned(process, {}, lacking).recipe)
        fail(f"policy {lacking}: has no setting {', '.join(sorted(needed - set(own)))}; known: {', '.join(own)}")
    return able


def plan_of(process: Process, metadata: Mapping[str, Any], data: Path | None, given: Sequence[str]) -> Process:
    """The process with the settings of the batches table (``plan_``) and, over them, those of ``--set NAME=VALUE``."""
    settings: dict[str, float] = {}
    policy: str | None = None
    columns = [(k.removeprefix(PREFIX), v, f"{data}: column {k}") for k, v in metadata.items() if k.startswith(PREFIX)]
    pairs = [_pair(text) for text in given]
    if twice := sorted({n for n, _ in pairs if sum(n == other for other, _ in pairs) > 1}):
        fail(f"--set {twice[0]}: given twice")
    for name, value, where in [*columns, *((n, v, f"--set {n}={v}") for n, v in pairs)]:
        if name == "policy":
            policy = str(value)
            if policy not in NUMBERS:
                fail(f"{where}: unknown policy; known: {', '.join(NUMBERS)}")
        else:
            settings[name] = _number(value, where)
    try:
        return planned(process, settings, policy)
    except ConfigError as error:
        fail(f"{f'{data}: ' if columns else ''}{error}")


def _pair(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign or not name.strip() or not value.strip():
        fail(f"--set {text!r}: expected NAME=VALUE, such as cytokine_dose=450")
    return name.strip(), value.strip()


def _number(value: Any, where: str) -> float:
    try:
        return float(value)
    except ValueError:
        fail(f"{where}: {value!r} is not a number")


def ranges_of(process: Process, given: Sequence[str]) -> tuple[Range, ...]:
    """``--within NAME=LOW:HIGH``."""
    found: list[Range] = []
    for text in given:
        name, sign, ends = text.partition("=")
        low, colon, high = ends.partition(":")
        if not sign or not colon:
            fail(f"--within {text!r}: expected NAME=LOW:HIGH, such as perfusion_max=0.5:1.5")
        ends_ = _number(low, f"--within {text}"), _number(high, f"--within {text}")
        if name.strip().partition("[")[0] not in UNITS:
            fail(f"--within {text}: unknown setting {name.strip()!r}; known: {', '.join(UNITS)}")
        usual = usual_range(name.strip(), process)
        found.append(Range(name.strip(), *ends_, usual.log and ends_[0] > 0.0))
    return tuple(found)


def plan_answer(known: Batch, at: float, budget: float | None, n: int, seed: int) -> dict[str, Any]:
    """The plan as it stands: policy, settings with units, and what it does."""
    end = play(known.process, Cohort(known, at, n, seed), budget)
    return {**_described(known.process), **end.summary()}


def donors_behind(provenance: Mapping[str, Any]) -> int | None:
    """From how many donors an artefact knows its population; None where it does not say."""
    donors = provenance.get("donors")
    try:
        told = ast.literal_eval(donors) if isinstance(donors, str) else donors
    except (SyntaxError, ValueError):
        return None
    return len(told) if isinstance(told, list) and len(told) > 1 else None


def _of_population(
    plan: Process, known: Batch, behind: int | None, budget: float | None, n: int, seed: int
) -> dict[str, Any]:
    if behind is None:
        return {}
    low, middle, high = over_populations(plan, Cohort(known, 0.0, n, seed), behind, budget)
    return {"p_population": {"q05": low, "q50": middle, "q95": high, "donors": behind}}


def _described(plan: Process) -> dict[str, Any]:
    settings = settings_of(plan)
    return {"policy": plan.recipe.policy, "settings": settings, "units": {k: unit_of(k) for k in settings}}


def searched(
    known: Batch,
    at: float,
    policies: Sequence[str],
    within: Sequence[Range],
    held: Mapping[str, float],
    budget: float | None,
    evaluations: int,
    futures: int,
    seed: int,
) -> tuple[Found, dict[str, Any]]:
    """What the search found, and its part of the answer."""
    with progress("search", evaluations) as advance:
        found = search(
            known, at, policies=policies, within=within, fixed=held, budget=budget, evaluations=evaluations,
            n=max(20, SEARCHED * futures // 10), declared=DECLARED * futures, seed=seed, tell=lambda: advance(1),
        )  # fmt: skip
    mean, low, high = found.gain
    answer = {
        **_described(found.best.plan), **found.best.prospect.summary(),
        "present": {**_described(found.present.plan), **found.present.prospect.summary()},
        "gain": {"mean": mean, "q05": low, "q95": high}, "evaluated": found.evaluated, "best_by_policy": dict(found.policies),
        "front": [{**_described(c.plan), **c.prospect.summary()} for c in found.front],
    }  # fmt: skip
    return found, answer


def mapped(
    known: Batch,
    at: float,
    plan: Process,
    axes: tuple[str, str],
    within: Sequence[Range],
    budget: float | None,
    level: float,
    futures: int,
    seed: int,
) -> dict[str, Any]:
    """The design space over two settings: grid, region of at least `level` and its boundary."""
    given = {r.name: r for r in within}
    x, y = (given.get(n) or usual_range(n, plan) for n in axes)
    with progress("map", MAP_SIZE**2) as advance:
        drawn = design_map(
            plan, Cohort(known, at, futures, seed + 2), x, y, size=MAP_SIZE, budget=budget, tell=lambda: advance(1)
        )  # fmt: skip
    return {
        **{k: {"name": r.name, "unit": unit_of(r.name), "log": r.log, "values": v} for k, r, v in (("x", x, drawn.xs), ("y", y, drawn.ys))},
        "p": drawn.p, "mc_error": drawn.mc_error, "p_release": drawn.p_release, "medium": drawn.medium, "n": drawn.n,
        "level": level, "share": float((drawn.p >= level).mean()), "boundary": _boundary(drawn, level), "held": _described(plan),
    }  # fmt: skip


def _boundary(drawn: DesignMap, level: float) -> list[Any]:
    """Where P is `level`: lines of (x, y), by linear interpolation on the grid."""
    lines: Any = contour_generator(drawn.xs, drawn.ys, drawn.p).lines(level)
    return [line.tolist() for line in lines]


def by_day(known: Batch, until: float, closed: bool, futures: int, seed: int) -> dict[str, Any]:
    """P(pass) as it was on each day, given what was known by then; a batch that is `closed` was harvested at `until` [d]."""
    days = np.unique(np.append(np.arange(0.0, until, 1.0), until))
    n, schedule = min(futures, FEWER), recipe_schedule(known.process.recipe)
    with progress("day by day", days.size) as advance:
        made: list[Any] = []
        for day in days:
            then, end = as_known(known, float(day)), until if closed and day == until else None
            made.append(forecast(then, float(day), schedule, n=n, seed=seed, harvest_at=end))
            advance(1)
    return {
        "day": days, "p_release": [f.p_release for f in made],
        "p_pass": {k: [f.p_pass[k] for f in made] for k in made[0].p_pass},
        "harvest": [{"q05": f.harvest[0], "q50": f.harvest[1], "q95": f.harvest[2]} for f in made], "n": n,
    }  # fmt: skip


def show(report: Mapping[str, Any]) -> None:
    """The plans as tables."""
    if "plan" in report and "search" not in report:
        console.print(_line("plan", report["plan"]), soft_wrap=True)
        if spread := report["plan"].get("p_population"):
            console.print(_spread(spread, "P"))
    if found := report.get("search"):
        table = Table(title=f"plans ({found['n']} donors that no choice was made on)", title_justify="left")
        table.add_column("setting")
        present = found["present"]
        same = present["policy"] == found["policy"]
        table.add_column(f"present ({present['policy']})", justify="right")
        table.add_column(f"found ({found['policy']})", justify="right")
        names = dict.fromkeys([*found["settings"], *present["settings"]])
        for name in names:
            cells = [f"{plan['settings'][name]:.3g}" if name in plan["settings"] else "" for plan in (present, found)]
            table.add_row(f"{name} \\[{unit_of(name)}]", *cells, style="dim" if same and cells[0] == cells[1] else None)
        table.add_section()
        for label, key in (
            ("P(all CQA within the budget)", "p"),
            ("P(all CQA)", "p_release"),
            ("P(within the budget)", "p_budget"),
        ):
            table.add_row(label, f"{present[key]:.3f}", f"{found[key]:.3f}")
        table.add_row("medium, mean \\[vv]", *(f"{plan['medium']['mean']:.2f}" for plan in (present, found)))
        console.print(table)
        gain = found["gain"]
        if spread := found.get("p_population"):
            console.print(_spread(spread, "P of the found plan"))
        console.print(f"gain {gain['mean']:+.3f} (90 %: {gain['q05']:+.3f} to {gain['q95']:+.3f}, same donors)")
        if found["front"]:
            bought = Table(title="what medium buys", title_justify="left")
            for column in ("budget [vv]", "P", "policy"):
                bought.add_column(column.replace("[", "\\["), justify="left" if column == "policy" else "right")
            for plan in found["front"]:
                bought.add_row(f"{plan['budget']:.3g}", f"{plan['p']:.2f}", plan["policy"])
            console.print(bought)
    if drawn := report.get("map"):
        best = max(max(row) for row in drawn["p"])
        console.print(
            f"map {drawn['x']['name']} by {drawn['y']['name']}: P of at least {drawn['level']:g} on {100 * drawn['share']:.0f} % "
            f"of it; at most {best:.2f}"
        )
    if "last_useful_day" in report:
        last = report["last_useful_day"]
        console.print(
            "no intervention helps from here on" if last is None else f"last useful day to intervene: {last:.1f}"
        )


def _line(name: str, plan: Mapping[str, Any]) -> str:
    settings = ", ".join(f"{k} {v:.3g} {plan['units'][k]}" for k, v in plan["settings"].items())
    return (
        f"{name}: {plan['policy']}: {settings}: P(all CQA within {plan['budget']:.3g} vv of medium) {plan['p']:.2f} "
        f"(Monte Carlo sd {plan['mc_error']:.2f})"
    )


def _spread(spread: Mapping[str, Any], of: str) -> str:
    low, high = spread["q05"], spread["q95"]
    return f"the population is known from {spread['donors']} donors: {of} may be {low:.2f} to {high:.2f} (90 %)"
