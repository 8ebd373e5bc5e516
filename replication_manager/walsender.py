"""One connection in replication mode: commands, the change stream and its feedback.

Owns the libpq connection (psycopg has no replication cursor, so this is ``psycopg.pq``) and the
three frames of the streaming protocol (replication.md §3). It knows nothing about the content of
the stream and never decides what may be acknowledged. All waiting ends at once when the process
is asked to stop.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass

import psycopg
from psycopg import pq
from psycopg.conninfo import make_conninfo
from psycopg.errors import error_from_result

from replication_manager.signals import StopSignal
from zerocache.postgres.connection import (
    connection_parameters,
    explain,
    inactivity_limit_s,
    silence,
)
from zerocache.protocol.versions import Lsn, lsn_from_text, lsn_to_text

# Values arrive as text, so everything that shapes text is pinned.
_SESSION = (
    b"SET TimeZone = 'UTC'; SET DateStyle = 'ISO'; SET IntervalStyle = 'postgres';"
    b"SET bytea_output = 'hex'; SET extra_float_digits = 1;"
    b"SET statement_timeout = 0; SET idle_in_transaction_session_timeout = 0"
)
_POSTGRES_EPOCH_US = 946_684_800_000_000
_STATUS = struct.Struct(">cqqqqb")
KEEPALIVE = struct.Struct(">xqqb")
"""Layout of a ``k`` frame: server end LSN, send time, reply requested."""
XLOG_HEADER_SIZE = 25
"""Bytes before the payload of a ``w`` frame."""


class StreamEnded(Exception):
    """The server closed the stream. ``cause`` says why, if it gave a reason."""

    def __init__(self, cause: psycopg.Error | None) -> None:
        super().__init__(str(cause) if cause else "the server closed the stream")
        self.cause = cause


@dataclass(frozen=True, slots=True)
class SlotCreated:
    """``snapshot`` can be imported until the connection that made it runs another command."""

    name: str
    consistent_point: Lsn
    snapshot: str


class ReplicationConnection:
    """A walsender at the other end.

    * One thread uses it at a time.
    * After :meth:`start_streaming` only frames and status updates are exchanged.
    """

    def __init__(self, url: str, purpose: str, stop: StopSignal) -> None:
        """Connect; failures are raised as :func:`zerocache.postgres.connection.explain` says."""
        parameters = connection_parameters(url, purpose)
        parameters |= {"replication": "database", "client_encoding": "UTF8"}
        self._stop = stop
        self._pgconn = pq.PGconn.connect(make_conninfo("", **parameters).encode())
        if self._pgconn.status != pq.ConnStatus.OK:
            message = self._pgconn.error_message.decode("utf-8", "replace")
            self._pgconn.finish()
            raise explain(psycopg.OperationalError(message), url, f"connecting for {purpose}")
        self._pgconn.nonblocking = 1
        self.execute(_SESSION)

    def execute(self, command: bytes) -> list[tuple[bytes | None, ...]]:
        """Run a command and return its rows; raises the server's ``psycopg.Error``."""
        self._pgconn.send_query(command)
        rows: list[tuple[bytes | None, ...]] = []
        failure: psycopg.Error | None = None
        while (result := self._next_result()) is not None:
            if result.status == pq.ExecStatus.COPY_BOTH:
                return rows
            if result.status in (pq.ExecStatus.FATAL_ERROR, pq.ExecStatus.BAD_RESPONSE):
                failure = failure or error_from_result(result)
            elif result.status == pq.ExecStatus.TUPLES_OK:
                rows = [
                    tuple(result.get_value(row, column) for column in range(result.nfields))
                    for row in range(result.ntuples)
                ]
        if failure is not None:
            raise failure
        return rows

    def _next_result(self) -> pq.abc.PGresult | None:
        while self._pgconn.flush():
            self._stop.wait(0.01)
        limit_s = inactivity_limit_s()
        while self._pgconn.is_busy():
            if not self._stop.wait_readable(self, timeout_s=limit_s) and limit_s is not None:
                raise StreamEnded(silence(limit_s))
            self._consume()
        return self._pgconn.get_result()

    def _consume(self) -> None:
        try:
            self._pgconn.consume_input()
        except psycopg.OperationalError as error:
            raise StreamEnded(error) from error

    def create_slot(
        self, name: str, *, failover: bool, lock_timeout_ms: int, temporary: bool = False
    ) -> SlotCreated:
        """Create a logical slot and export the snapshot of its consistent point.

        A temporary one ends with this connection. Waits for all transactions that are running;
        ``LockNotAvailable`` after the timeout, which
        keeps an abandoned walsender from pinning WAL.
        """
        self.execute(b"SET lock_timeout = %d" % lock_timeout_ms)
        kind = " TEMPORARY" if temporary else ""
        options = "SNAPSHOT 'export'" + (", FAILOVER true" if failover else "")
        rows = self.execute(
            f"CREATE_REPLICATION_SLOT {_quote(name)}{kind} LOGICAL pgoutput ({options})".encode()
        )
        _, consistent_point, snapshot, _ = rows[0]
        assert consistent_point is not None
        assert snapshot is not None
        return SlotCreated(name, lsn_from_text(consistent_point.decode()), snapshot.decode())

    def drop_slot(self, name: str) -> None:
        self.execute(f"DROP_REPLICATION_SLOT {_quote(name)} WAIT".encode())

    def start_streaming(self, slot: str, start: int, publications: Sequence[str]) -> None:
        """Ask for everything whose commit record is at or after ``start``."""
        names = ",".join(_quote(name) for name in publications).replace("'", "''")
        self.execute(
            f"START_REPLICATION SLOT {_quote(slot)} LOGICAL {lsn_to_text(start)} "
            f"(proto_version '1', publication_names '{names}', messages 'true')".encode()
        )

    def next_frame(self) -> memoryview | None:
        """The next frame if one has arrived, else None; never waits."""
        size, data = self._pgconn.get_copy_data(1)
        if size > 0:
            return data
        if size == 0:
            return None
        raise StreamEnded(self._failure())

    def check_stop(self) -> None:
        """:class:`Stopped` if asked to end."""
        self._stop.check()

    def read_socket(self) -> None:
        """Take in what the network has delivered; never waits. :class:`Stopped` if asked to end,
        however much is waiting."""
        self._stop.check()
        self._consume()

    def wait(self, timeout_s: float) -> bool:
        """Wait for the socket; True if there is something to read."""
        return bool(self._stop.wait_readable(self, timeout_s=max(timeout_s, 0)))

    def send_status(self, lsn: int) -> None:
        """Tell the server that everything up to ``lsn`` is durable here."""
        now = time.time_ns() // 1_000 - _POSTGRES_EPOCH_US
        try:
            self._pgconn.put_copy_data(_STATUS.pack(b"r", lsn, lsn, lsn, now, 0))
            # What the socket does not take now goes out with the next call; feedback is small
            # and the server reads it whenever it waits.
            self._pgconn.flush()
        except psycopg.OperationalError as error:
            raise StreamEnded(error) from error

    def _failure(self) -> psycopg.Error | None:
        # After the end of COPY libpq has one more result: the reason, or "command complete".
        result = self._pgconn.get_result()
        if result is None or result.status != pq.ExecStatus.FATAL_ERROR:
            return None
        return error_from_result(result)

    def fileno(self) -> int:
        return self._pgconn.socket

    def close(self) -> None:
        self._pgconn.finish()

    def __enter__(self) -> ReplicationConnection:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
