"""The supervisor of one node: starts its processes, keeps them running, ends them in order.

Owns the life of the node: the replication process, N sync workers, then the client port, and the
drain at the end. Must never serve a client itself (the dispatcher hands sockets on) and never
touch the replica. Invariants: the client port opens only when every process is ready; when
``run_node`` returns, every process it started has ended.

Exit statuses: 0 after a drain, 13 after an unexpected exception, 14 after SIGQUIT, 78 for a
configuration error, 255 otherwise.
"""

from __future__ import annotations

import asyncio
import resource
import signal
import socket
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import structlog
from msgspec import structs

from zerocache.child_process import ChildProcess
from zerocache.config import Config
from zerocache.connection_counts import ConnectionCounts
from zerocache.control import EXIT_CONFIGURATION, RUNTIME_DIR_VARIABLE, ControlClosed, HandOff
from zerocache.errors import ConfigurationError
from zerocache.keepalive import KeepaliveMonitor
from zerocache.role import RestartPolicy, Role, RoleFailed

EXIT_DRAINED = 0
EXIT_EXCEPTION = 13
EXIT_QUIT = 14

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class NodePolicy:
    """The supervisor's times; tests shorten them."""

    restarts: RestartPolicy = field(default_factory=RestartPolicy)
    starting_report_s: float = 10.0
    # How long a client's socket waits for a worker that is being restarted.
    hand_off_wait_s: float = 8.0
    # The replication process has nothing to drain: it only finishes a transaction.
    replication_stop_s: float = 30.0
    # What a worker may need beyond ZEROCACHE_DRAIN_TIMEOUT_SECONDS to end in order.
    drain_grace_s: float = 5.0
    # How long /statz waits for a worker's own figures.
    figures_wait_s: float = 2.0


@dataclass(frozen=True)
class NodeCommands:
    """How the processes are started; tests put their own programs here."""

    replication: Sequence[str] = (sys.executable, "-m", "replication_manager")
    sync_worker: Sequence[str] = (sys.executable, "-m", "view_syncer")

    def of_worker(self, index: int) -> tuple[str, ...]:
        return (*self.sync_worker, "--index", str(index))


class _Stopped(Exception):
    """The node was asked to stop while it was doing something else."""


