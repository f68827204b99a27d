"""The comparison of poolings: pairs by donor, a refit goes before weights, and every job is one fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

pytest.importorskip("pymc", reason="fits are of the donors extra")

from simulators.study import STUDIES, pooling
from twin.donors.fit import Settings

PARTIAL, COMPLETE, NONE = np.array([5.0, 7.0, 6.0, 9.0, 8.0]), np.array([1.0, 2.0, 4.0, 3.0, 5.0]), np.full(5, 6.0)


def rows(refitted: tuple[int, ...] = ()) -> list[dict[str, Any]]:
    """Rows as `run` gives them, of five donors."""
    last = {"day": 13.0, "count": 20.0, "below": 0.5, "within": True, "khat_early": 0.3}
    each = [
        {
            "donor": f"D{d}", "readings": 80, "by_weights": PARTIAL[d], "khat_left": 0.9 if d == 2 else 0.4, "none": NONE[d],
            "none_noise": NONE[d] + 1.0, "seen": PARTIAL[d] + 1.0, "khat": 0.5, **last,
        }
        for d in range(5)
    ]  # fmt: skip
    fitted = {"r_hat": 1.004, "khat": 0.4}
    return [
        {"pooling": "partial", "left": -1, "r_hat": 1.002, "ess": 900.0, "each": each},
        *({"pooling": "complete", "left": d, "log_density": COMPLETE[d], **fitted} for d in range(5)),
        *({"pooling": "partial", "left": d, "log_density": PARTIAL[d] - 0.5, **fitted, **last, "within": False} for d in refitted),
    ]  # fmt: skip


def test_differences_are_paired_by_donor() -> None:
    found = {f.name: f for f in pooling.figures(rows())}
    gap = PARTIAL - COMPLETE
    assert found["partial less complete pooling"].value == pytest.approx(gap.mean())
    assert pooling.compared(rows())["complete"].se == pytest.approx(stats.sem(gap))
    assert found["partial less complete pooling"].holds is True
    assert found["partial less no pooling"].value == pytest.approx((PARTIAL - NONE).mean())
    assert found["partial less no pooling, noise known"].holds is None
    assert "ahead in 3 of 5" in found["partial less no pooling"].note
    assert "power only against" in found["partial less no pooling"].note


def test_a_refit_goes_before_weights() -> None:
    each = pooling.donors(rows((1, 2)))
    assert [e["partial"] for e in each] == [5.0, 6.5, 5.5, 9.0, 8.0]
    assert [e["within"] for e in each] == [True, False, False, True, True]
    found = {f.name: f for f in pooling.figures(rows((1, 2)))}
    off = found["|by weights - by refit|, largest"]
    assert (off.value, off.n) == (pytest.approx(0.5), 2)
    assert "of 1 with" in off.note  # donor 2 has a k-hat that is not to be trusted
    assert "|by weights - by refit|, largest" not in {f.name for f in pooling.figures(rows())}


def test_coverage_is_a_count_with_its_power() -> None:
    found = next(f for f in pooling.figures(rows((0,))) if f.name.startswith("last counts"))
    assert (found.value, found.n) == (4, 5)
    assert "power" in found.note
    dense, last = pooling.tables(rows((0,)))
    assert len(dense.rows) == len(last.rows) == 5
    assert all(len(r) == len(dense.columns) for r in dense.rows)


def test_every_donor_is_left_out_of_both_poolings_once() -> None:
    found = pooling.jobs(6, 3002, "car_nk", None)
    assert [j.left for j in found if j.pooling == "partial"] == [-1, 0, 1, 2, 3, 4, 5]
    assert [j.left for j in found if j.pooling == "complete"] == [0, 1, 2, 3, 4, 5]
    study = STUDIES["pooling"]
    assert (study.batches, study.first) == (17, 17)


@pytest.mark.slow
def test_a_donor_is_foretold_by_fits_that_never_saw_him(monkeypatch: pytest.MonkeyPatch) -> None:
    quick = Settings(draws=30, tune=40, chains=2, cores=1)
    monkeypatch.setattr(pooling, "REFIT", quick)
    monkeypatch.setattr(pooling, "COMPLETE", quick)
    told = [pooling.run(pooling.Job(p, 4, 5, 3002, "car_nk")) for p in ("partial", "complete")]
    assert np.isfinite([t["log_density"] for t in told]).all()
    assert told[0]["log_density"] > told[1]["log_density"]  # four donors already show that they differ
    assert 0.0 < told[0]["below"] < 1.0
    assert told[0]["day"] > pooling.UNTIL
