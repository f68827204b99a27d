"""Simulation-based calibration of the donor fit: parameters drawn from its own prior, readings from its own model, refitted.

The truth's rank among draws of its posterior is uniform where model and sampler fit each other (Talts 2018), and a 90 %
interval holds it in 90 of 100. This asks whether the fit computes the posterior that it says it does, with everything that is
approximate in it: short chains, unconverged ones, the start of every static culture centred on its own first count. It asks
nothing of the plant: `calibration` and `release` do.

A study: sampling times and controls of a synthetic history of `DONORS` donors (the mismatched plant's, only as a timetable),
one joint draw of parameters and readings, static cultures included, counts around the bioreactor left out (a potential of the
model, nothing that could be drawn). A draw is taken again where a reading is not finite or a bioreactor batch has fewer
positive counts than `twin.donors.data` accepts. That condition looks at readings alone: the posterior given readings that
meet it is the same, and ranks stay uniform.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import chi2, ncx2, norm

from simulators.history import synthetic_history
from simulators.study.base import Figure, Row, Study, Table
from twin.config import ConfigError, load_config
from twin.donors.data import COUNTS, FRACTIONS, MIN_COUNTS, STATIC_STAGES, FitData, Samples, prepare
from twin.donors.model import FIT_PARAMETERS, build, population
from twin.donors.prior import DonorPrior
from twin.process import Process
from twin.sensors import CHANNELS

DONORS = 4
DRAWS, TUNE, CHAINS = 250, 250, 2
RANKED = 99
"""Evenly spaced draws that a truth is ranked among: about as many as are independent."""
BINS = 5
LOOSE = 1.05
"""R-hat under which a posterior counts as converged here."""
TRIES = 8
"""Draws of the prior at a time; those not used say how wide it is."""
LEVEL = 0.9
Z95 = float(norm.ppf(0.975))


class Refit(NamedTuple):
    """One simulated study."""

    seed: int
    process: str
    donors: int = DONORS
    draws: int = DRAWS
    tune: int = TUNE


class Simulated(NamedTuple):
    """Readings drawn from the model's prior, and what they were drawn with."""

    data: FitData
    truth: Mapping[str, np.ndarray]  # by parameter [1, k]: one value, of kinetics one a donor
    spread: Mapping[str, float]  # prior standard deviation
    again: int  # draws that were not used


def jobs(batches: int, first: int, process: str, prior: DonorPrior | None) -> Sequence[Refit]:
    """One job a simulated study. The fit's prior is the process's preset: `prior` is not used."""
    missing = {*STATIC_STAGES, "bioreactor"} - {s.name for s in load_config(process).stages}
    if missing:
        raise ConfigError(f"process {process!r}: its stages lack {', '.join(sorted(missing))}: no history can be made")
    return [Refit(first + k, process) for k in range(batches)]


def timetable(process: Process, donors: int, seed: int) -> FitData:
    """Sampling times, noise and controls of a synthetic history, without counts around the bioreactor."""
    records = synthetic_history(process, donors, seed)
    kept = [replace(b, metadata={k: v for k, v in b.metadata.items() if not k.startswith("cells_")}) for b in records]
    return replace(prepare(kept, process), chain=None)


def told(data: FitData, readings: Mapping[str, np.ndarray]) -> FitData:
    """The data with other readings: `counts`, `analytes`, `fractions` and `seen_static` as the model's nodes hold them."""
    channels = list(data.samples)
    nodes = {
        "counts": [COUNTS],
        "analytes": [c for c in channels if c != COUNTS and c not in FRACTIONS],
        "fractions": [c for c in channels if c in FRACTIONS],
    }
    samples: dict[str, Samples] = dict(data.samples)
    for node, own in nodes.items():
        ends = np.cumsum([samples[c].time.size for c in own])[:-1]
        for c, y in zip(own, np.split(readings[node], ends) if own else [], strict=True):
            samples[c] = samples[c]._replace(value=y if c in FRACTIONS else np.exp(y) - CHANNELS[c].limit)
    static = data.static
    if static is not None:
        static = static._replace(samples=static.samples._replace(value=np.exp(readings["seen_static"])))
    return replace(data, samples=samples, static=static)


def simulate(data: FitData, process: Process, seed: int) -> Simulated:
    """The first usable draw from the model's prior. Same arguments, same readings."""
    import pymc as pm

    model = build(data, process)
    observed = [v.name for v in model.observed_RVs]
    names = [*observed, "theta", "m", "L_stds", "q"]
    again = 0
    while True:
        with model, np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "PyTensor could not link to a BLAS", UserWarning)  # nothing here uses one
            drawn = pm.draw(
                [model[n] for n in names],
                draws=TRIES,
                random_seed=int(np.random.SeedSequence([seed, again]).generate_state(1)[0]),
                mode="FAST_COMPILE",
            )
        values = dict(zip(names, map(np.asarray, drawn), strict=True))
        parameters = labelled(values, data)
        for k in range(TRIES):
            if all(np.isfinite(values[n][k]).all() for n in observed):
                made = told(data, {n: values[n][k] for n in observed})
                if _usable(made):
                    spread = {n: float(v.std()) for n, v in parameters.items()}
                    return Simulated(made, {n: v[[k]] for n, v in parameters.items()}, spread, again)
            again += 1


