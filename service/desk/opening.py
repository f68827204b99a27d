"""From a `batch_start` and the service's configuration to a batch under a policy. The only room here that reads files."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from controllers import make_policy
from controllers.plan import Policy
from service.config import ServiceConfig
from service.messages import BatchStart, Rejected
from twin.batch import Batch, start
from twin.bioreactor import Medium
from twin.config import ConfigError, ProcessFile, load_medium, load_preset, locate, make_process, parse, read_yaml
from twin.donors.prior import DEFAULT_PARAMETERS, DonorPrior, preset_prior
from twin.process import Process


@dataclass(frozen=True, slots=True, eq=False)
class Opened:
    """A batch ready for its first fact."""

    batch: Batch
    policy: Policy
    units: Mapping[str, str]  # of the kinetic parameters
    digest: str  # SHA-256 of everything it was opened with: process, prior, policy settings


class Opening(Protocol):
    """What the desk needs of the configuration; both methods raise `Rejected` (unknown_entry, out_of_range)."""

    def __call__(self, message: BatchStart) -> Opened: ...

    def medium(self, name: str) -> Medium: ...


@dataclass(frozen=True, slots=True)
class ConfiguredOpening:
    """`Opening` by the entries and files of a service configuration."""

    config: ServiceConfig

    def __call__(self, message: BatchStart) -> Opened:
        config = self.config
        try:
            process = process_for(config, message)
            prior = donor_prior(config.prior, process)
            settings = config.mpc if config.policy == "mpc" else {}
            clock = {"clock": time.monotonic} if "deadline" in settings else {}
            policy = make_policy(config.policy, process, **settings, **clock)
            units = {name: number.unit for name, number in load_preset(message.preset).cell.items()}
            shadow = "ekf" if config.shadow and config.filter == "ukf" else None
            batch = start(message.batch, process, prior, config.filter, shadow)
        except ConfigError as error:
            raise Rejected("unknown_entry", str(error)) from None
        used = [
            repr(process),
            prior.names,
            prior.mean.tolist(),
            prior.cov.tolist(),
            config.policy,
            settings,
            config.filter,
            shadow,
        ]
        digest = hashlib.sha256(json.dumps(used, sort_keys=True).encode()).hexdigest()
        return Opened(batch, policy, units, digest)

    def medium(self, name: str) -> Medium:
        """The composition behind a name used on the wire."""
        try:
            return load_medium(self.config.entry("media", name))
        except ConfigError as error:
            raise Rejected("unknown_entry", str(error)) from None


def process_for(config: ServiceConfig, message: BatchStart) -> Process:
    """The process of a batch: the preset's own entry where there is one, with what the message and the site name.

    Raises ConfigError for an unknown entry, `Rejected` for a volume beyond the vessel's limit.
    """
    load_preset(message.preset)
    try:
        path = locate("processes", message.preset)
    except ConfigError:
        own = None  # a preset without a process of its own name: the general defaults
    else:
        own = parse(ProcessFile, read_yaml(path), str(path))
    chosen: dict[str, Any] = {
        "sensors": config.sensors or (own.sensors if own else None),
        "limits": config.limits or (own.limits if own else None),
        "stages": own.stages if own else None,
        "considered": own.considered if own else None,
        "noise": own.noise if own else None,
    }
    process = make_process(
        message.preset,
        medium=config.entry("media", message.medium),
        recipe=config.entry("recipes", message.recipe),
        targets=config.entry("targets", message.targets),
        **{k: v for k, v in chosen.items() if v is not None},
    )
    if message.volume_l > process.limits.volume_max:
        raise Rejected(
            "out_of_range",
            f"volume_l {message.volume_l:g} exceeds the vessel's limit of {process.limits.volume_max:g} L",
        )
    return replace(process, initial=process.initial._replace(volume=message.volume_l))


def donor_prior(path: Path | None, process: Process) -> DonorPrior:
    """The prior artefact of the configuration, or the preset's published spreads where none is named."""
    if path is None:
        return preset_prior(process, tuple(n for n in DEFAULT_PARAMETERS if n in process.donor_sd))
    from twin.donors.artefact import ArtefactError, load_prior

    try:
        prior = load_prior(path)
    except ArtefactError as error:
        raise ConfigError(str(error)) from None
    fitted = prior.provenance.get("process", process.name)
    if fitted != process.name:
        raise ConfigError(f"prior {path} was fitted to process {fitted!r}, not {process.name!r}; name another as prior")
    return prior
