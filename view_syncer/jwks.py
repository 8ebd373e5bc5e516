"""A remote set of public keys, fetched when needed and remembered (api-and-auth.md §6.5).

Owns the fetching and the choice of a key; verifies nothing. It must never fetch because of every
unknown key id a client makes up. Invariant: at most one fetch is under way, and after one attempt
the next waits ``COOLDOWN_S``, unless no keys are known at all.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final

import aiohttp
import jwt
import structlog
from jwt import PyJWK, PyJWKSet

log = structlog.get_logger(__name__)

MAX_AGE_S: Final = 600.0
COOLDOWN_S: Final = 30.0
TIMEOUT_S: Final = 5.0


class KeySetUnavailable(Exception):
    """The set was never fetched and cannot be fetched now."""


class JwksCache:
    """The keys published under ``url``. ``clock`` gives seconds, monotonically."""

    def __init__(self, url: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._url = url
        self._clock = clock
        self._lock = asyncio.Lock()
        self._session: aiohttp.ClientSession | None = None
        self._keys: list[PyJWK] | None = None  # None until a first fetch succeeded
        self._fetched_at = 0.0
        self._attempted_at: float | None = None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def find(self, kid: str | None, usable: Callable[[PyJWK], bool]) -> PyJWK | None:
        """The key named ``kid``, or the only usable one if the token names none."""
        await self._refresh(lambda: self._clock() - self._fetched_at < MAX_AGE_S)
        found = self._choose(kid, usable)
        if found is None:
            await self._refresh(lambda: self._choose(kid, usable) is not None)
            found = self._choose(kid, usable)
        return found

    def _choose(self, kid: str | None, usable: Callable[[PyJWK], bool]) -> PyJWK | None:
        keys = [k for k in self._keys or () if usable(k) and (kid is None or k.key_id == kid)]
        return keys[0] if len(keys) == 1 else None

    async def _refresh(self, satisfied: Callable[[], bool]) -> None:
        """Fetch unless what is known satisfies; old keys are kept when that fails."""
        async with self._lock:
            if self._keys is not None and (satisfied() or self._cooling_down()):
                return
            self._attempted_at = self._clock()
            try:
                self._keys = _parse(await self._fetch())
                self._fetched_at = self._clock()
            except (
                aiohttp.ClientError,
                TimeoutError,
                OSError,
                ValueError,
                jwt.PyJWTError,
            ) as error:
                log.warning("jwks_fetch_failed", error=type(error).__name__)
                if self._keys is None:
                    raise KeySetUnavailable(str(error)) from error

    def _cooling_down(self) -> bool:
        return self._attempted_at is not None and self._clock() - self._attempted_at < COOLDOWN_S

    async def _fetch(self) -> Any:
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
            self._session = aiohttp.ClientSession(timeout=timeout)
        async with self._session.get(self._url, raise_for_status=True) as response:
            return await response.json(content_type=None)


def _parse(document: Any) -> list[PyJWK]:
    """Keys of a kind this server does not know are left out, as the standard asks."""
    if not isinstance(document, dict):
        raise ValueError("the key set is not a JSON object")
    return list(PyJWKSet.from_dict(document).keys)
