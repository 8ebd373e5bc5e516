"""Ratios and tables of the benchmarks."""

from __future__ import annotations

import pytest

from benchmarks.report import Metric, ServerResult, print_table, ratio


def metric(value: float, *, higher: bool = False) -> Metric:
    return Metric("b", "m", value, "ms", higher)


def test_a_ratio_above_one_means_better_whatever_the_unit() -> None:
    assert ratio(metric(5), metric(10)) == 2
    assert ratio(metric(10, higher=True), metric(5, higher=True)) == 2
    assert ratio(metric(0), metric(5)) is None


def test_the_table_has_a_line_per_metric_and_the_ratio(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(
        [
            ServerResult("ours", "1", (metric(5),), ("a note",)),
            ServerResult("theirs", "2", (metric(10), Metric("b", "only theirs", 1, "s"))),
        ]
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["b:", "m", "5.00", "ms", "10.0", "ms", "2.00×"]
    assert lines[2].split() == ["b:", "only", "theirs", "-", "1.00", "s", "-"]
    assert lines[-1] == "ours: a note"
