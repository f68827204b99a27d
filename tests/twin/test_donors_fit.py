"""The hierarchical fit on problems small enough for a test; the shipped prior is the large one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm, t

pytest.importorskip("pymc", reason="the donor fit needs the donors extra")

from simulators.history import write_history
from twin.bioreactor import Control, State
from twin.config import configs_dir, load_config
from twin.donors.artefact import load_artefact
from twin.donors.checks import one_batch, pit, predictive_checks
from twin.donors.data import FitData, FitError, prepare
from twin.donors.fit import Fit, Settings, demand_sound, diagnose, fit, new_donor, save_fit, succeed
from twin.donors.model import build, drift_prior, preset_population
from twin.donors.prior import DonorPrior
from twin.donors.sample import density, import_arviz
from twin.donors.target import Population, Target
from twin.evidence import ControlApplied, Measurement
from twin.integrate import advance
from twin.records import RecordedBatch

PROCESS = load_config("car_nk")
NAMES = ("mu_max", "a_G")
TRUE_GROWTH = (0.62, 0.72, 0.82, 0.92)


def records(days: int = 4) -> list[RecordedBatch]:
    """Four donors who obey the model, differing in growth only, counted and analysed daily with known noise."""
    rng = np.random.default_rng(11)
    batches: list[RecordedBatch] = []
    for k, growth in enumerate(TRUE_GROWTH):
        theta = PROCESS.theta._replace(cell=PROCESS.theta.cell._replace(mu_max=growth))
        x, measured = PROCESS.initial, []
        for day in range(days + 1):
            for channel, value, cv in (("viable_density", x.viable, 0.05), ("glucose", x.glucose, 0.03)):
                noisy = float(value * np.exp(cv * rng.standard_normal()))
                measured.append(Measurement(f"{channel}-{day}", channel, noisy, float(day), float(day)))
            x = State(*(float(v) for v in advance(x, Control(cytokine_dose=300.0), theta, 1.0)))
        actions = (ControlApplied("dose", 0.0, "cytokine_dose", 300.0),)
        batches.append(RecordedBatch(f"B{k}", f"D{k}", f"D{k}", "car_nk", None, tuple(measured), actions))
    return batches


@pytest.mark.parametrize("centred", [True, False], ids=["centred", "non-centred"])
def test_gradient_of_the_log_density(centred: bool) -> None:
    """What NUTS follows is the slope of what it measures, in every unconstrained coordinate."""
    target = density(build(prepare(records(), PROCESS), PROCESS, NAMES, centred=centred))
    x = target.start + 0.1 * np.random.default_rng(0).standard_normal(target.start.size)
    _, gradient = target.value_and_gradient(x)
    for i in range(x.size):
        step = np.zeros_like(x)
        step[i] = 1e-5
        slope = (target.value_and_gradient(x + step)[0] - target.value_and_gradient(x - step)[0]) / 2e-5
        assert gradient[i] == pytest.approx(slope, rel=1e-4, abs=1e-3), i


@pytest.mark.slow
def test_fit_recovers_the_donors_and_saves_a_prior(tmp_path: Path) -> None:
    settings = Settings(draws=100, tune=150, chains=2, seed=3, cores=2)
    ticks: list[float] = []
    result = fit(records(), PROCESS, NAMES, settings, ticks.append)
    assert len(ticks) == 2
    growth = np.exp(np.asarray(result.posterior.posterior["theta"])[..., 0]).reshape(-1, 4)
    assert (np.diff(growth.mean(axis=0)) > 0).all()
    np.testing.assert_allclose(growth.mean(axis=0), TRUE_GROWTH, rtol=0.15)
    assert np.linalg.eigvalsh(result.prior.cov).min() > 0
    donor_sd = growth.std(axis=0).max()
    assert np.sqrt(result.prior.cov[0, 0]) > donor_sd  # a new donor is less known than any measured one
    save_fit(result, PROCESS, tmp_path / "prior", "celltwin fit x -o y")
    loaded = load_artefact(tmp_path / "prior")
    np.testing.assert_allclose(loaded.prior.mean, result.prior.mean)
    assert loaded.manifest["provenance"]["settings"]["seed"] == 3
    assert set(loaded.manifest["files"]) == {"summary.json", "draws.npz", "posterior.nc"}
    checked = predictive_checks(result, PROCESS)
    assert {c: k.n for c, k in checked.items()} == {c: s.time.size for c, s in result.data.samples.items()}
    assert all(k.after > 0.85 and not k.verdict for k in checked.values())  # the data obey the model
    wrong = {c: s._replace(value=s.value * (3.0 if c == "glucose" else 1.0)) for c, s in result.data.samples.items()}
    told = predictive_checks(replace(result, data=replace(result.data, samples=wrong)), PROCESS)
    assert "cannot follow" in told["glucose"].verdict and not told["viable_density"].verdict


def test_a_reading_s_pit_is_its_probability_under_the_model() -> None:
    """Readings put at known quantiles of the model's noise; Student-t for counts."""
    data = one_batch(prepare(records(), PROCESS), 1)
    population = Population(
        NAMES, *(np.asarray(v)[None] for v in _moments()), {c: drift_prior(c) for c in data.samples}
    )
    target = Target(population, data, PROCESS)
    u = target.prior[0][None]
    r, student, _ = target.standardised(u)
    below, channels = pit(target, u)
    np.testing.assert_allclose(below, np.where(student, t.cdf(r, 4.0), norm.cdf(r))[:, 0], rtol=1e-9)
    assert set(channels) == {"viable_density", "glucose"} and student.sum() == 5


