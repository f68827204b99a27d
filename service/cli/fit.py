"""`celltwin fit`: the donor population from batch records, written as a prior artefact."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from service.cli.console import console, emit_json, fail, progress

SYNTHETIC = "synthetic:"


def fit(
    data: Annotated[
        str,
        typer.Argument(
            help="Tidy measurements (file or folder), or synthetic:SEED for 17 virtual donors of that seed."
        ),
    ],
    prior: Annotated[Path, typer.Option("-o", "--out", help="Folder to write the prior into.")],
    preset: Annotated[str, typer.Option(help="Process: a name under configs/processes or a file.")] = "car_nk",
    mapping: Annotated[str | None, typer.Option(help="Column mapping of a wide file: name or file.")] = None,
    draws: Annotated[int, typer.Option(min=4, help="Draws per chain.")] = 500,
    tune: Annotated[int, typer.Option(min=4, help="Warm-up iterations per chain.")] = 200,
    chains: Annotated[int, typer.Option(min=2, help="Chains.")] = 4,
    cores: Annotated[int, typer.Option(min=1, help="Chains that run at once.")] = 2,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the sampler.")] = 1,
    centred: Annotated[bool, typer.Option("--centred/--non-centred", help="Parametrisation of the donors.")] = True,
    small: Annotated[bool, typer.Option("--small", help="Leave the whole posterior out of the artefact.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Fit the hierarchical donor model and write the prior. Exit 1 where the fit did not converge: nothing is written."""
    from twin.config import load_config

    process, batches = load_config(preset), _records(data, mapping, preset)
    from twin.donors.artefact import ArtefactError
    from twin.donors.data import FitError
    from twin.donors.fit import Settings, demand_sound, save_fit
    from twin.donors.fit import fit as run

    began = time.perf_counter()
    settings = Settings(draws=draws, tune=tune, chains=chains, seed=seed, cores=cores, centred=centred)
    with progress(f"{chains} chains of {tune} + {draws}", chains) as advance:
        try:
            result = run(batches, process, settings=settings, tick=advance)
        except FitError as error:
            fail(f"{data}: {error}")
    seconds = time.perf_counter() - began
    problem: str | None = None
    try:
        demand_sound(result.diagnostics)
        command = shlex.join(["celltwin", *sys.argv[1:]])
        save_fit(result, process, prior, command, whole=not small)
    except FitError as error:
        problem = str(error)
    except ArtefactError as error:
        fail(str(error))
    if json:
        emit_json(_as_json(result, prior if problem is None else None, seconds, problem))
    else:
        _tables(result, process, seconds)
    if problem is not None:
        print(f"celltwin: {data}: {problem}; no prior was written", file=sys.stderr)
        raise SystemExit(1)
    console.print(f"prior written to {prior}")


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


def _tables(result: Any, process: Any, seconds: float) -> None:
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
    checks = Table(title=f"diagnostics ({result.sampler}, {seconds:.0f} s)", title_justify="left")
    for column in ("R-hat", "ESS bulk", "ESS tail", "divergent", "E-BFMI"):
        checks.add_column(column, justify="right")
    checks.add_row(
        f"{d.r_hat:.3f}", f"{d.ess_bulk:.0f}", f"{d.ess_tail:.0f}", f"{d.divergent}/{d.draws}", f"{d.e_bfmi:.2f}"
    )
    console.print(checks)


def _as_json(result: Any, prior: Path | None, seconds: float, problem: str | None) -> dict[str, Any]:
    d = result.diagnostics
    return {
        "prior": prior, "problem": problem, "donors": len(result.data.donors), "sampler": result.sampler, "wall_s": seconds,
        "parameters": {
            n: {"mean_ln": result.prior.mean[k], "sd_ln": result.prior.cov[k, k] ** 0.5} for k, n in enumerate(result.prior.names)
        },
        "diagnostics": {
            "r_hat": d.r_hat, "ess_bulk": d.ess_bulk, "ess_tail": d.ess_tail, "divergent": d.divergent, "draws": d.draws,
            "e_bfmi": d.e_bfmi, "worst": d.worst,
        },
    }  # fmt: skip
