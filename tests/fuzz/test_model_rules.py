"""What the model checker writes must be legal whatever it draws."""

from __future__ import annotations

from tests.fuzz import model_rules as rules


def test_changes_that_belong_together_are_not_torn_apart() -> None:
    """An exchange of codes needs a third code for a moment, which only one may have."""
    exchanges = 0
    for number in range(2_000):
        is_lent = False
        for statement in rules.change(f"permit/{number}"):
            if "SET code = 'swap'" in statement:
                assert not is_lent, number
                is_lent, exchanges = True, exchanges + 1
            elif "WHERE code = 'swap'" in statement:
                is_lent = False
    assert exchanges > 100
