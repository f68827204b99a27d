"""`celltwin simulate`: a closed-loop campaign of virtual donors under one policy or all."""

from __future__ import annotations

import json
import multiprocessing
import re
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Annotated, Any

import typer

from controllers import make_recipe
from service.cli._campaign_tables import SUMMARY, figures, open_folder, write_rows
from service.cli._tracking import deliver, tracked
from service.cli.console import console, emit_json, fail, plain, progress
from simulators.campaign import ALL, Job, jobs, run_job, summary
from simulators.scenario import load_scenario
from twin.config import load_config
from twin.donors.prior import DonorPrior


@tracked
def simulate(
    config: Annotated[
        str, typer.Option("-c", "--config", help="Process: an entry of configs/processes or a file.")
    ] = "car_nk",
    policy: Annotated[str, typer.Option(help="mpc, a recipe's name, several with commas, or all.")] = "mpc",
    donors: Annotated[int, typer.Option(help="Virtual donors per policy.")] = 50,
    first: Annotated[int, typer.Option(help="Number of the first donor: other donors, other batches.")] = 0,
    scenario: Annotated[str, typer.Option(help="An entry of configs/scenarios or a file.")] = "nominal",
    prior: Annotated[
        Path | None, typer.Option(help="Donor-prior artefact; without it the preset's published spreads.")
    ] = None,
    filter_name: Annotated[str, typer.Option("--filter", help="ukf or ekf.")] = "ukf",
    workers: Annotated[int, typer.Option(help="Processes to run on.")] = 2,
    engine: Annotated[str, typer.Option(help="local: processes of this machine (--workers).")] = "local",
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Folder of the run. Default: var/runs/...")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Run a campaign: each policy on the same virtual donors, a plant that is not the model, true outcomes."""
    if engine != "local":
        known = "not in this version" if engine == "ray" else "unknown"
        fail(f"--engine {engine}: {known}; use local")
    process, surroundings = load_config(config), load_scenario(scenario)
    policies = _policies(policy)
    for name in policies:
        if name != "mpc":
            make_recipe(name, process)  # an unknown or unusable recipe is told before anything runs
    if donors < 1 or first < 0 or workers < 1:
        fail("--donors and --workers need at least 1, --first at least 0")
    if filter_name not in ("ukf", "ekf"):
        fail(f"--filter {filter_name}: unknown; known: ukf, ekf")
    label = re.sub(r"[^A-Za-z0-9_+-]", "_", policy.replace(",", "+"))[:60]
    folder = out or Path("var") / "runs" / f"{process.name}-{surroundings.name}-{label}-{first}-{donors}"
    open_folder(folder)  # before hours of work, not after
    work = jobs(
        process, policies, donors, first=first, scenario=surroundings, filter_name=filter_name, donor_prior=_prior(prior)
    )  # fmt: skip
    began = time.perf_counter()
    rows: list[dict[str, Any]] = []
    with progress(f"{len(work)} virtual batches", total=len(work)) as advance:
        for row in _run(work, workers):
            rows.append(row)
            advance(1)
    wall = time.perf_counter() - began
    by_policy = summary(rows)
    path = write_rows(rows, folder)
    report = {
        "policies": by_policy,
        "campaign": {
            "process": process.name, "edge_recipe": process.recipe.name, "scenario": surroundings.name,
            "mismatch": surroundings.mismatch, "donors": donors, "first": first, "filter": filter_name,
            "prior": str(prior) if prior else "preset", "wall_s": round(wall, 1), "batches": str(path),
        },
    }  # fmt: skip
    (folder / SUMMARY).write_text(json.dumps(plain(report), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    deliver(report, folder)
    if as_json:
        emit_json(report)
        return
    title = f"{process.name}, scenario {surroundings.name}: {donors} virtual donors a policy ({wall:.0f} s)"
    console.print(figures(by_policy, title))
    if donors < 200:
        console.print(f"{donors} donors: the pass fraction is uncertain by its interval; rank policies on 200 or more.")
    console.print(f"batches: {path}", soft_wrap=True)


def _policies(given: str) -> tuple[str, ...]:
    names = ALL if given == "all" else tuple(dict.fromkeys(n.strip() for n in given.split(",") if n.strip()))
    if not names:
        fail(f"--policy: name a policy: {', '.join(ALL)}, or all")
    return names


def _prior(path: Path | None) -> DonorPrior | None:
    if path is None:
        return None
    from twin.donors.artefact import load_prior

    return load_prior(path)


def _run(work: list[Job], workers: int) -> Iterator[dict[str, Any]]:
    """Rows as they come; one worker runs in this process."""
    if workers == 1 or len(work) == 1:
        yield from map(run_job, work)
        return
    pool = ProcessPoolExecutor(min(workers, len(work)), mp_context=multiprocessing.get_context("spawn"))
    try:
        for done in as_completed([pool.submit(run_job, job) for job in work]):
            yield done.result()
    except BrokenProcessPool:
        fail("a worker process died (out of memory?); try --workers 1")
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
