"""Carries the mutations of one client group to the application (api-and-auth.md §2).

Owns the queue, the batches and the meaning of the answers. It must never answer a mutation itself
(outcomes travel by replication), reorder the mutations of a socket, or merge mutations that came
with different credentials. Invariant: one request of a group is under way at a time, and every
failed batch is reported to at least one socket that can act on it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import msgspec
import structlog

from view_syncer.api_client import ApiClient, ApiEndpoint, RequestContext, is_auth_failure
from view_syncer.auth import Identity, require_identity
from view_syncer.push_response import (
    MutationId,
    PushFailure,
    PushSuccess,
    decode_push_response,
)
from zerocache.errors import ApplicationCallError, ClientFacingError
from zerocache.protocol.sync import CustomMutation, Push

log = structlog.get_logger(__name__)

MAX_QUEUED: Final = 1000
"""Queued mutations of a group beyond which :meth:`Pusher.push` waits, and with it the socket."""


@dataclass(frozen=True, slots=True)
class Sender:
    """The connection a push came from, as it was at that moment.

    ``revision`` counts the changes of its credentials; ``context`` holds those to be used.
    """

    client_id: str
    wsid: str
    revision: int
    context: RequestContext


class PushListener(Protocol):
    """What the client group does about outcomes. None of these may block or raise, except that
    ``push_succeeded`` raises ``Unauthorized`` when the identity is not the pinned one."""

    def fail_connection(self, client_id: str, error: ClientFacingError) -> bool:
        """Send ``error`` and close; False if the client is not connected here."""

    def push_succeeded(self, sender: Sender, identity: Identity) -> None:
        """The application accepted the sender's credentials."""

    def push_auth_failed(self, sender: Sender) -> None:
        """The application refused the sender's credentials; called before any connection fails."""


@dataclass(frozen=True, slots=True)
class _Entry:
    sender: Sender
    push: Push
    mutations: tuple[CustomMutation, ...]

    @property
    def batch_key(self) -> tuple[object, ...]:
        """Only pushes that agree in this share a request. Versions are in it because a client may
        send anything; the stock client never changes them."""
        sender, push = self.sender, self.push
        versions = (push.push_version, push.schema_version)
        return (sender.client_id, sender.wsid, sender.revision, *versions)


@dataclass(frozen=True, slots=True)
class _Cleanup:
    sender: Sender
    body: bytes


def require_own_group(push: Push, group_id: str) -> None:
    """Raise ``InvalidPush`` for mutations of another client group."""
    if push.client_group_id != group_id:
        raise ClientFacingError(
            "InvalidPush",
            f"A push for client group {push.client_group_id!r} came over a connection of "
            f"group {group_id!r}. A client pushes only for its own group.",
        )


