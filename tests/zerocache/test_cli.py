"""The command line, run as a program."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from zerocache.cli import main

ROOT = Path(__file__).parents[2]


def run(cwd: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: text for name, text in os.environ.items() if not name.startswith("ZERO")}
    return subprocess.run(
        [sys.executable, "-m", "zerocache.cli", *arguments],
        cwd=cwd,
        env={**inherited, "PYTHONPATH": str(ROOT), **environ},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_without_a_database_one_message_and_status_78(tmp_path: Path) -> None:
    result = run(tmp_path)
    assert result.returncode == 78
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert "ZERO_UPSTREAM_DB" in result.stderr
    assert "zerocache dev" in result.stderr


def test_dotenv_of_the_working_directory_is_read(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("ZERO_UPSTREAM_DB=postgres://u:hunter2@h/d\nZERO_PORT=abc\n")
    result = run(tmp_path)
    assert result.returncode == 78
    assert 'ZERO_PORT: "abc"' in result.stderr
    assert "hunter2" not in result.stderr


def test_help_and_version_exit_0(tmp_path: Path) -> None:
    shown = run(tmp_path, "--help")
    assert shown.returncode == 0
    assert "--upstream-db string   required" in shown.stdout
    assert run(tmp_path, "--version").stdout.startswith("zerocache ")


def test_dev_gets_its_own_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[str] = []

    def dev_main(arguments: list[str]) -> int:
        given.extend(arguments)
        return 7

    app = ModuleType("zerocache.dev.app")
    monkeypatch.setattr(app, "main", dev_main, raising=False)
    monkeypatch.setitem(sys.modules, "zerocache.dev.app", app)
    assert main(["dev", "--port", "1", "--help"]) == 7
    assert given == ["--port", "1", "--help"]
