"""The data folder: one user at a time, and a psql that knows its way."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from zerocache.dev.embedded import find_binaries
from zerocache.dev.folder import locked, write_psql_script
from zerocache.errors import ConfigurationError


def test_second_user_is_refused_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    refused = pytest.raises(ConfigurationError, match=f"process {os.getpid()}.*--data-dir")
    with locked(folder), refused, locked(folder):
        pass
    with locked(folder):
        pass


def test_folder_stays_out_of_version_control(tmp_path: Path) -> None:
    with locked(tmp_path / "data"):
        assert (tmp_path / "data" / ".gitignore").read_text() == "*\n"


def test_psql_script_reaches_the_database(tmp_path: Path, database: str) -> None:
    script = tmp_path / "psql"
    write_psql_script(script, find_binaries(), database)
    write_psql_script(script, find_binaries(), database)
    answer = subprocess.run(
        [script, "-At", "-c", "SELECT 6 * 7"], capture_output=True, text=True, check=True
    )
    assert answer.stdout == "42\n"
    assert script.stat().st_mode & 0o077 == 0
