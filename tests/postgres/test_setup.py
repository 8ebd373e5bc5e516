"""Setting up an upstream database, and refusing to."""

# ruff: noqa: S608 - the SQL of tests is made of constants

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from tests.conftest import PostgresCluster, destroy_cluster, make_cluster
from zerocache.errors import UpstreamSetupError
from zerocache.postgres import validation
from zerocache.postgres.connection import MISSING_PRIVILEGE
from zerocache.postgres.setup import set_up_upstream
from zerocache.postgres.shard import INVALID_APP_ID, INVALID_PUBLICATION, ShardNames

Query = Callable[..., list[tuple[Any, ...]]]


@pytest.fixture
def query(postgres: PostgresCluster, database: str) -> Query:
    name = database.rsplit("/", 1)[1]

    def run(text: str, *params: Any) -> list[tuple[Any, ...]]:
        return postgres.psql(text, *params, database=name)

    return run


def _schemas(query: Query) -> set[str]:
    return {name for (name,) in query("SELECT nspname FROM pg_namespace WHERE nspname ~ '^app_'")}


def _refused(url: str, shard: ShardNames) -> UpstreamSetupError:
    with pytest.raises(UpstreamSetupError) as caught:
        set_up_upstream(url, shard)
    return caught.value


def test_everything_is_created_once(database: str, app_id: str, query: Query) -> None:
    shard = ShardNames(app_id)
    first = set_up_upstream(database, shard)
    assert first.must_resync
    assert {table.wire_name for table in first.schema.tables} == {
        f"{app_id}.permissions",
        f"{app_id}_0.clients",
        f"{app_id}_0.mutations",
    }
    tables = query(
        "SELECT tablename FROM pg_tables WHERE schemaname IN (%s, %s) ORDER BY 1",
        app_id,
        f"{app_id}_0",
    )
    assert [name for (name,) in tables] == [
        "clients", "mutations", "permissions", "publishedSchema", "replicas",
        "shardConfig", "versionHistory",
    ]  # fmt: skip
    second = set_up_upstream(database, shard)
    assert not second.must_resync
    assert second.schema == first.schema


def test_permissions_carry_their_hash(database: str, app_id: str, query: Query) -> None:
    set_up_upstream(database, ShardNames(app_id))
    query(f"UPDATE {app_id}.permissions SET permissions = '{{\"tables\": {{}}}}'")
    assert query(f"SELECT hash = md5(permissions::text) FROM {app_id}.permissions") == [(True,)]


def test_numeric_app_id(database: str, query: Query) -> None:
    upstream = set_up_upstream(database, ShardNames("1"))
    assert upstream.publications == ("_1_metadata_0", "_1_public_0")


@pytest.mark.parametrize("bad", ["UPPER", "a-b", "a b", "a!", "", "é", "x" * 49])
def test_app_ids_that_cannot_name_slots(database: str, query: Query, bad: str) -> None:
    assert _refused(database, ShardNames(bad)).code == INVALID_APP_ID
    assert query("SELECT count(*) FROM pg_publication") == [(0,)]


@pytest.mark.parametrize("name", ["_reserved", "with-dash", "quo'te", "x" * 64])
def test_publications_that_cannot_be_used(database: str, app_id: str, name: str) -> None:
    error = _refused(database, ShardNames(app_id, publications=(name,)))
    assert error.code == INVALID_PUBLICATION


def test_missing_publication_leaves_nothing_behind(
    database: str, app_id: str, query: Query
) -> None:
    error = _refused(database, ShardNames(app_id, publications=("nope",)))
    assert error.code == validation.MISSING_PUBLICATION
    assert "nope" in str(error)
    assert not _schemas(query)


def test_publication_without_truncate(database: str, app_id: str, query: Query) -> None:
    query("CREATE TABLE t (a int PRIMARY KEY)")
    query("CREATE PUBLICATION p FOR TABLE t WITH (publish = 'insert,update')")
    error = _refused(database, ShardNames(app_id, publications=("p",)))
    assert error.code == validation.INCOMPLETE_PUBLICATION
    assert not _schemas(query)


def test_conflicting_column_lists_name_the_table(database: str, app_id: str, query: Query) -> None:
    query("CREATE TABLE t (a int PRIMARY KEY, b int)")
    query("CREATE PUBLICATION p FOR TABLE t (a)")
    query("CREATE PUBLICATION q FOR TABLE t")
    error = _refused(database, ShardNames(app_id, publications=("p", "q")))
    assert error.code == validation.CONFLICTING_COLUMNS
    assert "public.t" in str(error)


