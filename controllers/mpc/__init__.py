"""Nominal model-predictive control of perfusion, feed, cytokine dosing and harvest time (CasADi, IPOPT)."""

from __future__ import annotations

from typing import Any

from controllers.mpc.policy import Mpc
from controllers.mpc.settings import MpcSettings, Prices, settings_for
from twin.process import Process


def make_mpc(process: Process, **settings: Any) -> Mpc:
    """The controller for `process`; keywords are fields of `MpcSettings` or `Prices`. Raises ConfigError for others."""
    return Mpc(process, settings_for(process, **settings))


__all__ = ["Mpc", "MpcSettings", "Prices", "make_mpc"]
