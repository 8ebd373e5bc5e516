"""The one place that decides which indexes the engine gets beside upstream's.

Workers say what their queries would use; this refuses what an existing index serves, keeps number,
size and build time within bounds, and has the writer build the rest between two transactions. An
index costs something at every write, so those nobody asked for in a while make room for new ones.
Invariant: never more automatic indexes than the limit, and none at all when they are switched off.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import apsw
import structlog

from zerocache.errors import ResyncRequired
from zerocache.protocol.versions import Watermark
from zerocache.replica.auto_index import (
    AutoIndex,
    ExistingIndex,
    IndexWish,
    as_index,
    estimate_bytes,
    highest_rowid,
    indexes_of,
    note_asked,
)
from zerocache.replica.writer import ReplicaWriter

MAX_WAITING = 1_000

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class IndexLimits:
    """``count``: automatic indexes at a time. ``rows`` and ``size_bytes``: of one index, both
    estimated. ``columns``: of one index. ``build_s``: longest stop of replication for a build.
    ``unused_ms``: an index asked for more recently is not dropped for another one."""

    count: int = 32
    rows: int = 20_000_000
    size_bytes: int = 1 << 30
    columns: int = 8
    build_s: float = 15.0
    unused_ms: int = 3_600_000


class IndexKeeper:
    """One per replication process.

    * :meth:`submit` may be called from any thread and never waits;
    * :meth:`open` and :meth:`work` belong to the writer's thread; :meth:`work` looks at one wish
      at most, so that rows wait for one build at most.
    """

    def __init__(
        self,
        limits: IndexLimits,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._limits = limits
        self._now_ms = now_ms
        self._lock = threading.Lock()
        # Wishes not looked at yet, oldest first.
        self._waiting: dict[IndexWish, None] = {}
        # Wishes that failed or exceed a bound in the replica of this generation.
        self._refused: set[IndexWish] = set()
        self._generation: Watermark | None = None

    def submit(self, wish: IndexWish) -> None:
        if self._limits.count == 0:
            return
        with self._lock:
            if len(self._waiting) < MAX_WAITING:
                self._waiting.setdefault(wish)

    def open(self, writer: ReplicaWriter) -> None:
        """Bring the indexes a replica has within the limits; call when a writer was opened."""
        if writer.state.replica_version != self._generation:
            self._generation = writer.state.replica_version
            self._refused.clear()
        present = _by_age(writer)
        surplus = [auto.index.name for auto in present[: max(0, len(present) - self._limits.count)]]
        if surplus:
            writer.drop_auto_indexes(surplus)
            log.info("auto_indexes_dropped", indexes=surplus, limit=self._limits.count)

    def work(
        self,
        writer: ReplicaWriter,
        interrupted: Callable[[], bool],
        at_most_s: float = math.inf,
    ) -> bool:
        """Decide about one wish, between transactions; True if an index was built. A build ends
        early when ``interrupted`` says so, and for good after ``at_most_s``."""
        if not self._waiting or writer.in_transaction:
            return False
        with self._lock:
            wish = next(iter(self._waiting))
            del self._waiting[wish]
        if wish in self._refused or not self._is_possible(wish, writer):
            return False
        serving = self._serving(wish, writer)
        if serving is not None:
            if serving.automatic:
                name, now_ms = serving.name, self._now_ms()
                writer.change_auto_indexes(lambda db: note_asked(db, name, now_ms))
            return False
        if not self._is_small_enough(wish, writer) or not self._make_room(wish, writer):
            return False
        return self._build(wish, writer, interrupted, min(at_most_s, self._limits.build_s))

    def _is_possible(self, wish: IndexWish, writer: ReplicaWriter) -> bool:
        """The worker may have seen another schema than the one the replica has now."""
        names = [name for name, _ in wish.columns]
        known = _columns(wish.table, writer)
        return (
            0 < len(names) <= self._limits.columns
            and len(set(names)) == len(names)
            and all(name in known for name in names)
        )

    def _serving(self, wish: IndexWish, writer: ReplicaWriter) -> ExistingIndex | None:
        for index in writer.read(lambda db: indexes_of(db, wish.table)):
            if index.serves(wish):
                return index
        return None

    def _is_small_enough(self, wish: IndexWish, writer: ReplicaWriter) -> bool:
        rows = writer.read(lambda db: highest_rowid(db, wish.table))
        size = writer.read(lambda db: estimate_bytes(db, wish))
        if rows <= self._limits.rows and size <= self._limits.size_bytes:
            return True
        self._refuse(wish, "the table is too large", rows=rows, estimated_bytes=size)
        return False

    def _make_room(self, wish: IndexWish, writer: ReplicaWriter) -> bool:
        """Drop what the new index makes superfluous, and at the limit the least wanted one."""
        present = _by_age(writer)
        new = as_index(wish)
        dropped = [auto.index.name for auto in present if _contains(new, auto.index)]
        if len(present) - len(dropped) >= self._limits.count:
            oldest = present[0]
            if oldest.asked_ms > self._now_ms() - self._limits.unused_ms:
                # Not for good: it is asked for again as long as it is missing.
                log.info("auto_index_postponed", wish=str(wish), limit=self._limits.count)
                return False
            dropped.append(oldest.index.name)
        if dropped:
            writer.drop_auto_indexes(dropped)
            log.info("auto_indexes_dropped", indexes=dropped, for_wish=str(wish))
        return True

    def _build(
        self,
        wish: IndexWish,
        writer: ReplicaWriter,
        interrupted: Callable[[], bool],
        budget_s: float,
    ) -> bool:
        started_s = time.monotonic()
        deadline_s = started_s + budget_s
        try:
            writer.create_auto_index(wish, lambda: interrupted() or time.monotonic() > deadline_s)
        except apsw.InterruptError:
            if not interrupted():
                self._refuse(wish, f"building it takes more than {budget_s:g} s")
            return False
        except apsw.FullError as error:
            self._refuse(wish, f"there is no space for it ({error})")
            return False
        log.info(
            "auto_index_created",
            index=wish.name,
            milliseconds=round((time.monotonic() - started_s) * 1_000),
        )
        return True

    def _refuse(self, wish: IndexWish, reason: str, **figures: int) -> None:
        self._refused.add(wish)
        log.warning("auto_index_refused", wish=str(wish), reason=reason, **figures)


def _columns(table: str, writer: ReplicaWriter) -> frozenset[str]:
    try:
        facts = writer.facts(table)
    except ResyncRequired:
        return frozenset()
    return frozenset(column.name for column in facts.table.columns)


def _by_age(writer: ReplicaWriter) -> list[AutoIndex]:
    """The automatic indexes, those asked for longest ago first."""
    return sorted(writer.auto_indexes(), key=lambda auto: (auto.asked_ms, auto.index.name))


def _contains(new: ExistingIndex, old: ExistingIndex) -> bool:
    """Whether ``old`` is the beginning of ``new``, hence superfluous beside it."""
    return old.table == new.table and new.columns[: len(old.columns)] == old.columns
