"""The text form of Postgres arrays as JSON text.

Owns the array literal grammar: nesting, quotes, backslashes, ``NULL``, and the optional bounds
prefix (``[0:2]={...}``). Elements are written by an encoder the caller picks by element type. The
result is compact JSON; integers of any size and embedded JSON documents are kept verbatim.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from json.encoder import encode_basestring
from typing import TypeAlias

ElementEncoder: TypeAlias = Callable[[str], str]

# One token of an array literal: a brace, a quoted element, or a run of unquoted characters.
# Separators carry nothing the braces do not; they are commas, except in arrays of box.
_TOKEN = re.compile(r'([{}])|"((?:[^"\\]++|\\.)*+)"|([^{},"]+)', re.DOTALL)
_BOX_TOKEN = re.compile(r'([{}])|"((?:[^"\\]++|\\.)*+)"|([^{};"]+)', re.DOTALL)
# No text of Postgres contains it.
_NUL = "\x00"


def json_string(text: str) -> str:
    return encode_basestring(text)


def json_verbatim(text: str) -> str:
    """For elements that already are JSON."""
    return text


def json_integer(text: str) -> str:
    return text


def json_boolean(text: str) -> str:
    return "true" if text == "t" else "false"


def json_number(decode: Callable[[str], object]) -> ElementEncoder:
    """For elements stored as numbers: what ``decode`` makes of them, non-finite ones as null."""

    def encode(text: str) -> str:
        value = decode(text)
        return "null" if value is None else repr(value)

    return encode


def array_decoder(encode: ElementEncoder, *, boxes: bool = False) -> Callable[[str], str]:
    """The decoder for arrays whose elements ``encode`` writes; ``boxes``: of type box."""
    if encode is json_integer:
        return _integers
    token = _BOX_TOKEN if boxes else _TOKEN
    return lambda text: _parse(text, encode, token)


def _integers(text: str) -> str:
    """Arrays of integers need no parsing: only the brackets and NULL are spelt differently."""
    if text[0] == "[":
        text = text[text.index("=") + 1 :]
    return text.replace("{", "[").replace("}", "]").replace("NULL", "null")


def _parse(text: str, encode: ElementEncoder, token: re.Pattern[str]) -> str:
    start = text.index("=") + 1 if text[0] == "[" else 0
    parts: list[str] = []
    needs_comma = False
    for brace, quoted, plain in token.findall(text, start):
        if brace == "}":
            parts.append("]")
            needs_comma = True
            continue
        if needs_comma:
            parts.append(",")
        if brace:
            parts.append("[")
            needs_comma = False
            continue
        parts.append(_element(quoted, plain, encode))
        needs_comma = True
    return "".join(parts)


def _element(quoted: str, plain: str, encode: ElementEncoder) -> str:
    if plain:
        return "null" if plain == "NULL" else encode(plain)
    if "\\" in quoted:
        # A backslash stands before itself and before quotes.
        quoted = quoted.replace("\\\\", _NUL).replace("\\", "").replace(_NUL, "\\")
    return encode(quoted)
