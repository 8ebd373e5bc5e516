"""A value is stored the same way whichever path brought it (replication.md §4, §10.2 #35–#42).

The initial copy, an insert and an update in the stream are compared byte by byte, type of storage
included; for the types that clients see, what the reference server stores is compared as well.
"""

# ruff: noqa: S608 - the SQL of tests is made of constants

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import structs
from psycopg import sql

from replication_manager.pgoutput import Insert, decode
from replication_manager.signals import StopSignal
from replication_manager.table_copy import BinaryCopies, copy_tables, read_sizes
from tests.conftest import PostgresCluster
from tests.replica.reference_values import FILE
from tests.replica.values import EXTENSIONS, HIDDEN, HIDDEN_ARRAYS, SETUP, SYNCED, everything
from tests.replication_manager.conftest import RunSql
from tests.replication_manager.harness import Replicator, compare
from zerocache.postgres.introspection import read_published_schema
from zerocache.replica.copy_binary import plan_of
from zerocache.replica.copy_text import decode_rows
from zerocache.replica.published import PublishedTable
from zerocache.replica.reader import load_schema
from zerocache.replica.types import SQLiteValue, column_decoder, row_decoder

# Whatever is set for the database must not show in the replica.
HOSTILE = {
    "TimeZone": "Asia/Kathmandu",
    "DateStyle": "German",
    "IntervalStyle": "iso_8601",
    "bytea_output": "escape",
    "extra_float_digits": "-5",
    "xmloption": "content",
    "standard_conforming_strings": "on",
    "statement_timeout": "60000",
}
_INSERTED, _UPDATED = 1_000, 2_000


def _tables(values: list[tuple[str, str]]) -> dict[str, list[str]]:
    """The literals of each type, in the order in which they are listed."""
    tables: dict[str, list[str]] = {}
    for kind, value in values:
        tables.setdefault(kind, []).append(value)
    return tables


def _rows(tables: dict[str, list[str]], first: int) -> str:
    return "".join(
        f"INSERT INTO t{at} VALUES ({first + number}, {value});"
        for at, values in enumerate(tables.values())
        for number, value in enumerate(values)
    )


def _stored(replicator: Replicator, at: int, first: int) -> list[tuple[Any, ...]]:
    return replicator.rows(
        f"SELECT typeof(v), quote(v) FROM t{at} WHERE id >= ? AND id < ? ORDER BY id",
        first,
        first + 1_000,
    )


def _replicate(replicator: Replicator, run_sql: RunSql, values: list[tuple[str, str]]) -> None:
    """Bring every value to the replica by all three paths, and compare what they left there."""
    tables = _tables(values)
    run_sql(
        "".join(
            f"CREATE TABLE t{at} (id int PRIMARY KEY, v {kind});" for at, kind in enumerate(tables)
        )
        + _rows(tables, 0)
    )
    name = replicator.config.upstream.db.rsplit("/", 1)[1]
    for setting, value in HOSTILE.items():
        run_sql(f"ALTER DATABASE \"{name}\" SET {setting} = '{value}'")
    replicator.start()
    # The literals mean the same whatever the settings were.
    run_sql("SET DateStyle = 'ISO'; SET TimeZone = 'UTC';" + _rows(tables, _INSERTED))
    for at in range(len(tables)):
        run_sql(f"INSERT INTO t{at} SELECT id + {_INSERTED}, NULL FROM t{at} WHERE id >= 1000")
        run_sql(
            f"UPDATE t{at} SET v = o.v FROM t{at} o WHERE o.id = t{at}.id - {_INSERTED} "
            f"AND t{at}.id >= {_UPDATED}"
        )
    replicator.catch_up()
    for at, (kind, literals) in enumerate(tables.items()):
        copied = _stored(replicator, at, 0)
        assert len(copied) == len(literals), kind
        assert _stored(replicator, at, _INSERTED) == copied, kind
        assert _stored(replicator, at, _UPDATED) == copied, kind
    assert compare(replicator) >= 3 * len(values)


def test_every_type_by_copy_insert_and_update(replicator: Replicator, run_sql: RunSql) -> None:
    """§10.2 #35, #38, #40, #41"""
    run_sql(SETUP)
    values = everything()
    _replicate(replicator, run_sql, values)
    connection = replicator.connection()
    schema = load_schema(connection)
    connection.close()
    for at, kind in enumerate(_tables(values)):
        seen = schema[f"t{at}"].columns["v"].client_type
        if kind in HIDDEN:
            assert seen is None, kind
        elif kind.endswith("[]") or kind in HIDDEN_ARRAYS:
            assert seen == "json", kind
        else:
            assert seen in ("string", "number", "boolean", "json"), kind
    at = list(_tables(values)).index("int8")
    # Beyond what a double holds, and exact.
    assert replicator.rows(f"SELECT v FROM t{at} WHERE v = 9007199254740993")


