"""The command ``zerocache``: the server, ``dev``, ``analyze-query``, ``--help``, ``--version``.

Owns the way from the command line to an exit status. Must never do what a process does: it loads
the configuration, sets up logging and hands over. Invariant: a configuration error is one message
on stderr and exit status 78.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import structlog

from zerocache.config import Config
from zerocache.config_flags import help_text
from zerocache.config_loader import load_config
from zerocache.control import EXIT_CONFIGURATION
from zerocache.errors import ConfigurationError
from zerocache.logging import configure_logging
from zerocache.options import options_of

log = structlog.get_logger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    match arguments:
        case ["dev", *rest]:
            from zerocache.dev.app import main as dev_main

            return dev_main(rest)
        case ["analyze-query", *rest]:
            from view_syncer.analyze import main as analyze_main

            return analyze_main(rest)
        case ["verify", *rest]:
            from replication_manager.verify import main as verify_main

            return verify_main(rest)
        case _ if "--help" in arguments or "-h" in arguments:
            print(help_text(options_of(Config), version=_version()))
            return 0
        case _ if "--version" in arguments:
            print(f"zerocache {_version()}")
            return 0
        case _:
            return _serve(arguments)


def _serve(arguments: Sequence[str]) -> int:
    try:
        config, warnings = load_config(arguments, os.environ, dotenv=Path(".env"))
    except ConfigurationError as error:
        print(f"zerocache: {error}", file=sys.stderr)
        return EXIT_CONFIGURATION
    configure_logging(config.log, worker="supervisor", taskID=config.task_id)
    for warning in warnings:
        log.warning(warning)
    log.info(
        "node_starting",
        version=config.server_version or _version(),
        appID=config.app.id,
        port=config.port,
        syncWorkers=config.num_sync_workers,
        development=config.development,
    )
    # Late: the halves and their libraries are not needed to explain a mistake.
    import asyncio

    from zerocache.supervisor import run_node

    return asyncio.run(run_node(config))


def _version() -> str:
    try:
        return metadata.version("zerocache")
    except metadata.PackageNotFoundError:
        # Run from a checkout that was not installed.
        return "(not installed)"


if __name__ == "__main__":
    sys.exit(main())
