"""The measured sets through their mappings: counts as published, traps kept."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from twin.records import read_records
from twin.records.mapping import detect, mapping_names

DATA = Path(os.environ.get("CELLTWIN_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "data" / "synthetic_fedbatch.csv"

FILES = {
    "nistcho": "nistcho_fedbatch/vicell.csv",
    "clonalyzer_tidy": "clonalyzer_cho_fedbatch/runs_tidy.csv",
    "clonalyzer_raw": "clonalyzer_cho_fedbatch/raw_2024-11-06.csv",
    "copeland": "copeland2023_lung_fibroblast/runs_wide.csv",
}


def measured(name: str) -> Path:
    path = DATA / FILES[name]
    if not path.is_file():
        pytest.skip(f"measured data not at {DATA}; set CELLTWIN_DATA")
    return path


@pytest.mark.parametrize("name", sorted(FILES))
def test_the_header_alone_finds_the_mapping(name: str) -> None:
    mapping = detect(measured(name))
    assert mapping is not None and mapping.name == name


def test_every_shipped_mapping_is_tried_here() -> None:
    assert set(mapping_names()) == set(FILES)


def test_nistcho_is_read_whole() -> None:
    records = read_records(measured("nistcho"))
    assert len(records.batches) == 18 and len({b.group for b in records.batches}) == 6
    assert sum(len(b.measurements) for b in records.batches) == 3 * 192 and records.skipped == ()
    lasting = {b.id: b.measurements[-1].sampled_at for b in records.batches}
    assert sorted(b for b, t in lasting.items() if t < 5) == ["FB2_A_R1", "FB2_B_R1", "FB2_B_R3"]
    assert max(lasting.values()) == pytest.approx(262.5 / 24, abs=0.05)


def test_clonalyzer_reads_the_same_from_the_raw_and_the_tidied_file() -> None:
    tidy, raw = (read_records(measured(n)) for n in ("clonalyzer_tidy", "clonalyzer_raw"))
    assert len(tidy.batches) == len(raw.batches) == 8 and {b.group for b in raw.batches} == {
        "C",
        "X-B7",
        "X-D2",
        "X-E6",
    }
    by_donor = {b.donor: b for b in raw.batches}
    for b in tidy.batches:
        assert b.actions == by_donor[b.donor].actions
        for ours, theirs in zip(b.measurements, by_donor[b.donor].measurements, strict=True):
            assert (ours.id, ours.channel, ours.sampled_at) == (theirs.id, theirs.channel, theirs.sampled_at)
            assert ours.value == pytest.approx(theirs.value, rel=1e-9)


def test_clonalyzer_counts_after_a_feed_are_not_taken_for_counts() -> None:
    records = read_records(measured("clonalyzer_tidy"))
    counts = [m for b in records.batches for m in b.measurements if m.channel == "viable_density"]
    assert len(counts) == 98 and all(m.sampled_at.is_integer() for m in counts)
    assert max(m.value for m in counts) == pytest.approx(23.6)
    cells = 155 * 5  # five mapped channels a row
    taken = sum(len(b.measurements) for b in records.batches)
    assert taken + sum(s.count for s in records.skipped) == cells
    boluses = [a for b in records.batches for a in b.actions if a.rate > 0]
    assert len(boluses) == 57 - 14  # rows after a feed, less those that repeat the analysis before it


def test_fibroblast_cells_a_dish_become_a_density() -> None:
    records = read_records(measured("copeland"))
    assert len(records.batches) == 200
    first = records.batches[0].measurements[-0]
    density = next(m for m in records.batches[0].measurements if m.channel == "viable_density")
    assert first.sampled_at == density.sampled_at == 0.0
    assert density.value == pytest.approx(27665.956869 / 1.994361427 * 1e-6, rel=1e-6)
    assert density.sd == pytest.approx(2212.127344 / 3**0.5 / 1.994361427 * 1e-6, rel=1e-6)
    assert {s.reason for s in records.skipped} == {"blank"}


def test_the_shipped_example_is_read_without_loss() -> None:
    records = read_records(EXAMPLE)
    assert records.mapping == "tidy" and records.skipped == ()
    assert len(records.batches) == 4 and all(b.preset == "cho" and b.actions for b in records.batches)
