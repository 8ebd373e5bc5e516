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
from types import MappingProxyType
from typing import Any, Final, Literal, TypeAlias

import jwt
import structlog
from jwt import PyJWK
from msgspec import UNSET, UnsetType

from view_syncer.jwks import JwksCache, KeySetUnavailable
from zerocache.errors import ClientFacingError, ConfigurationError
from zerocache.options import Auth as AuthOptions

log = structlog.get_logger(__name__)

AUTH_CLOSE_CODE: Final = 3000
KEY_SET_BACKOFF_MS: Final = (5_000, 30_000)

Identity: TypeAlias = str | UnsetType | None
"""Whom the application takes a caller for: None = logged out, UNSET = it did not say."""

_HMAC: Final = ("HS256", "HS384", "HS512")
_ALGORITHMS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "oct": _HMAC,
        "RSA": ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
        "EC": ("ES256", "ES384", "ES512", "ES256K"),
        "OKP": ("EdDSA",),
    }
)
"""What a key may be used for. Never taken from the token, which is not trusted yet."""


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
        self._issuer = options.issuer
        self._audience = options.audience
        self._endpoints = endpoints
        self._keys = [k for k in (options.secret, options.jwk, options.jwks_url) if k]
        self._secret = options.secret.encode() if options.secret else None
        self._jwk = _load_jwk(options.jwk) if options.jwk else None
        self._jwks = jwks or (JwksCache(options.jwks_url) if options.jwks_url else None)

    async def close(self) -> None:
        if self._jwks is not None:
            await self._jwks.close()

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
        claims = await self._verify(token, user_id)
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

    # -- JWT --

    async def _verify(self, token: str, user_id: str) -> Mapping[str, Any]:
        try:
            key, algorithms = await self._key(token)
            claims = jwt.decode(
                token,
                key,
                algorithms=list(algorithms),
                issuer=self._issuer,
                audience=self._audience,
                options={
                    "verify_aud": self._audience is not None,
                    "verify_iat": False,  # an issue time only matters for rotation
                    "verify_sub": False,  # compared below, with the userID
                    "verify_jti": False,
                },
            )
        except KeySetUnavailable as error:
            # Not the client's fault, and it passes: have it try again instead of logging it out.
            low, high = KEY_SET_BACKOFF_MS
            raise ClientFacingError(
                "ServerOverloaded",
                "The keys that verify tokens cannot be fetched at the moment. Try again.",
                minBackoffMs=low,
                maxBackoffMs=high,
            ) from error
        except (jwt.PyJWTError, ValueError) as error:
            raise _invalid(str(error)) from error
        if claims.get("sub") != user_id:
            raise _invalid("its subject is not the userID of the connection")
        return MappingProxyType(claims)

    async def _key(self, token: str) -> tuple[Any, tuple[str, ...]]:
        if self._secret is not None:
            return self._secret, _HMAC
        if self._jwk is not None:
            return self._jwk.key, _algorithms(self._jwk)
        if self._jwks is None:
            raise ValueError("no key is configured")
        header = jwt.get_unverified_header(token)
        jwk = await self._jwks.find(
            header.get("kid"), lambda k: header.get("alg") in _algorithms(k)
        )
        if jwk is None:
            raise _invalid("it is signed by none of the published keys")
        return jwk.key, _algorithms(jwk)


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
        raise _invalid("its issue time (iat) is not a number")
    return previous if new_iat <= old_iat else new


def _invalid(reason: str) -> ClientFacingError:
    return ClientFacingError(
        "AuthInvalidated",
        f"The token cannot be verified: {reason}. Log in again.",
        close_code=AUTH_CLOSE_CODE,
    )


def _algorithms(jwk: PyJWK) -> tuple[str, ...]:
    """Those of the key's type, or only the one the key itself names."""
    family = _ALGORITHMS.get(jwk.key_type or "", ())
    named = jwk._jwk_data.get("alg")
    return tuple(a for a in family if named is None or a == named)


def _load_jwk(text: str) -> PyJWK:
    try:
        return PyJWK.from_json(text)
    except (jwt.PyJWTError, ValueError, TypeError, AttributeError) as error:
        # The library's messages quote the key, which may be a secret one.
        raise ConfigurationError(
            f"Invalid input for ZERO_AUTH_JWK: it is not a JSON Web Key ({type(error).__name__}). "
            'Set it to one public key, a JSON object with "kty".'
        ) from None