def test_types_of_extensions(replicator: Replicator, run_sql: RunSql, database: str) -> None:
    with psycopg.connect(database) as connection:
        names = {name for (name,) in connection.execute("SELECT name FROM pg_available_extensions")}
    present = [name for name in EXTENSIONS if name in names]
    for name in present:
        run_sql(f"CREATE EXTENSION {name}")
    # At least one that any build has: a type that its own input function defines.
    run_sql("CREATE TYPE celsius; CREATE FUNCTION celsius_in(cstring) RETURNS celsius LANGUAGE "
            "internal IMMUTABLE STRICT AS 'int4in'; CREATE FUNCTION celsius_out(celsius) RETURNS "
            "cstring LANGUAGE internal IMMUTABLE STRICT AS 'int4out'; CREATE TYPE celsius (INPUT "
            "= celsius_in, OUTPUT = celsius_out, INTERNALLENGTH = 4, PASSEDBYVALUE, ALIGNMENT = "
            "int4)")  # fmt: skip
    values = [pair for name in present for pair in EXTENSIONS[name]]
    _replicate(replicator, run_sql, [*values, ("celsius", "'-5'"), ("celsius[]", "'{1,NULL}'")])


def test_synced_types_are_stored_as_the_reference_server_does(
    replicator: Replicator, run_sql: RunSql
) -> None:
    """Where its two paths disagree, one of them is right; see reference_values.json."""
    recorded: dict[str, list[dict[str, Any]]] = json.loads(FILE.read_text())
    assert recorded.keys() == SYNCED.keys()
    run_sql(SETUP)
    values = [(kind, literal) for kind, literals in SYNCED.items() for literal in literals]
    _replicate(replicator, run_sql, values)
    for at, (kind, pairs) in enumerate(recorded.items()):
        ours = replicator.rows(f"SELECT v FROM t{at} WHERE id < 1000 ORDER BY id")
        for (value,), pair in zip(ours, pairs, strict=True):
            theirs = {_meaning(kind, pair[path][1]) for path in ("copied", "streamed")}
            assert _meaning(kind, value) in theirs, (kind, pair["value"])


def _meaning(kind: str, value: Any) -> Any:
    """``value`` as a client gets it: the reference's files bring numbers back in other types."""
    if kind.endswith("[]"):
        return json.dumps(json.loads(value))
    if kind in ("json", "jsonb"):
        document = json.loads(str(value))
        # It stores JSON numbers as numbers: 1.0 comes back as 1, long ones with less digits.
        return float(document) if isinstance(document, int | float) else str(value)
    if isinstance(value, str) and _is_number(kind):
        return float(value)
    return value if isinstance(value, str) else float(value)


def _is_number(kind: str) -> bool:
    numbers = ("int", "float", "numeric", "bool", "date", "time")
    return kind.startswith(numbers)


# --- random values -------------------------------------------------------------------------------

_characters = st.characters(exclude_characters="\x00", exclude_categories=["Cs"])
texts = st.one_of(
    st.text(_characters, max_size=12), st.sampled_from(["NULL", "\\N", "\\", "{}", '"', "\t\n\r"])
)
documents = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, width=32), texts),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)
    ),
    max_leaves=6,
).filter(lambda document: "\\u0000" not in json.dumps(document) and "Infinity" not in
         json.dumps(document))  # fmt: skip
moments = st.one_of(
    st.datetimes().map(str),
    st.sampled_from(["infinity", "-infinity", "4713-01-01 00:00:00 BC", "294276-12-31 23:59:59"]),
    st.tuples(st.integers(1, 4000), st.integers(1, 12)).map(
        lambda pair: f"{pair[0]:04}-{pair[1]:02}-15 12:00:00.000001 BC"
    ),
)
offsets = st.tuples(st.sampled_from("+-"), st.integers(0, 15), st.integers(0, 59)).map(
    lambda parts: f"{parts[0]}{parts[1]:02}:{parts[2]:02}"
)
clock = st.times().map(str)
decimals = st.one_of(
    st.decimals(allow_nan=False, allow_infinity=False, max_value=10**30, min_value=-(10**30)),
    st.sampled_from([Decimal("NaN"), Decimal("Infinity"), Decimal("-Infinity")]),
    st.integers(-(10**40), 10**40).map(Decimal),
)