def _moments() -> tuple[np.ndarray, np.ndarray]:
    median, spread = preset_population(PROCESS, NAMES)
    return median, np.diag(spread**2)


def chains(shift: float, diverging: int = 0) -> object:
    """A posterior of two chains of 300 draws whose means differ by `shift` sd."""
    rng = np.random.default_rng(4)
    m = rng.standard_normal((2, 300, 2))
    m[1] += shift
    flags = np.zeros((2, 300), dtype=bool)
    flags[0, :diverging] = True
    return import_arviz().from_dict(
        posterior={"m": m, "L_stds": np.exp(0.1 * rng.standard_normal((2, 300, 2)))},
        sample_stats={"diverging": flags, "energy": rng.standard_normal((2, 300))},
    )


def test_sound_chains_pass() -> None:
    found = diagnose(chains(0.0))
    assert found.problems == ()
    demand_sound(found)


@pytest.mark.parametrize(
    ("shift", "diverging", "says"), [(3.0, 0, "R-hat .*chains disagree"), (0.0, 30, "30 of 600 draws diverged")]
)
def test_unsound_chains_are_refused_with_advice(shift: float, diverging: int, says: str) -> None:
    with pytest.raises(FitError, match=says):
        demand_sound(diagnose(chains(shift, diverging)))


def test_new_donor_carries_the_population_s_uncertainty() -> None:
    """var(theta_new) = var(m) + E[s^2], correlated by R; where the population is given, the preset's spread alone."""
    rng = np.random.default_rng(6)
    m = rng.standard_normal((2, 4000, 2)) * 0.3
    corr = np.broadcast_to([[1.0, 0.6], [0.6, 1.0]], (2, 4000, 2, 2))
    posterior = import_arviz().from_dict(posterior={"m": m, "L_stds": np.full((2, 4000, 2), 0.4), "L_corr": corr})
    cov = np.cov(new_donor(posterior, PROCESS, ("mu_max", "K_L", "a_G"), rng).T)
    assert cov[0, 0] == pytest.approx(0.3**2 + 0.4**2, rel=0.06)
    assert cov[0, 2] == pytest.approx(0.6 * 0.4**2, rel=0.12)
    assert cov[1, 1] == pytest.approx(PROCESS.donor_sd["K_L"] ** 2, rel=0.06)
    assert abs(cov[0, 1]) < 0.02


def test_what_a_covariate_explains_is_part_of_a_new_donor_s_spread() -> None:
    """var(theta_new) = s^2 + b^2: his covariate is not known."""
    rng = np.random.default_rng(6)
    corr = np.broadcast_to(np.eye(2), (2, 3000, 2, 2))
    drawn = {"m": np.zeros((2, 3000, 2)), "L_stds": np.full((2, 3000, 2), 0.3), "L_corr": corr}
    posterior = import_arviz().from_dict(posterior={**drawn, "effect": np.tile([[0.4, 0.0]], (2, 3000, 1, 1))})
    age = {"age": np.array([-1.0, 1.0])}
    cov = np.cov(new_donor(posterior, PROCESS, NAMES, rng, age).T)
    assert cov[0, 0] == pytest.approx(0.3**2 + 0.4**2, rel=0.08)
    assert cov[1, 1] == pytest.approx(0.3**2, rel=0.08)


