"""Records that tests of the stores save."""

from __future__ import annotations

from view_syncer.cvr.record import ConfigChange, GroupRecord
from zerocache.protocol.client_schema import ClientSchema
from zerocache.protocol.messages import DeleteQuery, PutQuery
from zerocache.protocol.versions import ViewVersion, Watermark

SCHEMA = ClientSchema.from_json(
    b'{"tables":{"t":{"columns":{"id":{"type":"string"}},"primaryKey":["id"]}}}'
)


def version(state: str, config: int = 0) -> ViewVersion:
    return ViewVersion(Watermark(state), config)


def new_record(change: ConfigChange) -> GroupRecord:
    record = GroupRecord("g", version=version("00", 1), client_schema=SCHEMA, profile_id="p")
    record.replica_version = Watermark("110")
    record.ttl_clock_ms = 12.5
    record.provable_from = version("00", 1)
    record.note_author(3, version("00", 1))
    record.note_author(4, version("01", 2))
    record.add_client("c1", change)
    ast = b'{ "table":"t", "limit":100000000000000000000 }'
    ops = [
        PutQuery("ast", 10, ast_json=ast, query=None, name="n", args=[1, {"x": None}]),
        PutQuery("named", name="n", args=["é😀", 1.5]),
    ]
    record.apply_query_ops("c1", ops, 0, change)
    record.apply_query_ops("c1", [DeleteQuery("ast")], 3.25, change)
    record.queries["named"].got_at = version("00", 1)
    record.queries["named"].unit = "unit-1"
    return record
