"""``GET /metrics``: the node's counters and gauges, for Prometheus, behind the admin password.

Owns how the figures of the processes become series: those of the replication process are series
already, those of each sync worker get its name as the label ``worker``. Must never show row
contents, nor anything that has a value per client. Invariant: a process that does not answer is
missing, and ``zero_server_up`` says so; the others still answer.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any

import msgspec

from view_syncer.http_head import RequestHead, response
from zerocache.metrics import Series, prometheus_name, prometheus_text

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_OF_WORKERS = {
    "connections": "sync.websocket.open_connections",
    "clients": "sync.active-clients",
    "clientGroups": "sync.active-client-groups",
    "clientsBehind": "sync.clients_behind",
    "clientsWaiting": "sync.clients_waiting",
}
_COUNTED_BY_WORKERS = {
    "messagesRefused": "sync.messages_refused",
    "clientsAheadOfReplica": "sync.clients_ahead_of_replica",
}


def node_series(
    workers: Mapping[str, Mapping[str, Any]], replication: Mapping[str, Any]
) -> list[Series]:
    """Everything, sorted; ``workers`` by name as the supervisor sums them up."""
    series = msgspec.convert(replication.get("series", []), list[Series])
    processes = {name: figures for name, figures in workers.items() if name != "total"}
    for name, figures in {**processes, "replication": replication}.items():
        answers = "state" not in figures
        series.append(Series("server.up", "gauge", (("worker", name),), answers))
    for name, figures in processes.items():
        series += _worker_series(name, figures)
    return sorted(series, key=lambda one: (one.name, one.attributes))


def _worker_series(worker: str, figures: Mapping[str, Any]) -> Iterable[Series]:
    label = (("worker", worker),)
    for key, name in _OF_WORKERS.items():
        if key in figures:
            yield Series(name, "gauge", label, figures[key])
    for key, name in _COUNTED_BY_WORKERS.items():
        if key in figures:
            yield Series(name, "counter", label, figures[key])


def answer_metrics(request: RequestHead, series: Iterable[Series]) -> bytes:
    """The whole HTTP answer to somebody who may see it."""
    if request.query.get("format") == "json":
        flat = {_flat_name(one): one.value for one in series}
        return response(HTTPStatus.OK, json.dumps(flat).encode(), "application/json")
    return response(HTTPStatus.OK, prometheus_text(series).encode(), CONTENT_TYPE)


def _flat_name(series: Series) -> str:
    labels = ",".join(f"{key}={value}" for key, value in series.attributes)
    return prometheus_name(series.name) + (f"{{{labels}}}" if labels else "")