def test_a_population_is_succeeded_by_more_donors_only() -> None:
    """All donors of the earlier fit and new ones; how far the population moved is told in its own spread."""
    before = load_artefact(configs_dir() / "priors" / "car_nk")
    known = tuple(before.manifest["provenance"]["donors"])
    n = len(before.prior.names)
    sd = np.sqrt(np.diagonal(before.prior.cov))
    moved = DonorPrior(before.prior.names, before.prior.mean + 0.5 * sd, 4.0 * before.prior.cov)
    data = replace(prepare(records(), PROCESS), donors=(*known, "SYN-D18"))

    def result(data: FitData) -> Fit:
        return Fit(moved, np.zeros((1, n)), None, None, data, Settings(), "none")  # type: ignore[arg-type]

    found = succeed(before, result(data), PROCESS)
    assert (found.version, found.added) == (1, ("SYN-D18",))
    assert found.sha256 == before.manifest["sha256"]
    np.testing.assert_allclose(list(found.moved.values()), [(0.5, 2.0)] * n)
    for donors, says in ((known[1:], f"rests on {known[0]}, who are not in the data"), (known, "the same donors")):
        with pytest.raises(FitError, match=says):
            succeed(before, result(replace(data, donors=donors)), PROCESS)
    with pytest.raises(FitError, match="to process 'car_nk', not 'cho'"):
        succeed(before, result(data), replace(PROCESS, name="cho"))


def test_parameters_that_no_record_can_teach_have_no_population_to_learn() -> None:
    with pytest.raises(ValueError, match="at least one of mu_max"):
        build(prepare(records(), PROCESS), PROCESS, ("K_L", "PD_max"))


def test_a_parameter_without_spread_is_refused() -> None:
    with pytest.raises(ValueError, match="no donor spread for K_DL"):
        build(prepare(records(), PROCESS), PROCESS, ("mu_max", "K_DL"))


def test_command_line_refuses_two_donors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from service.cli import run

    write_history(PROCESS, tmp_path / "data", donors=2, seed=1)
    assert run(["fit", str(tmp_path / "data"), "-o", str(tmp_path / "prior")]) == 2
    said = capsys.readouterr().err
    assert "2 donors" in said
    assert "Traceback" not in said
    assert not (tmp_path / "prior").exists()
    assert run(["fit", "synthetic:x", "-o", str(tmp_path / "prior")]) == 2
    assert "synthetic:17" in capsys.readouterr().err


def test_command_line_conditions_in_all_modes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """More data, less doubt: the donor's growth rate is known better on day 6 than before day 0."""
    from service.cli import run
    from twin.donors.artefact import save_prior
    from twin.donors.prior import preset_prior

    write_history(PROCESS, tmp_path / "data", donors=1, seed=2)
    p = preset_prior(PROCESS)
    save_prior(tmp_path / "prior", p, np.tile(p.mean, (3, 1)), {}, {"process": "car_nk", "command": "test"})
    common = ["condition", str(tmp_path / "data"), "--prior", str(tmp_path / "prior"), "--futures", "60", "--json"]
    reports = {}
    for mode, extra in (("prospective", []), ("realtime", ["--now", "6"]), ("retrospective", [])):
        assert run([*common, "--mode", mode, *extra]) == 0
        reports[mode] = json.loads(capsys.readouterr().out)
    assert reports["prospective"]["khat"] is None and reports["prospective"]["khat_reason"]
    assert all(0.0 < reports[mode]["khat"] < 2.0 for mode in ("realtime", "retrospective"))
    for report in reports.values():
        assert {"p_pass", "p_release", "bands", "khat", "refit_due"} <= set(report)
        assert isinstance(report["refit_due"], bool)
        assert (report["khat"] is None) == bool(report["khat_reason"])
        assert report["p_release"] <= min(report["p_pass"].values()) + 1e-12
        band = report["bands"]["viable_density"]
        assert all(a <= b <= c for a, b, c in zip(band["q05"], band["q50"], band["q95"], strict=True))
    doubt = [reports[m]["donor_parameters"]["mu_max"]["sd"] for m in ("prospective", "realtime", "retrospective")]
    assert doubt[0] > max(doubt[1:])  # late in a batch kinetics wander on, and nothing grows that would tell of them
    told = {m: reports[m]["donor_parameters"]["mu_max"] for m in reports}
    assert told["prospective"]["data"] == "not observable yet" and not told["prospective"]["channels"]
    assert told["realtime"]["data"] != "not observable yet" and "viable_density" in told["realtime"]["channels"]
    assert reports["prospective"]["samples"] == 0 < reports["realtime"]["samples"] < reports["retrospective"]["samples"]
    for wrong, says in (
        (["--batch", "nobody"], "no bioreactor batch 'nobody'"),
        (["--now", "-1"], "expected days since inoculation"),
        (["--now", "0"], "no measurement known by day 0"),
    ):
        assert run([*common, *wrong]) == 2
        assert says in capsys.readouterr().err
