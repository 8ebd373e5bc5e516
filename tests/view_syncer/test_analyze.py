"""``zerocache analyze-query`` on a real replica."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.replica.tables import build_replica, column, index, table
from view_syncer.analysis import analyze
from zerocache.cli import main
from zerocache.errors import QueryError
from zerocache.replica.auto_index import IndexWish
from zerocache.replica.published import PublishedSchema
from zerocache.replica.writer import ReplicaWriter
from zerocache.zql.ast import parse_query

TASKS = 300
TASK = table(
    "task",
    [
        column("id", 1, "int4", not_null=True, type_category="N"),
        column("owner", 2, "text"),
        column("rank", 3, "int4", type_category="N"),
    ],
    primary_key=("id",),
)
NOTE = table(
    "note",
    [
        column("id", 1, "int4", not_null=True, type_category="N"),
        column("task", 2, "int4", type_category="N"),
    ],
    primary_key=("id",),
)
PERMISSIONS = table(
    "permissions",
    [
        column("permissions", 1, "json", type_category="U"),
        column("lock", 2, "bool", not_null=True, type_category="B"),
    ],
    schema="zero",
    primary_key=("lock",),
)
SCHEMA = PublishedSchema(
    tables=(TASK, NOTE, PERMISSIONS),
    indexes=(
        index(TASK, "id", unique=True, is_primary=True),
        index(NOTE, "id", unique=True, is_primary=True),
        index(NOTE, "task"),
    ),
)
MINE = {
    "type": "simple",
    "op": "=",
    "left": {"type": "column", "name": "owner"},
    "right": {"type": "static", "anchor": "authData", "field": "sub"},
}
DEPLOYED = {"tables": {"task": {"row": {"select": [["allow", MINE]]}}}}
BY_OWNER = {
    "table": "task",
    "where": {**MINE, "right": {"type": "literal", "value": "u3"}},
    "related": [
        {
            "correlation": {"parentField": ["id"], "childField": ["task"]},
            "subquery": {"table": "note", "alias": "notes"},
        }
    ],
}
PAGE = {"table": "task", "orderBy": [["rank", "desc"]], "limit": 5}
Run = Callable[..., Any]


@pytest.fixture
def replica(tmp_path: Path) -> Path:
    rows: dict[str, list[tuple[Any, ...]]] = {
        "task": [(i, f"u{i % 10}", i % 50) for i in range(TASKS)],
        "note": [(i, i % TASKS) for i in range(2 * TASKS)],
        "zero.permissions": [(json.dumps(DEPLOYED), 1)],
    }
    return build_replica(tmp_path / "replica.db", rows, SCHEMA)


@pytest.fixture
def run(replica: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command with ``--json`` and returns what it printed, decoded."""

    def run(query: Any, *flags: str) -> Any:
        ast = json.dumps(query)
        arguments = ["analyze-query", "--replica-file", str(replica), "--ast", ast, "--json"]
        assert main([*arguments, *flags]) == 0
        return json.loads(capsys.readouterr().out)

    return run


def test_it_counts_what_is_read_and_synced(run: Run) -> None:
    result = run(BY_OWNER)
    assert result["syncedRowCounts"] == {"task": 30, "note": 60}
    read = {s["purpose"] + " " + s["table"]: s for s in result["statements"]}
    tasks = read["all rows task"]
    assert (tasks["runs"], tasks["rows"], tasks["scanned"]) == (1, 30, TASKS - 1)
    assert tasks["fullScans"] == ["task"]
    assert tasks["plan"][0].startswith("SCAN t0")
    notes = read["all rows note"]
    assert (notes["runs"], notes["rows"], notes["fullScans"]) == (1, 60, [])
    assert read["changed rows task"]["runs"] == 0
    assert result["indexesUsed"] == ["note_task on note (task)"]
    assert result["hydrateMs"] > 0
    assert result["encodeMs"] > 0
    assert result["syncedRows"] is None


def test_missing_indexes_are_named_above_the_threshold(run: Run) -> None:
    assert run(BY_OWNER)["indexesMissing"] == []
    (missing,) = run(BY_OWNER, "--min-rows", "100")["indexesMissing"]
    assert (missing["index"], missing["problem"], missing["rows"]) == ("task (owner)", "scan", 300)


