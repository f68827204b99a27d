"""What a study is: jobs that are pure functions of their seeds, rows, and figures held against targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from twin.config import load_config
from twin.donors.prior import DonorPrior, preset_prior
from twin.process import Process

Row = Mapping[str, Any]


class OneDonor(NamedTuple):
    """The usual job: one donor on one rig."""

    seed: int
    process: str
    prior: DonorPrior | None

    @property
    def given(self) -> tuple[Process, DonorPrior]:
        """What the twin starts from; where no prior is given, the preset's."""
        process = load_config(self.process)
        return process, self.prior or preset_prior(process)


def one_each(batches: int, first: int, process: str, prior: DonorPrior | None) -> Sequence[OneDonor]:
    """One job a donor."""
    return [OneDonor(first + k, process, prior) for k in range(batches)]


class Figure(NamedTuple):
    """One measured number, and what is owed."""

    name: str
    value: float
    low: float | None = None  # target range, inclusive; None: open
    high: float | None = None
    n: int = 0  # batches, readings or intervals behind it
    note: str = ""

    @property
    def holds(self) -> bool | None:
        """Whether the target is met; None without a target; NaN meets none."""
        if self.low is None and self.high is None:
            return None
        return bool((self.low is None or self.value >= self.low) and (self.high is None or self.value <= self.high))


class Table(NamedTuple):
    """A table beside the figures."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


class Study(NamedTuple):
    """A study of the estimator."""

    title: str
    batches: int  # default number
    jobs: Callable[[int, int, str, DonorPrior | None], Sequence[Any]]  # (batches, first seed, process, prior) -> jobs
    run: Callable[[Any], Row]  # in any process
    figures: Callable[[Sequence[Row]], tuple[Figure, ...]]
    tables: Callable[[Sequence[Row]], tuple[Table, ...]] = lambda rows: ()
    first: int = 0  # default seed
    least: int = 1  # batches without which there is nothing to study
