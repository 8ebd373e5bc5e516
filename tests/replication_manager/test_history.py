"""A server whose log is not the one the replica was made of, whatever its slots say."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from replication_manager.history import (
    Origin,
    ServerHistory,
    parse_timelines,
    require_same_past,
)
from tests.conftest import PostgresCluster, destroy_cluster, make_cluster
from tests.replication_manager.harness import Replicator, compare
from zerocache.errors import ResyncRequired
from zerocache.protocol.versions import Lsn

_HERE = Origin("7", 3)
_SERVER = ServerHistory(_HERE, flushed=Lsn(1_000), left={1: Lsn(100), 2: Lsn(500)})


@pytest.mark.parametrize(
    ("origin", "reached"),
    [(None, 1_000), (_HERE, 1_000), (_HERE, 600), (Origin("7", 2), 500), (Origin("7", 1), 50)],
)
def test_the_same_past_is_continued(origin: Origin | None, reached: int) -> None:
    require_same_past(_SERVER, origin, reached)


@pytest.mark.parametrize(
    ("origin", "reached", "reason"),
    [
        (Origin("8", 3), 10, "cluster 8"),
        (None, 1_001, "log ends at"),
        (_HERE, 1_001, "log ends at"),
        (Origin("7", 2), 501, "timeline 2"),
        (Origin("7", 4), 10, "timeline 4"),
    ],
)
def test_another_past_is_not(origin: Origin | None, reached: int, reason: str) -> None:
    with pytest.raises(ResyncRequired, match=reason):
        require_same_past(_SERVER, origin, reached)


def test_history_files_name_where_timelines_were_left() -> None:
    content = "1\t0/3000158\tno recovery target specified\n\n2\t1/A0\tafter # something\n"
    assert parse_timelines(content) == {1: 0x3000158, 2: 0x1000000A0}


def _with_two_pasts(
    new_replicator: Callable[..., Replicator], rewind: Callable[[PostgresCluster], None]
) -> None:
    """Stream a row, then let the server's data become what they were before it."""
    cluster = make_cluster(fsync="on")
    try:
        cluster.psql("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)")
        replicator = new_replicator(url=cluster.url)
        replicator.start()
        replicator.catch_up()
        replicator.stop()
        cluster.stop()
        copy = cluster.directory / "copy"
        shutil.copytree(cluster.directory / "data", copy)
        for path in (copy, *copy.rglob("*")):
            shutil.chown(path, cluster.directory.owner(), cluster.directory.group())
        cluster.start()
        cluster.psql("INSERT INTO t VALUES (2)")
        replicator.start()
        replicator.catch_up()
        assert replicator.stop() == 0
        cluster.stop()
        shutil.rmtree(cluster.directory / "data")
        copy.rename(cluster.directory / "data")
        rewind(cluster)
        replicator.start()
        cluster.psql("INSERT INTO t VALUES (4)")
        replicator.catch_up()
        assert compare(replicator) >= 2
        assert replicator.rows("SELECT count(*) FROM t WHERE id = 2") == [(0,)]
        assert replicator.stop() == 0
    finally:
        destroy_cluster(cluster)


def test_server_restored_from_a_backup_ends_in_a_new_sync(
    new_replicator: Callable[..., Replicator],
) -> None:
    _with_two_pasts(new_replicator, lambda cluster: cluster.start())


def test_promoted_standby_that_lagged_ends_in_a_new_sync(
    new_replicator: Callable[..., Replicator],
) -> None:
    def promote(cluster: PostgresCluster) -> None:
        signal_file = Path(cluster.directory / "data" / "standby.signal")
        signal_file.touch()
        shutil.chown(signal_file, cluster.directory.owner(), cluster.directory.group())
        cluster.start()
        cluster.psql("SELECT pg_promote()")
        # Further than the replica ever was: only the timeline tells.
        cluster.psql("INSERT INTO t SELECT generate_series(1000, 60000)")

    _with_two_pasts(new_replicator, promote)
