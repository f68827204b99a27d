"""Configuration of serve and edge: strict, safe by default, and one line when it is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from service.config import Budget, Caps, EdgeConfig, ServiceConfig, load_edge, load_service
from service.desk import ConfiguredOpening
from service.messages import BatchStart
from simulators import edge as edge_core
from twin.config import ConfigError
from twin.donors.artefact import ArtefactError

SERVE: dict[str, Any] = {"site": "s", "broker": {"url": "mqtts://broker.example"}, "data": "data"}
EDGE: dict[str, Any] = {"site": "s", "unit": "u", "broker": {"url": "mqtts://broker.example"}}


def serve(folder: Path, **changes: Any) -> ServiceConfig:
    path = folder / "serve.yaml"
    path.write_text(yaml.safe_dump({**SERVE, **changes}))
    return load_service(path)


def edge(folder: Path, **changes: Any) -> EdgeConfig:
    path = folder / "edge.yaml"
    path.write_text(yaml.safe_dump({**EDGE, **changes}))
    return load_edge(path)


def refused(folder: Path, **changes: Any) -> str:
    with pytest.raises(ConfigError) as error:
        serve(folder, **changes)
    message = str(error.value)
    assert "\n" not in message
    assert "serve.yaml" in message
    return message


def test_the_shipped_examples_load_and_meet_on_one_broker(root: Path) -> None:
    service = load_service(root / "configs" / "services" / "serve.yaml")
    bioreactor = load_edge(root / "configs" / "services" / "edge.yaml")
    assert service.broker.address() == bioreactor.broker.address()
    assert str(service.broker.address()) == "mqtt://127.0.0.1:1883"
    assert service.site == bioreactor.site
    assert service.serves(bioreactor.unit)
    assert bioreactor.budget.day > 0  # else closed mode would show nothing


def test_the_default_posture_is_safe(tmp_path: Path) -> None:
    config = serve(tmp_path)
    assert (config.mode, config.clock, config.development) == ("shadow", "wall", False)
    assert config.broker.address().tls
    assert edge(tmp_path).budget == Budget(day=0, batch=0, cytokine_day=0, cytokine_batch=0)


def test_caps_and_budget_are_those_of_the_edge() -> None:
    assert edge_core.Caps(**Caps().model_dump()) == edge_core.Caps()
    assert edge_core.Budget(**Budget().model_dump()) == edge_core.Budget()


@pytest.mark.parametrize("mpc", [{}, {"deadline": 5.0}, {"scenarios": 9, "real_time": True}, {"chance": 0.9}])
def test_a_batch_opens_under_the_mpc_that_is_configured(tmp_path: Path, mpc: dict[str, Any]) -> None:
    """A deadline is kept by the service's clock; nothing else of the clock enters what a batch depends on."""
    message = BatchStart.model_validate(BatchStart.example)
    opened = [ConfiguredOpening(serve(tmp_path, mpc=mpc))(message) for _ in range(2)]
    assert opened[0].digest == opened[1].digest
    assert opened[0].policy.name == "mpc"
    assert (opened[0].policy.clock is not None) is ("deadline" in mpc)


@pytest.mark.parametrize(
    ("broker", "development", "why"),
    [
        ({"url": "mqtt://127.0.0.1:1883"}, False, "development: true"),
        ({"url": "mqtt://192.0.2.1:1883"}, True, "mqtts://"),
        ({"url": "http://127.0.0.1"}, True, "mqtt://host:1883"),
        ({"url": "mqtts://u:secret@h"}, False, "password_file"),
        ({"url": "mqtts://h", "password_file": "p"}, False, "needs user"),
        ({"url": "mqtt://127.0.0.1", "tls": {}}, True, "mqtts://"),
        ({"url": "mqtts://h", "tls": {"cert_file": "c"}}, False, "come together"),
        ({"url": "mqtts://h", "tls": True}, False, "broker.tls"),
        ({"url": "mqtts://h", "retain": True}, False, "broker.retain"),
    ],
)
def test_a_broker_that_is_not_safe_or_not_sound_is_refused(
    tmp_path: Path, broker: dict[str, Any], development: bool, why: str
) -> None:
    assert why in refused(tmp_path, broker=broker, development=development)


