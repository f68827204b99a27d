"""`celltwin edge`: a virtual bioreactor, or a recorded batch, as an MQTT edge."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli.console import console, emit_json, fail, progress

if TYPE_CHECKING:
    from service.cli.edge_wire import Wire
    from service.config import EdgeConfig
    from service.messages import BatchStart
    from simulators.reactor import Outcome, VirtualBioreactor
    from twin.process import Process
    from twin.records import RecordedBatch


def edge(
    config: Annotated[Path, typer.Option("-c", "--config", help="Edge configuration (YAML).")],
    replay: Annotated[Path | None, typer.Option(help="Play a recorded batch from this file instead.")] = None,
    batch: Annotated[
        str | None, typer.Option(help="Which batch of the file; also the batch's name on the wire.")
    ] = None,
    mapping: Annotated[str | None, typer.Option(help="Column mapping of the file; default: the one that fits.")] = None,
    pace: Annotated[
        float | None, typer.Option(min=0.0, help="Batch hours per second; 0: as fast as the twin answers.")
    ] = None,
    patience: Annotated[
        float, typer.Option(min=1.0, help="Seconds to wait for the twin before going on alone.")
    ] = 120.0,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Run the edge of one reactor over MQTT to the end of one batch.

    Exit 0: the batch was played to its end and nothing of it was refused. Exit 1: something was. Exit 2: bad input.
    """
    from service.cli.edge_batch import Pace, run_recorded
    from service.cli.edge_wire import open_wire
    from service.config import load_edge

    settings = load_edge(config)
    record = _record(replay, batch, mapping) if replay is not None else None
    name = batch if record is None and batch is not None else settings.batch if record is None else None
    job = prepare(settings, record, name)
    speed = Pace(settings.pace if pace is None else pace)
    wire = open_wire(settings.broker.address(), settings.site, settings.unit, job.announce.batch, job.announce.at, _say)
    try:
        with progress(f"batch {job.announce.batch}", job.days) as advance:
            told = 0.0

            def step(day: float) -> None:
                nonlocal told
                advance(day - told)
                told = day

            if record is not None:
                end = run_recorded(wire, record, job.announce, speed, patience, step)
                result: dict[str, Any] = {"record": str(replay), "days": end}
            else:
                result = {"outcome": play(job, wire, speed, patience, step)}
    finally:
        wire.link.close()
    result |= {"batch": wire.batch, "messages": wire.seq, "forecasts": len(wire.forecasts), "overrides": wire.overrides,
               "accepted": wire.accepted, "rejected": wire.rejections}  # fmt: skip
    if json:
        emit_json(result)
    else:
        _print(result)
    raise SystemExit(1 if wire.rejections else 0)


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be played."""

    announce: BatchStart
    days: float  # expected length
    process: Process
    rig: VirtualBioreactor | None


def prepare(config: EdgeConfig, record: RecordedBatch | None = None, batch: str | None = None) -> Job:
    """The batch's announcement, and for a virtual batch its rig. Raises ConfigError."""
    from service.messages import BatchStart
    from simulators.edge import Budget, Caps, edge_settings
    from simulators.reactor import VirtualBioreactor
    from simulators.scenario import load_scenario

    entries, process = process_of(config, record)
    start = (record.start if record is not None else None) or config.start or datetime.now(UTC).replace(microsecond=0)
    rig, days, donor = None, 0.0, config.donor
    if record is None:
        limits = edge_settings(
            process.recipe, process.limits, Caps(**config.caps.model_dump()), Budget(**config.budget.model_dump())
        )
        rig = VirtualBioreactor(process, seed=config.seed, scenario=load_scenario(config.scenario), settings=limits)
        days, donor = process.recipe.harvest_latest, donor or _id(rig.donor.id)
        name = batch or config.batch or f"B{start:%Y%m%d-%H%M%S}"
    else:
        days = max((m.received_at for m in record.measurements), default=0.0)
        donor, name = _id(record.donor), _id(record.id)
    announce = BatchStart(
        id=f"{name}-start"[:64], batch=name, at=start, donor=donor, volume_l=float(process.initial.volume), seq=0, epoch=0,
        **entries,
    )  # fmt: skip
    return Job(announce, days, process, rig)


