"""Process of one sync worker: ``python -m view_syncer --index I``, started by the supervisor."""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

import structlog
import uvloop

from view_syncer.worker import Worker
from zerocache.config import Config
from zerocache.control import RUNTIME_DIR_VARIABLE, ChildControl
from zerocache.errors import ConfigurationError
from zerocache.logging import configure_logging

log = structlog.get_logger(__name__)

EXIT_UNHANDLED = 13
GC_ALLOCATIONS = 50_000
SWITCHES_PER_YIELD = 10
"""The engine works on threads of its own, so ZERO_YIELD_THRESHOLD_MS bounds how long they may keep
the event loop from running; a loop that needs several turns within it gets them."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="view_syncer")
    parser.add_argument("--index", type=int, required=True)
    index: int = parser.parse_args().index
    config = Config.from_environment()
    configure_logging(config.log, final=True, worker="syncer", workerIndex=index)
    control = ChildControl.from_environment()
    sys.setswitchinterval(max(2.0, config.yield_threshold_ms) / 1000 / SWITCHES_PER_YIELD)
    try:
        return uvloop.run(_run(config, control))
    except ConfigurationError as error:
        control.fatal(str(error))
        return 78


async def _run(config: Config, control: ChildControl) -> int:
    ending: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def end(status: int) -> None:
        if not ending.done():
            ending.set_result(status)

    def on_fatal(error: BaseException) -> None:
        log.error("worker_failed", exc_info=error)
        end(EXIT_UNHANDLED)

    worker = Worker(config, on_fatal, control.released)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end, 0)
    control.start(on_socket=worker.adopt, figures=worker.figures)
    # Everything is loaded by now, while the replication process was making the replica.
    replica_ready = asyncio.create_task(control.replica_ready.wait())
    waiting: list[asyncio.Future[Any]] = [replica_ready, ending]
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    if ending.done():
        replica_ready.cancel()
        return ending.result()
    await worker.start(Path(os.environ[RUNTIME_DIR_VARIABLE]) / "version-ready.sock")
    _relax_garbage_collector()
    control.ready()
    status = await ending
    if status != 0:
        # At once: what still runs would go on serving clients without following the replica.
        _exit_now(status)
    await worker.stop()
    return status


def _exit_now(status: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _relax_garbage_collector() -> None:
    """Nearly everything here is freed by its reference count. The collector's defaults would walk
    all groups and queries every few connections, which costs a wave of reconnects a quarter of
    its time; cycles are few and small and can wait."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_ALLOCATIONS, 20, 50)


if __name__ == "__main__":
    sys.exit(main())
