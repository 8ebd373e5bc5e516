"""One child process of the supervisor: its start, its control channel, its end.

Owns the operating-system side: environment, inherited descriptors, signals, exit status. Must
never decide whether a child is restarted: the supervisor does. Invariant: a ``ChildProcess`` is
one run; a restart is a new one.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Self

import structlog

from zerocache.control import (
    CONTROL_FD_VARIABLE,
    ChildMessage,
    ControlClosed,
    Fatal,
    Figures,
    ParentControl,
    Progress,
    Ready,
    Released,
)

log = structlog.get_logger(__name__)


class ChildProcess:
    """A running child.

    * ``ready`` is set once the child said so; ``fatal`` holds its last words, if it had any.
    * ``ended`` completes with the exit status after the last control message was handled, so
      that ``fatal`` is known by then. A status below zero is the signal that ended the child.
    """

    def __init__(self, name: str, process: asyncio.subprocess.Process, control: ParentControl):
        self.name = name
        self.control = control
        self.ready = asyncio.Event()
        self.fatal: Fatal | None = None
        # Called with the address of each client connection that the child is through with.
        self.on_released: Callable[[str], None] | None = None
        # Questions for figures that were not answered yet, by their number.
        self._asked: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._requests = 0
        self._process = process
        self.ended: asyncio.Task[int] = asyncio.create_task(self._until_ended(), name=name)

    @classmethod
    async def start(cls, name: str, command: Sequence[str], environ: Mapping[str, str]) -> Self:
        """Start ``command`` with a control channel of its own."""
        control, theirs = ParentControl.pair()
        with theirs:
            try:
                process = await asyncio.create_subprocess_exec(
                    *command,
                    env={**os.environ, **environ, CONTROL_FD_VARIABLE: str(theirs.fileno())},
                    pass_fds=(theirs.fileno(),),
                    stdin=asyncio.subprocess.DEVNULL,
                    # Ctrl-C in a terminal goes to the whole process group; children must hear
                    # of it from the supervisor only, in the order of the drain.
                    start_new_session=True,
                )
            except BaseException:
                await control.close()
                raise
        log.info("process_started", child=name, childPid=process.pid)
        return cls(name, process, control)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def figures(self) -> dict[str, Any]:
        """What the child says of itself; raises ControlClosed if it is gone. The caller bounds
        the wait."""
        self._requests += 1
        request = self._requests
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._asked[request] = answer
        try:
            await self.control.ask_figures(request)
            return await answer
        finally:
            del self._asked[request]

    def terminate(self) -> None:
        """Ask for a graceful end."""
        self._signal(self._process.terminate)

    def kill(self) -> None:
        """End it now."""
        self._signal(self._process.kill)

    def _signal(self, send: Callable[[], None]) -> None:
        with suppress(ProcessLookupError):  # it ended by itself meanwhile: what we wanted
            send()

    async def _until_ended(self) -> int:
        messages = asyncio.create_task(self._follow_messages())
        try:
            status = await self._process.wait()
            # The channel reaches end-of-file now, unless a grandchild inherited it.
            await asyncio.wait([messages], timeout=1)
            return status
        finally:
            messages.cancel()
            await asyncio.wait([messages])
            await self.control.close()
            for answer in self._asked.values():
                if not answer.done():
                    answer.set_exception(ControlClosed("The child ended without an answer."))

    async def _follow_messages(self) -> None:
        async for message in self.control.messages():
            self._handle(message)

    def _handle(self, message: ChildMessage) -> None:
        match message:
            case Ready():
                log.info("process_ready", child=self.name, childPid=self.pid)
                self.ready.set()
            case Progress(text):
                log.info("process_progress", child=self.name, progress=text)
            case Fatal():
                self.fatal = message
            case Released(address):
                if self.on_released is not None:
                    self.on_released(address)
            case Figures(request, values):
                answer = self._asked.get(request)
                if answer is not None and not answer.done():
                    answer.set_result(values)


def describe_status(status: int) -> str:
    """An exit status in words."""
    return f"was ended by signal {-status}" if status < 0 else f"exited with status {status}"
