"""One run of a child: its messages, its end."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.zerocache.nodes import FAKE_CHILD, node_config
from zerocache.child_process import ChildProcess, describe_status
from zerocache.control import RUNTIME_DIR_VARIABLE, ControlClosed, Fatal, HandOff


@asynccontextmanager
async def child(directory: Path, *arguments: str) -> AsyncIterator[ChildProcess]:
    command = (*FAKE_CHILD, "worker", "--events", str(directory / "events"), *arguments)
    environ = {**node_config(0).to_environment(), RUNTIME_DIR_VARIABLE: str(directory)}
    process = await ChildProcess.start("worker", command, environ)
    try:
        yield process
    finally:
        process.kill()
        await process.ended


async def test_says_when_it_is_ready_and_ends_gracefully(tmp_path: Path) -> None:
    async with child(tmp_path) as process:
        await process.ready.wait()
        process.terminate()
        assert await process.ended == 0


async def test_last_words_are_known_when_it_has_ended(tmp_path: Path) -> None:
    async with child(tmp_path, "--behaviour", "fatal") as process:
        assert await process.ended == 78
        assert process.fatal == Fatal("ZERO_UPSTREAM_DB: no such database", 78)
        assert not process.ready.is_set()


async def test_ends_when_its_control_channel_closes(tmp_path: Path) -> None:
    async with child(tmp_path) as process:
        await process.ready.wait()
        await process.control.close()
        assert await process.ended == 255


async def test_signals_to_an_ended_process_do_nothing(tmp_path: Path) -> None:
    async with child(tmp_path, "--behaviour", "crash") as process:
        assert await process.ended == 3
        process.terminate()
        process.kill()
        with pytest.raises(ControlClosed):
            await process.control.send_socket(None, HandOff("p"))  # type: ignore[arg-type]


async def test_command_that_does_not_exist_raises(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await ChildProcess.start("worker", [str(tmp_path / "no")], {})


def test_status_is_described_in_words() -> None:
    assert describe_status(3) == "exited with status 3"
    assert describe_status(-signal.SIGKILL) == "was ended by signal 9"
