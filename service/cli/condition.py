"""`celltwin condition`: one batch's data on a donor prior: what is known of the donor, what will happen, P(pass)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

from service.cli import whatif as paired
from service.cli._retrospect import ahead_of, edits_of, looked_back, print_back
from service.cli._tracking import deliver, tracked
from service.cli.console import console, emit_json, fail, progress

PROSPECTIVE = "no data, no importance sampling: there is no k-hat"


@tracked
def condition(
    data: Annotated[
        Path | None,
        typer.Argument(help="Tidy or wide measurements, CSV or Parquet (file or folder). None: a plan (prospective)."),
    ] = None,
    *,
    prior: Annotated[Path, typer.Option(help="Donor-prior artefact, as written by celltwin fit.")],
    mode: Annotated[
        Literal["retrospective", "realtime", "prospective"],
        typer.Option(help="All data of a finished batch, the data known by --now, or none."),
    ] = "realtime",
    batch: Annotated[str | None, typer.Option(help="Which batch of the file; needed where there are several.")] = None,
    now: Annotated[
        float | None, typer.Option(help="Day since inoculation [d]; default: the newest that is known.")
    ] = None,
    preset: Annotated[str, typer.Option(help="Process: a name under configs/processes or a file.")] = "car_nk",
    mapping: Annotated[str | None, typer.Option(help="Column mapping of a wide file: name or file.")] = None,
    filter_name: Annotated[Literal["ukf", "ekf"], typer.Option("--filter", help="Estimator.")] = "ukf",
    futures: Annotated[int, typer.Option(min=20, help="Futures of the forecast.")] = 500,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the futures.")] = 0,
    had: Annotated[
        str | None, typer.Option(help='Retrospective: inputs as they might have been, as in "perfusion*2 from 8".')
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="A planned setting (prospective), held in a search; policy=NAME too. Repeatable.",
        ),
    ] = None,
    search: Annotated[bool, typer.Option("--search", help="The settings with the highest P(all CQA).")] = False,
    within: Annotated[
        list[str] | None,
        typer.Option("--within", metavar="NAME=LOW:HIGH", help="Range of a setting, of search and map. Repeatable."),
    ] = None,
    policies: Annotated[
        str | None, typer.Option(help="Perfusion policies to search: cspr,lactate_p and so on.")
    ] = None,
    budget: Annotated[
        float | None, typer.Option(help="Medium a batch may take [vessel volumes]. Default: the process's limit.")
    ] = None,
    evaluations: Annotated[int, typer.Option(min=20, help="Plans that a search tries.")] = 500,
    map_of: Annotated[
        str | None, typer.Option("--map", metavar="X,Y", help="Design space: P(all CQA) over two settings.")
    ] = None,
    level: Annotated[float, typer.Option(help="P that the region of the map must reach.")] = 0.9,
    intervene: Annotated[bool, typer.Option(help="The last useful day to intervene (realtime).")] = True,
    by_day: Annotated[bool, typer.Option("--by-day", help="P(pass) as it was on each day.")] = False,
    edit: Annotated[
        list[str] | None,
        typer.Option(help='Realtime: what an edit of the recipe would change, as in "feed*1.1 for 6h". Repeatable.'),
    ] = None,
    plots: Annotated[Path | None, typer.Option(help="Folder for pictures, PNG and SVG.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Posterior of the donor, bands, and P(pass) per CQA and jointly, under the process's recipe. Retrospective: why, too."""
    from dataclasses import replace

    from controllers.recipes import recipe_schedule
    from service.cli._planning import Asked, donors_behind, show
    from twin.batch import apply, assimilate, start
    from twin.config import load_config
    from twin.donors.artefact import load_artefact, unlike
    from twin.donors.update import OUTLYING, UNLIKE
    from twin.evidence import Refused
    from twin.futures import forecast

    edits, ahead = edits_of(had, mode), ahead_of(edit, mode)
    asked = Asked(settings or [], search, within or [], policies, budget, evaluations, map_of, level, intervene, by_day)
    asked.check(data, mode)
    process, artefact = load_config(preset), load_artefact(prior)
    if why := unlike(artefact, process):
        fail(f"{prior}: {why}")
    record = asked.unmeasured if data is None else _chosen(data, mapping, batch)
    if record.preset not in (None, process.name):
        fail(
            f"{data}: batch {record.id!r} is of preset {record.preset!r}, not {process.name!r}: give --preset {record.preset}"
        )
    volume = record.metadata.get("volume_l")
    if isinstance(volume, (int, float)):
        process = replace(process, initial=process.initial._replace(volume=float(volume)))
    process = asked.plan(process, record, data) if mode == "prospective" else process
    ended = min((a.at for a in record.actions if a.actuator == "harvest"), default=None)
    newest = max((m.received_at for m in record.measurements), default=0.0)
    if now is not None and not 0.0 <= now <= 100.0:
        fail(f"--now {now:g}: expected days since inoculation, 0 to 100")
    if now is not None and mode != "realtime":
        fail(f"--now {now:g}: is for --mode realtime, not {mode}")
    newest_sample = max((m.sampled_at for m in record.measurements), default=0.0)
    finished = newest_sample if ended is None else ended
    at = {"prospective": 0.0, "retrospective": finished, "realtime": newest if now is None else now}[mode]
    facts = [] if mode == "prospective" else [
        m for m in record.measurements if mode == "retrospective" or (m.received_at <= at and m.sampled_at <= at)
    ]  # fmt: skip
    if mode != "prospective" and not facts:
        fail(
            f"{data}: batch {record.id!r} has no measurement known by day {at:g}: give a later --now, or --mode prospective"
        )
    if ended is not None and mode == "realtime" and ended <= at:
        at = ended
    known = start(record.id, process, artefact.prior, filter_name)
    actions = [] if mode == "prospective" else [a for a in record.actions if a.at <= at]
    with progress(f"{mode} {record.id}", len(facts) + 1) as advance:
        try:
            for a in actions:
                known = apply(known, a)
            for m in facts:
                known = assimilate(known, m)
                advance(1)
        except Refused as error:
            fail(f"{data}: batch {record.id!r}: {error}")
        closed = mode == "retrospective" or ended == at
        outlook = forecast(
            known, at, recipe_schedule(process.recipe), n=futures, seed=seed, harvest_at=at if closed else None
        )  # fmt: skip
        advance(1)
    distance, share = _how_unusual(known, at)
    updated, why = _updated(artefact, process, record, facts) if facts else (None, PROSPECTIVE)
    bands = _history(known, at) if closed else {
        k: {"t": b.t, "q05": b.q05, "q50": b.q50, "q95": b.q95} for k, b in outlook.bands.items()
    }  # fmt: skip
    report = {
        "batch": record.id, "donor": record.donor, "mode": mode, "at": at, "samples": len(facts),
        "basis": ("estimates of the past, each given all data (smoothed)" if closed else "forecast under the recipe")
        + ("; no harvest is recorded: judged at the last sample" if closed and ended is None else ""),
        "p_pass": dict(outlook.p_pass), "p_release": outlook.p_release, "bands": bands,
        "harvest": {"q05": outlook.harvest[0], "q50": outlook.harvest[1], "q95": outlook.harvest[2]},
        "harvest_recorded": ended is not None, "donor_parameters": _donor(known, at),
        "khat": updated and updated.khat, "khat_reason": why, "agreement": updated and dict(updated.agreement),
        "refit_due": share > OUTLYING or (updated is not None and updated.refit_due),
        "refit_reasons": [*([f"{UNLIKE} by the filter"] if share > OUTLYING else []), *(updated.reasons if updated else ())],
        "population_distance": distance, "population_share": share,
    }  # fmt: skip
    if mode == "retrospective":
        report |= looked_back(known, at, edits, futures, seed)
    behind = donors_behind(artefact.manifest["provenance"])
    report |= asked.answer(known, at, mode, closed, futures, seed, behind)
    changed = None
    if ahead is not None:
        if closed:
            fail(f"--edit: batch {record.id!r} was harvested on day {at:g}: nothing lies ahead; give an earlier --now")
        changed = paired.changed(known, at, ahead, recipe_schedule(process.recipe), futures, seed)
        report["whatif"] = paired.answer(changed)
    if plots is not None:
        from service.cli._conditioning_pictures import draw

        draw(plots, known, report, bands if closed else _history(known, at) if facts else {}, closed)
        if changed is not None:
            paired.draw(plots, changed, record.id)
    deliver(report)
    if json:
        emit_json(report)
    else:
        _tables(report)
        show(report)
        if changed is not None:
            paired.show(changed, "under the recipe")


