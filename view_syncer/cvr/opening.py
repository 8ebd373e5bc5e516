"""Which store ``ZERO_CVR_DB`` means."""

from __future__ import annotations

from view_syncer.cvr.postgres import PostgresStore
from view_syncer.cvr.sqlite import SqliteStore
from view_syncer.cvr.store import Store
from zerocache.config import Config


def store_of(config: Config) -> Store:
    """The store of one worker, not open yet."""
    url = config.cvr.db
    if url.startswith("sqlite:"):
        return SqliteStore(url, config.cvr_schema)
    workers = max(1, config.num_sync_workers)
    return PostgresStore(
        url, config.cvr_schema, max_connections=max(1, config.cvr.max_conns // workers)
    )
