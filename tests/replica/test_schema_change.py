"""What a replica has to do about a changed schema, decided without touching one."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tests.replica.tables import TASK, TASK_INDEXES, column, index
from zerocache.replica.layout import TableFacts
from zerocache.replica.published import PublishedSchema, PublishedTable
from zerocache.replica.schema_change import (
    AddColumn,
    AlterTable,
    Change,
    CreateTable,
    DropTable,
    EventContext,
    EventInfo,
    SchemaEvent,
    disturbs,
    plan_changes,
    renames,
)

FACTS = TableFacts(table=TASK, indexes=TASK_INDEXES)


def _plan(
    tables: tuple[PublishedTable, ...], *, tag: str = "ALTER TABLE", query: str = "", **facts: Any
) -> list[Change]:
    schema = PublishedSchema(tables=tables, indexes=facts.pop("indexes", TASK_INDEXES))
    event = SchemaEvent(
        schema=schema, event=EventInfo(tag), context=EventContext(query), **facts
    )  # fmt: skip
    return plan_changes([FACTS], event)


def _with(*columns: Any) -> PublishedTable:
    """TASK with some columns replaced or added, by position."""
    merged = {c.position: c for c in [*TASK.columns, *columns]}
    return msgspec.structs.replace(TASK, columns=tuple(merged[at] for at in sorted(merged)))


def _only(changes: list[Change]) -> AlterTable:
    (change,) = changes
    assert isinstance(change, AlterTable)
    return change


def test_nothing_changed() -> None:
    assert _plan((TASK,)) == []


def test_tables_are_known_by_oid() -> None:
    again = msgspec.structs.replace(TASK, oid=2)
    drop, create = _plan((again,), tag="CREATE TABLE")
    assert drop == DropTable("task")
    assert isinstance(create, CreateTable)
    assert not create.backfill


def test_published_tables_may_have_rows() -> None:
    other = msgspec.structs.replace(TASK, oid=2, name="other")
    (create,) = _plan((TASK, other), tag="ALTER PUBLICATION")
    assert isinstance(create, CreateTable)
    assert create.backfill


def test_columns_are_known_by_position() -> None:
    change = _only(_plan((_with(column("headline", 4)),)))
    assert change.renamed == (("title", "headline"),)
    assert not change.hidden


@pytest.mark.parametrize(
    ("facts", "missing", "value", "backfill"),
    [
        ({}, None, None, False),
        ({"default": "7"}, "7", 7, False),
        ({"default": "random()"}, None, None, True),
        ({"generated": True}, None, None, True),
        ({"type_kind": "d"}, None, None, True),
    ],
)
def test_values_of_a_new_column(
    facts: dict[str, Any], missing: str | None, value: object, backfill: bool
) -> None:
    new = column("stars", 9, "int4", **facts)
    noted = {} if missing is None else {"1.9": missing}
    change = _only(_plan((_with(new),), missing=noted))
    assert [(a.value, a.backfill) for a in change.added] == [(value, backfill)]


def test_column_that_only_became_published_is_backfilled() -> None:
    change = _only(_plan((_with(column("stars", 9)),), tag="ALTER PUBLICATION"))
    assert change.hidden == (9,)


@pytest.mark.parametrize(
    ("query", "refresh"),
    [
        ("ALTER TABLE task ALTER title TYPE varchar", False),
        ("alter table task alter title type varchar using lower(title);", True),
        ("SELECT migrate()", True),
        ("ALTER TABLE task ALTER title TYPE varchar; SELECT migrate()", True),
    ],
)
def test_retype_keeps_values_only_without_using(query: str, refresh: bool) -> None:
    retyped = _with(column("title", 4, "varchar", type_oid=1043))
    change = _only(_plan((retyped,), query=query, rewritten=(1,)))
    assert change.refresh == refresh
    assert not change.hidden


def test_values_of_another_kind_are_hidden_until_they_are_read() -> None:
    retyped = _with(column("title", 4, "json", type_oid=114))
    change = _only(
        _plan((retyped,), query="ALTER TABLE task ALTER title TYPE json", rewritten=(1,))
    )
    assert change.hidden == (4,)
    assert not change.refresh


def test_nothing_is_taken_for_granted_of_what_nobody_saw() -> None:
    dropped = TASK_INDEXES[:1]
    assert _only(_plan((TASK,), tag="UNKNOWN", indexes=dropped)).refresh
    assert not _only(_plan((TASK,), tag="DROP INDEX", indexes=dropped)).refresh
    seen = msgspec.structs.replace(TASK, publication_state="1", storage=1)
    facts = TableFacts(table=seen, indexes=TASK_INDEXES)
    columns = (msgspec.structs.replace(TASK.columns[0], written="2"), *TASK.columns[1:])
    for changed, refresh in (
        ({"storage": 2}, False),  # VACUUM FULL
        ({"columns": columns}, False),  # SET DEFAULT
        ({"storage": 2, "columns": columns}, True),
        ({"publication_state": "2"}, True),
    ):
        now = msgspec.structs.replace(seen, **changed)
        event = SchemaEvent(schema=PublishedSchema(tables=(now,), indexes=TASK_INDEXES))
        assert _only(plan_changes([facts], event)).refresh == refresh, changed


def test_retyped_key_needs_the_whole_table() -> None:
    retyped = _with(column("id", 1, "text", not_null=True, type_oid=99))
    drop, create = _plan((retyped,), query="ALTER TABLE task ALTER id TYPE text", rewritten=(1,))
    assert isinstance(drop, DropTable)
    assert isinstance(create, CreateTable)
    assert create.backfill


def test_rewrite_with_unchanged_types_reads_every_row_again() -> None:
    change = _only(_plan((TASK,), query="ALTER ... USING upper(title)", rewritten=(1,)))
    assert change.refresh
    assert not change.hidden


def test_index_alone_is_an_alteration_without_columns() -> None:
    more = (*TASK_INDEXES, index(TASK, "rank"))
    change = _only(_plan((TASK,), tag="CREATE INDEX", indexes=more))
    assert (change.added, change.dropped, change.renamed, change.hidden) == ((), (), (), ())


def test_renames_never_meet() -> None:
    names = {"a", "b", "C"}
    for old, new in renames([("a", "b"), ("b", "a"), ("C", "c")], names):
        assert new.lower() not in {name.lower() for name in names}
        names.remove(old)
        names.add(new)
    assert names == {"a", "b", "c"}


def _other(value: Any) -> Any:
    """Some value of the same kind that is not ``value``."""
    match value:
        case bool():
            return not value
        case int():
            return value + 1
        case dict():
            return {**value, "q": None}
        case tuple():
            return value[:-1] if value else (1,)
    return f"{value}x"


def _variants(struct: msgspec.Struct) -> list[tuple[str, Any]]:
    """``struct`` with one field changed, for each of its fields."""
    return [
        (name, msgspec.structs.replace(struct, **{name: _other(getattr(struct, name))}))
        for name in struct.__struct_fields__
    ]


def _disturbs(table: PublishedTable, *indexes: Any) -> bool:
    """Whether it does that the facts changed, and nothing else is known of it."""
    now = TableFacts(table=table, indexes=indexes or TASK_INDEXES)
    return disturbs(AlterTable(FACTS, now), FACTS)


def test_rows_that_are_being_read_are_disturbed_by_every_fact_but_these() -> None:
    tables = [name for name, table in _variants(TASK) if name != "oid" and not _disturbs(table)]
    columns = [
        name for name, changed in _variants(TASK.columns[2]) if not _disturbs(_with(changed))
    ]
    enforced = [
        name
        for name, changed in _variants(TASK_INDEXES[1])
        if not _disturbs(TASK, TASK_INDEXES[0], changed, TASK_INDEXES[2])
    ]
    assert (tables, columns, enforced) == (["attributes"], ["written"], [])


def test_indexes_that_upstream_does_not_enforce_disturb_nothing() -> None:
    assert not _disturbs(TASK, *TASK_INDEXES[:2])
    assert not _disturbs(TASK, *TASK_INDEXES, index(TASK, "rank"))
    assert _disturbs(TASK, *TASK_INDEXES, index(TASK, "rank", unique=True))
    assert _disturbs(TASK, *TASK_INDEXES, index(TASK, "rank", is_replica_identity=True))


@pytest.mark.parametrize(
    "done",
    [
        {"refresh": True},
        {"stale": (4,)},
        {"dropped": ("gone",)},
        {"renamed": (("a", "b"),)},
        {"added": (AddColumn(column("stars", 9)),)},
    ],
)
def test_whatever_is_done_to_a_table_disturbs_its_reading_alone(done: dict[str, Any]) -> None:
    change = AlterTable(FACTS, FACTS, **done)
    elsewhere = TableFacts(table=msgspec.structs.replace(TASK, oid=2, name="b"), indexes=())
    assert disturbs(change, FACTS)
    assert not disturbs(change, elsewhere)


def test_dropping_a_table_disturbs_its_reading_alone() -> None:
    assert disturbs(DropTable("task"), FACTS)
    assert not disturbs(DropTable("other"), FACTS)
    assert not disturbs(CreateTable(FACTS, backfill=True), FACTS)
