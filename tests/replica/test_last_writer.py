"""After which ends of its writer a replica may be torn."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.replica.tables import build_replica
from zerocache.replica import last_writer
from zerocache.replica.last_writer import boot_id, may_be_torn
from zerocache.replica.reader import open_replica
from zerocache.replica.writer import ReplicaWriter

_KILLED = """
import os, signal, sys
from zerocache.replica.writer import ReplicaWriter
ReplicaWriter(sys.argv[1])
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def replica(tmp_path: Path) -> Path:
    return build_replica(tmp_path / "r.db")


def _torn(replica: Path) -> bool:
    with contextlib.closing(open_replica(replica)) as connection:
        return may_be_torn(connection)


def _other_boot(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "boot_id"
    if text is not None:
        file.write_text(text + "\n")
    monkeypatch.setattr(last_writer, "_BOOT_ID", file)


def _kill_writer(replica: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", _KILLED, str(replica)], check=False)
    assert ended.returncode == -signal.SIGKILL


def test_nobody_has_written_yet(replica: Path) -> None:
    assert not _torn(replica)


def test_a_writer_that_ended(
    replica: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ReplicaWriter(replica).close()
    assert not _torn(replica)
    _other_boot(monkeypatch, tmp_path, "another")
    assert not _torn(replica)


def test_a_writer_that_was_killed_on_a_machine_that_lives(replica: Path) -> None:
    _kill_writer(replica)
    assert boot_id()
    assert not _torn(replica)


def test_a_writer_that_ended_with_its_machine(
    replica: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _kill_writer(replica)
    _other_boot(monkeypatch, tmp_path, "another")
    assert _torn(replica)
    ReplicaWriter(replica).close()
    assert not _torn(replica)


def test_a_system_that_does_not_name_its_boots(
    replica: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _other_boot(monkeypatch, tmp_path, None)
    with contextlib.closing(ReplicaWriter(replica)):
        assert _torn(replica)
    assert not _torn(replica)