def _lists(elements: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(st.one_of(st.none(), elements), max_size=4)


COLUMNS: dict[str, st.SearchStrategy[Any]] = {
    "int2": st.integers(-(2**15), 2**15 - 1),
    "int8": st.integers(-(2**63), 2**63 - 1),
    "float4": st.floats(width=32),
    "float8": st.floats(),
    "numeric": decimals,
    "bool": st.booleans(),
    "text": texts,
    "varchar": texts,
    "char(4)": st.text(_characters, max_size=4),
    "uuid": st.uuids().map(str),
    "inet": st.ip_addresses().map(str),
    "json": documents.map(json.dumps),
    "jsonb": documents.map(json.dumps),
    "date": moments.map(lambda moment: moment.replace(" 00:00:00", "").split(".")[0]),
    "timestamp": moments,
    "timestamptz": moments,
    "time": clock,
    "timetz": st.tuples(clock, offsets).map("".join),
    "bytea": st.binary(max_size=20),
    "interval": st.timedeltas().map(lambda span: f"{span.days} days {span.seconds} seconds"),
    "int4[]": _lists(st.integers(-(2**31), 2**31 - 1)),
    "text[]": _lists(texts),
    "float8[]": _lists(st.floats()),
    "numeric[]": _lists(decimals),
    "bool[]": _lists(st.booleans()),
    "jsonb[]": _lists(documents.map(json.dumps)),
    "timestamptz[]": _lists(moments),
    "bytea[]": _lists(st.binary(max_size=5)),
}
PEEK = """
    SELECT data FROM pg_logical_slot_get_binary_changes(
        %s, NULL, NULL, 'proto_version', '1', 'publication_names', 'pub', 'messages', 'true')
"""


def test_random_values_by_copy_and_stream(database: str, app_id: str) -> None:
    options = "-c TimeZone=UTC -c DateStyle=ISO -c bytea_output=hex -c extra_float_digits=1"
    with psycopg.connect(database, autocommit=True, options=options) as connection:
        names = [f"c{at}" for at in range(len(COLUMNS))]
        columns = ", ".join(f"{name} {kind}" for name, kind in zip(names, COLUMNS, strict=True))
        connection.execute(f"CREATE TABLE t ({columns})".encode())
        connection.execute("CREATE PUBLICATION pub FOR TABLE t")
        connection.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [app_id])
        (table,) = read_published_schema(connection, ["pub"]).tables
        decoders = [column_decoder(column) for column in table.columns]
        stream = row_decoder(decoders)
        exact = structs.replace(
            table,
            columns=tuple(
                column
                for column in table.columns
                if plan_of(structs.replace(table, columns=(table.columns[0], column)))
            ),
        )
        assert len(exact.columns) > len(COLUMNS) / 2
        casts = ", ".join(f"%s::text::{kind}" if "[" not in kind and kind != "bytea" else
                          f"%s::{kind}" for kind in COLUMNS)  # fmt: skip
        insert = f"INSERT INTO t VALUES ({casts})".encode()

        @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
        @given(st.tuples(*(st.one_of(st.none(), one) for one in COLUMNS.values())))
        def check(row: tuple[Any, ...]) -> None:
            connection.execute("TRUNCATE t")
            connection.execute(insert, row)
            with connection.cursor() as cursor, cursor.copy("COPY t TO STDOUT") as copy:
                (copied,) = decode_rows(b"".join(copy)[:-1], decoders)
            assert repr(_copied_in_binary(connection, exact)) == repr(
                [copied[at] for at, column in enumerate(table.columns) if column in exact.columns]
            )
            payloads = [bytes(data) for (data,) in connection.execute(PEEK, [app_id])]
            (new,) = (one.new for one in map(decode, payloads) if isinstance(one, Insert))
            streamed = stream(new)
            assert repr(list(copied)) == repr(streamed)

        check()


def _copied_in_binary(
    connection: psycopg.Connection[Any], table: PublishedTable
) -> list[SQLiteValue]:
    """The values of the only row."""
    plan = plan_of(table)
    assert plan is not None
    copied: list[SQLiteValue] = []
    never = StopSignal()
    copy_tables(
        connection.info.dsn, [connection], [table], read_sizes(connection, [table]), _refuse, never,
        BinaryCopies({table.oid: plan}, lambda _table, values, _rows, _size: copied.extend(values)),
    )  # fmt: skip
    never.close()
    return copied


def _refuse(table: PublishedTable, _lines: bytes, _count: int) -> None:
    raise AssertionError(f"{table.wire_name} was copied as text")


# --- random identifiers --------------------------------------------------------------------------

_words = st.sampled_from(
    ["transaction", "trigger", "index", "select", "order", "Group", "rowid", "oid", "user", "a-b"]
)
_name = st.from_regex(r"[A-Za-z_][A-Za-z0-9_-]{0,20}", fullmatch=True)
_anything = st.text(_characters, min_size=1, max_size=12).filter(
    lambda name: len(name.encode()) < 60
)


def _distinct(names: list[str]) -> bool:
    folded = [name.lower() for name in names]
    return len(set(folded)) == len(folded)


def _is_free(name: str) -> bool:
    # The replica's own column, SQLite's name for the row number, and SQLite's own tables.
    return name.lower() not in ("_0_version", "_rowid_") and not name.lower().startswith("sqlite_")


