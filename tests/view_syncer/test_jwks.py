"""Fetching and remembering published keys."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from jwt import PyJWK
from jwt.algorithms import OKPAlgorithm

from tests.view_syncer.application import Application
from view_syncer.jwks import COOLDOWN_S, MAX_AGE_S, JwksCache, KeySetUnavailable

KEY = json.loads(OKPAlgorithm.to_jwk(ed25519.Ed25519PrivateKey.generate().public_key()))


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def cache(application: Application, clock: Clock) -> AsyncIterator[JwksCache]:
    publish(application, "a")
    cache = JwksCache(application.url("/keys"), clock=clock)
    yield cache
    await cache.close()


def publish(application: Application, *kids: str) -> None:
    unknown = {"kty": "future", "kid": "f"}
    application.default = (200, {"keys": [unknown, *({**KEY, "kid": kid} for kid in kids)]})


def usable(_: PyJWK) -> bool:
    return True


async def found(cache: JwksCache, kid: str | None) -> str | None:
    key = await cache.find(kid, usable)
    return key.key_id if key else None


async def test_a_key_is_fetched_once_even_by_many_at_once(
    application: Application, cache: JwksCache
) -> None:
    assert await asyncio.gather(*(found(cache, "a") for _ in range(5))) == ["a"] * 5
    assert len(application.requests) == 1


async def test_without_a_name_only_a_single_usable_key_is_meant(
    application: Application, cache: JwksCache
) -> None:
    assert await found(cache, None) == "a"
    assert await cache.find(None, lambda _: False) is None


async def test_with_several_keys_the_token_must_name_one(
    application: Application, cache: JwksCache
) -> None:
    publish(application, "a", "b")
    assert await found(cache, None) is None
    assert await found(cache, "b") == "b"


async def test_an_unknown_name_fetches_again_but_not_during_the_cooldown(
    application: Application, cache: JwksCache, clock: Clock
) -> None:
    assert await found(cache, "a") == "a"
    publish(application, "a", "b")
    assert await found(cache, "b") is None
    assert len(application.requests) == 1
    clock.now_s += COOLDOWN_S
    assert await found(cache, "b") == "b"
    assert len(application.requests) == 2


async def test_old_keys_are_fetched_again_and_kept_if_that_fails(
    application: Application, cache: JwksCache, clock: Clock
) -> None:
    assert await found(cache, "a") == "a"
    application.default = (500, "")
    clock.now_s += MAX_AGE_S
    assert await found(cache, "a") == "a"
    assert len(application.requests) == 2
    publish(application, "b")
    clock.now_s += COOLDOWN_S
    assert await found(cache, "a") is None
    assert await found(cache, "b") == "b"


@pytest.mark.parametrize("answer", [(500, ""), (200, "<html>"), (200, []), (200, {"keys": []})])
async def test_never_fetched_means_unavailable_until_it_works(
    application: Application, cache: JwksCache, answer: tuple[int, object]
) -> None:
    application.default = answer
    with pytest.raises(KeySetUnavailable):
        await found(cache, "a")
    publish(application, "a")
    assert await found(cache, "a") == "a"
