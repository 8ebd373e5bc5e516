"""SQL statements of the stores, from the files beside this module.

Owns how a statement gets into the program: as it stands in its file, with identifiers and whole
statements put in where it names them. Never a value.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from psycopg import sql


@cache
def text(package: str, name: str) -> str:
    """The text of one file."""
    return files(f"view_syncer.cvr.{package}").joinpath(f"{name}.sql").read_text()


def statement(package: str, name: str, **parts: sql.Composable) -> bytes:
    """A statement for psycopg, which remembers how to send it if it is not long: so comments and
    indentation stay here."""
    lines = (line.strip() for line in text(package, name).splitlines())
    kept = "\n".join(line for line in lines if line and not line.startswith("--"))
    # Files of this package are as literal as text in a module.
    return sql.SQL(kept).format(**parts).as_bytes()
