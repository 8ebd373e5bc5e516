"""Random DDL and DML against a schema that is read back from the database.

Owns what the fuzzer of schema changes may do upstream. Statements may fail, and often do: the
scenario undoes those alone. Left out is what the stream cannot carry at all: TRUNCATE of a single
partition, and rows that follow a change nobody announced.
"""

# ruff: noqa: S608 - statements are made of names this file invents

from __future__ import annotations

import random
from dataclasses import dataclass

import psycopg

TYPES = ("int", "bigint", "text", "numeric", "timestamptz", "jsonb", "int[]", "varchar(40)",
         "char(6)", "bool", "uuid", "float8", "numeric(9,2)", "date")  # fmt: skip
VALUES = {
    "int": ("7", "length(md5(random()::text))"),
    "bigint": ("-1", "3"),
    "text": ("'it''s'", "md5(random()::text)"),
    "numeric": ("1.5", "random()"),
    "timestamptz": ("now()", "clock_timestamp()"),
    "jsonb": ("'{\"a\": 1}'", "'null'"),
    "int[]": ("'{1,NULL}'", "'{}'"),
    "varchar(40)": ("'v'", "'w'"),
    "char(6)": ("'c'", "'d '"),
    "bool": ("true", "random() < 0.5"),
    "uuid": ("gen_random_uuid()", "'00000000-0000-0000-0000-000000000001'"),
    "float8": ("'-0'", "random()"),
    "numeric(9,2)": ("2.25", "random()"),
    "date": ("current_date", "'0044-03-15 BC'"),
}
SCHEMAS = "'public', 'away', 'far'"


@dataclass(frozen=True, slots=True)
class Table:
    """``name`` is quoted and qualified."""

    name: str
    is_partition: bool
    is_partitioned: bool


