"""Says once what clients will not see of the published schema.

Owns what was said already in this process: the schema is looked at with every connection and every
change, an operator wants to read each name once. It must never fail anything: what is hidden is
replicated all the same.
"""

from __future__ import annotations

import structlog

from zerocache.replica.hidden import Hidden, hidden_from_clients
from zerocache.replica.layout import facts_of
from zerocache.replica.published import PublishedSchema

log = structlog.get_logger(__name__)


class HiddenAnnouncer:
    """One per process; called with every schema it gets to know."""

    def __init__(self) -> None:
        self._said = Hidden()

    def announce(self, schema: PublishedSchema) -> None:
        """Warn about what is hidden in ``schema`` and was not when this was called last."""
        hidden = hidden_from_clients(facts_of(schema))
        before, self._said = self._said, hidden
        columns = {
            name: kind for name, kind in hidden.columns.items() if before.columns.get(name) != kind
        }
        if columns:
            log.warning(
                "columns_hidden_from_clients",
                columns=columns,
                reason="clients know no such types; the values are in the replica as text",
            )
        if tables := [name for name in hidden.tables if name not in before.tables]:
            log.warning(
                "tables_hidden_from_clients",
                tables=tables,
                reason="no primary key or unique index over NOT NULL columns that clients see",
            )