def _chosen(data: Path, mapping: str | None, wanted: str | None) -> Any:
    from twin.records import read_batches

    batches = [b for b in read_batches(data, mapping) if b.metadata.get("stage", "bioreactor") == "bioreactor"]
    known = ", ".join(b.id for b in batches) or "none"
    if wanted is None and len(batches) == 1:
        return batches[0]
    if wanted is None:
        fail(f"{data}: has {len(batches)} bioreactor batches ({known}): name one with --batch")
    found = [b for b in batches if b.id == wanted]
    if not found:
        fail(f"{data}: has no bioreactor batch {wanted!r}; there are: {known}")
    return found[0]


def _donor(known: Any, at: float) -> dict[str, Any]:
    """Kinetics as learnt, what the data say of each ("informed", "weakly", "not observable yet"), and which channels told it."""
    from twin.batch import believe_at
    from twin.estimation.belief import learnt
    from twin.estimation.observability import observability

    found = learnt(believe_at(known, at), known.layout)
    told = {i.name: i for i in observability(known, at)}
    return {
        k: {**found[k]._asdict(), "data": told[k].verdict, "channels": dict(told[k].channels)} for k in known.donor_prior.names
    }  # fmt: skip


def _how_unusual(known: Any, at: float) -> tuple[float, float]:
    """Mahalanobis distance of the donor's estimate from the population, and the share of donors that lie nearer."""
    import numpy as np
    from scipy.stats import chi2

    from twin.batch import believe_at
    from twin.estimation.belief import N_STATE

    prior, p = known.donor_prior, len(known.donor_prior.names)
    off = believe_at(known, at).mean[N_STATE : N_STATE + p] - prior.mean
    squared = float(off @ np.linalg.solve(prior.cov, off))
    return squared**0.5, float(chi2.cdf(squared, p))


