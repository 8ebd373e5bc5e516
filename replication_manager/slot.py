"""The life of replication slots and of the ``replicas`` rows that claim them.

Owns naming, creation, take-over and clean-up (replication.md §1.9). A slot without a row, or whose
row belongs to an initial sync that died, pins WAL for nobody and is dropped at the next occasion.
Invariant: a slot is created and claimed under one advisory lock, so nobody takes a slot for
unclaimed that is just being made. It never drops a slot that is in use.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
import psycopg
import structlog
from psycopg import sql

from replication_manager.signals import StopSignal
from replication_manager.walsender import ReplicationConnection, SlotCreated
from zerocache.errors import ConfigurationError, ReplicationError, ResyncRequired
from zerocache.postgres.connection import MISSING_PRIVILEGE, TOO_MANY_CONNECTIONS, connect, redact
from zerocache.postgres.shard import ShardNames
from zerocache.protocol.versions import (
    Lsn,
    Watermark,
    lsn_from_text,
    lsn_to_text,
    watermark_from_lsn,
)

LOCK_TIMEOUT_MS = 29_000
_TERMINATE_TIMEOUT_MS = 10_000
_START_ATTEMPTS = 50
_START_RETRY_S = 0.1

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ClaimedSlot:
    """A fresh slot, its ``replicas`` row, and the snapshot both stand for."""

    replica_id: str
    name: str
    version: Watermark
    snapshot: str


def slot_suffix(number: int) -> str:
    """``a`` … ``z``, ``aa``, ``ab``, …: the ``number``-th name, counting from 0."""
    letters = ""
    number += 1
    while number:
        number, digit = divmod(number - 1, 26)
        letters = chr(ord("a") + digit) + letters
    return letters


def _replicas(shard: ShardNames) -> sql.Identifier:
    return sql.Identifier(shard.shard_schema, "replicas")


def check_replication_role(url: str, stop: StopSignal) -> None:
    """Fail before anything is changed upstream if the role may not replicate at all."""
    try:
        with ReplicationConnection(url, "replication-check", stop) as connection:
            connection.execute(b"IDENTIFY_SYSTEM")
    except ConfigurationError as error:
        if error.code != MISSING_PRIVILEGE:
            raise
        raise ConfigurationError(
            f"the role of {redact(url)} may not replicate ({error}): run ALTER ROLE … WITH "
            "REPLICATION as a superuser, or give it the provider's replication role",
            code=MISSING_PRIVILEGE,
        ) from error


@contextmanager
def claim_new_slot(
    url: str, shard: ShardNames, stop: StopSignal, *, failover: bool = False
) -> Iterator[ClaimedSlot]:
    """Create and claim a slot; its snapshot stays importable inside the ``with`` block.

    If the block fails, slot and row are removed again (best effort: a later start cleans up).
    """
    with (
        connect(url, "slot-management") as control,
        ReplicationConnection(url, "initial-sync-slot", stop) as walsender,
    ):
        # A lock of the session: an open transaction that has written is what creating a slot
        # waits for.
        control.execute("SELECT pg_advisory_lock(hashtext(%s))", [shard.slot_lock])
        drop_abandoned(control, shard)
        name = _free_name(control, shard)
        created = _create(walsender, control, name, url, failover)
        claimed = _claim(control, shard, created)
        control.execute("SELECT pg_advisory_unlock(hashtext(%s))", [shard.slot_lock])
        log.info("slot_created", slot=name, version=claimed.version)
        try:
            yield claimed
        except BaseException:
            _abandon(control, shard, claimed)
            raise


def _create(
    walsender: ReplicationConnection,
    control: psycopg.Connection[Any],
    name: str,
    url: str,
    failover: bool,
) -> SlotCreated:
    failover = failover and control.info.server_version >= 170_000
    try:
        return walsender.create_slot(name, failover=failover, lock_timeout_ms=LOCK_TIMEOUT_MS)
    except psycopg.errors.LockNotAvailable as error:
        raise ReplicationError(
            f"creating the replication slot {name} waited {LOCK_TIMEOUT_MS // 1000} s for "
            f"{_oldest_transaction(control)}: a slot can only begin when all transactions that "
            "were running have ended; end the long ones (it is tried again)",
            code="ZC231",
        ) from error
    except psycopg.errors.InsufficientPrivilege as error:
        raise ConfigurationError(
            f"{redact(url)} refused to create a replication slot ({error.diag.message_primary}): "
            "run ALTER ROLE … WITH REPLICATION as a superuser",
            code=MISSING_PRIVILEGE,
        ) from error
    except psycopg.errors.ConfigurationLimitExceeded as error:
        raise ConfigurationError(
            f"{redact(url)} has no free replication slot ({error.diag.message_primary}): drop "
            "those in pg_replication_slots that nobody uses, or raise "
            "max_replication_slots",
            code=TOO_MANY_CONNECTIONS,
        ) from error


def _oldest_transaction(control: psycopg.Connection[Any]) -> str:
    row = control.execute(
        "SELECT pid, application_name, xact_start FROM pg_stat_activity "
        "WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid() ORDER BY xact_start LIMIT 1"
    ).fetchone()
    if row is None:
        return "transactions that were running"
    return f"running transactions (the oldest: pid {row[0]} {row[1]!r}, since {row[2]})"


def _claim(
    control: psycopg.Connection[Any], shard: ShardNames, created: SlotCreated
) -> ClaimedSlot:
    version = watermark_from_lsn(created.consistent_point)
    replica_id = uuid.uuid4().hex
    control.execute(
        sql.SQL("INSERT INTO {} (id, slot, version) VALUES (%s, %s, %s)").format(_replicas(shard)),
        [replica_id, created.name, version],
    )
    # Held until this connection ends: says that the initial sync behind the row is alive.
    control.execute(
        "SELECT pg_advisory_lock(hashtext(%s), hashtext(%s))", [shard.slot_lock, created.name]
    )
    return ClaimedSlot(replica_id, created.name, version, created.snapshot)


def _abandon(control: psycopg.Connection[Any], shard: ShardNames, claimed: ClaimedSlot) -> None:
    try:
        control.execute(
            sql.SQL("DELETE FROM {} WHERE id = %s").format(_replicas(shard)), [claimed.replica_id]
        )
        control.execute("SELECT pg_drop_replication_slot(%s)", [claimed.name])
    except psycopg.Error as error:
        # The failure that brought us here matters more; the next start drops the slot.
        log.warning("slot_not_dropped", slot=claimed.name, reason=str(error))


def drop_abandoned(control: psycopg.Connection[Any], shard: ShardNames) -> None:
    """Remove rows of initial syncs that died, then slots without a row."""
    control.execute(
        sql.SQL(
            'DELETE FROM {} WHERE "initialSyncContext" IS NULL '
            "AND pg_try_advisory_xact_lock(hashtext(%s), hashtext(slot))"
        ).format(_replicas(shard)),
        [shard.slot_lock],
    )
    rows = control.execute(
        sql.SQL(
            "SELECT s.slot_name FROM pg_replication_slots s "
            "WHERE NOT s.active AND s.database = current_database() "
            "AND starts_with(s.slot_name, %s) "
            "AND substr(s.slot_name, length(%s) + 1) ~ '^[a-z]+$' "
            "AND NOT EXISTS (SELECT FROM {} r WHERE r.slot = s.slot_name)"
        ).format(_replicas(shard)),
        [shard.slot_prefix, shard.slot_prefix],
    ).fetchall()
    for (name,) in rows:
        _drop_if_idle(control, name)


def _drop_if_idle(control: psycopg.Connection[Any], name: str) -> None:
    try:
        with control.transaction():
            control.execute("SELECT pg_drop_replication_slot(%s)", [name])
    except (psycopg.errors.ObjectInUse, psycopg.errors.UndefinedObject):
        # Somebody took or dropped it in this moment; either way it is not ours to drop.
        return
    log.info("slot_dropped", slot=name, reason="no replica uses it")


def _free_name(control: psycopg.Connection[Any], shard: ShardNames) -> str:
    taken = {name for (name,) in control.execute("SELECT slot_name FROM pg_replication_slots")}
    number = 0
    while (name := shard.slot_prefix + slot_suffix(number)) in taken:
        number += 1
    return name


def finish_claim(
    url: str, shard: ShardNames, claimed: ClaimedSlot, schema: bytes, context: bytes
) -> None:
    """Record that the initial sync of ``claimed`` is complete."""
    with connect(url, "slot-management") as control:
        done = control.execute(
            sql.SQL(
                'UPDATE {} SET "initialSchema" = %s::json, "initialSyncContext" = %s::json '
                "WHERE id = %s"
            ).format(_replicas(shard)),
            [schema.decode(), context.decode(), claimed.replica_id],
        )
        if done.rowcount != 1:
            raise ReplicationError(
                f"the claim on slot {claimed.name} disappeared during the initial sync: another "
                "process set this shard up anew; the initial sync starts over",
                code="ZC232",
            )


@dataclass(frozen=True, slots=True)
class UsableSlot:
    """``confirmed``: upstream will not send again what committed at or before this position."""

    name: str
    confirmed: Lsn


def find_slot(control: psycopg.Connection[Any], shard: ShardNames, version: str) -> UsableSlot:
    """The usable slot of the replica generation ``version``, else ``ResyncRequired``."""
    row = control.execute(
        sql.SQL(
            "SELECT r.slot, coalesce(s.wal_status, 'missing'), "
            "s.restart_lsn IS NOT NULL, s.confirmed_flush_lsn::text "
            "FROM {} r LEFT JOIN pg_replication_slots s ON s.slot_name = r.slot "
            "AND s.database = current_database() "
            'WHERE r.version = %s AND r."initialSyncContext" IS NOT NULL '
            "ORDER BY r.rank DESC LIMIT 1"
        ).format(_replicas(shard)),
        [version],
    ).fetchone()
    if row is None:
        raise ResyncRequired(
            f"upstream knows no replica of generation {version}: this file belongs to another "
            "database, or the shard was set up anew; a new initial sync is needed"
        )
    slot, wal_status, reserved, confirmed = row
    if not reserved or wal_status in ("lost", "missing"):
        raise ResyncRequired(
            f"the replication slot {slot} is {wal_status}: the changes since the last run are "
            "gone (dropped, or beyond max_slot_wal_keep_size); a new initial sync is needed"
        )
    return UsableSlot(slot, lsn_from_text(confirmed))


def require_continuous(slot: UsableSlot, reached: int) -> None:
    """``ResyncRequired`` if transactions after ``reached`` were acknowledged by somebody else."""
    if slot.confirmed > reached:
        raise ResyncRequired(
            f"the replication slot {slot.name} was moved to {lsn_to_text(slot.confirmed)}, the "
            f"replica reaches {lsn_to_text(reached)}: it is an older copy, and what happened in "
            "between is not sent again; a new initial sync is needed"
        )


class Displaced(ReplicationError):
    """Another process streams from the slot that was ours; two would take it from each other."""

    code = "ZC236"


def take_over(
    control: psycopg.Connection[Any], shard: ShardNames, slot: str, *, name: str, returning: bool
) -> None:
    """End whoever streams from ``slot``, then drop what older replicas of this shard left.

    ``name`` is this process' application name. A process that is ``returning`` to its slot ends
    only what is left of its own connection: somebody else there is its successor.
    """
    row = control.execute(
        "SELECT s.active_pid, a.application_name FROM pg_replication_slots s "
        "LEFT JOIN pg_stat_activity a ON a.pid = s.active_pid WHERE s.slot_name = %s",
        [slot],
    ).fetchone()
    if row is not None and row[0] is not None:
        if returning and row[1] not in (name, None):
            raise Displaced(
                f"{row[1]} (pid {row[0]}) took over the replication slot {slot}: one app can be "
                "replicated by one process only; this one ends. If that is not a rolling update, "
                "give the other node its own ZERO_APP_ID"
            )
        log.warning("slot_taken_over", slot=slot, displaced_pid=row[0])
        control.execute("SELECT pg_terminate_backend(%s, %s)", [row[0], _TERMINATE_TIMEOUT_MS])
    with control.transaction():
        control.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", [shard.slot_lock])
        control.execute(
            sql.SQL('UPDATE {} SET "subscriberContext" = %s::json WHERE slot = %s').format(
                _replicas(shard)
            ),
            [msgspec.json.encode({"subscriber": name}).decode(), slot],
        )
        # Newer ones are of syncs under way or of their first moments; one that is finished, was
        # never used and belongs to nobody alive lost its process before the file was in place.
        control.execute(
            sql.SQL(
                "DELETE FROM {table} r USING {table} mine WHERE mine.slot = %s "
                "AND (r.rank < mine.rank OR r.rank > mine.rank "
                'AND r."initialSyncContext" IS NOT NULL AND r."subscriberContext" IS NULL '
                "AND pg_try_advisory_xact_lock(hashtext(%s), hashtext(r.slot))) "
                "AND NOT EXISTS (SELECT FROM pg_replication_slots s "
                "WHERE s.slot_name = r.slot AND s.active)"
            ).format(table=_replicas(shard)),
            [slot, shard.slot_lock],
        )
        drop_abandoned(control, shard)


def start_streaming(
    connection: ReplicationConnection,
    slot: str,
    start: int,
    publications: tuple[str, ...],
    stop: StopSignal,
) -> None:
    """START_REPLICATION; ``ResyncRequired`` if the slot cannot serve us any more."""
    for attempt in range(1, _START_ATTEMPTS + 1):
        try:
            connection.start_streaming(slot, start, publications)
            return
        except psycopg.errors.ObjectInUse:
            # A walsender that was terminated needs a moment to let go of its slot.
            if attempt == _START_ATTEMPTS:
                raise
            stop.wait(_START_RETRY_S)
        except (
            psycopg.errors.ObjectNotInPrerequisiteState,
            psycopg.errors.UndefinedObject,
        ) as error:
            raise ResyncRequired(
                f"the replication slot {slot} cannot be used any more "
                f"({error.diag.message_primary}); a new initial sync is needed"
            ) from error
