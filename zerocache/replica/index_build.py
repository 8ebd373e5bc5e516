"""Builds an index of upstream's in the replica, also where the replica blurs what it tells apart.

Some types are stored with less precision than upstream has (numeric as a double, times in
milliseconds), so values that are distinct there may be equal here. Of such rows the last one is
kept, as the change stream would.
"""

from __future__ import annotations

import apsw
import structlog

from zerocache.replica.layout import create_index_sql
from zerocache.replica.published import PublishedIndex, wire_name
from zerocache.replica.sql import quote, quote_all

log = structlog.get_logger(__name__)


def build_index(connection: apsw.Connection, index: PublishedIndex) -> None:
    statement = create_index_sql(index)
    try:
        connection.execute(statement)
    except apsw.ConstraintError:
        _drop_duplicates(connection, index)
        connection.execute(statement)


def _drop_duplicates(connection: apsw.Connection, index: PublishedIndex) -> None:
    table = quote(wire_name(index.schema, index.table))
    columns = quote_all(index.column_names)
    present = " AND ".join(f"{quote(name)} IS NOT NULL" for name in index.column_names)
    connection.execute(
        f"DELETE FROM {table} WHERE {present} AND _rowid_ NOT IN "  # noqa: S608 - quoted
        f"(SELECT max(_rowid_) FROM {table} WHERE {present} GROUP BY {columns})"
    )
    log.warning(
        "indistinguishable_rows_dropped",
        table=wire_name(index.schema, index.table),
        index=index.name,
        rows=connection.changes(),
    )
