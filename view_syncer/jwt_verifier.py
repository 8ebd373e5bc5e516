"""Verifies JWTs with the one configured key (api-and-auth.md §6).

Owns the keys, and which algorithms each is good for: never taken from the token, which is not
trusted yet. Must never log a token or its claims. Imported only where a key is configured: see
:class:`~view_syncer.auth.Authenticator`, which owns everything else about tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import jwt
from jwt import PyJWK

from view_syncer.auth import invalid_token
from view_syncer.jwks import JwksCache, KeySetUnavailable
from zerocache.errors import ClientFacingError, ConfigurationError
from zerocache.options import Auth as AuthOptions

KEY_SET_BACKOFF_MS: Final = (5_000, 30_000)

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


class JwtVerifier:
    """A wrong key in the options is a :class:`ConfigurationError` on construction."""

    def __init__(self, options: AuthOptions, jwks: JwksCache | None = None) -> None:
        self._issuer = options.issuer
        self._audience = options.audience
        self._secret = options.secret.encode() if options.secret else None
        self._jwk = _load_jwk(options.jwk) if options.jwk else None
        self._jwks = jwks or (JwksCache(options.jwks_url) if options.jwks_url else None)

    async def close(self) -> None:
        if self._jwks is not None:
            await self._jwks.close()

    async def verify(self, token: str, user_id: str) -> Mapping[str, Any]:
        """The claims; ``AuthInvalidated`` or, while keys cannot be had, ``ServerOverloaded``."""
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
            raise invalid_token(str(error)) from error
        if claims.get("sub") != user_id:
            raise invalid_token("its subject is not the userID of the connection")
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
            raise invalid_token("it is signed by none of the published keys")
        return jwk.key, _algorithms(jwk)


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
