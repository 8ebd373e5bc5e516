"""Node 22 and the official client releases, installed by npm name into a cache folder.

Owns that folder (``ZEROCACHE_TEST_CACHE``, default ``~/.cache/zerocache-tests``), which lies
outside the repository and is shared by all runs on a machine. A package that is there is never
asked for again. A missing npm is an error, never a skip: without the official client these tests
say nothing. ``python -m tests.e2e.javascript`` installs all of it.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
from pathlib import Path

NODE_VERSION = "22"
# The oldest and the newest release that applications use; both must work unchanged.
CLIENT_VERSIONS = ("0.25.9", "1.9.0")
PLAYWRIGHT_VERSION = "1"


def cache_folder() -> Path:
    configured = os.environ.get("ZEROCACHE_TEST_CACHE")
    return Path(configured) if configured else Path.home() / ".cache" / "zerocache-tests"


def node_binary() -> Path:
    """Node 22; the ``node`` of the machine may be older and lacks a global WebSocket."""
    # The package fetches the binary of this platform in its install script.
    return (
        installed(f"node@{NODE_VERSION}", scripts=True) / "node_modules" / "node" / "bin" / "node"
    )


def client_package(version: str) -> Path:
    """The folder whose ``node_modules`` holds @rocicorp/zero at ``version``."""
    return installed(f"@rocicorp/zero@{version}")


def playwright_package() -> Path:
    return installed(f"playwright-core@{PLAYWRIGHT_VERSION}")


def installed(package: str, *, scripts: bool = False) -> Path:
    """The folder in which ``package`` (``name@version``) is installed, installing it if needed."""
    folder = cache_folder() / package.replace("/", "+")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        # Two test runs on one machine must not install into one folder at the same time.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            _install(package, folder, scripts=scripts)
            (folder / "complete").touch()
    return folder


def _install(package: str, folder: Path, *, scripts: bool) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise RuntimeError(
            f"npm is not on PATH, so {package} cannot be installed into {folder}: the end-to-end "
            "tests drive the official JavaScript client. Install Node.js with npm, or leave these "
            "tests out with: pytest -m 'not js and not browser'"
        )
    (folder / "package.json").write_text(json.dumps({"private": True}))
    command = [npm, "install", "--no-audit", "--no-fund", "--omit=dev", "--omit=optional"]
    if scripts:
        command = [npm, "install", "--no-audit", "--no-fund"]
    else:
        # The client is plain JavaScript; the scripts build parts of the reference server.
        command.append("--ignore-scripts")
    done = subprocess.run(
        [*command, package], cwd=folder, capture_output=True, text=True, timeout=600, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"npm could not install {package} into {folder}:\n{done.stderr[-3000:]}")


def prepare() -> None:
    """Install everything beforehand, so that no test's time limit pays for a slow registry."""
    node_binary()
    playwright_package()
    for version in CLIENT_VERSIONS:
        client_package(version)


if __name__ == "__main__":
    prepare()
