"""The demo's service is a process of its own: when it dies, the demo says so, with its last words, and ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from service.cli import demo


def test_a_service_that_does_not_start_is_noticed_while_the_edge_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The edge would wait for ever: only the check in its wait can end this."""
    settings = demo.service_settings

    def wrong(url: str, policy: str, preset: str) -> dict[str, Any]:
        return {**settings(url, policy, preset), "modus": "closed"}

    monkeypatch.setattr(demo, "service_settings", wrong)
    monkeypatch.setattr(demo, "PATIENCE", 1e9)
    with pytest.raises(SystemExit) as stopped:
        demo.run(tmp_path, "car_nk", "cspr_100", "cspr_100", 7)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "the twin service stopped (exit 2)" in line
    assert "modus" in line  # what it said itself
    assert "serve.log" in line
