"""`celltwin simulate`: a closed-loop campaign of virtual donors: policies x donors x faults x seeds."""

from __future__ import annotations

import json
import re
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer

from controllers import make_recipe
from controllers.policies import find_policy
from service.cli._campaign_engines import check_engine, run_all
from service.cli._campaign_pictures import draw, writable
from service.cli._campaign_store import Store
from service.cli._campaign_tables import SUMMARY, figures, lapses, pairs, under_faults, write_rows
from service.cli._tracking import deliver, tracked
from service.cli.console import console, emit_json, fail, plain, progress
from simulators.campaign import ALL, NONE, by_policy, jobs, named_faults, summary
from simulators.comparison import against, by_fault, usual_base
from simulators.faults import Fault
from simulators.scenario import Scenario, load_scenario
from twin.config import load_config
from twin.donors.prior import DonorPrior
from twin.process import Process


@tracked
def simulate(
    config: Annotated[
        str, typer.Option("-c", "--config", help="Process: an entry of configs/processes or a file.")
    ] = "car_nk",
    policy: Annotated[
        str, typer.Option(help="mpc, a recipe's name, module:Class of your own, several with commas, or all.")
    ] = "mpc",
    donors: Annotated[int, typer.Option(help="Virtual donors per policy.")] = 50,
    first: Annotated[int, typer.Option(help="Number of the first donor: other donors, other batches.")] = 0,
    fault: Annotated[
        list[str] | None,
        typer.Option(help="What goes wrong: TARGET/MODE[=SIZE][@DAY] as in ph/drift@6, none, or all; may be repeated."),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Sets of instruments that every donor is met with.")] = 1,
    scenario: Annotated[str, typer.Option(help="An entry of configs/scenarios or a file.")] = "nominal",
    prior: Annotated[
        Path | None, typer.Option(help="Donor-prior artefact; without it the preset's published spreads.")
    ] = None,
    filter_name: Annotated[str, typer.Option("--filter", help="ukf or ekf.")] = "ukf",
    workers: Annotated[int, typer.Option(help="Processes to run on.")] = 2,
    engine: Annotated[
        str, typer.Option(help="local: processes of this machine; ray: Ray's workers (RAY_ADDRESS, or --workers here).")
    ] = "local",
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="Folder of the run; one that was killed goes on. Default: var/runs/..."),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget the batches that the folder holds.")] = False,
    plots: Annotated[Path | None, typer.Option(help="Folder for pictures, PNG and SVG.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Run a campaign: each policy on the same virtual donors, a plant that is not the model, true outcomes."""
    check_engine(engine)
    process, surroundings = load_config(config), load_scenario(scenario)
    policies, befalls = _policies(policy, process), _faults(fault or [], surroundings)
    if donors < 1 or first < 0 or workers < 1 or seeds < 1:
        fail("--donors, --seeds and --workers need at least 1, --first at least 0")
    if filter_name not in ("ukf", "ekf"):
        fail(f"--filter {filter_name}: unknown; known: ukf, ekf")
    if plots is not None:
        writable(plots)
    work = jobs(
        process, policies, donors, first=first, scenario=surroundings, filter_name=filter_name, donor_prior=_prior(prior),
        faults=befalls, seeds=seeds,
    )  # fmt: skip
    definition = _definition(process, surroundings, policies, prior) | {
        "donors": donors, "first": first, "seeds": seeds, "filter": filter_name, "faults": sorted({j.fault for j in work}),
    }  # fmt: skip
    label = re.sub(r"[^A-Za-z0-9_+-]", "_", policy.replace(",", "+"))[:60]
    folder = out or Path("var") / "runs" / f"{process.name}-{surroundings.name}-{label}-{first}-{donors}"
    began = time.perf_counter()
    with Store(folder, definition, fresh=fresh) as store:  # before hours of work, not after
        due = [j for j in work if j.place not in store.rows]
        if known := len(work) - len(due):
            console.print(f"{folder}: {known} of {len(work)} batches are there already", soft_wrap=True)
        with (
            progress(f"{len(work)} virtual batches", total=len(work)) as advance,
            closing(run_all(due, engine, workers)) as ran,
        ):
            advance(known)
            for row in ran:
                store.add(row)
                advance(1)
        rows = list(store.rows.values())
    wall = time.perf_counter() - began
    path = write_rows(rows, folder)
    groups, figures_of = by_policy(rows), summary(rows)
    base = usual_base(groups, figures_of, process.recipe.name)
    found, table = against(groups, base), by_fault(groups, base)
    faulty = any(r["fault"] != NONE for r in table)
    report: dict[str, Any] = {
        "policies": figures_of,
        "base": base,
        "paired": found,
        "faults": table if faulty else [],
        "campaign": {
            "process": process.name, "edge_recipe": process.recipe.name, "scenario": surroundings.name,
            "mismatch": surroundings.mismatch, "donors": donors, "first": first, "seeds": seeds, "filter": filter_name,
            "prior": str(prior) if prior else "preset", "wall_s": round(wall, 1), "batches": str(path),
            "errors": sum(bool(r["error"]) for r in rows),
        },
    }  # fmt: skip
    (folder / SUMMARY).write_text(json.dumps(plain(report), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    deliver(report, folder)
    if plots is not None:
        draw(plots, figures_of, groups, base, table)
    if as_json:
        emit_json(report)
        return
    many = "".join(f" x {n} {word}" for n, word in ((len(befalls), "faults"), (seeds, "seeds")) if n > 1)
    console.print(
        figures(
            figures_of,
            f"{process.name}, scenario {surroundings.name}: {donors} virtual donors a policy{many} ({wall:.0f} s)",
        )
    )
    if found:
        console.print(pairs(found, base))
    if faulty:
        console.print(under_faults(table, base))
    for said in lapses(figures_of):
        console.print(said, soft_wrap=True, markup=False)
    for said in sorted({str(r["error"]) for r in rows if r["error"]})[:5]:
        console.print(
            f"raised in {sum(r['error'] == said for r in rows)} batches: {said}", soft_wrap=True, markup=False
        )
    if donors < 200:
        console.print(f"{donors} donors: the pass fraction is uncertain by its interval; rank policies on 200 or more.")
    console.print(f"batches: {path}", soft_wrap=True)


def _policies(given: str, process: Process) -> tuple[str, ...]:
    """Names of policies; an unknown or unusable one is told before anything runs."""
    names = ALL if given == "all" else tuple(dict.fromkeys(n.strip() for n in given.split(",") if n.strip()))
    if not names:
        fail(f"--policy: name a policy: {', '.join(ALL)}, or all")
    here = str(Path.cwd())
    for name in names:
        if ":" in name:
            if here not in sys.path:
                sys.path.insert(0, here)  # a user's module lies where the command is given
            find_policy(name, process)
        elif name != "mpc":
            make_recipe(name, process)
    return names


def _faults(given: list[str], scenario: Scenario) -> tuple[tuple[Fault, ...], ...]:
    try:
        return named_faults(given, scenario)
    except ValueError as error:
        fail(f"--fault: {error}")


def _prior(path: Path | None) -> DonorPrior | None:
    if path is None:
        return None
    from twin.donors.artefact import load_prior

    return load_prior(path)


def _definition(process: Process, scenario: Scenario, policies: tuple[str, ...], prior: Path | None) -> dict[str, Any]:
    """What the rows of a campaign hang on, apart from its numbers: names, and digests of what they name."""
    from service.tracking import digest
    from service.tracking.provenance import numerics, source_sha256

    return {
        "process": process.name,
        "process_sha256": digest.of_value(process),
        "scenario": scenario.name,
        "scenario_sha256": digest.of_value(scenario),
        "policies": list(policies),
        "policies_sha256": {
            n: digest.of_value({f.name: digest.of_file(f) for f in _own(n)}) for n in policies if ":" in n
        },
        "prior": None if prior is None else digest.of_prior(prior),
        "code": source_sha256(("twin", "controllers", "simulators")),
        "numerics": numerics(),
    }


def _own(policy: str) -> list[Path]:
    """The file of a user's policy, and those beside it that have been imported: what it may be made of."""
    source = getattr(sys.modules[policy.partition(":")[0]], "__file__", None)
    if not source:
        return []
    files = {Path(f) for m in list(sys.modules.values()) if (f := getattr(m, "__file__", None))}
    return sorted(f for f in files if f.parent == Path(source).parent and f.suffix == ".py" and f.is_file())
