"""What a large copy needed does not stay with the process."""

from __future__ import annotations

from pathlib import Path

from replication_manager.memory import return_free_memory
from tests.replication_manager.conftest import RunSql
from tests.replication_manager.harness import Replicator


def _resident_kb(pid: int | str) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if "VmRSS" in line)


def test_freed_memory_goes_back_to_the_system() -> None:
    kept = [bytearray(1_000) for _ in range(100_000)]
    # The last ones stay, so that the heap cannot simply become shorter.
    rest = kept[-10:]
    before = _resident_kb("self")
    kept.clear()
    return_free_memory()
    assert before - _resident_kb("self") > 50_000
    assert len(rest) == 10


def test_process_is_small_after_the_initial_sync(replicator: Replicator, run_sql: RunSql) -> None:
    run_sql(
        "CREATE TABLE big (id int PRIMARY KEY, t text);"
        "INSERT INTO big SELECT i, repeat('x', 1000) FROM generate_series(1, 100000) i"
    )
    replicator.start()
    assert replicator.process is not None
    assert replicator.file.stat().st_size > 100_000_000
    assert _resident_kb(replicator.process.pid) < 120_000