class Node:
    """The processes of one node and the order in which they start and end."""

    def __init__(
        self,
        config: Config,
        runtime_dir: str,
        *,
        commands: NodeCommands,
        policy: NodePolicy,
        on_ready: Callable[[], None] | None,
    ) -> None:
        environ = {**config.to_environment(), RUNTIME_DIR_VARIABLE: runtime_dir}
        self._config = config
        self._policy = policy
        self._on_ready = on_ready
        self._replication = Role("replication", commands.replication, environ, policy.restarts)
        self._connections = ConnectionCounts(config.max_connections, config.max_connections_per_ip)
        self._workers = tuple(
            Role(
                f"sync-worker-{index}",
                commands.of_worker(index),
                environ,
                policy.restarts,
                on_started=self._worker_started,
            )
            for index in range(config.num_sync_workers)
        )
        # What ends the node. Completed by a failed role or by a request, whichever is first.
        self._end: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._quit = asyncio.Event()

    def ask_to_stop(self) -> None:
        """Drain and end; asking again changes nothing."""
        if not self._end.done():
            log.info("node_draining")
            self._end.set_exception(_Stopped())

    def ask_to_quit(self) -> None:
        """End at once, without a drain."""
        self._quit.set()

    async def run(self) -> int:
        """Run until asked to end; returns the exit status, raises what ended the node otherwise."""
        life = asyncio.create_task(self._live())
        quit_asked = asyncio.create_task(self._quit.wait())
        try:
            await asyncio.wait([life, quit_asked], return_when=asyncio.FIRST_COMPLETED)
            if life.done():
                return life.result()
            log.warning("node_quit", reason="asked to end without a drain")
            return EXIT_QUIT
        finally:
            quit_asked.cancel()
            life.cancel()
            await asyncio.wait([life])
            await asyncio.gather(*(role.kill() for role in (*self._workers, self._replication)))
            if not self._end.cancel() and not self._end.cancelled():
                self._end.exception()  # looked at, even if the node was quit before anybody did

    async def hand_over(self, worker: int, sock: socket.socket, hand_off: HandOff) -> bool:
        """Give a client's socket to a worker, or to its successor; False if none came in time.

        The caller keeps owning its descriptor and closes it either way. A connection beyond the
        limits is handed over as well: refusing it takes a WebSocket.
        """
        refusal = self._connections.reserve(hand_off.address)
        if refusal is not None:
            refused = structs.replace(hand_off, address="", refusal=refusal)
            return await self._hand_over(worker, sock, refused) is not None
        process = None
        try:
            process = await self._hand_over(worker, sock, hand_off)
        finally:
            if process is None:
                self._connections.cancel(hand_off.address)
            else:
                self._connections.assign(hand_off.address, process)
        return process is not None

    async def _hand_over(self, worker: int, sock: socket.socket, hand_off: HandOff) -> int | None:
        """The process that has the socket now."""
        role = self._workers[worker]
        try:
            async with asyncio.timeout(self._policy.hand_off_wait_s):
                while True:
                    child = await role.current()
                    try:
                        await child.control.send_socket(sock, hand_off)
                        return child.pid
                    except ControlClosed:
                        # It died under our hands; its end is noticed in a moment.
                        await asyncio.wait([child.ended])
        except TimeoutError:
            return None

    def _worker_started(self, child: ChildProcess) -> None:
        telling = asyncio.create_task(self._tell_replica_ready(child))
        child.ended.add_done_callback(lambda _: telling.cancel())
        child.on_released = lambda address: self._connections.release(address, child.pid)
        child.ended.add_done_callback(lambda _: self._connections.forget(child.pid))

    async def _tell_replica_ready(self, child: ChildProcess) -> None:
        await self._replication.first_ready.wait()
        with suppress(ControlClosed):  # it has just ended, and its successor will be told
            await child.control.replica_ready()

    async def worker_figures(self) -> dict[str, Any]:
        """What each worker says of itself, and the sums of what they count."""
        answers = await asyncio.gather(*map(self._figures_of, self._workers))
        total: dict[str, float] = {}
        for answer in answers:
            for name, value in answer.items():
                if isinstance(value, int | float) and name != "pid":
                    total[name] = total.get(name, 0) + value
        figures: dict[str, Any] = {
            role.name: answer for role, answer in zip(self._workers, answers, strict=True)
        }
        counts = self._connections
        accepted = {"connectionsCounted": counts.total, "connectionsRefused": counts.refused}
        return {"total": {**total, **accepted}, **figures}

    async def replication_figures(self) -> dict[str, Any]:
        """What the replication process says of itself."""
        return await self._figures_of(self._replication)

    async def _figures_of(self, role: Role) -> dict[str, Any]:
        child = role.child
        if child is None or not child.ready.is_set() or child.ended.done():
            return {"state": "starting"}
        try:
            async with asyncio.timeout(self._policy.figures_wait_s):
                return {"pid": child.pid, **await child.figures()}
        except (TimeoutError, ControlClosed):
            return {"pid": child.pid, "state": "no answer"}

    def not_ready_because(self) -> str | None:
        """Why a load balancer should send clients elsewhere."""
        if self._end.done():
            return "draining"
        if self._connections.is_nearly_full:
            return "nearly all allowed connections are taken"
        return None

    async def _live(self) -> int:
        from view_syncer.dispatcher import Dispatcher  # here alone the supervisor meets a half

        timeout_ms = self._config.keepalive_timeout_ms
        keepalive = (
            KeepaliveMonitor(timeout_ms / 1000, self._keepalive_lost) if timeout_ms else None
        )
        dispatcher = Dispatcher(
            self._config,
            hand_over=self.hand_over,
            on_keepalive=keepalive.call if keepalive else None,
            not_ready_because=self.not_ready_because,
            worker_figures=self.worker_figures,
            replication_figures=self.replication_figures,
        )
        try:
            # Bound early, so that a port in use is found before a long initial sync.
            dispatcher.bind()
            await self._or_end(self._start_processes())
            dispatcher.listen()
            log.info("node_ready", port=dispatcher.port, syncWorkers=len(self._workers))
            if self._on_ready is not None:
                self._on_ready()
            try:
                await self._end
            except _Stopped:
                # The port stays open, for health checks that say "not ready" and for clients that
                # come all the same: workers send them elsewhere.
                await self._drain_workers()
        except _Stopped:
            await self._drain_workers()  # it never got as far as being ready
        finally:
            if keepalive is not None:
                keepalive.close()
            await dispatcher.close()
        await self._replication.stop(self._policy.replication_stop_s)
        return EXIT_DRAINED

    async def _start_processes(self) -> None:
        report = asyncio.create_task(self._report_starting())
        try:
            # All at once: a worker loads its program while the replica is being made.
            roles = (self._replication, *self._workers)
            for role in roles:
                role.launch(self._failed)
            for role in roles:
                await role.first_ready.wait()
        finally:
            report.cancel()

    async def _report_starting(self) -> None:
        while True:
            await asyncio.sleep(self._policy.starting_report_s)
            roles = (self._replication, *self._workers)
            waiting = [role.name for role in roles if not role.first_ready.is_set()]
            log.info("node_starting", waitingFor=waiting)

    async def _or_end(self, work: Awaitable[None]) -> None:
        """Await ``work``, or raise what ends the node before it is done."""
        doing = asyncio.ensure_future(work)
        try:
            await asyncio.wait([doing, self._end], return_when=asyncio.FIRST_COMPLETED)
            if self._end.done():
                self._end.result()
            doing.result()
        finally:
            doing.cancel()

    async def _drain_workers(self) -> None:
        """Before the replication process: what they still send depends on it."""
        limit_s = self._config.drain_timeout_seconds
        timeout_s = limit_s + self._policy.drain_grace_s if limit_s else None
        await asyncio.gather(*(worker.stop(timeout_s) for worker in self._workers))

    def _failed(self, error: BaseException) -> None:
        if not self._end.done():
            self._end.set_exception(error)

    def _keepalive_lost(self) -> None:
        log.info("keepalive_lost", action="draining")
        self.ask_to_stop()


