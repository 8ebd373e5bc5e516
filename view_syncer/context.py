"""What calls to the application are made with in the name of one connection.

Immutable: a new token or the overrides of ``initConnection`` give a new context with a higher
``revision``, so that an answer to an older one can be recognised (api-and-auth.md §6.3).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from view_syncer.api_client import RequestContext
from view_syncer.auth import Auth, Identity, require_identity
from zerocache.protocol.handshake import ConnectParams
from zerocache.protocol.messages import InitConnection


@dataclass(frozen=True, slots=True)
class ConnectionContext:
    """``query`` and ``mutate`` differ in the client's URL and headers; ``claims`` are the decoded
    token's, empty without a JWT."""

    user_id: str | None
    auth: Auth
    query: RequestContext
    mutate: RequestContext
    revision: int = 0
    claims: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def create(
        cls, params: ConnectParams, auth: Auth, headers: Mapping[str, str]
    ) -> ConnectionContext:
        request = RequestContext(
            auth_token=auth.token,
            cookie=headers.get("cookie"),
            origin=headers.get("origin"),
            user_id=params.user_id,
            request_headers=headers,
        )
        return cls(params.user_id, auth, request, request, claims=auth.claims or {})

    def with_init(self, message: InitConnection) -> ConnectionContext:
        """With the endpoints and headers the client asks for."""
        query = _directed(self.query, message.user_query_url, message.user_query_headers)
        mutate = _directed(self.mutate, message.user_push_url, message.user_push_headers)
        return replace(self, query=query, mutate=mutate, revision=self.revision + 1)

    def with_auth(self, auth: Auth) -> ConnectionContext:
        return replace(
            self,
            auth=auth,
            query=replace(self.query, auth_token=auth.token),
            mutate=replace(self.mutate, auth_token=auth.token),
            revision=self.revision + 1,
            claims=auth.claims or {},
        )

    def check_identity(self, identity: Identity) -> None:
        """Raise ``Unauthorized`` if the application takes the caller for somebody else."""
        require_identity(identity, self.user_id)


def _directed(
    request: RequestContext, url: str | None, headers: Mapping[str, str]
) -> RequestContext:
    if (request.url, request.client_headers) == (url, headers):
        return request  # as nearly always
    return replace(request, url=url, client_headers=headers)
