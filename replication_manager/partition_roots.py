"""Which published table the rows of a partition come as, and whether the server still knows.

Owns the comparison of partition trees before and after a schema change. A walsender remembers for
each partition as which table it publishes it, and forgets that only if something happened to the
partition itself: when a whole tree moves (a partitioned partition on servers without the fix of
November 2025, a root that enters or leaves the publication), it may go on to send rows under the
former root, or to leave them out, without a word. A new walsender looks everything up anew.
Invariant: after such a change no row is applied that a walsender from before it has sent.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from zerocache.errors import ResyncRequired
from zerocache.replica.published import PublishedTable


class StreamOutdated(Exception):
    """The walsender at the other end is mistaken from here on; another one has to take over."""


@dataclass(frozen=True, slots=True)
class Upheaval:
    """``is_hidden``: a walsender may have missed it. ``bereft``: tables as which it may then go on
    to publish what is none of theirs any more."""

    is_hidden: bool = False
    bereft: frozenset[int] = frozenset()


def roots(tables: Iterable[PublishedTable]) -> dict[int, int]:
    """The oid of the table as which each partition is published; tables are their own."""
    found: dict[int, int] = {}
    for table in tables:
        found |= {partition.oid: table.oid for partition in table.partitions}
        found[table.oid] = table.oid
    return found


def compare_roots(before: Iterable[PublishedTable], after: Iterable[PublishedTable]) -> Upheaval:
    """What became of the trees; nothing that one partition alone can do is an upheaval, because
    that one the server looks up again."""
    now_tables = list(after)
    old, now = roots(before), roots(now_tables)
    created = {
        partition.oid
        for table in now_tables
        for partition in table.partitions
        if partition.born_attached and partition.oid not in old and table.oid in old
    }
    moved = {oid for oid in (old.keys() | now.keys()) - created if old.get(oid) != now.get(oid)}
    partitions = {oid for oid in moved if old.get(oid, oid) != oid or now.get(oid, oid) != oid}
    if len(moved) < 2 or not partitions:
        return Upheaval()
    former = {old[oid] for oid in partitions if oid in old}
    return Upheaval(True, frozenset(root for root in former - moved if root in now))


def misplaced(table: str, why: str) -> ResyncRequired:
    return ResyncRequired(
        f"rows of partitions come as rows of {table}, which they are not any more ({why}): "
        "PostgreSQL does not tell them apart; a new initial sync is needed"
    )
