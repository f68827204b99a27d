"""Shared by the tests of the service."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from service.broker import development_broker, find_mosquitto
from service.journal import Journal
from tests.service.batch_driver import Driver, configuration, contents, course, play
from tests.service.processes import Site, Spy


@pytest.fixture(scope="session")
def played(tmp_path_factory: pytest.TempPathFactory) -> Driver:
    """A day and a bit of a batch in closed mode; read only."""
    folder = tmp_path_factory.mktemp("desk")
    driver = Driver(configuration(folder), Journal.open(folder))
    for sent in course(1.1):
        driver.send(sent)
    assert not contents(driver.outputs, "rejected")
    return driver


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Driver:
    """A journalled stretch of a batch with a refused message in it; read only."""
    return play(tmp_path_factory.mktemp("replay"))


@pytest.fixture
def mosquitto() -> Iterator[str]:
    if find_mosquitto() is None:
        pytest.skip("mosquitto is not installed")
    with development_broker("mosquitto") as url:
        yield url


@pytest.fixture
def spy(mosquitto: str) -> Iterator[Spy]:
    watcher = Spy(mosquitto)
    yield watcher
    watcher.close()


@pytest.fixture
def site(tmp_path: Path, mosquitto: str) -> Iterator[Site]:
    place = Site(tmp_path, mosquitto)
    yield place
    place.stop()
