"""The membership facts of one worker life: written as they come, read back for who returns.

A worker life is an *author*, by a number the store gives out, and every cookie names its author
(:attr:`ViewVersion.issuer`). Facts are written behind the pokes, a moment later and for all groups
of the worker in one transaction, with the version up to which they are complete. That is safe
because nothing depends on their presence: whoever comes back with a cookie beyond what is written,
which takes a crash in that moment, is told to wipe what it has and is sent all of its view. It
keeps the database out of the way of every poke (design.md §3 has it in the way; `benchmarks.facts`
measures the difference).

Mutation results are looked up like rows, in one unit that all groups share: they are few, and a
client that comes back must lose those that were deleted meanwhile.

Invariant: what is answered here for a version is exactly what clients had at it, or None.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import apsw
import structlog

from view_syncer.cvr.facts import (
    RESULTS_UNIT,
    Held,
    Move,
    RowKey,
    UnitHistory,
    pack,
    results_prefix,
)
from view_syncer.cvr.store import (
    AuthorForgotten,
    Checkpoint,
    Delta,
    FactStore,
    StoreUnavailable,
    UnitFacts,
    UnitWrite,
)
from view_syncer.engine_host import EngineHost
from view_syncer.membership import CHECKPOINT_AGE_S, UnitId
from zerocache.protocol.versions import NO_STATE, NOBODY, ViewVersion, Watermark

log = structlog.get_logger(__name__)

FLUSH_DELAY_S = 0.25
"""How long moves are collected; also what a crash makes unprovable."""
MAX_UNWRITTEN_MOVES = 200_000
"""Moved rows kept while the store is away. Beyond, this author falls silent."""
HEARTBEAT_S = 300.0
MAX_CACHED_KEYS = 500_000


@dataclass(frozen=True, slots=True)
class _Cached:
    complete_to: Watermark
    history: UnitHistory | None


class FactKeeper:
    """:meth:`open`, :meth:`run` until cancelled, :meth:`close`; :meth:`advanced` whenever the
    engine moved."""

    def __init__(self, store: FactStore, engine: EngineHost) -> None:
        self._store = store
        self._engine = engine
        self.author = 0
        self._moved = asyncio.Event()
        self._lock = asyncio.Lock()
        self._complete_to = NO_STATE
        self._unwritten: dict[UnitId, list[Move]] = {}
        self._unwritten_members: dict[UnitId, UnitWrite] = {}
        self._silent = False
        self._flushing: set[asyncio.Task[None]] = set()
        self._cache: OrderedDict[tuple[int, UnitId], _Cached] = OrderedDict()
        self._cached_keys = 0
        self._reading: dict[tuple[int, frozenset[UnitId]], asyncio.Future[None]] = {}

    async def open(self) -> None:
        # Numbers begin at 1; issuer 0 gives the plain cookies of the specification.
        self.author = await self._store.new_author() - 1

    def version(self, state: Watermark) -> ViewVersion:
        """The first version of this author at ``state``."""
        return ViewVersion.of_issuer(self.author, state)

    def version_after(self, present: ViewVersion) -> ViewVersion:
        """The first version at the same state that may be given out after ``present``. Where
        a younger author was here already, nobody's: such a cookie cannot be looked up."""
        author = NOBODY if present.issuer > self.author else self.author
        return ViewVersion.of_issuer(author, present.state)

    def advanced(self) -> None:
        self._moved.set()

    async def run(self) -> None:
        while True:
            idle = False
            try:
                async with asyncio.timeout(
                    CHECKPOINT_AGE_S if self._engine.has_unwritten() else HEARTBEAT_S
                ):
                    await self._moved.wait()
            except TimeoutError:
                # Nothing moved, but queries have become old enough to be written down; or the
                # store must be told that this author is still there.
                idle = True
            await asyncio.sleep(FLUSH_DELAY_S)
            self._moved.clear()
            await self.flush(always=idle)

    async def close(self, timeout_s: float) -> None:
        """Write down everything, for the clients that come back to another worker."""
        try:
            async with asyncio.timeout(timeout_s):
                while self._engine.has_unwritten() and not self._silent:
                    await self.flush(final=True)
                await self.flush(final=True)
        except TimeoutError:
            # It may have ended between taking moves and writing them.
            self._fall_silent("the store did not take the last ones in time")

    # -- writing ---------------------------------------------------------------------------------

    async def flush(self, *, final: bool = False, always: bool = False) -> None:
        """Write what moved up to now; with ``always`` also if nothing did. A failing store is
        tried again with the next flush."""
        async with self._lock:
            due = await self._engine.take_due(all_due=final)
            if not self._silent:
                await self._read_members(due)
            # After the members: what is written must be complete up to their version.
            taken = await self._engine.take_moves()
            if self._silent:
                return
            for unit, moves in taken.moves.items():
                self._unwritten.setdefault(unit, []).extend(moves)
            nothing = not self._unwritten and not self._unwritten_members
            if taken.version == self._complete_to and nothing and not always:
                return
            writes = [*self._deltas(), *self._unwritten_members.values()]
            try:
                await self._store.write_facts(self.author + 1, taken.version, writes)
            except AuthorForgotten as error:
                self._fall_silent(str(error))
            except StoreUnavailable as error:
                self._moved.set()
                log.warning("facts_not_written", reason=str(error))
                kept = itertools.chain.from_iterable(self._unwritten.values())
                if sum(map(_moved_rows, kept)) > MAX_UNWRITTEN_MOVES:
                    self._fall_silent("the store was away for too long")
            else:
                self._unwritten.clear()
                self._unwritten_members.clear()
                self._complete_to = taken.version

    def _deltas(self) -> list[UnitWrite]:
        return [
            UnitWrite(unit, delta=Delta(moves[-1].version, pack(moves)))
            for unit, moves in self._unwritten.items()
        ]

    async def _read_members(self, due: Iterable[UnitId]) -> None:
        for unit in due:
            try:
                read = await self._engine.members(unit)
            except (apsw.Error, FileNotFoundError) as error:
                # The replica was replaced under it: what is written about the unit ends here.
                log.info("members_not_read", reason=str(error))
                continue
            if read is not None:
                version, members = read
                body = await asyncio.to_thread(pack, members)
                checkpoint = Checkpoint(version, body)
                self._unwritten_members[unit] = UnitWrite(
                    unit, checkpoint, drop_before=members.since
                )

    def _fall_silent(self, reason: str) -> None:
        """Never write again: there would be a hole. Who returns starts over instead."""
        log.error("facts_given_up", reason=reason)
        self._silent = True
        self._unwritten.clear()
        self._unwritten_members.clear()

    # -- reading ---------------------------------------------------------------------------------

    async def held(
        self, base: ViewVersion, units: Collection[UnitId], group_id: str
    ) -> Held | None:
        """What a client of the group at ``base`` has by ``units``; None if that is not known."""
        if base.state == NO_STATE:
            return Held()
        try:
            if base.issuer == self.author and self._complete_to < base.state:
                # Whoever asks may be cancelled; moves that were taken must be written.
                await asyncio.shield(self._flush_once())
            histories = await self._histories(base, frozenset({*units, RESULTS_UNIT}))
        except StoreUnavailable as error:
            log.warning("facts_not_read", reason=str(error))
            return None
        found: dict[UnitId, frozenset[RowKey]] = {}
        for unit, history in histories.items():
            keys = None if history is None else history.at(base.state)
            if keys is None:
                return None
            found[unit] = keys
        prefix = results_prefix(group_id)
        results = (key for key in found.pop(RESULTS_UNIT) if key.startswith(prefix))
        # A unit that stands alone stays the same object, which makes comparing it cheap.
        rows = [*found.values()]
        return Held(
            rows[0] if len(rows) == 1 else frozenset().union(*rows),
            tuple(key.removeprefix(prefix) for key in results),
        )

    def _flush_once(self) -> asyncio.Task[None]:
        flushing = asyncio.ensure_future(self.flush())
        self._flushing.add(flushing)
        flushing.add_done_callback(self._flushing.discard)
        return flushing

    async def _histories(
        self, base: ViewVersion, units: frozenset[UnitId]
    ) -> Mapping[UnitId, UnitHistory | None]:
        missing = frozenset(u for u in units if self._cached(base, u) is None)
        if missing:
            await self._read_once(base.issuer, missing)
        found: dict[UnitId, UnitHistory | None] = {}
        for unit in units:
            cached = self._cached(base, unit)
            found[unit] = None if cached is None else cached.history
        return found

    def _cached(self, base: ViewVersion, unit: UnitId) -> _Cached | None:
        cached = self._cache.get((base.issuer, unit))
        return cached if cached is not None and cached.complete_to >= base.state else None

    async def _read_once(self, author: int, units: frozenset[UnitId]) -> None:
        """One reading at a time for all who ask for the same: they come in crowds."""
        running = self._reading.get((author, units))
        if running is None:
            running = asyncio.ensure_future(self._read(author, units))
            self._reading[author, units] = running
            running.add_done_callback(lambda _: self._reading.pop((author, units)))
        await asyncio.shield(running)

    async def _read(self, author: int, units: frozenset[UnitId]) -> None:
        stored = await self._store.read_facts(author + 1, units)
        if stored.complete_to is None:
            return
        for unit in units:
            facts = stored.units.get(unit)
            history = None
            if facts is not None and _is_covered(facts, stored.complete_to):
                history = await asyncio.to_thread(UnitHistory.read, facts)
            self._remember((author, unit), _Cached(stored.complete_to, history))

    def _remember(self, key: tuple[int, UnitId], cached: _Cached) -> None:
        replaced = self._cache.pop(key, None)
        self._cache[key] = cached
        self._cached_keys += _weight(cached) - (0 if replaced is None else _weight(replaced))
        while self._cached_keys > MAX_CACHED_KEYS and len(self._cache) > 1:
            _, oldest = self._cache.popitem(last=False)
            self._cached_keys -= _weight(oldest)


def _is_covered(facts: UnitFacts, complete_to: Watermark) -> bool:
    """Whether the moves that lead back from the members are there."""
    return facts.checkpoint is None or facts.checkpoint.version <= complete_to


def _moved_rows(move: Move) -> int:
    return 1 + len(move.left) + len(move.entered)


def _weight(cached: _Cached) -> int:
    history = cached.history
    if history is None:
        return 1
    return 1 + len(history.keys) + sum(map(_moved_rows, history.moves))