@pytest.mark.parametrize(
    ("definition", "named"),
    [
        ('"a/b" (id int PRIMARY KEY)', "a/b"),
        ('"a.b" (id int PRIMARY KEY)', "a.b"),
        ('t (id int PRIMARY KEY, "a/b" int)', "a/b"),
        ("t (id int PRIMARY KEY, _0_version int)", "_0_version"),
    ],
)
def test_names_the_replica_cannot_have(
    database: str, app_id: str, query: Query, definition: str, named: str
) -> None:
    query(f"CREATE TABLE {definition}")
    error = _refused(database, ShardNames(app_id))
    assert error.code == validation.INVALID_NAME
    assert named in str(error)
    assert not _schemas(query)
    assert query("SELECT count(*) FROM pg_publication") == [(0,)]


def test_columns_with_dots_and_reserved_words(database: str, app_id: str, query: Query) -> None:
    query('CREATE TABLE transaction ("a.b" int PRIMARY KEY, "trigger" int, "index" int)')
    set_up_upstream(database, ShardNames(app_id))


def test_identity_nothing_is_refused(database: str, app_id: str, query: Query) -> None:
    query("CREATE TABLE t (id int PRIMARY KEY)")
    query("ALTER TABLE t REPLICA IDENTITY NOTHING")
    assert _refused(database, ShardNames(app_id)).code == validation.NO_IDENTITY


@pytest.mark.parametrize(
    "other",
    [
        "FOR TABLE leaf",
        "FOR TABLE sub WITH (publish_via_partition_root)",
        "FOR TABLES IN SCHEMA public",
    ],
)
def test_a_partition_that_is_also_published_as_a_table_is_refused(
    database: str, app_id: str, query: Query, other: str
) -> None:
    query(
        "CREATE TABLE root (id int PRIMARY KEY) PARTITION BY RANGE (id);"
        "CREATE TABLE sub PARTITION OF root FOR VALUES FROM (0) TO (100) PARTITION BY RANGE (id);"
        "CREATE TABLE leaf PARTITION OF sub FOR VALUES FROM (0) TO (50);"
        "CREATE PUBLICATION via FOR TABLE root WITH (publish_via_partition_root);"
        f"CREATE PUBLICATION other {other}"
    )
    error = _refused(database, ShardNames(app_id, publications=("other", "via")))
    assert "as a partition of public.root" in str(error)
    assert not _schemas(query)
    query("ALTER PUBLICATION other SET (publish_via_partition_root)")
    if other != "FOR TABLES IN SCHEMA public":
        query("DROP PUBLICATION other; CREATE PUBLICATION other FOR TABLE root")
        query("ALTER PUBLICATION other SET (publish_via_partition_root)")
    set_up_upstream(database, ShardNames(app_id, publications=("other", "via")))


def test_keyless_tables_get_a_unique_index_as_identity(
    database: str, app_id: str, query: Query
) -> None:
    query("CREATE TABLE usable (a int NOT NULL, b int NOT NULL, c int NOT NULL UNIQUE, UNIQUE (a))")
    query("CREATE TABLE nullable (a int UNIQUE)")
    query("CREATE TABLE deferred (a int NOT NULL UNIQUE DEFERRABLE)")
    query("CREATE TABLE keyed (a int PRIMARY KEY, b int NOT NULL UNIQUE)")
    upstream = set_up_upstream(database, ShardNames(app_id))
    identities = {table.name: table.replica_identity for table in upstream.schema.tables}
    assert {name: identities[name] for name in ("usable", "nullable", "deferred", "keyed")} == {
        "usable": "i",
        "nullable": "d",
        "deferred": "d",
        "keyed": "d",
    }
    assert query("SELECT indexrelid::regclass::text FROM pg_index WHERE indisreplident") == [
        ("usable_a_key",)
    ]


def test_partitions_get_the_identity_of_their_root(
    database: str, app_id: str, query: Query
) -> None:
    query("CREATE TABLE t (a int NOT NULL, UNIQUE (a)) PARTITION BY HASH (a)")
    query("CREATE TABLE leaf PARTITION OF t FOR VALUES WITH (MODULUS 1, REMAINDER 0)")
    set_up_upstream(database, ShardNames(app_id))
    assert query("SELECT relname, relreplident FROM pg_class WHERE relname IN ('t', 'leaf')") == [
        ("t", "i"),
        ("leaf", "i"),
    ]
    query("INSERT INTO t VALUES (1)")
    query("UPDATE t SET a = 2")


def test_other_publications_call_for_a_new_sync_but_keep_the_clients(
    database: str, app_id: str, query: Query
) -> None:
    query("CREATE TABLE t (a int PRIMARY KEY)")
    query("CREATE PUBLICATION p FOR TABLE t")
    set_up_upstream(database, ShardNames(app_id))
    query(f"INSERT INTO {app_id}_0.clients VALUES ('g', 'c', 7)")
    query(f"INSERT INTO {app_id}_0.replicas (id, slot, version) VALUES ('r', 's', '00')")
    upstream = set_up_upstream(database, ShardNames(app_id, publications=("p",)))
    assert upstream.must_resync
    assert query(f"SELECT count(*) FROM {app_id}_0.replicas") == [(0,)]
    # The client's mutations must not be applied again.
    assert query(f'SELECT "lastMutationID" FROM {app_id}_0.clients') == [(7,)]
    assert not set_up_upstream(database, ShardNames(app_id, publications=("p",))).must_resync


