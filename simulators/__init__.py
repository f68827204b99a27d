"""What we pretend: a plant that is not the model, its instruments, its edge, virtual donors, and whole closed-loop batches."""

from __future__ import annotations

from simulators.closed_loop import BatchResult, run_closed_loop
from simulators.donors import VirtualDonor, median_donor, virtual_donor
from simulators.edge import Ack, Budget, Caps, EdgeSettings, Override, edge_settings
from simulators.faults import Fault
from simulators.reactor import Outcome, VirtualBioreactor
from simulators.recording import Recording, afflict, record
from simulators.scenario import Scenario, load_scenario

__all__ = [
    "Ack", "BatchResult", "Budget", "Caps", "EdgeSettings", "Fault", "Outcome", "Override", "Recording", "Scenario",
    "VirtualBioreactor", "VirtualDonor", "afflict", "edge_settings", "load_scenario", "median_donor", "record", "run_closed_loop",
    "virtual_donor",
]  # fmt: skip
