"""Runs a supervisor with fake children as a program, for the tests that kill it.

Arguments: port, events file. Must never be imported. Invariant: prints ``ready`` when the port
has opened, and exits with what ``run_node`` returned.
"""

from __future__ import annotations

import asyncio
import sys

from tests.zerocache.nodes import commands, node_config
from zerocache.logging import configure_logging
from zerocache.supervisor import run_node


def main() -> int:
    port, events = int(sys.argv[1]), sys.argv[2]
    config = node_config(port)
    configure_logging(config.log)
    return asyncio.run(
        run_node(
            config,
            on_ready=lambda: print("ready", flush=True),
            commands=commands(events),
        )
    )


if __name__ == "__main__":
    sys.exit(main())
