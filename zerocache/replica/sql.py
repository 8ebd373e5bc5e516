"""The one place where identifiers and literals become SQLite text.

Every module that builds SQLite statements quotes through these functions, and only what went
through them may be interpolated (ruff S608 is suppressed on that ground alone). Values of rows are
never written into SQL; they are bound.
"""

from __future__ import annotations

from collections.abc import Iterable

_TERMS_PER_GROUP = 100


def quote(identifier: str) -> str:
    """``identifier`` as a quoted SQLite name; ``ValueError`` for names SQLite cannot hold."""
    if not identifier or "\x00" in identifier:
        raise ValueError(f"{identifier!r} cannot be an SQLite identifier: it is empty or has a NUL")
    return '"' + identifier.replace('"', '""') + '"'


def quote_all(identifiers: Iterable[str]) -> str:
    """A comma-separated list of quoted names."""
    return ", ".join(map(quote, identifiers))


def literal(text: str) -> str:
    """``text`` as an SQLite string literal; for constants such as a watermark, not for row data."""
    if "\x00" in text:
        raise ValueError(f"{text!r} cannot be an SQLite literal: it contains a NUL")
    return "'" + text.replace("'", "''") + "'"


def placeholders(count: int) -> str:
    """``count`` comma-separated question marks."""
    return ", ".join("?" * count)


def equals_all(columns: Iterable[str]) -> str:
    """A condition that binds one value per column and treats NULL as equal to NULL.

    ``IS`` uses indexes just as ``=`` does, and a key whose value the replica cannot represent
    (a float NaN) is stored as NULL and must still be found. Many columns are grouped, because
    SQLite limits how deep an expression may be, and a chain of ANDs is as deep as it is long.
    """
    terms = [f"{quote(column)} IS ?" for column in columns]
    while len(terms) > _TERMS_PER_GROUP:
        groups = range(0, len(terms), _TERMS_PER_GROUP)
        terms = [f"({' AND '.join(terms[at : at + _TERMS_PER_GROUP])})" for at in groups]
    return " AND ".join(terms)
