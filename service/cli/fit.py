"""`celltwin fit`: the donor population from batch records, written as a prior artefact."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from service.cli._tracking import deliver, tracked
from service.cli.console import console, emit_json, fail, progress

SYNTHETIC, RECORDED = "synthetic:", "recorded:"


@tracked
def fit(
    data: Annotated[
        str,
        typer.Argument(
            help="Tidy measurements (file or folder); synthetic:SEED for 17 virtual donors of that seed; with --method em "
            "also recorded:N for N recorded batches of virtual donors 1000, 1001, ... with all their probes."
        ),
    ],
    prior: Annotated[Path, typer.Option("-o", "--out", help="Folder to write the prior into.")],
    preset: Annotated[str, typer.Option(help="Process: a name under configs/processes or a file.")] = "car_nk",
    mapping: Annotated[str | None, typer.Option(help="Column mapping of a wide file: name or file.")] = None,
    draws: Annotated[int, typer.Option(min=4, help="Draws per chain.")] = 600,
    tune: Annotated[int, typer.Option(min=4, help="Warm-up iterations per chain.")] = 300,
    chains: Annotated[int, typer.Option(min=2, help="Chains.")] = 4,
    cores: Annotated[int, typer.Option(min=1, help="Chains that run at once.")] = 2,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the sampler.")] = 1,
    centred: Annotated[bool, typer.Option("--centred/--non-centred", help="Parametrisation of the donors.")] = True,
    method: Annotated[str, typer.Option(help="mcmc: the hierarchical model, sampled. em: the filter itself.")] = "mcmc",
    base: Annotated[
        Path | None, typer.Option("--from", help="Prior that --method em starts from. Default: the preset's spreads.")
    ] = None,
    covariate: Annotated[
        list[str] | None,
        typer.Option(help="Column of the batches table to regress the kinetics on (age, cmv, fresh); repeat for more."),
    ] = None,
    follows: Annotated[
        Path | None,
        typer.Option(help="Prior that this one takes the place of: all its donors and new ones must be in DATA."),
    ] = None,
    small: Annotated[bool, typer.Option("--small", help="Leave the whole posterior out of the artefact.")] = False,
    plots: Annotated[
        Path | None, typer.Option(help="Folder for pictures: what pooling makes of each donor, and a forest of donors.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Fit the hierarchical donor model and write the prior. Exit 1 where the fit did not converge: nothing is written."""
    from twin.config import load_config

    if method not in ("mcmc", "em"):
        fail(f"--method {method}: unknown; known: mcmc, em")
    if method == "em":
        if covariate:
            fail("--covariate is for --method mcmc")
        if plots or follows:
            fail("--plots and --follows are for --method mcmc")
        _em(data, prior, preset, mapping, base, cores, json)
        return
    if base is not None:
        fail("--from is for --method em")
    process, batches = load_config(preset), _records(data, mapping, preset)
    if plots is not None:
        from service.cli._fit_pictures import writable

        writable(plots)
    from twin.donors.artefact import ArtefactError, load_artefact
    from twin.donors.data import FitError
    from twin.donors.fit import Settings, demand_sound, demand_successor, save_fit, succeed
    from twin.donors.fit import fit as run

    before = load_artefact(follows) if follows else None
    if before is not None:
        reactors = [b for b in batches if b.metadata.get("stage", "bioreactor") == "bioreactor"]
        try:
            demand_successor(before, [b.donor for b in reactors], process)
        except FitError as error:
            fail(f"{follows}: {error}")
    began = time.perf_counter()
    settings = Settings(draws=draws, tune=tune, chains=chains, seed=seed, cores=cores, centred=centred)
    with progress(f"{chains} chains of {tune} + {draws}", chains) as advance:
        try:
            result = run(batches, process, settings=settings, tick=advance, covariates=covariate or ())
        except FitError as error:
            fail(f"{data}: {error}")
    seconds = time.perf_counter() - began
    problem: str | None = None
    newer: Any = None
    try:
        demand_sound(result.diagnostics)
        newer = succeed(before, result, process) if before else None
        command = shlex.join(["celltwin", *sys.argv[1:]])
        save_fit(result, process, prior, command, whole=not small, follows=newer)
    except FitError as error:
        problem = str(error)
    except ArtefactError as error:
        fail(str(error))
    from twin.donors.checks import predictive_checks

    checked = predictive_checks(result, process)
    answer = _as_json(result, prior if problem is None else None, seconds, problem)
    answer["follows"] = newer and newer._asdict()
    answer["checks"] = {c: {**k._asdict(), "verdict": k.verdict} for c, k in checked.items()}
    deliver(answer, prior if problem is None else None)
    if json:
        emit_json(answer)
    else:
        _tables(result, checked, process, seconds)
    if problem is not None:
        print(f"celltwin: {data}: {problem}; no prior was written", file=sys.stderr)
        raise SystemExit(1)
    if newer and not json:
        most = max(newer.moved, key=lambda n: abs(newer.moved[n][0]))
        console.print(
            f"version {newer.version}: {len(newer.added)} new donors ({', '.join(newer.added)}); furthest moved: {most}, "
            f"{newer.moved[most][0]:+.2f} sd of a new donor"
        )
    console.print(f"prior written to {prior}")
    if plots is not None:
        from service.cli._fit_pictures import draw

        draw(result, batches, process, plots)


