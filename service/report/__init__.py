"""The batch report: plain values (`data`), figures (`plots`), one self-contained HTML file (`page`), and the journal's view."""

from __future__ import annotations

from service.report.data import (
    Alert,
    Band,
    Consistency,
    Criterion,
    Curve,
    Decided,
    Judged,
    Limit,
    Outcome,
    ReportData,
    Samples,
    as_simulated,
    outcome_of,
)
from service.report.page import render, write_report

__all__ = [
    "Alert", "Band", "Consistency", "Criterion", "Curve", "Decided", "Judged", "Limit", "Outcome", "ReportData", "Samples", "as_simulated",
    "outcome_of", "render", "write_report",
]  # fmt: skip
