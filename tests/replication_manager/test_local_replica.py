"""What a start makes of the replica file it finds, and how much of it it reads."""

from __future__ import annotations

import contextlib
from pathlib import Path

import apsw
import pytest

from replication_manager import local_replica
from replication_manager.local_replica import require_usable
from replication_manager.verify import verify
from tests.replica.tables import build_replica
from tests.replication_manager.conftest import RunSql
from tests.replication_manager.harness import Replicator
from zerocache.errors import ResyncRequired
from zerocache.postgres.shard import ShardNames
from zerocache.replica import damage, last_writer
from zerocache.replica.layout import FORMAT_VERSION, load_config
from zerocache.replica.reader import open_replica
from zerocache.replica.writer import ReplicaWriter

SHARD = ShardNames("zero", 0, ("a", "b"))
FORMATS = Path(__file__).parents[1] / "replica" / "formats"
_PAGE = 4096


@pytest.fixture
def replica(tmp_path: Path) -> Path:
    rows = [(i, f"slug{i}", "x" * 500, None) for i in range(2_000)]
    path = build_replica(tmp_path / "r.db", {"task": rows})
    _set_publications(path)
    return path


def _set_publications(path: Path) -> None:
    with contextlib.closing(apsw.Connection(str(path))) as connection:
        names = ", ".join(f'"{name}"' for name in sorted(SHARD.all_publications))
        connection.execute('UPDATE "_zero.replicationConfig" SET publications = ?', (f"[{names}]",))
        connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)


def damage_page(path: Path, number: int = 100) -> None:
    with path.open("r+b") as file:
        file.seek(number * _PAGE)
        file.write(b"\xff" * _PAGE)


def _cut_off_with_the_machine(path: Path) -> None:
    ReplicaWriter(path).close()
    with contextlib.closing(apsw.Connection(str(path))) as connection:
        connection.execute("UPDATE \"_zero.lastWriter\" SET boot = 'another', ended = 0")
        connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)


def test_a_sound_replica_is_used(replica: Path) -> None:
    require_usable(replica, SHARD)


def test_a_small_replica_is_always_read_in_full(replica: Path) -> None:
    damage_page(replica)
    with pytest.raises(ResyncRequired, match="damaged"):
        require_usable(replica, SHARD)


def test_a_large_replica_is_read_in_full_after_its_machine_died(
    replica: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_replica, "ALWAYS_CHECKED_BYTES", 0)
    said: list[str] = []
    _cut_off_with_the_machine(replica)
    require_usable(replica, SHARD, said.append)
    assert len(said) == 1
    damage_page(replica)
    with pytest.raises(ResyncRequired, match="damaged"):
        require_usable(replica, SHARD)


def test_a_large_replica_whose_writer_ended_is_not_read_in_full(
    replica: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_replica, "ALWAYS_CHECKED_BYTES", 0)
    said: list[str] = []
    ReplicaWriter(replica).close()
    monkeypatch.setattr(last_writer, "_BOOT_ID", replica.with_name("no boot id"))
    require_usable(replica, SHARD, said.append)
    assert said == []


def test_a_report_of_damage_is_looked_into_once(
    replica: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_replica, "ALWAYS_CHECKED_BYTES", 0)
    with pytest.raises(apsw.CorruptError), damage.reported(replica):
        raise apsw.CorruptError("says the test")
    said: list[str] = []
    require_usable(replica, SHARD, said.append)
    assert len(said) == 1
    assert not damage.is_reported(replica)
    require_usable(replica, SHARD, said.append)
    assert len(said) == 1


def test_other_errors_are_no_damage(replica: Path) -> None:
    with pytest.raises(apsw.BusyError), damage.reported(replica):
        raise apsw.BusyError("says the test")
    assert not damage.is_reported(replica)


def test_a_replica_of_a_newer_version_is_made_anew(replica: Path) -> None:
    with contextlib.closing(apsw.Connection(str(replica))) as connection:
        connection.execute('UPDATE "_zero.replicationConfig" SET formatVersion = 99')
    with pytest.raises(ResyncRequired, match="newer version"):
        require_usable(replica, SHARD)


@pytest.mark.parametrize("version", range(1, FORMAT_VERSION))
def test_a_replica_of_an_older_version_is_migrated(tmp_path: Path, version: int) -> None:
    path = tmp_path / "old.db"
    with contextlib.closing(apsw.Connection(str(path))) as connection:
        connection.execute((FORMATS / f"{version}.sql").read_text())
    _set_publications(path)
    said: list[str] = []
    require_usable(path, SHARD, said.append)
    assert said == [f"bringing the replica to format {FORMAT_VERSION}"]
    with contextlib.closing(open_replica(path)) as connection:
        config = load_config(connection)
    assert config is not None
    assert config.format_version == FORMAT_VERSION


def test_a_truncated_file_is_made_anew(replica: Path) -> None:
    with replica.open("r+b") as file:
        file.truncate(10_000)
    with pytest.raises(ResyncRequired):
        require_usable(replica, SHARD)


def test_a_reader_that_finds_damage_has_the_replica_made_anew(
    replicator: Replicator, run_sql: RunSql
) -> None:
    run_sql("CREATE TABLE t (id int PRIMARY KEY, v text)")
    run_sql("INSERT INTO t SELECT i, repeat('x', 500) FROM generate_series(1, 5000) i")
    replicator.start()
    generation = replicator.rows('SELECT replicaVersion FROM "_zero.replicationConfig"')
    # A false alarm costs nothing but the reading.
    damage._report(replicator.file).write_text("says the test\n")
    replicator.wait_until(lambda: not damage.is_reported(replicator.file))
    assert replicator.rows('SELECT replicaVersion FROM "_zero.replicationConfig"') == generation
    damage_page(replicator.file)
    with pytest.raises(apsw.CorruptError), damage.reported(replicator.file):
        replicator.rows("SELECT sum(length(v)) FROM t")
    replicator.wait_until(
        lambda: (
            replicator.rows('SELECT replicaVersion FROM "_zero.replicationConfig"') != generation
        )
    )
    verdict = verify(replicator.config.upstream.db, replicator.file)
    assert verdict.is_equal, verdict
    assert not damage.is_reported(replicator.file)
