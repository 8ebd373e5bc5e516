"""Where the reference server is: zero-cache from npm, and a Node that it supports.

``ZEROCACHE_BENCH_JS`` names a directory whose node_modules hold both; otherwise they are
installed once, by npm, into a cache outside the repository.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

PACKAGES = ("@rocicorp/zero@1.9.0", "node@22")
_DEFAULT = Path.home() / ".cache" / "zerocache-bench" / "zero-1.9.0"


def command() -> list[str]:
    modules = _modules()
    package = modules / "@rocicorp" / "zero"
    return [str(modules / ".bin" / "node"), str(package / "out" / "zero" / "src" / "cli.js")]


def version() -> str:
    manifest = json.loads((_modules() / "@rocicorp" / "zero" / "package.json").read_text())
    return str(manifest["version"])


def _modules() -> Path:
    """The node_modules directory, installed if it is not there yet."""
    configured = os.environ.get("ZEROCACHE_BENCH_JS")
    root = Path(configured) if configured else _DEFAULT
    modules = root / "node_modules"
    if (modules / "@rocicorp" / "zero").is_dir():
        return modules
    if configured:
        raise FileNotFoundError(
            f"ZEROCACHE_BENCH_JS is {root}, but {modules} has no @rocicorp/zero; "
            f"run `npm install {' '.join(PACKAGES)}` there"
        )
    _install(root)
    return modules


def _install(root: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError("the reference server must be installed, but npm is not on PATH")
    root.mkdir(parents=True, exist_ok=True)
    (root / "package.json").write_text('{"private": true}')
    # Its install scripts are needed: they fetch Node and build the server's SQLite.
    subprocess.run([npm, "install", "--no-audit", "--no-fund", *PACKAGES], cwd=root, check=True)
