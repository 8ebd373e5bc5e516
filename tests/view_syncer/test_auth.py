"""Tokens: checklist items 32, 33, 35-38 of api-and-auth.md §9, as far as they end here."""

from __future__ import annotations

import hmac
import json
import subprocess
import sys
import time
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from jwt.utils import base64url_encode
from msgspec import UNSET

from tests.view_syncer.application import Application
from view_syncer.auth import Auth, Authenticator, require_identity, require_pinned
from zerocache.errors import ClientFacingError, ConfigurationError
from zerocache.options import Auth as AuthOptions

SECRET = "correct horse battery staple, thirty-two bytes and more, even sixty-four"


def hs256(secret: str = SECRET, **claims: Any) -> str:
    return jwt.encode({"sub": "u1", **claims}, secret, algorithm="HS256")


def with_secret(**options: Any) -> Authenticator:
    return Authenticator(AuthOptions(secret=SECRET, **options), endpoints=False)


OPAQUE = Authenticator(AuthOptions(), endpoints=True)


async def refusal(
    authenticator: Authenticator,
    token: str | None,
    user_id: str | None = "u1",
    previous: Auth | None = None,
) -> str:
    """The kind of the refusal; all of them close with 3000."""
    with pytest.raises(ClientFacingError) as caught:
        await authenticator.authenticate(token, user_id, previous)
    assert caught.value.close_code == 3000
    assert caught.value.origin == "zeroCache"
    assert not token or token not in str(caught.value)
    return caught.value.kind


@pytest.mark.parametrize("authenticator", [OPAQUE, with_secret()])
@pytest.mark.parametrize("user_id", ["u1", None])
@pytest.mark.parametrize("token", [None, ""])
async def test_no_token_is_fine_with_and_without_a_user(
    authenticator: Authenticator, user_id: str | None, token: str | None
) -> None:
    auth = await authenticator.authenticate(token, user_id)
    assert (auth.kind, auth.token, auth.claims, auth.user_id) == ("none", None, {}, user_id)


@pytest.mark.parametrize("authenticator", [OPAQUE, with_secret()])
async def test_a_token_needs_a_user(authenticator: Authenticator) -> None:
    assert await refusal(authenticator, hs256(), None) == "Unauthorized"


async def test_an_opaque_token_is_kept_as_it_is() -> None:
    auth = await OPAQUE.authenticate("anything", "u1")
    assert (auth.kind, auth.token, auth.claims, auth.user_id) == ("opaque", "anything", {}, "u1")
    assert "anything" not in repr(auth)


async def test_opaque_tokens_replace_each_other() -> None:
    auth = await OPAQUE.authenticate("one", "u1")
    assert await OPAQUE.authenticate("one", "u1", auth) is auth
    assert (await OPAQUE.authenticate("two", "u1", auth)).token == "two"


async def test_a_first_token_may_come_later() -> None:
    auth = await OPAQUE.authenticate(None, "u1")
    assert await OPAQUE.authenticate(None, "u1", auth) is auth
    assert (await OPAQUE.authenticate("one", "u1", auth)).kind == "opaque"


@pytest.mark.parametrize("token", [None, ""])
@pytest.mark.parametrize("kind", ["opaque", "jwt"])
async def test_a_token_cannot_be_dropped(token: str | None, kind: Any) -> None:
    assert await refusal(OPAQUE, token, previous=Auth(kind, "t", {}, "u1")) == "Unauthorized"


async def test_a_token_cannot_change_its_type() -> None:
    opaque, verified = Auth("opaque", "t", {}, "u1"), Auth("jwt", "t", {"sub": "u1"}, "u1")
    assert await refusal(with_secret(), hs256(), previous=opaque) == "Unauthorized"
    assert await refusal(OPAQUE, "t2", previous=verified) == "Unauthorized"


@pytest.mark.parametrize(
    ("options", "endpoints"),
    [
        (AuthOptions(), False),
        (AuthOptions(secret=SECRET, jwks_url="http://127.0.0.1:1/"), True),
    ],
)
async def test_a_server_that_cannot_judge_tokens_fails_only_connections_with_one(
    options: AuthOptions, endpoints: bool
) -> None:
    authenticator = Authenticator(options, endpoints=endpoints)
    assert await refusal(authenticator, hs256()) == "Internal"
    assert (await authenticator.authenticate(None, "u1")).kind == "none"
    await authenticator.close()