def _usable(data: FitData) -> bool:
    counts = data.samples[COUNTS]
    positive = np.bincount(counts.column[counts.value > 0.0], minlength=len(data.batches))
    return bool((positive >= MIN_COUNTS).all())


def labelled(values: Mapping[str, np.ndarray], data: FitData) -> dict[str, np.ndarray]:
    """Draws by parameter [n, k], all of ln: `theta` of every donor, `m`, `s` (spread over donors) and `q` (growth of noise)."""
    shared, _ = population(FIT_PARAMETERS)
    found = {f"theta {p}": values["theta"][:, :, k] for k, p in enumerate(FIT_PARAMETERS)}
    found |= {f"m {p}": values["m"][:, [k]] for k, p in enumerate(shared)}
    found |= {f"s {p}": np.log(values["L_stds"][:, [k]]) for k, p in enumerate(shared)}
    return found | {f"q {c}": np.log(values["q"][:, [k]]) for k, c in enumerate(data.samples)}


def ranks(draws: np.ndarray, truth: np.ndarray, kept: int = RANKED) -> np.ndarray:
    """How many of `kept` evenly spaced draws [n, k] are below the truth [k]: 0 to `kept`."""
    thin = np.linspace(0, len(draws) - 1, kept).round().astype(int)
    return (draws[thin] < truth).sum(axis=0)


