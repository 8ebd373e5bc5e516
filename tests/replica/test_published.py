import msgspec

from tests.replica.tables import NOTE, SCHEMA, TASK, column, index, table
from zerocache.replica.published import PublishedSchema, wire_name


def test_wire_name_has_the_schema_unless_it_is_public() -> None:
    assert wire_name("public", "task") == "task"
    assert wire_name("app", "note") == "app.note"
    assert NOTE.wire_name == "app.note"


def test_schema_survives_json() -> None:
    encoded = msgspec.json.encode(SCHEMA)
    assert msgspec.json.decode(encoded, type=PublishedSchema) == SCHEMA


def test_indexes_of_a_table_are_matched_by_schema_and_name() -> None:
    other = table("task", [column("id", 1)], schema="app")
    schema = PublishedSchema(tables=(TASK, other), indexes=(index(TASK, "id"), index(other, "id")))
    assert [i.schema for i in schema.indexes_of(other)] == ["app"]


def test_row_filters_of_several_publications_are_alternatives() -> None:
    filtered = msgspec.structs.replace(TASK, publications={"a": "id > 1", "b": "id % 2 = 0"})
    assert filtered.row_filter == "(id % 2 = 0) OR (id > 1)"


def test_one_unfiltered_publication_means_no_filter() -> None:
    mixed = msgspec.structs.replace(TASK, publications={"a": "id > 1", "b": None})
    assert mixed.row_filter is None


def test_only_valid_immediate_unique_indexes_are_enforced() -> None:
    assert index(TASK, "id", unique=True).enforced
    assert not index(TASK, "id").enforced
    assert not index(TASK, "id", unique=True, is_immediate=False).enforced
    assert not index(TASK, "id", unique=True, is_valid=False).enforced
