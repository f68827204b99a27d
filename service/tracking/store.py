"""The edge to MLflow: where runs are kept, writing one, reading one back. MLflow is imported when a store is opened."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from getpass import getuser
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit

from service.tracking import digest
from service.tracking.record import Record, RecordError, from_json

LOCAL = Path("var") / "mlruns.db"
EXPERIMENT = "celltwin"
RECORD, FILES = "record.json", "files"
TAG = "celltwin."
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_DISABLE_AGENT_HINT": "true", "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true", "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}  # fmt: skip
"""Settings of MLflow that a user's own win over: no telemetry, no chatter, an absent server told within seconds."""


class TrackingError(ValueError):
    """A run that could not be kept or found; one line naming the place and the remedy."""


class Place(NamedTuple):
    """Where runs are kept."""

    uri: str
    shown: str  # without a password
    file: Path | None  # of a SQLite store


class Kept(NamedTuple):
    """A run as it was kept, checked."""

    id: str
    record: Record


def place(wanted: str | None) -> Place | None:
    """The place that `wanted` names; None for off.

    ``on``: MLFLOW_TRACKING_URI, else the local SQLite file var/mlruns.db; a path: that SQLite file; else an MLflow URI.
    Raises TrackingError for a folder.
    """
    if wanted is None or wanted.strip().lower() in ("", "off", "0", "false", "no"):
        return None
    given = wanted.strip()
    if given.lower() in ("on", "1", "true", "yes"):
        given = os.environ.get("MLFLOW_TRACKING_URI", "").strip() or str(LOCAL)
    if given.startswith("sqlite:///"):
        given = given.removeprefix("sqlite:///")
    if given == "databricks" or given.startswith("databricks:") or "://" in given:
        return Place(given, _masked(given), None)
    path = Path(given).resolve()  # artefacts are found by this path later
    if path.is_dir() or given.startswith("file:"):
        raise TrackingError(f"{given}: MLflow keeps runs in a database: name a SQLite file (runs.db) or a server's URI")
    return Place(f"sqlite:///{path}", given, path)


def _masked(uri: str) -> str:
    parts = urlsplit(uri)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


