"""The journal: what is acknowledged stays, what was changed is found, and what cannot be trusted is refused in one line."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from service.journal import FILE, Entry, Head, Journal, JournalError
from service.verify import Broken, verify
from tests.service.journal_rows import entry, tamper, written


def refused(folder: Path, anchor: Head | None = None) -> str:
    with pytest.raises(JournalError) as error:
        Journal.open(folder, create=False, anchor=anchor)
    message = str(error.value)
    assert "\n" not in message
    assert FILE in message
    return message


def test_what_goes_in_comes_out(tmp_path: Path) -> None:
    rows = written(tmp_path)
    with Journal.open(tmp_path) as journal:
        assert tuple(journal.rows()) == rows
        assert [Entry(r.at, r.kind, r.topic, r.payload) for r in journal.rows()] == [entry(k) for k in range(12)]
        assert journal.head == Head(12, rows[-1].hash)
        assert [r.n for r in journal.rows(3, 5)] == [3, 4, 5]
        assert journal.append(entry(12)).prev == rows[-1].hash
        assert journal.append_many([]) == ()


def test_it_is_durable_by_its_settings(tmp_path: Path) -> None:
    with Journal.open(tmp_path) as journal:
        assert journal._db.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
        assert journal._db.execute("PRAGMA synchronous").fetchone()[0] == 2


def test_rows_cannot_be_changed_through_the_database(tmp_path: Path) -> None:
    written(tmp_path)
    db = sqlite3.connect(tmp_path / FILE)
    for statement in ("UPDATE row SET topic = 'x' WHERE n = 3", "DELETE FROM row WHERE n = 3"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            db.execute(statement)
    db.close()


@pytest.mark.parametrize("n", range(1, 13))
@pytest.mark.parametrize(
    "change",
    [
        "UPDATE row SET at = '2026-11-22T06:00:00Z' WHERE n = {n}",
        "UPDATE row SET kind = 'estimate' WHERE n = {n}",
        "UPDATE row SET topic = topic || 'x' WHERE n = {n}",
        "UPDATE row SET payload = x'00' WHERE n = {n}",
        "UPDATE row SET payload = 'text' WHERE n = {n}",
        "UPDATE row SET prev = hash WHERE n = {n}",
        "UPDATE row SET hash = prev WHERE n = {n}",
        "UPDATE row SET n = n + 100 WHERE n = {n}",
        "DELETE FROM row WHERE n = {n}",
    ],
)
def test_every_change_to_every_row_is_found(tmp_path: Path, change: str, n: int) -> None:
    written(tmp_path)
    tamper(tmp_path, change.format(n=n))
    message = refused(tmp_path)
    assert "restore" in message
    with pytest.raises(Broken):
        verify(tmp_path / FILE)


def test_moved_text_between_columns_is_found(tmp_path: Path) -> None:
    """The hash covers the fields, not their concatenation."""
    written(tmp_path)
    tamper(tmp_path, "UPDATE row SET kind = 'received', topic = 'celltwin/v1/a/u/' WHERE n = 6")
    assert "row 6" in refused(tmp_path)


def test_every_flipped_bit_of_the_payloads_is_found(tmp_path: Path) -> None:
    written(tmp_path)
    db = sqlite3.connect(tmp_path / FILE)
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    path = tmp_path / FILE
    good = path.read_bytes()
    payloads = [entry(k).payload for k in range(12)]
    for k in range(12):
        position = good.find(payloads[k])
        assert position > 0
        bad = bytearray(good)
        bad[position + 1] ^= 1 << (k % 8)
        path.write_bytes(bad)
        refused(tmp_path)
    path.write_bytes(good)
    Journal.open(tmp_path).close()


def test_random_damage_to_the_file_never_passes_unseen(tmp_path: Path) -> None:
    """Either the journal is refused, or the damage lay where nothing is stored and every row reads as it was."""
    rows = written(tmp_path, 40)
    db = sqlite3.connect(tmp_path / FILE)
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    path, rng, found = tmp_path / FILE, random.Random(7), 0
    good = path.read_bytes()
    for _ in range(150):
        bad = bytearray(good)
        at = rng.randrange(len(good))
        bad[at] ^= rng.randrange(1, 256)
        path.write_bytes(bad)
        refusal = ""
        try:
            with Journal.open(tmp_path, create=False) as journal:
                assert tuple(journal.rows()) == rows
        except JournalError as error:
            refusal, found = str(error), found + 1
        assert "\n" not in refusal
        for leftover in tmp_path.glob(f"{FILE}-*"):
            leftover.unlink()
    assert found > 50


@pytest.mark.parametrize("kept", [0, 10, 100, 4096, 5000, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, kept: int) -> None:
    written(tmp_path, 200)
    path = tmp_path / FILE
    os.truncate(path, kept if kept >= 0 else path.stat().st_size - 4096)
    refused(tmp_path)


def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("batch,time_d,channel\n" * 500)
    assert "not a database" in refused(tmp_path)


def test_another_programs_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    db = sqlite3.connect(tmp_path / FILE)
    db.execute("CREATE TABLE cats (name TEXT)")
    db.commit()
    db.close()
    assert "not a journal" in refused(tmp_path)
    db = sqlite3.connect(tmp_path / FILE)
    assert db.execute("SELECT count(*) FROM cats").fetchone() == (0,)
    db.close()


@pytest.mark.parametrize("wal", [False, True])
def test_a_file_without_a_table_is_a_journal_that_was_never_begun(tmp_path: Path, wal: bool) -> None:
    """Killed between opening the file and writing its schema: nothing was lost, the next start goes on."""
    db = sqlite3.connect(tmp_path / FILE)
    if wal:
        db.execute("PRAGMA journal_mode = WAL")
    else:
        (tmp_path / FILE).touch()
    db.close()
    assert "not a journal" in refused(tmp_path)  # for reading there is nothing
    with pytest.raises(JournalError):
        Journal.open(tmp_path, anchor=Head(3, "0" * 64))  # there once was something
    with Journal.open(tmp_path) as journal:
        assert journal.head.n == 0
        journal.append(entry(0))
    assert len(written(tmp_path, 2)) == 2


def test_a_journal_that_is_being_written_opens_and_verifies(tmp_path: Path, root: Path) -> None:
    """Rows and head are of one moment, whatever the writer does meanwhile; reading changes nothing."""
    written(tmp_path)
    stop = threading.Event()

    def write() -> None:
        with Journal.open(tmp_path) as journal:
            while not stop.is_set():
                journal.append_many([entry(k) for k in range(3)])

    writer = threading.Thread(target=write)
    writer.start()
    try:
        seen = []
        for _ in range(60):
            with Journal.open(tmp_path, create=False) as journal:
                seen.append(journal.head.n)
            seen.append(verify(tmp_path / FILE)[0])
    finally:
        stop.set()
        writer.join()
    assert seen == sorted(seen)
    assert seen[-1] > seen[0]


def test_a_journal_opened_for_reading_cannot_be_written(tmp_path: Path) -> None:
    written(tmp_path)
    with Journal.open(tmp_path, create=False) as journal, pytest.raises(JournalError):
        journal.append(entry(1))


def test_an_absent_journal_names_the_remedy(tmp_path: Path) -> None:
    assert "--data" in refused(tmp_path)


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError, match="cannot be made"):
        Journal.open(tmp_path / "file" / "below")


def test_rows_cut_off_together_with_the_head_are_found_by_an_anchor(tmp_path: Path) -> None:
    rows = written(tmp_path)
    head = Head(rows[-1].n, rows[-1].hash)
    tamper(tmp_path, "DELETE FROM row WHERE n > 8", f"UPDATE head SET n = 8, hash = '{rows[7].hash}'")  # noqa: S608
    Journal.open(tmp_path).close()  # consistent in itself: only the anchor tells
    assert "rolled back" in refused(tmp_path, anchor=head)
    with pytest.raises(Broken, match="rolled back"):
        verify(tmp_path / FILE, (head.n, head.hash))


def test_a_journal_that_went_on_still_holds_its_anchor(tmp_path: Path) -> None:
    rows = written(tmp_path)
    with Journal.open(tmp_path, anchor=Head(rows[4].n, rows[4].hash)) as journal:
        journal.append(entry(12))
    Journal.open(tmp_path, anchor=Head(rows[-1].n, rows[-1].hash)).close()
    assert verify(tmp_path / FILE, (rows[4].n, rows[4].hash))[0] == 13


def test_appending_is_all_or_nothing(tmp_path: Path) -> None:
    rows = written(tmp_path)
    with Journal.open(tmp_path) as journal:
        bad = entry(13)._replace(topic=None)  # type: ignore[arg-type]
        with pytest.raises((JournalError, AttributeError)):
            journal.append_many([entry(12), bad])
        assert tuple(journal.rows()) == rows
        journal.append(entry(12))
    Journal.open(tmp_path).close()


def test_a_second_writer_is_refused_not_merged(tmp_path: Path) -> None:
    with Journal.open(tmp_path) as first, Journal.open(tmp_path) as second:
        first.append(entry(0))
        with pytest.raises(JournalError, match="another process"):
            second.append(entry(1))
        first.append(entry(2))
    with Journal.open(tmp_path) as journal:
        assert [r.topic for r in journal.rows()] == [entry(0).topic, entry(2).topic]


WRITER = """
import resource, signal, sys
from datetime import UTC, datetime
from pathlib import Path
from service.journal import Entry, Journal, JournalError

