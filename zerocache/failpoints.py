"""Named places where a test lets a process die, to show that nothing depends on dying elsewhere.

Owns the list of the places, in the order in which a change passes them, and what happens at one of
them. Nothing happens unless the environment names a place when the process starts: then
:data:`reach` is a function that looks, otherwise one that does nothing, and a place is passed once
per transaction or batch, never per row. It is no configuration: operators have no use for it.

``ZEROCACHE_FAILPOINT=<place>[:<times>[:<action>]]``: at the ``times``-th passage (1 if left out)
the process is killed as by ``kill -9`` (action ``kill``) or stopped until SIGCONT (``stop``, so
that the test can do something else at that very moment). With ``ZEROCACHE_FAILPOINT_ONCE=<file>``
that happens to the first process that comes there and to no other: it creates the file.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from enum import Enum
from itertools import count
from pathlib import Path
from typing import Final

VARIABLE: Final = "ZEROCACHE_FAILPOINT"
ONCE_VARIABLE: Final = "ZEROCACHE_FAILPOINT_ONCE"

_ACTIONS: Final = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}


class Place(Enum):
    """The places, numbered by :attr:`number`."""

    # The replication process, when it makes a new replica.
    SLOT_CLAIMED = "slot-claimed"
    COPYING = "copying"
    INDEXING = "indexing"
    COPY_DURABLE = "copy-durable"
    CLAIM_FINISHED = "claim-finished"
    REPLICA_REPLACED = "replica-replaced"
    # The replication process, for every transaction.
    RECEIVED = "received"
    MID_APPLY = "mid-apply"
    BEFORE_COMMIT = "before-commit"
    COMMITTED = "committed"
    PUBLISHED = "published"
    BEFORE_STORE = "before-store"
    STORED = "stored"
    # What is acknowledged next is durable in the change log.
    DURABLE = "durable"
    ACKNOWLEDGED = "acknowledged"
    IDLE_RECORDED = "idle-recorded"
    BEFORE_CHECKPOINT = "before-checkpoint"
    CHECKPOINTED = "checkpointed"
    # The replication process, while it brings what a change of the schema made visible.
    MID_BACKFILL = "mid-backfill"
    # A sync worker.
    MID_HYDRATION = "mid-hydration"
    ADVANCED = "advanced"
    MID_FLUSH = "mid-flush"
    FLUSHED = "flushed"
    MID_POKE = "mid-poke"

    @property
    def number(self) -> int:
        return list(Place).index(self) + 1


def armed(environment: Mapping[str, str]) -> Callable[[Place], None]:
    """What :data:`reach` is in a process of that ``environment``."""
    text = environment.get(VARIABLE)
    if not text:
        return _inert
    given = text.split(":")
    name, times, action = (*given, *("1", "kill")[len(given) - 1 :])
    place, passages, number = Place(name), count(1), _ACTIONS[action]
    once = environment.get(ONCE_VARIABLE)

    def look(reached: Place) -> None:
        if reached is place and next(passages) == int(times) and (not once or _is_first(once)):
            os.kill(os.getpid(), number)

    return look


def _inert(_: Place) -> None:
    """What passing a place costs in production."""


def _is_first(file: str) -> bool:
    try:
        Path(file).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


reach: Final = armed(os.environ)
