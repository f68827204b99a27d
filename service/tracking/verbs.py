"""What is particular to each tracked verb: what goes in, what comes out, and which of it must come out the same again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from service.tracking import digest

Role = Literal["data", "prior", "process", "file"]
"""data: measurements · prior: a donor-prior artefact · process: a process with all it names · file: another configuration."""

GENERATED = ("synthetic:", "recorded:")
"""Data that the program makes itself: code and process say all about them."""

ANSWER = "answer.json"


@dataclass(frozen=True, slots=True)
class Verb:
    """One tracked verb."""

    inputs: Mapping[str, Role]  # by parameter
    out: str | None = None  # parameter that names the folder it writes
    passing: tuple[str, ...] = ()  # entries of the answer that tell of time and place, by dotted path
    files: Mapping[str, Callable[[Path], str]] = field(default_factory=dict[str, Callable[[Path], str]])
    # by name in the folder it writes: the digest that must come out the same


def _manifest(path: Path) -> str:
    return digest.of_json(
        path, ("sha256", "provenance.command", "provenance.packages", "provenance.python", "files")
    )  # the files are digested themselves


VERBS: Mapping[str, Verb] = {
    "fit": Verb(
        {"data": "data", "preset": "process", "mapping": "file", "base": "prior"}, "prior", ("prior", "wall_s"),
        {"summary.json": digest.of_json, "draws.npz": digest.of_arrays, "manifest.json": _manifest},
    ),
    "condition": Verb({"data": "data", "prior": "prior", "preset": "process", "mapping": "file"}),
    "simulate": Verb(
        {"config": "process", "scenario": "file", "prior": "prior"}, "out",
        ("campaign.wall_s", "campaign.prior", "campaign.batches"), {"batches.parquet": digest.of_table},
    ),
}  # fmt: skip
"""The tracked verbs."""


def sampled(verb: str, parameters: Mapping[str, Any]) -> bool:
    """Is the result a sampler's, which owes equal statistics rather than equal bits?"""
    return verb == "fit" and parameters.get("method") == "mcmc"


def is_place(role: Role, given: str) -> bool:
    """Does the value of an input name a file or folder, rather than a shipped configuration or generated data?"""
    if role == "data":
        return not given.startswith(GENERATED)
    return role == "prior" or "/" in given or "\\" in given or given.endswith((".yaml", ".yml"))


def digest_of(role: Role, given: str) -> str | None:
    """SHA-256 of an input; None for what the code holds or makes, and for what is not there. Raises ConfigError."""
    if role == "process":
        from twin.config import load_config

        return digest.of_value(load_config(given))
    if not is_place(role, given):
        return None
    try:
        return digest.of_prior(Path(given)) if role == "prior" else digest.of_path(Path(given))
    except OSError:
        return None


def seeds(verb: str, parameters: Mapping[str, Any]) -> dict[str, int]:
    """The seeds that a run was given; of a campaign the first and the last, which number its donors too."""
    if verb == "simulate":
        first = int(parameters["first"])
        return {"first": first, "last": first + int(parameters["donors"]) - 1}
    source, _, number = str(parameters["data"]).partition(":")
    made = {"data": int(number)} if source == "synthetic" and number.isdigit() else {}
    own = {"seed": int(parameters["seed"])} if verb == "condition" or sampled(verb, parameters) else {}
    return made | own


def outputs(verb: str, answer: Any, folder: Path | None) -> dict[str, str]:
    """SHA-256 of everything a run gave that time and place have no part in, by name."""
    found = {} if answer is None else {ANSWER: digest.of_value(answer, VERBS[verb].passing)}
    for name, of in VERBS[verb].files.items():
        if folder is not None and (folder / name).is_file():
            found[name] = of(folder / name)
    return found


def written(verb: str, folder: Path | None) -> dict[str, Path]:
    """Files of a run that are kept with it, by name."""
    names = (*VERBS[verb].files, "posterior.nc") if folder is not None else ()
    return {name: folder / name for name in names if folder is not None and (folder / name).is_file()}


def metrics(answer: Any, short: int = 4) -> dict[str, float]:
    """The numbers of an answer by dotted name; lists up to `short` by position, longer ones (bands) left out."""
    found: dict[str, float] = {}

    def walk(value: Any, at: str) -> None:
        if isinstance(value, Mapping):
            for k, v in value.items():
                walk(v, f"{at}.{k}" if at else str(k))
        elif isinstance(value, (list, tuple)) and len(value) <= short:
            for k, v in enumerate(value):
                walk(v, f"{at}.{k}")
        elif isinstance(value, (bool, int, float)):
            found[at] = float(value)

    walk(answer, "")
    return found


def statistics(answer: Any) -> dict[str, tuple[float, float]]:
    """Mean and spread of each learnt parameter of a sampled fit with their Monte-Carlo standard errors, by name."""
    found: dict[str, tuple[float, float]] = {}
    for name, row in (answer or {}).get("parameters", {}).items():
        for what in ("mean_ln", "sd_ln"):
            if row.get(f"{what}_mcse") is not None:
                found[f"{what} {name}"] = (float(row[what]), float(row[f"{what}_mcse"]))
    return found
