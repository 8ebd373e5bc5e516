"""Incremental view maintenance: the query engine. No sockets, no asyncio, no Postgres."""
