"""Advances of one client group between the engine and its pokes.

Owns their order: while a task *holds* the queue they wait, and are applied when the last hold
ends. A *bar* keeps back those from one version on: what the queries yield there may not be shown
as it is, and a task makes something else of it (changed permissions). If they turn out to be again
what they were, that is true from the last change on only: all until then becomes one. Also owns the
*epoch*: when the engine's knowledge of the group is lost, everything that waits is void, and so is
every answer that was asked for before. What waits is bounded: beyond, starting over costs less than
keeping it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from view_syncer.fan_out import GroupUpdate
from view_syncer.poke import PokeBody
from zerocache.errors import ClientFacingError
from zerocache.protocol.versions import Watermark

T = TypeVar("T")

MAX_WAITING_OPERATIONS = 200_000
"""Row operations of the advances that wait, if it is more than one."""


class Superseded(Exception):
    """The engine lost what the running task was building on; a rebuild follows."""


@dataclass(frozen=True, slots=True)
class GroupAdvance:
    """``shared`` is the ready-made body if the update consists of rows only."""

    version: Watermark
    update: GroupUpdate
    shared: PokeBody | None

    def size(self) -> int:
        return 1 + len(self.update.dels) + sum(map(len, self.update.puts))


class AdvanceQueue:
    """``apply`` is called with each advance in order; it may :meth:`void` the queue, and must
    make itself harmless once the group has ended. ``merge`` makes one advance to a version of
    several up to there. ``on_full`` must :meth:`void` the queue."""

    def __init__(
        self,
        apply: Callable[[GroupAdvance], None],
        merge: Callable[[Watermark, Sequence[GroupAdvance]], GroupAdvance],
        on_full: Callable[[], None],
    ) -> None:
        self._apply = apply
        self._merge = merge
        self._on_full = on_full
        self._waiting: deque[GroupAdvance] = deque()
        self._operations = 0
        self._holds = 0
        # Where the first and the last change was because of which there is one.
        self._bar: tuple[Watermark, Watermark] | None = None
        self.epoch = 0
        # Set while the engine may still report on queries the group no longer counts on.
        self.deaf = False

    def put(self, advance: GroupAdvance) -> None:
        if self.deaf:
            return
        self._waiting.append(advance)
        self._operations += advance.size()
        if not self._holds:
            self.drain(None)
        if len(self._waiting) > 1 and self._operations > MAX_WAITING_OPERATIONS:
            self._on_full()

    def drain(self, until: Watermark | None) -> None:
        """Apply what waits, at most up to ``until`` and never what is barred."""
        while self._waiting and (until is None or self._waiting[0].version <= until):
            if self.is_barred(self._waiting[0].version):
                return
            self._apply(self._next())

    def bar(self, version: Watermark) -> bool:
        """Apply nothing from ``version`` on, until :meth:`take` or :meth:`lift`; False if there
        is nothing to be applied."""
        if self.deaf:
            return False
        first, last = self._bar or (version, version)
        self._bar = min(version, first), max(version, last)
        return True

    def is_barred(self, version: Watermark) -> bool:
        return self._bar is not None and self._bar[0] <= version

    def lift(self) -> None:
        """What is barred may be applied as it is after all, from the last change on; the versions
        before that, if there was another change, are skipped."""
        if self._bar is not None:
            first, last = self._bar
            if first < last and (between := self.take(last)):
                merged = self._merge(last, between)
                self._waiting.appendleft(merged)
                self._operations += merged.size()
            self._bar = None
        if not self._holds:
            self.drain(None)

    def take(self, until: Watermark) -> list[GroupAdvance]:
        """What is barred up to ``until``, which the caller makes something of; nothing is barred
        any more then."""
        if not self.is_barred(until):
            return []
        self._bar = None
        taken: list[GroupAdvance] = []
        while self._waiting and self._waiting[0].version <= until:
            taken.append(self._next())
        return taken

    def _next(self) -> GroupAdvance:
        advance = self._waiting.popleft()
        self._operations -= advance.size()
        return advance

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep advances back until the last hold ends. One that ends by a failure applies none:
        what they build on may never have been poked."""
        self._holds += 1
        try:
            yield
        except BaseException:
            self._holds -= 1
            raise
        self._holds -= 1
        if not self._holds:
            self.drain(None)

    def void(self) -> None:
        self.epoch += 1
        self.deaf = True
        self._bar = None
        self._waiting.clear()
        self._operations = 0

    async def of_engine(self, answer: Awaitable[T], epoch: int) -> T:
        """``answer``, unless the ``epoch`` of what it builds on is over by then. A failure to
        answer is then none either (a table may be gone); a refusal of the client stays one."""
        try:
            result = await answer
        except ClientFacingError:
            raise
        except Exception:
            self.check(epoch)
            raise
        self.check(epoch)
        return result

    def check(self, epoch: int) -> None:
        if epoch != self.epoch:
            raise Superseded