def _em(data: str, out: Path, preset: str, mapping: str | None, base: Path | None, cores: int, as_json: bool) -> None:
    """The population by expectation-maximisation through the filter."""
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    import numpy as np

    from twin.config import load_config
    from twin.donors.artefact import ArtefactError, load_prior, save_prior
    from twin.donors.em import ROUNDS, population
    from twin.donors.prior import preset_prior

    process = load_config(preset)
    names, batches = _facts(data, mapping, preset)
    begun = load_prior(base) if base else preset_prior(process)
    began = time.perf_counter()
    with (
        progress(f"at most {ROUNDS} rounds over {len(batches)} batches", ROUNDS * len(batches)) as advance,
        ProcessPoolExecutor(cores, mp_context=multiprocessing.get_context("spawn")) as pool,
    ):
        try:
            learnt, likelihoods = population(process, begun, batches, ROUNDS, pool.map, advance)
        except ValueError as error:
            fail(f"{data}: {error}")
    provenance = {
        "command": shlex.join(["celltwin", *sys.argv[1:]]), "process": process.name, "method": "em", "donors": names,
        "log_likelihood": list(likelihoods),
    }  # fmt: skip
    rng = np.random.default_rng(1)
    try:
        draws = rng.multivariate_normal(learnt.mean, learnt.cov, size=1000)
        save_prior(out, learnt, draws, {"method": "em"}, provenance)
    except ArtefactError as error:
        fail(str(error))
    sd = np.sqrt(np.diagonal(learnt.cov))
    table = {n: {"mean_ln": learnt.mean[k], "sd_ln": sd[k]} for k, n in enumerate(learnt.names)}
    answer = {"prior": out, "donors": len(batches), "log_likelihood": likelihoods, "parameters": table}
    deliver(answer, out)
    if as_json:
        emit_json(answer)
        return
    shown = Table(
        title=f"a new donor, after {len(batches)} batches ({time.perf_counter() - began:.0f} s)", title_justify="left"
    )
    for column in ("parameter", "preset median", "median", "sd of ln (preset)", "sd of ln"):
        shown.add_column(column, justify="left" if column == "parameter" else "right")
    for k, name in enumerate(learnt.names):
        shown.add_row(
            name, f"{getattr(process.theta.cell, name):.3g}", f"{np.exp(learnt.mean[k]):.3g}",
            f"{process.donor_sd[name]:.2f}", f"{sd[k]:.2f}",
        )  # fmt: skip
    console.print(shown)
    console.print(f"prior written to {out}")


def _facts(data: str, mapping: str | None, preset: str) -> tuple[list[str], list[Any]]:
    """Names and facts of every batch."""
    if data.startswith(RECORDED):
        from simulators import record
        from twin.config import load_config

        number = data.removeprefix(RECORDED)
        if not number.isdigit():
            fail(f"{data}: expected recorded: and a whole number, e.g. recorded:17")
        process, seeds = load_config(preset), range(1000, 1000 + int(number))
        return [f"virtual donor {s}" for s in seeds], [record(process, s, seed=s, days=14.0).facts for s in seeds]
    found = _records(data, mapping, preset)
    return [r.id for r in found], [(*r.actions, *r.final) for r in found]


