"""Bodies and logs."""

from __future__ import annotations

from typing import Any

import pytest
from structlog.testing import capture_logs

from zerocache.server.endpoint import BodyError, LogLevel, identity, logger, parse_json, settle


@pytest.mark.parametrize("body", [b'[1, "x"]', '[1, "x"]', [1, "x"]])
def test_bodies_come_as_text_or_parsed(body: Any) -> None:
    assert parse_json(body) == [1, "x"]


@pytest.mark.parametrize("body", [b"{", "", b"\xff"])
def test_text_that_is_not_json_is_refused(body: Any) -> None:
    with pytest.raises(BodyError, match="not JSON"):
        parse_json(body)


@pytest.mark.parametrize(("level", "heard"), [("debug", 3), ("warn", 2), ("error", 1)])
def test_logs_below_the_level_are_silent(level: LogLevel, heard: int) -> None:
    with capture_logs() as logs:
        log = logger("here", level)
        log.info("one")
        log.warning("two")
        log.error("three")
    assert len(logs) == heard
    assert logs[-1] == {"event": "three", "log_level": "error", "logger": "here"}


async def test_settle_awaits_only_what_can_be_awaited() -> None:
    async def later() -> int:
        return 1

    assert await settle(later()) == await settle(1) == 1


def test_identity_is_absent_unless_given() -> None:
    assert identity(None) == {"userID": None}
