"""A helper process that takes one JSON command per line and answers with JSON lines.

Owns the process and the waiting. A reader thread hands every event to its owner; whoever waits is
woken by each event and looks again, so tests wait on events, with a deadline, and never sleep.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

DEADLINE_S = 10.0

Row = dict[str, Any]
T = TypeVar("T")


class DriverError(Exception):
    """The helper process refused a command, ended, or did not report what was waited for."""


class LineProcess:
    """``store`` is called for every event that is no reply, in order, while waiters are held."""

    def __init__(self, command: Sequence[str], log: Path, store: Callable[[Row], None]) -> None:
        self._log = log
        self._store = store
        self._ids = itertools.count(1)
        self._changed = threading.Condition()
        self._replies: dict[int, Row] = {}
        self._ended = False
        with log.open("wb") as stderr:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                encoding="utf-8",
            )
        self._reader = threading.Thread(target=self._read, name=f"reading {log.name}", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            event = json.loads(line)
            with self._changed:
                if event["event"] == "reply":
                    self._replies[event["id"]] = event
                else:
                    self._store(event)
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def command(self, cmd: str, *, deadline_s: float = DEADLINE_S, **arguments: Any) -> Any:
        """Send one command and wait for its result."""
        assert self._process.stdin is not None
        number = next(self._ids)
        self._process.stdin.write(json.dumps({"id": number, "cmd": cmd, **arguments}) + "\n")
        self._process.stdin.flush()
        what = f"the reply to {cmd}"
        reply = self.wait(lambda: self._replies.pop(number, None), what, deadline_s)
        if "error" in reply:
            raise DriverError(f"{cmd} {arguments} failed: {reply['error']}\n{self.log_tail()}")
        return reply["result"]

    def wait(self, look: Callable[[], T | None], what: str, deadline_s: float = DEADLINE_S) -> T:
        """Wait until ``look`` finds something in what has been stored."""
        deadline = time.monotonic() + deadline_s
        with self._changed:
            while True:
                found = look()
                if found is not None:
                    return found
                left = deadline - time.monotonic()
                if self._ended or left <= 0:
                    how = "the process ended" if self._ended else f"{deadline_s:.0f} s passed"
                    raise DriverError(f"{how} without {what}\n{self.log_tail()}")
                self._changed.wait(left)

    def log_tail(self) -> str:
        return f"{self._log}: {self._log.read_text(errors='replace')[-1200:]}"

    def stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
        self._reader.join(10)
