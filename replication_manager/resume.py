"""Where to go on: replica, change log and slot compared, without any I/O.

Owns the decision that a (re)start makes from three positions that may each be ahead of the others
after a crash, a restored copy or a change of machines. Invariant: the stream begins where, between
what the slot still sends and what the log has, no transaction after the replica's version is
missing; if there is no such place, only a new initial sync helps. Trouble of the log alone never
costs a replica: a log that does not fit is begun anew behind it.
"""

from __future__ import annotations

from dataclasses import dataclass

from replication_manager.change_db import LogState
from replication_manager.slot import UsableSlot, require_continuous
from zerocache.protocol.versions import Lsn


@dataclass(frozen=True, slots=True)
class ReplicaPosition:
    """``version``: its newest transaction; ``reached``: upstream has nothing for it up to here."""

    generation: str
    publications: tuple[str, ...]
    version: Lsn
    reached: Lsn


@dataclass(frozen=True, slots=True)
class Resumption:
    """``replay``: apply what the log has after the replica's version first. ``reset``: begin the
    log anew at the replica's version, for the reason given. Then stream from ``after``."""

    after: Lsn
    replay: bool = False
    reset: str | None = None


def plan_resumption(replica: ReplicaPosition, slot: UsableSlot, log: LogState | None) -> Resumption:
    """``ResyncRequired`` if transactions are missing for good."""
    problem = _unusable(replica, slot, log)
    if log is None or problem is not None:
        require_continuous(slot, max(replica.version, replica.reached))
        return Resumption(replica.version, reset=problem)
    if replica.version >= log.last:
        return Resumption(log.last)
    if replica.version >= log.floor:
        return Resumption(log.last, replay=True)
    # An old copy; the slot may have stood still since.
    require_continuous(slot, max(replica.version, replica.reached))
    return Resumption(replica.version)


def _unusable(replica: ReplicaPosition, slot: UsableSlot, log: LogState | None) -> str | None:
    """Why the log does not continue to what the slot will send; None if it does."""
    if log is None:
        return "it is empty"
    if log.replica_version != replica.generation:
        return f"it belongs to the generation {log.replica_version}"
    if log.publications != replica.publications:
        return "it is of other publications"
    if slot.confirmed > max(log.last, log.reached):
        return "upstream was acknowledged past its end"
    return None