def uniform_p(found: np.ndarray, kept: int = RANKED, bins: int = BINS) -> float:
    """Chi-square p of ranks [study, k] (0 to `kept`) against uniform; NaN for fewer than two studies with k above 1.

    Studies are independent; the k ranks within one are not (donors share a population). Their dependence is measured from
    how bin counts vary between studies, and statistic and degrees of freedom are corrected for it (Rao and Scott 1981, second
    order); with k = 1 this is Pearson's.
    """
    studies, k = found.shape
    place = np.minimum(found * bins // (kept + 1), bins - 1)
    counts = np.stack([(place == b).sum(axis=1) for b in range(bins)], axis=1)
    expected = studies * k / bins
    statistic = float(((counts.sum(axis=0) - expected) ** 2).sum() / expected)
    if k == 1:
        return float(chi2.sf(statistic, bins - 1))
    if studies < 2:
        return float("nan")
    design = np.cov(counts.T) * studies / expected
    trace, squares = float(np.trace(design)), float((design**2).sum())
    if squares == 0.0:  # every study alike: nothing is known of how they vary
        return float("nan") if statistic else 1.0
    effect, freedom = max(1.0, trace / (bins - 1)), trace**2 / squares
    return float(chi2.sf(statistic / effect * freedom / (bins - 1), freedom))


def power(n: int, ratio: float, bins: int = BINS, level: float = 0.01) -> float:
    """Probability that n independent ranks show, at `level`, posteriors whose standard deviations are too small by `ratio`."""
    edges = norm.cdf(ratio * norm.ppf(np.linspace(0.0, 1.0, bins + 1)))
    off = n * bins * float(((np.diff(edges) - 1.0 / bins) ** 2).sum())
    return float(ncx2.sf(chi2.isf(level, bins - 1), bins - 1, off))


def run(job: Refit) -> Row:
    """Simulate, refit, and see where the truth lies."""
    from twin.donors.fit import Settings, diagnose, sample_fit

    process = load_config(job.process)
    made = simulate(timetable(process, job.donors, job.seed), process, job.seed)
    settings = Settings(draws=job.draws, tune=job.tune, chains=CHAINS, seed=job.seed + 1, cores=1)
    posterior, _ = sample_fit(made.data, process, settings=settings)
    sound = diagnose(posterior)
    values = {n: np.asarray(posterior["posterior"][n]) for n in ("theta", "m", "L_stds", "q")}
    draws = labelled({n: v.reshape(-1, *v.shape[2:]) for n, v in values.items()}, made.data)
    parameters: dict[str, Mapping[str, np.ndarray]] = {}
    for name, own in draws.items():
        truth = made.truth[name][0]
        low, high = np.quantile(own, [(1.0 - LEVEL) / 2.0, (1.0 + LEVEL) / 2.0], axis=0)
        parameters[name] = {
            "rank": ranks(own, truth),
            "held": (low <= truth) & (truth <= high),
            "sd": own.std(axis=0),
        }
    return {
        "seed": job.seed, "again": made.again, "r_hat": sound.r_hat, "ess": sound.ess_bulk, "divergent": sound.divergent,
        "worst": sound.worst, "spread": made.spread, "parameters": parameters,
    }  # fmt: skip


def _held(rows: Sequence[Row], donors: bool) -> np.ndarray:
    """Share of intervals of a study that hold the truth [study]: of donors' kinetics, or of population and noise."""
    return np.array([
        np.concatenate([v["held"] for n, v in r["parameters"].items() if n.startswith("theta ") == donors]).mean()
        for r in rows
    ])  # fmt: skip


def _ranked(rows: Sequence[Row], name: str) -> np.ndarray:
    return np.stack([r["parameters"][name]["rank"] for r in rows])


def figures(rows: Sequence[Row]) -> tuple[Figure, ...]:
    """Coverage, uniformity of ranks, convergence. All studies count, unconverged ones too."""
    names, studies = list(rows[0]["parameters"]), len(rows)
    p = {n: uniform_p(_ranked(rows, n)) for n in names}
    tested = {n: v for n, v in p.items() if np.isfinite(v)}
    worst = min(tested, key=lambda n: tested[n]) if tested else names[0]
    converged = np.array([r["r_hat"] < LOOSE for r in rows])
    drawn = studies + sum(r["again"] for r in rows)

    def coverage(name: str, donors: bool, low: float | None = None, high: float | None = None) -> Figure:
        own = _held(rows, donors)
        n = sum(v["held"].size for r in rows for m, v in r["parameters"].items() if m.startswith("theta ") == donors)
        half = Z95 * float(own.std(ddof=1)) / np.sqrt(studies) if studies > 1 else float("nan")
        sound = f"; converged alone {own[converged].mean():.3f}" if converged.any() else ""
        return Figure(name, float(own.mean()), low, high, n, f"+/-{half:.3f} between studies{sound}")

    least = p[worst]
    chance = 1.0 - 0.99 ** len(tested)
    return (
        coverage("90 % intervals of donor parameters", True, 0.85, 0.95),
        coverage("90 % intervals of population and noise", False),
        Figure("worst chi-square p of ranks", least, 0.01, None, len(tested), f"{worst}; of so many exact tests one is below .01 with probability up to {chance:.2f}"),
        Figure("the same times the number of tests", min(1.0, least * len(tested)), n=len(tested), note="Bonferroni"),
        Figure("parameters with p above .05", float(np.mean([v > 0.05 for v in tested.values()])) if tested else float("nan"), n=len(tested), note="expected .95"),
        Figure("chance to see one parameter's sds half of what is right", power(studies, 0.5), n=studies, note=f"at p .01, one rank a study; {power(studies * DONORS, 0.5):.2f} with {DONORS} independent donors"),
        Figure(f"studies with R-hat under {LOOSE}", float(converged.mean()), n=studies, note="the others are in all figures"),
        Figure("prior draws taken again", (drawn - studies) / drawn, n=drawn, note="a reading not finite, or a batch with too few positive counts"),
    )  # fmt: skip


def tables(rows: Sequence[Row]) -> tuple[Table, ...]:
    """By parameter (all of ln), and by study."""
    lines: list[tuple[Any, ...]] = []
    for name in rows[0]["parameters"]:
        found = _ranked(rows, name)
        held = np.concatenate([r["parameters"][name]["held"] for r in rows])
        sd = np.concatenate([r["parameters"][name]["sd"] for r in rows])
        prior = float(np.sqrt(np.mean([r["spread"][name] ** 2 for r in rows])))
        place = np.bincount(np.minimum(found * BINS // (RANKED + 1), BINS - 1).ravel(), minlength=BINS)
        lines.append((
            name, f"{held.mean():.3f}", f"{uniform_p(found):.3f}", " ".join(map(str, place)), f"{sd.mean() / prior:.2f}", held.size,
        ))  # fmt: skip
    donors = _held(rows, True)
    by_study = tuple(
        (r["seed"], f"{r['r_hat']:.3f}", r["worst"], f"{r['ess']:.0f}", r["divergent"], r["again"], f"{h:.3f}")
        for r, h in zip(rows, donors, strict=True)
    )
    return (
        Table(
            "by parameter: theta of donors, m and s of the population, q of noise",
            ("parameter", "coverage", "chi-square p", f"ranks in {BINS} bins", "posterior sd / prior sd", "n"),
            tuple(lines),
        ),
        Table("by study", ("seed", "R-hat", "of", "least ESS", "divergent", "drawn again", "coverage"), by_study),
    )


STUDY = Study("Simulation-based calibration of the donor fit", 24, jobs, run, figures, tables)
