"""Configuration of `celltwin serve` and `celltwin edge`: YAML, read strictly, with the safe posture as the default.

Unknown keys, wrong types and duplicate keys are refused with file and field. Relative paths count from the file's own
folder. Defaults: shadow mode, budget 0, encrypted transport; plain text only on loopback, and only with `development: true`.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

from service.messages.base import is_id, parse_time
from service.mqtt import Address, BrokerError, parse_address
from twin.config import ConfigError, Kind, configs_dir, locate, parse, read_yaml

Id = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
Time = Annotated[datetime, BeforeValidator(parse_time)]
C = TypeVar("C", bound="_Root")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Tls(_Strict):
    """Files of the encrypted transport; without client certificate the broker must accept user and password."""

    ca_file: Path | None = None  # null: the system's authorities
    cert_file: Path | None = None
    key_file: Path | None = None

    @model_validator(mode="after")
    def _pair(self) -> Tls:
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file come together")
        return self


class Broker(_Strict):
    """Where the broker is and how to log in. The password lives in a file of its own, never in the URL."""

    url: str
    tls: Tls | None = None
    user: str | None = None
    password_file: Path | None = None

    @model_validator(mode="after")
    def _usable(self) -> Broker:
        try:
            at = parse_address(self.url)
        except BrokerError as error:
            raise ValueError(str(error)) from None
        if at.password is not None:
            raise ValueError("no password in the URL: write it to a file and name it as password_file")
        if self.tls is not None and not at.tls:
            raise ValueError("tls files are given, but the url is mqtt://; write mqtts://")
        if self.password_file is not None and (self.user or at.user) is None:
            raise ValueError("password_file needs user")
        return self

    def address(self) -> Address:
        """What the transport connects to; reads the password file. Raises ConfigError."""
        at, tls, password = parse_address(self.url), self.tls or Tls(), None
        if self.password_file is not None:
            try:
                password = self.password_file.read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"{self.password_file}: the broker's password cannot be read: {error}") from None
        return Address(
            at.host, at.port, self.user or at.user, password, at.tls, tls.ca_file, tls.cert_file, tls.key_file
        )  # fmt: skip


class _Root(_Strict):
    """What both files share."""

    site: Id
    broker: Broker
    development: bool = False  # allow plain text on loopback

    @model_validator(mode="after")
    def _encrypted(self) -> _Root:
        at = parse_address(self.broker.url)
        if not at.tls and not (self.development and at.loopback):
            what = "set development: true to allow it on this machine" if at.loopback else "use mqtts://"
            raise ValueError(f"broker.url: {self.broker.url} is plain text; {what}")
        return self


class ServiceConfig(_Root):
    """`celltwin serve -c FILE`: one reactor or a fleet."""

    units: tuple[Id, ...] | Literal["*"] = "*"
    units_max: int = Field(default=256, ge=1, le=10_000)  # under "*": a batch on a further unit is refused
    data: Path  # folder of the journal
    mode: Literal["shadow", "advisory", "closed"] = "shadow"
    clock: Literal["wall", "event"] = "wall"
    policy: str = "mpc"  # or a recipe's name
    filter: Literal["ukf", "ekf"] = "ukf"
    shadow: bool = True  # an EKF runs beside the UKF and decides nothing; their distance is health
    prior: Path | None = None  # donor-prior artefact, or a shipped one by name; null: the preset's published spreads
    mpc: dict[str, bool | int | float | str | None] = {}  # fields of `controllers.mpc.MpcSettings` and its prices
    futures: int = Field(default=200, ge=20, le=20_000)  # size of the forecast ensemble
    sensors: str | None = None  # entry or file; null: the process's own
    limits: str | None = None  # entry or file; null: the process's own
    recipes: tuple[str, ...] | Literal["*"] = "*"  # entries or files that batch_start may name; "*": all shipped
    media: tuple[str, ...] | Literal["*"] = "*"
    targets: tuple[str, ...] | Literal["*"] = "*"

    @model_validator(mode="after")
    def _entries(self) -> ServiceConfig:
        if self.mpc:
            from controllers.mpc.settings import check  # imports the solver: only where it is configured

            if "prices" in self.mpc:
                raise ValueError("mpc: field prices: prices stand here by their own names")
            try:
                check(self.mpc)
            except ConfigError as error:
                raise ValueError(str(error)) from None
        for kind in ("sensors", "limits"):
            if (name := getattr(self, kind)) is not None:
                _known(kind, name)
        for kind in ("recipes", "media", "targets"):
            for name in () if getattr(self, kind) == "*" else getattr(self, kind):
                _known(kind, name)
        return self

    def serves(self, unit: str) -> bool:
        """Whether this configuration covers `unit`."""
        return self.units == "*" or unit in self.units

    def entry(self, kind: Literal["recipes", "media", "targets"], name: str) -> str:
        """The entry or file behind a name used on the wire. Raises ConfigError with the names that may be used."""
        allowed: tuple[str, ...] | str = getattr(self, kind)
        if isinstance(allowed, str):
            allowed = tuple(sorted(p.stem for p in (configs_dir() / kind).glob("*.yaml")))
        by_name = {Path(entry).stem: entry for entry in allowed}
        if name not in by_name:
            raise ConfigError(f"unknown {kind} entry {name!r}; this service knows {', '.join(by_name) or 'none'}")
        return by_name[name]


class Caps(_Strict):
    """What the edge allows an override at most, besides the hardware maximum (SAFETY S2)."""

    of_recipe_max: float = Field(default=2.0, ge=1)  # times the recipe's highest rate
    of_recipe_now: float = Field(default=3.0, ge=1)  # times what the recipe would do now
    floor: float = Field(default=0.0, ge=0)  # perfusion allowed where the recipe's present rate allows less [VVD]
    slew: float = Field(
        default=0.5, gt=0
    )  # largest change of a rate in one step, as a fraction of the hardware maximum


class Budget(_Strict):
    """Cumulative override above the recipe; 0 makes every override advisory."""

    day: float = Field(default=0.0, ge=0)  # perfusion, feed, bleed each, above the recipe within 24 h [vessel volumes]
    batch: float = Field(default=0.0, ge=0)  # and within the batch [vessel volumes]
    cytokine_day: float = Field(default=0.0, ge=0)  # dosing above the recipe within 24 h [IU/mL]
    cytokine_batch: float = Field(default=0.0, ge=0)  # and within the batch [IU/mL]


class EdgeConfig(_Root):
    """`celltwin edge -c FILE`: a virtual bioreactor with its own approved recipe."""

    unit: Id
    scenario: str = "nominal"
    preset: str = "car_nk"
    batch: Id | None = None  # null: named by the wall clock
    donor: Id | None = None
    recipe: str | None = None  # null: the process's own
    medium: str | None = None
    targets: str | None = None
    volume_l: float | None = Field(default=None, gt=0)
    seed: int = Field(default=1, ge=0)
    start: Time | None = None  # inoculation; null: now
    pace: float = Field(default=0.0, ge=0)  # batch hours per wall-clock second; 0: as fast as the twin answers
    caps: Caps = Caps()
    budget: Budget = Budget()


def _known(kind: Kind, name: str) -> None:
    try:
        locate(kind, name)
    except ConfigError as error:
        raise ValueError(str(error)) from None
    if not is_id(Path(name).stem):
        raise ValueError(f"{name}: the file's name is the entry's name; use A-Z a-z 0-9 _ - only")


_PATHS = ("data", "prior", "sensors", "limits", "recipes", "media", "targets", "recipe", "medium", "scenario", "preset")


def _beside(content: Any, folder: Path) -> Any:
    """Relative paths of a configuration, made absolute from its own folder; names of entries stay as they are."""
    if not isinstance(content, dict):
        return content

    def path(value: Any, always: bool) -> Any:
        if isinstance(value, list):
            return [path(v, always) for v in value]
        named = isinstance(value, str) and (always or "/" in value or value.endswith((".yaml", ".yml")))
        return str((folder / Path(value).expanduser()).resolve()) if named else value

    fixed = {k: path(v, k in ("data", "prior")) if k in _PATHS else v for k, v in content.items()}
    shipped = content.get("prior")
    if isinstance(shipped, str) and is_id(shipped) and (configs_dir() / "priors" / shipped).is_dir():
        fixed["prior"] = str(configs_dir() / "priors" / shipped)
    broker = fixed.get("broker")
    if isinstance(broker, dict):
        tls = broker.get("tls")
        if isinstance(tls, dict):
            tls = {k: path(v, True) for k, v in tls.items()}
        files = {"password_file": path(broker["password_file"], True)} if "password_file" in broker else {}
        fixed["broker"] = broker | files | ({"tls": tls} if "tls" in broker else {})
    return fixed


def _load(model: type[C], path: Path) -> C:
    if not path.is_file():
        raise ConfigError(f"{path}: no such configuration file")
    return parse(model, _beside(read_yaml(path), path.resolve().parent), str(path))


def load_service(path: Path) -> ServiceConfig:
    """The service configuration in `path`. Raises ConfigError naming file, field and expectation.

    A prior that is missing or damaged is found here, not at the first batch (ArtefactError).
    """
    config = _load(ServiceConfig, path)
    if config.prior is not None:
        from twin.donors.artefact import load_prior

        load_prior(config.prior)
    return config


def load_edge(path: Path) -> EdgeConfig:
    """The edge configuration in `path`. Raises ConfigError naming file, field and expectation."""
    return _load(EdgeConfig, path)
