"""Records: what goes in comes out, what is left out is counted, and what is wrong is named by file, row and column."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from twin.evidence import ControlApplied, Measurement
from twin.records import DataError, RecordedBatch, read_batches, read_records, write_tidy
from twin.records.record import by_time
from twin.sensors import CHANNELS

HEADER = "batch,donor,time_d,channel,value,unit"


def write(folder: Path, text: str, name: str = "run.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_tidy_file_in_the_units_of_the_laboratory(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "batch,donor,time_d,channel,value,unit,sd,available_d,source,sample,version\n"
        "B1,D1,1.0,viable_density,2.5e6,cells/mL,1e5,1.5,vicell,S1,1\n"
        "B1,D1,1.0,viable_density,2.6e6,cells/mL,1e5,2.5,vicell,S1,2\n"
        "B1,D1,0.5,viability,97,percent,,,,,\n"
        "B1,D1,0.5,glucose,4.5,g/L,,,,,\n",
    )
    write(
        tmp_path,
        "batch,time_d,actuator,rate,unit,until_d\nB1,1,perfusion,50,mL/h,2\nB1,2,perfusion,100,mL/h,3\n",
        "run_actions.csv",
    )
    write(
        tmp_path,
        "batch,donor,preset,start,volume,age\nB1,D1,car_nk,2026-11-01T08:00:00+01:00,1.2,44\n",
        "run_batches.csv",
    )
    (batch,) = read_batches(path)
    assert (batch.id, batch.donor, batch.group, batch.preset) == ("B1", "D1", "D1", "car_nk")
    assert batch.start == datetime(2026, 11, 1, 7, tzinfo=UTC)
    assert batch.metadata == {"volume_l": 1.2, "age": 44.0}
    assert [m.channel for m in batch.measurements] == ["glucose", "viability", "viable_density", "viable_density"]
    assert [m.value for m in batch.final] == pytest.approx([24.978, 0.97, 2.6], rel=1e-4)
    count = batch.final[-1]
    assert (count.version, count.received_at, count.sd) == (2, 2.5, pytest.approx(0.1))
    assert [(a.at, a.rate) for a in batch.actions] == [(1.0, pytest.approx(1.0)), (2.0, pytest.approx(2.0)), (3.0, 0.0)]


def test_clock_times_count_from_the_start_of_the_batch(tmp_path: Path) -> None:
    path = write(
        tmp_path, "batch,donor,time,channel,value,unit\nB,D,2026-11-02T20:00:00+01:00,ph,7.1,pH\n", "measurements.csv"
    )
    with pytest.raises(DataError, match=r"row 2: column time: .*start"):
        read_batches(path)
    write(tmp_path, "batch,start\nB,2026-11-01T07:00:00Z\n", "batches.csv")
    (batch,) = read_batches(tmp_path)  # a folder is read through its measurements file
    assert batch.measurements[0].sampled_at == pytest.approx(1.5)


def test_a_word_for_word_repetition_is_counted_not_kept(tmp_path: Path) -> None:
    records = read_records(write(tmp_path, f"{HEADER}\nB,D,1,ph,7.1,pH\nB,D,1,ph,7.1,pH\n"))
    assert len(records.batches[0].measurements) == 1
    assert [(s.column, s.count) for s in records.skipped] == [("ph", 1)]


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ("B,D,1,glucose,nan,mM", r"row 2: column value: 'nan' is not a number"),
        ("B,D,1,glucose,,mM", r"row 2: column value: is empty"),
        ("B,D,1,glucose,-1,mM", r"row 2: column value: glucose -1.0 is outside"),
        ("B,D,1,glucose,1e999,mM", r"row 2: column value: '1e999' is not a finite number"),
        ('B,D,1,glucose,"1,200",mM', r"row 2: column value: .*thousands"),
        ("B,D,1,viability,97%,percent", r"row 2: column value: .*percent sign"),
        ("B,D,1,viability,97,dimensionless", r"row 2: column value: viability 97.0 is outside 0..1"),
        ("B,D,1,glucose,5,", r"row 2: column unit: glucose: the unit is absent; expected one of mM, g/L"),
        ("B,D,1,glucose,5,IU/mL", r"row 2: column unit: glucose: unit 'IU/mL' is not usable"),
        ("B,D,1,glucoze,5,mM", r"row 2: column channel: unknown 'glucoze'; known: .*glucose"),
        ("B,D,-1,glucose,5,mM", r"row 2: column time_d: -1.0 is before inoculation"),
        ("B,D,,glucose,5,mM", r"row 2: column time_d: is empty"),
        (",D,1,glucose,5,mM", r"row 2: column batch: is empty"),
        ("B,D,1,glucose,5,mM,9", r"row 2: has 7 cells; expected 6"),
        ("B,D,1,glucose,5,mM\nB,D,1,glucose,6,mM", r"row 3: duplicate id 'glucose@1.0' version 1"),
        ("B,D,1,glucose,5,mM\nB,E,2,glucose,6,mM", r"row 3: column donor: 'E', but batch 'B' has donor 'D'"),
        ("B,,1,glucose,5,mM", r"column donor: batch 'B' has no donor"),
    ],
)
def test_every_mistake_names_its_place(tmp_path: Path, row: str, complaint: str) -> None:
    path = write(tmp_path, f"{HEADER}\n{row}\n")
    with pytest.raises(DataError, match=complaint) as caught:
        read_batches(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_mistakes_of_the_whole_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_batches(tmp_path / "absent.csv")
    with pytest.raises(DataError, match="neither tidy .* nor fits a known mapping .*nistcho"):
        read_batches(write(tmp_path, "a,b\n1,2\n"))
    with pytest.raises(DataError, match="column colour: unknown; known: batch"):
        read_batches(write(tmp_path, f"{HEADER},colour\nB,D,1,ph,7,pH,red\n"))
    with pytest.raises(DataError, match="column unit: missing"):
        read_batches(write(tmp_path, "batch,donor,time_d,channel,value\nB,D,1,ph,7\n"), "tidy")
    with pytest.raises(DataError, match="no such mapping; known: .*nistcho"):
        read_batches(write(tmp_path, f"{HEADER}\n"), "nistcho2")
    with pytest.raises(DataError, match="holds no rows"):
        read_batches(write(tmp_path, f"{HEADER}\n"))
    binary = tmp_path / "binary.csv"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not UTF-8 text"):
        read_batches(binary)


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ("B,1,perfusion,50,mL/h,", r"row 2: column unit: perfusion: .*working volume"),
        ("B,1,perfusion,-1,1/d,", r"row 2: column rate: -1 is negative"),
        ("B,1,pump,1,1/d,", r"row 2: column actuator: unknown 'pump'"),
        ("C,1,feed,1,1/d,", r"row 2: column batch: 'C' has no measurements"),
        ("B,1,feed,1,1/d,1", r"row 2: column until_d: 1.0 is not after"),
        ("B,1,feed,1,1/d,3\nB,2,feed,2,1/d,", r"row 3: column time_d: 2.0 is not after the row before .*until 3.0"),
        ("B,2,feed,1,1/d,\nB,1,feed,2,1/d,", r"row 3: column time_d: 1.0 is not after the row before"),
    ],
)
def test_mistakes_in_actions_name_their_place(tmp_path: Path, rows: str, complaint: str) -> None:
    path = write(tmp_path, f"{HEADER}\nB,D,1,ph,7.1,pH\n")
    write(tmp_path, f"batch,time_d,actuator,rate,unit,until_d\n{rows}\n", "run_actions.csv")
    with pytest.raises(DataError, match=complaint):
        read_batches(path)


WIDE = """name: lab
title: a wide file
source: the test
batch: "{run}"
donor: "{clone}"
group: "{clone}"
preset: cho
time: {column: day, unit: d, code: day.feed}
channels:
  - {channel: viable_density, column: vcd, unit: cells/mL, thousands: true}
  - {channel: viability, column: via, unit: percent}
  - {channel: glucose, column: g, unit: g/L}