def _updated(artefact: Any, process: Any, record: Any, facts: list[Any]) -> tuple[Any, str | None]:
    """The update of the donor by importance sampling from the same data; None and why where there can be none."""
    from dataclasses import replace
    from importlib.util import find_spec
    from math import isfinite

    from twin.donors.data import FitError
    from twin.donors.update import update

    if find_spec("arviz") is None:
        return None, "needs the donors extra: pip install 'celltwin[donors]'"
    try:
        found = update(artefact, process, replace(record, measurements=tuple(facts)))
    except FitError as error:
        return None, str(error)
    return found, None if isfinite(found.khat) else found.reasons[0]


def _history(known: Any, until: float) -> dict[str, Any]:
    """Smoothed 5, 50 and 95 % quantiles every quarter day of what has been."""
    import numpy as np

    from twin.bioreactor import Coordinates, State, from_coordinates
    from twin.estimation.belief import N_STATE, draws
    from twin.estimation.smooth import smoothed
    from twin.futures import QUANTITIES

    times = np.append(np.arange(0.0, until - 1e-9, 0.25), until)
    bands: dict[str, Any] = {name: {"t": times, "q05": [], "q50": [], "q95": []} for name in QUANTITIES}
    for belief in smoothed(known, times, only=True).beliefs:
        points = draws(belief, 400, np.random.default_rng(7))
        state = State(*from_coordinates(Coordinates(*np.exp(points[:N_STATE]))))
        for name, quantity in QUANTITIES.items():
            for key, value in zip(("q05", "q50", "q95"), np.quantile(quantity(state), [0.05, 0.5, 0.95]), strict=True):
                bands[name][key].append(float(value))
    return bands


def _tables(report: dict[str, Any]) -> None:
    console.print(
        f"{report['batch']} ({report['donor']}), {report['mode']} at day {report['at']:.2f}, {report['samples']} samples; {report['basis']}"
    )
    table = Table(title="P(pass)", title_justify="left")
    table.add_column("CQA")
    table.add_column("P", justify="right")
    for cqa, p in report["p_pass"].items():
        table.add_row(cqa, f"{p:.2f}")
    table.add_row("all (release)", f"{report['p_release']:.2f}")
    console.print(table)
    donor = Table(title="donor", title_justify="left")
    for column in ("parameter", "mean", "5 %", "95 %", "the data", "most by"):
        donor.add_column(column, justify="right" if column in ("mean", "5 %", "95 %") else "left")
    for name, m in report["donor_parameters"].items():
        most = [] if m["data"] == "not observable yet" else list(m["channels"])[:2]
        donor.add_row(name, f"{m['mean']:.3g}", f"{m['q05']:.3g}", f"{m['q95']:.3g}", m["data"], ", ".join(most))
    console.print(donor)
    h = report["harvest"]
    if report["mode"] != "retrospective" or report["harvest_recorded"]:
        console.print(f"harvest day {h['q50']:.1f} ({h['q05']:.1f} to {h['q95']:.1f})")
    nearer = f"{100 * report['population_share']:.0f} % of donors lie nearer the population's centre"
    due = "; ".join(report["refit_reasons"])
    console.print(f"{nearer}: {f'a refit is due: {due}' if report['refit_due'] else 'no refit is due'}")
    khat = report["khat"]
    console.print(f"k-hat: none ({report['khat_reason']})" if report["khat_reason"] else f"k-hat: {khat:.2f}")
    if "attribution" in report:
        print_back(report)
