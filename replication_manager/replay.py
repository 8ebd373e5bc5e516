"""Brings a replica up to the end of the change log.

Owns the way from stored messages into the replica, which is the one the stream takes: the same
applier, the same transactions, the same versions. It happens before anybody is told of the
replica's version, and stores or acknowledges nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

import structlog

from replication_manager.applier import Applier
from replication_manager.segments import read_messages
from replication_manager.signals import StopSignal
from zerocache.replica.writer import ReplicaWriter

_GROUP_CHANGES = 2_000

log = structlog.get_logger(__name__)


def replay(
    parts: Iterable[bytes], applier: Applier, writer: ReplicaWriter, stop: StopSignal
) -> int:
    """Apply whole segments; returns how many transactions they held. Known ones are skipped."""
    before = writer.state.version
    transactions = 0
    for payload in read_messages(parts):
        if applier.apply(payload):
            transactions += 1
            if applier.changes >= _GROUP_CHANGES:
                applier.changes = 0
                writer.commit()
                writer.maintain()
                stop.check()
    writer.commit()
    writer.maintain()
    log.info(
        "change_log_replayed",
        transactions=transactions,
        before=before,
        version=writer.state.version,
    )
    return transactions
