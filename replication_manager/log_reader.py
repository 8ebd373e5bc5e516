"""Reads the change log from a position on, and follows its end.

Owns what a reader is promised, for subscribers of other nodes and for backups: every transaction
after the position, whole, in commit order, once, and then those that are stored later, as soon as
they are. It reads what is committed only, and needs no claim on the log; who must be able to come
back to a position holds a reservation (reservations.py). Invariant: a reader that the log cannot
serve without a gap is refused, never served from the middle.
"""

from __future__ import annotations

from collections.abc import Iterator

from replication_manager.change_db import ChangeDb, ChangeDbError, LogState
from replication_manager.segments import read_messages
from zerocache.errors import ReplicationError
from zerocache.protocol.versions import Lsn, watermark_from_lsn

_BEGIN, _COMMIT, _RELATION = b"BCR"


class LogTooShort(ReplicationError):
    """The log does not reach back (or forward) to where a reader wants to begin."""

    code = "ZC242"


class OtherGeneration(ReplicationError):
    """The log belongs to replicas of another initial sync."""

    code = "ZC243"


class LogReader:
    """Reads on a connection of its own, in one thread."""

    def __init__(self, db: ChangeDb, generation: str, after: Lsn) -> None:
        """``after``: the last transaction the reader has, of replicas of ``generation``."""
        self._db = db
        self._generation = generation
        self._after = after
        # Before the first look, so that nothing stored in between goes unnoticed.
        db.listen()

    @property
    def position(self) -> Lsn:
        """The last transaction that was read."""
        return self._after

    def read(self) -> Iterator[bytes]:
        """The messages of what is stored by now; the position moves with each Commit.

        Descriptions of relations may come before the first Begin and again later. Raises
        :class:`LogTooShort` or :class:`OtherGeneration` before anything else, if that is so.
        """
        state = self._state()
        if self._after >= state.last:
            return
        lsn = self._after
        for payload in read_messages(self._db.parts_after(self._after, state.last)):
            tag = payload[0]
            if tag == _BEGIN:
                lsn = Lsn(int.from_bytes(payload[1:9], "big"))
            is_new = lsn > self._after
            if is_new or tag == _RELATION:
                yield payload
            if is_new and tag == _COMMIT:
                self._after = lsn

    def wait(self, timeout_s: float) -> bool:
        """Wait until more was stored; False if the time is over."""
        return self._db.wait_for_commit(timeout_s)

    def _state(self) -> LogState:
        state = self._db.state()
        if state is None:
            raise ChangeDbError("the change log was not begun yet: its manager must start first")
        if state.replica_version != self._generation:
            raise OtherGeneration(
                f"the change log is of generation {state.replica_version}, the reader's replica of "
                f"{self._generation}: a new initial sync was made; restore a replica of that one"
            )
        if self._after < state.floor:
            raise LogTooShort(
                f"the change log begins after {watermark_from_lsn(state.floor)}, the reader wants "
                f"to go on after {watermark_from_lsn(self._after)}: what is in between was purged; "
                "restore a newer replica"
            )
        return state
