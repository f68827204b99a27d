"""What the demo shows beside its batch: the same donor under every shipped recipe, and the report with the truth in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from service.cli.edge import Job
    from service.report import Outcome as ReportedOutcome
    from simulators.reactor import Outcome


def recipes() -> tuple[str, ...]:
    """Names of the shipped recipes that perfuse."""
    from twin.config import configs_dir

    return tuple(p.stem for p in sorted((configs_dir() / "recipes").glob("*.yaml")) if p.stem != "none")


def rivals(job: Job, seed: int, told: Callable[[], object] = lambda: None) -> dict[str, Outcome]:
    """The same donor with the same instruments under every shipped recipe alone, by name."""
    from simulators import run_closed_loop
    from twin.config import load_recipe

    if job.rig is None:
        raise ValueError("no rig: this job is a record")
    outcomes: dict[str, Outcome] = {}
    for name in recipes():
        played = run_closed_loop(
            job.process, load_recipe(name), donor=job.rig.donor, seed=seed, scenario=job.rig.scenario
        )  # fmt: skip
        outcomes[name] = played.outcome
        told()
    return outcomes


def best(outcomes: Mapping[str, Outcome]) -> str:
    """The recipe to beat: of those that pass the one with the least medium, else the one with the most viable cells."""
    return max(outcomes, key=lambda name: _merit(outcomes[name]))


def _merit(o: Outcome) -> tuple[bool, float]:
    return o.passed, -o.medium_vv if o.passed else o.cqas["viable_cells"]


def write(
    job: Job, folder: Path, batch: str, policy: str, outcome: Outcome, others: Mapping[str, Outcome], to: Path
) -> Path:
    """The batch report from the service's journal, with the plant's truth and the rivals put in."""
    from service.journal import Journal
    from service.report import as_simulated, write_report
    from service.report.from_journal import collect

    if job.rig is None:
        raise ValueError("no rig: this job is a record")
    with Journal.open(folder, create=False) as journal:
        data = collect(journal.rows(), batch, journal.head)
    return write_report(
        as_simulated(
            data,
            job.rig.truth,
            _reported(job, policy, outcome),
            [_reported(job, name, o) for name, o in others.items()],
        ),
        to,
    )


def _reported(job: Job, policy: str, o: Outcome) -> ReportedOutcome:
    from service.report import outcome_of

    return outcome_of(policy, o.day, dict(o.cqas), job.process.targets, o.medium_vv)
