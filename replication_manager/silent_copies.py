"""Whether copies of which nothing comes are still under way.

Owns the question to the server that a COPY cannot be asked itself: a filter that few rows pass
keeps it silent for long, and so does a network that has fallen silent, for ever. The server tells
them apart over another connection: a backend that is still searching is active and waits for nobody
here. Invariant: no copy that the server is working on is given up, however long it says nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import psycopg

from zerocache.postgres.connection import connect, inactivity_limit_s, silence

# For what was on its way while the server was asked.
_GRACE_S = 5.0


class SilenceWatch:
    """Belongs to the thread that copies.

    * :attr:`timeout_s` is how long to wait for the copies;
    * :meth:`heard` and :meth:`silent` have to be called with the outcome.
    """

    def __init__(self, url: str, connections: Sequence[psycopg.Connection[Any]]) -> None:
        self._url = url
        self._connections = connections
        self._limit_s = inactivity_limit_s()
        # What a pooler tells at the login is not the backend's.
        self._pids = {one: _backend(one) for one in connections}
        # The server says that what it sent should be here by now.
        self._is_suspect = False

    @property
    def timeout_s(self) -> float | None:
        if self._limit_s is None or not self._is_suspect:
            return self._limit_s
        return min(self._limit_s, _GRACE_S)

    def heard(self) -> None:
        self._is_suspect = False

    def silent(self, active: Collection[psycopg.Connection[Any]]) -> None:
        """Nothing came from the ``active`` connections in :attr:`timeout_s`; ``OperationalError``
        if nothing is going to come from one of them. All are closed then."""
        if self._limit_s is None or self._are_busy([self._pids[one] for one in active]):
            self._is_suspect = False
        elif not self._is_suspect:
            self._is_suspect = True
        else:
            for connection in self._connections:
                # Whoever cleans up after this must not wait for an answer.
                connection.pgconn.finish()
            raise silence(self._limit_s)

    def _are_busy(self, pids: Sequence[int]) -> bool:
        """Whether each backend works, rather than wait for us to read or to ask."""
        with connect(self._url, "copy-watch") as connection:
            (busy,) = connection.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE pid = ANY (%s) "
                "AND state = 'active' AND wait_event IS DISTINCT FROM 'ClientWrite'",
                [pids],
            ).fetchall()[0]
        return bool(busy == len(pids))


def _backend(connection: psycopg.Connection[Any]) -> int:
    (pid,) = connection.execute("SELECT pg_backend_pid()").fetchall()[0]
    return int(pid)
