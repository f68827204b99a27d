"""A new donor without a refit: Laplace at the mode, adapted importance sampling, Pareto-smoothed weights, and a gate.

    where       in (total, split) of the late loss of growth, where K_L and PD_max are no ridge (`twin.donors.ridge`)
    mode        L-BFGS by the adjoint, from the best of the population's draws
    Laplace     curvature by central differences of the gradients, all columns in one call
    proposal    a mixture of Student-t at the mode and at the peak with the shallow split held, moved three times to
                the weighted means and covariances of what it found, and on while k-hat is too high (population Monte
                Carlo: Cappe et al. 2008); draws are scrambled Sobol points. Without the other peaks k-hat stayed below
                .7 where half the posterior was missed
    weights     smoothed by a generalised Pareto distribution, whose shape k-hat says whether they may be used
                (Vehtari et al. 2024: not above .7)

The gate asks for a refit where weights cannot be trusted, where readings lie further from the model than its noise allows
whatever the donor's kinetics (posterior predictive check, which is on the side of staying silent), or where only kinetics
unlike those of any donor explain them (Mahalanobis distance).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.linalg import solve_triangular
from scipy.optimize import minimize
from scipy.special import gammainc, gammaincc, gammaincinv, gammaln, logsumexp, ndtri
from scipy.stats import qmc

from twin.donors.artefact import Artefact
from twin.donors.data import prepare_one
from twin.donors.prior import DonorPrior
from twin.donors.ridge import Ridge, bent, ridge, slopes, straight, volume
from twin.donors.sample import import_arviz
from twin.donors.target import SEED, Target, population_of
from twin.process import Process
from twin.records import RecordedBatch

LEAST = 0.005
"""Share of the posterior below which a part of the proposal is dropped."""
KHAT = 0.7
OUTLYING, UNLIKE = 0.99, "unlike the donors of the prior"
"""A donor beyond this share of the population is unlike those that the prior was fitted to."""
CONTRADICTED = 1e-3
"""Posterior predictive probability below which the data contradict the model."""


class Settings(NamedTuple):
    """How to sample. Numbers of draws are powers of two: Sobol points are balanced only then."""

    stages: tuple[int, ...] = (1024, 2048, 4096, 8192)  # draws of each proposal; the last one's are kept
    again: int = 1  # times the last stage is repeated from where it led, while k-hat is above the limit
    freedom: float = 50.0  # degrees of freedom of the proposals
    starts: int = 256
    seed: int = 1


class Straight(NamedTuple):
    """A target in the coordinates that are sampled in."""

    target: Target
    at: Ridge | None

    def log_density(self, v: Float[np.ndarray, "m d"]) -> Float[np.ndarray, " m"]:
        return self.target.log_density(bent(v, self.at))

    def value_and_gradient(
        self, v: Float[np.ndarray, "m d"]
    ) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, "m d"]]:
        value, gradient = self.target.value_and_gradient(bent(v, self.at))
        return value, slopes(gradient, v, self.at)

    def draws_of_prior(self, n: int, seed: int) -> Float[np.ndarray, "n d"]:
        """Of a Gaussian with the prior's moments, its centre first."""
        centre, cov = self.target.prior
        points = centre + _normal(n, centre.size, np.random.default_rng([seed, 3])) @ np.linalg.cholesky(cov).T
        return straight(np.vstack([centre, points]), self.at)


class Around(NamedTuple):
    """A Gaussian that stands for a part of the posterior."""

    at: Float[np.ndarray, " d"]
    cov: Float[np.ndarray, "d d"]
    share: float = 1.0  # of the proposal's draws, up to a common factor


