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
import math
from collections.abc import Collection, Iterable

import apsw
import structlog

from view_syncer.cvr.facts import (
    RESULTS_UNIT,
    Held,
    Move,
    RowKey,
    pack,
    results_prefix,
)
from view_syncer.cvr.store import (
    AuthorForgotten,
    Checkpoint,
    Delta,
    FactStore,
    StoreUnavailable,
    UnitWrite,
)
from view_syncer.engine_host import EngineHost
from view_syncer.fact_reader import FactReader
from view_syncer.membership import CHECKPOINT_AGE_S, Taken, UnitId
from zerocache.protocol.versions import NO_STATE, NOBODY, ViewVersion, Watermark

log = structlog.get_logger(__name__)

FLUSH_DELAY_S = 0.25
"""How long moves are collected; also what a crash makes unprovable."""
MAX_UNWRITTEN_MOVES = 200_000
"""Moved rows kept while the store is away. Beyond, this author falls silent."""
HEARTBEAT_S = 300.0


class FactKeeper:
    """:meth:`open`, :meth:`run` until cancelled, :meth:`close`; :meth:`advanced` whenever the
    engine moved."""

    def __init__(
        self, store: FactStore, engine: EngineHost, keep_ended_s: float = math.inf
    ) -> None:
        self._store = store
        self._engine = engine
        # How long facts of queries that nobody follows are kept for whoever comes back.
        self._keep_ended_s = keep_ended_s
        self.author = 0
        self._moved = asyncio.Event()
        self._lock = asyncio.Lock()
        self._complete_to = NO_STATE
        self._unwritten: dict[UnitId, list[Move]] = {}
        self._unwritten_members: dict[UnitId, UnitWrite] = {}
        # Units whose facts must go before anything is written.
        self._forgotten: set[UnitId] = set()
        self._silent = False
        self._flushing: set[asyncio.Task[None]] = set()
        self._reader = FactReader(store)
        self._results = _ResultsByGroup()

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
            self.give_up("the store did not take the last ones in time")

    # -- writing ---------------------------------------------------------------------------------

    async def flush(self, *, final: bool = False, always: bool = False) -> None:
        """Write what moved up to now; with ``always`` also if nothing did. A failing store is
        tried again with the next flush."""
        async with self._lock:
            due = await self._engine.take_due(all_due=final)
            if not self._silent:
                await self._read_members(due)
            # After the members: what is written must be complete up to their version.
            taken = await self._engine.take_moves(self._keep_ended_s)
            if self._silent:
                return
            self._note_taken(taken)
            nothing = not (self._unwritten or self._unwritten_members or self._forgotten)
            if taken.version == self._complete_to and nothing and not always:
                return
            writes = [*self._deltas(), *self._unwritten_members.values()]
            try:
                if self._forgotten:
                    await self._store.drop_facts(self.author + 1, self._forgotten)
                    self._forgotten.clear()
                await self._store.write_facts(self.author + 1, taken.version, writes)
            except AuthorForgotten as error:
                self.give_up(str(error))
            except StoreUnavailable as error:
                self._moved.set()
                log.warning("facts_not_written", reason=str(error))
                kept = itertools.chain.from_iterable(self._unwritten.values())
                if sum(map(_moved_rows, kept)) > MAX_UNWRITTEN_MOVES:
                    self.give_up("the store was away for too long")
            else:
                self._unwritten.clear()
                self._unwritten_members.clear()
                self._complete_to = taken.version

    def _note_taken(self, taken: Taken) -> None:
        for unit in taken.forgotten:
            self._forgotten.add(unit)
            self._unwritten.pop(unit, None)
            self._unwritten_members.pop(unit, None)
        for unit, moves in taken.moves.items():
            self._unwritten.setdefault(unit, []).extend(moves)

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

    def give_up(self, reason: str) -> None:
        """Never write again: there would be a hole. Who returns starts over instead."""
        log.error("facts_given_up", reason=reason)
        self._silent = True
        self._unwritten.clear()
        self._unwritten_members.clear()
        self._forgotten.clear()

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
            histories = await self._reader.histories(base, {*units, RESULTS_UNIT})
        except StoreUnavailable as error:
            log.warning("facts_not_read", reason=str(error))
            return None
        found: dict[UnitId, frozenset[RowKey]] = {}
        for unit, history in histories.items():
            keys = None if history is None else history.at(base.state)
            if keys is None:
                return None
            found[unit] = keys
        results = self._results.of(group_id, found.pop(RESULTS_UNIT))
        # A unit that stands alone stays the same object, which makes comparing it cheap.
        rows = [*found.values()]
        return Held(rows[0] if len(rows) == 1 else frozenset().union(*rows), results)

    def _flush_once(self) -> asyncio.Task[None]:
        flushing = asyncio.ensure_future(self.flush())
        self._flushing.add(flushing)
        flushing.add_done_callback(self._flushing.discard)
        return flushing


def _moved_rows(move: Move) -> int:
    return 1 + len(move.left) + len(move.entered)


class _ResultsByGroup:
    """The last set of mutation results that was asked for, by group: a crowd that comes back asks
    for the same set, each for its own part of it."""

    def __init__(self) -> None:
        self._keys: frozenset[RowKey] = frozenset()
        self._groups: dict[str, list[str]] = {}

    def of(self, group_id: str, keys: frozenset[RowKey]) -> tuple[str, ...]:
        if keys is not self._keys:
            self._keys, self._groups = keys, {}
            for key in keys:
                prefix, colon, deletion = key.partition(":")
                self._groups.setdefault(prefix + colon, []).append(deletion)
        return tuple(self._groups.get(results_prefix(group_id), ()))
