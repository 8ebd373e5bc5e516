"""Which URLs of the application may be called: patterns in the WHATWG URLPattern syntax.

Owns the syntax (api-and-auth.md §1.2) and the match. It must never make a request. Invariant: the
candidate is judged in the very form (``yarl.URL``) in which the HTTP client calls it, so that no
spelling of a URL can look like one host to the allowlist and like another to the client.

A pattern is translated to one regular expression for each of scheme, host, port and path. The
query string and the fragment of pattern and candidate never matter.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from yarl import URL

from zerocache.errors import ConfigurationError

_DEFAULT_PORTS: Final = {"http": "80", "https": "443"}
_HOST: Final = re.compile(r"[a-z0-9._-]+|[0-9a-f:.]+")
_PORT: Final = re.compile(r"^(?P<host>.*?):(?P<port>[0-9]+|\*)?$", re.DOTALL)
_NAME: Final = re.compile(r"[^\W\d][\w$]*|[$][\w$]*")
_PATH_SAFE: Final = "/%:@!$&'()*+,;=~-._?#[]"


@dataclass(frozen=True, slots=True)
class _Part:
    """A piece of a component: literal text, or a group (``regex``) with what surrounds it."""

    prefix: str
    regex: str | None
    suffix: str
    modifier: str


@dataclass(frozen=True, slots=True)
class _Component:
    """What a component's groups may span and which character starts a segment."""

    segment: str
    prefix: str = ""

    def compile(self, pattern: str) -> re.Pattern[str]:
        parts = _Parser(pattern, self).parse()
        return re.compile("".join(map(self._regex, parts)), re.ASCII | re.DOTALL)

    def _regex(self, part: _Part) -> str:
        prefix, suffix = re.escape(part.prefix), re.escape(part.suffix)
        if part.regex is None:
            body = prefix + suffix
        elif part.modifier in ("*", "+") and (part.prefix or part.suffix):
            # A repeated group repeats its separator between the members only.
            body = f"{prefix}(?:{part.regex})(?:{suffix}{prefix}(?:{part.regex}))*{suffix}"
            return f"(?:{body}){'?' if part.modifier == '*' else ''}"
        else:
            body = f"{prefix}(?:{part.regex}){suffix}"
        return f"(?:{body}){part.modifier}"


_SCHEME: Final = _Component(segment=r".+?")
_HOSTNAME: Final = _Component(segment=r"[^.]+?")
_PATH: Final = _Component(segment=r"[^/]+?", prefix="/")


class _Parser:
    """Reads one component: escapes, ``*``, ``:name``, ``(regex)``, ``{…}`` and ``? * +``."""

    def __init__(self, text: str, component: _Component) -> None:
        self._text = text
        self._component = component
        self._position = 0
        self._names: set[str] = set()

    def parse(self) -> list[_Part]:
        parts: list[_Part] = []
        literal = ""
        while self._position < len(self._text):
            char = self._text[self._position]
            if char == "{":
                parts.append(_Part(literal, None, "", ""))
                literal = ""
                parts.append(self._braces())
            elif (regex := self._group()) is not None:
                prefix = self._component.prefix
                if not prefix or not literal.endswith(prefix):
                    prefix = ""
                parts.append(
                    _Part(literal.removesuffix(prefix) if prefix else literal, None, "", "")
                )
                literal = ""
                parts.append(_Part(prefix, regex, "", self._modifier()))
            else:
                literal += self._literal()
        parts.append(_Part(literal, None, "", ""))
        return parts

    def _braces(self) -> _Part:
        self._position += 1
        prefix, regex, suffix = "", None, ""
        while True:
            if self._position >= len(self._text):
                raise ValueError("a { is not closed")
            if self._text[self._position] == "}":
                self._position += 1
                return _Part(prefix, regex, suffix, self._modifier())
            group = None if regex is not None else self._group()
            if group is not None:
                regex = group
            elif regex is None:
                prefix += self._literal()
            else:
                suffix += self._literal()

    def _group(self) -> str | None:
        """The expression of a group that starts here, if one does."""
        char = self._text[self._position]
        if char == "*":
            self._position += 1
            return r".*"
        if char == "(":
            return self._custom()
        if char != ":":
            return None
        match = _NAME.match(self._text, self._position + 1)
        if match is None:
            raise ValueError("a : has no name after it")
        if match[0] in self._names:
            raise ValueError(f"the name {match[0]} occurs twice")
        self._names.add(match[0])
        self._position = match.end()
        if self._text.startswith("(", self._position):
            return self._custom()
        return self._component.segment

    def _custom(self) -> str:
        start = self._position + 1
        depth = 1
        position = start
        while depth:
            if position >= len(self._text):
                raise ValueError("a ( is not closed")
            char = self._text[position]
            if char == "\\":
                position += 1
            elif char == "(":
                if not self._text.startswith("(?", position):
                    raise ValueError("a capturing group inside (…) is not allowed")
                depth += 1
            elif char == ")":
                depth -= 1
            position += 1
        self._position = position
        regex = self._text[start : position - 1]
        if not regex or regex.startswith("?") or not regex.isascii():
            raise ValueError(f"({regex}) is not a usable expression")
        re.compile(regex)
        return regex

    def _literal(self) -> str:
        char = self._text[self._position]
        if char in ")}?+":
            raise ValueError(f"a {char} is not expected here")
        if char == "\\":
            self._position += 1
            if self._position >= len(self._text):
                raise ValueError("a \\ has nothing after it")
            char = self._text[self._position]
        self._position += 1
        return quote(char, safe=_PATH_SAFE) if self._component.prefix else char

    def _modifier(self) -> str:
        char = self._text[self._position : self._position + 1]
        if not char or char not in "?*+":
            return ""
        self._position += 1
        return char


