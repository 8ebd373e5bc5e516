from pathlib import Path

import apsw
import pytest

from tests.replica.tables import CONFIG, NOTE, SCHEMA, TASK, build_replica, column, index, table
from zerocache.errors import UpstreamSetupError
from zerocache.replica.layout import (
    TableFacts,
    check_names,
    create_index_sql,
    create_indexes,
    create_table_sql,
    facts_of,
    load_config,
    load_tables,
    row_key,
    synced_keys,
)
from zerocache.replica.published import PublishedColumn, PublishedSchema, PublishedTable


def facts(*indexes_of_task: tuple[str, ...], **index_facts: bool) -> TableFacts:
    return TableFacts(
        table=TASK,
        indexes=tuple(index(TASK, *names, unique=True, **index_facts) for names in indexes_of_task),
    )


def test_columns_have_no_type_and_come_in_attnum_order_before_the_version() -> None:
    shuffled = table("t", [column("b", 2), column('a"', 1, "int4", not_null=True)], schema="app")
    assert create_table_sql(shuffled) == 'CREATE TABLE "app.t" ("a""", "b", "_0_version")'


def test_values_are_not_coerced(tmp_path: Path) -> None:
    path = build_replica(tmp_path / "r.db", {"task": [(1, "2", "3.0", 1.5)]})
    row = apsw.Connection(str(path)).execute("SELECT * FROM task").fetchone()
    assert row == (1, "2", "3.0", 1.5, CONFIG.replica_version)


def test_index_keeps_order_and_direction() -> None:
    mixed = index(TASK, "rank", "id", name="mixed")
    assert create_index_sql(mixed) == 'CREATE INDEX "mixed" ON "task" ("rank" ASC, "id" ASC)'


@pytest.mark.parametrize("weakness", [{"is_immediate": False}, {"is_valid": False}])
def test_index_upstream_does_not_always_enforce_is_not_unique(weakness: dict[str, bool]) -> None:
    weak = index(TASK, "id", unique=True, **weakness)
    assert create_index_sql(weak).startswith("CREATE INDEX")
    assert synced_keys(TableFacts(table=TASK, indexes=(weak,))) == []


def test_keys_have_fewest_columns_first_then_go_by_name() -> None:
    assert synced_keys(facts(("slug", "id"), ("slug",), ("id",))) == [
        ["id"],
        ["slug"],
        ["id", "slug"],
    ]


def test_nullable_columns_make_no_key() -> None:
    assert synced_keys(facts(("title",), ("id", "title"))) == []
    assert row_key(facts(("title",))) is None


def test_hidden_columns_make_a_row_key_but_no_synced_key() -> None:
    blobs = table("blobs", [column("hash", 1, "bytea", not_null=True)])
    hidden = TableFacts(table=blobs, indexes=(index(blobs, "hash", unique=True),))
    assert row_key(hidden) == ("hash",)
    assert synced_keys(hidden) == []


def test_metadata_survives(tmp_path: Path) -> None:
    connection = apsw.Connection(str(build_replica(tmp_path / "r.db")))
    assert load_tables(connection) == {f.table.wire_name: f for f in facts_of(SCHEMA)}
    config = load_config(connection)
    assert config is not None
    assert config.publications == ("a", "b")
    assert config.replica_version == CONFIG.replica_version


def test_foreign_file_has_no_config(tmp_path: Path) -> None:
    assert load_config(apsw.Connection(str(tmp_path / "other.db"))) is None


def test_indexes_of_other_schemas_carry_the_schema() -> None:
    connection = apsw.Connection(":memory:")
    connection.execute(create_table_sql(NOTE))
    create_indexes(connection, TableFacts(table=NOTE, indexes=(index(NOTE, "stars", name="i"),)))
    names = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'index'").fetchall()
    assert names == [("app.i",)]


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ([table("Task", []), table("task", [])], "SQLite names ignore case"),
        ([table("t", [column("a", 1), column("A", 2)])], "columns of table t"),
        ([table("t", [column("_0_VERSION", 1)])], "_0_version"),
        ([table("sqlite_stat", [])], "reserves names"),
    ],
)
def test_names_sqlite_cannot_tell_apart_are_refused(schema: list, message: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(UpstreamSetupError, match=message):
        check_names(PublishedSchema(tables=tuple(schema)))


def test_a_column_called_like_the_row_number_itself_is_refused() -> None:
    column = PublishedColumn(
        name="_rowid_", position=1, type_name="int4", type_oid=23, type_category="N"
    )
    table = PublishedTable(schema="public", name="t", oid=1, columns=(column,))
    with pytest.raises(UpstreamSetupError, match="_rowid_"):
        check_names(PublishedSchema(tables=(table,)))
