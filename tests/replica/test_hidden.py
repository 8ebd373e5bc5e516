from tests.replica.tables import column, index, table
from zerocache.replica.hidden import Hidden, hidden_from_clients
from zerocache.replica.layout import TableFacts


def test_types_without_a_client_type_are_hidden() -> None:
    shown = table("t", [column("id", 1, not_null=True), column("tags", 2, "text[]", is_array=True)])
    facts = TableFacts(table=shown, indexes=(index(shown, "id", unique=True),))
    assert hidden_from_clients([facts]) == Hidden()
    spans = table("t", [*shown.columns, column("span", 3, "interval")])
    facts = TableFacts(table=spans, indexes=(index(spans, "id", unique=True),))
    assert hidden_from_clients([facts]) == Hidden({"t.span": "interval"})


def test_tables_are_hidden_that_no_shown_key_identifies() -> None:
    nullable = table("nullable", [column("id", 1)])
    by_hidden = table("by_hidden", [column("id", 1, "oid", not_null=True)], schema="other")
    facts = [
        TableFacts(table=nullable, indexes=(index(nullable, "id", unique=True),)),
        TableFacts(table=by_hidden, indexes=(index(by_hidden, "id", unique=True),)),
    ]
    assert hidden_from_clients(facts) == Hidden(
        {"other.by_hidden.id": "oid"}, ("nullable", "other.by_hidden")
    )