def entry(k):
    return Entry(datetime.now(UTC), "received", f"celltwin/v1/a/u/{k}", b"x" * 1000)

"""


def test_a_full_disk_is_an_error_and_loses_nothing(tmp_path: Path, root: Path) -> None:
    script = WRITER + (
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "journal = Journal.open(Path(sys.argv[1]))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
        "done = 0\n"
        "try:\n"
        "    while done < 2000:\n"
        "        journal.append(entry(done))\n"
        "        done += 1\n"
        "except JournalError as error:\n"
        "    print(done, 'cannot be written' in str(error))\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    out = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, cwd=root)
    done, worded = out.stdout.split()
    assert worded == "True"
    with Journal.open(tmp_path) as journal:
        assert journal.head.n >= int(done) > 10


def test_nothing_acknowledged_is_lost_by_kill_9(tmp_path: Path, root: Path) -> None:
    """A writer prints every row number after its commit and is killed at a random moment, eight times over."""
    script = WRITER + (
        "with Journal.open(Path(sys.argv[1])) as journal:\n"
        "    while True:\n"
        "        print(journal.append_many([entry(journal.head.n + k) for k in range(3)])[-1].n, flush=True)\n"
    )
    rng, acknowledged = random.Random(3), 0
    for _ in range(8):
        command = [sys.executable, "-c", script, str(tmp_path)]
        writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root)
        assert writer.stdout is not None
        first = writer.stdout.readline()
        time.sleep(rng.uniform(0.0, 0.05))
        writer.send_signal(signal.SIGKILL)
        said = [first, *writer.stdout.read().splitlines()]
        writer.wait()
        writer.stdout.close()
        acknowledged = max(acknowledged, *(int(n) for n in said if n.strip().isdigit()))
        with Journal.open(tmp_path) as journal:
            assert journal.head.n >= acknowledged
            assert journal.head.n % 3 == 0  # a group is there as a whole or not at all
    assert acknowledged > 50
