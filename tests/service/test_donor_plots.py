"""Pictures of a donor fit show every donor where he is, and the options that cannot be are refused before the fit runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from service.cli import main
from service.report.donor_plots import Kinetic, donor_forest, shrinkage


def kinetic(name: str, donors: int = 6, learnt: bool = True) -> Kinetic:
    rng = np.random.default_rng(len(name))
    mid = 0.8 * np.exp(0.2 * rng.standard_normal(donors))
    own = mid * np.exp(0.1 * rng.standard_normal(donors))
    own[1] = np.nan
    return Kinetic(name, (0.6, 0.8, 1.1), np.stack([mid / 1.1, mid, mid * 1.1], axis=1), own, learnt)


def test_an_arrow_leads_from_every_own_estimate_to_the_pooled_one() -> None:
    k = kinetic("mu_max")
    a = shrinkage([k], "six").axes[0]
    arrows = [t for t in a.texts if t.get_text() == "" and hasattr(t, "arrow_patch")]
    assert len(arrows) == 5  # one donor told nothing by himself
    ends = np.array([t.xy for t in arrows])  # pyright: ignore[reportAttributeAccessIssue]
    seen = np.isfinite(k.own)
    np.testing.assert_allclose(ends, np.stack([k.own, k.donors[:, 1]], axis=1)[seen] / 0.8)
    assert a.get_xlim() == a.get_ylim()


def test_the_forest_has_every_donor_of_every_parameter() -> None:
    names = [f"D{d}" for d in range(6)]
    kinetics = [kinetic("mu_max"), kinetic("tau_lag"), kinetic("k_d0", learnt=False), kinetic("a_G"), kinetic("Y_LG")]
    figure = donor_forest(kinetics, names, "six")
    shown = [a for a in figure.axes if a.get_visible()]
    assert len(shown) == 5
    for a, k in zip(shown, kinetics, strict=True):
        (bars,) = [c for c in a.collections if len(c.get_paths()) == 6]
        drawn = np.array([p.vertices[:, 0] for p in bars.get_paths()])  # pyright: ignore[reportArgumentType]
        np.testing.assert_allclose(drawn, k.donors[:, [0, 2]] / 0.8)
    assert [t.get_text() for t in shown[0].get_yticklabels()] == names
    assert shown[2].get_title(loc="right") == "given"
    assert "preset" in figure.legends[0].get_texts()[-1].get_text()
    assert "preset" not in donor_forest(kinetics[:2], names, "six").legends[0].get_texts()[-1].get_text()


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as left:
        main(list(words))
    return int(left.value.code or 0), capsys.readouterr().err.replace("\n", "")


def test_pictures_that_cannot_be_written_are_told_before_the_fit(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    code, err = run(capsys, "fit", "synthetic:17", "-o", str(tmp_path / "p"), "--plots", str(blocked))
    assert code == 2 and "--plots" in err and "cannot be made" in err
    code, err = run(capsys, "fit", "recorded:4", "-o", str(tmp_path / "p"), "--method", "em", "--plots", str(tmp_path))
    assert code == 2 and "--plots" in err and "for --method mcmc" in err


def test_a_study_of_too_few_donors_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    code, err = run(capsys, "study", "pooling", "--batches", "4")
    assert code == 2 and "needs at least 5" in err


def test_the_study_prints_figures_and_tables(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command from jobs to tables; the fits themselves are given."""
    from simulators.study import STUDIES, pooling

    def given(job: pooling.Job) -> dict[str, object]:
        last = {"day": 13.0, "count": 20.0, "below": 0.5, "within": True, "khat_early": 0.3}
        fitted = {
            **job._asdict(),
            "r_hat": 1.0,
            "khat": 0.3,
            "log_density": 3.0 if job.pooling == "partial" else 1.0,
            **last,
        }
        one = {"donor": "D", "readings": 9, "by_weights": 3.0, "khat_left": 0.2, "none": 2.0, "none_noise": 2.0, "seen": 4.0, "khat": 0.1}  # fmt: skip
        return fitted if job.left >= 0 else {**fitted, "ess": 500.0, "each": [{**one, **last}] * job.donors}

    monkeypatch.setitem(STUDIES, "pooling", STUDIES["pooling"]._replace(run=given))
    with pytest.raises(SystemExit) as left:
        main(["study", "pooling", "--batches", "5", "--workers", "1", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert int(left.value.code or 0) == 0 and told["ok"] is True
    assert told["first"] == 17
    assert {f["name"]: f["value"] for f in told["figures"]}["partial less complete pooling"] == 2.0
    assert [len(t["rows"]) for t in told["tables"]] == [5, 5]
