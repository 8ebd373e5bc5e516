"""The errors for values that the replica cannot take, on whichever path they come.

Owns their wording: they name the table, never a value. Leaving such a row out would make the
replica wrong, so each of them ends the copy or the stream, which is then tried again.
"""

from __future__ import annotations

import apsw

from zerocache.errors import ReplicationError

_ADVICE = "take it out of the publication, or take the column out by a column list"


def refused(error: ValueError | apsw.TooBigError, table: str) -> ReplicationError:
    """What to raise for ``error``, ``from None``: its text may quote a value."""
    if isinstance(error, apsw.TooBigError):
        return ReplicationError(
            f"a row of table {table} is larger than SQLite can hold (1,000,000,000 bytes): the "
            f"table cannot be replicated; make the value smaller, or {_ADVICE}",
            code="ZC239",
        )
    return ReplicationError(
        f"a value of table {table} cannot be read as its type says: leaving the row out would make "
        f"the replica wrong; report this as a bug (it is tried again), or {_ADVICE}",
        code="ZC235",
    )
