"""The journal's export, and the verifier that knows nothing of this program."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from service.journal import FILE, Journal
from service.verify import Broken, verify
from service.verify import main as verify_main
from tests.service.journal_rows import entry, tamper, written


def exported(folder: Path) -> Path:
    written(folder)
    stream = io.StringIO()
    with Journal.open(folder) as journal:
        assert journal.export(stream) == 12
    path = folder / "export.jsonl"
    path.write_text(stream.getvalue(), encoding="utf-8")
    return path


def test_the_export_verifies_and_holds_every_byte(tmp_path: Path) -> None:
    path = exported(tmp_path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [bytes.fromhex(line["payload"]) for line in lines[:-1]] == [entry(k).payload for k in range(12)]
    with Journal.open(tmp_path) as journal:
        assert verify(path) == verify(tmp_path / FILE) == tuple(journal.head)


@pytest.mark.parametrize("line", range(13))
def test_every_line_missing_from_an_export_is_found(tmp_path: Path, line: int) -> None:
    path = exported(tmp_path)
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:line] + lines[line + 1 :]))
    with pytest.raises(Broken):
        verify(path)


def test_every_changed_value_of_an_export_is_found(tmp_path: Path) -> None:
    path = exported(tmp_path)
    lines = path.read_text().splitlines()
    for k in range(12):
        for key in ("n", "at", "kind", "topic", "payload", "prev", "hash"):
            row = json.loads(lines[k])
            row[key] = row[key] + 1 if key == "n" else "00" + str(row[key])
            path.write_text("\n".join([*lines[:k], json.dumps(row), *lines[k + 1 :]]))
            with pytest.raises(Broken):
                verify(path)


def test_the_verifier_stands_alone(tmp_path: Path, root: Path) -> None:
    """Under 100 lines, standard library only, run by an interpreter that cannot see this program."""
    source = root / "service" / "verify.py"
    assert len(source.read_text().splitlines()) < 100
    written(tmp_path)
    command = [sys.executable, "-I", "-S", str(source), str(tmp_path / FILE)]
    good = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=60)
    assert good.returncode == 0, good.stderr
    assert "intact, 12 rows" in good.stdout
    tamper(tmp_path, "UPDATE row SET payload = x'00' WHERE n = 7")
    bad = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=60)
    assert (bad.returncode, "row 7" in bad.stderr) == (1, True)


def test_what_is_neither_journal_nor_export_cannot_be_read(tmp_path: Path) -> None:
    for k, content in enumerate((b"", b"some notes\n", b"\xff\xfe\x00")):
        (tmp_path / str(k)).write_bytes(content)
        assert verify_main([str(tmp_path / str(k))]) == 2


@pytest.mark.parametrize(
    ("arguments", "code"), [([], 2), (["a", "b", "c"], 2), (["absent.sqlite"], 2), (["x", "nonsense"], 2)]
)
def test_the_verifier_refuses_wrong_use(arguments: list[str], code: int) -> None:
    assert verify_main(arguments) == code
