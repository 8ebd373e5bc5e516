"""What the mutate endpoint may answer (api-and-auth.md §2.2), in all its generations.

Owns the shapes; decides nothing about consequences. Lenient towards unknown members, strict about
known ones. Invariant: :func:`decode_push_response` returns a success or a failure with an origin
and a reason that clients can decode, or raises :class:`ApplicationCallError` ``parse``.
"""

from __future__ import annotations

from typing import Any, Final, Literal, TypeAlias

import msgspec
from msgspec import UNSET

from view_syncer.auth import Identity
from zerocache.errors import ApplicationCallError

ServerReason: TypeAlias = Literal[
    "database", "parse", "oooMutation", "unsupportedPushVersion", "internal"
]
ResultError: TypeAlias = Literal["app", "alreadyProcessed", "oooMutation"]


class MutationId(msgspec.Struct, frozen=True):
    id: int
    client_id: str = msgspec.field(name="clientID")


class MutationResult(msgspec.Struct, frozen=True):
    """``error`` is None when the mutation was applied."""

    id: MutationId
    error: ResultError | None


class PushSuccess(msgspec.Struct, frozen=True):
    mutations: tuple[MutationResult, ...]
    user_id: Identity = UNSET


class PushFailure(msgspec.Struct, frozen=True):
    """The whole push failed. ``mutation_ids`` may be empty: then all of the batch are meant."""

    origin: Literal["server", "zeroCache"]
    reason: ServerReason | Literal["http"]
    message: str
    mutation_ids: tuple[MutationId, ...]
    status: int | None = None
    details: Any = UNSET


class _Result(msgspec.Struct, frozen=True):
    error: ResultError | None = None


class _MutationAnswer(msgspec.Struct, frozen=True):
    id: MutationId
    result: _Result


class _Success(msgspec.Struct, frozen=True):
    mutations: list[_MutationAnswer]
    kind: Literal["MutateResponse"] | None = None
    user_id: Identity = msgspec.field(name="userID", default=UNSET)


class _Failure(msgspec.Struct, frozen=True):
    kind: Literal["PushFailed"]
    reason: ServerReason
    message: str
    mutation_ids: tuple[MutationId, ...] = msgspec.field(name="mutationIDs", default=())
    details: Any = UNSET


class _Legacy(msgspec.Struct, frozen=True):
    """What SDKs before 0.25 answered."""

    error: Literal["unsupportedPushVersion", "unsupportedSchemaVersion", "http", "zeroPusher"]
    status: int | None = None
    details: str | None = None
    mutation_ids: tuple[MutationId, ...] = msgspec.field(name="mutationIDs", default=())


class _Head(msgspec.Struct, frozen=True):
    """Just enough to tell which shape it is."""

    kind: str | None = None
    error: msgspec.Raw = msgspec.Raw()


_decode_head: Final = msgspec.json.Decoder(_Head).decode
_decode_success: Final = msgspec.json.Decoder(_Success).decode
_decode_failure: Final = msgspec.json.Decoder(_Failure).decode
_decode_legacy: Final = msgspec.json.Decoder(_Legacy).decode


def decode_push_response(text: bytes) -> PushSuccess | PushFailure:
    try:
        return _decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApplicationCallError(
            "parse", f"The answer of the mutate endpoint cannot be used: {error}"
        ) from error


def _decode(text: bytes) -> PushSuccess | PushFailure:
    head = _decode_head(text)
    if bytes(head.error):
        return _from_legacy(_decode_legacy(text))
    if head.kind == "PushFailed":
        failure = _decode_failure(text)
        return PushFailure(
            "server",
            failure.reason,
            failure.message,
            failure.mutation_ids,
            details=failure.details,
        )
    success = _decode_success(text)
    results = tuple(MutationResult(m.id, m.result.error) for m in success.mutations)
    return PushSuccess(results, success.user_id)


def _from_legacy(legacy: _Legacy) -> PushFailure:
    details = UNSET if legacy.details is None else legacy.details
    message = f"The application refused the push: {legacy.error}."
    if legacy.error == "http":
        status = 500 if legacy.status is None else legacy.status
        return PushFailure(
            "zeroCache", "http", message, legacy.mutation_ids, status=status, details=details
        )
    reason: ServerReason = (
        "unsupportedPushVersion" if legacy.error == "unsupportedPushVersion" else "internal"
    )
    return PushFailure("server", reason, message, legacy.mutation_ids, details=details)
