"""Pushes: checklist items 5, 10, 12-18, 21, 22 and 33 of api-and-auth.md §9."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from msgspec import UNSET

from tests.view_syncer.application import Application, endpoint
from view_syncer.api_client import ApiClient, RequestContext
from view_syncer.auth import Identity, unauthorized
from view_syncer.push import Pusher, Sender
from zerocache.errors import ClientFacingError
from zerocache.protocol.sync import CrudMutation, CustomMutation, Push


class Group:
    """Listener that remembers; ``connected`` is None for "everybody"."""

    def __init__(self) -> None:
        self.failed: list[tuple[str, ClientFacingError]] = []
        self.accepted: list[tuple[Sender, Identity]] = []
        self.refused: list[Sender] = []
        self.connected: set[str] | None = None
        self.pinned: str | None = None

    def fail_connection(self, client_id: str, error: ClientFacingError) -> bool:
        if self.connected is not None and client_id not in self.connected:
            return False
        self.failed.append((client_id, error))
        return True

    def push_succeeded(self, sender: Sender, identity: Identity) -> None:
        if self.pinned is not None and sender.context.user_id != self.pinned:
            raise unauthorized("pinned to another user")
        self.accepted.append((sender, identity))

    def push_auth_failed(self, sender: Sender) -> None:
        self.refused.append(sender)

    def bodies(self) -> dict[str, dict[str, Any]]:
        """By client, without messages; a client must fail only once."""
        assert len({client_id for client_id, _ in self.failed}) == len(self.failed)
        return {
            client_id: {k: v for k, v in error.body().items() if k != "message"}
            for client_id, error in self.failed
        }


@pytest.fixture
def group() -> Group:
    return Group()


@pytest.fixture
def pusher(application: Application, client: ApiClient, group: Group) -> Pusher:
    return Pusher(client, endpoint(application.url("/push")), "g1", group, max_queued=5)


def mutation(id_: int, client_id: str = "c1") -> CustomMutation:
    raw = {
        "type": "custom",
        "id": id_,
        "clientID": client_id,
        "name": "issue.close",
        "args": [{"n": id_}],
        "timestamp": 5,
    }
    return CustomMutation(id_, client_id, "issue.close", json.dumps(raw).encode())


def push(*mutations: Any, group_id: str = "g1", request_id: str = "r1") -> Push:
    return Push(group_id, mutations, 1, request_id, 17.5)


def sender(client_id: str = "c1", revision: int = 0, **context: Any) -> Sender:
    return Sender(client_id, f"ws-{client_id}", revision, RequestContext(**context))


C1, C2 = sender("c1"), sender("c2")


def ids(request: Any) -> list[int]:
    return [m["id"] for m in request.body["mutations"]]


def named(*numbers: int, client_id: str = "c1") -> list[dict[str, Any]]:
    return [{"id": n, "clientID": client_id} for n in numbers]


async def test_a_push_is_forwarded_with_its_envelope_and_reported(
    application: Application, pusher: Pusher, group: Group
) -> None:
    application.default = (200, {"kind": "MutateResponse", "mutations": []})
    await pusher.push(C1, push(mutation(4)))
    await pusher.drain()
    (request,) = application.requests
    assert request.path == "/push"
    assert request.body == {
        "clientGroupID": "g1",
        "pushVersion": 1,
        "requestID": "r1",
        "timestamp": 17.5,
        "mutations": [json.loads(mutation(4).raw)],
    }
    assert group.accepted == [(C1, UNSET)]
    assert group.failed == []


async def test_ten_pushes_during_a_slow_call_become_one_request(
    application: Application, client: ApiClient, group: Group
) -> None:
    pusher = Pusher(client, endpoint(application.url()), "g1", group)
    application.hold()
    await pusher.push(C1, push(mutation(1)))
    await application.received(1)
    for number in range(2, 12):
        await pusher.push(C1, push(mutation(number), request_id=f"r{number}"))
    application.release()
    await pusher.drain()
    assert [ids(r) for r in application.requests] == [[1], list(range(2, 12))]
    assert application.requests[1].body["requestID"] == "r2"


async def test_clients_and_revisions_are_never_merged(
    application: Application, pusher: Pusher
) -> None:
    application.hold()
    await pusher.push(C1, push(mutation(1)))
    await application.received(1)
    old, new = sender("c1", 0, auth_token="old"), sender("c1", 1, auth_token="new")
    pusher.enqueue(old, push(mutation(2)))
    pusher.enqueue(C2, push(mutation(1, "c2")))
    pusher.enqueue(new, push(mutation(3)))
    pusher.enqueue(C2, push(mutation(2, "c2")))
    application.release()
    await pusher.drain()
    sent = [(ids(r), r.headers.get("Authorization")) for r in application.requests[1:]]
    assert sent == [([2], "Bearer old"), ([1, 2], None), ([3], "Bearer new")]


async def test_one_request_is_under_way_at_a_time(application: Application, pusher: Pusher) -> None:
    application.hold()
    await pusher.push(C1, push(mutation(1)))
    await pusher.push(C2, push(mutation(1, "c2")))
    await application.received(1)
    assert len(application.requests) == 1
    application.release()
    await pusher.drain()
    assert len(application.requests) == 2


async def test_a_full_queue_holds_the_socket_back_and_drops_nothing(
    application: Application, pusher: Pusher
) -> None:
    application.hold()
    await pusher.push(C1, push(mutation(1)))
    await application.received(1)
    for number in range(2, 6):
        await pusher.push(C1, push(mutation(number)))
    waiting = asyncio.create_task(pusher.push(C1, push(mutation(6))))
    await asyncio.sleep(0)
    assert not waiting.done()
    application.release()
    await waiting
    await pusher.drain()
    assert [ids(r) for r in application.requests] == [[1], [2, 3, 4, 5, 6]]


async def test_what_was_queued_is_delivered_on_drain(
    application: Application, pusher: Pusher
) -> None:
    application.hold()
    await pusher.push(C1, push(mutation(1)))
    await application.received(1)
    await pusher.push(C1, push(mutation(2)))
    draining = asyncio.create_task(pusher.drain())
    application.release()
    await draining
    assert [ids(r) for r in application.requests] == [[1], [2]]
    await pusher.drain()


async def test_abort_gives_up_at_once(application: Application, pusher: Pusher) -> None:
    application.hold()
    await pusher.push(C1, push(mutation(1)))
    pusher.clean_up_acknowledged(C1, "c1", 1)
    await pusher.abort()
    await pusher.drain()
    assert application.requests == []


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        (push(mutation(1), group_id="g2"), "'g2'"),
        (push(mutation(1), CrudMutation(2, "c1", ())), "CRUD"),
    ],
)
async def test_pushes_that_do_not_belong_here_are_invalid(
    application: Application, pusher: Pusher, bad: Push, text: str
) -> None:
    with pytest.raises(ClientFacingError, match=text) as caught:
        await pusher.push(C1, bad)
    assert caught.value.kind == "InvalidPush"
    await pusher.drain()
    assert application.requests == []


async def test_without_an_endpoint_mutations_are_invalid(client: ApiClient, group: Group) -> None:
    pusher = Pusher(client, endpoint(), "g1", group)
    assert not pusher.enabled
    with pytest.raises(ClientFacingError, match="ZERO_MUTATE_URL") as caught:
        await pusher.push(C1, push(mutation(1)))
    assert caught.value.kind == "InvalidPush"
    pusher.clean_up_acknowledged(C1, "c1", 1)
    await pusher.drain()


async def test_zero_mutations_are_nothing(application: Application, pusher: Pusher) -> None:
    await pusher.push(C1, push())
    await pusher.drain()
    assert application.requests == []


# -- failures -----------------------------------------------------------------------------------


def push_failed(*mutation_ids: dict[str, Any], **extra: Any) -> tuple[int, Any]:
    return 200, {
        "kind": "PushFailed",
        "origin": "server",
        "reason": "database",
        "message": "db is down",
        "mutationIDs": list(mutation_ids),
        **extra,
    }


SERVER_FAILURE = {"kind": "PushFailed", "origin": "server", "reason": "database"}


async def test_a_failure_reaches_only_the_owners_of_the_named_mutations(
    application: Application, pusher: Pusher, group: Group
) -> None:
    application.default = push_failed(*named(1), details={"x": 1})
    await pusher.push(C2, push(mutation(1), mutation(1, "c2")))
    await pusher.drain()
    assert group.bodies() == {
        "c1": {**SERVER_FAILURE, "details": {"x": 1}, "mutationIDs": named(1)}
    }
    assert str(group.failed[0][1]) == "db is down"


async def test_an_empty_list_means_all_of_the_batch(
    application: Application, pusher: Pusher, group: Group
) -> None:
    application.default = push_failed()
    await pusher.push(C2, push(mutation(1), mutation(2), mutation(1, "c2")))
    await pusher.drain()
    assert group.bodies() == {
        "c1": {**SERVER_FAILURE, "mutationIDs": named(1, 2)},
        "c2": {**SERVER_FAILURE, "mutationIDs": named(1, client_id="c2")},
    }


async def test_if_no_owner_is_connected_the_sender_is_told(
    application: Application, pusher: Pusher, group: Group
) -> None:
    group.connected = {"c2"}
    application.default = push_failed(*named(1, client_id="gone"))
    await pusher.push(C2, push(mutation(1, "gone")))
    await pusher.drain()
    assert group.bodies() == {"c2": {**SERVER_FAILURE, "mutationIDs": named(1, client_id="gone")}}


@pytest.mark.parametrize("status", [400, 401, 403, 409])
async def test_a_status_fails_the_batch_and_some_forget_the_credentials(
    application: Application, pusher: Pusher, group: Group, status: int
) -> None:
    application.default = (status, "no")
    await pusher.push(C1, push(mutation(1)))
    await pusher.drain()
    assert group.bodies() == {
        "c1": {
            "kind": "PushFailed",
            "origin": "zeroCache",
            "reason": "http",
            "status": status,
            "bodyPreview": "no",
            "mutationIDs": named(1),
        }
    }
    assert group.refused == ([C1] if status in (401, 403) else [])
    assert group.accepted == []


@pytest.mark.parametrize("answer", ["<html>", {"kind": "Other"}])
async def test_an_unusable_answer_is_a_parse_failure(
    application: Application, pusher: Pusher, group: Group, answer: Any
) -> None:
    application.default = (200, answer)
    await pusher.push(C1, push(mutation(1)))
    await pusher.drain()
    assert group.bodies()["c1"]["reason"] == "parse"


async def test_an_override_that_is_not_allowed_is_never_called(
    application: Application, pusher: Pusher, group: Group
) -> None:
    await pusher.push(sender(url=application.url("/elsewhere")), push(mutation(1)))
    await pusher.drain()
    assert group.bodies()["c1"]["reason"] == "internal"
    assert application.requests == []


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (
            {"error": "http", "status": 500, "details": "d"},
            {"origin": "zeroCache", "reason": "http", "status": 500, "details": "d"},
        ),
        (
            {"error": "unsupportedPushVersion"},
            {"origin": "server", "reason": "unsupportedPushVersion"},
        ),
        (
            {"error": "zeroPusher", "details": "d"},
            {"origin": "server", "reason": "internal", "details": "d"},
        ),
    ],
)
async def test_legacy_failures_are_converted(
    application: Application, pusher: Pusher, group: Group, answer: Any, expected: Any
) -> None:
    application.default = (200, {**answer, "mutationIDs": named(1)})
    await pusher.push(C1, push(mutation(1)))
    await pusher.drain()
    assert group.bodies() == {"c1": {"kind": "PushFailed", **expected, "mutationIDs": named(1)}}


def results(*pairs: tuple[dict[str, Any], dict[str, Any]], **extra: Any) -> tuple[int, Any]:
    return 200, {"mutations": [{"id": id_, "result": result} for id_, result in pairs], **extra}


async def test_a_result_out_of_order_closes_its_client_with_all_its_mutations(
    application: Application, pusher: Pusher, group: Group
) -> None:
    (one,), (two,), (other,) = named(1), named(2), named(1, client_id="c2")
    application.default = results((one, {"error": "oooMutation"}), (two, {}), (other, {}))
    await pusher.push(C2, push(mutation(1), mutation(2), mutation(1, "c2")))
    await pusher.drain()
    assert group.bodies() == {
        "c1": {
            "kind": "PushFailed",
            "origin": "server",
            "reason": "oooMutation",
            "mutationIDs": named(1, 2),
        }
    }


@pytest.mark.parametrize("error", ["app", "alreadyProcessed"])
async def test_other_results_travel_by_replication_only(
    application: Application, pusher: Pusher, group: Group, error: str
) -> None:
    application.default = results((named(1)[0], {"error": error, "message": "m", "details": 1}))
    await pusher.push(C1, push(mutation(1)))
    await pusher.drain()
    assert group.failed == []
    assert group.accepted == [(C1, UNSET)]


@pytest.mark.parametrize(
    ("claimed", "answered", "agrees"),
    [
        ("u1", {"userID": "u1"}, True),
        ("u1", {}, True),
        (None, {"userID": None}, True),
        (None, {}, True),
        ("u1", {"userID": "u2"}, False),
        ("u1", {"userID": None}, False),
        (None, {"userID": "u1"}, False),
    ],
)
async def test_the_answered_identity_must_be_the_claimed_one(
    application: Application,
    pusher: Pusher,
    group: Group,
    claimed: str | None,
    answered: dict[str, Any],
    agrees: bool,
) -> None:
    application.default = results(**answered)
    me = sender(user_id=claimed)
    await pusher.push(me, push(mutation(1)))
    await pusher.drain()
    if agrees:
        assert group.accepted == [(me, answered.get("userID", UNSET))]
        assert group.failed == []
    else:
        expected = {"kind": "PushFailed", "origin": "zeroCache", "reason": "http", "status": 401}
        assert group.bodies() == {"c1": {**expected, "mutationIDs": named(1)}}
        assert group.refused == [me]
        assert group.accepted == []


async def test_a_user_other_than_the_pinned_one_fails_alike(
    application: Application, pusher: Pusher, group: Group
) -> None:
    group.pinned = "u2"
    await pusher.push(sender(user_id="u1"), push(mutation(1)))
    await pusher.drain()
    assert group.bodies()["c1"]["status"] == 401


async def test_pushing_goes_on_after_a_failure(
    application: Application, pusher: Pusher, group: Group
) -> None:
    application.answers.append((400, "no"))
    await pusher.push(C1, push(mutation(1)))
    await pusher.drain()
    await pusher.push(C2, push(mutation(1, "c2")))
    await pusher.drain()
    assert [s for s, _ in group.accepted] == [C2]


# -- clean-up -----------------------------------------------------------------------------------


async def test_an_acknowledgement_cleans_up_with_the_senders_settings(
    application: Application, client: ApiClient, group: Group
) -> None:
    target = endpoint(
        application.url("/push"),
        application.url("/mine"),
        allowed_client_headers=frozenset({"x-tenant"}),
    )
    pusher = Pusher(client, target, "g1", group)
    me = sender(auth_token="t", url=application.url("/mine"), client_headers={"X-Tenant": "acme"})
    pusher.clean_up_acknowledged(me, "c1", 12)
    await pusher.drain()
    (request,) = application.requests
    assert request.path == "/mine"
    assert request.headers["Authorization"] == "Bearer t"
    assert request.headers["X-Tenant"] == "acme"
    assert request.body == {
        "clientGroupID": "g1",
        "pushVersion": 1,
        "requestID": "cleanup-g1-c1-12",
        "timestamp": 1,
        "mutations": [
            {
                "type": "custom",
                "id": 0,
                "clientID": "c1",
                "name": "_zero_cleanupResults",
                "timestamp": 1,
                "args": [
                    {
                        "type": "single",
                        "clientGroupID": "g1",
                        "clientID": "c1",
                        "upToMutationID": 12,
                    }
                ],
            }
        ],
    }


async def test_deleted_clients_are_cleaned_up_in_one_call(
    application: Application, pusher: Pusher
) -> None:
    pusher.clean_up_deleted(C1, ["c7", "c8"])
    pusher.clean_up_deleted(C1, [])
    await pusher.drain()
    (request,) = application.requests
    assert request.body["mutations"][0]["args"] == [
        {"type": "bulk", "clientGroupID": "g1", "clientIDs": ["c7", "c8"]}
    ]


async def test_acknowledgements_during_a_call_collapse_to_the_last(
    application: Application, pusher: Pusher
) -> None:
    application.hold()
    pusher.clean_up_acknowledged(C1, "c1", 1)
    await application.received(1)
    for number in range(2, 6):
        pusher.clean_up_acknowledged(C1, "c1", number)
    application.release()
    await pusher.drain()
    arguments = [r.body["mutations"][0]["args"][0] for r in application.requests]
    assert [a["upToMutationID"] for a in arguments] == [1, 5]


@pytest.mark.parametrize("answer", [(400, "no"), (200, "<html>"), push_failed()])
async def test_a_failing_cleanup_stays_invisible(
    application: Application, pusher: Pusher, group: Group, answer: Any
) -> None:
    application.default = answer
    pusher.clean_up_acknowledged(C1, "c1", 1)
    await pusher.drain()
    assert (group.failed, group.refused, group.accepted) == ([], [], [])
