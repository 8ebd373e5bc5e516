"""PostgreSQL of an official image, where a Docker engine runs (``TEST_POSTGRES=docker:17``).

Owns how a program of the image is run on a directory of this machine: same paths, same network,
same user as a program that is installed here, so that tests need not know. It must never be used
when there is no engine: testcontainers then fails, and that failure is the test's. Invariant: a
container that outlives this process is removed by testcontainers' reaper.
"""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PREFIX = "docker:"


@dataclass
class ContainerProcess:
    """A running container, with the part of ``subprocess.Popen`` that clusters use."""

    container: Any

    @classmethod
    def start(
        cls, version: str, program: str, arguments: Sequence[str], directory: Path
    ) -> ContainerProcess:
        # Imported here: it looks for an engine.
        from testcontainers.core.container import DockerContainer

        container = (
            DockerContainer(f"postgres:{version}")
            .with_command(list(arguments))
            .with_volume_mapping(str(directory), str(directory), "rw")
            # initdb wants a name for its user id.
            .with_volume_mapping("/etc/passwd", "/etc/passwd", "ro")
            .with_kwargs(entrypoint=[program], user=_user(), network_mode="host")
        )
        return cls(container.start())

    def poll(self) -> int | None:
        self.container.reload()
        return self._exit_code() if self.container.status == "exited" else None

    def send_signal(self, how: signal.Signals) -> None:
        self.container.get_wrapped_container().kill(how.name)

    def wait(self, timeout_s: float | None = None) -> int:
        """Until it has ended; the container is removed then. Popen's exception when it does not."""
        from requests.exceptions import ConnectionError, ReadTimeout

        try:
            self.container.get_wrapped_container().wait(timeout=timeout_s)
        except (ConnectionError, ReadTimeout):
            raise subprocess.TimeoutExpired("postgres", timeout_s or 0) from None
        self.container.reload()
        code = self._exit_code()
        self.container.stop()
        return code

    def logs(self) -> str:
        return b"".join(self.container.get_logs()).decode("utf-8", "replace")

    def _exit_code(self) -> int:
        return int(self.container.get_wrapped_container().attrs["State"]["ExitCode"])


def _user() -> str:
    """PostgreSQL refuses to run as root; `nobody` exists everywhere."""
    if os.geteuid() != 0:
        return f"{os.getuid()}:{os.getgid()}"
    nobody = pwd.getpwnam("nobody")
    return f"{nobody.pw_uid}:{nobody.pw_gid}"
