"""Clients that come back by themselves, and what they must show in the end.

They watch the tables that tests/replication_manager/crash_load.py writes to; every message is
judged by the protocol client on arrival.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import msgspec
import psycopg

from benchmarks.protocol_client import ConnectionLost, ServerError, SyncClient, ast_query
from benchmarks.sync_messages import ClientSchema, ColumnType, TableSchema
from benchmarks.sync_state import SyncState

_COLUMNS: dict[str, dict[str, ColumnType]] = {
    "account": {"id": "number", "balance": "number", "note": "string"},
    "event": {"id": "number", "account": "number"},
    "heavy": {"id": "number", "n": "number"},
}
SCHEMA = ClientSchema(
    {
        name: TableSchema({column: {"type": kind} for column, kind in columns.items()}, ["id"])
        for name, columns in _COLUMNS.items()
    }
)
_RETRY_S = 0.1
_TIMEOUT_S = 60.0
# Everything else makes the stock client drop its data or stop.
_RETRIED = frozenset({"Rehome", "Rebalance", "ServerOverloaded"})


def allow_everything(url: str, app_id: str) -> None:
    anyone = {"row": {"select": [["allow", {"type": "and", "conditions": []}]]}}
    permissions = msgspec.json.encode({"tables": dict.fromkeys(_COLUMNS, anyone)}).decode()
    statement = psycopg.sql.SQL("UPDATE {}.permissions SET permissions = %s")
    with psycopg.connect(url) as connection:
        connection.execute(statement.format(psycopg.sql.Identifier(app_id)), [permissions])


def upstream_rows(url: str) -> dict[Any, dict[str, Any]]:
    rows = {}
    with psycopg.connect(url) as connection:
        for table, columns in _COLUMNS.items():
            names = psycopg.sql.SQL(", ").join(map(psycopg.sql.Identifier, columns))
            query = psycopg.sql.SQL("SELECT {} FROM {}")
            for row in connection.execute(query.format(names, psycopg.sql.Identifier(table))):
                rows[table, (row[0],)] = dict(zip(columns, row, strict=True))
    return rows


@dataclass
class Follower:
    """One client of a group of its own, which asks for all rows; see the module docstring."""

    url: str
    number: int
    version: int
    state: SyncState = field(default_factory=lambda: SyncState(SCHEMA))
    # Connections lost so far.
    losses: int = 0

    def __post_init__(self) -> None:
        self.poked = asyncio.Event()
        self.lost = asyncio.Event()
        self._task = asyncio.create_task(self._keep())

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])

    async def shows(self, expected: dict[Any, dict[str, Any]]) -> None:
        """Returns once the client shows exactly ``expected``; fails with what it got instead."""
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                while self.state.rows != expected:
                    self.poked.clear()
                    waiting = asyncio.create_task(self.poked.wait())
                    await asyncio.wait([waiting, self._task], return_when=asyncio.FIRST_COMPLETED)
                    if self._task.done():
                        self._task.result()
        except TimeoutError:
            rows = self.state.rows
            missing = sorted(map(str, expected.keys() - rows.keys()))
            extra = sorted(map(str, rows.keys() - expected.keys()))
            other = [key for key in rows.keys() & expected.keys() if rows[key] != expected[key]]
            raise AssertionError(
                f"client {self.number}: missing {missing[:5]}, left over {extra[:5]}, "
                f"different {other[:5]}"
            ) from None

    async def _keep(self) -> None:
        while True:
            client = SyncClient(
                self.url,
                SCHEMA,
                [ast_query({"table": table}) for table in _COLUMNS] if not self.losses else [],
                client_id=f"c{self.number}",
                client_group_id=f"g{self.number}",
                version=self.version,
                state=self.state,
                on_poke=lambda _: self.poked.set(),
            )
            try:
                await client.connect(_TIMEOUT_S)
                raise await client.wait_closed(3600)
            except (ConnectionLost, OSError, TimeoutError):
                self.losses += bool(self.state.desired)
                self.lost.set()
            except ServerError as error:
                if error.kind not in _RETRIED:
                    raise
            finally:
                client.close()
            await asyncio.sleep(_RETRY_S)
