"""The allowlist: every row of the pattern table, and the ways to smuggle a URL past it."""

from __future__ import annotations

import pytest

from view_syncer.url_pattern import compile_patterns, parse_url
from zerocache.errors import ConfigurationError

SHOP = "https://api.shop.test"


def allowed(pattern: str, url: str) -> bool:
    return compile_patterns([pattern], "ZERO_MUTATE_URL").matches(url)


@pytest.mark.parametrize(
    ("pattern", "url"),
    [
        (f"{SHOP}/zero/push", f"{SHOP}/zero/push"),
        (f"{SHOP}/zero/push", f"{SHOP}/zero/push?a=1&b=2#frag"),
        (f"{SHOP}/push?x=1", f"{SHOP}/push?y=2"),
        (f"{SHOP}/push#f", f"{SHOP}/push"),
        ("https://*.shop.test/push", f"{SHOP}/push"),
        ("https://*.shop.test/push", "https://a.b.shop.test/push"),
        (f"{SHOP}/*", f"{SHOP}/"),
        (f"{SHOP}/*", f"{SHOP}/a/b/c"),
        (SHOP, f"{SHOP}/any/path"),
        (f"{SHOP}/:ver/push", f"{SHOP}/v1/push"),
        (f"{SHOP}/:ver?", f"{SHOP}/v1"),
        (f"{SHOP}/x/:ver?", f"{SHOP}/x"),
        (rf"{SHOP}/:ver(v\d+)/push", f"{SHOP}/v12/push"),
        (rf"{SHOP}/:ver(v\d+)?/push", f"{SHOP}/push"),
        ("http://localhost:3000/push", "http://localhost:3000/push"),
        ("http://localhost:*/push", "http://localhost:81/push"),
        (f"{SHOP}:443/push", f"{SHOP}/push"),
        (f"{SHOP}/push", f"{SHOP}:443/push"),
        ("http://a.test:80/", "http://a.test"),
        ("https://:sub.shop.test/push", f"{SHOP}/push"),
        ("https://{:sub.}?shop.test/push", "https://shop.test/push"),
        ("http{s}?://a.test/push", "http://a.test/push"),
        ("*://a.test/push", "https://a.test/push"),
        (f"{SHOP}/a/:rest*", f"{SHOP}/a"),
        (f"{SHOP}/a/:rest*", f"{SHOP}/a/b/c"),
        (f"{SHOP}/a/:rest+/end", f"{SHOP}/a/b/c/end"),
        (f"{SHOP}/{{v1/}}?push", f"{SHOP}/v1/push"),
        (f"{SHOP}/(a|b)/push", f"{SHOP}/b/push"),
        (f"{SHOP}/x-:id.json", f"{SHOP}/x-12.json"),
        (rf"{SHOP}/a\:b", f"{SHOP}/a:b"),
        (f"{SHOP}/é", f"{SHOP}/%C3%A9"),
        ("https://API.shop.test/Push", f"{SHOP}/Push"),
        (f"{SHOP}/push", "HTTPS://API.SHOP.TEST/push"),
        (f"{SHOP}/push", f"{SHOP}/x/%2e%2e/push"),
        ("http://[::1]:3000/push", "http://[::1]:3000/push"),
    ],
)
def test_matches(pattern: str, url: str) -> None:
    assert allowed(pattern, url)


@pytest.mark.parametrize(
    ("pattern", "url"),
    [
        (f"{SHOP}/zero/push", f"{SHOP}/zero/push/"),
        (f"{SHOP}/zero/push", f"{SHOP}/zero/pushy"),
        (f"{SHOP}/zero/push", f"http{SHOP[5:]}/zero/push"),
        ("https://*.shop.test/push", "https://shop.test/push"),
        ("https://*.shop.test/push", "https://api.evil.test/push"),
        ("https://*.shop.test/push", "https://evil.test/.shop.test/push"),
        (f"{SHOP}/*", "https://api.shop.test.evil.test/x"),
        (SHOP, "https://api.shop.test:8443/"),
        (f"{SHOP}/:ver/push", f"{SHOP}/v1/x/push"),
        (f"{SHOP}/:ver/push", f"{SHOP}//push"),
        (f"{SHOP}/:ver?", f"{SHOP}/v1/x"),
        (f"{SHOP}/:ver?", f"{SHOP}/"),
        (rf"{SHOP}/:ver(v\d+)/push", f"{SHOP}/vx/push"),
        (rf"{SHOP}/:ver(v\d+)/push", f"{SHOP}/v1x/push"),
        ("http://localhost:3000/push", "http://localhost/push"),
        ("http://localhost:3000/push", "http://localhost:3001/push"),
        ("https://:sub.shop.test/push", "https://a.b.shop.test/push"),
        (f"{SHOP}/Push", f"{SHOP}/push"),
        (f"{SHOP}/file.*", f"{SHOP}/fileztxt"),
        ("*://a.test/push", "ftp://a.test/push"),
        (f"{SHOP}/*", f"{SHOP}@evil.test/x"),
        (f"{SHOP}/*", "https://user:pw@api.shop.test/x"),
        (f"{SHOP}/*", "https://api.shop.test\\@evil.test/x"),
        (f"{SHOP}/*", "https://evil.test#@api.shop.test/x"),
        ("https://*.shop.test/push", "https://evil.test%2f.shop.test/push"),
        (f"{SHOP}/a/*", f"{SHOP}/a/../secret"),
        (f"{SHOP}/a/*", f"{SHOP}/a/%2e%2e/secret"),
        (f"{SHOP}/*", "not a url"),
        (f"{SHOP}/*", ""),
        (f"{SHOP}/*", f"{SHOP}:99999/x"),
    ],
)
def test_does_not_match(pattern: str, url: str) -> None:
    assert not allowed(pattern, url)


@pytest.mark.parametrize(
    "pattern",
    [
        "",
        "/push",
        "not a url",
        "https://",
        "https:///x",
        f"{SHOP}/(",
        f"{SHOP}/()",
        f"{SHOP}/(a(b))",
        f"{SHOP}/(?=a)",
        f"{SHOP}/([)",
        f"{SHOP}/{{",
        f"{SHOP}/}}",
        f"{SHOP}/)",
        f"{SHOP}/:",
        f"{SHOP}/:a/:a",
        f"{SHOP}/x+",
        f"{SHOP}/x\\",
        f"{SHOP}:99999/x",
        "https://u:p@api.shop.test/push",
        "http://[::1/push",
    ],
)
def test_a_bad_pattern_stops_the_start_and_is_named(pattern: str) -> None:
    with pytest.raises(ConfigurationError, match="ZERO_QUERY_URL") as caught:
        compile_patterns([f"{SHOP}/ok", pattern], "ZERO_QUERY_URL")
    assert repr(pattern) in str(caught.value)


def test_one_matching_pattern_is_enough_and_the_first_is_the_default() -> None:
    allowlist = compile_patterns([f"{SHOP}/push", "https://*.test/v2"], "ZERO_MUTATE_URL")
    assert allowlist.default == f"{SHOP}/push"
    assert allowlist.matches("https://other.test/v2")
    assert not allowlist.matches("https://other.test/push")


def test_an_empty_list_allows_nothing() -> None:
    allowlist = compile_patterns([], "ZERO_MUTATE_URL")
    assert allowlist.default is None
    assert not allowlist.matches(f"{SHOP}/push")


def test_what_is_matched_is_what_is_called() -> None:
    url = parse_url("HTTPS://API.Shop.test:443/a/%2e%2e/b?x=1")
    assert url is not None
    assert (url.raw_host, url.raw_path) == ("api.shop.test", "/b")
