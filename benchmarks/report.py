"""Results: what was measured, on what, as a table and as JSON.

Owns the shape of a result file. Must never compute a number. Invariant: every file states the
machine, the versions and the settings it was taken with.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import apsw
import psutil

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Metric:
    """One number of one server. ``higher_is_better`` decides how a ratio reads."""

    benchmark: str
    name: str
    value: float
    unit: str
    higher_is_better: bool = False
    # Whatever explains the number: all samples, percentiles, load.
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ServerResult:
    server: str
    version: str
    metrics: tuple[Metric, ...]
    # Sentences that qualify the numbers, printed below the table.
    notes: tuple[str, ...] = ()


def machine() -> dict[str, Any]:
    return {
        "cpu": _cpu_model(),
        "cpus_usable": len(os.sched_getaffinity(0)),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": platform.platform(),
        # Builds differ by half: whose it is says more than the version.
        "python": f"{platform.python_version()} of {sys.base_prefix}",
        "sqlite_of_apsw": apsw.sqlite_lib_version(),
        "load_average_at_start": round(os.getloadavg()[0], 2),
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def write(name: str, results: Sequence[ServerResult], settings: dict[str, Any]) -> Path:
    """Write ``results/<name>-<time>.json``; the path is returned."""
    RESULTS.mkdir(exist_ok=True)
    now = datetime.now(UTC)
    path = RESULTS / f"{name}-{now:%Y%m%dT%H%M%S}.json"
    document = {
        "benchmark": name,
        "taken_at": now.isoformat(timespec="seconds"),
        "machine": machine(),
        "settings": settings,
        "results": [asdict(result) for result in results],
    }
    path.write_text(json.dumps(document, indent=1) + "\n")
    return path


def print_header(settings: dict[str, Any]) -> None:
    facts = machine()
    print(f"machine: {facts['cpu']}, {facts['cpus_usable']} CPUs, {facts['memory_gb']} GB,", end="")
    print(f" {facts['system']}, load {facts['load_average_at_start']}")
    print(f"versions: Python {facts['python']}, SQLite {facts['sqlite_of_apsw']},", end="")
    print(f" {', '.join(f'{key} {value}' for key, value in settings.items())}")


def print_table(results: Sequence[ServerResult]) -> None:
    """One line a metric, one column a server; a ratio if there are two."""
    width = 44
    names = [f"{result.server} {result.version}" for result in results]
    head = f"{'':{width}}" + "".join(f"{name:>22}" for name in names)
    print(head + (f"{'ratio':>10}" if len(results) == 2 else ""))
    for metric in _distinct(results):
        cells = [_find(result, metric) for result in results]
        line = f"{f'{metric.benchmark}: {metric.name}':{width}}"
        line += "".join(f"{_format(cell):>22}" for cell in cells)
        if len(cells) == 2:
            line += f"{_ratio(*cells):>10}"
        print(line)
    if len(results) == 2:
        print(f"ratio > 1: {results[0].server} is better by that factor")
    for result in results:
        for note in result.notes:
            print(f"{result.server}: {note}")
    sys.stdout.flush()


def _distinct(results: Sequence[ServerResult]) -> list[Metric]:
    """One metric of each kind, in the order of the servers."""
    found: dict[tuple[str, str], Metric] = {}
    for result in results:
        for metric in result.metrics:
            found.setdefault((metric.benchmark, metric.name), metric)
    return list(found.values())


def _find(result: ServerResult, like: Metric) -> Metric | None:
    for metric in result.metrics:
        if (metric.benchmark, metric.name) == (like.benchmark, like.name):
            return metric
    return None


def _format(metric: Metric | None) -> str:
    if metric is None:
        return "-"
    digits = 0 if metric.value >= 100 else 1 if metric.value >= 10 else 2
    return f"{metric.value:,.{digits}f} {metric.unit}"


def ratio(ours: Metric, theirs: Metric) -> float | None:
    """How many times better ``ours`` is; None where one of them is zero."""
    if not ours.value or not theirs.value:
        return None
    better = ours.value / theirs.value
    return better if ours.higher_is_better else 1 / better


def _ratio(ours: Metric | None, theirs: Metric | None) -> str:
    factor = ratio(ours, theirs) if ours and theirs else None
    return "-" if factor is None else f"{factor:.2f}×"
