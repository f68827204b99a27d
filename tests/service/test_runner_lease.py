"""One writer a data directory, and an epoch that only grows."""

from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path

import pytest

from service.lease import hold
from twin.config import ConfigError


def test_the_epoch_grows_at_each_start_and_the_name_stays(tmp_path: Path) -> None:
    seen = []
    for _ in range(3):
        with hold(tmp_path / "data") as lease:
            seen.append(lease)
    assert [lease.epoch for lease in seen] == [1, 2, 3]
    assert len({lease.name for lease in seen}) == 1


def test_the_epoch_exceeds_what_the_journal_knows(tmp_path: Path) -> None:
    with hold(tmp_path, at_least=41) as lease:
        assert lease.epoch == 42


def test_two_services_on_one_directory_are_refused(tmp_path: Path) -> None:
    with (
        hold(tmp_path),
        pytest.raises(ConfigError, match="another service runs on this data directory"),
        hold(tmp_path),
    ):
        pass
    with hold(tmp_path) as lease:
        assert lease.epoch == 2


def _die(folder: str) -> None:
    with hold(Path(folder)):
        os.kill(os.getpid(), 9)


def test_the_lock_falls_with_a_killed_process_and_its_epoch_is_spent(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_die, args=(str(tmp_path),))
    process.start()
    process.join(30)
    assert process.exitcode == -9
    with hold(tmp_path) as lease:
        assert lease.epoch == 2


@pytest.mark.parametrize("text", ["", "{", "[]", '{"epoch": 1}', '{"epoch": "x", "name": "n"}'])
def test_a_damaged_lease_is_refused_with_the_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "lease.json").write_text(text)
    with pytest.raises(ConfigError, match=r"lease\.json: damaged"), hold(tmp_path):
        pass


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be used as data directory"), hold(tmp_path / "file" / "data"):
        pass
    with hold(tmp_path / "good"):
        assert json.loads((tmp_path / "good" / "lease.json").read_text())["epoch"] == 1
