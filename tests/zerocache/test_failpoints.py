"""Places where a process dies on request, and nothing at all without a request."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from zerocache import failpoints
from zerocache.failpoints import ONCE_VARIABLE, VARIABLE, Place, armed

_PROGRAM = """
from zerocache.failpoints import Place, reach
for n in range(1, 6):
    reach(Place.COMMITTED)
    reach(Place.MID_APPLY)
    print(n, flush=True)
"""


def _run(**environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _PROGRAM], env=environment, capture_output=True, text=True,
        cwd=Path(__file__).parents[2], check=False,
    )  # fmt: skip


def test_without_a_request_the_places_do_nothing() -> None:
    assert armed({}) is armed({VARIABLE: ""}) is failpoints._inert
    assert _run().stdout.split() == ["1", "2", "3", "4", "5"]


@pytest.mark.parametrize(
    ("request_", "passed"),
    [("committed", 0), ("mid-apply", 0), ("mid-apply:1", 0), ("mid-apply:4", 3), ("durable", 5)],
)
def test_a_process_dies_at_the_place_and_passage_asked_for(request_: str, passed: int) -> None:
    ended = _run(**{VARIABLE: request_})
    assert len(ended.stdout.split()) == passed
    assert ended.returncode == (0 if passed == 5 else -signal.SIGKILL)


def test_only_the_first_process_dies(tmp_path: Path) -> None:
    once = {VARIABLE: "committed:2", ONCE_VARIABLE: str(tmp_path / "fired")}
    assert _run(**once).returncode == -signal.SIGKILL
    assert (tmp_path / "fired").exists()
    assert _run(**once).returncode == 0


def test_an_unknown_place_is_refused() -> None:
    with pytest.raises(ValueError, match="nowhere"):
        armed({VARIABLE: "nowhere"})


def test_places_are_numbered_in_the_order_a_change_passes_them() -> None:
    assert [place.number for place in Place] == list(range(1, len(Place) + 1))
    assert Place.RECEIVED.number < Place.COMMITTED.number < Place.ACKNOWLEDGED.number
