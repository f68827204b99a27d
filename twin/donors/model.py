"""The hierarchical model of the donors: one population, partial pooling, the bioreactor through the process model itself.

    theta_d = exp(m + B c_d + L z_d)         well-informed kinetics of donor d; L = diag(s) chol(R), R ~ LKJ(4)
    m ~ N(ln preset median, max(donor_sd, .15)),   s ~ lognormal(ln donor_sd, .4)
    B ~ Student-t(4, 0, .3 donor_sd)         covariates c_d (standardised), where there are any: shrunk towards none
    theta_d ~ lognormal(preset median, donor_sd)   the other learnt kinetics: donors differ, the population is given
    bioreactor    x(t) = RK4 of `rates` from x0_d under the recorded controls (`twin.donors.op`)
    counts        Student-t(4) on ln(Xv + limit), scale^2 = sensor^2 + q^2 t, q log-normal
    analytes      normal on ln(c + limit), same form;  viability, CAR+ and exhausted fraction normal as they are
    stages        static cultures by lag and exponential growth, recoveries, and the chain of counts: `twin.donors.stages`

Simplifications, stated: process noise is an observation scale that grows as sqrt(t) instead of a stochastic state, so that
neighbouring residuals count as independent (donor parameters come out somewhat too sure); first readings of analytes are
plugged in as the start; static cultures are lag and exponential growth without medium; kinetics that routine data do not
inform stay at the preset.

Centred by default: with 17 well-measured donors each donor's own data fix its parameters better than the population does,
which is where the centred form samples well; with few data `centred=False` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from twin.bioreactor import State, to_coordinates
from twin.donors.data import COUNTS, FRACTIONS, STATIC_STAGES, FitData, Samples
from twin.donors.stages import Static, observe_chain
from twin.process import Process
from twin.sensors import CHANNELS

if TYPE_CHECKING:
    import pymc as pm

WELL_INFORMED = ("mu_max", "tau_lag", "a_G", "a_Q", "Y_LG", "Y_AQ", "k_lys")
"""Kinetics whose population (medians, spreads, correlations) 17 donors can teach (SCIENCE section 1, column "seen")."""

FIT_PARAMETERS = (*WELL_INFORMED, "k_d0", "K_L", "PD_max", "k_Q", "delta", "k_E", "e_L")
"""Kinetics that the fit learns of every donor. Of those beyond the well-informed ones routine data hold so little that their
spread and their donors' values form a funnel: their population is given."""

CENTRED = True
SPAN = 4.0 / 24.0
"""Step of the fit's grid [d]. Held to the 15-min scheme by a test: below .01 in ln where no substrate is exhausted."""

NU = 4.0
"""Degrees of freedom of the noise of counts."""
VIABLE0_SD, DEAD0_SD = 0.3, 0.4
"""Spread of ln of the viable and dead densities at inoculation about what is expected."""
EFFECT = 0.3
"""Scale of what a standard deviation of a covariate moves in ln of a kinetic parameter, in donor spreads."""


def grid(data: FitData, span: float = SPAN) -> int:
    """Number of steps of `span` days that cover all samples."""
    return max(1, int(np.ceil(data.horizon / span - 1e-9)))


