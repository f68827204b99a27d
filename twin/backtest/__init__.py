"""Backtesting on measured batches: leave a group out, learn from the others, predict what the twin has not yet seen.

Rule 1: nothing of the left-out group reaches the prior, the initial state or the noise levels that predict it.
Rule 2: a prediction rests on samples drawn before its own visit and on the pump actions of the record, nothing else.
Rule 3: the baselines are scored on the same steps, and intervals include the noise of the reading.
"""

from __future__ import annotations

from twin.backtest.pooling import ALTERNATIVES, Difference, differences
from twin.backtest.run import Backtest, BacktestError, ChannelScore, HorizonScore, backtest

__all__ = [
    "ALTERNATIVES",
    "Backtest",
    "BacktestError",
    "ChannelScore",
    "Difference",
    "HorizonScore",
    "backtest",
    "differences",
]
