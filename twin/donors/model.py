"""The hierarchical model of the donors: one population, partial pooling, the bioreactor through the process model itself.

    theta_d = exp(m + L z_d)                 well-informed kinetics of donor d; L = diag(s) chol(R), R ~ LKJ(4)
    m ~ N(ln preset median, max(donor_sd, .15)),   s ~ lognormal(ln donor_sd, .4)
    theta_d ~ lognormal(preset median, donor_sd)   the other learnt kinetics: donors differ, the population is given
    bioreactor    x(t) = RK4 of `rates` from x0_d under the recorded controls (`twin.donors.op`)
    counts        Student-t(4) on ln(Xv + limit), scale^2 = sensor^2 + q^2 t
    analytes      normal on ln(c + limit), same form;  viability normal as it is
    static        ln growth rate = ln mu_max,d + ln phi + e_d: lag, then exponential; its doublings start the bioreactor
    stage yields  ln(out/in) ~ N(m_s, s_s^2 + 2 cv^2)

Simplifications of this step, stated: process noise is an observation scale that grows as sqrt(t) instead of a stochastic
state, so that neighbouring residuals count as independent (donor parameters come out somewhat too sure); first readings
of analytes are plugged in as the start; the CAR+ share and exhaustion follow their medians (nothing here depends on them);
static cultures are lag and exponential growth without medium; kinetics that routine data do not inform stay at the preset.

Centred by default: with 17 well-measured donors each donor's own data fix its parameters better than the population does,
which is where the centred form samples well; with few data `centred=False` does. Not yet measured side by side here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from twin.bioreactor import LN2, State
from twin.donors.data import COUNTS, FitData, Samples, StaticCultures
from twin.donors.prior import DEFAULT_PARAMETERS
from twin.process import Process
from twin.sensors import CHANNELS

if TYPE_CHECKING:
    import pymc as pm

WELL_INFORMED = ("mu_max", "tau_lag", "a_G", "a_Q", "Y_LG")
"""Kinetics whose population (medians, spreads, correlations) 17 donors can teach (SCIENCE section 1, column "seen").

Of the rest (k_d0, K_L, PD_max) routine data hold so little that their spread and their donors' values form a funnel: with all
eight in the hierarchy four chains of 200 warm-up and 200 draws reached R-hat 1.11 and an effective sample size of 24.
"""

CENTRED = True
SPAN = 4.0 / 24.0
"""Step of the fit's grid [d]. Held to the 15-min scheme by a test: below .01 in ln where no substrate is exhausted."""

NU = 4.0
"""Degrees of freedom of the noise of counts."""
VIABLE0_SD, DEAD0_SD = 0.3, 0.4
"""Spread of ln of the viable and dead densities at inoculation about what is expected."""
CELL_COUNT_CV = 0.07  # of the two counts behind a stage yield (SCIENCE section 3: 5-10 %)


def grid(data: FitData, span: float = SPAN) -> int:
    """Number of steps of `span` days that cover all samples."""
    return max(1, int(np.ceil(data.horizon / span - 1e-9)))


def build(
    data: FitData,
    process: Process,
    names: tuple[str, ...] = DEFAULT_PARAMETERS,
    *,
    centred: bool = CENTRED,
    span: float = SPAN,
    compiled: bool = True,
) -> pm.Model:
    """The PyMC model. Population: `m`, `s`, `corr`; donors: `theta` (ln kinetics, [donor, parameter]).

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
        "donor": list(data.donors), "batch": list(data.batches), "channel": list(data.samples), "stage": [y.name for y in data.yields],
    }  # fmt: skip
    median, spread = preset_population(process, shared)
    x0, steps = data.initial, grid(data, span)
    with pm.Model(coords=coords) as model:
        m = pm.Normal("m", median, np.maximum(spread, 0.15), dims="shared")
        chol, _, _ = pm.LKJCholeskyCov(
            "L",
            n=len(shared),
            eta=4.0,
            sd_dist=pm.LogNormal.dist(np.log(spread), 0.4, shape=len(shared)),
            compute_corr=True,
        )
        if centred:
            own = pm.MvNormal("theta_shared", m, chol=chol, dims=("donor", "shared"))
        else:
            z = pm.Normal("z", 0.0, 1.0, dims=("donor", "shared"))
            own = m + z @ chol.T
        columns = {n: own[:, k] for k, n in enumerate(shared)}
        if given:
            rest = pm.Normal("theta_given", *preset_population(process, given), dims=("donor", "given"))
            columns |= {n: rest[:, k] for k, n in enumerate(given)}
        theta = pm.Deterministic("theta", pt.stack([columns[n] for n in names], axis=1), dims=("donor", "parameter"))

        def kinetic(name: str) -> Any:
            return pt.exp(theta[:, names.index(name)]) if name in names else float(getattr(process.theta.cell, name))

        doublings = pt.as_tensor(np.asarray(x0.doublings, dtype=float))
        if data.static is not None:
            doublings = _static(data.static, len(data.donors), kinetic)[data.donor_of]
        viable = pt.exp(pm.Normal("ln_viable0", np.log(np.mean(x0.viable)), VIABLE0_SD, dims="batch"))
        dead = pt.exp(pm.Normal("ln_dead0", np.log(np.mean(x0.dead)), DEAD0_SD, dims="batch"))
        start = x0._replace(
            car_positive=viable * x0.car_fraction,
            car_negative=viable * (1.0 - x0.car_fraction),
            dead=dead,
            doublings=doublings,
        )
        trajectory = Trajectory(data.controls(steps, span), process.theta, names, span, compiled)
        path = trajectory(pt.stack([pt.as_tensor(v) for v in start]), pt.exp(theta)[data.donor_of].T)
        _observe(data, path, steps, span)
        _stage_yields(data)
    return model


def population(names: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Kinetics whose population is learnt, and those whose population the preset gives."""
    return tuple(n for n in names if n in WELL_INFORMED), tuple(n for n in names if n not in WELL_INFORMED)


