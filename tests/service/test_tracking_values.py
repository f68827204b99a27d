"""Tracking, its values: digests of meaning, records that show alteration, comparisons that know their error."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.tracking import digest
from service.tracking.compare import LIMIT, Row, compared, differences, distance, same
from service.tracking.provenance import code, source_sha256
from service.tracking.record import Record, RecordError, from_json
from service.tracking.sampler import standard_errors
from service.tracking.store import LOCAL, TrackingError, place
from service.tracking.verbs import digest_of, metrics, outputs, sampled, seeds, statistics

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(JSON)
def test_a_value_keeps_its_digest_through_a_file_whatever_the_order_of_its_keys(value: Any) -> None:
    turned = json.loads(json.dumps(value), object_pairs_hook=lambda pairs: dict(reversed(pairs)))
    assert digest.of_value(turned) == digest.of_value(value)


@given(st.floats(allow_nan=False, allow_infinity=False).filter(lambda x: x != 0.0))
def test_one_bit_of_a_number_changes_the_digest(x: float) -> None:
    assert digest.of_value({"x": x}) != digest.of_value({"x": np.nextafter(x, 0.0)})


def test_entries_of_time_and_place_are_left_out_by_their_path() -> None:
    a = {"campaign": {"wall_s": 1.0, "donors": 2}, "wall_s": 3}
    b = {"campaign": {"wall_s": 9.0, "donors": 2}, "wall_s": 3}
    assert digest.of_value(a, ("campaign.wall_s",)) == digest.of_value(b, ("campaign.wall_s",))
    assert digest.of_value(a, ("wall_s",)) != digest.of_value(b, ("wall_s",))


def test_arrays_count_not_how_they_were_packed(tmp_path: Path) -> None:
    draws = np.random.default_rng(1).normal(size=(5, 3))
    np.savez_compressed(tmp_path / "a.npz", draws=draws)
    np.savez(tmp_path / "b.npz", draws=draws)
    with zipfile.ZipFile(tmp_path / "c.npz", "w") as archive:  # another year, another compression
        held = io.BytesIO()
        np.save(held, draws)
        archive.writestr(zipfile.ZipInfo("draws.npy", (2024, 2, 3, 4, 5, 6)), held.getvalue(), zipfile.ZIP_LZMA)
    np.savez(tmp_path / "d.npz", draws=draws.astype(np.float32))
    a, b, c, d = (digest.of_arrays(tmp_path / f"{n}.npz") for n in "abcd")
    assert a == b == c != d


def test_a_table_counts_by_its_rows_and_their_order(tmp_path: Path) -> None:
    frame = pd.DataFrame({"policy": ["a", "b"], "pass": [0.25, np.nan]})
    frame.to_parquet(tmp_path / "a.parquet", compression="snappy")
    frame.to_parquet(tmp_path / "b.parquet", compression="gzip")
    frame[::-1].to_parquet(tmp_path / "c.parquet")
    a, b, c = (digest.of_table(tmp_path / f"{n}.parquet") for n in "abc")
    assert a == b != c


@pytest.mark.parametrize("of", [digest.of_arrays, digest.of_table, digest.of_json])
def test_a_damaged_file_has_a_digest_of_its_own(of: Any, tmp_path: Path) -> None:
    path = tmp_path / "x"
    for content in (b"", b"PK\x03\x04 no archive", b"\xff\xfe"):
        path.write_bytes(content)
        assert of(path) == digest.of_bytes(content)


def test_a_folder_counts_names_and_contents_but_nothing_hidden(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("1", encoding="utf-8")
    first = digest.of_path(tmp_path)
    (tmp_path / ".DS_Store").write_text("x", encoding="utf-8")
    assert digest.of_path(tmp_path) == first
    (tmp_path / "a.csv").rename(tmp_path / "b.csv")
    assert digest.of_path(tmp_path) != first


def test_a_prior_counts_by_what_it_says_not_by_who_wrote_it(root: Path, tmp_path: Path) -> None:
    shipped = root / "configs" / "priors" / "car_nk"
    for name in ("summary.json", "draws.npz"):
        (tmp_path / name).write_bytes((shipped / name).read_bytes())
    (tmp_path / "manifest.json").write_text("{}", encoding="utf-8")
    assert digest.of_prior(tmp_path) == digest.of_prior(shipped) == digest.of_prior(shipped / "manifest.json")
    summary = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    summary["mean"][0] += 1e-9
    (tmp_path / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    assert digest.of_prior(tmp_path) != digest.of_prior(shipped)


def test_inputs_that_the_code_holds_or_makes_have_no_digest_of_their_own(tmp_path: Path) -> None:
    assert digest_of("data", "synthetic:3") is digest_of("file", "nominal") is None
    assert digest_of("data", str(tmp_path / "none.csv")) is None
    assert digest_of("process", "car_nk") != digest_of("process", "cho")


def test_the_code_is_known_by_its_content() -> None:
    told = code()
    assert told["source_sha256"] == source_sha256()
    assert set(told) == {"version", "source_sha256", "commit", "dirty"}


def a_record(**other: Any) -> Record:
    given: dict[str, Any] = {
        "verb": "fit", "parameters": {"data": "runs.csv", "method": "mcmc", "seed": 1},
        "inputs": {
            "data": {"role": "data", "given": "runs.csv", "sha256": "a" * 64},
            "preset": {"role": "process", "given": "car_nk", "sha256": "b" * 64},
        },
        "folder": "/somewhere", "code": {"version": "1", "source_sha256": "c" * 64, "commit": "d" * 40, "dirty": False},
        "environment": {"python": "3.11", "packages": {"numpy": "2"}}, "seeds": {"seed": 1}, "began": "t", "ended": "t",
        "exit_code": 0, "outputs": {"answer.json": "e" * 64}, "statistics": {"mean_ln mu_max": (-0.3, 0.01)},
        "files": {"answer.json": "f" * 64},
    }  # fmt: skip
    return Record(**{**given, **other})


def test_a_record_reads_back_and_shows_any_alteration() -> None:
    record = a_record()
    content = record.to_json().encode()
    sha256 = digest.of_bytes(content)
    assert from_json(content, sha256) == record
    for k in range(0, len(content), 37):
        altered = content[:k] + bytes([content[k] ^ 1]) + content[k + 1 :]
        with pytest.raises(RecordError, match="altered"):
            from_json(altered, sha256)
    other = content.replace(b'"format": 1', b'"format": 9')
    with pytest.raises(RecordError, match="format 9"):
        from_json(other, digest.of_bytes(other))


def test_what_differs_is_named_by_kind_and_only_the_environment_lets_pass() -> None:
    then = a_record()
    now: dict[str, str | None] = {"data": "a" * 64, "preset": "b" * 64}
    assert differences(then, then.code, now, then.environment) == []
    moved = {**then.code, "commit": "0" * 40, "dirty": True}  # another commit of the same source is the same code
    assert differences(then, moved, now, then.environment) == []
    found = differences(
        then, {**then.code, "source_sha256": "0" * 64}, {"data": None, "preset": "1" * 64},
        {"python": "3.12", "packages": {"numpy": "3"}},
    )  # fmt: skip
    assert [(d.kind, d.what, d.blocks) for d in found] == [
        ("code", "source", True), ("data", "data runs.csv", True), ("configuration", "preset car_nk", True),
        ("environment", "python", False), ("environment", "numpy", False),
    ]  # fmt: skip
    assert str(found[1]) == "data: data runs.csv was aaaaaaaaaaaa, is absent"


def test_equal_bits_are_owed_by_what_is_computed_and_statistics_by_what_is_sampled() -> None:
    then = a_record()
    other, near, far = {"answer.json": "0" * 64}, {"mean_ln mu_max": (-0.29, 0.01)}, {"mean_ln mu_max": (-0.2, 0.01)}
    verdicts = {
        (name, sampler): same(compared(then, 0, bits, found, sampler))
        for sampler in (False, True)
        for name, bits, found in (
            ("all", then.outputs, then.statistics), ("near", other, near), ("far", other, far), ("none", {}, {}),
        )
    }  # fmt: skip
    assert {k for k, v in verdicts.items() if v} == {("all", False), ("all", True), ("near", True)}
    assert not same(compared(then, 1, then.outputs, then.statistics, False))
    assert not same([Row("exit code", "0", "0", None, equal=True)])  # nothing came of it: nothing was shown


@given(st.floats(-5, 5), st.floats(-5, 5), st.floats(0, 3), st.floats(0, 3))
def test_distance_is_symmetric_and_zero_only_for_equals(a: float, b: float, ea: float, eb: float) -> None:
    away = distance((a, ea), (b, eb))
    assert away == distance((b, eb), (a, ea)) >= 0.0
    assert (a != b) or away == 0.0


def test_two_runs_of_a_sound_sampler_agree_and_a_shift_is_seen() -> None:
    """Autoregressive chains, whose Monte-Carlo error is known; 2000 pairs, shifted by nothing and by ten errors."""
    rng, rho, n = np.random.default_rng(5), 0.6, 400
    noise = rng.normal(size=(n, 4000)) * np.sqrt(1 - rho**2)
    x = np.empty_like(noise)
    x[0] = rng.normal(size=4000)
    for k in range(1, n):
        x[k] = rho * x[k - 1] + noise[k]
    error = np.sqrt((1 + rho) / (1 - rho) / n)
    means = x.mean(axis=0)
    away = [distance((a, error), (b, error)) for a, b in means.reshape(-1, 2)]
    assert np.mean(np.array(away) > LIMIT) < 0.002
    shifted = [distance((a, error), (b + 10 * error * np.sqrt(2), error)) for a, b in means.reshape(-1, 2)]
    assert np.mean(np.array(shifted) > LIMIT) > 0.998
    found = np.median([standard_errors(x[:, k : k + 2].T.reshape(-1, 1), 2)[0, 0] for k in range(0, 40, 2)])
    assert found == pytest.approx(error / np.sqrt(2), rel=0.15)


def test_standard_errors_of_independent_draws_are_the_textbooks() -> None:
    draws = np.random.default_rng(3).normal(0.0, [1.0, 2.0], size=(8000, 2))
    mean, sd = standard_errors(draws, 4)
    assert mean == pytest.approx([1 / np.sqrt(8000), 2 / np.sqrt(8000)], rel=0.1)
    assert sd == pytest.approx([1 / np.sqrt(16000), 2 / np.sqrt(16000)], rel=0.1)


def test_numbers_of_an_answer_are_metrics_and_bands_are_not() -> None:
    answer = {"p": {"x": 0.5, "n": None, "who": "D01"}, "due": True, "ci": [0.1, 0.2], "band": list(range(99))}
    assert metrics(answer) == {"p.x": 0.5, "due": 1.0, "ci.0": 0.1, "ci.1": 0.2}


def test_verbs_know_their_seeds_and_which_of_them_sample() -> None:
    assert sampled("fit", {"method": "mcmc"}) and not sampled("fit", {"method": "em"}) and not sampled("condition", {})
    assert seeds("fit", {"data": "synthetic:7", "method": "mcmc", "seed": 3}) == {"data": 7, "seed": 3}
    assert seeds("simulate", {"first": 10, "donors": 5}) == {"first": 10, "last": 14}
    answer = {"parameters": {"mu_max": {"mean_ln": 1.0, "mean_ln_mcse": 0.1, "sd_ln": 2.0, "sd_ln_mcse": None}}}
    assert statistics(answer) == {"mean_ln mu_max": (1.0, 0.1)}
    assert outputs("condition", None, None) == {}


def test_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert place(None) is place("off") is place("") is None
    local = place("on")
    assert local is not None and local.file == tmp_path.resolve() / LOCAL and local.uri == f"sqlite:///{local.file}"
    assert place("sqlite:///runs.db")._replace(shown="") == place("runs.db")._replace(shown="")  # type: ignore[union-attr]
    assert place("sub/../runs.db")._replace(shown="") == place("runs.db")._replace(shown="")  # type: ignore[union-attr]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@host:5000/x")
    server = place("on")
    assert server is not None and server.file is None and server.shown == "http://host:5000/x"
    for folder in (str(tmp_path), "file:runs"):
        with pytest.raises(TrackingError, match="SQLite file"):
            place(folder)


def test_off_is_the_default_and_imports_nothing() -> None:
    probe = (
        "import os, sys\n"
        "os.environ.pop('CELLTWIN_TRACKING', None)\n"
        "from service.cli import run\n"
        "code = run(['simulate', '--engine', 'cloud'])\n"
        "found = [m for m in sys.modules if m.split('.')[0] in ('mlflow', 'sqlalchemy') or m.startswith('service.tracking')]\n"
        "sys.exit(f'imported {found}' if found or code != 2 else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
