"""Official Zero clients as Python objects: a driver process, its clients, their views.

Owns what the driver has reported so far; ``lines.py`` has the process and the waiting.
"""

from __future__ import annotations

import time
import uuid
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.e2e.lines import DEADLINE_S, DriverError, LineProcess, Row

_DRIVER = Path(__file__).parent / "driver" / "driver.mjs"


@dataclass
class _Reported:
    """Everything one client has told its application, newest last."""

    views: dict[str, list[Row]] = field(default_factory=lambda: defaultdict(list))
    connection: list[Row] = field(default_factory=list)
    mutations: dict[tuple[str, str], Row] = field(default_factory=dict)
    notices: list[Row] = field(default_factory=list)


class Driver:
    """One Node process with clients of one release.

    * Clients of one driver with the same ``group`` form one client group.
    * ``stop`` ends the process; its clients end with it, without saying goodbye.
    """

    def __init__(self, node: Path, package: Path, version: str, log: Path) -> None:
        self.version = version
        self._reported: dict[str, _Reported] = defaultdict(_Reported)
        self._lines = LineProcess([str(node), str(_DRIVER), str(package)], log, self._store)
        self.command = self._lines.command
        self.wait = self._lines.wait
        self.stop = self._lines.stop

    def _store(self, event: Row) -> None:
        reported = self._reported[event["client"]]
        kind = event["event"]
        if kind == "view":
            reported.views[event["view"]].append(event)
        elif kind == "connection":
            reported.connection.append(event["state"])
        elif kind == "mutation":
            reported.mutations[event["tag"], event["phase"]] = event["result"]
        else:
            reported.notices.append(event)

    def reported(self, client: str) -> _Reported:
        return self._reported[client]

    def open(self, server: str, *, group: str | None = None, **options: Any) -> Client:
        """A client connecting to ``server``; alone in its group unless ``group`` is given."""
        legacy_queries = options.pop("legacyQueries", False)
        name = f"client-{uuid.uuid4().hex[:8]}"
        options.setdefault("userID", "anon")
        options.update(server=server, storageKey=group or name)
        ids = self.command("open", client=name, options=options, legacyQueries=legacy_queries)
        return Client(self, name, ids["clientID"], ids["clientGroupID"])


@dataclass(frozen=True)
class Client:
    """One ``Zero`` instance."""

    driver: Driver
    name: str
    client_id: str
    group_id: str

    def view(self, name: str, args: Row | None = None, *, ttl: Any = None) -> View:
        """Materialize a named query."""
        return self._materialize("materialize", name, ttl, name=name, args=args)

    def legacy_view(self, table: str, *where: list[Any], ttl: Any = None) -> View:
        """Materialize a query by its AST, without a name."""
        return self._materialize("materializeLegacy", table, ttl, table=table, where=where)

    def _materialize(self, cmd: str, label: str, ttl: Any, **query: Any) -> View:
        view = f"{label}-{uuid.uuid4().hex[:6]}"
        # A null would be an argument of its own; absent ones are left out, as in an application.
        given = {key: value for key, value in {**query, "ttl": ttl}.items() if value is not None}
        self.driver.command(cmd, client=self.name, view=view, **given)
        return View(self, view)

    def snapshot(self) -> dict[str, Row]:
        found: dict[str, Row] = self.driver.command("snapshot", client=self.name)
        return found

    def rows(self) -> dict[str, list[Row]]:
        """Every row of the local store, by client table name."""
        found: dict[str, list[Row]] = self.driver.command("rows", client=self.name)
        return found

    def wait_rows(self, right: Callable[[dict[str, list[Row]]], bool], what: str) -> None:
        """Wait until the local store is ``right``; it has no events, so it is asked again."""
        deadline = time.monotonic() + DEADLINE_S
        while not right(rows := self.rows()):
            if time.monotonic() > deadline:
                raise DriverError(f"the local store never {what}: {rows}")
            time.sleep(0.02)

    def inspect(self, what: str, *args: Any) -> Any:
        """What the client's inspector says; see ``inspect`` in driver.mjs."""
        return self.driver.command("inspect", client=self.name, what=what, args=list(args))

    def mutate(self, name: str, **args: Any) -> Mutation:
        tag = f"{name}-{uuid.uuid4().hex[:6]}"
        self.driver.command("mutate", client=self.name, tag=tag, name=name, args=args)
        return Mutation(self, tag)

    def wait_connection(self, state: str, *, after: int = 0, deadline_s: float = DEADLINE_S) -> Row:
        """Wait until the client reports ``state``, beyond its first ``after`` reports."""

        def look() -> Row | None:
            seen = self.driver.reported(self.name).connection[after:]
            return next((one for one in reversed(seen) if one["name"] == state), None)

        return self.driver.wait(look, f"{self.name} being {state}", deadline_s)

    @property
    def connection_reports(self) -> list[Row]:
        return list(self.driver.reported(self.name).connection)

    @property
    def notices(self) -> list[Row]:
        """Pleas to reload the page: update needed, or server state lost."""
        return list(self.driver.reported(self.name).notices)

    def connect(self) -> None:
        """Leave an error state and connect again."""
        self.driver.command("connect", client=self.name)

    def close(self) -> None:
        self.driver.command("close", client=self.name)


@dataclass(frozen=True)
class View:
    """A materialized query; ``reports`` are its changes, each with ``data`` and ``type``."""

    client: Client
    name: str

    @property
    def reports(self) -> list[Row]:
        return list(self.client.driver.reported(self.client.name).views[self.name])

    def wait(
        self, right: Callable[[Row], bool], what: str, *, deadline_s: float = DEADLINE_S
    ) -> Row:
        """Wait until the newest report is ``right``."""

        def look() -> Row | None:
            reports = self.client.driver.reported(self.client.name).views[self.name]
            return reports[-1] if reports and right(reports[-1]) else None

        try:
            return self.client.driver.wait(look, what, deadline_s)
        except DriverError as error:
            last = self.reports[-1] if self.reports else "nothing"
            raise DriverError(f"{self.name}: {error}\nlast report: {last}") from error

    def wait_complete(self, *, deadline_s: float = DEADLINE_S) -> Row:
        return self.wait(lambda r: r["type"] == "complete", "complete", deadline_s=deadline_s)

    def wait_answer(self, expected: Any, *, deadline_s: float = DEADLINE_S) -> Row:
        """Wait until the view is complete and shows ``expected``.

        Client 0.25.9 may report a query as complete a moment before its rows.
        """
        return self.wait(
            lambda r: r["type"] == "complete" and r["data"] == expected,
            f"being complete with {expected!r}",
            deadline_s=deadline_s,
        )

    def forget(self) -> None:
        """Drop all reports but the newest, to look only at what happens from now on."""
        del self.client.driver.reported(self.client.name).views[self.name][:-1]

    def destroy(self) -> None:
        self.client.driver.command("destroyView", client=self.client.name, view=self.name)


@dataclass(frozen=True)
class Mutation:
    """The two promises of one mutation."""

    client: Client
    tag: str

    def wait(self, phase: str, *, deadline_s: float = DEADLINE_S) -> Row:
        """The result of ``phase``: ``client`` (optimistic) or ``server`` (authoritative)."""
        mutations = self.client.driver.reported(self.client.name).mutations
        return self.client.driver.wait(
            lambda: mutations.get((self.tag, phase)), f"{phase} result of {self.tag}", deadline_s
        )
