"""Model-predictive control of perfusion, feed, cytokine dosing and harvest time: SQP, with IPOPT as its fall-back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from controllers.mpc.policy import Mpc
from controllers.mpc.settings import MpcSettings, Prices, settings_for
from twin.config import ConfigError
from twin.process import Process


def make_mpc(process: Process, clock: Callable[[], float] | None = None, **settings: Any) -> Mpc:
    """The controller for `process`; keywords are fields of `MpcSettings` or `Prices`. Raises ConfigError for others.

    A `deadline` [s] needs a `clock`: with one, results depend on the clock.
    """
    chosen = settings_for(process, **settings)
    if chosen.deadline is not None and clock is None:
        raise ConfigError("mpc: field deadline: a clock is needed to keep it (the service has one); leave it out here")
    return Mpc(process, chosen, clock=clock)


__all__ = ["Mpc", "MpcSettings", "Prices", "make_mpc"]
