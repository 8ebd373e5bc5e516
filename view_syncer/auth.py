"""Who a connection speaks for (api-and-auth.md §6).

Owns the verification of tokens and the rules for replacing one. It must never log a token or its
claims, and never accept an unsigned JWT. Invariant: an :class:`Auth` of kind ``jwt`` was verified
by the one configured key when it was made, and its ``sub`` is its ``user_id``.

Every refusal carries close code 3000, which belongs to a failure on connect; one that answers an
``updateAuth`` may use it as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import structlog
from msgspec import UNSET, UnsetType

from zerocache.errors import ClientFacingError
from zerocache.options import Auth as AuthOptions

if TYPE_CHECKING:
    from view_syncer.jwks import JwksCache
    from view_syncer.jwt_verifier import JwtVerifier

log = structlog.get_logger(__name__)

AUTH_CLOSE_CODE: Final = 3000

Identity: TypeAlias = str | UnsetType | None
"""Whom the application takes a caller for: None = logged out, UNSET = it did not say."""


@dataclass(frozen=True, slots=True)
class Auth:
    """The credentials of one connection. ``claims`` is empty unless the token is a JWT."""

    kind: Literal["none", "opaque", "jwt"]
    token: str | None = field(default=None, repr=False)
    claims: Mapping[str, Any] = field(default_factory=dict, repr=False)
    user_id: str | None = None


def unauthorized(message: str) -> ClientFacingError:
    return ClientFacingError("Unauthorized", message, close_code=AUTH_CLOSE_CODE)


def require_identity(answered: Identity, claimed: str | None) -> None:
    """Compare what the application says with what the client says; UNSET agrees with anything."""
    if answered is UNSET or answered == claimed:
        return
    seen = "nobody" if answered is None else "another user"
    raise unauthorized(
        f"The application recognises {seen} in these credentials, not the userID the client "
        "connected with. Connect with the userID the application reports."
    )


def require_pinned(pinned: str | None, user_id: str | None) -> None:
    """A client group belongs to the first user that was validated for it."""
    if pinned != user_id:
        raise unauthorized(
            "This client group belongs to another user. Use a new client group for a new user."
        )


class Authenticator:
    """Turns tokens into :class:`Auth`; one per process.

    - ``endpoints``: both application endpoints are configured, so opaque tokens make sense;
    - a wrong key in the options is a :class:`ConfigurationError` on construction; having two keys
      is one as well where the options are read, and here fails connections that bring a token.
    """

    def __init__(
        self, options: AuthOptions, *, endpoints: bool, jwks: JwksCache | None = None
    ) -> None:
        self._endpoints = endpoints
        self._keys = [k for k in (options.secret, options.jwk, options.jwks_url) if k]
        self._jwt: JwtVerifier | None = None
        if self._keys:
            # Only then: the library and its cryptography are 20 MB of every worker.
            from view_syncer.jwt_verifier import JwtVerifier

            self._jwt = JwtVerifier(options, jwks)

    async def close(self) -> None:
        if self._jwt is not None:
            await self._jwt.close()

    async def authenticate(
        self, token: str | None, user_id: str | None, previous: Auth | None = None
    ) -> Auth:
        """Check a token on connect, or its replacement on ``updateAuth`` (then with ``previous``).

        Returns ``previous`` itself when nothing changes. Raises ``Unauthorized``,
        ``AuthInvalidated``, or ``Internal`` for a server that cannot judge any token.
        """
        had_token = previous is not None and previous.kind != "none"
        if not token:
            if had_token:
                raise unauthorized(
                    "The new token is empty, but this connection had one. "
                    "Log out by connecting anew without a token."
                )
            return previous or Auth("none", user_id=user_id)
        if user_id is None:
            raise unauthorized("A token came without a userID. Connect with both or with neither.")
        kind = self._kind()
        if previous is not None and had_token and previous.kind != kind:
            raise unauthorized(
                f"The token changed its type from {previous.kind} to {kind}. Connect anew."
            )
        if kind == "opaque":
            if previous is not None and previous.token == token:
                return previous
            return Auth("opaque", token, user_id=user_id)
        assert self._jwt is not None, "a token is judged as a JWT only if a key is configured"
        claims = await self._jwt.verify(token, user_id)
        return _rotate(previous, Auth("jwt", token, claims, user_id))

    def _kind(self) -> Literal["opaque", "jwt"]:
        if len(self._keys) == 1:
            return "jwt"
        if not self._keys and self._endpoints:
            return "opaque"
        log.error("auth_misconfigured", keys=len(self._keys), endpoints=self._endpoints)
        raise ClientFacingError(
            "Internal",
            "The server is not configured to judge tokens. Set ZERO_MUTATE_URL and "
            "ZERO_QUERY_URL, or exactly one of ZERO_AUTH_SECRET, ZERO_AUTH_JWK and "
            "ZERO_AUTH_JWKS_URL.",
            close_code=AUTH_CLOSE_CODE,
        )


def _rotate(previous: Auth | None, new: Auth) -> Auth:
    if previous is None or previous.kind != "jwt":
        return new
    if previous.claims.get("sub") != new.claims.get("sub"):
        raise unauthorized("The new token has another subject than the one it replaces.")
    old_iat, new_iat = previous.claims.get("iat"), new.claims.get("iat")
    if old_iat is None:
        return previous if previous.token == new.token else new
    if new_iat is None:
        raise unauthorized(
            "The new token has no issue time (iat) although the one it replaces has. "
            "Issue all tokens with it or none."
        )
    if not isinstance(new_iat, int | float) or not isinstance(old_iat, int | float):
        raise invalid_token("its issue time (iat) is not a number")
    return previous if new_iat <= old_iat else new


def invalid_token(reason: str) -> ClientFacingError:
    return ClientFacingError(
        "AuthInvalidated",
        f"The token cannot be verified: {reason}. Log in again.",
        close_code=AUTH_CLOSE_CODE,
    )
