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

import apsw
import structlog

from replication_manager.service import Callbacks, ReplicationService
from replication_manager.signals import StopSignal
from zerocache.config import Config
from zerocache.control import EXIT_CONFIGURATION, RUNTIME_DIR_VARIABLE, ChildControl
from zerocache.errors import ConfigurationError, ZerocacheError
from zerocache.logging import configure_logging
from zerocache.replica.notifier import SOCKET_NAME, VersionNotifier

_EXIT_FAILED = 1

log = structlog.get_logger(__name__)


async def serve(config: Config, control: ChildControl, runtime_dir: Path) -> int:
    """Replicate until SIGTERM; the exit status."""
    stop = StopSignal()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    control.start()
    notifier = VersionNotifier(runtime_dir / SOCKET_NAME)
    await notifier.start()
    callbacks = Callbacks(control.ready, notifier.publish, control.progress)
    service = ReplicationService(config, callbacks, stop)
    try:
        await asyncio.to_thread(service.run)
    except ConfigurationError as error:
        log.error("replication_impossible", code=error.code, reason=str(error))
        control.fatal(f"{error.code}: {error}")
        return EXIT_CONFIGURATION
    except (apsw.FullError, apsw.IOError, OSError) as error:
        log.error(
            "replica_not_writable",
            file=config.replica.file,
            reason=f"{type(error).__name__}: {error}",
            advice="nothing was acknowledged upstream; free disk space, then it goes on",
        )
        return _EXIT_FAILED
    except ZerocacheError as error:
        log.error("replication_failed", code=error.code, reason=str(error))
        return _EXIT_FAILED
    finally:
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
