"""Medians, percentiles, ratios of medians, and the table of them."""

from __future__ import annotations

import pytest

from hack.benchmark.report import (
    Ratio,
    Result,
    Row,
    figure,
    measured_rows,
    percentile,
    ratio,
    rows,
    table,
)

ABOUT = {"pods": [100], "at_once": [10]}


def result(ours: list[list[float]], peer: list[list[float]], key: str = "host/cycle") -> Result:
    return Result(
        targets=["ours", "peer"],
        rounds={"ours": [{key: x} for x in ours], "peer": [{key: x} for x in peer]},
        about=ABOUT,
    )


def test_ratio_is_of_medians_and_has_its_ends() -> None:
    measured = result([[1.0, 2.0, 90.0], [3.0], [8.0]], [[4.0], [4.0], [4.0]])
    assert ratio(measured, "ours", "peer", "host/cycle") == Ratio(0.75, 0.5, 2.0)


def test_ratio_is_that_of_the_tables_columns() -> None:
    measured = result([[1.0], [1.0], [4.0]], [[2.0], [4.0], [4.0]])
    assert ratio(measured, "ours", "peer", "host/cycle") == Ratio(0.25, 0.25, 1.0)


def test_a_round_that_one_of_them_lacks_does_not_count() -> None:
    measured = result([[1.0], [], [9.0]], [[2.0], [100.0]])
    assert ratio(measured, "ours", "peer", "host/cycle") == Ratio(0.5, 0.5, 0.5)


@pytest.mark.parametrize("peer", [[[]], [[0.0]], []])
def test_no_ratio_without_the_peer(peer: list[list[float]]) -> None:
    assert ratio(result([[1.0]], peer), "ours", "peer", "host/cycle") is None


@pytest.mark.parametrize(
    ("more_is_better", "middle", "meets"),
    [(False, 0.5, True), (False, 0.51, False), (True, 0.5, True), (True, 0.49, False)],
)
def test_goal(more_is_better: bool, middle: float, meets: bool) -> None:
    row = Row("k", "t", goal=0.5, more_is_better=more_is_better)
    assert Ratio(middle, 0, 9).meets(row) is meets
    assert Ratio(middle, 0, 9).meets(Row("k", "t")) is None


@pytest.mark.parametrize(("share", "value"), [(0.5, 50.0), (0.99, 99.0), (1.0, 100.0), (0.0, 1.0)])
def test_percentile_is_a_measured_value(share: float, value: float) -> None:
    assert percentile([float(n) for n in range(100, 0, -1)], share) == value


def test_percentile_of_one() -> None:
    assert percentile([7.0], 0.99) == 7.0


@pytest.mark.parametrize(
    ("value", "text"), [(0.05, "0.05"), (9.876, "9.88"), (98.76, "98.8"), (987.6, "988")]
)
def test_figure(value: float, text: str) -> None:
    assert figure(value) == text


def test_goals_are_about_100_pods() -> None:
    goals = {row.key: row.goal for row in rows([100, 400], [10, 50]) if row.goal is not None}
    assert goals["pods/100/ListContainerStats"] == 0.05
    assert goals["at-once/10/rate"] == 2.0
    assert not [key for key in goals if "/400/" in key or "/50/" in key]
    assert len(goals) == 16  # the lines of the issue, two of them split by network


def test_keys_are_unique() -> None:
    keys = [row.key for row in rows([100, 400], [10, 50])]
    assert len(keys) == len(set(keys))


def test_table_has_only_what_was_measured() -> None:
    measured = result([[10.0]], [[20.0]])
    assert [row.key for row in measured_rows(measured)] == ["host/cycle"]
    line = table(measured).splitlines()[2]
    assert line == (
        "| whole cycle, host network | ms | 10.0 | 20.0 | 0.50 (0.50-0.50) | ≤ 0.45 | **missed** |"
    )


def test_table_has_the_99th_percentile_of_enough() -> None:
    measured = result([[float(n) for n in range(1, 101)]], [[200.0]])
    assert "| 50.5 (99.0) | 200 |" in table(measured)


def test_table_says_what_fails() -> None:
    key = "pods/100/ListPodSandboxStats"
    measured = result([[1.0]], [[]], key)
    measured.errors["peer"] = {key: "INTERNAL"}
    assert "| 1.00 | fails (INTERNAL) | - |" in table(measured)


def test_table_of_one_target_compares_nothing() -> None:
    alone = Result(targets=["ours"], rounds={"ours": [{"host/cycle": [10.0]}]}, about=ABOUT)
    assert table(alone).splitlines()[0] == "|  | unit | ours |"
    assert table(alone).splitlines()[2] == "| whole cycle, host network | ms | 10.0 |"


def test_table_of_three_compares_with_each() -> None:
    cycles = {"a": 1.0, "b": 2.0, "c": 4.0}
    three = Result(
        targets=list(cycles),
        rounds={name: [{"host/cycle": [value]}] for name, value in cycles.items()},
        about=ABOUT,
    )
    assert "| ÷ b | ÷ c |" in table(three)
    assert "| 0.50 (0.50-0.50) | 0.25 (0.25-0.25) | ≤ 0.45 | **missed** |" in table(three)


@pytest.mark.parametrize(
    ("ours", "goals", "verdicts"),
    [
        ("zos-cri", "≤ 0.4", "holds"),
        ("zos-cri:crun", "≤ 0.2; ≤ 0.6", "**missed**; holds"),
        ("zos-cri@../tree:/usr/bin/crun:rs", "≤ 0.2; ≤ 0.6", "**missed**; holds"),
    ],
)
def test_a_pods_goal_follows_the_runtimes(ours: str, goals: str, verdicts: str) -> None:
    times = {ours: 1.0, "containerd": 4.0, "containerd:crun": 2.0}
    measured = Result(
        targets=list(times),
        rounds={name: [{"host/ready": [value]}] for name, value in times.items()},
        about=ABOUT,
    )
    assert table(measured).splitlines()[2].endswith(f"| {goals} | {verdicts} |")


def test_what_the_hypervisor_took_is_told_and_not_compared() -> None:
    taken = Result(
        targets=["ours", "peer"],
        rounds={"ours": [{"steal": [0.5]}], "peer": [{"steal": [8.0]}]},
        about=ABOUT,
    )
    assert table(taken).splitlines()[2].endswith("| % | 0.50 | 8.00 | - |  |  |")