# -- JWT ----------------------------------------------------------------------------------------


async def test_a_good_jwt_yields_its_claims() -> None:
    token = hs256(role="admin", iat=5, exp=time.time() + 60, nbf=time.time() - 60)
    auth = await with_secret().authenticate(token, "u1")
    assert (auth.kind, auth.token, auth.user_id) == ("jwt", token, "u1")
    assert auth.claims["role"] == "admin"


NOW = time.time()


@pytest.mark.parametrize(
    "token",
    [
        hs256("another secret that is long enough for HS256"),
        hs256(exp=NOW - 10),
        hs256(nbf=NOW + 1000),
        hs256(sub="u2"),
        jwt.encode({"role": "x"}, SECRET, algorithm="HS256"),
        jwt.encode({"sub": "u1"}, "", algorithm="none"),
        "not.a.jwt",
        "opaque",
    ],
)
async def test_bad_jwts_are_invalid(token: str) -> None:
    assert await refusal(with_secret(), token) == "AuthInvalidated"


@pytest.mark.parametrize(
    ("options", "claims", "good"),
    [
        ({"issuer": "i"}, {"iss": "i"}, True),
        ({"issuer": "i"}, {"iss": "j"}, False),
        ({"issuer": "i"}, {}, False),
        ({}, {"iss": "j", "aud": "b"}, True),
        ({"audience": "a"}, {"aud": "a"}, True),
        ({"audience": "a"}, {"aud": ["b", "a"]}, True),
        ({"audience": "a"}, {"aud": "b"}, False),
        ({"audience": "a"}, {}, False),
    ],
)
async def test_issuer_and_audience_count_where_configured(
    options: dict[str, Any], claims: dict[str, Any], good: bool
) -> None:
    authenticator = with_secret(**options)
    if good:
        assert (await authenticator.authenticate(hs256(**claims), "u1")).kind == "jwt"
    else:
        assert await refusal(authenticator, hs256(**claims)) == "AuthInvalidated"


@pytest.mark.parametrize(
    ("old", "new", "kept"),
    [
        ({"iat": 100}, {"iat": 101}, "new"),
        ({"iat": 100}, {"iat": 100, "n": 2}, "old"),
        ({"iat": 100}, {"iat": 99}, "old"),
        ({}, {"iat": 99}, "new"),
        ({}, {"n": 2}, "new"),
        ({}, {}, "old"),
    ],
)
async def test_rotation_keeps_the_younger_token(
    old: dict[str, Any], new: dict[str, Any], kept: str
) -> None:
    authenticator = with_secret()
    previous = await authenticator.authenticate(hs256(**old), "u1")
    token = hs256(**new)
    result = await authenticator.authenticate(token, "u1", previous)
    assert (result is previous) is (kept == "old")
    assert kept == "old" or result.token == token


@pytest.mark.parametrize(
    ("token", "kind"),
    [
        (hs256(), "Unauthorized"),
        (hs256(iat="soon"), "AuthInvalidated"),
        (hs256(iat=200, exp=NOW - 10), "AuthInvalidated"),
        (hs256(iat=200, sub="u2"), "AuthInvalidated"),
    ],
)
async def test_rotation_refuses(token: str, kind: str) -> None:
    authenticator = with_secret()
    previous = await authenticator.authenticate(hs256(iat=100), "u1")
    assert await refusal(authenticator, token, previous=previous) == kind


RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
KEYS: dict[str, tuple[Any, str]] = {
    "RS256": (RSA, RSAAlgorithm.to_jwk(RSA.public_key())),
    "PS256": (RSA, RSAAlgorithm.to_jwk(RSA.public_key())),
    "ES256": (
        curve := ec.generate_private_key(ec.SECP256R1()),
        ECAlgorithm.to_jwk(curve.public_key()),
    ),
    "EdDSA": (
        edwards := ed25519.Ed25519PrivateKey.generate(),
        OKPAlgorithm.to_jwk(edwards.public_key()),
    ),
}


