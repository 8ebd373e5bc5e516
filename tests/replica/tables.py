"""Published tables and replicas for the tests of this package."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from zerocache.replica.bulk import BulkLoader
from zerocache.replica.layout import ReplicaConfig
from zerocache.replica.published import (
    PublishedColumn,
    PublishedIndex,
    PublishedSchema,
    PublishedTable,
)

INITIAL_VERSION = "110"
CONFIG = ReplicaConfig(
    replica_version=INITIAL_VERSION, publications=("b", "a"), app_id="zero", shard_num=0
)


def column(name: str, position: int, type_name: str = "text", **facts: Any) -> PublishedColumn:
    return PublishedColumn(
        name=name,
        position=position,
        type_name=type_name,
        type_oid=facts.pop("type_oid", 25),
        type_category=facts.pop("type_category", "S"),
        **facts,
    )


def table(name: str, columns: Iterable[PublishedColumn], **facts: Any) -> PublishedTable:
    return PublishedTable(
        schema=facts.pop("schema", "public"),
        name=name,
        oid=facts.pop("oid", 1),
        columns=tuple(columns),
        publications={"p": None},
        **facts,
    )


def index(of: PublishedTable, *columns: str, unique: bool = False, **facts: Any) -> PublishedIndex:
    return PublishedIndex(
        schema=of.schema,
        table=of.name,
        name=facts.pop("name", f"{of.name}_{'_'.join(columns)}"),
        columns=tuple((name, "ASC") for name in columns),
        unique=unique,
        **facts,
    )


TASK = table(
    "task",
    [
        column("id", 1, "int4", not_null=True),
        column("slug", 2, not_null=True),
        column("title", 4),
        column("rank", 5, "float8"),
    ],
    primary_key=("id",),
)
TASK_INDEXES = (
    index(TASK, "id", unique=True, is_primary=True),
    index(TASK, "slug", unique=True),
    index(TASK, "title"),
)
NOTE = table("note", [column("body", 1), column("stars", 2, "int4")], schema="app")
SCHEMA = PublishedSchema(tables=(TASK, NOTE), indexes=TASK_INDEXES)


def build_replica(
    path: Path,
    rows: Mapping[str, Sequence[Sequence[Any]]] | None = None,
    schema: PublishedSchema = SCHEMA,
) -> Path:
    with BulkLoader(path, CONFIG, schema) as loader:
        for name, values in (rows or {}).items():
            loader.insert_rows(name, values)
        loader.finish()
    return path