class Pusher:
    """One per client group and worker.

    - pushes are sent by a task that exists only while there is something to send;
    - :meth:`drain` after the last connection closed: what was queued is still delivered.
    """

    def __init__(
        self,
        client: ApiClient,
        endpoint: ApiEndpoint,
        client_group_id: str,
        listener: PushListener,
        *,
        max_queued: int = MAX_QUEUED,
    ) -> None:
        self._client = client
        self._endpoint = endpoint
        self._group = client_group_id
        self._listener = listener
        self._max_queued = max_queued
        self._queue: list[_Entry] = []
        self._queued = 0  # mutations in the queue, without those under way
        self._room = asyncio.Event()  # set while the queue is below its bound
        self._room.set()
        self._sending: asyncio.Task[None] | None = None
        # Keyed so that a later acknowledgement of a client replaces one not yet sent.
        self._cleanups: dict[object, _Cleanup] = {}
        self._cleaning: asyncio.Task[None] | None = None

    @property
    def enabled(self) -> bool:
        return self._endpoint.enabled

    async def push(self, sender: Sender, push: Push) -> None:
        """Queue the mutations of ``push``; returns when the queue has room again.

        Raises ``InvalidPush``. CRUD mutations are none of its business.
        """
        self.enqueue(sender, push)
        await self._room.wait()

    def enqueue(self, sender: Sender, push: Push) -> None:
        """:meth:`push` without the waiting."""
        require_own_group(push, self._group)
        mutations = tuple(m for m in push.mutations if isinstance(m, CustomMutation))
        if len(mutations) != len(push.mutations):
            raise ClientFacingError(
                "InvalidPush",
                "CRUD mutations are switched off (ZERO_ENABLE_CRUD_MUTATIONS), or came together "
                "with others in one push. Use custom mutators.",
            )
        if not mutations:
            return
        if not self.enabled:
            raise ClientFacingError(
                "InvalidPush",
                "A custom mutation was pushed, but the server has no endpoint to send it to. "
                f"Set {self._endpoint.allowlist.variable}.",
            )
        self._queue.append(_Entry(sender, push, mutations))
        self._queued += len(mutations)
        if self._queued >= self._max_queued:
            self._room.clear()
        if self._sending is None:
            self._sending = asyncio.create_task(self._send_all())

    async def drain(self) -> None:
        """Wait until everything queued so far was sent and its outcome reported."""
        while tasks := [t for t in (self._sending, self._cleaning) if t is not None]:
            await asyncio.wait(tasks)

    async def abort(self) -> None:
        """Give up what is queued and under way; clients will send it again elsewhere."""
        self._queue.clear()
        self._cleanups.clear()
        tasks = [t for t in (self._sending, self._cleaning) if t is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._sending = self._cleaning = None  # a task that never started cannot say so itself

    # -- batches --

    async def _send_all(self) -> None:
        try:
            while self._queue:
                entries, self._queue = self._queue, []
                self._queued = 0
                self._room.set()
                batches: dict[object, list[_Entry]] = {}
                for entry in entries:
                    batches.setdefault(entry.batch_key, []).append(entry)
                for batch in batches.values():
                    await self._send(batch)
        finally:
            self._sending = None

    async def _send(self, batch: Sequence[_Entry]) -> None:
        """One request, and its outcome to whom it concerns; nothing escapes but cancellation."""
        sender = batch[0].sender
        ids = [MutationId(m.id, m.client_id) for entry in batch for m in entry.mutations]
        try:
            response = await self._call(sender, _batch_body(batch))
            if isinstance(response, PushSuccess):
                self._accept(sender, response, ids)
                return
            failure, concerned = _server_failure(response), response.mutation_ids or ids
        except ApplicationCallError as error:
            failure, concerned = error.to_client("PushFailed"), ids
        except Exception as error:
            # A bug must not leave clients waiting for mutations nobody will send.
            log.exception("push_crashed", client_group=self._group, client=sender.client_id)
            failure, concerned = _crash(error), ids
        self._report(sender, failure, concerned)

    async def _call(self, sender: Sender, body: bytes) -> PushSuccess | PushFailure:
        return decode_push_response(await self._client.post(self._endpoint, sender.context, body))

    def _accept(self, sender: Sender, response: PushSuccess, ids: Sequence[MutationId]) -> None:
        try:
            require_identity(response.user_id, sender.context.user_id)
            self._listener.push_succeeded(sender, response.user_id)
        except ClientFacingError as error:
            refused = ApplicationCallError("http", str(error), status=401)
            self._report(sender, refused.to_client("PushFailed"), ids)
            return
        out_of_order: dict[str, None] = {}
        for result in response.mutations:
            if result.error is None:
                continue
            log.warning(
                "mutation_error",
                client_group=self._group,
                client=result.id.client_id,
                mutation=result.id.id,
                error=result.error,
            )
            if result.error == "oooMutation":
                out_of_order[result.id.client_id] = None
        if out_of_order:
            failure = ClientFacingError(
                "PushFailed",
                "A mutation was not the next one the application expects of this client.",
                origin="server",
                reason="oooMutation",
            )
            self._report(sender, failure, [i for i in ids if i.client_id in out_of_order])

    # -- failures --

    def _report(
        self, sender: Sender, failure: ClientFacingError, concerned: Iterable[MutationId]
    ) -> None:
        """Tell each owner of a failed mutation, with its own ids.

        If none of them is connected, the sender is told instead: it pushes what other tabs left
        behind, and would otherwise wait for an outcome that never comes.
        """
        by_client: dict[str, list[MutationId]] = {}
        for mutation_id in concerned:
            by_client.setdefault(mutation_id.client_id, []).append(mutation_id)
        log.warning(
            "push_failed",
            client_group=self._group,
            client=sender.client_id,
            origin=failure.origin,
            reason=failure.extra["reason"],
            status=failure.extra.get("status"),
            clients=len(by_client),
        )
        if is_auth_failure(failure):
            self._listener.push_auth_failed(sender)
        told = [
            self._listener.fail_connection(client_id, _addressed(failure, ids))
            for client_id, ids in by_client.items()
        ]
        if not any(told):
            everything = [mutation_id for ids in by_client.values() for mutation_id in ids]
            self._listener.fail_connection(sender.client_id, _addressed(failure, everything))

    # -- cleaning up stored results --

    def clean_up_acknowledged(self, sender: Sender, client_id: str, up_to_id: int) -> None:
        """The client has the results of its mutations up to ``up_to_id``. Fire and forget."""
        arg = {
            "type": "single",
            "clientGroupID": self._group,
            "clientID": client_id,
            "upToMutationID": up_to_id,
        }
        self._clean_up(("single", client_id), sender, client_id, str(up_to_id), arg)

    def clean_up_deleted(self, sender: Sender, client_ids: Sequence[str]) -> None:
        """These clients are gone, and with them whoever would read their results."""
        if client_ids:
            arg = {"type": "bulk", "clientGroupID": self._group, "clientIDs": list(client_ids)}
            key = ("bulk", tuple(client_ids))
            self._clean_up(key, sender, client_ids[0], "bulk", arg)

    def _clean_up(
        self, key: object, sender: Sender, client_id: str, label: str, arg: dict[str, Any]
    ) -> None:
        if not self.enabled:
            return
        body = _cleanup_body(self._group, client_id, label, arg)
        self._cleanups[key] = _Cleanup(sender, body)
        if self._cleaning is None:
            self._cleaning = asyncio.create_task(self._clean_all())

    async def _clean_all(self) -> None:
        try:
            while self._cleanups:
                cleanup = self._cleanups.pop(next(iter(self._cleanups)))
                try:
                    response = await self._call(cleanup.sender, cleanup.body)
                    failed = isinstance(response, PushFailure)
                except ApplicationCallError as error:
                    failed = True
                    log.info("cleanup_call_failed", reason=error.reason, status=error.status)
                if failed:  # stored results linger until the next acknowledgement
                    log.warning("result_cleanup_failed", client_group=self._group)
        finally:
            self._cleaning = None


def _batch_body(batch: Sequence[_Entry]) -> bytes:
    """The first push's envelope around the mutations of all, in order of arrival."""
    first = batch[0].push
    body: dict[str, Any] = {
        "clientGroupID": first.client_group_id,
        "mutations": [msgspec.Raw(m.raw) for entry in batch for m in entry.mutations],
        "pushVersion": first.push_version,
        "timestamp": first.timestamp,
        "requestID": first.request_id,
    }
    if first.schema_version is not None:
        body["schemaVersion"] = first.schema_version
    return msgspec.json.encode(body)


def _cleanup_body(group: str, client_id: str, label: str, arg: dict[str, Any]) -> bytes:
    mutation = {
        "type": "custom",
        "id": 0,
        "clientID": client_id,
        "name": "_zero_cleanupResults",
        "timestamp": 1,
        "args": [arg],
    }
    body = {
        "clientGroupID": group,
        "mutations": [mutation],
        "pushVersion": 1,
        "timestamp": 1,
        "requestID": f"cleanup-{group}-{client_id}-{label}",
    }
    return msgspec.json.encode(body)


def _server_failure(response: PushFailure) -> ClientFacingError:
    extra: dict[str, Any] = {"reason": response.reason}
    if response.status is not None:
        extra["status"] = response.status
    if response.details is not msgspec.UNSET:
        extra["details"] = response.details
    return ClientFacingError("PushFailed", response.message, origin=response.origin, **extra)


def _crash(error: Exception) -> ClientFacingError:
    message = f"The server could not send the mutations ({type(error).__name__})."
    return ApplicationCallError("internal", message).to_client("PushFailed")


def _addressed(failure: ClientFacingError, ids: Sequence[MutationId]) -> ClientFacingError:
    return ClientFacingError(
        failure.kind,
        str(failure),
        origin=failure.origin,
        close_code=failure.close_code,
        **{**failure.extra, "mutationIDs": [{"id": i.id, "clientID": i.client_id} for i in ids]},
    )