class Statements:
    """Draws one statement after the other; ``parts``: a publication it may alter, or None.

    ``hidden`` wraps a change so that only the manual hook announces it.
    """

    def __init__(
        self, db: psycopg.Connection[tuple[object, ...]], seed: str, app_id: str, parts: str | None
    ) -> None:
        self._db = db
        self._app_id = app_id
        self._parts = parts
        self._number = 0
        self.rng = random.Random(seed)

    def name(self, prefix: str) -> str:
        self._number += 1
        return f"{prefix}{self._number}"

    def tables(self) -> list[Table]:
        rows = self._db.execute(
            "SELECT format('%I.%I', nspname, relname), relispartition, relkind = 'p' "
            "FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace "
            f"WHERE nspname IN ({SCHEMAS}) AND relkind IN ('r', 'p') ORDER BY 1"
        )
        return [Table(str(name), bool(leaf), bool(root)) for name, leaf, root in rows]

    def _columns(self, table: Table) -> list[tuple[str, str]]:
        rows = self._db.execute(
            "SELECT format('%%I', attname), format_type(atttypid, atttypmod) FROM pg_attribute "
            "WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
            [table.name],
        )
        return [(str(name), str(kind)) for name, kind in rows]

    def _objects(self, query: str) -> list[str]:
        return [str(name) for (name,) in self._db.execute(query.encode())]

    def setup(self) -> list[str]:
        publication = "" if self._parts is None else f"CREATE PUBLICATION {self._parts}"
        root = self.rng.choice(("", " WITH (publish_via_partition_root = true)"))
        made = [
            "CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE SCHEMA away;"
            "CREATE DOMAIN age AS int DEFAULT 3; CREATE TABLE base (id int PRIMARY KEY, a text);"
            "INSERT INTO base SELECT i, 'a' || i FROM generate_series(1, 40) i"
        ]
        if publication:
            made.append(f"{publication} FOR TABLE base{root}")
        if self.rng.random() < 0.3:
            made.append(_NESTED)
        if self.rng.random() < 0.4:
            made.append(_TREE)
        return made

    def ddl(self) -> str:
        rng, tables = self.rng, self.tables()
        if len(tables) < 2 or (len(tables) < 8 and rng.random() < 0.15):
            return self._create(tables)
        draw = rng.random()
        if draw < 0.10:
            return self._of_types()
        if draw < 0.20:
            return self._of_schemas(rng.choice(tables))
        if draw < 0.32:
            return self._of_partitions(tables)
        if draw < 0.45 and self._parts is not None:
            return self._of_publication(rng.choice(tables))
        statement = self._of_table(rng.choice(tables))
        if rng.random() < 0.06:
            return self._hidden(statement)
        if rng.random() < 0.06:
            return f"DO $do$ BEGIN EXECUTE $x${statement}$x$; END $do$"
        return statement

    def plain(self) -> str:
        """A statement that must not be in a transaction."""
        table = self.rng.choice(self.tables())
        columns = self._columns(table) or [("id", "int")]
        indexes = self._indexes() or ["nothing"]
        return self.rng.choice(
            (
                f"CREATE UNIQUE INDEX CONCURRENTLY ON {table.name} ({self.rng.choice(columns)[0]})",
                f"DROP INDEX CONCURRENTLY {self.rng.choice(indexes)}",
                f"REINDEX TABLE CONCURRENTLY {table.name}",
                f"VACUUM FULL {table.name}",
                f"ALTER TABLE {table.name} ADD {self.name('c')} int DEFAULT 1",
            )
        )

    def _indexes(self) -> list[str]:
        return self._objects(
            "SELECT format('%I.%I', schemaname, indexname) FROM pg_indexes "
            f"WHERE schemaname IN ({SCHEMAS}) ORDER BY 1"
        )

    def _create(self, tables: list[Table]) -> str:
        name, rng = self.name("t"), self.rng
        kind = rng.choice(TYPES)
        choices = [f"CREATE TABLE {name} (id int PRIMARY KEY, a text, b {kind})"] * 3
        choices.append(
            f"CREATE TABLE {name} (id int PRIMARY KEY, a text DEFAULT 'p') PARTITION BY RANGE (id);"
            f"CREATE TABLE {name}_0 PARTITION OF {name} FOR VALUES FROM (0) TO (150);"
            f"CREATE TABLE {name}_d PARTITION OF {name} DEFAULT"
        )
        choices.append(f"CREATE TABLE {name} (id int NOT NULL UNIQUE, m mood DEFAULT 'sad', g age)")
        choices.append(f"CREATE SCHEMA {self.name('s')} CREATE TABLE {name} (id int PRIMARY KEY)")
        if tables:
            choices.append(f"CREATE TABLE {name} AS SELECT * FROM {rng.choice(tables).name}")
        return rng.choice(choices)

    def _of_types(self) -> str:
        labels = self._objects(
            "SELECT quote_literal(enumlabel) FROM pg_enum WHERE enumtypid = 'mood'::regtype"
        )
        return self.rng.choice(
            (
                f"ALTER TYPE mood ADD VALUE '{self.name('m')}'",
                f"ALTER TYPE mood RENAME VALUE {self.rng.choice(labels)} TO '{self.name('m')}'",
                f"ALTER TYPE mood RENAME TO {self.name('was')}; "
                "CREATE TYPE mood AS ENUM ('sad', 'ok')",
                "DROP TYPE mood CASCADE; CREATE TYPE mood AS ENUM ('ok', 'sad')",
                "DROP DOMAIN age CASCADE; CREATE DOMAIN age AS int DEFAULT 4",
                "ALTER DOMAIN age SET DEFAULT 5",
            )
        )

    def _of_schemas(self, table: Table) -> str:
        relation = table.name.split(".")[-1]
        return self.rng.choice(
            (
                f"ALTER TABLE {table.name} SET SCHEMA away",
                f"ALTER TABLE away.{relation} SET SCHEMA public",
                "ALTER SCHEMA away RENAME TO far; CREATE SCHEMA away",
                "DROP SCHEMA far CASCADE",
                f"CREATE VIEW {self.name('v')} AS SELECT * FROM {table.name}",
                f"DROP TABLE {table.name} CASCADE",
            )
        )

    def _of_partitions(self, tables: list[Table]) -> str:
        roots = [table for table in tables if table.is_partitioned]
        leaves = [table for table in tables if table.is_partition]
        if not roots or not leaves:
            return self._create(tables)
        root, leaf, other = (self.rng.choice(some) for some in (roots, leaves, tables))
        name = self.name("t")
        bounds = self.rng.choice(("FOR VALUES FROM (0) TO (150)", "DEFAULT"))
        return self.rng.choice(
            (
                f"ALTER TABLE {root.name} DETACH PARTITION {leaf.name}",
                f"ALTER TABLE {root.name} DETACH PARTITION {leaf.name}",
                f"ALTER TABLE {root.name} ATTACH PARTITION {other.name} {bounds}",
                f"ALTER TABLE {root.name} ATTACH PARTITION {other.name} {bounds}",
                f"CREATE TABLE {name} PARTITION OF {root.name} {bounds}",
                f"CREATE TABLE {name} PARTITION OF {root.name} {bounds} PARTITION BY RANGE (id);"
                f"CREATE TABLE {name}_d PARTITION OF {name} DEFAULT",
                f"CREATE TABLE {name} (LIKE {root.name} INCLUDING ALL) PARTITION BY RANGE (id);"
                f"CREATE TABLE {name}_0 PARTITION OF {name} FOR VALUES FROM (0) TO (100);"
                f"CREATE TABLE {name}_d PARTITION OF {name} DEFAULT",
                f"DROP TABLE {leaf.name}",
                f"TRUNCATE {root.name}",
            )
        )

    def _of_publication(self, table: Table) -> str:
        columns = [name for name, _ in self._columns(table)]
        some = ", ".join(name for name in columns if name == "id" or self.rng.random() < 0.6)
        clause = self.rng.choice(
            (
                "",
                "",
                f" WHERE (id > {self.rng.randint(0, 100)})",
                f" ({some})",
                f" ({some}) WHERE (id > {self.rng.randint(0, 100)})",
            )
        )
        alter = f"ALTER PUBLICATION {self._parts}"
        return self.rng.choice(
            (
                f"{alter} ADD TABLE {table.name}{clause}",
                f"{alter} ADD TABLE {table.name}{clause}",
                f"{alter} DROP TABLE {table.name}; {alter} ADD TABLE {table.name}{clause}",
                f"{alter} DROP TABLE {table.name}",
            )
        )

    def _of_table(self, table: Table) -> str:
        columns, rng = self._columns(table), self.rng
        alter = f"ALTER TABLE {table.name}"
        if len(columns) < 2:  # a table without columns says nothing
            return f"{alter} ADD {self.name('c')} {rng.choice(TYPES)}"
        column, kind = rng.choice(columns)
        new, new_kind = self.name("c"), rng.choice(TYPES)
        if rng.random() < 0.06:
            return rng.choice((f"DROP TABLE {table.name}", self._truncate(table)))
        default = rng.choice(("", f" DEFAULT {rng.choice(VALUES[new_kind])}"))
        return rng.choice(
            (
                f"{alter} ADD {new} {new_kind}{default}",
                f"{alter} ADD {new} {new_kind}{default}",
                f"{alter} ADD {new} {new_kind}{default}, DROP {column}",
                f"{alter} ADD {new} serial",
                f"{alter} ADD {new} mood DEFAULT 'sad'",
                f"{alter} ADD {new} age",
                f"{alter} ADD {new} text GENERATED ALWAYS AS (id::text || 'g') STORED",
                f"{alter} ALTER {column} DROP EXPRESSION",
                f"{alter} ALTER {column} SET EXPRESSION AS ('s' || id::text)",
                f"{alter} DROP {column}",
                f"{alter} DROP {column} CASCADE",
                f"{alter} RENAME {column} TO {new}",
                f"{alter} ALTER {column} TYPE {new_kind} USING {column}::text::{new_kind}",
                f"{alter} ALTER {column} TYPE text",
                f"{alter} ALTER {column} TYPE bigint",
                f"{alter} ALTER {column} TYPE numeric(9,2)",
                f"{alter} ALTER {column} TYPE {kind} USING {column}",
                f"{alter} ALTER {column} SET NOT NULL",
                f"{alter} ALTER {column} DROP NOT NULL",
                f"{alter} ALTER {column} SET DEFAULT NULL",
                f"{alter} RENAME TO {self.name('t')}",
                f"{alter} REPLICA IDENTITY {rng.choice(('DEFAULT', 'FULL'))}",
                f"{alter} ADD PRIMARY KEY ({column})",
                f"CREATE INDEX ON {table.name} ({column} DESC)",
                f"CREATE UNIQUE INDEX ON {table.name} ({column})",
                f"DROP INDEX {rng.choice(self._indexes() or ['nothing'])} CASCADE",
                f"ALTER INDEX {rng.choice(self._indexes() or ['nothing'])} RENAME TO "
                f"{self.name('i')}",
                self._drop_constraint(table),
            )
        )

    def _drop_constraint(self, table: Table) -> str:
        names = self._objects(
            "SELECT format('%I', conname) FROM pg_constraint "
            f"WHERE conrelid = '{table.name}'::regclass AND contype IN ('p', 'u')"
        )
        name = self.rng.choice(names or ["nothing"])
        return f"ALTER TABLE {table.name} DROP CONSTRAINT {name} CASCADE"

    def _truncate(self, table: Table) -> str:
        return "SELECT 1" if table.is_partition else f"TRUNCATE {table.name}"

    def _hidden(self, statement: str) -> str:
        triggers = [f"{self._app_id}_ddl_{when}_0" for when in ("start", "end", "rewrite")]
        off = "; ".join(f"ALTER EVENT TRIGGER {name} DISABLE" for name in triggers)
        on = "; ".join(f"ALTER EVENT TRIGGER {name} ENABLE" for name in triggers)
        hook = f'SELECT "{self._app_id}_0".update_schemas()'
        if self._parts is not None and self.rng.random() < 0.3:
            # The other hook, which is a trigger.
            return f"{off}; {statement}; {on}; COMMENT ON PUBLICATION {self._parts} IS 'changed'"
        return f"{off}; {statement}; {hook}; {on}"

    def dml(self) -> str:
        tables, rng = self.tables(), self.rng
        if not tables:
            return self._create(tables)
        table = rng.choice(tables)
        columns = dict(self._columns(table))
        at = rng.randint(0, 300)
        if "id" not in columns:
            return f"INSERT INTO {table.name} DEFAULT VALUES"
        if rng.random() < 0.5:
            count = rng.choice((1, 3, 100))
            body = f", a) SELECT i, repeat('{at}', {rng.choice((1, 3000))})"
            body = body if columns.get("a") == "text" else ") SELECT i"
            return (
                f"INSERT INTO {table.name} (id{body} FROM generate_series({at}, {at + count}) i "
                "ON CONFLICT DO NOTHING"
            )
        column = rng.choice(list(columns))
        value = rng.choice(VALUES.get(columns[column], ("NULL",)))
        where = f"id::text::int BETWEEN {at} AND {at + 20}"
        return rng.choice(
            (
                f"UPDATE {table.name} SET {column} = {value} WHERE {where}",
                f"UPDATE {table.name} SET {column} = {column} WHERE {where}",
                f"UPDATE {table.name} SET id = -id WHERE {where}",
                f"DELETE FROM {table.name} WHERE {where}",
            )
        )


