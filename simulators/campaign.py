"""Many virtual batches: every policy on the same donors with the same instruments. Who runs the jobs is the caller's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from simulators.closed_loop import BatchResult, run_closed_loop
from simulators.metrics import Row, margin, summarise
from simulators.scenario import Scenario, load_scenario
from twin.donors.prior import DonorPrior
from twin.process import Process

ALL = ("time_steps", "density_steps", "cspr_50", "cspr_100", "lactate_p_12", "lactate_p_8", "constant_2", "mpc")
"""The recipes of SCIENCE section 4 and the predictive controller."""


@dataclass(frozen=True, slots=True)
class Job:
    """One batch to run: a policy on a donor."""

    process: Process
    policy: str
    donor: int  # number of the virtual donor; the same number is the same donor under every policy
    scenario: Scenario
    filter_name: str = "ukf"
    donor_prior: DonorPrior | None = None

    @property
    def label(self) -> str:
        return f"{self.policy} on donor {self.donor}"


def jobs(
    process: Process,
    policies: Sequence[str],
    donors: int,
    *,
    first: int = 0,
    scenario: Scenario | str = "nominal",
    filter_name: str = "ukf",
    donor_prior: DonorPrior | None = None,
) -> list[Job]:
    """All batches of a campaign, slow policies first so that the pool ends evenly. Raises ValueError for no donor."""
    if donors < 1:
        raise ValueError(f"donors: at least 1 is needed, not {donors}")
    surroundings = load_scenario(scenario) if isinstance(scenario, str) else scenario
    order = sorted(policies, key=lambda p: p != "mpc")
    return [
        Job(process, policy, number, surroundings, filter_name, donor_prior)
        for policy in order
        for number in range(first, first + donors)
    ]


def run_job(job: Job) -> dict[str, Any]:
    """One batch, as the row that a campaign keeps. A pure function of the job."""
    result = run_closed_loop(
        job.process, job.policy, donor=job.donor, seed=job.donor, scenario=job.scenario,
        donor_prior=job.donor_prior, filter_name=job.filter_name,
    )  # fmt: skip
    return row_of(result, job)


def row_of(result: BatchResult, job: Job) -> dict[str, Any]:
    """A finished batch as flat values, true ones throughout; units as in `simulators.reactor.Outcome`."""
    o = result.outcome
    return {
        "policy": job.policy,
        "donor": job.donor,
        "seed": result.seed,
        "process": job.process.name,
        "scenario": job.scenario.name,
        "passed": o.passed,
        "missed": ",".join(o.missed),
        "margin": margin(job.process.targets, o.cqas),
        "day": o.day,
        "reason": o.reason,
        "medium_vv": o.medium_vv,
        "feed_vv": o.feed_vv,
        "cytokine": o.cytokine,
        **o.cqas,
        "lactate_peak": o.lactate_peak,
        "viability_low": o.viability_low,
        "decisions": len(result.decisions),
        "lapsed": sum(d.control is None for d in result.decisions),
        "overrides": len(result.acks),
        "overrides_refused": sum(not a.accepted for a in result.acks),
        "facts_refused": len(result.refused),
    }


def summary(rows: Iterable[Row]) -> dict[str, dict[str, Any]]:
    """Figures by policy, in the order of `ALL`, then by name."""
    by_policy: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda r: (r["policy"], r["donor"])):
        by_policy.setdefault(str(row["policy"]), []).append(row)
    order = sorted(by_policy, key=lambda p: (ALL.index(p) if p in ALL else len(ALL), p))
    return {p: summarise(by_policy[p]) for p in order}