def preset_population(process: Process, names: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Preset's ln medians and donor standard deviations of ln."""
    median = np.log([getattr(process.theta.cell, n) for n in names])
    return median, np.array([process.donor_sd[n] for n in names])


def drift_sd(channel: str) -> float:
    """Half-normal scale of q, by which noise grows [ln or fraction per sqrt(d)], before any fit."""
    return 0.01 if channel == "viability" else 0.05


def starting_scales(process: Process, names: tuple[str, ...] = DEFAULT_PARAMETERS) -> dict[str, np.ndarray]:
    """Unconstrained starting value of the population's spread: the preset's donor spreads, uncorrelated.

    PyMC would start at spreads of 1, several times too wide.
    """
    shared, _ = population(names)
    spread = preset_population(process, shared)[1]
    return {"L_cholesky-cov-packed__": np.diag(np.log(spread))[np.tril_indices(len(shared))]}


def _observe(data: FitData, path: Any, steps: int, span: float) -> None:
    """Likelihood of the bioreactor's samples: the trajectory read between grid points, linear in ln."""
    import pymc as pm
    import pytensor.tensor as pt

    drift = pm.HalfNormal("q", np.array([drift_sd(c) for c in data.samples]), dims="channel")

    def seen(channel: str, samples: Samples) -> Any:
        before = np.minimum(np.floor(samples.time / span + 1e-9).astype(int), steps - 1)
        weight = samples.time / span - before

        def at(*fields: str) -> Any:
            value = sum(path[:, State._fields.index(f)] for f in fields)
            return pt.exp(
                (1.0 - weight) * pt.log(value[before, samples.column])
                + weight * pt.log(value[before + 1, samples.column])
            )

        if channel == COUNTS:
            return at("car_positive", "car_negative")
        if channel == "viability":
            viable = at("car_positive", "car_negative")
            return viable / (viable + at("dead"))
        return at(channel)

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
            if channels == ["viability"]
            else (pt.log(predicted + limit), scale, np.log(value + limit))
        )

    counts, scale, value = together([COUNTS])
    pm.StudentT("counts", nu=NU, mu=counts, sigma=scale, observed=value)
    if "viability" in data.samples:
        viability, scale, value = together(["viability"])
        pm.Normal("viabilities", viability, scale, observed=value)
    analytes = [c for c in data.samples if c not in (COUNTS, "viability")]
    if analytes:
        predicted, scale, value = together(analytes)
        pm.Normal("analytes", predicted, scale, observed=value)


def _stage_yields(data: FitData) -> None:
    """Likelihood of the stages that do not grow cells: log-normal over donors, with the error of both counts."""
    import pymc as pm
    import pytensor.tensor as pt

    if not data.yields:
        return
    centre = pm.Normal("yield", np.log([y.expected for y in data.yields]), 0.3, dims="stage")
    spread = pm.LogNormal("yield_sd", np.log([max(y.spread, 0.05) for y in data.yields]), 0.5, dims="stage")
    of = np.repeat(np.arange(len(data.yields)), [y.ratio.size for y in data.yields])
    noise = pt.sqrt(spread**2 + 2.0 * CELL_COUNT_CV**2)
    pm.Normal("stage_yields", centre[of], noise[of], observed=np.concatenate([y.ratio for y in data.yields]))


def _static(static: StaticCultures, donors: int, kinetic: Any) -> Any:
    """Likelihood of activation and seed train; returns the doublings [donor] with which cells enter the bioreactor."""
    import pymc as pm
    import pytensor.tensor as pt

    s = static.samples
    ln_phi = pm.Normal("ln_phi", np.log(0.75), 0.25)  # growth in static culture over that in the stirred vessel
    spread = pm.LogNormal("phi_sd", np.log(0.10), 0.5)
    e = pm.Normal("e", 0.0, spread, dims="donor")
    rate = kinetic("mu_max") * pt.exp(ln_phi + e)
    lag, death = kinetic("tau_lag") * pt.ones(donors), kinetic("k_d0") * pt.ones(donors)
    donor, slow = static.donor, static.lagging

    def grown(t: Any, k: Any) -> Any:
        """Time-integral of the growth rate [ln units] at time t of culture k."""
        tau = lag[donor[k]]
        return rate[donor[k]] * (t - slow[k] * tau * (1.0 - pt.exp(-t / tau)))

    first = np.array([s.value[s.column == k][np.argmin(s.time[s.column == k])] for k in range(len(donor))])
    seeded = pm.Normal("ln_seeded", np.log(first), 0.3, shape=len(donor))
    predicted = seeded[s.column] + grown(s.time, s.column) - death[donor[s.column]] * s.time
    drift = pm.HalfNormal("q_static", 0.05)
    scale = pt.sqrt(s.sd**2 + drift**2 * s.time)
    pm.StudentT("seen_static", nu=4.0, mu=predicted, sigma=scale, observed=np.log(s.value))
    cultures = np.arange(len(donor))
    total = pt.zeros(donors)
    total = pt.inc_subtensor(total[donor], grown(static.length, cultures))
    return pt.maximum(total / LN2, 0.5)
