"""Many virtual batches: policies x donors x faults x seeds, each batch a pure function of its job. Who runs them is the caller's.

Every policy meets the same donors with the same instruments and the same faults, so that any two are compared in pairs
(`simulators.comparison`). A batch that raises is a row with its error, never a lost campaign.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from controllers.plan import Policy
from simulators.closed_loop import BatchResult, policy_name, run_closed_loop
from simulators.faults import Fault, every_fault, parse_fault
from simulators.metrics import OUTCOME, Row, dose, margin, summarise
from simulators.scenario import Scenario, load_scenario
from twin.donors.prior import DonorPrior
from twin.process import Process, Recipe

ALL = ("time_steps", "density_steps", "cspr_50", "cspr_100", "lactate_p_12", "lactate_p_8", "constant_2", "mpc")
"""The recipes of SCIENCE section 4 and the predictive controller."""

NONE = "none"
"""The fault of a batch on which nothing goes wrong."""

AGAIN = 1_000_000
"""Between the seeds of one donor's instruments from one batch of it to the next."""


@dataclass(frozen=True, slots=True)
class Job:
    """One batch to run: a policy on a donor, under a fault or none."""

    process: Process
    policy: str | Recipe | Policy  # as `simulators.closed_loop.run_closed_loop` takes it
    donor: int  # number of the virtual donor; the same number is the same donor under every policy
    scenario: Scenario
    filter_name: str = "ukf"
    donor_prior: DonorPrior | None = None
    faults: tuple[Fault, ...] = ()
    repeat: int = 0  # how often this donor has been met before with other instruments

    @property
    def seed(self) -> int:
        """Of the instruments and the faults; every policy meets the same."""
        return self.donor + AGAIN * self.repeat

    @property
    def fault(self) -> str:
        """What goes wrong, by `fault_label`; several joined by +."""
        return "+".join(fault_label(f) for f in self.faults) or NONE

    @property
    def place(self) -> tuple[str, int, int, str]:
        """What tells the batches of a campaign apart, and the order in which they stand in its table; as `place` of its row."""
        return policy_name(self.policy), self.donor, self.seed, self.fault

    @property
    def label(self) -> str:
        return f"{policy_name(self.policy)} on donor {self.donor}, seed {self.seed}, fault {self.fault}"


def fault_label(fault: Fault) -> str:
    """``TARGET/MODE[=SIZE]@DAY[-DAY][#SEED]`` of a fault: one name, one fault. `parse_fault` reads it without end and seed."""

    def number(value: float) -> str:
        return repr(float(value)).removesuffix(".0")

    size = "" if fault.size is None else f"={number(fault.size)}"
    until = "" if fault.until == float("inf") else f"-{number(fault.until)}"
    return f"{fault.target}/{fault.mode}{size}@{number(fault.onset)}{until}" + (f"#{fault.seed}" if fault.seed else "")


def shows(fault: Fault, scenario: Scenario) -> bool:
    """Whether anything on a rig of `scenario` can show `fault`: a sensor's fault needs an instrument that reads it."""
    return fault.kind != "sensor" or any(fault.target in device.channels for device in scenario.instruments)


def named_faults(names: Iterable[str], scenario: Scenario) -> tuple[tuple[Fault, ...], ...]:
    """Faults by name, for `jobs`; without a name, none.

    A name is ``none``, ``all`` (none, then each of the vocabulary that `scenario` can show), or as
    `simulators.faults.parse_fault` reads it. Raises ValueError for an unknown one, and for a sensor that no instrument has.
    """
    found: list[tuple[Fault, ...]] = []
    for name in names:
        if name == NONE:
            found.append(())
        elif name == "all":
            found += [(), *((f,) for f in every_fault() if shows(f, scenario))]
        else:
            fault = parse_fault(name)
            if not shows(fault, scenario):
                raise ValueError(f"{fault.name}: no instrument of scenario {scenario.name} reads {fault.target}")
            found.append((fault,))
    return tuple(dict.fromkeys(found)) or ((),)