def test_automatic_indexes_are_visible(run: Run, replica: Path) -> None:
    writer = ReplicaWriter(replica)
    wish = IndexWish("task", (), (("rank", False), ("id", True)))
    writer.create_auto_index(wish, lambda: False)
    writer.close()
    result = run(PAGE, "--min-rows", "100")
    text = f"{wish.name} on task (rank, id DESC)"
    assert result["autoIndexes"] == [text]
    assert result["indexesUsed"] == [text]
    assert result["indexesMissing"] == []


def test_rows_are_shown_on_request(run: Run) -> None:
    result = run(PAGE, "--output-synced-rows")
    assert [row["rank"] for row in result["syncedRows"]["task"]] == [49] * 5
    assert set(result["syncedRows"]["task"][0]) == {"id", "owner", "rank"}


def test_a_client_schema_limits_the_columns(run: Run, tmp_path: Path) -> None:
    schema = {"tables": {"task": {"columns": {"id": {"type": "number"}}, "primaryKey": ["id"]}}}
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    flags = ("--client-schema", str(tmp_path / "schema.json"), "--output-synced-rows")
    assert set(run(PAGE, *flags)["syncedRows"]["task"][0]) == {"id"}


def test_permissions_apply_on_request(run: Run) -> None:
    everybody = {"table": "task"}
    assert run(everybody)["syncedRowCounts"] == {"task": TASKS}
    mine = run(everybody, "--apply-permissions", "--auth-data", '{"sub":"u1"}')
    assert mine["syncedRowCounts"] == {"task": 30}
    assert '"u1"' in mine["afterPermissions"]
    assert mine["warnings"] == []
    notes = run({"table": "note"}, "--apply-permissions")
    assert notes["syncedRowCounts"] == {"note": 0}
    assert "note has no read permission" in notes["warnings"][0]


def test_the_text_marks_full_scans_and_missing_indexes(
    replica: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "query.json").write_text(json.dumps(BY_OWNER))
    flags = ["--ast-file", str(tmp_path / "query.json"), "--min-rows", "100"]
    assert main(["analyze-query", "--replica-file", str(replica), *flags]) == 0
    text = capsys.readouterr().out
    assert "Rows synced: 90 (note 60, task 30)" in text
    assert "*** FULL SCAN of task" in text
    assert "FULL SCAN of note" not in text
    assert "Indexes missing:\n  task (owner): scan over 300 rows" in text
    assert "INDEX note_task (task=?)" in text


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ('{"table":"nowhere"}', "'nowhere' is not replicated"),
        ('{"tab":1}', "--ast"),
        ("nonsense", "--ast"),
    ],
)
def test_a_bad_query_is_one_message(
    replica: Path, capsys: pytest.CaptureFixture[str], query: str, message: str
) -> None:
    assert main(["analyze-query", "--replica-file", str(replica), "--ast", query]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_missing_replica_is_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(tmp_path / "none.db")
    assert main(["analyze-query", "--replica-file", file, "--ast", '{"table":"t"}']) == 1
    assert "does not exist" in capsys.readouterr().err


def test_the_inspectors_value_has_its_members_and_no_others(replica: Path) -> None:
    query = parse_query(json.dumps(PAGE))
    analysis = analyze(replica, query, read_rows=True, scan_rows=100)
    value = msgspec.json.decode(msgspec.json.encode(analysis.protocol_value()))
    assert set(value) == {
        "warnings", "syncedRows", "syncedRowCount", "start", "end", "elapsed",
        "afterPermissions", "sqlitePlans", "readRows", "readRowCountsByQuery", "readRowCount",
        "dbScansByQuery",
    }  # fmt: skip
    ((sql, rows),) = value["readRows"]["task"].items()
    # The window keeps a reserve beyond its five rows.
    assert value["readRowCountsByQuery"]["task"][sql] == len(rows) == value["readRowCount"]
    assert len(rows) > 5
    assert value["syncedRowCount"] == 5
    assert value["dbScansByQuery"]["task"][sql] == TASKS - 1
    assert value["sqlitePlans"][sql][0].startswith("SCAN t0")
    assert "task (rank, id DESC)" in value["warnings"][0]
    plain = analyze(replica, query, synced_rows=False).protocol_value()
    assert "syncedRows" not in plain
    assert "readRows" not in plain


def test_a_query_the_replica_cannot_run_is_a_query_error(replica: Path) -> None:
    with pytest.raises(QueryError, match="nothing"):
        analyze(replica, parse_query('{"table":"task","orderBy":[["nothing","asc"]]}'))
