"""The prior artefact: what is saved comes back, and nothing else is accepted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from twin.config import configs_dir, load_config
from twin.donors import artefact
from twin.donors.artefact import ArtefactError, load_artefact, load_prior, model_version, save_prior
from twin.donors.prior import DonorPrior, preset_prior

PROCESS = load_config("car_nk")
SHIPPED = configs_dir() / "priors" / "car_nk"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A small artefact."""
    cov = np.array([[0.02, 0.005], [0.005, 0.03]])
    prior = DonorPrior(("mu_max", "a_G"), np.log([0.8, 1.6]), cov)
    draws = np.random.default_rng(0).multivariate_normal(prior.mean, cov, 50)
    save_prior(
        tmp_path / "prior",
        prior,
        draws,
        {"donors": 17},
        {"process": "car_nk", "command": "celltwin fit x", "settings": {"seed": 1}},
    )
    return tmp_path / "prior"


def test_round_trip(saved: Path) -> None:
    loaded = load_artefact(saved)
    assert loaded.prior.names == ("mu_max", "a_G")
    np.testing.assert_array_equal(loaded.prior.mean, np.log([0.8, 1.6]))
    np.testing.assert_array_equal(loaded.prior.cov, [[0.02, 0.005], [0.005, 0.03]])
    assert loaded.draws.shape == (50, 2)
    assert loaded.prior.provenance["process"] == "car_nk"
    assert load_prior(saved / "manifest.json").names == loaded.prior.names


@pytest.mark.parametrize("name", ["summary.json", "draws.npz"])
def test_an_altered_file_is_refused(saved: Path, name: str) -> None:
    content = bytearray((saved / name).read_bytes())
    content[len(content) // 2] ^= 1
    (saved / name).write_bytes(bytes(content))
    with pytest.raises(ArtefactError, match=f"{name}: altered"):
        load_prior(saved)


def test_an_altered_manifest_is_refused(saved: Path) -> None:
    manifest = json.loads((saved / "manifest.json").read_text())
    manifest["provenance"]["command"] = "another"
    (saved / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtefactError, match="manifest.json: altered"):
        load_prior(saved)


def test_a_file_left_out_of_the_manifest_is_refused(saved: Path) -> None:
    manifest = json.loads((saved / "manifest.json").read_text())
    del manifest["files"]["summary.json"]
    manifest["sha256"] = artefact._self_hash(manifest)
    (saved / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtefactError, match="summary.json: missing"):
        load_prior(saved)


def test_another_model_version_is_refused(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artefact, "model_version", lambda: "0" * 64)
    with pytest.raises(ArtefactError, match="fitted to model version .* fit again"):
        load_prior(saved)


def test_what_is_not_an_artefact_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="No such file.*celltwin fit"):
        load_prior(tmp_path / "nowhere")
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ArtefactError, match="not valid JSON"):
        load_prior(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ArtefactError, match="holds other files"):
        save_prior(tmp_path, preset_prior(PROCESS), np.zeros((2, 8)), {}, {})


def test_model_version_ignores_words_but_not_mathematics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Docstrings and comments may change; a changed exponent may not."""
    here = Path(artefact.__file__).resolve().parents[1]
    copy = tmp_path / "twin" / "donors"
    copy.mkdir(parents=True)
    for name in ("bioreactor", "kinetics", "gas"):
        (copy.parent / f"{name}.py").write_text((here / f"{name}.py").read_text())
    monkeypatch.setattr(artefact, "__file__", str(copy / "artefact.py"))
    kinetics = copy.parent / "kinetics.py"
    text = kinetics.read_text()
    kinetics.write_text("# a comment\n" + text.replace('"""Onset', '"""The onset').replace("Monod 1949", "Monod"))
    assert model_version.__wrapped__() == model_version()
    kinetics.write_text(text.replace("return c / (half + c)", "return c / (half + c + c)"))
    assert model_version.__wrapped__() != model_version()


def test_the_shipped_prior_is_sound() -> None:
    """It loads, belongs to this model, says that it is synthetic, and has not run away from the preset it started from."""
    loaded = load_artefact(SHIPPED)
    assert loaded.manifest["provenance"]["process"] == "car_nk"
    assert "synthetic:" in loaded.manifest["provenance"]["command"]
    assert sum(f.stat().st_size for f in SHIPPED.iterdir()) < 500_000
    assert loaded.manifest["provenance"]["diagnostics"]["r_hat"] < 1.05
    published = preset_prior(PROCESS, loaded.prior.names)
    ratio = np.sqrt(np.diag(loaded.prior.cov) / np.diag(published.cov))
    assert (ratio < 2.5).all(), dict(zip(loaded.prior.names, ratio, strict=True))
    assert (np.abs(loaded.prior.mean - published.mean) < 0.7).all()  # K_L: plant and model differ in exponent
    np.testing.assert_allclose(
        loaded.draws.mean(axis=0),
        loaded.prior.mean,
        atol=4 * np.sqrt(np.diag(loaded.prior.cov).max() / len(loaded.draws)),
    )
