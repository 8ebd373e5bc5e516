"""The text of ``--help``."""

from __future__ import annotations

import re

from zerocache.config import Config
from zerocache.config_flags import help_text
from zerocache.options import options_of


def help_of_config() -> str:
    return help_text(options_of(Config), version="1.2.3")


def entry(variable: str) -> str:
    found = re.search(
        rf"^  --[^\n]*\n      {variable}\n(?:        [^\n]*\n)+", help_of_config(), re.M
    )
    assert found is not None, variable
    return found[0]


def test_every_visible_option_shows_flag_type_default_variable_and_meaning() -> None:
    for option in options_of(Config):
        if not option.info.hidden:
            shown = entry(option.variable)
            assert option.flag + " " in shown
            assert re.search(
                r"(string\[\]|string|number|boolean|,\w+)   (required|optional|default: )", shown
            )


def test_hidden_and_deprecated_options_are_left_out() -> None:
    shown = help_of_config()
    for variable in ("ZERO_SHARD_NUM", "ZERO_AUTH_SECRET", "ZERO_PUSH_URL", "ZERO_DEVELOPMENT"):
        assert variable not in shown


def test_types_and_defaults_read_naturally() -> None:
    assert "--upstream-db string   required" in entry("ZERO_UPSTREAM_DB")
    assert "--cvr-db string   default: ZERO_UPSTREAM_DB" in entry("ZERO_CVR_DB")
    assert "--keepalive-timeout-ms number" in entry("ZERO_KEEPALIVE_TIMEOUT_MS")
    assert "--log-level debug,info,warn,error" in entry("ZERO_LOG_LEVEL")
    assert "--mutate-url string[]" in entry("ZERO_MUTATE_URL")


def test_options_without_effect_say_so() -> None:
    assert "has no effect yet" in " ".join(entry("ZERO_LITESTREAM_REGION").split())
    assert "has no effect yet" not in entry("ZERO_PORT")
