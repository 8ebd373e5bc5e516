"""Every exception zerocache raises on purpose, in one tree.

    ZerocacheError
    ├── ConfigurationError        a setting or the environment is wrong; ends the program (exit 78)
    │   └── UpstreamSetupError    the upstream database cannot be replicated as it stands
    ├── ReplicationError          the change stream cannot go on
    │   └── ResyncRequired        only a new initial sync helps
    ├── ReplicaError              the SQLite replica is missing, foreign or damaged
    ├── QueryError                a query cannot be compiled or evaluated
    │   └── UnsafeIntegerError    a value has no exact JSON number (sync-protocol.md §3.8)
    ├── ApplicationCallError      the application's endpoint gave no usable answer
    ├── HandshakeRefused          a connection request cannot be understood; closes with 1002
    ├── SdkError                  the application's backend failed; see zerocache/server/errors.py
    ├── ClientFacingError         carries the body of an ``error`` message (sync-protocol.md §2.4)
    ├── ControlClosed             a child process is gone (zerocache/control.py)
    ├── ConcurrentModification    another server changed a record (view_syncer/cvr/store.py)
    ├── StoreUnavailable          the view records cannot be reached (view_syncer/cvr/store.py)
    │   └── AuthorForgotten       a worker's facts were deleted: it was silent for too long
    └── ClientPackagesError       the demo page's packages are missing (zerocache/dev)

Kinds of ReplicationError stand beside what raises them (replication_manager). Where one class has
several causes that an operator tells apart, each has a code.

A message has three parts: what happened (with the values), why that is not allowed, what to do.
Errors operators meet carry a stable ``code``.
"""

from __future__ import annotations

from typing import Any


class ZerocacheError(Exception):
    """Root of the tree. ``code`` is stable across releases and listed in the README."""

    code: str = "ZC000"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code


class ConfigurationError(ZerocacheError):
    code = "ZC100"


class UpstreamSetupError(ConfigurationError):
    code = "ZC110"


class ReplicationError(ZerocacheError):
    code = "ZC200"


class ResyncRequired(ReplicationError):
    code = "ZC210"


class ReplicaError(ZerocacheError):
    code = "ZC300"


class QueryError(ZerocacheError):
    code = "ZC400"


class UnsafeIntegerError(QueryError):
    code = "ZC410"


class ApplicationCallError(ZerocacheError):
    """A call of the application's endpoint failed (api-and-auth.md §1.6).

    ``reason`` is ``http``, ``parse`` or ``internal``; ``status`` and ``body_preview`` belong to
    ``http``. Who made the call adds the ids it was about with :meth:`to_client`.
    """

    code = "ZC520"

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        status: int | None = None,
        body_preview: str | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.status = status
        self.body_preview = body_preview

    def to_client(self, kind: str, **ids: Any) -> ClientFacingError:
        """This failure as a ``PushFailed`` or ``TransformFailed`` with its mandatory ids."""
        extra: dict[str, Any] = {"reason": self.reason}
        if self.status is not None:
            extra["status"] = self.status
        if self.body_preview is not None:
            extra["bodyPreview"] = self.body_preview
        return ClientFacingError(kind, str(self), **extra, **ids)


class HandshakeRefused(ZerocacheError):
    """A request for a connection that cannot be understood (sync-protocol.md §1.6).

    The upgrade is completed all the same and the socket closed with ``close_code`` and the
    message as reason: browsers hide the status of a refused upgrade from the page.
    """

    code = "ZC510"
    close_code = 1002


class SdkError(ZerocacheError):
    code = "ZC600"


class ClientFacingError(ZerocacheError):
    """An error a client is told about, and what its connection does next.

    ``kind`` and ``extra`` become the body of the ``error`` message; ``origin`` is always
    present because clients treat an error without it as an unexpected internal failure.
    ``close_code`` is the WebSocket close code that follows the frame (1000 = plain close);
    ``None`` keeps the connection open.
    """

    code = "ZC500"

    def __init__(
        self,
        kind: str,
        message: str,
        *,
        origin: str = "zeroCache",
        close_code: int | None = 1000,
        **extra: Any,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.origin = origin
        self.close_code = close_code
        self.extra = extra

    def body(self) -> dict[str, Any]:
        """The second element of ``["error", body]``."""
        return {"kind": self.kind, "message": str(self), "origin": self.origin, **self.extra}
