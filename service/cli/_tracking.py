"""How a verb is tracked: `@tracked` gives it --track, `deliver` hands over its answer. Off costs nothing and imports nothing."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from service.cli.console import console, plain

SPEECH = ("json", "as_json", "plots")
"""Parameters that say how a verb speaks, and nothing about its result."""


class Delivered(NamedTuple):
    """What a verb gave."""

    answer: Any  # its JSON answer, plain
    folder: Path | None  # which it wrote


_box: ContextVar[list[Delivered] | None] = ContextVar("_box", default=None)


def deliver(answer: Any, folder: Path | None = None) -> None:
    """Hand the answer of a verb and the folder that it wrote to the record of the run; nothing where it is not tracked."""
    box = _box.get()
    if box is not None:
        box.append(Delivered(plain(answer), folder))


def tracked(function: Callable[..., None]) -> Callable[..., None]:
    """The verb with `--track`: the run is kept in MLflow where that is on."""
    own = inspect.signature(function, eval_str=True)

    @wraps(function)
    def run(*given: Any, track: str | None = None, **named: Any) -> None:
        if (track or "off").strip().lower() == "off":
            function(*given, **named)
            return
        bound = own.bind(*given, **named)
        bound.apply_defaults()
        _run(function, dict(bound.arguments), track)

    option = inspect.Parameter("track", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=TRACK)
    run.__signature__ = own.replace(parameters=[*own.parameters.values(), option])  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in own.parameters.values()} | {"track": TRACK, "return": None}
    return run


TRACK = Annotated[
    str | None,
    typer.Option(
        envvar="CELLTWIN_TRACKING", show_envvar=True,
        help="Keep the run in MLflow: on (MLFLOW_TRACKING_URI, else var/mlruns.db), a SQLite file, or a server's URI; off.",
    ),
]  # fmt: skip


def _run(function: Callable[..., None], arguments: dict[str, Any], track: str | None) -> None:
    from service.tracking.provenance import code, environment
    from service.tracking.record import Record
    from service.tracking.store import Store, TrackingError, place
    from service.tracking.verbs import VERBS, digest_of, metrics, outputs, seeds, statistics, written

    where = place(track)
    if where is None:
        function(**arguments)
        return
    verb = function.__name__
    parameters = {k: plain(v) for k, v in arguments.items() if k not in SPEECH}
    inputs = {
        k: {"role": role, "given": str(parameters[k]), "sha256": digest_of(role, str(parameters[k]))}
        for k, role in VERBS[verb].inputs.items()
        if parameters[k] is not None
    }
    rests, around, began = code(), environment(), _now()
    store = Store(where)
    run = store.begin(verb, parameters, _tags(verb, rests, inputs, seeds(verb, parameters)))
    box: list[Delivered] = []
    before = _box.set(box)
    status = 0
    try:
        function(**arguments)
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else 1
    except BaseException as error:
        with suppress(TrackingError):
            store.abandon(run, str(error) or type(error).__name__, killed=isinstance(error, KeyboardInterrupt))
        raise
    finally:
        _box.reset(before)
    try:
        if box:
            answer, folder = box[-1]
            files = written(verb, folder)
            texts = _texts(answer)
            record = Record(
                verb, parameters, inputs, str(Path.cwd()), rests, around, seeds(verb, parameters), began, _now(), status,
                outputs(verb, answer, folder), statistics(answer), _digests(texts, files),
            )  # fmt: skip
            store.finish(run, record, metrics(answer), texts, files)
            console.print(f"tracked as run {run} at {where.shown}", soft_wrap=True)
        else:
            store.abandon(run, f"ended with exit code {status} and no answer", killed=False)
    except (TrackingError, OSError) as error:
        print(f"celltwin: the result stands, but run {run} was not kept: {error}", file=sys.stderr)
        status = status or 1
    if status:
        raise SystemExit(status)


def _tags(verb: str, code: dict[str, Any], inputs: dict[str, dict[str, Any]], seeds: dict[str, int]) -> dict[str, str]:
    """What a run rests on, as the labels that a list of runs is searched by."""
    tags = {
        "verb": verb,
        **{k: str(v).lower() if isinstance(v, bool) else str(v) for k, v in code.items() if v is not None},
        **{f"input.{k}": held["sha256"] for k, held in inputs.items() if held["sha256"] is not None},
        **{f"seed.{k}": str(v) for k, v in seeds.items()},
        "mlflow.source.name": f"celltwin {verb}",
        "mlflow.source.type": "LOCAL",
    }
    return tags | ({"mlflow.source.git.commit": str(code["commit"])} if code.get("commit") else {})


def _texts(answer: Any) -> dict[str, str]:
    import json

    from service.tracking.verbs import ANSWER

    return {ANSWER: json.dumps(answer, indent=1, allow_nan=False, ensure_ascii=False) + "\n"}


def _digests(texts: dict[str, str], files: dict[str, Path]) -> dict[str, str]:
    from service.tracking import digest

    return {k: digest.of_bytes(v.encode()) for k, v in texts.items()} | {k: digest.of_file(p) for k, p in files.items()}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
