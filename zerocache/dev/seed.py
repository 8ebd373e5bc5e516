"""The rows the demo starts with: a small team, two thousand issues and what was said about them.

Owns the content of a fresh demo database. It must never touch a database that has an ``issue``
table already. Invariant: the rows are the same on every machine, and they exist all or not at all
(one transaction).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import LiteralString

import psycopg
from psycopg import sql

ISSUES = 2000
# Every so many issues one has no comments, so that NOT EXISTS has something to find.
_SILENT_EVERY = 15
_NEWEST = datetime(2026, 1, 31, 18, 0, tzinfo=UTC)

_USERS = (
    ("Ada", "#c2410c"),
    ("Grace", "#0f766e"),
    ("Linus", "#1d4ed8"),
    ("Margaret", "#7e22ce"),
    ("Dennis", "#a16207"),
    ("Barbara", "#be123c"),
    ("Edsger", "#15803d"),
    ("Radia", "#0369a1"),
)
_LABELS = (
    ("bug", "#dc2626"),
    ("feature", "#2563eb"),
    ("performance", "#d97706"),
    ("docs", "#059669"),
    ("security", "#9333ea"),
    ("good first issue", "#0891b2"),
)
_WHAT = (
    "Search box",
    "Login page",
    "Import",
    "Export to CSV",
    "Dark mode",
    "Keyboard shortcut",
    "Notification",
    "Mobile layout",
    "Date picker",
    "Sync indicator",
)
_PROBLEM = (
    "loses focus after a reload",
    "is slow with many rows",
    "needs a better empty state",
    "shows the wrong time zone",
    "does not work offline",
    "should remember the last choice",
    "fails for names with accents",
    "has no test",
)
_REMARKS = (
    "I can reproduce this.",
    "Could not reproduce; which version is this?",
    "A customer asked about it today.",
    "Let us do it after the release.",
    "The fix is simple, I will take it.",
    "Works for me since yesterday.",
)

_Row = tuple[object, ...]


async def seed(url: str) -> bool:
    """Create and fill the demo tables; False if they exist."""
    async with await psycopg.AsyncConnection.connect(url) as connection:
        cursor = await connection.execute("SELECT to_regclass('public.issue') IS NOT NULL")
        row = await cursor.fetchone()
        if row is not None and row[0]:
            return False
        schema = Path(__file__).with_name("demo_schema.sql").read_text()
        await connection.execute(schema.encode())
        for table, columns, rows in _content():
            await _copy(connection, table, columns, rows)
        return True


async def _copy(
    connection: psycopg.AsyncConnection[tuple[object, ...]],
    table: LiteralString,
    columns: tuple[LiteralString, ...],
    rows: Iterable[_Row],
) -> None:
    statement = sql.SQL("COPY {} ({}) FROM STDIN").format(
        sql.Identifier(table), sql.SQL(", ").join(map(sql.Identifier, columns))
    )
    async with connection.cursor().copy(statement) as copy:
        for row in rows:
            await copy.write_row(row)


def _content() -> Iterator[tuple[LiteralString, tuple[LiteralString, ...], Iterable[_Row]]]:
    """Tables in the order of their foreign keys."""
    dice = random.Random(18)
    yield "user", ("id", "name", "color"), _numbered("u", _USERS)
    yield "label", ("id", "name", "color"), _numbered("l", _LABELS)
    issue_columns = (
        "id",
        "title",
        "description",
        "open",
        "priority",
        "creator_id",
        "assignee_id",
        "created_at",
        "modified_at",
    )
    yield "issue", issue_columns, [_issue(dice, number) for number in range(1, ISSUES + 1)]
    comment_columns = ("id", "issue_id", "author_id", "body", "created_at")
    yield "comment", comment_columns, list(_comments(dice))
    yield "issue_label", ("issue_id", "label_id"), list(_issue_labels(dice))


def _numbered(prefix: str, rows: Iterable[tuple[str, str]]) -> list[_Row]:
    return [(f"{prefix}{number}", *row) for number, row in enumerate(rows, start=1)]


def _created(number: int) -> datetime:
    """Issues follow each other every half hour; the highest number is the newest."""
    return _NEWEST - timedelta(minutes=30 * (ISSUES - number))


def _user(dice: random.Random) -> str:
    return f"u{dice.randint(1, len(_USERS))}"


def _issue(dice: random.Random, number: int) -> _Row:
    title = f"{dice.choice(_WHAT)} {dice.choice(_PROBLEM)}"
    assignee = _user(dice) if dice.random() < 0.6 else None
    created = _created(number)
    return (
        f"i{number}",
        title,
        f"Seen on {created:%A}. Expected it to behave like the rest of the application.",
        dice.random() < 0.7 or number == ISSUES,  # the one that the terminal suggests to change
        dice.choice(("low", "medium", "high")),
        _user(dice),
        assignee,
        created,
        created + timedelta(minutes=dice.randint(0, 29)),
    )


def _comments(dice: random.Random) -> Iterator[_Row]:
    number = 0
    for issue in range(1, ISSUES + 1):
        spoken = 0 if issue % _SILENT_EVERY == 0 else dice.randint(1, 4)
        for position in range(spoken):
            number += 1
            written = _created(issue) + timedelta(minutes=5 * position + 1)
            yield f"c{number}", f"i{issue}", _user(dice), dice.choice(_REMARKS), written


def _issue_labels(dice: random.Random) -> Iterator[_Row]:
    for issue in range(1, ISSUES + 1):
        for label in dice.sample(range(1, len(_LABELS) + 1), k=dice.randint(0, 2)):
            yield f"i{issue}", f"l{label}"