def build(
    data: FitData,
    process: Process,
    names: tuple[str, ...] = FIT_PARAMETERS,
    *,
    centred: bool = CENTRED,
    span: float = SPAN,
    compiled: bool = True,
    spread_donors: bool = True,
) -> pm.Model:
    """The PyMC model. Population: `m`, `s`, `corr`; donors: `theta` (ln kinetics, [donor, parameter]).

    Without `spread_donors` all share one set of kinetics (complete pooling): `theta` has the same row for every donor.

    Raises ValueError for a parameter without a donor spread in the preset, or when none of `WELL_INFORMED` is among them.
    """
    import pymc as pm
    import pytensor.tensor as pt

    from twin.donors.op import Trajectory

    fixed = [n for n in names if n not in process.donor_sd]
    if fixed:
        raise ValueError(f"preset {process.name!r} gives no donor spread for {', '.join(fixed)}")
    shared, given = population(names)
    if not shared:
        raise ValueError(f"name at least one of {', '.join(WELL_INFORMED)}: the rest have no population to learn")
    coords = {
        "parameter": list(names), "shared": list(shared), "given": list(given),
        "donor": list(data.donors), "batch": list(data.batches), "channel": list(data.samples), "covariate": list(data.covariates),
        "stage": [s.name for s in data.chain.stages if s.name not in STATIC_STAGES] if data.chain else [],
    }  # fmt: skip
    median, spread = preset_population(process, shared)
    x0, steps = data.initial, grid(data, span)
    with pm.Model(coords=coords) as model:
        m = pm.Normal("m", median, np.maximum(spread, 0.15), dims="shared")
        chol = None
        if spread_donors:
            chol, _, _ = pm.LKJCholeskyCov(
                "L",
                n=len(shared),
                eta=4.0,
                sd_dist=pm.LogNormal.dist(np.log(spread), 0.4, shape=len(shared)),
                compute_corr=True,
            )
        expected = m
        if data.covariates:
            effect = pm.StudentT("effect", NU, mu=0.0, sigma=EFFECT * spread, dims=("covariate", "shared"))
            expected = m + np.stack(list(data.covariates.values()), axis=1) @ effect
        if chol is None:
            own = expected + np.zeros((len(data.donors), len(shared)))
        elif centred:
            own = pm.MvNormal("theta_shared", expected, chol=chol, dims=("donor", "shared"))
        else:
            z = pm.Normal("z", 0.0, 1.0, dims=("donor", "shared"))
            own = expected + z @ chol.T
        columns = {n: own[:, k] for k, n in enumerate(shared)}
        if given:
            dims = ("donor", "given") if spread_donors else "given"
            rest = pm.Normal("theta_given", *preset_population(process, given), dims=dims)
            rest = rest if spread_donors else rest + np.zeros((len(data.donors), len(given)))
            columns |= {n: rest[:, k] for k, n in enumerate(given)}
        theta = pm.Deterministic("theta", pt.stack([columns[n] for n in names], axis=1), dims=("donor", "parameter"))

        def kinetic(name: str) -> Any:
            return pt.exp(theta[:, names.index(name)]) if name in names else float(getattr(process.theta.cell, name))

        doublings = pt.as_tensor(np.asarray(x0.doublings, dtype=float))
        static = Static(data.static, len(data.donors), kinetic) if data.static is not None else None
        if static is not None and data.static is not None:
            expected = np.full(len(data.donors), float(process.initial.doublings))
            doublings = static.doublings(data.static, expected)[data.donor_of]
        doublings = pm.Deterministic("doublings0", doublings + np.zeros(len(data.batches)), dims="batch")
        viable = pt.exp(pm.Normal("ln_viable0", np.log(np.mean(x0.viable)), VIABLE0_SD, dims="batch"))
        dead = pt.exp(pm.Normal("ln_dead0", np.log(np.mean(x0.dead)), DEAD0_SD, dims="batch"))
        centre, spread0 = seed_prior(process)
        odds = pt.exp(pm.Normal("ln_car_odds0", centre[0], spread0[0], dims="batch"))
        exhausted = pt.exp(pm.Normal("ln_exhausted0", centre[1], spread0[1], dims="batch"))
        share = odds / (1.0 + odds)
        start = x0._replace(
            car_positive=viable * share,
            car_negative=viable * (1.0 - share),
            dead=dead,
            doublings=doublings,
            exhausted=exhausted,
        )
        trajectory = Trajectory(data.controls(steps, span), process.theta, names, span, compiled)
        path = trajectory(pt.stack([pt.as_tensor(v) for v in start]), pt.exp(theta)[data.donor_of].T)
        drift = _observe(data, path, steps, span)
        if data.chain is not None:
            at = np.nan_to_num(data.chain.harvested)
            held = read_path(path, at, np.arange(len(data.batches)), steps, span)
            cells = held("car_positive", "car_negative") * held("volume")
            observe_chain(
                data,
                static,
                pt.log(cells),
                drift[list(data.samples).index(COUNTS)] * np.sqrt(at),
            )
    return model


def seed_prior(process: Process) -> tuple[np.ndarray, np.ndarray]:
    """Centres and spreads of ln of the CAR+ : CAR- odds and of the exhausted fraction at inoculation."""
    centre, spread = to_coordinates(process.initial), process.initial_sd
    return np.log([float(centre.car_odds), float(centre.exhausted)]), np.array([spread.car_odds, spread.exhausted])