feed_rows: {at: 0.01, lasts: 0.01, sampled: 0.05, dilution: 0.8, computed: [viable_density, viability], source: the test}
ignore: {note: free text}
"""


def wide(folder: Path, rows: str, mapping: str = WIDE) -> tuple[Path, str]:
    write(folder, mapping, "lab.yaml")
    return write(folder, f"\ufeffrun,clone,day,vcd,via,g,note\n{rows}\n", "wide.csv"), str(folder / "lab.yaml")


def test_a_wide_file_with_its_quirks(tmp_path: Path) -> None:
    path, mapping = wide(
        tmp_path,
        'r1,C,0,"1,500,000",97%,4.5,\nr1,C,1,2e6,96,,fine\nr1,C,1.1,1.6e6,96%,6.0,\nr1,C,2,3e6,95%,5.0,\nr1,C,2.1,2.4e6,95%,5.0,',
    )
    records = read_records(path, mapping)
    (batch,) = records.batches
    counts = [(m.sampled_at, m.value) for m in batch.measurements if m.channel == "viable_density"]
    assert counts == [(0.0, 1.5), (1.0, 2.0), (2.0, 3.0)]
    assert [m.sampled_at for m in batch.measurements if m.channel == "glucose"] == [0.0, 1.05, 2.0]
    on, off = batch.actions  # one bolus: the row after day 2 repeats the analysis, so it shows no feed
    assert (on.at, off.at, off.rate) == (pytest.approx(1.01), pytest.approx(1.02), 0.0)
    assert 2.71828 ** (-on.rate * 0.01) == pytest.approx(0.8, rel=1e-4)
    assert [(s.column, s.count) for s in records.skipped] == [("g", 1), ("g", 1), ("vcd", 2), ("via", 2)]
    assert len(batch.measurements) + sum(s.count for s in records.skipped) == 5 * 3  # every cell is accounted for


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ("r1,C,0,abc,97,4,", r"row 2: column vcd: 'abc' is not a number"),
        ("r1,C,0,2e6,197,4,", r"row 2: column via: viability 1.97 is outside 0..1"),
        ("r1,C,0,-2e6,97,4,", r"row 2: column vcd: viable_density -2.0 is outside"),
        ("r1,C,0,2e6,97,4%,", r"row 2: column g: '4%' is not a number; a percent sign"),
        ("r1,C,1,2e6,97,4,\nr1,C,0,2e6,97,4,", r"row 3: column day: goes back in time"),
        ("r1,C,1,2e6,97,4,\nr1,C,1,2e6,97,4,", r"row 3: column day: repeats the time of batch 'r1' on row 2"),
        ("r1,C,1,2e6,97,4,\nr1,D,2,2e6,97,4,", r"row 3: donor, group or metadata of batch 'r1' differ"),
        ("r1,C,,2e6,97,4,", r"row 2: column day: is empty"),
        (",C,0,2e6,97,4,", r"row 2: column run: is empty"),
        ("r1,C,0,2e6,97,4,\nr1,C,1.1,2e6,97,4,", r"row 3: batch 'r1' has a row after a feed on day 1, but none before"),
        ("r1,C,1.13,2e6,97,4,", r"row 2: column day: 1.13 is not a day code"),
    ],
)
def test_mistakes_in_a_wide_file_name_their_place(tmp_path: Path, rows: str, complaint: str) -> None:
    path, mapping = wide(tmp_path, rows)
    with pytest.raises(DataError, match=complaint):
        read_records(path, mapping)


def test_a_mapping_is_strict(tmp_path: Path) -> None:
    from twin.config import ConfigError

    for text, complaint in (
        (WIDE + "colour: red\n", "field colour"),
        (WIDE.replace("unit: g/L", "unit: IU/mL"), "channels.*not usable"),
        (WIDE.replace("channel: glucose", "channel: glucoze"), "unknown channel"),
        (WIDE.replace("glucose, column: g, unit: g/L", "viability, column: g, unit: percent"), "mapped twice"),
        (WIDE.replace('batch: "{run}"', "batch: run"), "names no column"),
    ):
        path, mapping = wide(tmp_path, "r1,C,0,2e6,97,4,", text)
        with pytest.raises((ConfigError, ValueError), match=complaint):
            read_records(path, mapping)
    path, mapping = wide(tmp_path, "r1,C,0,2e6,97,4,", WIDE.replace("ignore: {note: free text}\n", ""))
    with pytest.raises(DataError, match="column note: not in mapping 'lab'"):
        read_records(path, mapping)


# --- round trip -------------------------------------------------------------------------------------------------------

NAMES = st.text(alphabet="ABCdef019_-.", min_size=1, max_size=8).filter(lambda s: s[0].isalpha())
TIMES = st.floats(0, 30, allow_nan=False).map(lambda t: round(t, 6))


@st.composite
def batches(draw: st.DrawFn) -> Sequence[RecordedBatch]:
    found = []
    for name in draw(st.lists(NAMES, min_size=1, max_size=3, unique=True)):
        measurements = []
        for k in range(draw(st.integers(1, 6))):
            channel = draw(st.sampled_from(sorted(CHANNELS)))
            low, high = CHANNELS[channel].low, CHANNELS[channel].high
            at = draw(TIMES)
            sd = draw(st.none() | st.floats(1e-6, 10))
            value, delay = draw(st.floats(low, high)), draw(st.floats(0, 3))
            measurements.append(Measurement(f"m{k}", channel, value, at, at + delay, sd, draw(st.integers(1, 3))))
        starts = draw(st.lists(TIMES, max_size=3, unique=True))
        actions = [
            ControlApplied(f"a{at!r}", at, "perfusion", draw(st.floats(0, 20)), draw(st.none() | NAMES))
            for at in sorted(starts)
        ]
        start = draw(st.none() | st.datetimes(timezones=st.just(UTC)))
        metadata: dict[str, str | float] = draw(
            st.fixed_dictionaries(
                {}, optional={"volume_l": st.floats(0.1, 9), "medium": NAMES, "age": st.floats(1, 90)}
            )
        )
        found.append(
            RecordedBatch(
                name, draw(NAMES), draw(NAMES), draw(st.none() | NAMES), start,
                tuple(sorted(measurements, key=by_time)), tuple(actions), metadata,
            )
        )  # fmt: skip
    return found


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches(), st.sampled_from(["run.csv", "measurements.csv", "x_measurements.csv", "run.parquet"]))
def test_written_and_read_back_is_the_same(tmp_path: Path, recorded: Sequence[RecordedBatch], name: str) -> None:
    paths = write_tidy(recorded, tmp_path / name)
    assert all(p.is_file() for p in paths)
    assert sorted(read_batches(paths[0]), key=lambda b: b.id) == sorted(recorded, key=lambda b: b.id)


def test_only_known_suffixes_are_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\.csv or \.parquet"):
        write_tidy([], tmp_path / "run.xlsx")
