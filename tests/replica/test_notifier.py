import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from zerocache.replica.notifier import VersionNotifier, watch_versions

TIMEOUT_S = 10


@pytest.fixture
async def notifier(tmp_path: Path) -> AsyncIterator[VersionNotifier]:
    notifier = VersionNotifier(tmp_path / "v.sock")
    await notifier.start()
    yield notifier
    await notifier.close()


async def until(versions: AsyncIterator[str], wanted: str) -> list[str]:
    """Versions up to the wanted one."""
    seen: list[str] = []
    async with asyncio.timeout(TIMEOUT_S):
        async for version in versions:
            seen.append(version)
            if version == wanted:
                break
    return seen


async def test_worker_is_told_the_newest_version_when_it_connects(
    notifier: VersionNotifier, tmp_path: Path
) -> None:
    notifier.publish("110")
    notifier.publish("120")
    assert await until(watch_versions(tmp_path / "v.sock"), "120") == ["120"]


async def test_every_worker_hears_every_version_it_waits_for(
    notifier: VersionNotifier, tmp_path: Path
) -> None:
    watchers = [watch_versions(tmp_path / "v.sock") for _ in range(3)]
    for version in ("110", "120", "130"):
        notifier.publish(version)
        assert await asyncio.gather(*(until(w, version) for w in watchers)) == [[version]] * 3


async def test_same_version_is_announced_again(notifier: VersionNotifier, tmp_path: Path) -> None:
    versions = watch_versions(tmp_path / "v.sock")
    for _ in range(3):
        notifier.publish("110")
        assert await until(versions, "110") == ["110"]


async def test_publishing_from_another_thread(notifier: VersionNotifier, tmp_path: Path) -> None:
    threading.Thread(target=notifier.publish, args=("110",)).start()
    assert await until(watch_versions(tmp_path / "v.sock"), "110") == ["110"]


async def test_busy_worker_gets_only_the_newest(notifier: VersionNotifier, tmp_path: Path) -> None:
    versions = watch_versions(tmp_path / "v.sock")
    notifier.publish("000000")
    await until(versions, "000000")
    for number in range(1, 50_000):
        notifier.publish(f"{number:06}")
    seen = await until(versions, "049999")
    assert seen == sorted(seen)
    assert len(seen) < 1_000


async def test_worker_that_never_reads_holds_up_nobody(
    notifier: VersionNotifier, tmp_path: Path
) -> None:
    reader, writer = await asyncio.open_unix_connection(str(tmp_path / "v.sock"), limit=16)
    for number in range(100_000):
        notifier.publish(f"{number:06}")
    assert await until(watch_versions(tmp_path / "v.sock"), "099999") == ["099999"]
    async with asyncio.timeout(TIMEOUT_S):
        while (await reader.readline()) != b"099999\n":
            pass
    writer.close()


async def test_watcher_waits_for_the_server_and_survives_its_restart(tmp_path: Path) -> None:
    path = tmp_path / "v.sock"
    versions = watch_versions(path)
    waiting = asyncio.ensure_future(until(versions, "110"))
    await asyncio.sleep(0)
    first = VersionNotifier(path)
    await first.start()
    first.publish("110")
    assert await waiting == ["110"]
    await first.close()
    second = VersionNotifier(path)
    await second.start()
    second.publish("120")
    assert await until(versions, "120") == ["120"]
    await second.close()


async def test_socket_left_by_a_killed_predecessor_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "v.sock"
    server = await asyncio.start_unix_server(lambda r, w: None, str(path))
    server.close()
    assert path.exists()
    notifier = VersionNotifier(path)
    await notifier.start()
    notifier.publish("110")
    assert await until(watch_versions(path), "110") == ["110"]
    await notifier.close()
    assert not path.exists()


def test_publishing_before_the_start_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="start"):
        VersionNotifier(tmp_path / "v.sock").publish("110")