def test_damaged_set_up_is_repaired(database: str, app_id: str, query: Query) -> None:
    shard = ShardNames(app_id)
    set_up_upstream(database, shard)
    query(f"DROP PUBLICATION {shard.metadata_publication}")
    assert set_up_upstream(database, shard).must_resync
    query(f"DROP SCHEMA {shard.shard_schema} CASCADE")
    set_up_upstream(database, shard)
    assert not set_up_upstream(database, shard).must_resync


def test_role_without_rights_is_told_what_to_grant(
    postgres: PostgresCluster, database: str, app_id: str, query: Query
) -> None:
    role = f"role_{uuid.uuid4().hex[:8]}"
    name = database.rsplit("/", 1)[1]
    postgres.psql(f"CREATE ROLE {role} LOGIN REPLICATION")
    url = postgres.url_of(name, role)
    error = _refused(url, ShardNames(app_id))
    assert error.code == MISSING_PRIVILEGE
    assert "GRANT CREATE ON DATABASE" in str(error)
    postgres.psql(f'GRANT CREATE ON DATABASE "{name}" TO {role}')
    error = _refused(url, ShardNames(app_id))
    assert "ZERO_APP_PUBLICATIONS" in str(error)
    assert not _schemas(query)
    postgres.psql(f"DROP OWNED BY {role}", database=name)
    postgres.psql(f"DROP ROLE {role}")


def test_role_without_superuser_can_replicate_its_own_publication(
    postgres: PostgresCluster, database: str, app_id: str
) -> None:
    role = f"role_{uuid.uuid4().hex[:8]}"
    name = database.rsplit("/", 1)[1]
    postgres.psql(f"CREATE ROLE {role} LOGIN REPLICATION")
    postgres.psql(f'GRANT ALL ON DATABASE "{name}" TO {role}')
    postgres.psql(f"GRANT ALL ON SCHEMA public TO {role}", database=name)
    url = postgres.url_of(name, role)
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE t (a int PRIMARY KEY)")
        connection.execute("CREATE PUBLICATION p FOR TABLE t")
    upstream = set_up_upstream(url, ShardNames(app_id, publications=("p",)))
    assert "t" in {table.name for table in upstream.schema.tables}
    postgres.psql(f"DROP OWNED BY {role} CASCADE", database=name)
    postgres.psql(f"DROP ROLE {role}")


def test_triggers_of_another_version_are_never_left_in_place(
    postgres: PostgresCluster, database: str, app_id: str, query: Query
) -> None:
    role = f"role_{uuid.uuid4().hex[:8]}"
    name = database.rsplit("/", 1)[1]
    postgres.psql(f"CREATE ROLE {role} LOGIN SUPERUSER")
    query("CREATE TABLE t (a int PRIMARY KEY); CREATE PUBLICATION p FOR TABLE t")
    shard, url = ShardNames(app_id, publications=("p",)), postgres.url_of(name, role)
    assert set_up_upstream(url, shard).ddl_detection
    postgres.psql(f"ALTER ROLE {role} NOSUPERUSER REPLICATION")
    postgres.psql(f'GRANT ALL ON DATABASE "{name}" TO {role}')
    # The version it knows is fine, whatever the role may do.
    assert set_up_upstream(url, shard).ddl_detection
    query(f"COMMENT ON FUNCTION {app_id}_0.update_schemas() IS 'of another version'")
    error = _refused(url, shard)
    assert error.code == MISSING_PRIVILEGE
    assert shard.event_triggers[0] in str(error)
    triggers = "SELECT count(*) FROM pg_event_trigger WHERE evtname = ANY (%s)"
    assert query(triggers, list(shard.event_triggers)) == [(3,)]
    # A role that may do it mends it.
    assert set_up_upstream(database, shard).ddl_detection
    postgres.psql(f"DROP OWNED BY {role} CASCADE", database=name)
    postgres.psql(f"DROP ROLE {role}")


def test_wal_level_is_checked_first() -> None:
    cluster = make_cluster(wal_level="replica")
    try:
        error = _refused(cluster.url, ShardNames("zero"))
        assert error.code == validation.WAL_LEVEL
        assert cluster.psql("SELECT count(*) FROM pg_namespace WHERE nspname ~ 'zero'") == [(0,)]
    finally:
        destroy_cluster(cluster)
