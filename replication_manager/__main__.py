"""Entry point of the replication process: ``python -m replication_manager``.

Owns the process: configuration, logging, signals, the control channel and the version-ready
socket. The work itself runs in one thread (``service.py``); the event loop here only answers the
sync workers and the supervisor.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import structlog

from replication_manager.indexes import IndexKeeper, IndexLimits
from replication_manager.service import Callbacks, ReplicationService
from replication_manager.signals import StopSignal
from replication_manager.slot import Displaced
from zerocache.config import Config
from zerocache.control import EXIT_CONFIGURATION, RUNTIME_DIR_VARIABLE, ChildControl
from zerocache.errors import ConfigurationError, ZerocacheError
from zerocache.logging import configure_logging
from zerocache.metrics import Metrics
from zerocache.replica import index_requests
from zerocache.replica.index_requests import IndexRequestServer
from zerocache.replica.notifier import SOCKET_NAME, VersionNotifier

_EXIT_FAILED = 1
# An intended end that must not look like success: the node it belongs to has to end, too.
_EXIT_DISPLACED = 14

log = structlog.get_logger(__name__)


async def serve(config: Config, control: ChildControl, runtime_dir: Path) -> int:
    """Replicate until SIGTERM; the exit status."""
    stop = StopSignal()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    notifier = VersionNotifier(runtime_dir / SOCKET_NAME)
    await notifier.start()
    callbacks = Callbacks(control.ready, notifier.publish, control.progress)
    indexes = IndexKeeper(IndexLimits(count=config.auto_index_max if config.auto_indexes else 0))
    requests = IndexRequestServer(runtime_dir / index_requests.SOCKET_NAME, indexes.submit)
    await requests.start()
    service = ReplicationService(config, callbacks, stop, indexes, Metrics())
    control.start(figures=service.figures)
    try:
        await asyncio.to_thread(service.run)
    except ConfigurationError as error:
        log.error("replication_impossible", code=error.code, reason=str(error))
        control.fatal(f"{error.code}: {error}")
        return EXIT_CONFIGURATION
    except Displaced as error:
        log.error("replication_displaced", code=error.code, reason=str(error))
        control.fatal(f"{error.code}: {error}", _EXIT_DISPLACED)
        return _EXIT_DISPLACED
    except ZerocacheError as error:
        log.error("replication_failed", code=error.code, reason=str(error))
        return _EXIT_FAILED
    finally:
        await requests.close()
        await notifier.close()
        control.close()
    return 0


def main() -> int:
    config = Config.from_environment()
    configure_logging(config.log, worker="replication")
    control = ChildControl.from_environment()
    return asyncio.run(serve(config, control, Path(os.environ[RUNTIME_DIR_VARIABLE])))


if __name__ == "__main__":
    sys.exit(main())