_TREE = """
CREATE TABLE root (id int PRIMARY KEY, a text) PARTITION BY RANGE (id);
CREATE TABLE near PARTITION OF root FOR VALUES FROM (0) TO (100);
CREATE TABLE sub PARTITION OF root FOR VALUES FROM (100) TO (250) PARTITION BY RANGE (id);
CREATE TABLE leaf PARTITION OF sub FOR VALUES FROM (100) TO (200);
CREATE TABLE rest PARTITION OF sub DEFAULT;
INSERT INTO root SELECT i, 'r' || i FROM generate_series(50, 220) i
"""

# What some hosts do: each new table gets row level security, by a trigger that fires before ours.
_NESTED = """
CREATE FUNCTION protect() RETURNS event_trigger LANGUAGE plpgsql AS $body$
DECLARE made record;
BEGIN
    FOR made IN SELECT * FROM pg_event_trigger_ddl_commands() WHERE object_type = 'table' LOOP
        EXECUTE 'ALTER TABLE ' || made.objid::regclass || ' ENABLE ROW LEVEL SECURITY';
    END LOOP;
END $body$;
CREATE EVENT TRIGGER a_protect ON ddl_command_end WHEN TAG IN ('CREATE TABLE')
    EXECUTE FUNCTION protect()
"""
