"""The keepalive monitor."""

from __future__ import annotations

import asyncio
import time

from zerocache.keepalive import KeepaliveMonitor


def stall(seconds: float) -> None:
    """Keep the loop from turning."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


async def test_fires_when_calls_stop() -> None:
    expired = asyncio.Event()
    monitor = KeepaliveMonitor(0.02, expired.set)
    monitor.call()
    await asyncio.wait_for(expired.wait(), 60)


async def test_never_fires_without_a_first_call() -> None:
    expired = asyncio.Event()
    monitor = KeepaliveMonitor(0.01, expired.set)
    await asyncio.sleep(0.05)
    monitor.close()
    assert not expired.is_set()


async def test_does_not_fire_while_calls_come() -> None:
    expired = asyncio.Event()
    monitor = KeepaliveMonitor(0.2, expired.set)
    for _ in range(10):
        monitor.call()
        await asyncio.sleep(0.03)
    assert not expired.is_set()
    monitor.close()


async def test_a_busy_process_does_not_fire() -> None:
    expired = asyncio.Event()
    monitor = KeepaliveMonitor(0.1, expired.set)
    monitor.call()
    await asyncio.sleep(0)
    stall(0.3)  # health checks pile up meanwhile
    asyncio.get_running_loop().call_later(0.01, monitor.call)
    await asyncio.sleep(0.05)
    assert not expired.is_set()
    monitor.close()
