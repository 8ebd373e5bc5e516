"""A thread with a database connection of its own, beside the stream.

Owns its life: it connects, works, connects again after a failure, and ends when asked, even while
it waits for a server that no longer answers. Must never fail the process: who depends on its
results asks for them. Invariant: once the context is left, the thread has ended or has no
connection.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Self

import psycopg
import structlog

from zerocache.errors import ConfigurationError
from zerocache.postgres.connection import abort, connect

_RETRY_S = 5.0
_PATIENCE_S = 1.0

log = structlog.get_logger(__name__)


class BackgroundConnection:
    """A context manager; ``work`` gets the connection and this object, and returns to end.

    * ``work`` waits with :meth:`wait` only, which returns early when the thread is to end.
    """

    def __init__(
        self,
        url: str,
        purpose: str,
        work: Callable[[psycopg.Connection[Any], BackgroundConnection], None],
        *,
        retry_s: float = _RETRY_S,
    ) -> None:
        self._url = url
        self._purpose = purpose
        self._work = work
        self._retry_s = retry_s
        self._woken = threading.Event()
        self._ending = False
        self._connection: psycopg.Connection[Any] | None = None
        self._thread = threading.Thread(target=self._run, name=purpose, daemon=True)

    @property
    def is_ending(self) -> bool:
        return self._ending

    def wake(self) -> None:
        """Let :meth:`wait` return; from any thread."""
        self._woken.set()

    def wait(self, timeout_s: float) -> bool:
        """Wait to be woken; False if the time is over."""
        woken = self._woken.wait(timeout_s)
        if woken and not self._ending:
            self._woken.clear()
        return woken

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.end()

    def end(self) -> None:
        self._ending = True
        self._woken.set()
        self._thread.join(_PATIENCE_S)
        connection = self._connection
        if self._thread.is_alive() and connection is not None:
            abort(connection)
            self._thread.join(_PATIENCE_S)

    def _run(self) -> None:
        while not self._ending:
            try:
                with connect(self._url, self._purpose) as connection:
                    self._connection = connection
                    self._work(connection, self)
                    return
            except (ConfigurationError, psycopg.Error) as error:
                if not self._ending:
                    log.info(f"{self._purpose}_interrupted".replace("-", "_"), reason=str(error))
                    self.wait(self._retry_s)
            finally:
                self._connection = None