@dataclass(frozen=True, slots=True, eq=False)
class Update:
    """Posterior of one donor, all in ln: the learnt kinetics, the state at inoculation (`SEED`), and how noise grows."""

    names: tuple[str, ...]
    mean: Float[np.ndarray, " d"]
    cov: Float[np.ndarray, "d d"]
    draws: Float[np.ndarray, "n d"]
    weights: Float[np.ndarray, " n"]  # sum to 1
    khat: float
    ess: float
    agreement: Mapping[str, float]  # posterior predictive probability by channel, and of "all"
    share: float  # of the population's donors that lie nearer its centre than this one's mean
    provenance: Mapping[str, str]
    log_evidence: float = float("nan")  # ln p(readings | population), natural units; as sure as `khat` says

    @property
    def contradicted(self) -> tuple[str, ...]:
        """Channels whose readings the model cannot explain, the limit shared out over all that were asked."""
        return tuple(c for c, p in self.agreement.items() if p < CONTRADICTED / len(self.agreement))

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why a refit is due, in words; empty where it is not."""
        said: list[str] = []
        if not self.khat <= KHAT:  # NaN too
            said.append(f"k-hat {self.khat:.2f} is above {KHAT:g}: the weights cannot be trusted")
        if self.contradicted:
            said.append(f"the data contradict the model ({', '.join(self.contradicted)})")
        if self.share > OUTLYING:
            said.append(f"{UNLIKE} ({100.0 * self.share:.1f} % of them lie nearer the centre)")
        return tuple(said)

    @property
    def refit_due(self) -> bool:
        return bool(self.reasons)

    def hand_over(self) -> DonorPrior:
        """Prior of a filter for this donor's next batch, with the full covariance.

        Not for the batch that it was learnt from: its readings would count twice.
        """
        p = self.names.index(SEED[0])
        return DonorPrior(self.names[:p], self.mean[:p], self.cov[:p, :p], self.provenance)


def update(
    artefact: Artefact,
    process: Process,
    record: RecordedBatch,
    until: float | None = None,
    settings: Settings = Settings(),  # noqa: B008 - immutable
) -> Update:
    """Posterior of the donor of one batch as it was known by day `until` [d].

    Raises FitError for a batch that says nothing of its donor (`prepare_one`).
    """
    data = prepare_one(record, process, until)
    basis = {"basis": f"update of donor {record.donor} by batch {record.id}", "data": data.sha256}
    basis |= {k: v for k, v in artefact.prior.provenance.items() if k == "artefact"}
    return posterior(Target(population_of(artefact, process), data, process), settings, basis)


def posterior(target: Target, settings: Settings = Settings(), provenance: Mapping[str, str] | None = None) -> Update:  # noqa: B008
    """Posterior of one donor by importance sampling. Deterministic: same arguments, same bits."""
    sampled = Straight(target, ridge(target.data, ("u",) * len(target.names), "u", target.names))
    around = modes(sampled, settings)
    rng = np.random.default_rng([settings.seed, 4])
    stages = (*settings.stages, *(settings.stages[-1:] * settings.again))
    draws, weights, khat, evidence = np.empty((0, around[0].at.size)), np.empty(0), float("inf"), float("-inf")
    for stage, n in enumerate(stages, start=1):
        draws, log_proposal, belongs = _proposed(around, settings.freedom, n, rng)
        weights, khat, evidence = smoothed_mean(sampled.log_density(draws) - log_proposal)
        if stage == len(stages) or (stage >= len(settings.stages) and khat <= KHAT):
            break
        around = _moved(draws, belongs * weights, around)
    draws = bent(draws, sampled.at)
    mean = weights @ draws
    off = draws - mean
    return Update(
        target.names, mean, (weights[:, None] * off).T @ off, draws, weights, khat,
        float(1.0 / np.sum(weights**2)), agreement(target, draws, weights, rng), _nearer(target, mean), provenance or {},
        evidence + volume(sampled.at),
    )  # fmt: skip


def modes(target: Straight, settings: Settings = Settings()) -> tuple[Around, ...]:  # noqa: B008
    """The mode, and where the density peaks with the split of a ridge held at the population's, each with its Laplace.

    All in the metric of the prior; curvature by central differences of the adjoint's gradients.
    """
    points = target.draws_of_prior(settings.starts, settings.seed)
    centre, d = points[0], points.shape[1]
    cov = np.cov(points[1:].T)
    root, sd = np.linalg.cholesky(cov), np.sqrt(np.diagonal(cov))
    best = points[int(np.argmax(target.log_density(points)))]
    found = [_laplace(target, _peak(target, best, sd, np.ones(d, dtype=bool)), root)]
    for k in () if target.at is None else target.at.limit:
        free, begun = np.arange(d) != k, found[0].at.copy()
        begun[k] = centre[k]
        found.append(_laplace(target, _peak(target, begun, sd, free), root))
    return tuple(found)


def _peak(target: Straight, begun: np.ndarray, sd: np.ndarray, free: np.ndarray) -> np.ndarray:
    """Where the density peaks over the `free` coordinates, the others held."""

    def at(v: np.ndarray) -> np.ndarray:
        u = begun.copy()
        u[free] += sd[free] * v
        return u

    def descend(v: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = target.value_and_gradient(at(v)[None])
        return (-float(value[0]), -(sd * gradient[0])[free]) if np.isfinite(value[0]) else (1e10, np.zeros_like(v))

    options = {"maxiter": 100, "maxcor": 30, "ftol": 1e-7}
    return at(minimize(descend, np.zeros(int(free.sum())), jac=True, method="L-BFGS-B", options=options).x)


def _laplace(target: Straight, at: np.ndarray, root: np.ndarray) -> Around:
    """Inverse curvature at a point, nowhere wider than twice the prior."""
    step, d = 1e-3, at.size
    moved = np.vstack([step * np.eye(d), -step * np.eye(d)])
    gradients = target.value_and_gradient(at + moved @ root.T)[1] @ root
    curvature = -(gradients[:d] - gradients[d:]) / (2.0 * step)
    values, vectors = np.linalg.eigh((curvature + curvature.T) / 2.0)
    spread = root @ (vectors / np.sqrt(np.maximum(values, 0.25)))
    return Around(at, spread @ spread.T)


def pareto_smoothed(log_weights: Float[np.ndarray, " n"]) -> tuple[Float[np.ndarray, " n"], float]:
    """Weights that sum to 1, their largest smoothed, and k-hat; k-hat is infinite where no more than a few count at all."""
    return smoothed_mean(log_weights)[:2]


def smoothed_mean(log_weights: Float[np.ndarray, " n"]) -> tuple[Float[np.ndarray, " n"], float, float]:
    """As `pareto_smoothed`, and ln of the mean of the weights, their largest smoothed: of importance weights, ln of the integral."""
    good = np.isfinite(log_weights)
    if good.sum() < max(25, 0.01 * good.size):
        weights = np.where(good, 1.0, 0.0)
        mean = float(logsumexp(log_weights[good])) - np.log(good.size) if good.any() else float("-inf")
        return weights / max(weights.sum(), 1.0), float("inf"), float(mean)
    floor = log_weights[good].max() - 700.0
    smoothed, khat = import_arviz().psislw(np.where(good, np.maximum(log_weights, floor), floor), normalize=False)
    total = float(logsumexp(smoothed))
    return np.exp(np.asarray(smoothed) - total), float(khat), total - float(np.log(good.size))


def _nearer(target: Target, mean: np.ndarray) -> float:
    """Share of the population (a Gaussian of its moments) that lies nearer its centre than `mean` by Mahalanobis distance."""
    centre, cov = target.population.moments
    off = mean[: centre.size] - centre
    return float(gammainc(centre.size / 2.0, off @ np.linalg.solve(cov, off) / 2.0))


def agreement(
    target: Target, draws: np.ndarray, weights: np.ndarray, rng: np.random.Generator, n: int = 400
) -> dict[str, float]:
    """Posterior predictive probability of a worse fit, by channel and of "all".

    The discrepancy is the sum of squared normal scores of the residuals, which for replicated readings is chi-square
    whatever the donor: the probability is the mean of its tail over the posterior. Noise grows as in the population, not as
    in the donor's posterior: else readings that make no sense are put down to noise, and nothing contradicts anything.
    """
    u, p = draws[rng.choice(len(draws), size=n, p=weights)], draws.shape[1] - len(target.channels)
    centre, cov = target.prior
    u[:, p:] = centre[p:] + np.sqrt(np.diagonal(cov))[p:] * rng.standard_normal((n, len(target.channels)))
    z, channel = target.scores(u)
    groups = {c: channel == k for k, c in enumerate(target.channels)} | {"all": np.ones(len(channel), dtype=bool)}
    return {
        c: float(np.mean(gammaincc(rows.sum() / 2.0, np.square(z[rows]).sum(axis=0) / 2.0)))
        for c, rows in groups.items()
        if rows.any()
    }


def _normal(n: int, d: int, rng: np.random.Generator) -> Float[np.ndarray, "n d"]:
    """Scrambled Sobol points as normal draws."""
    return ndtri(np.clip(qmc.Sobol(d, rng=rng).random(n), 1e-12, 1.0 - 1e-12))


def _proposed(
    around: Sequence[Around], freedom: float, n: int, rng: np.random.Generator
) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, " n"], Float[np.ndarray, "k n"]]:
    """Draws of a mixture of multivariate Student-t with the Gaussians' covariances.

    Returns them with their log-density and the probability that each came from each part.
    """
    d, shares = around[0].at.size, np.array([a.share for a in around]) / sum(a.share for a in around)
    roots = [np.linalg.cholesky(a.cov * (freedom - 2.0) / freedom) for a in around]
    points = np.clip(qmc.Sobol(d + 2, rng=rng).random(n), 1e-12, 1.0 - 1e-12)
    z = ndtri(points[:, :d]) * np.sqrt(freedom / (2.0 * gammaincinv(freedom / 2.0, points[:, d])))[:, None]
    which = np.searchsorted(np.cumsum(shares)[:-1], points[:, d + 1])
    draws = np.empty((n, d))
    for k, (a, root) in enumerate(zip(around, roots, strict=True)):
        draws[which == k] = a.at + z[which == k] @ root.T
    constant = gammaln((freedom + d) / 2.0) - gammaln(freedom / 2.0) - d / 2.0 * np.log(freedom * np.pi)
    each = np.empty((len(around), n))
    for k, (a, root) in enumerate(zip(around, roots, strict=True)):
        off = np.sum(solve_triangular(root, (draws - a.at).T, lower=True) ** 2, axis=0)
        normal = constant + np.log(shares[k]) - np.log(np.diagonal(root)).sum()
        each[k] = normal - (freedom + d) / 2.0 * np.log1p(off / freedom)
    density = np.asarray(logsumexp(each, axis=0))
    return draws, density, np.exp(each - density)


def _moved(draws: np.ndarray, weights: np.ndarray, around: Sequence[Around]) -> tuple[Around, ...]:
    """Every part moved to the weighted mean and covariance of its draws, the covariance held back where few count."""
    found: list[Around] = []
    for own, before in zip(weights, around, strict=True):
        share = float(own.sum())
        if share < LEAST:
            continue
        own = own / share
        mean = own @ draws
        off = draws - mean
        ess = 1.0 / np.sum(own**2)
        trust = ess / (ess + mean.size)
        cov = trust * (own[:, None] * off).T @ off + (1.0 - trust) * before.cov
        found.append(Around(mean, cov, share))
    return tuple(found)