def test_random_identifiers(
    new_replicator: Callable[..., Replicator], postgres: PostgresCluster, database: str
) -> None:
    """§10.2 #17–#19: types, labels and indexes have any name, tables and columns plain ones."""
    made: list[tuple[str, str]] = []

    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        st.one_of(_name, _words).filter(_is_free),
        st.lists(st.one_of(_name, _words, st.just("a.b")).filter(_is_free), min_size=2, max_size=5)
        .filter(_distinct),
        _anything,
        st.lists(_anything, min_size=1, max_size=3, unique=True),
    )  # fmt: skip
    def create(schema: str, columns: list[str], other: str, labels: list[str]) -> None:
        number = len(made)
        table, kind = f"{schema}", f"{other}{number}"
        place = f"s{number}-{schema}"
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(place)))
            connection.execute(
                sql.SQL("CREATE TYPE {} AS ENUM ({})").format(
                    sql.Identifier(place, kind), sql.SQL(", ").join(map(sql.Literal, labels))
                )
            )
            body = [
                sql.SQL("{} int PRIMARY KEY").format(sql.Identifier(columns[0])),
                *(
                    sql.SQL("{} {}").format(sql.Identifier(name), sql.Identifier(place, kind))
                    for name in columns[1:]
                ),
            ]
            connection.execute(
                sql.SQL("CREATE TABLE {} ({})").format(
                    sql.Identifier(place, table), sql.SQL(", ").join(body)
                )
            )
            connection.execute(
                sql.SQL("CREATE INDEX {} ON {} ({})").format(
                    sql.Identifier(f"{number}{other}"),
                    sql.Identifier(place, table),
                    sql.Identifier(columns[1]),
                )
            )
        made.append((place, table))
        _insert(database, place, table, 1, labels, len(columns))

    create()
    with psycopg.connect(database) as connection:
        connection.execute(
            sql.SQL("CREATE PUBLICATION every FOR TABLE {}").format(
                sql.SQL(", ").join(sql.Identifier(*pair) for pair in made)
            )
        )
    replicator = new_replicator()
    config = replicator.config
    replicator.config = config.model_copy(
        update={"app": config.app.model_copy(update={"publications": ("every",)})}
    )
    replicator.start()
    with psycopg.connect(database) as connection:
        for pair in made:
            (key, *rest) = _column_names(connection, *pair)
            connection.execute(
                sql.SQL("INSERT INTO {} SELECT {} + 1, {} FROM {}").format(
                    sql.Identifier(*pair),
                    sql.Identifier(key),
                    sql.SQL(", ").join(map(sql.Identifier, rest)),
                    sql.Identifier(*pair),
                )
            )
            connection.execute(
                sql.SQL("UPDATE {} SET {} = {} + 10").format(
                    sql.Identifier(*pair), sql.Identifier(key), sql.Identifier(key)
                )
            )
    replicator.catch_up()
    assert compare(replicator) >= 2 * len(made)


def _insert(
    database: str, schema: str, table: str, key: int, labels: list[str], columns: int
) -> None:
    values = [key, *(labels[at % len(labels)] for at in range(columns - 1))]
    with psycopg.connect(database) as connection:
        connection.execute(
            sql.SQL("INSERT INTO {} VALUES ({})").format(
                sql.Identifier(schema, table), sql.SQL(", ").join(map(sql.Literal, values))
            )
        )


def _column_names(connection: psycopg.Connection[Any], schema: str, table: str) -> list[str]:
    rows = connection.execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = format('%%I.%%I', %s::text, "
        "%s::text)::regclass AND attnum > 0 ORDER BY attnum",
        [schema, table],
    )
    return [name for (name,) in rows]


@pytest.mark.parametrize("name", ["a/b", "größe", "1st", 'quo"te', "two words", "a.b"])
def test_tables_with_other_names_are_refused(
    replicator: Replicator, database: str, name: str
) -> None:
    """§10.2 #17: and nothing is left behind."""
    with psycopg.connect(database) as connection:
        connection.execute(
            sql.SQL("CREATE TABLE {} (id int PRIMARY KEY)").format(sql.Identifier(name))
        )
    replicator.start(wait=False)
    message = replicator.next_message("fatal")
    assert message["exit"] == 78
    assert "ZC118" in message["message"]
    with psycopg.connect(database) as connection:
        left = "SELECT (SELECT count(*) FROM pg_publication), (SELECT count(*) FROM pg_namespace "
        left += "WHERE nspname LIKE %s), (SELECT count(*) FROM pg_event_trigger)"
        assert connection.execute(left.encode(), [replicator.config.app.id + "%"]).fetchone() == (
            0, 0, 0,
        )  # fmt: skip
