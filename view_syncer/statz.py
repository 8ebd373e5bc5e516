"""``GET /statz``: figures about this node for its operator, behind the admin password.

Owns the authentication, the groups and their rendering. A new group is one more entry in
``default_groups``: a name and a function that returns something JSON can hold. Must never show
row contents or a setting that is a secret. Invariant: a group that fails shows its error, the
others still answer.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import os
import platform
import resource
import sys
from collections.abc import Callable, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

import apsw

from view_syncer.http_head import RequestHead, response
from zerocache.config import Config
from zerocache.replica.hidden import hidden_from_clients
from zerocache.replica.layout import load_tables
from zerocache.replica.reader import open_replica

StatzGroup = Callable[[], Mapping[str, Any]]

_REPLICA_PRAGMAS = (
    "page_size",
    "page_count",
    "freelist_count",
    "journal_mode",
    "wal_autocheckpoint",
    "cache_size",
    "synchronous",
)


def default_groups(config: Config) -> dict[str, StatzGroup]:
    """The groups of a node, in the order they are shown."""
    return {
        "replica": lambda: replica_figures(config.replica.file),
        "hidden": lambda: hidden_figures(config.replica.file),
        "os": operating_system_figures,
    }


def answer_statz(request: RequestHead, config: Config, groups: Mapping[str, StatzGroup]) -> bytes:
    """The whole HTTP answer. May touch the disk: call it from a thread."""
    if not is_admin(request.headers.get("authorization"), config):
        return unauthorized()
    wanted = [name for name in request.query.get("group", "").split(",") if name]
    unknown = [name for name in wanted if name not in groups]
    figures = {name: _evaluate(groups[name]) for name in wanted or groups if name in groups}
    figures |= {name: {"error": f"There is no group {name!r}"} for name in unknown}
    if request.query.get("format") == "json":
        indent = 2 if "pretty" in request.query else None
        body = json.dumps(figures, indent=indent, default=str)
        return response(HTTPStatus.OK, body.encode(), "application/json")
    return response(HTTPStatus.OK, _as_text(figures).encode())


def is_admin(authorization: str | None, config: Config) -> bool:
    """Basic authentication with the admin password; the user name does not matter."""
    given = _basic_password(authorization)
    if config.admin_password is None:
        return config.development and not given
    return given is not None and hmac.compare_digest(given.encode(), config.admin_password.encode())


def unauthorized() -> bytes:
    """Asks for the password."""
    return response(
        HTTPStatus.UNAUTHORIZED,
        b"Unauthorized",
        headers={"WWW-Authenticate": 'Basic realm="zerocache statz"'},
    )


def _basic_password(authorization: str | None) -> str | None:
    scheme, _, encoded = (authorization or "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        decoded = base64.b64decode(encoded.strip(), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return None
    return decoded.partition(":")[2]


def _evaluate(group: StatzGroup) -> Mapping[str, Any]:
    try:
        return group()
    except Exception as error:  # whatever it is, the operator asked to see it
        return {"error": str(error)}


def _as_text(figures: Mapping[str, Mapping[str, Any]]) -> str:
    lines = []
    for group, values in figures.items():
        lines.append(f"=== {group} ===")
        for name, value in values.items():
            lines.append(f"{name}: {json.dumps(value, indent=2, default=str)}")
        lines.append("")
    return "\n".join(lines)


def replica_figures(file: str) -> dict[str, Any]:
    """Page and cache settings of the replica, and its files."""
    connection = apsw.Connection(file, flags=apsw.SQLITE_OPEN_READONLY)
    try:
        figures: dict[str, Any] = {pragma: connection.pragma(pragma) for pragma in _REPLICA_PRAGMAS}
    finally:
        connection.close()
    for path in (Path(file), Path(file + "-wal")):
        if path.exists():
            stat = path.stat()
            figures[path.name] = {"bytes": stat.st_size, "modified": stat.st_mtime}
    return figures


def hidden_figures(file: str) -> dict[str, Any]:
    """What is in the replica but never sent to clients."""
    connection = open_replica(file)
    try:
        hidden = hidden_from_clients(load_tables(connection).values())
    finally:
        connection.close()
    return {"columns": hidden.columns, "tables": hidden.tables}


def operating_system_figures() -> dict[str, Any]:
    """Load, memory and versions of the machine."""
    pages, page_size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return {
        "loadAverage": os.getloadavg(),
        "cpus": os.cpu_count(),
        "usableCpus": len(os.sched_getaffinity(0)),
        "totalMemoryBytes": pages * page_size,
        "availableMemoryBytes": os.sysconf("SC_AVPHYS_PAGES") * page_size,
        "maxResidentKilobytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "platform": platform.platform(),
        "python": sys.version.split()[0],
        "sqlite": apsw.sqlite_lib_version(),
    }
