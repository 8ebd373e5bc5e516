"""A second view-syncer beside a node: ``python -m tests.fuzz.model_second PORT FD``.

Owns one worker on the node's replica that accepts its connections itself. Says ``ready`` on the
file descriptor and closes it; ends when killed, or with the process that started it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path

import structlog
import uvloop

from tests.conftest import _die_with_parent
from view_syncer.worker import Worker
from zerocache.config import Config
from zerocache.control import RUNTIME_DIR_VARIABLE, HandOff
from zerocache.logging import configure_logging

log = structlog.get_logger(__name__)


async def _serve(port: int, tell: int, config: Config) -> None:
    loop = asyncio.get_running_loop()

    def failed(error: BaseException) -> None:
        log.error("worker_failed", exc_info=error)
        os.kill(os.getpid(), signal.SIGKILL)

    worker = Worker(config, failed)
    await worker.start(Path(os.environ[RUNTIME_DIR_VARIABLE]) / "version-ready.sock")
    with socket.create_server(("127.0.0.1", port)) as listening:
        listening.setblocking(False)
        os.write(tell, b"ready")
        os.close(tell)
        while True:
            sock, address = await loop.sock_accept(listening)
            worker.adopt(sock, HandOff(f"{address[0]}:{address[1]}", address[0]))


def main() -> None:
    _die_with_parent()
    config = Config.from_environment()
    configure_logging(config.log, worker="second")
    uvloop.run(_serve(int(sys.argv[1]), int(sys.argv[2]), config))


if __name__ == "__main__":
    main()
