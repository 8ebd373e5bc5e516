"""Canonical form of the client schema."""

from __future__ import annotations

import msgspec
import pytest

from zerocache.errors import ClientFacingError
from zerocache.protocol.client_schema import ClientSchema

ONE = (
    '{"tables":{"a":{"columns":{"x":{"type":"string"},"y":{"type":"json"}},"primaryKey":["x"]},'
    '"b":{"columns":{"z":{"type":"number"}},"primaryKey":["z"]}}}'
)
SHUFFLED = (
    '{"tables":{"b":{"primaryKey":["z"],"columns":{"z":{"type":"number"}}},'
    '"a":{"columns":{"y":{"type":"json"},"x":{"type":"string"}},"primaryKey":["x"]}}}'
)


def test_digest_ignores_the_order_of_members() -> None:
    one, shuffled = ClientSchema.from_json(ONE), ClientSchema.from_json(SHUFFLED)
    assert one == shuffled
    assert one.canonical() == shuffled.canonical()
    assert one.digest() == shuffled.digest()


@pytest.mark.parametrize(
    ("old", "new"),
    [('"json"', '"string"'), ('["x"]', '["x","y"]'), ('"z":', '"w":'), ('"b":', '"c":')],
)
def test_digest_sees_every_difference(old: str, new: str) -> None:
    assert (
        ClientSchema.from_json(ONE).digest()
        != ClientSchema.from_json(ONE.replace(old, new)).digest()
    )


def test_the_canonical_form_decodes_to_the_same_schema() -> None:
    schema = ClientSchema.from_json(ONE)
    assert msgspec.json.decode(schema.canonical(), type=ClientSchema) == schema


def test_an_unreadable_stored_schema_asks_for_a_new_client_group() -> None:
    with pytest.raises(ClientFacingError) as caught:
        ClientSchema.from_json('{"tables":{"a":{"columns":{"x":{"type":"date"}}}}}')
    assert caught.value.kind == "SchemaVersionNotSupported"