def jobs(
    process: Process,
    policies: Sequence[str | Recipe | Policy],
    donors: int,
    *,
    first: int = 0,
    scenario: Scenario | str = "nominal",
    filter_name: str = "ukf",
    donor_prior: DonorPrior | None = None,
    faults: Sequence[tuple[Fault, ...]] = ((),),
    seeds: int = 1,
) -> list[Job]:
    """All batches of a campaign, slow policies first so that the pool ends evenly.

    `faults`: what befalls one batch, for each batch of a donor (() for nothing); `seeds`: sets of instruments that each
    donor is met with. Raises ValueError for no donor, no seed, no fault, or two policies of one name.
    """
    for name, n in (("donors", donors), ("seeds", seeds), ("faults", len(faults))):
        if n < 1:
            raise ValueError(f"{name}: at least 1 is needed, not {n}")
    names = [policy_name(p) for p in policies]
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise ValueError(
            f"policies: the name {twice[0]!r} occurs twice; rows of one could not be told from the other's"
        )
    surroundings = load_scenario(scenario) if isinstance(scenario, str) else scenario
    order = sorted(
        policies, key=lambda p: isinstance(p, Recipe) or (isinstance(p, str) and p != "mpc" and ":" not in p)
    )
    return [
        Job(process, policy, number, surroundings, filter_name, donor_prior, fault, repeat)
        for policy in order
        for fault in faults
        for repeat in range(seeds)
        for number in range(first, first + donors)
    ]


def run_job(job: Job) -> dict[str, Any]:
    """One batch, as the row that a campaign keeps. A pure function of the job; what it raises becomes the row's `error`."""
    try:
        result = run_closed_loop(
            job.process, job.policy, donor=job.donor, seed=job.seed, scenario=job.scenario,
            donor_prior=job.donor_prior, filter_name=job.filter_name, faults=job.faults,
        )  # fmt: skip
        return row_of(result, job)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever one batch does, the others are wanted
        return error_row(job, f"{type(error).__name__}: {error}")


def _known(job: Job) -> dict[str, Any]:
    return {
        "policy": policy_name(job.policy), "donor": job.donor, "seed": job.seed, "fault": job.fault,
        "process": job.process.name, "scenario": job.scenario.name, "dose": dose(job.process.targets),
    }  # fmt: skip


def row_of(result: BatchResult, job: Job) -> dict[str, Any]:
    """A finished batch as flat values, true ones throughout; units as in `simulators.reactor.Outcome`."""
    o = result.outcome
    return {
        **_known(job),
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
        "error": "",
    }


def error_row(job: Job, error: str) -> dict[str, Any]:
    """The row of a batch that has no outcome, and why: not passed, every figure None."""
    return {**_known(job), "passed": False, "missed": "", **dict.fromkeys(OUTCOME), "reason": "error", "error": error}


def place(row: Row) -> tuple[str, int, int, str]:
    """`Job.place` of the job that a row came from."""
    return str(row["policy"]), int(row["donor"]), int(row["seed"]), str(row.get("fault", NONE))


def summary(rows: Iterable[Row]) -> dict[str, dict[str, Any]]:
    """Figures by policy, in the order of `ALL`, then by name."""
    return {name: summarise(own) for name, own in by_policy(rows).items()}


def by_policy(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Batches by policy, policies in the order of `ALL`, then by name; batches in the order of `place`."""
    found: dict[str, list[Row]] = {}
    for row in sorted(rows, key=place):
        found.setdefault(str(row["policy"]), []).append(row)
    return {p: found[p] for p in sorted(found, key=rank)}


def rank(policy: str) -> tuple[int, str]:
    """Where a policy stands in a table: in the order of `ALL`, then by name. A name may carry @ and its run's folder."""
    name = policy.split("@")[0]
    return (ALL.index(name) if name in ALL else len(ALL)), policy
