"""What lines look like, where they go, and what never gets into them."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from zerocache.logging import configure_logging, redact_text
from zerocache.options import Log

log = structlog.get_logger(__name__)


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:], root.level = handlers, level
    structlog.reset_defaults()


def json_line(text: str) -> dict[str, Any]:
    (line,) = text.splitlines()
    parsed: dict[str, Any] = json.loads(line)
    return parsed


def test_json_line_has_level_context_and_message(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(Log(format="json"), worker="syncer", workerIndex=1)
    log.info("client_connected", clientID="c1", huge=2**80)
    line = json_line(capsys.readouterr().out)
    assert line.pop("time")
    assert line.pop("pid")
    assert line == {
        "level": "INFO",
        "worker": "syncer",
        "workerIndex": 1,
        "clientID": "c1",
        "huge": 2**80,
        "message": "client_connected",
    }


def test_text_line_has_local_time_with_offset_and_fields(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logging(Log(), worker="syncer")
    log.info("client_connected", clientID="c1", reason="two words")
    line = capsys.readouterr().out
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d INFO  client_conn", line)
    assert line.endswith('worker=syncer clientID=c1 reason="two words"\n')


def test_warnings_and_errors_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(Log(level="debug"))
    for method in ("debug", "info", "warning", "error"):
        getattr(log, method)(f"at_{method}")
    captured = capsys.readouterr()
    assert "at_debug" in captured.out
    assert "at_info" in captured.out
    assert "at_warning" in captured.err
    assert "at_error" in captured.err
    assert len(captured.out.splitlines()) == len(captured.err.splitlines()) == 2


def test_lines_below_the_level_are_dropped(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(Log(level="warn"))
    log.info("quiet")
    log.warning("loud")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "loud" in captured.err


def test_exception_is_merged_into_the_json_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(Log(format="json"))
    try:
        try:
            raise KeyError("inner")
        except KeyError as error:
            raise ValueError("outer") from error
    except ValueError:
        log.exception("failed")
    line = json_line(capsys.readouterr().err)
    assert (line["name"], line["errorMsg"]) == ("ValueError", "outer")
    assert "Traceback" in line["stack"]
    assert line["cause"]["name"] == "KeyError"


def test_field_called_message_does_not_replace_the_event(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logging(Log(format="json"))
    log.info("event_name", message="detail")
    line = json_line(capsys.readouterr().out)
    assert (line["message"], line["detail"]) == ("event_name", "detail")


@pytest.mark.parametrize("style", ["text", "json"])
def test_secret_fields_are_blanked(style: str, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(Log.model_validate({"format": style}))
    log.info(
        "request",
        authToken="hunter2",
        admin_password="hunter2",
        headers={"X-Api-Key": "hunter2", "Cookie": "hunter2", "list": [{"jwk": "hunter2"}]},
        url="postgres://u:hunter2@h/d",
        baseCookie="00:01",
    )
    line = capsys.readouterr().out
    assert "hunter2" not in line
    assert "00:01" in line


def test_passwords_in_exceptions_are_blanked(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(Log())
    log.error("failed", exc_info=OSError("cannot reach postgres://u:hunter2@h/d"))
    log.error("failed", error=OSError("host=h password=hunter2 dbname=d"))
    assert "hunter2" not in capsys.readouterr().err


def test_only_the_password_of_a_url_is_blanked() -> None:
    assert redact_text("at http://h:80/a?b=c:d@e") == "at http://h:80/a?b=c:d@e"
    assert redact_text("postgres://u:p%40@h:1/d") == "postgres://u:***@h:1/d"


def test_records_of_libraries_arrive_in_the_same_format(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logging(Log(format="json"))
    logging.getLogger("some.library").warning("pool has %d connections", 3)
    line = json_line(capsys.readouterr().err)
    assert (line["message"], line["component"]) == ("pool has 3 connections", "some.library")


def test_library_debug_lines_are_dropped_because_they_show_contents(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logging(Log(level="debug"))
    logging.getLogger("websockets.server").debug("< TEXT 'row contents'")
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""
