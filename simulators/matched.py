"""A reactor that is the filter's own model, process noise and drifting sensors included: what an honest filter is held to."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from twin.batch import start
from twin.bioreactor import Control
from twin.donors.prior import DonorPrior, preset_prior
from twin.estimation.belief import draws
from twin.estimation.model import BioreactorModel
from twin.evidence import ControlApplied, Fact, Measurement
from twin.history import Batch, replay
from twin.inputs import Drive, course
from twin.process import Process
from twin.sensors import CHANNELS

PROBES = ("capacitance", "raman_glucose", "raman_lactate", "ph", "oxygen_uptake")
LABORATORY = ("viable_density", "viability", "glucose", "lactate", "glutamine", "ammonia")
FLOW = ("car_fraction", "exhausted_fraction")
HOUR = 1.0 / 24.0


class Run(NamedTuple):
    """What one reactor told, and what was true."""

    empty: Batch  # nothing told yet
    facts: tuple[Fact, ...]
    times: np.ndarray  # [d], hourly from 0
    truth: np.ndarray  # coordinates [hour, n]


def matched_run(
    process: Process, seed: int, days: int, filter_name: str = "ukf", every: int = 1, prior: DonorPrior | None = None
) -> Run:
    """One reactor of `process`; probes every `every` h, samples once a day. Truth drawn with the filter's prior and noise."""
    rng = np.random.default_rng([99, seed])
    batch = start(f"m{seed}", process, prior or preset_prior(process), filter_name)
    model = BioreactorModel(process, batch.layout)
    noise = np.sqrt(np.diagonal(model.process_noise(batch.prior, HOUR)))
    truth, control = draws(batch.prior, 1, rng)[:, 0], Control(cytokine_dose=300.0)
    facts: list[Fact] = [ControlApplied("d", 0.0, "cytokine_dose", 300.0)]
    passed = [truth]
    for hour in range(1, 24 * days + 1):
        if hour % 12 == 1:
            control = control._replace(perfusion=min(2.0, 0.1 * float(np.exp(truth[0]))))
            facts.append(ControlApplied(f"p{hour}", (hour - 1) * HOUR, "perfusion", control.perfusion))
        drive = Drive(control, process.theta.medium)
        truth = model.advance(truth[:, None], drive, HOUR)[:, 0] + noise * rng.standard_normal(noise.size)
        passed.append(truth)
        told = (
            *(PROBES if hour % every == 0 else ()),
            *(LABORATORY if hour % 24 == 0 else ()),
            *(FLOW if hour % 84 == 0 else ()),
        )
        channels = tuple(c for c in told if c in process.sensors)
        if not channels:
            continue
        for channel, exact in zip(channels, model.observe(truth[:, None], channels, drive)[:, 0], strict=True):
            noisy, c = float(exact + process.sensors[channel].sd * rng.standard_normal()), CHANNELS[channel]
            value = min(max(float(np.exp(noisy)) - c.limit if c.scale == "log" else noisy, c.low), c.high)
            facts.append(Measurement(f"{channel}{hour}", channel, value, hour * HOUR, hour * HOUR))
    return Run(batch, tuple(facts), np.arange(24 * days + 1) * HOUR, np.array(passed))


def told(run: Run) -> Batch:
    """The run's batch with everything told, filtered once."""
    applied = tuple(f for f in run.facts if isinstance(f, ControlApplied))
    evidence = [f for f in run.facts if isinstance(f, Measurement)]
    batch = replace(
        run.empty,
        applied=applied,
        course=course(run.empty.process.theta.medium, applied, ()),
        evidence=tuple(sorted(evidence, key=lambda m: (m.sampled_at, m.channel, m.id))),
    )
    return replay(batch, 0)
