"""Imports point one way (README, "How it works"); read from the source, nothing is imported."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HOUSE = ("zerocache", "view_syncer", "replication_manager")
# The command line and the supervisor start both halves; everything else knows at most one.
MEETING_POINTS = ("zerocache/supervisor.py", "zerocache/cli.py", "zerocache/dev/")
KERNEL_CORE = ("zerocache.protocol", "zerocache.zql", "zerocache.errors")
OUTSIDE_THE_ENGINE = {
    "asyncio", "socket", "ssl", "select", "selectors", "socketserver", "uvloop",
    "psycopg", "aiohttp", "websockets", "http", "urllib",
}  # fmt: skip


def modules(*packages: str) -> list[Path]:
    return [file for name in packages for file in sorted((ROOT / name).rglob("*.py"))]


def imports(file: Path) -> Iterator[tuple[str, bool]]:
    """Dotted names a module imports, and whether that happens inside a function."""
    tree = ast.parse(file.read_text(), str(file))
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in inside
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(file, node)
            for alias in node.names:
                yield f"{base}.{alias.name}", id(node) in inside


def _absolute(file: Path, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    package = file.relative_to(ROOT).parent.parts
    parents = package[: len(package) - node.level + 1]
    return ".".join([*parents, *([node.module] if node.module else [])])


def within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def name_of(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("file", modules("view_syncer"), ids=name_of)
def test_view_syncer_does_not_know_the_replication_manager(file: Path) -> None:
    assert [name for name, _ in imports(file) if within(name, "replication_manager")] == []


@pytest.mark.parametrize("file", modules("replication_manager"), ids=name_of)
def test_replication_manager_does_not_know_the_view_syncer(file: Path) -> None:
    assert [name for name, _ in imports(file) if within(name, "view_syncer")] == []


@pytest.mark.parametrize("file", modules("zerocache"), ids=name_of)
def test_kernel_meets_the_halves_only_where_it_starts_them(file: Path) -> None:
    halves = [
        (name, lazy)
        for name, lazy in imports(file)
        if within(name, "view_syncer", "replication_manager")
    ]
    if name_of(file).startswith(MEETING_POINTS):
        # Inside functions, so that importing the kernel never loads a half.
        assert [name for name, lazy in halves if not lazy] == []
    else:
        assert halves == []


@pytest.mark.parametrize("package", ["zerocache/protocol", "zerocache/zql"])
def test_wire_and_query_language_know_only_themselves_and_the_errors(package: str) -> None:
    for file in modules(package):
        foreign = [
            name
            for name, _ in imports(file)
            if within(name, *HOUSE) and not within(name, *KERNEL_CORE)
        ]
        assert foreign == [], name_of(file)


@pytest.mark.parametrize("file", modules("view_syncer/ivm"), ids=name_of)
def test_query_engine_knows_no_loop_no_socket_and_no_postgres(file: Path) -> None:
    foreign = [name for name, _ in imports(file) if name.partition(".")[0] in OUTSIDE_THE_ENGINE]
    assert foreign == []


def test_rules_see_relative_and_nested_imports(tmp_path: Path) -> None:
    source = "from . import a\nfrom ..b import c\ndef f():\n    import d.e\n"
    file = ROOT / "view_syncer" / "ivm" / "imagined.py"
    tree = tmp_path / "imagined.py"
    tree.write_text(source)
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    assert [_absolute(file, node) for node in nodes] == ["view_syncer.ivm", "view_syncer.b"]
    assert ("d.e", True) in list(imports_of_text(tree))


def imports_of_text(file: Path) -> Iterator[tuple[str, bool]]:
    """``imports`` for a file without relative imports that matter."""
    file.write_text(file.read_text().split("\n", 2)[2])
    yield from imports(file)