def _records(data: str, mapping: str | None, preset: str) -> Any:
    if not data.startswith(SYNTHETIC):
        from twin.records import read_batches

        return read_batches(Path(data), mapping)
    seed = data.removeprefix(SYNTHETIC)
    if not seed.isdigit():
        fail(f"{data}: expected synthetic: and a whole number, e.g. synthetic:17")
    from simulators.history import synthetic_history
    from twin.config import load_config

    return synthetic_history(load_config(preset), seed=int(seed))


def _tables(result: Any, checked: Any, process: Any, seconds: float) -> None:
    import numpy as np

    d, prior = result.diagnostics, result.prior
    table = Table(title=f"a new donor, after {len(result.data.donors)} donors", title_justify="left")
    for column in ("parameter", "preset median", "median", "sd of ln (preset)", "sd of ln"):
        table.add_column(column, justify="left" if column == "parameter" else "right")
    for k, name in enumerate(prior.names):
        table.add_row(
            name, f"{getattr(process.theta.cell, name):.3g}", f"{np.exp(prior.mean[k]):.3g}",
            f"{process.donor_sd[name]:.2f}", f"{np.sqrt(prior.cov[k, k]):.2f}",
        )  # fmt: skip
    console.print(table)
    if result.stages:
        recovered = Table(title="stages that grow no cells: recovery", title_justify="left")
        for column in ("stage", "median", "90 %", "sd of ln over donors"):
            recovered.add_column(column, justify="left" if column == "stage" else "right")
        for name, r in result.stages.items():
            recovered.add_row(name, f"{r.median:.3g}", f"{r.q05:.3g} to {r.q95:.3g}", f"{r.spread:.2f}")
        console.print(recovered)
    if result.effects:
        told = Table(title="covariates: change of ln kinetics a standard deviation", title_justify="left")
        for column in ("covariate", "parameter", "mean", "90 %", "the data"):
            told.add_column(column, justify="right" if column in ("mean", "90 %") else "left")
        for e in result.effects:
            told.add_row(e.covariate, e.parameter, f"{e.mean:+.3f}", f"{e.q05:+.3f} to {e.q95:+.3f}", e.verdict)
        console.print(told)
    seen = Table(title="readings inside 90 % predictive intervals", title_justify="left")
    for column in ("channel", "n", "before", "after", ""):
        seen.add_column(column, justify="right" if column in ("n", "before", "after") else "left")
    for channel, c in checked.items():
        seen.add_row(channel, str(c.n), f"{c.before:.2f}", f"{c.after:.2f}", c.verdict)
    console.print(seen)
    checks = Table(title=f"diagnostics ({result.sampler}, {seconds:.0f} s)", title_justify="left")
    for column in ("R-hat", "ESS bulk", "ESS tail", "divergent", "E-BFMI"):
        checks.add_column(column, justify="right")
    checks.add_row(
        f"{d.r_hat:.3f}", f"{d.ess_bulk:.0f}", f"{d.ess_tail:.0f}", f"{d.divergent}/{d.draws}", f"{d.e_bfmi:.2f}"
    )
    console.print(checks)


def _as_json(result: Any, prior: Path | None, seconds: float, problem: str | None) -> dict[str, Any]:
    from service.tracking.sampler import standard_errors

    d, errors = result.diagnostics, standard_errors(result.draws, result.settings.chains)
    return {
        "prior": prior, "problem": problem, "donors": len(result.data.donors), "sampler": result.sampler, "wall_s": seconds,
        "parameters": {
            n: {"mean_ln": result.prior.mean[k], "sd_ln": result.prior.cov[k, k] ** 0.5,
                "mean_ln_mcse": errors[0, k], "sd_ln_mcse": errors[1, k]}
            for k, n in enumerate(result.prior.names)
        },
        "stages": {n: r._asdict() for n, r in result.stages.items()},
        "covariates": [{**e._asdict(), "verdict": e.verdict} for e in result.effects],
        "diagnostics": {
            "r_hat": d.r_hat, "ess_bulk": d.ess_bulk, "ess_tail": d.ess_tail, "divergent": d.divergent, "draws": d.draws,
            "e_bfmi": d.e_bfmi, "worst": d.worst,
        },
    }  # fmt: skip