@contextmanager
def _told(where: Place) -> Generator[None]:
    """What MLflow and its database raise inside the block, as a TrackingError."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        first = said.replace(where.uri, where.shown)[:300]
        raise TrackingError(f"tracking at {where.shown}: {first}") from error


class Store:
    """Runs at one place."""

    def __init__(self, where: Place, make: bool = True) -> None:
        """Open the place; with `make` a local one is made if need be.

        Raises TrackingError where it cannot be used, ModuleNotFoundError without the extra.
        """
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        self.where = where
        if where.file is not None:
            _demand_sqlite(where.file, where.shown, make)
        from mlflow.tracking import MlflowClient

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.ERROR)
        with _told(where):
            self._client: Any = MlflowClient(tracking_uri=where.uri)

    def begin(self, verb: str, parameters: Mapping[str, Any], tags: Mapping[str, str]) -> str:
        """Open a run with its arguments and what it rests on; returns its id. Raises TrackingError."""
        from mlflow.entities import Param, RunTag

        with _told(self.where):
            made = self._client.create_run(self._experiment(), run_name=verb, tags={"mlflow.user": _user()})
            told = [Param(k, _cut(v, 6000)) for k, v in parameters.items() if v is not None]
            marks = [RunTag(k if k.startswith("mlflow.") else f"{TAG}{k}", _cut(v, 5000)) for k, v in tags.items()]
            self._client.log_batch(made.info.run_id, params=told, tags=marks)
        return str(made.info.run_id)

    def _experiment(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
        if (found := self._client.get_experiment_by_name(name)) is not None:
            return str(found.experiment_id)
        file = self.where.file
        beside = None if file is None else str(file.with_suffix("") / "artefacts")
        return str(self._client.create_experiment(name, artifact_location=beside))

    def finish(
        self,
        run: str,
        record: Record,
        metrics: Mapping[str, float],
        texts: Mapping[str, str],
        files: Mapping[str, Path],
    ) -> None:
        """Close a run with its record, figures and files. Raises TrackingError."""
        from mlflow.entities import Metric, RunTag

        content = record.to_json()
        now = int(time.time() * 1000)
        with _told(self.where), tempfile.TemporaryDirectory() as scratch:
            for name, text in {RECORD: content, **texts}.items():
                (Path(scratch) / name).write_text(text, encoding="utf-8")
                self._client.log_artifact(run, str(Path(scratch) / name), None if name == RECORD else FILES)
            for path in files.values():
                self._client.log_artifact(run, str(path), FILES)
            figures = [Metric(_name(k), v, now, 0) for k, v in metrics.items()]
            tags = [
                RunTag(f"{TAG}record_sha256", digest.of_bytes(content.encode())),
                RunTag(f"{TAG}exit_code", str(record.exit_code)),
                *(RunTag(f"{TAG}output.{_name(k)}", v) for k, v in record.outputs.items()),
            ]
            for k in range(0, max(len(figures), 1), 900):  # a call holds 1000 entries at most
                self._client.log_batch(run, metrics=figures[k : k + 900], tags=tags if k == 0 else [])
            self._client.set_terminated(run, "FINISHED" if record.exit_code == 0 else "FAILED")

    def abandon(self, run: str, why: str, killed: bool) -> None:
        """Close a run that came to nothing. Raises TrackingError."""
        with _told(self.where):
            self._client.set_tag(run, f"{TAG}problem", _cut(why, 5000))
            self._client.set_terminated(run, "KILLED" if killed else "FAILED")

    def fetch(self, wanted: str) -> Kept:
        """The run of that id (or its unique beginning, or ``last``), its record and files checked against their digests.

        Raises TrackingError where there is none, or it was altered.
        """
        with _told(self.where):
            found = self._find(wanted)
        run, tags = str(found.info.run_id), found.data.tags
        if f"{TAG}record_sha256" not in tags:
            said = tags.get(f"{TAG}problem")
            raise TrackingError(
                f"run {run}: {said or 'was not finished, or is none of celltwin'}: there is nothing to reproduce"
            )
        with tempfile.TemporaryDirectory() as scratch:
            held = self._file(run, RECORD, scratch)
            try:
                record = from_json(held.read_bytes(), tags[f"{TAG}record_sha256"])
            except RecordError as error:
                raise TrackingError(f"run {run}: {error}: it cannot be trusted") from error
            for name, sha256 in record.files.items():
                if digest.of_file(self._file(run, f"{FILES}/{name}", scratch)) != sha256:
                    raise TrackingError(
                        f"run {run}: {name} was altered after it was written (SHA-256 differs): it cannot be trusted"
                    )
        return Kept(run, record)

    def _file(self, run: str, name: str, into: str) -> Path:
        from mlflow.exceptions import MlflowException

        try:
            return Path(self._client.download_artifacts(run, name, into))
        except (MlflowException, OSError) as error:
            raise TrackingError(f"run {run}: {name} is missing from {self.where.shown}") from error

    def _find(self, wanted: str) -> Any:
        from mlflow.exceptions import MlflowException

        if wanted != "last":
            try:
                return self._client.get_run(wanted)
            except MlflowException as error:
                if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                    raise
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
        held = self._client.get_experiment_by_name(name)
        runs: list[Any] = [] if held is None else self._runs(str(held.experiment_id), 1 if wanted == "last" else 1000)
        fitting = runs if wanted == "last" else [r for r in runs if str(r.info.run_id).startswith(wanted)]
        if len(fitting) > 1:
            raise TrackingError(
                f"run {wanted}: {len(fitting)} runs at {self.where.shown} begin so: give more of the id"
            )
        if not fitting:
            raise TrackingError(f"run {wanted}: not known at {self.where.shown}: see --track for where to look")
        return fitting[0]

    def _runs(self, experiment: str, page: int) -> list[Any]:
        """Runs, the newest first; all of them where `page` is more than one."""
        found: list[Any] = []
        token: str | None = None
        while True:
            got = self._client.search_runs([experiment], max_results=page, page_token=token)
            found += got
            token = got.token
            if token is None or page == 1:
                return found


def _demand_sqlite(file: Path, shown: str, make: bool) -> None:
    """Make the folder of a local store, and refuse a file that is no SQLite database. Raises TrackingError."""
    try:
        if not make and not file.is_file():
            raise TrackingError(f"{shown}: no such file: no run was kept there; see --track for where to look")
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.is_file() and file.stat().st_size:
            with file.open("rb") as stream:
                if stream.read(16) != b"SQLite format 3\0":
                    raise TrackingError(f"{shown}: is no SQLite database: name another file for the runs")
    except OSError as error:
        raise TrackingError(f"{shown}: {error.strerror or error}: name another file for the runs") from error


def _user() -> str:
    try:
        return getuser()
    except (KeyError, OSError):
        return "unknown"


def _cut(value: Any, longest: int) -> str:
    text = str(value)
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def _name(given: str) -> str:
    """A name that MLflow takes."""
    return "".join(c if c.isalnum() or c in "_-. :/" else "_" for c in given)[:250]
