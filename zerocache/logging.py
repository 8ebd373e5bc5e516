"""Logging of every process: one line per event, as text for people or JSON for machines.

Owns the set-up of structlog, the route of the standard library's log records into it, and the
removal of secrets from lines. Must never be told row values, SQL parameters or tokens; redaction
here is the second lock, not the first. Invariant: debug and info go to stdout, warnings and
errors to stderr, each line in one write.

``configure_logging`` is called once per process, by its entry point.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import threading
import traceback
from collections.abc import Callable, MutableMapping
from datetime import datetime
from typing import Any, TextIO

import structlog

from zerocache.options import Log

_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "error": logging.ERROR,
}
_LEVEL_NAMES = {"warning": "WARN", "warn": "WARN", "critical": "ERROR", "exception": "ERROR"}
_COLOURS = {"DEBUG": "\x1b[90m", "WARN": "\x1b[33m", "ERROR": "\x1b[31m"}
_PLAIN = re.compile(r"[^\s\"=]+")
_REDACTED = "***"

# Compared without case, "_" and "-", against the end of a field's name.
_SECRET_ENDINGS = (
    "password",
    "secret",
    "token",
    "apikey",
    "authorization",
    "cookie",
    "cookies",
    "jwk",
    "connectionstring",
)
# A version cookie is the client's place in the change stream, no credential.
_HARMLESS = frozenset({"basecookie"})
_URL_PASSWORD = re.compile(r"(\b[a-z][a-z0-9+.-]*://[^\s:/?#@\"']*):[^\s/?#\"']*@", re.IGNORECASE)
_PASSWORD_PARAMETER = re.compile(r"(\b(?:ssl)?password=)[^\s&\"']+", re.IGNORECASE)

Event = MutableMapping[str, Any]


def configure_logging(options: Log, *, final: bool = False, **context: object) -> None:
    """Set up logging; ``context`` (worker, workerIndex, taskID …) is on every line. After a
    ``final`` one, loggers that were used take no notice of another."""
    level = _LEVELS[options.level]
    fixed = {"pid": os.getpid(), **context}
    render = _render_json if options.format == "json" else _render_text
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            _context_adder(fixed),
            redact,
            render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=_SplitLoggerFactory(),
        # Making one at each use costs more than a message that is filtered out. But then it stays
        # as it is, and tests configure repeatedly.
        cache_logger_on_first_use=final,
    )
    _route_standard_library(level)


def redact(_logger: object, _method: str, event: Event) -> Event:
    """Blank the fields whose name says secret, and passwords inside texts."""
    for name, value in event.items():
        event[name] = _REDACTED if value and _is_secret(name) else _redact_value(value)
    return event


def redact_text(text: str) -> str:
    """The text with the passwords of URLs and connection strings blanked."""
    text = _URL_PASSWORD.sub(rf"\1:{_REDACTED}@", text)
    return _PASSWORD_PARAMETER.sub(rf"\1{_REDACTED}", text)


def _is_secret(name: str) -> bool:
    plain = name.lower().replace("_", "").replace("-", "")
    return plain not in _HARMLESS and plain.endswith(_SECRET_ENDINGS)


def _redact_value(value: Any) -> Any:
    if isinstance(value, str):
        return redact_text(value)
    if isinstance(value, dict):
        return {
            key: _REDACTED if item and _is_secret(str(key)) else _redact_value(item)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_redact_value(item) for item in value]
    return value


def _context_adder(context: dict[str, Any]) -> Callable[[object, str, Event], Event]:
    def add(_logger: object, method: str, event: Event) -> Event:
        level = event.pop("level", method)
        message = event.pop("event", "")
        if "message" in event:  # a field of that name must not replace the event's
            event["detail"] = event.pop("message")
        return {
            "level": _LEVEL_NAMES.get(level, level.upper()),
            **context,
            **event,
            "message": message,
        }

    return add


# --- rendering ---


def _render_json(_logger: object, _method: str, event: Event) -> str:
    error = _exception_of(event)
    line: dict[str, Any] = {"time": _now()}
    line.update((name, value) for name, value in event.items() if name != "exc_info")
    if error is not None:
        line.update(_describe(error))
        if error.__cause__ is not None:
            line["cause"] = _describe(error.__cause__)
    line["message"] = line.pop("message")
    return json.dumps(line, default=_as_text, ensure_ascii=False)


def _render_text(_logger: object, _method: str, event: Event) -> str:
    error = _exception_of(event)
    level = event.pop("level")
    message = event.pop("message")
    event.pop("exc_info", None)
    fields = " ".join(f"{name}={_text_value(value)}" for name, value in event.items())
    line = f"{_now()} {level:<5} {message} {fields}".rstrip()
    if error is not None:
        line += "\n" + _stack(error).rstrip()
    if level in _COLOURS and _stream(level).isatty():
        line = f"{_COLOURS[level]}{line}\x1b[0m"
    return line


def _exception_of(event: Event) -> BaseException | None:
    exc_info = event.get("exc_info")
    if exc_info is True:
        return sys.exc_info()[1]
    if isinstance(exc_info, tuple):
        error = exc_info[1]
        return error if isinstance(error, BaseException) else None
    return exc_info if isinstance(exc_info, BaseException) else None


def _describe(error: BaseException) -> dict[str, str]:
    return {
        "name": type(error).__name__,
        "errorMsg": redact_text(str(error)),
        "stack": _stack(error),
    }


def _stack(error: BaseException) -> str:
    return redact_text("".join(traceback.format_exception(error)))


def _text_value(value: Any) -> str:
    if isinstance(value, dict | list | tuple | bool | int | float) or value is None:
        text = json.dumps(value, default=_as_text)
    else:
        text = _as_text(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=False)


def _as_text(value: object) -> str:
    return redact_text(str(value))


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="milliseconds")


# --- writing ---


class _SplitLogger:
    """What structlog calls with a finished line; the method's name is the level."""

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock

    def _out(self, line: str) -> None:
        self._write(sys.stdout, line)

    def _err(self, line: str) -> None:
        self._write(sys.stderr, line)

    def _write(self, stream: TextIO, line: str) -> None:
        try:
            with self._lock:
                stream.write(line + "\n")
                stream.flush()
        except (OSError, ValueError):
            # The reader of our output is gone; there is no other place to say so.
            return

    debug = info = msg = _out
    warning = warn = error = critical = exception = fatal = failure = _err


class _SplitLoggerFactory:
    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __call__(self, *_args: object) -> _SplitLogger:
        return _SplitLogger(self._lock)


def _stream(level: str) -> TextIO:
    return sys.stderr if level in ("WARN", "ERROR") else sys.stdout


class _StandardLibraryHandler(logging.Handler):
    """Hands the records of libraries to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            structlog.get_logger().log(
                min(record.levelno, logging.ERROR),
                record.getMessage(),
                component=record.name,
                exc_info=record.exc_info,
            )
        except Exception:
            self.handleError(record)


def _route_standard_library(level: int) -> None:
    # Libraries write frames and statements at debug: contents, which no log may contain. At info
    # they write a line per connection, which our own lines say better.
    threshold = logging.INFO if level <= logging.DEBUG else max(level, logging.WARNING)
    root = logging.getLogger()
    for handler in list(root.handlers):
        if isinstance(handler, _StandardLibraryHandler):
            root.removeHandler(handler)
    root.addHandler(_StandardLibraryHandler())
    root.setLevel(threshold)
