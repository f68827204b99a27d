"""`celltwin tune`: process and measurement noise from historical batches, judged on batches that were held out."""

from __future__ import annotations

import re
import shlex
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from service.cli.console import Advance, console, emit_json, fail, progress

FIGURES = 4
"""Significant figures of a written noise: more than any batch record can tell."""


def tune(
    data: Annotated[Path, typer.Argument(help="Tidy or wide measurements, CSV or Parquet (file or folder).")],
    out: Annotated[Path, typer.Option("-o", "--out", help="File to write the noise into (.yaml).")],
    preset: Annotated[str, typer.Option(help="Process: a name under configs/processes or a file.")] = "car_nk",
    mapping: Annotated[str | None, typer.Option(help="Column mapping of a wide file: name or file.")] = None,
    prior: Annotated[
        Path | None, typer.Option(help="Donor-prior artefact; without it the preset's published spreads.")
    ] = None,
    filter_name: Annotated[Literal["ukf", "ekf"], typer.Option("--filter", help="Estimator.")] = "ukf",
    held_out: Annotated[
        float, typer.Option(min=0.01, max=0.9, help="Share of the batches that only judge the result.")
    ] = 0.3,
    seed: Annotated[int, typer.Option(min=0, help="Which batches are held out.")] = 0,
    evaluations: Annotated[int, typer.Option(min=20, help="Passes over the training batches, at most.")] = 300,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Tune the noise by innovation likelihood. Exit 1 where held-out batches become less likely: nothing is written."""
    from twin.config import load_config
    from twin.estimation.tune import score
    from twin.estimation.tune import tune as search

    if out.suffix not in (".yaml", ".yml"):
        fail(f"{out}: expected a name that ends in .yaml")
    if not out.parent.is_dir():
        fail(f"{out}: its folder does not exist")
    process, began = load_config(preset), time.perf_counter()
    batches = _batches(data, mapping, process, _prior(prior, process), filter_name)
    training, judging = _split(data, batches, held_out, seed)
    with progress("innovation likelihood", evaluations + 2) as advance:
        before = score(process, judging)
        advance(1)
        try:
            found = search(process, training, evaluations=evaluations, tick=_ticking(advance))
        except ValueError as error:
            fail(f"{data}: {error}")
        after = score(found.process, judging, against=process)
        advance(1)
    report: dict[str, Any] = {
        "data": data, "preset": preset, "filter": filter_name, "training": [b.id for b in training],
        "held_out": [b.id for b in judging], "multipliers": found.multipliers, "noise": _noise(found.process),
        "log_likelihood": {"held_out": [before.log_likelihood, after.log_likelihood], "readings": before.readings},
        "per_reading": {"held_out": [before.per_reading, after.per_reading]},
        "nis": {c: [before.nis[c], after.nis[c]] for c in before.nis},
        "evaluations": found.evaluations, "converged": found.converged, "wall_s": time.perf_counter() - began,
    }  # fmt: skip
    better = after.log_likelihood > before.log_likelihood
    if better:
        _write(out, report)
    report["out"] = out if better else None
    if json:
        emit_json(report)
    else:
        _tables(report, process, found)
    if not better:
        print(f"celltwin: {data}: the held-out batches became less likely; nothing was written", file=sys.stderr)
        raise SystemExit(1)
    console.print(f"noise written to {out}; name it in a process file (noise: {out})", soft_wrap=True)


def _prior(path: Path | None, process: Any) -> Any:
    if path is None:
        from twin.donors.prior import preset_prior

        return preset_prior(process)
    from twin.donors.artefact import load_prior

    return load_prior(path)


def _batches(data: Path, mapping: str | None, process: Any, prior: Any, filter_name: str) -> list[Any]:
    """The bioreactor batches with a reading that informs the state, ready to be gone through many times."""
    from dataclasses import replace

    from twin.batch import apply, assimilate, start
    from twin.estimation.tune import prepared
    from twin.evidence import Refused
    from twin.records import read_batches

    records = [r for r in read_batches(data, mapping) if r.metadata.get("stage", "bioreactor") == "bioreactor"]
    found: list[Any] = []
    with progress("reading batches", len(records)) as advance:
        for record in records:
            volume = record.metadata.get("volume_l")
            vessel = (
                process.initial._replace(volume=float(volume)) if isinstance(volume, (int, float)) else process.initial
            )
            try:
                batch = start(record.id, replace(process, initial=vessel), prior, filter_name)
                for action in record.actions:
                    batch = apply(batch, action)
                for m in record.final:
                    batch = assimilate(batch, m)
            except Refused as error:
                fail(f"{data}: batch {record.id!r}: {error}")
            if batch.innovations:
                found.append(prepared(batch))
            advance(1)
    return found


def _split(data: Path, batches: list[Any], share: float, seed: int) -> tuple[list[Any], list[Any]]:
    import numpy as np

    if len(batches) < 2:
        fail(
            f"{data}: has {len(batches)} bioreactor batches with readings of the process's sensors; "
            "two or more are needed, one to tune on and one to judge by"
        )
    order = np.random.default_rng(seed).permutation(len(batches))
    judging = set(order[: min(max(round(share * len(batches)), 1), len(batches) - 1)].tolist())
    return [b for k, b in enumerate(batches) if k not in judging], [batches[k] for k in sorted(judging)]


def _ticking(advance: Advance) -> Any:
    return lambda gained: advance(1)


def _noise(tuned: Any) -> dict[str, Any]:
    """All noise of the tuned process, as `twin.config.NoiseFile` has it: it may stand in for one that was named before."""
    sensors: dict[str, Any] = {}
    for channel, s in tuned.sensors.items():
        sensors[channel] = {"sd": _figures(s.sd)} | ({"walk": _figures(s.error.walk)} if s.error is not None else {})
    process = {name: _figures(sd) for name, sd in tuned.noise._asdict().items()}
    restless = {name: _figures(walk) for name, walk in tuned.restless.items()}
    return {
        "process": process, "parameter_walk": _figures(tuned.parameter_walk), "restless": restless, "sensors": sensors,
    }  # fmt: skip


def _figures(value: float) -> float:
    return float(f"{value:.{FIGURES}g}")


def _write(out: Path, report: dict[str, Any]) -> None:
    import yaml

    before, after = report["per_reading"]["held_out"]
    source = (
        f"innovation likelihood of {len(report['training'])} batches ({', '.join(report['training'])}); held out "
        f"{', '.join(report['held_out'])}: {before:.4f} to {after:.4f} nats a reading over {report['log_likelihood']['readings']}; "
        f"{shlex.join(['celltwin', *sys.argv[1:]])}"
    )
    name = re.sub(r"[^A-Za-z0-9_-]", "_", out.stem)[:64]
    content = yaml.safe_dump(
        {"name": name, "source": source, **report["noise"]}, sort_keys=False, width=110, default_flow_style=None
    )
    out.write_text(
        f"# Noise tuned on recorded batches. Name this file in a process file: noise: FILE\n{content}", "utf-8"
    )


def _tables(report: dict[str, Any], process: Any, found: Any) -> None:
    from rich.table import Table

    console.print(
        f"{len(report['training'])} batches tuned on, {len(report['held_out'])} held out; {report['evaluations']} evaluations "
        f"in {report['wall_s']:.0f} s{'' if report['converged'] else ' (all that were allowed: more may find better)'}"
    )
    table = Table(title="noise", title_justify="left")
    for column in ("what is scaled", "by", "of", "from", "to"):
        table.add_column(column, justify="left" if column in ("what is scaled", "of") else "right")
    for knob, multiplier in report["multipliers"].items():
        for row, (of, old, new) in enumerate(_scaled(knob, process, found.process)):
            table.add_row(
                knob if not row else "", f"{multiplier:.2f}" if not row else "", of, f"{old:.3g}", f"{new:.3g}"
            )
    console.print(table)
    judged = Table(title="held-out batches: mean NIS (1 when the noise is right)", title_justify="left")
    for column in ("channel", "before", "after"):
        judged.add_column(column, justify="left" if column == "channel" else "right")
    for channel, (old, new) in report["nis"].items():
        judged.add_row(channel, f"{old:.2f}", f"{new:.2f}")
    console.print(judged)
    (old, new), (was, now) = report["log_likelihood"]["held_out"], report["per_reading"]["held_out"]
    console.print(f"held-out log-likelihood: {old:.1f} to {new:.1f} nats; a reading: {was:.4f} to {now:.4f}")


def _scaled(name: str, before: Any, after: Any) -> list[tuple[str, float, float]]:
    """What a knob turned: what it is, and its value before and after."""
    from twin.estimation.tune import KNOBS

    knob = next(k for k in KNOBS if k.name == name)
    rows = [(f"process noise of {n}", getattr(before.noise, n), getattr(after.noise, n)) for n in knob.noise]
    rows += [("walk of the donor parameters", before.parameter_walk, after.parameter_walk)] * knob.parameters
    rows += [(f"walk of {n}", walk, after.restless[n]) for n, walk in before.restless.items() if knob.restless]
    rows += [(f"sd of {c}", s.sd, after.sensors[c].sd) for c, s in before.sensors.items() if c in knob.sd]
    rows += [
        (f"walk of the error of {c}", s.error.walk, after.sensors[c].error.walk)
        for c, s in before.sensors.items()
        if c in knob.walk and s.error is not None
    ]
    return [row for row in rows if row[1] != row[2]]
