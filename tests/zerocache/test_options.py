"""How the text of an option is parsed, and what a group shows of itself."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from zerocache.config import Config
from zerocache.options import (
    Auth,
    Boolean,
    Endpoint,
    Number,
    Strings,
    Upstream,
    Whole,
    options_of,
)


def parse(kind: Any, text: object) -> Any:
    return TypeAdapter(kind).validate_python(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [("7", 7), ("-7", -7), ("1e4", 10_000), ("2.0", 2), ("9007199254740993", 9007199254740993)],
)
def test_whole_number_may_be_decimal_or_scientific(text: str, value: int) -> None:
    assert parse(Whole, text) == value


@pytest.mark.parametrize("text", ["abc", "1.5", "0x10", "1_000", "inf", "nan", "1e999", " 7", "٧"])
def test_anything_else_is_no_whole_number(text: str) -> None:
    with pytest.raises(ValidationError, match="Expected a whole number"):
        parse(Whole, text)


@pytest.mark.parametrize("text", ["abc", "inf", "nan", "1_0", "1e", "."])
def test_anything_else_is_no_number(text: str) -> None:
    with pytest.raises(ValidationError, match="Expected a number"):
        parse(Number, text)


def test_number_keeps_its_fraction() -> None:
    assert parse(Number, ".25") == 0.25


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("TRUE", True), ("1", True), ("False", False), ("0", False)]
)
def test_boolean_ignores_letter_case(text: str, value: bool) -> None:
    assert parse(Boolean, text) is value


@pytest.mark.parametrize("text", ["yes", "on", "2", "t"])
def test_anything_else_is_no_boolean(text: str) -> None:
    with pytest.raises(ValidationError, match='Expected "true", "1", "false" or "0"'):
        parse(Boolean, text)


def test_list_is_split_on_commas_without_empty_parts() -> None:
    assert parse(Strings, "a, b,,c") == ("a", "b", "c")


def test_names_of_an_option_follow_from_its_place() -> None:
    by_path = {option.path: option for option in options_of(Config)}
    option = by_path[("upstream", "max_conns")]
    assert option.variable == "ZERO_UPSTREAM_MAX_CONNS"
    assert option.flag == "--upstream-max-conns"
    assert by_path[("drain_timeout_seconds",)].variable == "ZEROCACHE_DRAIN_TIMEOUT_SECONDS"


def test_no_two_options_share_a_name() -> None:
    variables = [option.variable for option in options_of(Config)]
    assert len(set(variables)) == len(variables)


def test_every_default_is_valid_by_its_own_rules() -> None:
    for option in options_of(Config):
        if not option.field.is_required():
            default = option.field.get_default(call_default_factory=True)
            assert parse(option.field.annotation, default) == default


def test_repr_of_a_group_hides_secrets_but_tells_that_they_are_set() -> None:
    shown = repr([Upstream(db="postgres://u:hunter2@h/d"), Auth(secret="hunter2"), Endpoint()])
    assert "hunter2" not in shown
    assert "db='***'" in shown
    assert "api_key=None" in shown


@pytest.mark.parametrize("url", ["mysql://h/d", "h:5432/d", "host=h dbname=d"])
def test_upstream_must_be_a_postgres_url(url: str) -> None:
    with pytest.raises(ValidationError, match="Expected a Postgres connection URL"):
        Upstream(db=url)