async def run_node(
    config: Config,
    *,
    on_ready: Callable[[], None] | None = None,
    commands: NodeCommands | None = None,
    policy: NodePolicy | None = None,
) -> int:
    """Run a node until it is told to end; returns the exit status.

    In the main thread SIGTERM and SIGINT drain, SIGQUIT ends at once. Cancelling the task ends
    all processes at once, too. ``on_ready`` is called when the client port has opened.
    """
    _raise_descriptor_limit()
    try:
        _check_endpoint_patterns(config)
        with tempfile.TemporaryDirectory(prefix="zerocache-") as runtime_dir:
            node = Node(
                config,
                runtime_dir,
                commands=commands or NodeCommands(),
                policy=policy or NodePolicy(),
                on_ready=on_ready,
            )
            with _signals(node):
                status = await node.run()
    except RoleFailed as error:
        log.error(str(error), exitStatus=error.status)
        return error.status
    except ConfigurationError as error:
        log.error(str(error), code=error.code, exitStatus=EXIT_CONFIGURATION)
        return EXIT_CONFIGURATION
    except Exception:
        log.exception("node_failed", exitStatus=EXIT_EXCEPTION)
        return EXIT_EXCEPTION
    log.info("node_ended", exitStatus=status)
    return status


def _raise_descriptor_limit() -> None:
    """Allow as many open descriptors as the system grants; children inherit it.

    Each client is one descriptor, and the usual soft limit of 1024 is kept only for programs
    that use select().
    """
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # refused in some sandboxes: then the limit stays
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _check_endpoint_patterns(config: Config) -> None:
    """Compile the URL patterns once here, so that a mistake ends the node and not a worker."""
    from view_syncer.url_pattern import compile_patterns

    for variable, endpoint in (
        ("ZERO_MUTATE_URL", config.mutate),
        ("ZERO_QUERY_URL", config.query),
    ):
        compile_patterns(endpoint.url, variable)


@contextmanager
def _signals(node: Node) -> Iterator[None]:
    """Translate signals while the node runs."""
    loop = asyncio.get_running_loop()
    interrupts = 0

    def interrupted() -> None:
        nonlocal interrupts
        interrupts += 1
        if interrupts == 1:
            node.ask_to_stop()
        else:
            # Only for Ctrl-C: an impatient person, where a repeated SIGTERM is an orchestrator.
            node.ask_to_quit()

    handlers: dict[signal.Signals, Callable[[], None]] = {
        signal.SIGTERM: node.ask_to_stop,
        signal.SIGINT: interrupted,
        signal.SIGQUIT: node.ask_to_quit,
    }
    installed = []
    # Outside the main thread there are no handlers: whoever embeds the node cancels its task.
    with suppress(RuntimeError, ValueError):
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)
            installed.append(number)
    try:
        yield
    finally:
        for number in installed:
            loop.remove_signal_handler(number)
