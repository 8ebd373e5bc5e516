"""The data set as a replica file, made without PostgreSQL: what the engine benchmarks run on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path

from benchmarks import dataset
from view_syncer.ivm.encode import ClientTables, SyncedTable
from zerocache.replica.bulk import BulkLoader
from zerocache.replica.copy_text import decode_rows
from zerocache.replica.layout import ReplicaConfig
from zerocache.replica.published import (
    PublishedColumn,
    PublishedIndex,
    PublishedSchema,
    PublishedTable,
)
from zerocache.replica.types import column_decoder

_TYPES: Mapping[str, Mapping[str, str]] = {
    "users": {"id": "text", "login": "text", "name": "text", "role": "text"},
    "labels": {"id": "text", "name": "text"},
    "issues": {
        "id": "text",
        "short_id": "int4",
        "project": "text",
        "title": "text",
        "description": "text",
        "open": "bool",
        "owner_id": "text",
        "votes": "int8",
        "meta": "jsonb",
        "created": "timestamptz",
        "modified": "timestamptz",
    },
    "comments": {
        "id": "text",
        "issue_id": "text",
        "author_id": "text",
        "body": "text",
        "created": "timestamptz",
    },
    "issue_labels": {"issue_id": "text", "label_id": "text"},
}
_KEYS = dict.fromkeys(_TYPES, ("id",)) | {"issue_labels": ("issue_id", "label_id")}
_INDEXES = (
    ("issues", ("modified", "id")),
    ("issues", ("project", "modified")),
    ("issues", ("owner_id",)),
    ("comments", ("issue_id", "created")),
    ("issue_labels", ("label_id",)),
)
_CATEGORIES = {"text": "S", "int4": "N", "int8": "N", "bool": "B", "jsonb": "U", "timestamptz": "D"}
_BATCH = 5_000


def client_tables() -> ClientTables:
    """Every table and column, as one client schema."""
    return ClientTables(
        "benchmark", {n: SyncedTable(n, tuple(c), _KEYS[n]) for n, c in _TYPES.items()}
    )


def build(path: Path, scale: float) -> dataset.Sizes:
    """Write the replica of the data set at ``scale`` to ``path``."""
    sizes = dataset.Sizes.at(scale)
    published = _published()
    config = ReplicaConfig(replica_version="110", publications=("p",), app_id="bench", shard_num=0)
    tables = {table.name: table for table in published.tables}
    with BulkLoader(path, config, published) as loader:
        for name, lines in dataset.tables(sizes):
            decoders = [column_decoder(column) for column in tables[name].columns]
            for chunk in _chunks(lines):
                loader.insert_rows(name, decode_rows(chunk, decoders))
        loader.finish()
    return sizes


def _chunks(lines: Iterator[str]) -> Iterator[bytes]:
    while batch := list(islice(lines, _BATCH)):
        yield "".join(batch).encode()[:-1]


def _published() -> PublishedSchema:
    tables = tuple(
        PublishedTable(
            schema="public",
            name=name,
            oid=number,
            columns=tuple(
                PublishedColumn(
                    name=column,
                    position=position,
                    type_name=kind,
                    type_oid=0,
                    type_category=_CATEGORIES[kind],
                    not_null=column in _KEYS[name],
                )
                for position, (column, kind) in enumerate(columns.items(), 1)
            ),
            primary_key=_KEYS[name],
            publications={"p": None},
        )
        for number, (name, columns) in enumerate(_TYPES.items(), 1)
    )
    indexes = [
        PublishedIndex(
            schema="public",
            table=name,
            name=f"{name}_pkey",
            columns=tuple((c, "ASC") for c in key),
            unique=True,
            is_primary=True,
        )
        for name, key in _KEYS.items()
    ]
    indexes += [
        PublishedIndex(
            schema="public",
            table=name,
            name=f"{name}_{'_'.join(columns)}",
            columns=tuple((c, "ASC") for c in columns),
        )
        for name, columns in _INDEXES
    ]
    return PublishedSchema(tables=tables, indexes=tuple(indexes))
