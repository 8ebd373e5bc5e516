"""A disk without space ends nothing and loses nothing: what is complete stays.

Two ways of having no space: a limit on the size of files, set from outside on a running process,
and a file system (an SQLite VFS, in the process) that is full as long as a certain file exists.
"""

from __future__ import annotations

import resource
from pathlib import Path

from replication_manager.verify import verify
from tests.conftest import PostgresCluster
from tests.replication_manager import filling_disk
from tests.replication_manager.conftest import RunSql
from tests.replication_manager.harness import TIMEOUT_S, Replicator
from zerocache.control import EXIT_CONFIGURATION

_TABLE = "CREATE TABLE big (id int PRIMARY KEY, t text)"
_LOAD = "INSERT INTO big SELECT i, repeat('x', 200) FROM generate_series(1, 60000) i"


def _wait_for_complaint(replicator: Replicator, *, number: int = 1) -> None:
    replicator.wait_until(lambda: replicator.log().count("replica_not_writable") >= number)


def _assert_caught_up(replicator: Replicator) -> None:
    verdict = verify(replicator.config.upstream.db, replicator.file)
    assert verdict.is_equal, verdict
    assert verdict.compared >= 60_000


def test_the_stream_waits_for_space_and_goes_on_by_itself(
    replicator: Replicator, run_sql: RunSql
) -> None:
    run_sql(_TABLE)
    replicator.start()
    assert replicator.process is not None
    pid, before = replicator.process.pid, replicator.state_version()
    _, most = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (4_000_000, most))
    run_sql(_LOAD)
    _wait_for_complaint(replicator)
    assert replicator.state_version() == before
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (most, most))
    _assert_caught_up(replicator)
    assert replicator.process.pid == pid
    assert replicator.stop() == 0


def test_a_full_file_system_between_and_inside_transactions(
    replicator: Replicator, run_sql: RunSql, tmp_path: Path
) -> None:
    run_sql(_TABLE)
    full = tmp_path / "full"
    replicator.start(module=filling_disk.__name__, environment={filling_disk.VARIABLE: str(full)})
    for number in range(3):
        full.touch()
        complaints = replicator.log().count("replica_not_writable")
        if number == 2:
            run_sql(_LOAD)
        else:
            run_sql(f"INSERT INTO big SELECT -{number}, 'small'")
        _wait_for_complaint(replicator, number=complaints + 1)
        full.unlink()
    _assert_caught_up(replicator)
    assert replicator.stop() == 0


def test_an_initial_sync_waits_for_space(
    replicator: Replicator, run_sql: RunSql, tmp_path: Path, postgres: PostgresCluster
) -> None:
    run_sql(_TABLE + ";" + _LOAD)
    full = tmp_path / "full"
    full.touch()
    replicator.start(
        wait=False, module=filling_disk.__name__, environment={filling_disk.VARIABLE: str(full)}
    )
    _wait_for_complaint(replicator)
    assert not replicator.file.exists()
    full.unlink()
    replicator.next_message("ready")
    _assert_caught_up(replicator)
    slots = "SELECT count(*) FROM pg_replication_slots WHERE starts_with(slot_name, %s)"
    assert postgres.psql(slots, replicator.config.app.id) == [(1,)]
    assert replicator.stop() == 0


def test_a_path_that_never_could_be_written_is_refused(
    replicator: Replicator, run_sql: RunSql
) -> None:
    run_sql(_TABLE)
    (replicator.directory / "a file").touch()
    file = str(replicator.directory / "a file" / "replica.db")
    replica = replicator.config.replica.model_copy(update={"file": file})
    replicator.config = replicator.config.model_copy(update={"replica": replica})
    replicator.start(wait=False)
    assert "ZERO_REPLICA_FILE" in replicator.next_message("fatal")["message"]
    assert replicator.process is not None
    assert replicator.process.wait(TIMEOUT_S) == EXIT_CONFIGURATION