@dataclass(frozen=True, slots=True)
class UrlPattern:
    """One compiled pattern; ``source`` is how the operator wrote it."""

    source: str
    scheme: re.Pattern[str]
    host: re.Pattern[str]
    port: str | None  # None = any
    path: re.Pattern[str]

    def matches(self, url: URL) -> bool:
        host, port = url.raw_host or "", str(url.port or "")
        return (
            self.scheme.fullmatch(url.scheme) is not None
            and self.host.fullmatch(host) is not None
            and self._port_matches(url.scheme, port)
            and self.path.fullmatch(url.raw_path) is not None
        )

    def _port_matches(self, scheme: str, port: str) -> bool:
        if self.port == "":
            return port == _DEFAULT_PORTS.get(scheme)
        return self.port is None or port == self.port


def compile_pattern(source: str) -> UrlPattern:
    """Compile one pattern; ``ValueError`` says what is wrong with it."""
    scheme, separator, rest = source.partition("://")
    if not scheme or not separator:
        raise ValueError("it must start with http:// or https://")
    authority, path = _split_authority(rest)
    host, port = _split_port(authority)
    if not host:
        raise ValueError("it names no host")
    return UrlPattern(
        source,
        _SCHEME.compile(scheme.lower()),
        _HOSTNAME.compile(host),
        port,
        _PATH.compile("*" if path is None else path),
    )


def _split_authority(rest: str) -> tuple[str, str | None]:
    """Authority and path, without query and fragment; a pattern without a path allows any."""
    slash: int | None = None
    for position, char in _outside_groups(rest):
        if char == "/" and slash is None:
            slash = position
        elif char == "#" or (char == "?" and not _is_modifier(rest, position)):
            rest = rest[:position]
            if slash is None:
                return rest, "/"
            break
    return (rest, None) if slash is None else (rest[:slash], rest[slash:])


def _outside_groups(text: str) -> Iterator[tuple[int, str]]:
    depth = 0
    escaped = False
    for position, char in enumerate(text):
        if escaped:
            escaped = False
        elif char == "\\":
            escaped = True
        elif char in "({":
            depth += 1
        elif char in ")}":
            depth -= 1
            if depth < 0:
                raise ValueError(f"a {char} is not expected here")
        elif not depth:
            yield position, char


def _is_modifier(text: str, position: int) -> bool:
    """A ``?`` right after a group makes it optional; anywhere else it starts the query string."""
    before = text[:position]
    return before.endswith((")", "}", "*")) or re.search(r":[^\W\d][\w$]*$", before) is not None


def _split_port(authority: str) -> tuple[str, str | None]:
    """Host in lower case, as candidates have it, and port (None = any, "" = the default)."""
    if "@" in authority:
        raise ValueError("it contains credentials; set an API key instead")
    if authority.startswith("["):
        host, bracket, rest = authority[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError("a [ is not closed")
        return host.replace(":", "\\:"), _port(rest[1:])
    match = _PORT.match(authority)
    if match is None:
        return _lower_literals(authority), ""
    return _lower_literals(match["host"]), _port(match["port"] or "")


def _port(text: str) -> str | None:
    if text == "*":
        return None
    if text and (not text.isdecimal() or int(text) > 65535):
        raise ValueError(f"{text} is not a port")
    return str(int(text)) if text else ""


def _lower_literals(host: str) -> str:
    plain = {position for position, _ in _outside_groups(host)}
    return "".join(c.lower() if i in plain else c for i, c in enumerate(host))


@dataclass(frozen=True, slots=True)
class UrlAllowlist:
    """The configured patterns; ``default`` is entry 0 as written, called when clients name none."""

    variable: str
    patterns: tuple[UrlPattern, ...]
    default: str | None

    def matches(self, url: str) -> bool:
        """Whether ``url`` may be called. A URL that cannot be parsed, is not HTTP or carries
        credentials may not."""
        parsed = parse_url(url)
        return parsed is not None and any(p.matches(parsed) for p in self.patterns)


def parse_url(url: str) -> URL | None:
    """``url`` as the HTTP client will see it, or None if nothing should be called under it."""
    try:
        parsed = URL(url)
        port = parsed.port
    except ValueError:
        return None
    host = parsed.raw_host
    if parsed.scheme not in _DEFAULT_PORTS or host is None or port is None:
        return None
    if parsed.raw_user is not None or parsed.raw_password is not None:
        return None
    return parsed if _HOST.fullmatch(host) else None


def compile_patterns(patterns: Sequence[str], variable: str) -> UrlAllowlist:
    """Compile the value of ``variable``; a bad pattern stops the start of the server."""
    compiled = []
    for source in patterns:
        try:
            compiled.append(compile_pattern(source))
        except (ValueError, re.error) as error:
            raise ConfigurationError(
                f"Invalid input for {variable}: {source!r} is not a URL pattern, because {error}. "
                "Write a URL such as https://api.example.com/push; * stands for any text, "
                ":name for one path segment."
            ) from error
    return UrlAllowlist(variable, tuple(compiled), patterns[0] if patterns else None)
