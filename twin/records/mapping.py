"""The column mapping of a wide laboratory file: YAML, strict, one file a layout (`configs/mappings`)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from twin.config import Name, configs_dir, parse, read_yaml
from twin.records.record import DataError
from twin.records.table import header
from twin.sensors import CHANNELS, MONITORED
from twin.units import scale_of

Column = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ChannelColumn(_Strict):
    """One channel and the column it is in."""

    channel: str
    column: Column
    unit: str  # of the cell, after division by `per` where that is given
    per: Column | None = None  # divide the cell by this column (cells per dish by the dish's volume)
    sd: Column | None = None  # standard deviation of the replicates behind the cell, in the cell's unit
    replicates: Column | None = None  # their number: the standard deviation of the mean is sd / sqrt(replicates)
    thousands: bool = False  # admit 1,234.5

    @model_validator(mode="after")
    def _known(self) -> ChannelColumn:
        if self.channel not in CHANNELS and self.channel not in MONITORED:
            raise ValueError(f"unknown channel {self.channel!r}; known: {', '.join(sorted((*CHANNELS, *MONITORED)))}")
        scale_of(self.channel, self.unit)
        if self.replicates is not None and self.sd is None:
            raise ValueError("`replicates` needs `sd`")
        return self


class TimeColumn(_Strict):
    """The column of the sampling time. With `code: day.feed` a cell n is day n, and n.k a sample after feed k of day n."""

    column: Column
    unit: Literal["d", "h"]
    code: Literal["plain", "day.feed"] = "plain"

    @model_validator(mode="after")
    def _days(self) -> TimeColumn:
        if self.code == "day.feed" and self.unit != "d":
            raise ValueError("`code: day.feed` counts days; expected unit d")
        return self


class FeedRows(_Strict):
    """How rows that follow a bolus feed are read. Their times are not recorded: the feed is placed at day + `at`."""

    at: float = Field(gt=0, lt=0.5)  # start of the bolus after the day's first sample [d]
    lasts: float = Field(gt=0, lt=0.5)  # [d]
    sampled: float = Field(gt=0, lt=0.5)  # when the row's sample was drawn, after the day's first sample [d]
    dilution: float = Field(gt=0, lt=1)  # volume before over volume after the feed
    computed: tuple[str, ...]  # channels that such rows compute instead of measure: left out
    source: str

    @model_validator(mode="after")
    def _order(self) -> FeedRows:
        if self.sampled < self.at + self.lasts:
            raise ValueError("`sampled` must not be before the end of the feed (`at` + `lasts`)")
        return self


class Mapping(_Strict):
    """How a wide file is read. Every column must be used or listed under `ignore` with the reason."""

    name: Name
    title: str
    source: str
    header_row: int = Field(default=1, ge=1, le=10)
    batch: str  # a format over columns: "{run_id}", "{Clone}_r{rep}"
    donor: str
    group: str
    preset: Name | None = None
    time: TimeColumn
    channels: tuple[ChannelColumn, ...] = Field(min_length=1)
    feed_rows: FeedRows | None = None
    metadata: tuple[Column, ...] = ()  # columns that are constant over a batch and kept as they are
    ignore: dict[Column, str] = {}  # column: why it is not read

    @model_validator(mode="after")
    def _consistent(self) -> Mapping:
        channels = [c.channel for c in self.channels]
        twice = sorted({c for c in channels if channels.count(c) > 1})
        if twice:
            raise ValueError(f"channels mapped twice: {', '.join(twice)}")
        if (self.time.code == "day.feed") != (self.feed_rows is not None):
            raise ValueError("`time.code: day.feed` and `feed_rows` go together")
        both = sorted(set(self.used) & set(self.ignore))
        if both:
            raise ValueError(f"columns both used and ignored: {', '.join(both)}")
        return self

    @property
    def used(self) -> tuple[str, ...]:
        """Columns that are read."""
        found = [self.time.column, *self.metadata]
        for template in (self.batch, self.donor, self.group):
            found += fields(template)
        for c in self.channels:
            found += [name for name in (c.column, c.per, c.sd, c.replicates) if name is not None]
        return tuple(dict.fromkeys(found))


def fields(template: str) -> list[str]:
    """Column names in braces. Raises ValueError for unbalanced braces or a template without any."""
    names: list[str] = []
    rest = template
    while "{" in rest:
        before, _, rest = rest.partition("{")
        name, closed, rest = rest.partition("}")
        if "}" in before or not closed or not name:
            raise ValueError(f"{template!r} has unbalanced braces; expected for instance '{{run_id}}'")
        names.append(name)
    if "}" in rest or not names:
        raise ValueError(f"{template!r} names no column; expected for instance '{{run_id}}'")
    return names


def mappings_dir() -> Path:
    """Folder of the shipped mappings."""
    return configs_dir() / "mappings"


def mapping_names() -> tuple[str, ...]:
    """Names of the shipped mappings."""
    return tuple(sorted(p.stem for p in mappings_dir().glob("*.yaml")))


def load_mapping(name: str) -> Mapping:
    """A mapping by shipped name or by file. Raises DataError (unknown name) or ConfigError (file and field)."""
    if name.endswith((".yaml", ".yml")) or "/" in name:
        path = Path(name)
        if not path.is_file():
            raise DataError(path, "no such mapping file")
    else:
        path = mappings_dir() / f"{name}.yaml"
        if not path.is_file():
            raise DataError(name, f"no such mapping; known: {', '.join(mapping_names())}")
    return parse(Mapping, read_yaml(path), str(path))


def detect(path: Path) -> Mapping | None:
    """The one shipped mapping whose columns are exactly those of the file, or None for a tidy file.

    Raises DataError where none fits or several do.
    """
    if not path.is_file():
        raise DataError(path, "no such file")
    first = header(path, 1)
    if {"batch", "channel", "value", "unit"} <= set(first):
        return None
    fitting = []
    for name in mapping_names():
        mapping = load_mapping(name)
        if set(header(path, mapping.header_row)) == {*mapping.used, *mapping.ignore}:
            fitting.append(mapping)
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise DataError(
            path, f"fits several mappings ({', '.join(m.name for m in fitting)}); choose one with --mapping"
        )
    raise DataError(
        path,
        f"is neither tidy (batch, channel, value, unit) nor fits a known mapping ({', '.join(mapping_names())}); "
        f"choose or write one for --mapping; its columns: {', '.join(first) or '(none)'}",
    )