@pytest.mark.parametrize("algorithm", KEYS)
async def test_a_configured_public_key(algorithm: str) -> None:
    private, public = KEYS[algorithm]
    authenticator = Authenticator(AuthOptions(jwk=public), endpoints=False)
    token = jwt.encode({"sub": "u1"}, private, algorithm=algorithm)
    assert (await authenticator.authenticate(token, "u1")).kind == "jwt"
    stranger = jwt.encode({"sub": "u1"}, ed25519.Ed25519PrivateKey.generate(), algorithm="EdDSA")
    assert await refusal(authenticator, stranger) == "AuthInvalidated"


async def test_a_public_key_is_never_taken_for_a_shared_secret() -> None:
    public = KEYS["RS256"][1]
    parts = [b'{"alg":"HS256"}', b'{"sub":"u1"}']
    signed_text = b".".join(base64url_encode(part) for part in parts)
    signature = hmac.digest(public.encode(), signed_text, "sha256")
    forged = (signed_text + b"." + base64url_encode(signature)).decode()
    authenticator = Authenticator(AuthOptions(jwk=public), endpoints=False)
    assert await refusal(authenticator, forged) == "AuthInvalidated"


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"kty":"oct","k":"c2VjcmV0","alg":"X"}'])
def test_a_broken_key_stops_the_start_without_showing_it(text: str) -> None:
    with pytest.raises(ConfigurationError, match="ZERO_AUTH_JWK") as caught:
        Authenticator(AuthOptions(jwk=text), endpoints=False)
    assert "c2VjcmV0" not in str(caught.value)


def published(*keys: str) -> list[dict[str, Any]]:
    """``kid:algorithm`` each."""
    pairs = (key.split(":") for key in keys)
    return [{**json.loads(KEYS[algorithm][1]), "kid": kid} for kid, algorithm in pairs]


def signed(algorithm: str, kid: str | None = None) -> str:
    headers = {"kid": kid} if kid else None
    return jwt.encode({"sub": "u1"}, KEYS[algorithm][0], algorithm=algorithm, headers=headers)


async def test_a_published_key_set(application: Application) -> None:
    application.default = (200, {"keys": published("a:RS256", "b:ES256")})
    options = AuthOptions(jwks_url=application.url("/keys"))
    authenticator = Authenticator(options, endpoints=False)
    try:
        for token in (signed("RS256", "a"), signed("ES256", "b"), signed("ES256")):
            assert (await authenticator.authenticate(token, "u1")).kind == "jwt"
        for token in (signed("RS256", "b"), signed("RS256", "c"), "junk"):
            assert await refusal(authenticator, token) == "AuthInvalidated"
    finally:
        await authenticator.close()
    assert len(application.requests) == 1


async def test_keys_that_cannot_be_fetched_ask_the_client_to_come_back(
    application: Application,
) -> None:
    application.default = (503, "")
    options = AuthOptions(jwks_url=application.url("/keys"))
    authenticator = Authenticator(options, endpoints=False)
    try:
        with pytest.raises(ClientFacingError) as caught:
            await authenticator.authenticate(signed("RS256", "a"), "u1")
    finally:
        await authenticator.close()
    assert caught.value.kind == "ServerOverloaded"
    assert caught.value.extra["minBackoffMs"] > 0


# -- identity -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answered", "claimed"), [(UNSET, "u1"), (UNSET, None), ("u1", "u1"), (None, None)]
)
def test_identities_that_agree(answered: Any, claimed: str | None) -> None:
    require_identity(answered, claimed)


@pytest.mark.parametrize(("answered", "claimed"), [("u2", "u1"), ("u1", None), (None, "u1")])
def test_identities_that_do_not(answered: Any, claimed: str | None) -> None:
    with pytest.raises(ClientFacingError) as caught:
        require_identity(answered, claimed)
    assert (caught.value.kind, caught.value.close_code) == ("Unauthorized", 3000)


def test_the_pinned_user_counts_null_as_a_user() -> None:
    require_pinned(None, None)
    require_pinned("u1", "u1")
    for pinned, user in ((None, "u1"), ("u1", None), ("u1", "u2")):
        with pytest.raises(ClientFacingError, match="another user"):
            require_pinned(pinned, user)


def test_worker_without_keys_does_not_load_cryptography() -> None:
    code = "import sys, view_syncer.__main__; print({'jwt', 'cryptography'} & set(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert loaded.stdout.strip() == b"set()"
