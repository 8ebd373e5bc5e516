"""One place in the node that a process fills, and the rule for filling it again.

Owns restarts: backoff, giving up on a process that never gets ready, recognising the end that no
restart helps against. Must never start anything once it was told to stop. Invariant: at most one
process of a role is alive.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import structlog

from zerocache.child_process import ChildProcess, describe_status
from zerocache.control import EXIT_CONFIGURATION

EXIT_UNEXPECTED = 255

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class RestartPolicy:
    """Times and limits of restarts; tests shorten them."""

    first_backoff_s: float = 0.1
    longest_backoff_s: float = 10.0
    # A process that worked for this long starts over with the first backoff.
    stable_after_s: float = 30.0
    # Never ready in this many tries in a row: the node gives up, so that somebody notices.
    start_attempts: int = 5


class RoleFailed(Exception):
    """A role cannot be filled; the node should end with ``status``."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Role:
    """Keeps one kind of process running.

    * ``launch`` once; ``on_failed`` is called at most once, when no restart would help.
    * ``current`` waits for a process that is ready; callers bound that wait.
    * ``stop`` and ``kill`` return when the process has ended; both may be called at any time.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environ: Mapping[str, str],
        policy: RestartPolicy,
        *,
        on_started: Callable[[ChildProcess], None] | None = None,
    ) -> None:
        self.name = name
        self._on_started = on_started
        # Set for good when the first process of this role became ready.
        self.first_ready = asyncio.Event()
        self._command = command
        self._environ = environ
        self._policy = policy
        self._child: ChildProcess | None = None
        # Set and replaced when a process becomes ready: whoever waits for one looks again.
        self._changed = asyncio.Event()
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def launch(self, on_failed: Callable[[BaseException], None]) -> None:
        def finished(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and (error := task.exception()) is not None:
                on_failed(error)

        self._task = asyncio.create_task(self._run(), name=self.name)
        self._task.add_done_callback(finished)

    async def current(self) -> ChildProcess:
        """The process of this role, as soon as one is ready."""
        while True:
            child = self._child
            if child is not None and child.ready.is_set() and not child.ended.done():
                return child
            await self._changed.wait()

    @property
    def child(self) -> ChildProcess | None:
        """The newest process, whatever it is at."""
        return self._child

    async def stop(self, timeout_s: float | None) -> None:
        """End the process gracefully; by force if it takes longer than ``timeout_s``."""
        self._stopping.set()
        if self._task is None or self._task.done():
            return
        if self._child is not None:
            self._child.terminate()
        await asyncio.wait([self._task], timeout=timeout_s)
        if not self._task.done():
            log.warning("process_killed", child=self.name, afterSeconds=timeout_s)
            await self.kill()

    async def kill(self) -> None:
        """End the process now."""
        self._stopping.set()
        if self._task is None or self._task.done():
            return
        if self._child is not None:
            self._child.kill()
        await asyncio.wait([self._task])

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        backoff_s = self._policy.first_backoff_s
        failures = 0
        while not self._stopping.is_set():
            started = loop.time()
            child = await self._start()
            was_ready = await self._until_ended(child)
            if self._stopping.is_set():
                return
            failures = 0 if was_ready else failures + 1
            self._raise_if_final(child, failures)
            if was_ready and loop.time() - started >= self._policy.stable_after_s:
                backoff_s = self._policy.first_backoff_s
            log.error(
                "process_ended",
                child=self.name,
                childPid=child.pid,
                reason=describe_status(child.ended.result()),
                restartInSeconds=backoff_s,
            )
            await self._pause(backoff_s)
            backoff_s = min(backoff_s * 2, self._policy.longest_backoff_s)

    async def _start(self) -> ChildProcess:
        child = await ChildProcess.start(self.name, self._command, self._environ)
        self._child = child
        if self._on_started is not None:
            self._on_started(child)
        if self._stopping.is_set():
            # The order to stop came during the start and did not reach this process, which has
            # nothing to lose yet.
            child.kill()
        return child

    async def _until_ended(self, child: ChildProcess) -> bool:
        """Wait for the end of the process; tells whether it had become ready."""
        ready = asyncio.create_task(child.ready.wait())
        try:
            await asyncio.wait([ready, child.ended], return_when=asyncio.FIRST_COMPLETED)
        finally:
            ready.cancel()
        if child.ready.is_set():
            self.first_ready.set()
            self._changed.set()
            self._changed = asyncio.Event()
        await child.ended
        return child.ready.is_set()

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds)
        except TimeoutError:
            return  # the usual case: nobody stopped the node during the backoff

    def _raise_if_final(self, child: ChildProcess, failures: int) -> None:
        status = child.ended.result()
        if child.fatal is not None:
            raise RoleFailed(child.fatal.message, child.fatal.exit)
        if status == EXIT_CONFIGURATION:
            raise RoleFailed(
                f"{self.name} found an error in the configuration; its own message is above.",
                EXIT_CONFIGURATION,
            )
        if failures >= self._policy.start_attempts:
            raise RoleFailed(
                f"{self.name} {describe_status(status)} before it was ready, {failures} times in "
                "a row. The cause is in the log lines above.",
                EXIT_UNEXPECTED,
            )
