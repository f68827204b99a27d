"""The command line: `celltwin VERB`. The one composition root; each verb is one module with one function of its name.

A verb's module is imported only when that verb runs: `celltwin --help` names them all and loads none.

    exit 0  done and good      exit 1  done, but the result is bad (or an internal error)      exit 2  bad input
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(
        _name, "1"
    )  # before NumPy is imported: the bits of a decision must not hang on the core count

VERBS = {
    "demo": "Run one whole batch in closed loop over MQTT, beside the best recipe for the same donor; write a report.",
    "serve": "Run the twin as an MQTT service for one reactor or a fleet.",
    "edge": "Run a virtual bioreactor as an MQTT edge, or play a recorded batch.",
    "simulate": "Run a closed-loop campaign of virtual donors under a policy.",
    "compare": "Put the policies of finished campaigns side by side.",
    "fit": "Fit the donor population to batch records; write a prior artefact.",
    "tune": "Tune process and measurement noise on recorded batches by innovation likelihood.",
    "condition": "Condition the prior on one batch's data: posterior, forecast, P(pass).",
    "whatif": "What an edit of the schedule would change: paired futures, differences with bands, P(pass).",
    "backtest": "Score forecasts on measured batches against persistence and the group mean.",
    "study": "Measure what is claimed of the estimator: calibration, faults, robustness, fusion, forecasts.",
    "rerun": "Run a tracked run once more and compare hashes or, of a sampler, statistics.",
    "replay": "Recompute every estimate and decision of a batch from its journal and compare.",
    "verify": "Check the hash chain of a journal.",
    "bench": "Time the estimator beside other libraries on one problem.",
    "report": "Write a batch's report: one self-contained HTML file.",
}
"""Every verb and what it does, in the order a newcomer meets them."""

USER_ERRORS = {
    "twin.config": ("ConfigError",),
    "twin.evidence": ("Refused",),
    "twin.units": ("UnitError",),
    "twin.records": ("DataError",),
    "twin.donors.artefact": ("ArtefactError",),
    "service.journal": ("JournalError",),
    "service.tracking.store": ("TrackingError",),
    "service.mqtt": ("BrokerError",),
}
"""Exceptions that are the user's to mend, by the module that raises them; their message is one line with the remedy."""

DONORS_EXTRA = ("pymc", "pytensor", "arviz", "nutpie", "h5netcdf", "netCDF4", "xarray", "numba")
"""Packages of the donor fit, which the demo and the service do without."""

TRACKING_EXTRA = ("mlflow", "sqlalchemy", "alembic")
"""Packages that keep runs, which only a tracked run and `celltwin rerun` need."""


class Verbs(TyperGroup):
    """A group that knows its verbs by name and imports one only to run it."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names of all verbs."""
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Name and one line of help, without the verb's module: enough for help and completion."""
        return TyperCommand(cmd_name, help=VERBS[cmd_name]) if cmd_name in VERBS else None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The verb itself, its module imported."""
        name, _, rest = super().resolve_command(ctx, args)
        return name, load(str(name)), rest


def load(verb: str) -> Any:
    """The command of `verb`, built from the signature and docstring of `service.cli.<verb>.<verb>`."""
    function = getattr(import_module(f"service.cli.{verb}"), verb)
    single = typer.Typer(add_completion=False, rich_markup_mode=None)
    single.command(verb)(function)
    return typer.main.get_command(single)


app = typer.Typer(cls=Verbs, add_completion=True, rich_markup_mode=None, no_args_is_help=True)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"celltwin {version('celltwin')}")
        raise typer.Exit


@app.callback()
def root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Digital twin of a perfused cell expansion: estimates, forecasts and advice over MQTT."""


def _is_users(error: Exception) -> bool:
    """Is `error` the user's to mend? Looks only at modules that are already imported."""
    if isinstance(error, (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError, ConnectionError)):
        return True
    known = (
        getattr(sys.modules[module], name, None)
        for module, names in USER_ERRORS.items()
        for name in names
        if module in sys.modules
    )
    return isinstance(error, tuple(kind for kind in known if isinstance(kind, type)))


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave with its exit code; a user's mistake is one line on stderr, never a traceback."""
    sys.exit(run(sys.argv[1:] if arguments is None else list(arguments)))


def run(arguments: list[str]) -> int:
    """Run one command line; returns the exit code."""
    from service.cli.console import speak_json

    debug = os.environ.get("CELLTWIN_DEBUG") == "1"
    speak_json("--json" in arguments)
    try:
        code = app(args=arguments, prog_name="celltwin", standalone_mode=False)
    except (typer.Abort, KeyboardInterrupt):
        print("celltwin: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has left; nobody is there to be told
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except SystemExit as leaving:  # `fail` and typer's own exits
        return leaving.code if isinstance(leaving.code, int) else 2 if leaving.code else 0
    except Exception as error:  # noqa: BLE001 - the outermost frame: whatever it is becomes one line
        return _tell(error, debug)
    return code if isinstance(code, int) else 0


def _tell(error: Exception, debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
    if usage := getattr(error, "format_message", None):  # a mistake in the command line itself
        context = getattr(error, "ctx", None)
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error, file=sys.stderr)
            return 2
        where = context.command_path if context is not None else "celltwin"
        print(f"celltwin: {' '.join(usage().split())} (see {where} --help)", file=sys.stderr)
        return 2
    absent = (error.name or "").split(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if extra := "donors" if absent in DONORS_EXTRA else "tracking" if absent in TRACKING_EXTRA else None:
        print(
            f"celltwin: this needs {absent}: pip install 'celltwin[{extra}]' (in a checkout: make test)",
            file=sys.stderr,
        )
        return 2
    if _is_users(error):
        print(f"celltwin: {_one_line(error)}", file=sys.stderr)
        return 2
    print(
        f"celltwin: internal error: {type(error).__name__}: {_one_line(error)} (set CELLTWIN_DEBUG=1 for the traceback)",
        file=sys.stderr,
    )
    return 1
