"""LIKE patterns (zql.md §2.3): as what SQLite matches, and matched here against a literal.

Owns the reading of a pattern, the same for both, and its bounds: patterns come from clients, and
neither SQLite nor the event loop may be made to fail or to stand still by one.
"""

from __future__ import annotations

import re

from zerocache.errors import QueryError

MAX_PATTERN_BYTES = 50_000
"""SQLite refuses longer patterns, but only once it has a text to compare with."""
_MAX_COMPARISONS = 10**8

_GLOB_SPECIAL = {"*": "[*]", "?": "[?]", "[": "[[]"}


def glob_pattern(like: str) -> str:
    """A LIKE pattern as a GLOB pattern: GLOB is case-sensitive on every connection, whatever its
    pragmas, and matches whole strings by code point, which is what zql.md §2.3 asks for."""
    out: list[str] = []
    characters = iter(like)
    for character in characters:
        if character == "%":
            out.append("*")
        elif character == "_":
            out.append("?")
        elif character == "\\":
            escaped = next(characters, None)
            if escaped is None:
                raise QueryError(
                    f"LIKE pattern {like!r} ends in an unescaped backslash; "
                    "write two backslashes to match one"
                )
            out.append(_GLOB_SPECIAL.get(escaped, escaped))
        else:
            out.append(_GLOB_SPECIAL.get(character, character))
    glob = "".join(out)
    if len(glob.encode()) > MAX_PATTERN_BYTES:
        raise QueryError(
            f"a LIKE pattern has more than {MAX_PATTERN_BYTES} bytes (a literal *, ? or [ counts "
            "three times); make it shorter"
        )
    return glob


def like_matches(text: str, pattern: str) -> bool:
    """What stands between two ``%`` is found as early as possible: that never loses a match, and
    unlike one regular expression for all of it takes no time that grows beyond all bounds."""
    glob_pattern(pattern)  # refuses an invalid pattern the same way the SQL path does
    if len(text) * len(pattern) > _MAX_COMPARISONS:
        raise QueryError(
            f"LIKE between a text of {len(text)} and a pattern of {len(pattern)} characters takes "
            "too long; make them shorter"
        )
    first, *rest = _pieces(pattern)
    if not rest:
        return first.fullmatch(text) is not None
    *middle, last = rest
    found = first.match(text)
    for piece in middle:
        found = None if found is None else piece.search(text, found.end())
    return found is not None and _ends_with(text, found.end(), last)


def _ends_with(text: str, start: int, piece: re.Pattern[str]) -> bool:
    """Whether ``piece``, whose matches are all of one length, ends ``text`` at or after
    ``start``."""
    return re.compile(f"(?:{piece.pattern})\\Z", re.DOTALL).search(text, start) is not None


def _pieces(pattern: str) -> list[re.Pattern[str]]:
    """What stands between the ``%`` of a pattern, as regular expressions without repetition."""
    pieces: list[list[str]] = [[]]
    characters = iter(pattern)
    for character in characters:
        if character == "%":
            pieces.append([])
        elif character == "_":
            pieces[-1].append(".")
        else:
            pieces[-1].append(re.escape(next(characters) if character == "\\" else character))
    return [re.compile("".join(piece), re.DOTALL) for piece in pieces]
