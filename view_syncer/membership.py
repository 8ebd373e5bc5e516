"""What moved in and out of the queries that run: the engine's side of the membership facts.

Lives on the engine's thread. Knows each *unit* (a pipeline as one client schema reads it) from
the moment somebody follows it, and every move of it since; hands the moves over to be written, and
says which of what was written is to be forgotten: of queries that ended long ago, or whose rows
cannot be written down any more. Whoever comes back from there is sent all of its view.

Invariants: a unit's moves since its beginning are complete, or the unit is not known here; what is
on record of a unit that is not known here is about to be forgotten.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from view_syncer.cvr.facts import Move
from view_syncer.ivm.encode import ClientTables
from view_syncer.ivm.engine import Advance
from view_syncer.ivm.pipeline import Pipeline
from zerocache.protocol.versions import Watermark
from zerocache.zql.shape import shape_text

UnitId = str

CHECKPOINT_AGE_S = 2.0
"""A query that is gone sooner was not worth writing its rows down."""
MIN_MOVED = 20_000
"""Moved rows after which, at the earliest, the members of a unit are written anew. What moved
before the time before last is then forgotten."""
MAX_DUE = 64
"""Units written down at a time: each costs the engine a moment."""
MAX_CHECKPOINT_ROWS = 200_000
"""Units that are larger are not written down: their clients start over instead."""
MAX_ENDED = 10_000
"""Units that nobody follows and that are on record all the same, for whoever comes back. Beyond,
those that ended first are forgotten."""


@dataclass(slots=True, eq=False)
class Unit:
    """``since``: the first version from which on its moves are kept. ``moved``: rows that moved
    since the members were last written, at version ``written``."""

    id: UnitId
    pipeline: Pipeline
    client: ClientTables
    since: Watermark
    born_s: float
    pending: list[Move] = field(default_factory=list)
    moved: int = 0
    written: Watermark | None = None
    ended: bool = False
    mute: bool = False


@dataclass(frozen=True, slots=True)
class _Ended:
    """Since when nobody follows a unit, and the version up to which its moves are known."""

    known_to: Watermark
    at_s: float


@dataclass(frozen=True, slots=True)
class Taken:
    """Everything up to ``version`` that was not taken before. What was written of units that are
    ``forgotten`` must go first: it does not lead to ``version``."""

    version: Watermark
    moves: dict[UnitId, list[Move]]
    forgotten: list[UnitId] = field(default_factory=list)


def unit_id(pipeline: Pipeline, client: ClientTables) -> UnitId:
    """A fingerprint of what the query asks and how its rows are named, the same in every process
    that runs this version of the code. Internal queries have their name instead, for all
    versions."""
    if client.facts_as:
        return client.facts_as
    instance = pipeline.instance
    text = f"{client.digest}\n{shape_text(instance.shape)}\n{instance.params!r}"
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


class MembershipLog:
    """See the module docstring. Internal queries have no units unless they name one: their rows
    are not rows to clients."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._units: dict[tuple[Pipeline, ClientTables], Unit] = {}
        self._by_id: dict[UnitId, Unit] = {}
        # Units whose members were written down by this life and that run.
        self._on_record: set[UnitId] = set()
        # The same for those that do not run any more, in the order in which they ended.
        self._ended: dict[UnitId, _Ended] = {}
        # Those of them of which it was not yet written that nothing is known any further.
        self._open_ended: set[UnitId] = set()
        self._forgotten: list[UnitId] = []
        # Moves of units that ended before they were taken.
        self._orphans: dict[UnitId, list[Move]] = {}
        self._dirty: set[Unit] = set()
        # Not written yet, in order of birth; some may have ended.
        self._young: deque[Unit] = deque()

    def __len__(self) -> int:
        return len(self._units)

    def started(self, pipeline: Pipeline, client: ClientTables, version: Watermark) -> None:
        """Somebody follows the unit from ``version`` on. Does nothing if it is known."""
        if (client.custom and not client.facts_as) or (pipeline, client) in self._units:
            return
        unit = Unit(unit_id(pipeline, client), pipeline, client, version, self._clock())
        self._units[pipeline, client] = self._by_id[unit.id] = unit
        self._young.append(unit)
        ended = self._ended.pop(unit.id, None)
        if ended is None:
            return
        self._on_record.add(unit.id)
        open_ended = unit.id in self._open_ended
        self._open_ended.discard(unit.id)
        if open_ended and ended.known_to != version:
            # Or what is on record would be taken to lead up to here.
            unit.pending.append(Move(version, [], [], begins=True))
            self._dirty.add(unit)

    def ended(self, pipeline: Pipeline, client: ClientTables, known_to: Watermark) -> None:
        """Nobody follows the unit any more, or its moves after ``known_to`` cannot be told."""
        unit = self._units.pop((pipeline, client), None)
        if unit is None:
            return
        del self._by_id[unit.id]
        unit.ended = True
        self._dirty.discard(unit)
        if unit.id in self._on_record:
            self._on_record.discard(unit.id)
            self._ended[unit.id] = _Ended(known_to, self._clock())
            self._open_ended.add(unit.id)
            self._orphans.setdefault(unit.id, []).extend(unit.pending)

    def id_of(self, pipeline: Pipeline, client: ClientTables) -> UnitId | None:
        unit = self._units.get((pipeline, client))
        return None if unit is None else unit.id

    def unit(self, unit_id: UnitId) -> Unit | None:
        return self._by_id.get(unit_id)

    def note(self, advance: Advance) -> None:
        for pipeline, patches in advance.patches.items():
            for client, patch in patches.items():
                if not (patch.dels or patch.keys):
                    continue
                unit = self._units.get((pipeline, client))
                if unit is not None and not unit.mute:
                    left = [text for _, _, text in patch.dels]
                    came = [text for _, _, text in patch.keys]
                    unit.pending.append(Move(advance.version, left, came))
                    unit.moved += len(left) + len(patch.keys)
                    self._dirty.add(unit)
        for pipeline, client in advance.failed:
            self.ended(pipeline, client, advance.old_version)

    def void(self, known_to: Watermark) -> None:
        """The engine, which was at ``known_to``, starts over; what was noted stays true."""
        for pipeline, client in list(self._units):
            self.ended(pipeline, client, known_to)

    def take(self, version: Watermark, keep_ended_s: float = math.inf) -> Taken:
        """``version`` is the engine's. Moves of units that are not on record wait until they are:
        without their members nothing follows from them. Those that ended ``keep_ended_s`` ago are
        forgotten."""
        forgotten = self._take_forgotten(keep_ended_s)
        moves, self._orphans = {u: m for u, m in self._orphans.items() if m}, {}
        for unit in [unit for unit in self._dirty if unit.id in self._on_record]:
            # A unit may have ended and begun again since the last time.
            moves.setdefault(unit.id, []).extend(unit.pending)
            unit.pending = []
            self._dirty.discard(unit)
        self._close_ended(version, moves)
        return Taken(version, moves, forgotten)

    def _close_ended(self, version: Watermark, moves: dict[UnitId, list[Move]]) -> None:
        """What is written now is complete up to ``version``, for good. Of units that ended before
        it says that they were not followed so far: one may begin again at this very version."""
        for unit_id in [u for u in self._open_ended if self._ended[u].known_to != version]:
            moves.setdefault(unit_id, []).append(Move(version, [], [], begins=True))
            self._open_ended.discard(unit_id)

    def _take_forgotten(self, keep_ended_s: float) -> list[UnitId]:
        forgotten, self._forgotten = self._forgotten, []
        while self._ended:
            unit_id, ended = next(iter(self._ended.items()))
            if len(self._ended) <= MAX_ENDED and self._clock() - ended.at_s < keep_ended_s:
                break
            del self._ended[unit_id]
            self._open_ended.discard(unit_id)
            self._orphans.pop(unit_id, None)
            forgotten.append(unit_id)
        return forgotten

    def take_due(self, *, all_due: bool = False) -> list[UnitId]:
        """Units are due to be written when they have lived for a while, with ``all_due`` at once,
        and again when they have moved a lot."""
        due = [u.id for u in self._dirty if u.written is not None and _moved_a_lot(u)]
        old_enough_s = self._clock() - (0.0 if all_due else CHECKPOINT_AGE_S)
        while self._young and len(due) < MAX_DUE and self._young[0].born_s <= old_enough_s:
            unit = self._young.popleft()
            if not (unit.ended or unit.mute):
                due.append(unit.id)
        return due

    def written(self, unit: Unit, version: Watermark) -> Watermark:
        """Its members at ``version`` are being written; returns from where on moves are kept."""
        if unit.written is not None:
            unit.since = unit.written
        unit.written, unit.moved = version, 0
        self._on_record.add(unit.id)
        return unit.since

    def give_up(self, unit: Unit) -> None:
        """It was due, but cannot be written down: nobody needs its moves. Does nothing if it ended
        by now."""
        if unit.ended:
            return
        unit.mute = True
        unit.pending.clear()
        self._dirty.discard(unit)
        if unit.id in self._on_record:
            self._on_record.discard(unit.id)
            self._orphans.pop(unit.id, None)
            self._forgotten.append(unit.id)

    def postpone(self, unit: Unit) -> None:
        """It was due, but could not be read."""
        if unit.written is None:
            self._young.append(unit)

    def waiting(self) -> bool:
        """Whether units have never been written down."""
        return bool(self._young)


def _moved_a_lot(unit: Unit) -> bool:
    """Also one that grew beyond what is written down: its moves would be kept for ever."""
    if unit.moved <= MIN_MOVED:
        return False
    rows = unit.pipeline.row_count()
    return unit.moved > 4 * rows or rows > MAX_CHECKPOINT_ROWS