def process_of(config: EdgeConfig, record: RecordedBatch | None = None) -> tuple[dict[str, Any], Process]:
    """Names of preset, medium, recipe and targets as they go over the wire, and the process they make. Raises ConfigError."""
    from twin.config import ConfigError, ProcessFile, load_preset, locate, make_process, parse, read_yaml

    preset = (record.preset if record is not None else None) or config.preset
    own = None
    try:
        path = locate("processes", preset)
    except ConfigError:
        load_preset(preset)  # a preset without a process of its own is fine, an unknown one is not
    else:
        own = parse(ProcessFile, read_yaml(path), str(path))
    medium = config.medium or (own.medium if own else load_preset(preset).medium)
    recipe = config.recipe or (own.recipe if own else "cspr_100")
    targets = config.targets or (own.targets if own else "car_nk_release")
    if record is not None and preset != config.preset:  # the record's own kind of process, not the configured one's
        medium, recipe, targets = (
            (own.medium, "none", own.targets) if own else (load_preset(preset).medium, "none", targets)
        )
    elif record is not None:
        recipe = "none"
    kept: dict[str, Any] = {}
    if own is not None:
        kept = {
            "sensors": own.sensors,
            "limits": own.limits,
            "stages": own.stages,
            "considered": own.considered,
            "noise": own.noise,
        }
    process = make_process(preset, medium=medium, recipe=recipe, targets=targets, **kept)
    volume = float(record.metadata.get("volume_l", 0.0)) if record is not None else config.volume_l
    if volume:
        process = replace(process, initial=process.initial._replace(volume=volume))
    return {
        "preset": preset, "medium": Path(medium).stem, "recipe": Path(recipe).stem, "targets": Path(targets).stem
    }, process  # fmt: skip


def play(job: Job, wire: Wire, pace: Any, patience: float, step: Any) -> Outcome:
    """A virtual batch over the wire to its outcome."""
    from service.cli.edge_batch import run_virtual

    if job.rig is None:
        raise ValueError("no rig: this job is a record")
    return run_virtual(wire, job.rig, job.announce, pace, patience, step)


def _record(path: Path, batch: str | None, mapping: str | None) -> RecordedBatch:
    from twin.records import read_batches

    records = {r.id: r for r in read_batches(path, mapping)}
    if not records:
        fail(f"{path}: holds no batch")
    if batch is None and len(records) > 1:
        fail(f"{path}: holds {len(records)} batches; name one with --batch: {', '.join(records)}")
    if batch is not None and batch not in records:
        fail(f"{path}: no batch {batch!r}; it holds {', '.join(records)}")
    return records[batch] if batch is not None else next(iter(records.values()))


def _id(text: str) -> str:
    from service.cli.edge_batch import wire_id

    return wire_id(text)


def _print(result: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table("", f"batch {result['batch']}")
    outcome: Outcome | None = result.get("outcome")
    if outcome is not None:
        missed = f" (missed: {', '.join(outcome.missed)})" if outcome.missed else ""
        table.add_row("outcome", ("passed" if outcome.passed else "failed") + missed)
        table.add_row("harvest", f"day {outcome.day:.2f}, {outcome.reason}")
        table.add_row(
            "viable cells", f"{outcome.cqas['viable_cells']:.1f} 1e9, viability {outcome.cqas['viability']:.3f}"
        )
        table.add_row("medium", f"{outcome.medium_vv:.2f} vessel volumes")
    else:
        table.add_row("record", f"{result['record']}, {result['days']:.2f} days")
    table.add_row(
        "messages", f"{result['messages']} sent, {len(result['rejected'])} refused, {result['forecasts']} forecasts"
    )
    table.add_row("overrides", f"{result['overrides']} asked, {result['accepted']} accepted")
    console.print(table)
    for text in result["rejected"][:10]:
        console.print(f"refused: {text}")


def _say(line: str) -> None:
    print(f"celltwin edge: {line}", file=sys.stderr, flush=True)
