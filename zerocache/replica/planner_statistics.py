"""Keeps SQLite's planner from believing that a small table stays small.

Owns the correction of ``sqlite_stat1`` after each analysis. Statistics are gathered seldom, and
connections read them once, when they open; but a table that had one row then (a new deployment, a
``TRUNCATE`` before a reload) may have millions soon after. Believing in the one row, SQLite scans
the table where it would search an index, once per row of another scan. Invariant: no table is
said to have fewer than :data:`ASSUMED_ROWS`, for which searching is right; if the table really is
small, any plan is fast.
"""

from __future__ import annotations

import apsw

ASSUMED_ROWS = 1_000


def assume_growth(connection: apsw.Connection) -> None:
    """Raise the row counts of small tables. Call after every ANALYZE or PRAGMA optimize."""
    if not connection.table_exists("main", "sqlite_stat1"):
        return
    # A statistic is the number of rows, then figures per index prefix, which are kept.
    connection.execute(
        "UPDATE main.sqlite_stat1 SET stat = ?1 || substr(stat, instr(stat || ' ', ' ')) "
        "WHERE CAST(stat AS INTEGER) < ?1",
        (ASSUMED_ROWS,),
    )
    # Makes this connection read what was written.
    connection.execute("ANALYZE sqlite_schema")
