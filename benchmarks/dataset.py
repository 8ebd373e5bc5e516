"""The deterministic data set: an issue tracker of 607,000 rows at scale 1.

Owns its tables (dataset.sql), rows, client schema and the queries over it. Must never use a clock
or unseeded randomness. Invariant: the same scale gives the same rows on every machine.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg

from benchmarks.sync_messages import ClientSchema, ColumnType, TableSchema

LABELS = 100
ISSUES_PER_PROJECT = 100
COMMENTS_PER_ISSUE = 3
LABELS_PER_ISSUE = 2
_BATCH = 2000
_EPOCH = datetime(2025, 1, 1, tzinfo=UTC)
_VOCABULARY = (
    "the cache replica query client server commit branch merge issue label window limit order "
    "index page poke cookie change stream slot row table schema worker snapshot version sync "
    "latency memory pipeline operator filter join parent child update insert delete publish"
)
_WORDS = tuple(_VOCABULARY.split())

_COLUMNS: dict[str, dict[str, ColumnType]] = {
    "users": {"id": "string", "login": "string", "name": "string", "role": "string"},
    "labels": {"id": "string", "name": "string"},
    "issues": {
        "id": "string",
        "short_id": "number",
        "project": "string",
        "title": "string",
        "description": "string",
        "open": "boolean",
        "owner_id": "string",
        "votes": "number",
        "meta": "json",
        "created": "number",
        "modified": "number",
    },
    "comments": {
        "id": "string",
        "issue_id": "string",
        "author_id": "string",
        "body": "string",
        "created": "number",
    },
    "issue_labels": {"issue_id": "string", "label_id": "string"},
}


@dataclass(frozen=True)
class Sizes:
    """Rows per table at a scale."""

    issues: int
    users: int

    @classmethod
    def at(cls, scale: float) -> Sizes:
        return cls(issues=max(1000, round(100_000 * scale)), users=max(100, round(6_900 * scale)))

    @property
    def projects(self) -> int:
        return self.issues // ISSUES_PER_PROJECT

    @property
    def total(self) -> int:
        per_issue = 1 + COMMENTS_PER_ISSUE + LABELS_PER_ISSUE
        return self.users + LABELS + self.issues * per_issue


def client_schema() -> ClientSchema:
    tables = {}
    for name, columns in _COLUMNS.items():
        key = ["issue_id", "label_id"] if name == "issue_labels" else ["id"]
        typed = {column: {"type": kind} for column, kind in columns.items()}
        tables[name] = TableSchema(typed, key)
    return ClientSchema(tables)


def issue_id(number: int) -> str:
    return f"i{number:07d}"


def project_id(number: int) -> str:
    return f"p{number:04d}"


def load(url: str, scale: float) -> Sizes:
    """Create and fill the tables in an empty database."""
    sizes = Sizes.at(scale)
    here = Path(__file__).parent
    with psycopg.connect(url) as connection:
        connection.execute((here / "dataset.sql").read_bytes())
        for table, rows in tables(sizes):
            _copy(connection, table, rows)
        connection.execute((here / "dataset_indexes.sql").read_bytes())
    return sizes


def size_mb(url: str) -> float:
    """Bytes of the tables without their indexes, in MB (10^6)."""
    with psycopg.connect(url) as connection:
        row = connection.execute(
            "SELECT sum(pg_table_size(oid)) FROM pg_class"
            " WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
        ).fetchone()
    assert row is not None
    return float(row[0]) / 1e6


def _copy(connection: psycopg.Connection[Any], table: str, rows: Iterator[str]) -> None:
    statement = psycopg.sql.SQL("COPY {} FROM STDIN").format(psycopg.sql.Identifier(table))
    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        batch: list[str] = []
        for row in rows:
            batch.append(row)
            if len(batch) == _BATCH:
                copy.write("".join(batch))
                batch.clear()
        copy.write("".join(batch))


def tables(sizes: Sizes) -> Iterator[tuple[str, Iterator[str]]]:
    yield "users", _users(sizes)
    yield "labels", (f"l{n:03d}\tlabel {n}\n" for n in range(LABELS))
    yield "issues", _issues(sizes)
    yield "comments", _comments(sizes)
    yield "issue_labels", _issue_labels(sizes)


class _Prose:
    """Cheap deterministic text: slices of one long text."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self._text = " ".join(self.random.choices(_WORDS, k=20_000))

    def slice(self, low: int, high: int) -> str:
        length = low + int(self.random.random() * (high - low))
        start = int(self.random.random() * (len(self._text) - length))
        return self._text[start : start + length]


def _time(minutes: int) -> str:
    return (_EPOCH + timedelta(minutes=minutes)).isoformat(sep=" ")


def _users(sizes: Sizes) -> Iterator[str]:
    for n in range(sizes.users):
        role = "crew" if n % 10 == 0 else "user"
        yield f"u{n:05d}\tlogin{n}\tUser Number {n}\t{role}\n"


def _issues(sizes: Sizes) -> Iterator[str]:
    prose = _Prose(1)
    draw = prose.random.random
    for n in range(sizes.issues):
        owner = f"u{int(draw() * sizes.users):05d}" if draw() < 0.9 else r"\N"
        fields = (
            issue_id(n),
            str(n),
            project_id(n % sizes.projects),
            prose.slice(20, 80),
            prose.slice(100, 500),
            "t" if draw() < 0.7 else "f",
            owner,
            "0",
            f'{{"priority": {n % 5}, "tags": ["{_WORDS[n % len(_WORDS)]}"]}}',
            _time(n),
            _time(n + int(draw() * 10_000)),
        )
        yield "\t".join(fields) + "\n"


def _comments(sizes: Sizes) -> Iterator[str]:
    prose = _Prose(2)
    draw = prose.random.random
    for n in range(sizes.issues * COMMENTS_PER_ISSUE):
        # Spread over the table on purpose: the comments of an issue are not neighbours on disk.
        issue = n % sizes.issues
        author = f"u{int(draw() * sizes.users):05d}"
        yield f"c{n:07d}\t{issue_id(issue)}\t{author}\t{prose.slice(60, 380)}\t{_time(n)}\n"


def _issue_labels(sizes: Sizes) -> Iterator[str]:
    draw = random.Random(3).random
    for n in range(sizes.issues):
        first = int(draw() * LABELS)
        second = (first + 1 + int(draw() * (LABELS - 1))) % LABELS
        for label in (first, second):
            yield f"{issue_id(n)}\tl{label:03d}\n"
