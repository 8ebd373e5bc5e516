"""Restarts: when, how soon, and when not."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from tests.zerocache.nodes import FAKE_CHILD, events_in, node_config
from zerocache.control import RUNTIME_DIR_VARIABLE
from zerocache.role import RestartPolicy, Role, RoleFailed


@pytest.fixture
def lines() -> Iterator[list[Any]]:
    structlog.reset_defaults()
    with capture_logs() as captured:
        yield captured


def role(directory: Path, *arguments: str, **policy: Any) -> Role:
    command = (*FAKE_CHILD, "worker", "--events", str(directory / "events"), *arguments)
    environ = {**node_config(0).to_environment(), RUNTIME_DIR_VARIABLE: str(directory)}
    return Role("worker", command, environ, RestartPolicy(**policy))


def unexpected(error: BaseException) -> None:
    raise AssertionError("the role was to be kept filled") from error


async def failure(of: Role) -> RoleFailed:
    failed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
    of.launch(failed.set_result)
    error = await failed
    assert isinstance(error, RoleFailed)
    return error


async def test_backoff_doubles_up_to_its_limit(tmp_path: Path, lines: list[Any]) -> None:
    crashing = role(
        tmp_path,
        *("--behaviour", "crash"),
        first_backoff_s=0.01,
        longest_backoff_s=0.02,
        start_attempts=4,
    )
    assert (await failure(crashing)).status == 255
    waits = [line["restartInSeconds"] for line in lines if line["event"] == "process_ended"]
    assert waits == [0.01, 0.02, 0.02]


async def test_backoff_starts_over_after_stable_work(tmp_path: Path, lines: list[Any]) -> None:
    stable = role(tmp_path, first_backoff_s=0.01, stable_after_s=0)
    stable.launch(unexpected)
    for _ in range(3):
        child = await stable.current()
        os.kill(child.pid, signal.SIGKILL)
        await child.ended
    await stable.current()
    await stable.stop(None)
    waits = [line["restartInSeconds"] for line in lines if line["event"] == "process_ended"]
    assert waits == [0.01, 0.01, 0.01]


async def test_process_that_was_ready_is_restarted_without_end(tmp_path: Path) -> None:
    dying = role(tmp_path, first_backoff_s=0, longest_backoff_s=0, start_attempts=1)
    dying.launch(unexpected)
    pids = set()
    for _ in range(3):
        child = await dying.current()
        pids.add(child.pid)
        os.kill(child.pid, signal.SIGKILL)
        await child.ended
    assert len(pids) == 3
    await dying.kill()


async def test_configuration_error_is_not_tried_again(tmp_path: Path) -> None:
    error = await failure(role(tmp_path, "--behaviour", "configuration"))
    assert error.status == 78
    assert len(events_in(tmp_path / "events")) == 1


async def test_stop_during_the_backoff_starts_nothing_more(tmp_path: Path) -> None:
    waiting = role(tmp_path, first_backoff_s=60)
    waiting.launch(unexpected)
    child = await waiting.current()
    os.kill(child.pid, signal.SIGKILL)
    await child.ended
    await waiting.stop(None)
    assert len(events_in(tmp_path / "events")) == 1


async def test_stop_before_launch_and_twice_is_harmless(tmp_path: Path) -> None:
    never = role(tmp_path)
    await never.stop(None)
    await never.kill()
    await never.stop(None)


async def test_stop_while_the_process_is_being_started_ends_it(tmp_path: Path) -> None:
    starting = role(tmp_path)
    starting.launch(unexpected)
    await asyncio.sleep(0)
    await starting.stop(None)
