"""`celltwin demo`: one whole batch in closed loop over MQTT on this machine, beside the recipes, with its report."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from service.cli import demo_report
from service.cli.console import console, emit_json, fail, plain, progress

if TYPE_CHECKING:
    from service.cli.edge import Job
    from service.config import EdgeConfig
    from simulators.reactor import Outcome

SITE, UNIT = "demo", "reactor1"
PATIENCE = 90.0  # for the twin to start or to answer [s]


def demo(
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the journal and the configuration used.")] = Path(
        "var/demo"
    ),
    preset: Annotated[str, typer.Option(help="Cells and process.")] = "car_nk",
    recipe: Annotated[str, typer.Option(help="The edge's own recipe, to which it reverts.")] = "cspr_100",
    policy: Annotated[str, typer.Option(help="What the twin decides by: mpc, or a recipe's name.")] = "mpc",
    seed: Annotated[int, typer.Option(min=0, help="Number of the virtual donor and of its noise.")] = 7,
    broker: Annotated[str, typer.Option(help="auto, mosquitto or amqtt.")] = "auto",
    json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Run one whole batch in closed loop over MQTT: broker, twin service and virtual bioreactor on this machine."""
    if broker not in ("auto", "mosquitto", "amqtt"):
        fail(f"--broker {broker!r} is not one of auto, mosquitto, amqtt")
    played, job = run(out, preset, recipe, policy, seed, broker)
    names = demo_report.recipes()
    with progress("the same donor on every recipe", len(names)) as advance:
        others = demo_report.rivals(job, seed, advance)
    best = demo_report.best(others)
    page = played.data.parent / f"report-{played.batch}.html"
    demo_report.write(job, played.data, played.batch, policy, played.outcome, others, page)
    if json:
        emit_json({**plain(played), "best_recipe": best, "recipes": others, "report": page})
    else:
        _print(played, policy, best, others, page)
    raise SystemExit(0 if played.outcome.passed and not played.rejected else 1)


@dataclass(frozen=True, slots=True)
class Played:
    """What one batch over the wire came to."""

    batch: str
    data: Path  # folder of the journal
    outcome: Outcome
    seconds: float  # of the batch itself, without start-up
    protocol: str
    forecasts: tuple[tuple[float, float], ...]  # day, probability of release
    messages: int
    overrides: int
    accepted: int
    rejected: tuple[str, ...]


