"""A fitted donor prior as a folder of plain files: written once, checked at every load, never executed (no pickle).

    manifest.json   what it rests on, and the SHA-256 of every other file and of itself
    summary.json    mean and covariance of ln kinetics for a donor not yet seen; population and stage-yield summaries
    draws.npz       thinned draws of that donor, float64 [draw, parameter], and of the population's m and root (L)
    posterior.nc    the whole posterior (ArviZ netCDF); absent from shipped priors

Loading needs the first three only, and neither PyMC nor ArviZ. Hashes reveal damage and careless edits; they are no
signature: whoever can write the folder can forge it.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from twin.bioreactor import Kinetics
from twin.donors.prior import DonorPrior
from twin.process import Process

FORMAT = 1
MANIFEST, SUMMARY, DRAWS, POSTERIOR = "manifest.json", "summary.json", "draws.npz", "posterior.nc"
_MODEL = {
    "bioreactor": ("State", "Control", "Kinetics", "Vessel", "Medium", "Theta", "Physiology", "physiology", "rates"),
    "kinetics": None,
    "gas": None,
}  # what the model is: these definitions (None: all) of these modules


class ArtefactError(ValueError):
    """A prior artefact that must not be used; one line naming the file and the remedy."""


@dataclass(frozen=True, slots=True, eq=False)
class Artefact:
    """A checked artefact."""

    prior: DonorPrior
    draws: Float[np.ndarray, "n p"]  # of ln kinetics of a new donor
    summary: Mapping[str, Any]
    manifest: Mapping[str, Any]
    population: Mapping[str, np.ndarray] | None = None  # draws of m [n, s] and root [n, s, s], where the fit kept them


@cache
def model_version() -> str:
    """SHA-256 over the definitions of the process model, comments, docstrings and layout left out."""
    here = Path(__file__).resolve().parents[1]
    parts: list[str] = []
    for module, wanted in _MODEL.items():
        for node in ast.parse((here / f"{module}.py").read_text(encoding="utf-8")).body:
            name = getattr(node, "name", None)
            if isinstance(node, (ast.Expr, ast.Import, ast.ImportFrom)):
                continue
            if wanted is None or name in wanted:
                parts.append(ast.unparse(_Bare().visit(node)))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def fingerprint(process: Process) -> str:
    """SHA-256 over what a prior of this process rests on: kinetics, vessel, medium, donor spreads, state at inoculation."""
    parts = (*process.theta, process.initial, process.initial_sd, sorted(process.donor_sd.items()))
    return hashlib.sha256("\n".join(repr(p) for p in parts).encode()).hexdigest()


def unlike(artefact: Artefact, process: Process) -> str | None:
    """Why an artefact is not of this process, in words; None where it is (or was written before processes were hashed)."""
    told = artefact.manifest["provenance"]
    if told.get("process") != process.name:
        return f"was fitted to process {told.get('process')!r}, not {process.name!r}"
    if told.get("process_sha256", fingerprint(process)) != fingerprint(process):
        return (
            f"was fitted to another {process.name!r}: its kinetics, vessel, medium, spreads or start differ; fit again"
        )
    return None


class _Bare(ast.NodeTransformer):
    """Docstrings out."""

    def _strip(self, node: Any) -> Any:
        self.generic_visit(node)
        first = node.body[0]
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            node.body = node.body[1:] or [ast.Pass()]
        return node

    visit_FunctionDef = visit_ClassDef = _strip


def save_prior(
    folder: Path,
    prior: DonorPrior,
    draws: Float[np.ndarray, "n p"],
    summary: Mapping[str, Any],
    provenance: Mapping[str, Any],
    posterior: Any | None = None,
    population: Mapping[str, np.ndarray] | None = None,
) -> Path:
    """Write the artefact into `folder` (made if need be); returns the manifest's path.

    `posterior` is an ArviZ InferenceData, left out when None; `population` as in `Artefact`. Raises ArtefactError where files of another kind are there.
    """
    known = {MANIFEST, SUMMARY, DRAWS, POSTERIOR, "README.md"}
    if folder.is_file() or (folder.is_dir() and {p.name for p in folder.iterdir()} - known):
        raise ArtefactError(f"{folder}: holds other files; give a new folder for the prior")
    folder.mkdir(parents=True, exist_ok=True)
    content = {"names": list(prior.names), "mean": prior.mean.tolist(), "cov": prior.cov.tolist(), **summary}
    (folder / SUMMARY).write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    with (folder / DRAWS).open("wb") as stream:
        np.savez_compressed(stream, draws=np.asarray(draws, dtype=np.float64), **(population or {}))
    (folder / POSTERIOR).unlink(missing_ok=True)
    if posterior is not None:
        posterior.to_netcdf(str(folder / POSTERIOR), compress=True)
    files = {name: _sha256(folder / name) for name in (SUMMARY, DRAWS, POSTERIOR) if (folder / name).is_file()}
    manifest = {"format": FORMAT, "model_version": model_version(), "files": files, "provenance": dict(provenance)}
    manifest["sha256"] = _self_hash(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return folder / MANIFEST


def load_prior(path: Path | str) -> DonorPrior:
    """The donor prior of an artefact (folder or its manifest). Raises ArtefactError: see `load_artefact`."""
    return load_artefact(path).prior


def load_artefact(path: Path | str) -> Artefact:
    """Read and check an artefact. Raises ArtefactError where a file is missing, altered, or fitted to another model."""
    path = Path(path)
    folder = path.parent if path.name == MANIFEST else path
    manifest = _json(folder / MANIFEST)
    if manifest.get("format") != FORMAT:
        raise ArtefactError(
            f"{folder / MANIFEST}: format {manifest.get('format')!r}, expected {FORMAT}: fit again with this version"
        )
    if manifest.get("sha256") != _self_hash(manifest):
        raise ArtefactError(f"{folder / MANIFEST}: altered after it was written: fit again or restore the original")
    files = manifest.get("files", {})
    for name in {SUMMARY, DRAWS, *files}:
        if name not in files or Path(name).name != name or not (folder / name).is_file():
            raise ArtefactError(f"{folder / name}: missing from the prior artefact: restore it or fit again")
        if _sha256(folder / name) != files[name]:
            raise ArtefactError(
                f"{folder / name}: altered after it was written (SHA-256 differs): restore it or fit again"
            )
    if manifest.get("model_version") != model_version():
        raise ArtefactError(
            f"{folder}: fitted to model version {str(manifest.get('model_version'))[:12]}, this one is {model_version()[:12]}: "
            "fit again (celltwin fit) with this version"
        )
    summary = _json(folder / SUMMARY)
    names = tuple(summary["names"])
    mean, cov = np.array(summary["mean"], dtype=float), np.array(summary["cov"], dtype=float)
    with np.load(folder / DRAWS, allow_pickle=False) as arrays:
        draws, *more = (arrays[k] for k in ("draws", "m", "root") if k in arrays)
    p = len(names)
    sound = mean.shape == (p,) and cov.shape == (p, p) and draws.ndim == 2 and draws.shape[1] == p
    if (
        not sound
        or set(names) - set(Kinetics._fields)
        or not np.isfinite(cov).all()
        or np.linalg.eigvalsh(cov).min() <= 0
    ):
        raise ArtefactError(f"{folder / SUMMARY}: is no Gaussian over kinetics: fit again")
    provenance = {k: v if isinstance(v, str) else json.dumps(v) for k, v in manifest["provenance"].items()}
    return Artefact(
        DonorPrior(names, mean, cov, {**provenance, "artefact": manifest["sha256"]}), draws, summary, manifest,
        dict(zip(("m", "root"), more, strict=True)) if more else None,
    )  # fmt: skip


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _self_hash(manifest: Mapping[str, Any]) -> str:
    content = {k: v for k, v in manifest.items() if k != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArtefactError(
            f"{path}: {error.strerror}: a prior artefact is a folder with {MANIFEST}, written by celltwin fit"
        ) from error
    except ValueError as error:
        raise ArtefactError(f"{path}: not valid JSON: restore it or fit again") from error
    if not isinstance(content, dict):
        raise ArtefactError(f"{path}: not a JSON object: restore it or fit again")
    return content
