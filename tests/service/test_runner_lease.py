"""One writer a data directory, and an epoch that only grows."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
from pathlib import Path

import pytest

from service.cli.serve import run
from service.journal import Journal
from service.lease import hold, take
from service.replay import newest_epoch, started_entry
from tests.service.batch_driver import WALL, configuration
from twin.config import ConfigError


def test_the_epoch_grows_at_each_start_and_the_name_stays(tmp_path: Path) -> None:
    seen = []
    for _ in range(3):
        with hold(tmp_path / "data"):
            seen.append(take(tmp_path / "data"))
    assert [lease.epoch for lease in seen] == [1, 2, 3]
    assert len({lease.name for lease in seen}) == 1


def test_the_epoch_exceeds_what_the_journal_knows(tmp_path: Path) -> None:
    config = configuration(tmp_path)
    with hold(tmp_path), Journal.open(tmp_path) as journal:
        assert newest_epoch(journal) == 0
        for epoch in (7, 41, 12):
            journal.append(started_entry(config, epoch, "test", WALL))
        assert take(tmp_path, at_least=newest_epoch(journal)).epoch == 42
        assert take(tmp_path, at_least=newest_epoch(journal)).epoch == 43


def test_a_lost_lease_does_not_bring_an_old_epoch_back(tmp_path: Path, mosquitto: str) -> None:
    """GIVEN a service that has run twice, WHEN its lease is lost, THEN its next run still has a higher epoch."""
    config = configuration(tmp_path, broker={"url": mosquitto})
    stop = threading.Event()
    stop.set()
    assert [run(config, stop, lambda line: None).epoch for _ in range(2)] == [1, 2]
    (tmp_path / "lease.json").unlink()
    assert run(config, stop, lambda line: None).epoch == 3
    assert json.loads((tmp_path / "lease.json").read_text())["epoch"] == 3


def test_two_services_on_one_directory_are_refused(tmp_path: Path) -> None:
    with (
        hold(tmp_path),
        pytest.raises(ConfigError, match="another service runs on this data directory"),
        hold(tmp_path),
    ):
        pass
    with hold(tmp_path):
        assert take(tmp_path).epoch == 1


def _die(folder: str) -> None:
    with hold(Path(folder)):
        take(Path(folder))
        os.kill(os.getpid(), 9)


def test_the_lock_falls_with_a_killed_process_and_its_epoch_is_spent(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_die, args=(str(tmp_path),))
    process.start()
    process.join(30)
    assert process.exitcode == -9
    with hold(tmp_path):
        assert take(tmp_path).epoch == 2


@pytest.mark.parametrize("text", ["", "{", "[]", '{"epoch": 1}', '{"epoch": "x", "name": "n"}'])
def test_a_damaged_lease_is_refused_with_the_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "lease.json").write_text(text)
    with pytest.raises(ConfigError, match=r"lease\.json: damaged"):
        take(tmp_path)


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be used as data directory"), hold(tmp_path / "file" / "data"):
        pass
    with pytest.raises(ConfigError, match=r"lease\.json: cannot be written"):
        take(tmp_path / "absent")
    with hold(tmp_path / "good"):
        assert take(tmp_path / "good").epoch == 1
    assert json.loads((tmp_path / "good" / "lease.json").read_text())["epoch"] == 1
