"""Hydration beside the engine: a query computed on a snapshot of its own, on another thread.

The engine goes on advancing meanwhile; when the result is there the engine *adopts* it, which
means catching the one pipeline up from its snapshot to the engine's version. What was encoded
meanwhile is kept by rowid, so that only rows written since need to be encoded again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import apsw

from view_syncer.ivm.encode import ClientTables, Encoder
from view_syncer.ivm.pipeline import Pipeline
from view_syncer.ivm.plan import Plan
from view_syncer.ivm.snapshot import ReaderPool, SnapshotReader
from zerocache.errors import QueryError
from zerocache.failpoints import Place, reach
from zerocache.protocol.versions import Watermark
from zerocache.replica.schema import ReplicaSchema
from zerocache.zql.shape import Instance

STEPS_BETWEEN_CHECKS = 20_000
"""SQLite instructions between two looks at the clock: well under a millisecond."""


@dataclass(frozen=True, slots=True)
class HydrationLimits:
    """What one query may cost; 0 is no limit. A query beyond them fails alone. One of at most
    ``quick_rows`` at each level may be computed by the engine itself (0: none is)."""

    max_rows: int = 0
    max_seconds: float = 0.0
    quick_rows: int = 300


@dataclass(slots=True)
class EncodedRows:
    """``put`` operations by table and rowid, as of ``version``."""

    version: Watermark
    tables: Mapping[str, Mapping[int, str]]


class HydrationCancelled(Exception):
    """Nobody waits for the result any more."""


@dataclass(eq=False, slots=True)
class Hydration:
    """A pipeline at the version of ``reader``, which stays pinned until :meth:`close`. Others may
    have it pinned too: only the engine's thread may read by it."""

    pipeline: Pipeline
    schema: ReplicaSchema
    reader: SnapshotReader
    encoded: EncodedRows
    readers: ReaderPool

    def close(self) -> None:
        self.readers.unpin(self.reader)


@dataclass(slots=True)
class HydrationRequest:
    """``plan``, ``instance`` and ``encoder`` must stem from ``schema``. Set ``cancelled`` to give
    up. Without ``encoder`` the rows are not encoded: not everybody needs to be sent them."""

    plan: Plan
    instance: Instance
    schema: ReplicaSchema
    client: ClientTables
    encoder: Encoder | None = None
    cancelled: threading.Event | None = None


def hydrate(
    readers: ReaderPool | Path, request: HydrationRequest, limits: HydrationLimits
) -> Hydration:
    """Compute and encode a query at the newest commit; the caller owns the result.

    Raises :class:`QueryError` beyond a limit and :class:`HydrationCancelled`.
    """
    if isinstance(readers, Path):
        readers = ReaderPool(readers, 0)
    reader = readers.take()
    try:
        reader.begin()
        watch = _Watch(request.cancelled or threading.Event(), limits)
        reader.db.set_progress_handler(watch.expired, STEPS_BETWEEN_CHECKS)
        pipeline = Pipeline(request.plan, request.instance, max_rows=limits.max_rows)
        with watch:
            pipeline.hydrate(reader.db)
            reach(Place.MID_HYDRATION)
            encoded = EncodedRows(reader.version, {})
            if request.encoder is not None:
                encoded.tables = request.encoder.puts_by_row(reader.db, pipeline.rows())
        reader.db.set_progress_handler(None)
    except BaseException:
        reader.close()
        raise
    return Hydration(pipeline, request.schema, readers.pin(reader), encoded, readers)


class _Watch:
    """Ends SQLite statements that nobody wants or that take too long, and says which it was."""

    def __init__(self, cancelled: threading.Event, limits: HydrationLimits) -> None:
        self._cancelled = cancelled
        self._seconds = limits.max_seconds
        self._deadline = time.monotonic() + limits.max_seconds if limits.max_seconds else None

    def expired(self) -> bool:
        late = self._deadline is not None and time.monotonic() > self._deadline
        return late or self._cancelled.is_set()

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or not issubclass(kind, apsw.InterruptError):
            return
        if self._cancelled.is_set():
            raise HydrationCancelled
        raise QueryError(
            f"the query took more than {self._seconds:g} s to compute and was stopped; give it a "
            "limit or a filter that an index serves, or raise ZEROCACHE_MAX_HYDRATION_SECONDS"
        )
