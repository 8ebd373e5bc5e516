"""The upstream database of a scenario: its schema, its seed, its clock, its own answers.

Owns the one connection tests write through. Every write bumps ``beat`` in the same transaction:
a client that shows beat n has applied everything up to the n-th write, so its views can be
compared with the database's answers without guessing how long replication takes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

_HERE = Path(__file__).parent


class Upstream:
    def __init__(self, url: str) -> None:
        self.url = url
        self.beat = 0
        self._db = psycopg.connect(url, autocommit=True)

    def create_schema(self) -> None:
        self._db.execute((_HERE / "schema.sql").read_bytes())

    def seed(self) -> None:
        """Start over. The clock goes on, so that no client mistakes an old state for this one."""
        self.write((_HERE / "seed.sql").read_text())

    def write(self, *statements: str) -> int:
        """Commit ``statements`` as one transaction; the beat at which clients will show it."""
        self.beat += 1
        with self._db.transaction():
            for statement in statements:
                self._db.execute(statement.encode())
            self._db.execute("UPDATE beat SET n = %s", [self.beat])
        return self.beat

    def answer(self, query: str) -> Any:
        """What PostgreSQL says: ``query`` returns one JSON value."""
        row = self._db.execute(query.encode()).fetchone()
        assert row is not None
        return json.loads(row[0]) if isinstance(row[0], str) else row[0]

    def deploy_permissions(self, app_id: str, readable: dict[str, str]) -> None:
        """Let anyone read the rows of each table in which a boolean column is true."""
        tables = {
            table: {"row": {"select": [["allow", _is_true(column)]]}}
            for table, column in readable.items()
        }
        self._db.execute(
            sql.SQL("UPDATE {}.permissions SET permissions = %s").format(sql.Identifier(app_id)),
            [json.dumps({"tables": tables})],
        )

    def stored_results(self, app_id: str) -> int:
        """How many mutation results wait for their clients."""
        table = sql.Identifier(f"{app_id}_0", "mutations")
        row = self._db.execute(sql.SQL("SELECT count(*) FROM {}").format(table)).fetchone()
        assert row is not None
        return int(row[0])

    def close(self) -> None:
        self._db.close()


def _is_true(column: str) -> dict[str, Any]:
    return {
        "type": "simple",
        "op": "=",
        "left": {"type": "column", "name": column},
        "right": {"type": "literal", "value": True},
    }
