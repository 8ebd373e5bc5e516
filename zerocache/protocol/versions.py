"""Watermarks, LSNs and cookies: everything that orders states.

Owns the "lexi" encoding (sync-protocol.md §3.1, replication.md §5.1): a non-negative integer in
lower-case base 36, prefixed by one base-36 digit equal to its length minus one, so that string
order equals numeric order. Compare the results as plain strings, never through a locale.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NewType

Watermark = NewType("Watermark", str)
"""Lexi-encoded commit LSN of an upstream transaction; also the version of a replica snapshot."""

Lsn = NewType("Lsn", int)
"""A PostgreSQL log sequence number as an integer."""

NO_STATE = Watermark("00")
"""State version of a client view that was never hydrated; smaller than any real snapshot."""

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_MAX_DIGITS = 36
MAX_CONFIG = 2**53 - 1
_ISSUER_SHIFT = 20
NOBODY = MAX_CONFIG >> _ISSUER_SHIFT
"""An issuer that never wrote down anything."""


def lexi_encode(number: int) -> str:
    """Encode ``number`` (>= 0) so that strings sort as the numbers do."""
    if number < 0:
        raise ValueError(f"cannot encode {number}: only non-negative integers have a lexi form")
    digits = ""
    rest = number
    while True:
        rest, digit = divmod(rest, 36)
        digits = _DIGITS[digit] + digits
        if rest == 0:
            break
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"cannot encode {number}: more than {_MAX_DIGITS} base-36 digits")
    return _DIGITS[len(digits) - 1] + digits


def lexi_decode(text: str) -> int:
    """Decode what :func:`lexi_encode` made; ``ValueError`` if the length prefix does not match."""
    digits = text[1:]
    if len(text) < 2 or any(c not in _DIGITS for c in text):
        raise ValueError(f"{text!r} is not a lexi-encoded number")
    if _DIGITS.index(text[0]) != len(digits) - 1:
        raise ValueError(f"{text!r} is not a lexi-encoded number: its length prefix is wrong")
    return int(digits, 36)


def lsn_from_text(text: str) -> Lsn:
    """Parse PostgreSQL's ``H/L`` form."""
    high, low = text.split("/")
    return Lsn((int(high, 16) << 32) + int(low, 16))


def lsn_to_text(lsn: int) -> str:
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


def watermark_from_lsn(lsn: int) -> Watermark:
    return Watermark(lexi_encode(lsn))


def lsn_from_watermark(watermark: str) -> Lsn:
    """The LSN of a watermark; a minor part (``major.minor``) is ignored."""
    return Lsn(lexi_decode(watermark.split(".", 1)[0]))


# Clients compare cookies as strings, and "." sorts before ":": to them, what a minor version
# brings would lie before the configuration changes of its major one.
_COOKIE_DOT = ";"


@dataclass(frozen=True, order=True, slots=True)
class ViewVersion:
    """Version of a client group's view; orders as its cookie does (sync-protocol.md §3.1).

    The upper bits of ``config`` name the *issuer*, the worker life that made the version: what a
    cookie stands for is only ever looked up in the facts of the one that issued it. Issuer 0, the
    first of a database, gives the plain cookies of the specification.
    """

    state: Watermark
    config: int = 0

    @property
    def issuer(self) -> int:
        return self.config >> _ISSUER_SHIFT

    @classmethod
    def of_issuer(cls, issuer: int, state: Watermark) -> ViewVersion:
        """The first version at ``state`` that ``issuer`` may give out."""
        return cls(state, issuer << _ISSUER_SHIFT)

    def cookie(self) -> str:
        state = self.state.replace(".", _COOKIE_DOT)
        return f"{state}:{lexi_encode(self.config)}" if self.config else state

    @classmethod
    def from_cookie(cls, cookie: str) -> ViewVersion:
        """``ValueError`` for anything that is not a cookie a server could have issued."""
        state, separator, config = cookie.partition(":")
        major, dot, minor = state.partition(_COOKIE_DOT)
        lexi_decode(major)
        if dot:
            lexi_decode(minor)
            state = f"{major}.{minor}"
        if not separator:
            return cls(Watermark(state))
        number = lexi_decode(config)
        if number > MAX_CONFIG:
            raise ValueError(f"cookie {cookie!r}: config version above 2^53-1")
        return cls(Watermark(state), number)


NEVER = ViewVersion(NO_STATE)
"""The version of a view nobody was told about; a null cookie counts as this."""
