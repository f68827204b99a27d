"""Records to posterior to donor prior, with the diagnostics that a fit must pass before anything rests on it."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float

from twin.donors.artefact import Artefact, fingerprint, save_prior, unlike
from twin.donors.data import FitData, FitError, prepare
from twin.donors.model import CENTRED, FIT_PARAMETERS, SPAN, build, population, preset_population, starting_scales
from twin.donors.prior import DonorPrior
from twin.donors.ridge import ridge, straightened
from twin.donors.sample import Density, density, import_arviz, nuts
from twin.process import Process
from twin.records import RecordedBatch

if TYPE_CHECKING:
    import arviz
    import pymc as pm

PACKAGES = ("celltwin", "numpy", "scipy", "casadi", "pymc", "pytensor", "nutpie", "arviz")
POPULATION = (
    "m", "L_stds", "L_corr", "theta", "effect", "yield", "yield_sd", "ln_collected", "collected_sd", "ln_phi", "phi_sd", "q",
    "q_static",
)  # fmt: skip
"""What the diagnostics look at: everything the prior is made of."""


class Settings(NamedTuple):
    """How to sample."""

    draws: int = 600
    tune: int = 300
    chains: int = 4
    seed: int = 1
    cores: int = 2
    centred: bool = CENTRED
    span: float = SPAN  # step of the integration grid [d]


class Limits(NamedTuple):
    """What a posterior must meet (Vehtari 2021 for R-hat and ESS; Betancourt 2016 for E-BFMI)."""

    r_hat: float = 1.01
    ess: float = 400.0
    divergent: float = 0.001  # share of draws
    e_bfmi: float = 0.3


@dataclass(frozen=True, slots=True)
class Diagnostics:
    """Worst figures over the population, the donors and the noise, and what is wrong with them."""

    r_hat: float
    ess_bulk: float
    ess_tail: float
    divergent: int
    draws: int
    e_bfmi: float
    worst: str  # the parameter with the largest R-hat
    problems: tuple[str, ...]


class Recovery(NamedTuple):
    """Cells out over cells in of a stage that grows none."""

    median: float  # over donors
    q05: float  # of the median: how well it is known
    q95: float
    spread: float  # of ln over donors, counting error taken out


class Effect(NamedTuple):
    """What one standard deviation of a covariate moves in ln of a kinetic parameter."""

    covariate: str
    parameter: str
    mean: float
    q05: float
    q95: float

    @property
    def verdict(self) -> str:
        """`no information` where the 90 % interval holds 0: with few donors the usual answer, and no proof of no effect."""
        return "no information" if self.q05 <= 0.0 <= self.q95 else "raises" if self.mean > 0.0 else "lowers"


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """A posterior, what it says of a new donor, and what it rests on."""

    prior: DonorPrior
    draws: Float[np.ndarray, "n p"]  # ln kinetics of a donor not yet seen, one a posterior draw
    posterior: arviz.InferenceData
    diagnostics: Diagnostics
    data: FitData
    settings: Settings
    sampler: str

    @property
    def stages(self) -> dict[str, Recovery]:
        """Recoveries by stage; empty where no cells were counted around the bioreactor."""
        known = self.posterior["posterior"]
        if "yield" not in known:
            return {}
        m, s = (np.asarray(known[k]) for k in ("yield", "yield_sd"))
        m, s = m.reshape(-1, m.shape[-1]), s.reshape(-1, s.shape[-1])
        low, mid, high = np.exp(np.quantile(m, [0.05, 0.5, 0.95], axis=0))
        return {
            str(n): Recovery(float(mid[k]), float(low[k]), float(high[k]), float(np.median(s[:, k])))
            for k, n in enumerate(known["yield"]["stage"].values)
        }

    @property
    def effects(self) -> tuple[Effect, ...]:
        """Effects of the covariates on the well-informed kinetics."""
        known = self.posterior["posterior"]
        if "effect" not in known:
            return ()
        draws = np.asarray(known["effect"])
        draws = draws.reshape(-1, *draws.shape[2:])
        low, high = np.quantile(draws, [0.05, 0.95], axis=0)
        names, shared = (known["effect"][k].values for k in ("covariate", "shared"))
        return tuple(
            Effect(str(c), str(p), float(draws[:, i, j].mean()), float(low[i, j]), float(high[i, j]))
            for i, c in enumerate(names)
            for j, p in enumerate(shared)
        )


def fit(
    records: Sequence[RecordedBatch],
    process: Process,
    names: tuple[str, ...] = FIT_PARAMETERS,
    settings: Settings = Settings(),  # noqa: B008 - immutable
    tick: Callable[[float], None] | None = None,
    covariates: Sequence[str] = (),
) -> Fit:
    """Fit the population to the records. Raises FitError for data that cannot carry a fit; judge `Fit.diagnostics` before use."""
    data = prepare(records, process, covariates)
    posterior, sampler = sample_fit(data, process, names, settings, tick)
    diagnostics = diagnose(posterior)
    draws = new_donor(posterior, process, names, np.random.default_rng([settings.seed, 28]), data.covariates)
    prior = DonorPrior(
        names,
        draws.mean(axis=0),
        np.cov(draws.T),
        {"basis": f"hierarchical fit of {len(data.donors)} donors", "data": data.sha256},
    )
    return Fit(prior, draws, posterior, diagnostics, data, settings, sampler)


def sample_fit(
    data: FitData,
    process: Process,
    names: tuple[str, ...] = FIT_PARAMETERS,
    settings: Settings = Settings(),  # noqa: B008 - immutable
    tick: Callable[[float], None] | None = None,
) -> tuple[arviz.InferenceData, str]:
    """Posterior of the model of the data, and the sampler that drew it. `tick` is called with 1 for every chain that ends."""
    model = build(data, process, names, centred=settings.centred, span=settings.span)
    return nuts(
        model, coordinates(model, data, process, names), draws=settings.draws, tune=settings.tune, chains=settings.chains, seed=settings.seed, cores=settings.cores,
        tick=tick,
    )  # fmt: skip


def coordinates(model: pm.Model, data: FitData, process: Process, names: tuple[str, ...]) -> Density:
    """The model's density where a sampler walks well: from the preset's spreads, ridges straightened."""
    target = density(model, starting_scales(process, names))
    return straightened(target, ridge(data, target.owners, "theta_given", population(names)[1]))


def new_donor(
    posterior: arviz.InferenceData,
    process: Process,
    names: tuple[str, ...],
    rng: np.random.Generator,
    covariates: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> Float[np.ndarray, "n p"]:
    """ln kinetics of donors not yet seen, one a posterior draw, in the order of `names`; their covariates are not known.

    m + L z for those whose population was learnt, the population's own uncertainty included; the preset for the others.
    """
    shared, given = population(names)
    m, root = population_draws(posterior, covariates).values()
    own = m + np.einsum("nij,nj->ni", root, rng.standard_normal(m.shape))
    median, spread = preset_population(process, given)
    rest = median + spread * rng.standard_normal((len(m), len(given)))
    columns = dict(zip((*shared, *given), np.hstack([own, rest]).T, strict=True))
    return np.stack([columns[n] for n in names], axis=1)


def population_draws(
    posterior: arviz.InferenceData, covariates: Mapping[str, np.ndarray] = MappingProxyType({})
) -> dict[str, np.ndarray]:
    """Draws of the population: centres `m` [n, s] and roots `root` [n, s, s] of the covariances of ln kinetics.

    What covariates explain is part of a new donor's spread: his are not known.
    """
    p = posterior["posterior"]
    m = np.asarray(p["m"])
    m = m.reshape(-1, m.shape[-1])
    scale = np.asarray(p["L_stds"]).reshape(m.shape)
    corr = np.asarray(p["L_corr"]).reshape(-1, m.shape[1], m.shape[1])
    root = scale[:, :, None] * np.linalg.cholesky(corr + 1e-10 * np.eye(m.shape[1]))
    if covariates:
        effect = np.asarray(p["effect"]).reshape(len(m), len(covariates), m.shape[1])
        shared = np.atleast_2d(np.cov(np.stack(list(covariates.values())), bias=True))
        explained = np.einsum("ncs,cd,ndt->nst", effect, shared, effect)
        root = np.linalg.cholesky(root @ np.swapaxes(root, 1, 2) + explained)
    return {"m": m, "root": root}


def diagnose(posterior: arviz.InferenceData, limits: Limits = Limits()) -> Diagnostics:  # noqa: B008 - immutable
    """R-hat, effective sample sizes, divergences and E-BFMI, and what to do about them."""
    az = import_arviz()
    names = [n for n in POPULATION if n in posterior.posterior]
    with np.errstate(all="ignore"):  # the diagonal of a correlation never varies
        table = az.summary(posterior, var_names=names, kind="diagnostics", round_to="none")
    table = table[[not _constant(str(name)) for name in table.index]]
    stats = posterior.sample_stats
    divergent = int(np.asarray(stats["diverging"]).sum()) if "diverging" in stats else 0
    draws = int(np.prod(np.asarray(posterior.posterior["m"]).shape[:2]))
    energy = float(np.min(az.bfmi(posterior))) if "energy" in stats else float("nan")
    r_hat, bulk, tail = (
        float(f(table[c])) for f, c in ((np.nanmax, "r_hat"), (np.nanmin, "ess_bulk"), (np.nanmin, "ess_tail"))
    )
    problems: list[str] = []
    if stuck := [str(n) for n in table.index[~np.isfinite(table["r_hat"])]]:
        problems.append(f"{len(stuck)} parameters never moved or are no numbers ({stuck[0]}): raise --tune")
    if r_hat > limits.r_hat:
        problems.append(
            f"R-hat {r_hat:.3f} of {table['r_hat'].idxmax()} is above {limits.r_hat}: chains disagree; raise --tune and --draws"
        )
    if bulk < limits.ess or tail < limits.ess / 2.0:
        problems.append(
            f"effective sample size {bulk:.0f} (tails {tail:.0f}) is under {limits.ess:.0f} (tails {limits.ess / 2.0:.0f}): raise --draws"
        )
    if divergent > limits.divergent * draws:
        problems.append(
            f"{divergent} of {draws} draws diverged: raise --tune, or try the other parametrisation (--centred/--non-centred)"
        )
    if "energy" in stats and not energy >= limits.e_bfmi:
        problems.append(f"E-BFMI {energy:.2f} is under {limits.e_bfmi}: raise --tune, or try the other parametrisation")
    return Diagnostics(r_hat, bulk, tail, divergent, draws, energy, str(table["r_hat"].idxmax()), tuple(problems))


def _constant(name: str) -> bool:
    """Is this the diagonal of a correlation matrix?"""
    inside = name.partition("[")[2].rstrip("]").split(", ")
    return name.startswith("L_corr[") and len(inside) == 2 and inside[0] == inside[1]


def demand_sound(diagnostics: Diagnostics) -> None:
    """Raises FitError with the advice where a posterior must not become a prior."""
    if diagnostics.problems:
        raise FitError("the fit did not converge: " + "; ".join(diagnostics.problems))


class Succession(NamedTuple):
    """A fit that takes the place of an earlier one, with more donors."""

    version: int  # 1 follows a prior that follows none
    sha256: str  # of the manifest of the prior that is succeeded
    added: tuple[str, ...]
    moved: Mapping[str, tuple[float, float]]  # by kinetic parameter: centre in sd of before, and sd over sd of before


def demand_successor(before: Artefact, donors: Sequence[str], process: Process) -> None:
    """Raises FitError where data of these donors cannot succeed `before`: another process, one of its donors missing, none new."""
    if why := unlike(before, process):
        raise FitError(f"the prior to follow {why}")
    told = before.manifest["provenance"]
    if told.get("method") == "em":
        raise FitError(
            "the prior to follow was made by --method em, which names batches, not donors: fit without --follows"
        )
    known = set(told.get("donors", ()))
    if missing := sorted(known - set(donors)):
        raise FitError(
            f"the prior to follow rests on {', '.join(missing)}, who are not in the data: add their batches, or leave --follows out"
        )
    if known == set(donors):
        raise FitError("the prior to follow rests on the same donors: there is nothing new to learn")


def succeed(before: Artefact, result: Fit, process: Process) -> Succession:
    """What is new since `before`. Raises FitError as `demand_successor`."""
    demand_successor(before, result.data.donors, process)
    told = before.manifest["provenance"]
    added = set(result.data.donors) - set(told.get("donors", ()))
    shared = [n for n in result.prior.names if n in before.prior.names]
    moved: dict[str, tuple[float, float]] = {}
    for n in shared:
        i, k = before.prior.names.index(n), result.prior.names.index(n)
        sd = float(before.prior.cov[i, i]) ** 0.5
        moved[n] = (
            float(result.prior.mean[k] - before.prior.mean[i]) / sd,
            float(result.prior.cov[k, k]) ** 0.5 / sd,
        )
    version = int(told.get("follows", {}).get("version", 0)) + 1
    return Succession(version, str(before.manifest["sha256"]), tuple(sorted(added)), moved)


def save_fit(
    result: Fit,
    process: Process,
    folder: Path,
    command: str,
    *,
    whole: bool = True,
    keep: int = 500,
    follows: Succession | None = None,
) -> Path:
    """Write the artefact: `keep` thinned draws, and the whole posterior unless `whole` is False. Returns the manifest."""
    az = import_arviz()
    names = [n for n in (*POPULATION, "L_corr", "ln_phi", "phi_sd") if n in result.posterior.posterior]
    table = az.summary(
        result.posterior, var_names=[n for n in names if n != "theta"], kind="stats", hdi_prob=0.9, round_to=6
    )
    thin = max(1, len(result.draws) // keep)
    summary = {
        "population": {str(k): {"mean": float(r["mean"]), "sd": float(r["sd"])} for k, r in table.iterrows()},
        "donors": len(result.data.donors),
    }
    return save_prior(
        folder, result.prior, result.draws[::thin][:keep], summary, provenance(result, process, command, follows),
        result.posterior if whole else None, {k: v[::thin][:keep] for k, v in population_draws(result.posterior, result.data.covariates).items()},
    )  # fmt: skip


def provenance(result: Fit, process: Process, command: str, follows: Succession | None = None) -> dict[str, Any]:
    """All that is needed to tell where a prior came from and to make it again."""
    d = result.diagnostics
    return {
        "command": command,
        **({} if follows is None else {"follows": follows._asdict()}),
        "process": process.name,
        "process_sha256": fingerprint(process),
        "donors": list(result.data.donors),
        "data_sha256": result.data.sha256,
        "settings": result.settings._asdict(),
        "sampler": result.sampler,
        "diagnostics": {
            "r_hat": d.r_hat, "ess_bulk": d.ess_bulk, "ess_tail": d.ess_tail, "divergent": d.divergent, "draws": d.draws,
            "e_bfmi": d.e_bfmi if np.isfinite(d.e_bfmi) else None,
        },
        "packages": {name: v for name in PACKAGES if (v := _version(name))},
        "python": platform.python_version(),
    }  # fmt: skip


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
