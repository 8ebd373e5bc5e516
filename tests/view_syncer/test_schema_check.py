"""What a client declares against what the replica has (sync-protocol.md §6)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.replica.tables import column, index, table
from view_syncer.schema_check import ClientSchemas, check_client_schema, client_tables
from zerocache.errors import ClientFacingError
from zerocache.protocol.client_schema import ClientSchema
from zerocache.replica.bulk import BulkLoader
from zerocache.replica.layout import ReplicaConfig
from zerocache.replica.published import PublishedSchema
from zerocache.replica.reader import load_schema, open_replica
from zerocache.replica.schema import ReplicaSchema

INTERNAL = frozenset({"zero", "zero_0"})


@pytest.fixture
def replica(tmp_path: Path) -> ReplicaSchema:
    task = table(
        "task",
        [
            column("id", 1, "int4", not_null=True, type_category="N"),
            column("p", 2, not_null=True),
            column("q", 3, not_null=True),
            column("title", 4),
            column("raw", 5, "bytea", type_category="U"),
        ],
        primary_key=("id",),
    )
    keyless = table("keyless", [column("a", 1)])
    hidden = table(
        "hidden", [column("k", 1, "bytea", not_null=True, type_category="U")], primary_key=("k",)
    )
    permissions = table("permissions", [column("x", 1, not_null=True)], schema="zero")
    indexes = (
        index(task, "id", unique=True, is_primary=True),
        index(task, "q", "p", unique=True),
        index(hidden, "k", unique=True, is_primary=True),
    )
    schema = PublishedSchema(tables=(task, keyless, hidden, permissions), indexes=indexes)
    config = ReplicaConfig(replica_version="01", publications=("p",), app_id="zero", shard_num=0)
    with BulkLoader(tmp_path / "r.db", config, schema) as loader:
        loader.finish()
    connection = open_replica(tmp_path / "r.db")
    try:
        return load_schema(connection)
    finally:
        connection.close()


def declared(key: list[str] | None = None, name: str = "task", **columns: str) -> ClientSchema:
    body: dict[str, Any] = {
        "columns": {c: {"type": t} for c, t in columns.items()},
        "primaryKey": key or ["id"],
    }
    return ClientSchema.from_json(msgspec.json.encode({"tables": {name: body}}))


def problems(schema: ClientSchema, replica: ReplicaSchema) -> list[str]:
    with pytest.raises(ClientFacingError) as caught:
        check_client_schema(schema, replica, INTERNAL)
    assert caught.value.kind == "SchemaVersionNotSupported"
    return str(caught.value).split("\n")


def test_part_of_the_columns_is_enough(replica: ReplicaSchema) -> None:
    """sync-protocol.md §10 #60"""
    check_client_schema(declared(id="number"), replica, INTERNAL)
    check_client_schema(declared(id="number", title="string"), replica, INTERNAL)


@pytest.mark.parametrize("key", [["id"], ["p", "q"], ["q", "p"]])
def test_every_unique_key_will_do_in_any_order(replica: ReplicaSchema, key: list[str]) -> None:
    """sync-protocol.md §10 #60"""
    schema = declared(key, id="number", p="string", q="string")
    check_client_schema(schema, replica, INTERNAL)


def test_missing_table_lists_the_replicated_ones_without_internal_ones(
    replica: ReplicaSchema,
) -> None:
    """sync-protocol.md §10 #60"""
    (problem,) = problems(declared(name="nope", id="number"), replica)
    assert '"nope"' in problem
    assert '"task"' in problem
    assert "permissions" not in problem
    (problem,) = problems(declared(name="other.nope", id="number"), replica)
    assert "ZERO_APP_PUBLICATIONS" in problem


def test_internal_tables_cannot_be_declared(replica: ReplicaSchema) -> None:
    problems(declared(name="zero.permissions", key=["x"], x="string"), replica)


def test_missing_column_lists_the_columns_without_the_version(replica: ReplicaSchema) -> None:
    """sync-protocol.md §10 #60"""
    (problem,) = problems(declared(id="number", gone="string"), replica)
    assert '"gone"' in problem
    assert "title" in problem
    assert "_0_version" not in problem


def test_column_of_an_unsupported_type_is_named_with_it(replica: ReplicaSchema) -> None:
    (problem,) = problems(declared(id="number", raw="string"), replica)
    assert "bytea" in problem


def test_wrong_type_names_both(replica: ReplicaSchema) -> None:
    """sync-protocol.md §10 #60"""
    (problem,) = problems(declared(id="string"), replica)
    assert '"string"' in problem
    assert '"number"' in problem


def test_wrong_key_lists_the_possible_ones(replica: ReplicaSchema) -> None:
    """sync-protocol.md §10 #60"""
    (problem,) = problems(declared(["p"], id="number", p="string"), replica)
    assert "(p)" in problem
    assert "(p, q)" in problem


def test_table_without_a_usable_key_says_why(replica: ReplicaSchema) -> None:
    (problem,) = problems(declared(name="keyless", key=["a"], a="string"), replica)
    assert "no primary key" in problem
    (problem,) = problems(declared(name="hidden", key=["k"], k="string"), replica)
    assert "bytea" in problem


def test_all_problems_come_together_missing_tables_first(replica: ReplicaSchema) -> None:
    """sync-protocol.md §10 #60"""
    tables = {
        "task": {"columns": {"id": {"type": "string"}}, "primaryKey": ["id"]},
        "zz": {"columns": {}, "primaryKey": ["id"]},
        "aa": {"columns": {}, "primaryKey": ["id"]},
    }
    schema = ClientSchema.from_json(msgspec.json.encode({"tables": tables}))
    found = problems(schema, replica)
    assert ['"aa"' in found[0], '"zz"' in found[1], '"task"' in found[2]] == [True] * 3


def test_nothing_replicated_is_the_servers_fault(replica: ReplicaSchema) -> None:
    """sync-protocol.md §10 #60"""
    internal_only = {name: t for name, t in replica.items() if name.startswith("zero.")}
    with pytest.raises(ClientFacingError) as caught:
        check_client_schema(declared(id="number"), internal_only, INTERNAL)
    assert caught.value.kind == "Internal"


def test_encoders_see_the_declared_columns_and_key() -> None:
    tables = client_tables(declared(["q", "p"], q="string", p="string", id="number"))
    assert tables.tables["task"].columns == ("id", "p", "q")
    assert set(tables.tables["task"].key) == {"p", "q"}
    assert tables == client_tables(declared(["q", "p"], id="number", p="string", q="string"))


def test_schemas_that_mean_the_same_have_their_tables_worked_out_once() -> None:
    schemas = ClientSchemas(most=2)
    one, same, other, third = (
        ClientSchema.from_json(text)
        for text in (
            '{"tables":{"a":{"columns":{"x":{"type":"string"},"y":{"type":"number"}},'
            '"primaryKey":["x"]}}}',
            '{"tables":{"a":{"primaryKey":["x"],'
            '"columns":{"y":{"type":"number"},"x":{"type":"string"}}}}}',
            '{"tables":{"a":{"columns":{"x":{"type":"string"}},"primaryKey":["x"]}}}',
            '{"tables":{}}',
        )
    )
    tables = schemas.tables(one)
    assert tables == client_tables(one)
    assert schemas.tables(same) is tables
    assert schemas.tables(other) == client_tables(other) != tables
    schemas.tables(third)
    again = schemas.tables(one)
    assert again is not tables
    assert again == tables
