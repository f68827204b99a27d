"""What the donor fit is given, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from simulators.history import NOTE, synthetic_history, write_history
from twin.config import load_config
from twin.donors.data import FitError, data_hash, prepare
from twin.evidence import ControlApplied, Measurement
from twin.records import DataError, RecordedBatch, read_batches

PROCESS = load_config("car_nk")


def record(donor: str, counts: tuple[float, ...] = (0.5, 0.7, 1.2, 2.0, 3.5)) -> RecordedBatch:
    own = 1.0 + 1e-4 * (ord(donor[-1]) - ord("a"))  # no two batches have the same readings
    measured = [Measurement(f"count-{t}", "viable_density", own * v, float(t), float(t)) for t, v in enumerate(counts)]
    measured += [Measurement(f"glucose-{t}", "glucose", 24.0 - t, float(t), float(t)) for t in range(len(counts))]
    actions = (ControlApplied("dose", 0.0, "cytokine_dose", 300.0),)
    return RecordedBatch(f"B-{donor}", donor, donor, "car_nk", None, tuple(measured), actions)


FOUR = tuple(record(d) for d in "abcd")


def test_controls_are_mass_exact() -> None:
    """What was pumped in total is the same on the grid, changes off the grid included."""
    actions = (
        ControlApplied("p1", 0.3, "perfusion", 0.5), ControlApplied("p2", 1.77, "perfusion", 1.25),
        ControlApplied("d", 0.0, "cytokine_dose", 300.0),
    )  # fmt: skip
    data = prepare((replace(FOUR[0], actions=actions), *FOUR[1:]), PROCESS)
    u = data.controls(24, 1 / 6)
    assert u[:, 0, 0].sum() / 6 == pytest.approx(0.5 * (1.77 - 0.3) + 1.25 * (4.0 - 1.77), abs=1e-12)
    assert u[0, 0, 0] == 0.0
    assert u[-1, 0, 0] == pytest.approx(1.25)
    np.testing.assert_allclose(u[:, 3, 0], 300.0)
    np.testing.assert_allclose(u[:, 0, 1], 0.0)


def test_first_analyte_reading_starts_the_trajectory_and_is_not_scored() -> None:
    data = prepare(FOUR, PROCESS)
    np.testing.assert_allclose(data.initial.glucose, 24.0)
    assert data.samples["glucose"].time.min() == 1.0
    assert data.samples["viable_density"].time.min() == 0.0
    assert data.samples["viable_density"].time.size == 20


@pytest.mark.parametrize(
    ("records", "says"),
    [
        (FOUR[:2], "2 donors.*at least 4.*preset prior"),
        ((), "0 donors"),
        ((*FOUR, record("e", (0.5,))), "'B-e' of donor 'e' has 1 positive viable_density samples"),
        ((*FOUR, record("e", (0.0,) * 6)), "'B-e' of donor 'e' has 0 positive"),
        ((*FOUR[:3], replace(FOUR[3], actions=())), "'B-d' has no perfusion, feed or cytokine_dose"),
        (
            (*FOUR[:3], replace(FOUR[3], metadata={"cells_in_harvest": -1.0, "cells_out_harvest": 2.0})),
            "'B-d': cells_in_harvest is -1.0: it must be a number above 0",
        ),
        (
            (*FOUR[:3], replace(FOUR[3], metadata={"cells_in_thaw": 2.0, "cells_out_thaw": 7.0})),
            "'B-d': 7e9 cells came out of thaw, 2e9 went in, and it grows none",
        ),
    ],
)
def test_unusable_records_are_refused_by_name(records: tuple[RecordedBatch, ...], says: str) -> None:
    with pytest.raises(FitError, match=says):
        prepare(records, PROCESS)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("B,d,1.0,viable_density,-3,1e6 cells/mL", "outside"),
        ("B,d,1.0,viable_density,3,", "unit"),
        ("B,d,1.0,viable_density,3,furlong", "unit"),
        ("B,d,1.0,viable_density,nan,1e6 cells/mL", "value"),
        ("B,d,0.0,viable_density,4,1e6 cells/mL", "duplicate"),
    ],
)
def test_bad_files_are_refused_with_their_row(row: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "measurements.csv"
    path.write_text(f"batch,donor,time_d,channel,value,unit\nB,d,0.0,viable_density,0.5,1e6 cells/mL\n{row}\n")
    with pytest.raises(DataError, match=f"row 3.*{says}"):
        read_batches(path)


def test_hash_follows_content_not_order() -> None:
    assert data_hash(FOUR) == data_hash(FOUR[::-1])
    changed = replace(FOUR[0].measurements[0], value=0.5000001)
    other = replace(FOUR[0], measurements=(changed, *FOUR[0].measurements[1:]))
    assert data_hash((other, *FOUR[1:])) != data_hash(FOUR)


def test_history_is_seeded_labelled_and_readable(tmp_path: Path) -> None:
    history = synthetic_history(PROCESS, donors=2, seed=5)
    assert history == synthetic_history(PROCESS, donors=2, seed=5)
    assert len({b.donor for b in history}) == 2
    assert all(b.metadata["synthetic"] == NOTE and b.donor.startswith("SYN-") for b in history)
    written = write_history(PROCESS, tmp_path, donors=2, seed=5)
    assert "SYNTHETIC" in written[-1].read_text()
    back = {b.id: b for b in read_batches(tmp_path)}
    for b in history:
        assert back[b.id].measurements == b.measurements
        assert back[b.id].actions == b.actions
        assert dict(back[b.id].metadata) == dict(b.metadata)


def test_history_goes_through_all_stages() -> None:
    history = {b.metadata["stage"]: b for b in synthetic_history(PROCESS, donors=1, seed=8)}
    assert set(history) == {"activation", "seed_train", "bioreactor"}
    reactor = history["bioreactor"]
    for stage in ("collection", "isolation", "transduction", "harvest", "formulation", "thaw"):
        recovered = reactor.metadata[f"cells_out_{stage}"] / reactor.metadata[f"cells_in_{stage}"]
        assert 0.2 < recovered < 1.6, stage
    assert {m.channel for m in reactor.measurements} >= {
        "viable_density",
        "viability",
        "glucose",
        "lactate",
        "car_fraction",
    }
    assert reactor.actions[-1].actuator == "harvest"
    assert reactor.actions[-1].at <= 14.0
    late = [m.received_at - m.sampled_at for m in reactor.measurements]
    assert min(late) > 0


def culture(donor: str, counts: tuple[float, ...], name: str = "") -> RecordedBatch:
    measured = tuple(Measurement(f"c-{t}", "viable_density", v, float(t), float(t)) for t, v in enumerate(counts))
    return RecordedBatch(name or f"A-{donor}", donor, donor, "car_nk", None, measured, (), {"stage": "activation"})


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (replace(FOUR[0], id="copy"), "'copy' has the same readings as 'B-a'"),
        (replace(record("e"), preset="cho"), "'B-e' is of preset 'cho', not 'car_nk'"),
        (culture("a", (0.3, 0.0, 0.5)), "'A-a': 'c-1': a static culture counted at nothing"),
    ],
)
def test_contradictory_batches_are_refused_by_name(more: RecordedBatch, says: str) -> None:
    with pytest.raises(FitError, match=says):
        prepare((*FOUR, more), PROCESS)


def test_a_stage_of_a_donor_is_told_once() -> None:
    cultures = culture("a", (0.3, 0.4, 0.7)), culture("a", (0.31, 0.4, 0.7), "again")
    with pytest.raises(FitError, match="'again' has another activation of donor 'a' as 'A-a'"):
        prepare((*FOUR, *cultures), PROCESS)


def test_negative_readings_are_refused_in_the_library_too() -> None:
    bad = Measurement("x", "glucose", -3.0, 2.0, 2.0)
    with pytest.raises(FitError, match="'B-d': 'x': "):
        prepare((*FOUR[:3], replace(FOUR[3], measurements=(*FOUR[3].measurements, bad))), PROCESS)


@pytest.mark.parametrize(
    ("ages", "says"),
    [
        ((30.0, 40.0, 50.0, None), "'B-d' of donor 'd': covariate 'age' is None: give every donor a number"),
        ((30.0, 40.0, 50.0, "old"), "covariate 'age' is 'old'"),
        ((30.0, 30.0, 30.0, 30.0), "covariate 'age' is 30 for every donor"),
    ],
)
def test_a_covariate_that_cannot_explain_is_refused(ages: tuple[object, ...], says: str) -> None:
    told = [replace(r, metadata={"age": a}) for r, a in zip(FOUR, ages, strict=True)]  # type: ignore[dict-item]
    with pytest.raises(FitError, match=says):
        prepare(told, PROCESS, ("age",))


def test_batches_of_one_donor_must_agree_on_a_covariate() -> None:
    told = [replace(r, metadata={"age": a}) for r, a in zip(FOUR, (30.0, 40.0, 50.0, 60.0), strict=True)]
    again = replace(record("f"), id="B-a2", donor="a", group="a", metadata={"age": 31.0})
    with pytest.raises(FitError, match="donor 'a': covariate 'age' is 30 in one batch and 31 in 'B-a2'"):
        prepare([*told, again], PROCESS, ("age",))
    data = prepare(told, PROCESS, ("age",))
    assert data.covariates["age"].mean() == pytest.approx(0.0)
    assert data.covariates["age"].std() == pytest.approx(1.0)