def run(
    out: Path, preset: str, recipe: str, policy: str, seed: int, kind: str = "auto", start: datetime | None = None
) -> tuple[Played, Job]:
    """Broker, service (a process of its own) and edge (here), to the end of one batch. Raises one-line user errors."""
    from service.broker import development_broker
    from service.cli.edge import play, prepare
    from service.cli.edge_batch import Pace
    from service.cli.edge_wire import open_wire
    from service.mqtt import parse_address

    chosen: Literal["auto", "mosquitto", "amqtt"] = (
        "mosquitto" if kind == "mosquitto" else "amqtt" if kind == "amqtt" else "auto"
    )
    folder = (out / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{os.getpid()}").resolve()
    folder.mkdir(parents=True)
    with development_broker(chosen) as url, twin_process(folder, service_settings(url, policy, preset)) as alive:
        config = edge_settings(url, preset, recipe, seed, start)
        job = prepare(config)
        wire = open_wire(parse_address(url), SITE, UNIT, job.announce.batch, job.announce.at, _quiet)
        wire.check = alive
        try:
            with progress(f"batch {wire.batch}", job.days) as advance:
                told, begun = 0.0, 0.0

                def step(day: float) -> None:
                    nonlocal told, begun
                    begun = begun or time.monotonic()  # the first estimate is here: the twin is up
                    advance(day - told)
                    told = day

                outcome = play(job, wire, Pace(0.0), PATIENCE, step)
            seconds = time.monotonic() - begun
        finally:
            wire.link.close()
    played = Played(
        wire.batch, folder / "twin", outcome, seconds, "MQTT 5" if wire.link.v5 else "MQTT 3.1.1",
        release_by_day(wire.forecasts, wire.start), wire.seq, wire.overrides, wire.accepted, tuple(wire.rejections),
    )  # fmt: skip
    return played, job


def service_settings(url: str, policy: str, preset: str) -> dict[str, Any]:
    """The configuration of the demo's service: its plans know the caps of the edge's scenario, its prior is the shipped one."""
    from simulators.closed_loop import mpc_caps
    from simulators.scenario import load_scenario
    from twin.config import configs_dir

    shipped = (configs_dir() / "priors" / preset / "manifest.json").is_file()
    return {
        "prior": preset if shipped else None, "site": SITE, "units": [UNIT], "broker": {"url": url}, "development": True, "data": "twin", "mode": "closed",
        "clock": "event", "policy": policy, "mpc": mpc_caps(load_scenario("nominal").caps) if policy == "mpc" else {},
    }  # fmt: skip


def edge_settings(url: str, preset: str, recipe: str, seed: int, start: datetime | None) -> EdgeConfig:
    """The configuration of the demo's edge: caps and budget of its scenario."""
    from dataclasses import fields, is_dataclass

    from service.config import EdgeConfig
    from simulators.scenario import load_scenario
    from twin.config import parse

    def plain(value: Any) -> dict[str, float]:
        return {f.name: getattr(value, f.name) for f in fields(value)} if is_dataclass(value) else dict(value._asdict())

    scenario = load_scenario("nominal")
    content = {
        "site": SITE, "unit": UNIT, "broker": {"url": url}, "development": True, "preset": preset, "recipe": recipe,
        "seed": seed, "start": start, "caps": plain(scenario.caps), "budget": plain(scenario.budget),
    }  # fmt: skip
    return parse(EdgeConfig, content, "demo")


@contextlib.contextmanager
def twin_process(folder: Path, settings: dict[str, Any]) -> Generator[Any]:
    """`celltwin serve` as a process of its own, stopped at the end; yields a check that raises when it has ended."""
    import yaml

    path, log = folder / "serve.yaml", folder / "serve.log"
    path.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [sys.executable, "-m", "service.cli", "serve", "-c", str(path)], stdout=sink, stderr=sink, env=environment
        )

    def alive() -> None:
        if process.poll() is not None:
            last = log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
            fail(
                f"the twin service stopped (exit {process.returncode}): {last[-1].removeprefix('celltwin: ')}; see {log}"
            )

    try:
        yield alive
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def release_by_day(forecasts: list[bytes], start: datetime) -> tuple[tuple[float, float], ...]:
    """Probability of release by the day from which it was forecast."""
    from service.messages import ForecastMessage, days, decode_as

    said = [decode_as(ForecastMessage, "forecast", payload) for payload in forecasts]
    return tuple((days(f.from_, start), f.p_release) for f in said if f.from_ >= start)


def _print(played: Played, policy: str, best: str, others: Mapping[str, Outcome], page: Path) -> None:
    from rich.table import Table

    mine, rival = played.outcome, others[best]
    title = f"batch {played.batch}: closed loop over {played.protocol}, {played.seconds:.1f} s"
    table = Table("", policy, f"best recipe alone: {best}", title=title)
    for row, one, other in zip(_ROWS, _told(mine), _told(rival), strict=True):
        table.add_row(row, one, other)
    console.print(table)
    ranked = sorted(others, key=lambda name: -others[name].passed)
    said = "  ".join(
        f"{name} {'passed' if others[name].passed else 'failed'} {others[name].medium_vv:.1f}" for name in ranked
    )
    console.print(f"every recipe alone, verdict and volumes of medium: {said}")
    days = {round(d): p for d, p in played.forecasts if abs(d - round(d)) < 0.01}
    console.print("P(release) by day: " + "  ".join(f"{d}: {p:.2f}" for d, p in days.items()))
    console.print(
        f"{played.messages} messages sent, {len(played.rejected)} rejected; "
        f"{played.overrides} overrides asked, {played.accepted} accepted by the edge"
    )
    console.print(f"journal: {played.data}", soft_wrap=True)
    console.print(f"report:  {page}", soft_wrap=True)


_ROWS = ("outcome", "harvest", "viable cells", "viability", "CAR+ fraction", "exhausted", "medium", "lactate peak")


def _told(o: Outcome) -> tuple[str, ...]:
    missed = f" (missed: {', '.join(o.missed)})" if o.missed else ""
    return (
        ("passed" if o.passed else "failed") + missed,
        f"day {o.day:.2f}, {o.reason}",
        f"{o.cqas['viable_cells']:.1f}e9",
        f"{o.cqas['viability']:.3f}",
        f"{o.cqas['car_fraction']:.2f}",
        f"{o.cqas['exhausted_fraction']:.2f}",
        f"{o.medium_vv:.2f} vessel volumes",
        f"{o.lactate_peak:.1f} mM",
    )


def _quiet(line: str) -> None:
    if "lost" in line:
        print(f"celltwin demo: {line}", file=sys.stderr, flush=True)
