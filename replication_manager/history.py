"""Whether upstream still has the past that the replica was made of.

Owns the comparison of the server's identity, timeline and end of WAL with what the replica has
seen. A server restored from a backup, or a standby promoted before it had everything, keeps slots
and positions that look usable, but its log positions name other transactions now: the stream would
skip them without a word. It reads only. Invariant: a stream is begun only where everything that
the replica has is part of the server's own history.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from replication_manager.walsender import ReplicationConnection
from zerocache.errors import ResyncRequired
from zerocache.protocol.versions import Lsn, lsn_from_text, lsn_to_text


@dataclass(frozen=True, slots=True)
class Origin:
    """A cluster (its system identifier) and the timeline it was on."""

    system: str
    timeline: int


@dataclass(frozen=True, slots=True)
class ServerHistory:
    """``flushed`` is the end of the server's WAL; ``left`` says where each earlier timeline of
    its past was left for the next one."""

    origin: Origin
    flushed: Lsn
    left: Mapping[int, Lsn] = field(default_factory=dict)


def read_history(connection: ReplicationConnection) -> ServerHistory:
    """Ask the walsender; it must not stream yet."""
    system, timeline, flushed, *_ = (
        (value or b"").decode() for value in connection.execute(b"IDENTIFY_SYSTEM")[0]
    )
    origin = Origin(system, int(timeline))
    left: dict[int, Lsn] = {}
    if origin.timeline > 1:
        _, content = connection.execute(b"TIMELINE_HISTORY %d" % origin.timeline)[0]
        left = parse_timelines((content or b"").decode())
    return ServerHistory(origin, lsn_from_text(flushed), left)


def parse_timelines(content: str) -> dict[int, Lsn]:
    """The lines of a timeline history file: number, position and reason, between tabs."""
    lines = (line.split("#")[0].split() for line in content.splitlines())
    return {int(fields[0]): lsn_from_text(fields[1]) for fields in lines if len(fields) >= 2}


def require_same_past(server: ServerHistory, origin: Origin | None, reached: int) -> None:
    """``ResyncRequired`` unless WAL up to ``reached``, seen on ``origin``, is in ``server``'s past.

    Without an ``origin`` only the end of WAL is compared.
    """
    position = lsn_to_text(reached)
    if origin is not None and origin.system != server.origin.system:
        problem = (
            f"was made from cluster {origin.system}, but this is cluster {server.origin.system}"
        )
    elif reached > server.flushed:
        problem = (
            f"reaches {position}, but upstream's log ends at {lsn_to_text(server.flushed)}: "
            "upstream was restored from a backup, or a standby that lagged was promoted"
        )
    elif origin is None or origin.timeline == server.origin.timeline:
        return
    elif origin.timeline not in server.left:
        problem = (
            f"was made on timeline {origin.timeline}, which is no part of the history of "
            f"upstream's timeline {server.origin.timeline}"
        )
    elif reached > server.left[origin.timeline]:
        problem = (
            f"reaches {position} on timeline {origin.timeline}, which upstream left at "
            f"{lsn_to_text(server.left[origin.timeline])}: a standby that lagged was promoted"
        )
    else:
        return
    raise ResyncRequired(
        f"the replica {problem}; what it has may not exist upstream; a new initial sync is needed"
    )