def population(names: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Kinetics whose population is learnt, and those whose population the preset gives."""
    return tuple(n for n in names if n in WELL_INFORMED), tuple(n for n in names if n not in WELL_INFORMED)


def preset_population(process: Process, names: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Preset's ln medians and donor standard deviations of ln."""
    median = np.log([getattr(process.theta.cell, n) for n in names])
    return median, np.array([process.donor_sd[n] for n in names])


def drift_prior(channel: str) -> tuple[float, float]:
    """Mean and standard deviation of ln q, by which noise grows [ln or fraction per sqrt(d)], before any fit (asm).

    Bounded from below, unlike a half-normal: probes that see no process noise would leave q a long tail towards none.
    """
    return float(np.log(0.005 if channel in FRACTIONS else 0.02)), 0.8


def starting_scales(process: Process, names: tuple[str, ...] = FIT_PARAMETERS) -> dict[str, np.ndarray]:
    """Unconstrained starting value of the population's spread: the preset's donor spreads, uncorrelated.

    PyMC would start at spreads of 1, several times too wide.
    """
    shared, _ = population(names)
    spread = preset_population(process, shared)[1]
    return {"L_cholesky-cov-packed__": np.diag(np.log(spread))[np.tril_indices(len(shared))]}


def read_path(path: Any, time: np.ndarray, column: np.ndarray, steps: int, span: float) -> Any:
    """A function of field names: their sum at the times [n] of the columns [n], between grid points linear in ln."""
    import pytensor.tensor as pt

    before = np.clip(np.floor(time / span + 1e-9).astype(int), 0, steps - 1)
    weight = time / span - before

    def at(*fields: str) -> Any:
        value = sum(path[:, State._fields.index(f)] for f in fields)
        return pt.exp((1.0 - weight) * pt.log(value[before, column]) + weight * pt.log(value[before + 1, column]))

    return at


def _observe(data: FitData, path: Any, steps: int, span: float) -> Any:
    """Likelihood of the bioreactor's samples; returns how noise grows [channel]."""
    import pymc as pm
    import pytensor.tensor as pt

    drift = pm.LogNormal("q", *np.array([drift_prior(c) for c in data.samples]).T, dims="channel")

    def seen(channel: str, samples: Samples) -> Any:
        at = read_path(path, samples.time, samples.column, steps, span)
        if channel == COUNTS:
            return at("car_positive", "car_negative")
        if channel == "viability":
            viable = at("car_positive", "car_negative")
            return viable / (viable + at("dead"))
        if channel == "car_fraction":
            positive = at("car_positive")
            return positive / (positive + at("car_negative"))
        return at("exhausted" if channel == "exhausted_fraction" else channel)

    def together(channels: list[str]) -> tuple[Any, Any, np.ndarray]:
        """Predictions, scales and readings of several channels on the scale where noise is Gaussian."""
        own = [data.samples[c] for c in channels]
        sizes = [s.time.size for s in own]
        limit = np.repeat([CHANNELS[c].limit for c in channels], sizes)
        q = pt.stack([drift[list(data.samples).index(c)] for c in channels])[np.repeat(np.arange(len(channels)), sizes)]
        time, sd, value = (np.concatenate([getattr(s, f) for s in own]) for f in ("time", "sd", "value"))
        predicted = pt.concatenate([seen(c, s) for c, s in zip(channels, own, strict=True)])
        scale = pt.sqrt(sd**2 + q**2 * time)
        return (
            (predicted, scale, value)
            if channels[0] in FRACTIONS
            else (pt.log(predicted + limit), scale, np.log(value + limit))
        )

    counts, scale, value = together([COUNTS])
    pm.StudentT("counts", nu=NU, mu=counts, sigma=scale, observed=value)
    analytes = [c for c in data.samples if c != COUNTS and c not in FRACTIONS]
    for name, channels in (("analytes", analytes), ("fractions", [c for c in data.samples if c in FRACTIONS])):
        if channels:
            predicted, scale, value = together(channels)
            pm.Normal(name, predicted, scale, observed=value)
    return drift
