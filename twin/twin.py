"""The notebook's handle on a batch: a value with methods, nothing that `twin.batch` and `twin.futures` do not do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from twin.batch import Batch, believe_at, start, tell
from twin.bioreactor import Control, State
from twin.donors.prior import DonorPrior, preset_prior
from twin.estimation.belief import Belief, Marginal, learnt, marginals
from twin.estimation.observability import Informed, observability
from twin.evidence import ControlApplied, Event, Fact, Measurement
from twin.futures import Forecast, Schedule, forecast
from twin.process import Process
from twin.whatif.edits import Edits
from twin.whatif.paired import WhatIf, whatif


@dataclass(frozen=True, slots=True, eq=False)
class Twin:
    """A batch and what is believed of it. Every method returns a new Twin or a plain value."""

    batch: Batch

    @classmethod
    def start(
        cls, process: Process, *, prior: DonorPrior | None = None, batch_id: str = "batch", filter_name: str = "ukf"
    ) -> Twin:
        """A twin at inoculation; without `prior`, the preset's literature prior."""
        return cls(start(batch_id, process, prior or preset_prior(process), filter_name))

    def tell(self, facts: Fact | Iterable[Fact]) -> Twin:
        """Take in measurements, read-backs and events, in any order. Raises `twin.evidence.Refused`."""
        batch = self.batch
        for fact in [facts] if isinstance(facts, Measurement | ControlApplied | Event) else facts:
            batch = tell(batch, fact)
        return replace(self, batch=batch)

    def belief(self, at: float) -> Belief:
        """Gaussian belief at day `at`."""
        return believe_at(self.batch, at)

    def estimate(self, at: float) -> dict[str, Marginal]:
        """Named quantities with mean, sd and 90 % interval at day `at`."""
        return marginals(self.belief(at), self.batch.layout)

    def donor(self, at: float) -> dict[str, Marginal]:
        """Donor parameters and sensor errors as learnt by day `at`."""
        return learnt(self.belief(at), self.batch.layout)

    def informed(self, at: float) -> tuple[Informed, ...]:
        """What the readings until day `at` say about every coordinate: informed, weakly, or not observable yet."""
        return observability(self.batch, at)

    def forecast(self, now: float, schedule: Schedule | Control, *, n: int = 500, seed: int = 0) -> Forecast:
        """Bands, P(pass) and harvest from day `now` under a schedule or a held control."""

        def held(t: float, x: State) -> Control:
            return schedule if isinstance(schedule, Control) else schedule(t, x)

        return forecast(self.batch, now, held, n=n, seed=seed)

    def whatif(
        self,
        now: float,
        edits: Edits | str | Iterable[str],
        schedule: Schedule | Control,
        *,
        n: int = 2000,
        seed: int = 0,
    ) -> WhatIf:
        """What edits such as "feed*1.1 for 6h; harvest on 12" of a schedule or a held control would change from day `now` on.

        Paired futures: deltas with bands, changes of P with their standard error. Raises ValueError for an edit that is not
        understood or does not fit the batch.
        """

        def held(t: float, x: State) -> Control:
            return schedule if isinstance(schedule, Control) else schedule(t, x)

        return whatif(self.batch, now, edits, held, n=n, seed=seed)

    def trajectory(self, times: Iterable[float]) -> Any:
        """Table (pandas) of the filtered estimate over `times`: one row a time and quantity."""
        import pandas as pd

        rows = [
            {"time_d": float(t), "quantity": name, **m._asdict()}
            for t in np.asarray(list(times), dtype=float)
            for name, m in self.estimate(float(t)).items()
        ]
        return pd.DataFrame(rows)