def test_plain_text_on_loopback_wants_the_development_flag(tmp_path: Path) -> None:
    config = serve(tmp_path, broker={"url": "mqtt://127.0.0.1:1883"}, development=True)
    assert not config.broker.address().tls


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"surprise": 1}, "surprise"),
        ({"mode": "open"}, "mode"),
        ({"clock": "moon"}, "clock"),
        ({"site": "a b"}, "site"),
        ({"site": "a/b"}, "site"),
        ({"units": ["ok", "not/ok"]}, "units"),
        ({"data": None}, "data"),
        ({"futures": 1}, "futures"),
        ({"filter": "kalman"}, "filter"),
        ({"recipes": ["cspr_100", "grandmothers"]}, "grandmothers"),
        ({"limits": "none_such"}, "none_such"),
        ({"sensors": "./absent.yaml"}, "absent.yaml"),
        ({"mpc": {"horizont": 3}}, "horizont"),
        ({"mpc": {"growth_sd": "much"}}, "growth_sd"),
        ({"mpc": {"solver": "ipopt", "scenarios": 9}}, "field solver"),
        ({"mpc": {"chance": 1.5}}, "field chance"),
        ({"mpc": {"scenarios": 9, "chance": 0.9}}, "field chance"),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, changes: dict[str, Any], field: str) -> None:
    assert field in refused(tmp_path, **changes)


@pytest.mark.parametrize("text", ["site: [", "site: a\nsite: b\n", "- a\n- b\n", ""])
def test_what_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"serve\.yaml"):
        load_service(path)


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such configuration file"):
        load_service(tmp_path / "absent.yaml")


def test_relative_paths_count_from_the_file(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("name: mine\nversion: 2\npolicy: none\nharvest_cells: 1\nharvest_latest: 3\n")
    config = serve(tmp_path, data="../there", recipes=["mine.yaml", "cspr_100"])
    assert config.data == (tmp_path / ".." / "there").resolve()
    assert config.entry("recipes", "mine") == str(tmp_path.resolve() / "mine.yaml")
    assert config.entry("recipes", "cspr_100") == "cspr_100"


def test_a_missing_prior_is_found_before_any_batch(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"p/prior"):
        serve(tmp_path, prior="p/prior")


def test_only_entries_of_the_configuration_may_be_named_on_the_wire(tmp_path: Path) -> None:
    config = serve(tmp_path, recipes=["cspr_100"])
    with pytest.raises(ConfigError, match="knows cspr_100"):
        config.entry("recipes", "cspr_50")
    assert serve(tmp_path).entry("recipes", "cspr_50") == "cspr_50"
    with pytest.raises(ConfigError):
        serve(tmp_path).entry("recipes", "../../etc/passwd")


def test_units_are_listed_or_all(tmp_path: Path) -> None:
    assert serve(tmp_path).serves("anything")
    assert not serve(tmp_path, units=["a", "b"]).serves("c")


def test_the_password_comes_from_its_file(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("open sesame\n")
    broker = {"url": "mqtts://h", "user": "twin", "password_file": "secret"}
    address = serve(tmp_path, broker=broker).broker.address()
    assert (address.user, address.password) == ("twin", "open sesame")
    absent = serve(tmp_path, broker={**broker, "password_file": "gone"})
    with pytest.raises(ConfigError, match="gone"):
        absent.broker.address()


def test_the_configuration_survives_the_journal(tmp_path: Path) -> None:
    """A run's configuration is journalled as JSON and read back for replay."""
    config = serve(tmp_path, units=["a"], recipes=["cspr_100"], mpc={"k1": 2.0}, policy="cspr")
    assert ServiceConfig.model_validate(config.model_dump(mode="json")) == config


def test_edge_files_are_strict_too(tmp_path: Path) -> None:
    assert edge(tmp_path, start="2026-11-01T00:00:00Z").start is not None
    for changes in (
        {"unit": "a/b"},
        {"caps": {"of_recipe_max": 0.5}},
        {"budget": {"day": -1}},
        {"pace": -1},
        {"x": 1},
        {"start": "today"},
    ):
        with pytest.raises(ConfigError, match=r"edge\.yaml"):
            edge(tmp_path, **changes)
