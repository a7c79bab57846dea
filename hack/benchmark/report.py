"""From measurements to a table: medians, percentiles, and ratios of medians."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Samples = dict[str, list[float]]


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Args:
        key: of the measurement.
        unit: of its figures.
        goal: of the ratio ours ÷ peer: at most, or at least where `more_is_better`.
        compared: whether its ratio says anything.
    """

    key: str
    title: str
    unit: str = "ms"
    goal: float | None = None
    more_is_better: bool = False
    compared: bool = True


@dataclass(frozen=True)
class Result:
    """What was measured: for each target its rounds, for each of them the samples by key."""

    targets: list[str]
    rounds: dict[str, list[Samples]]
    errors: dict[str, dict[str, str]] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Ratio:
    """Ours ÷ peer: of the medians of all rounds, and the least and the most of a pair of rounds."""

    middle: float
    low: float
    high: float

    def meets(self, row: Row) -> bool | None:
        if row.goal is None:
            return None
        return self.middle >= row.goal if row.more_is_better else self.middle <= row.goal


STEPS: Final = (
    ("RunPodSandbox", 0.15, 0.6),
    ("CreateContainer", None, None),
    ("StartContainer", None, None),
    ("ready", 0.40, None),
    ("ExecSync", 0.8, None),
    ("StopContainer", None, None),
    ("RemoveContainer", None, None),
    ("StopPodSandbox", None, None),
    ("RemovePodSandbox", None, None),
    ("StopPodSandbox+RemovePodSandbox", 0.3, 0.8),
    ("cycle", 0.45, None),
)
NAMES: Final = {
    "ready": "pod ready (the three above)",
    "ExecSync": "ExecSync `true`",
    "StopPodSandbox+RemovePodSandbox": "StopPodSandbox + RemovePodSandbox",
    "cycle": "whole cycle",
}
READS: Final = {
    "ListContainers": 1.0,
    "ListPodSandbox": 1.0,
    "ContainerStatus": 1.0,
    "PodSandboxStatus": None,
    "ContainerStats": None,
    "ListContainerStats": 0.05,
    "ListPodSandboxStats": None,
    "Status": None,
}
GOALS_FOR: Final = 100  # pods: what issue's goals are about
# For a pod to be ready with crun, where the peer has runc, and where it has crun as well.
READY_WITH_CRUN: Final = 0.20, 0.60


def has_crun(target: str) -> bool:
    """Whether a target is one with crun, as `zos-cri:crun` and `containerd:/usr/bin/crun`."""
    return Path(target.partition(":")[2].partition(":")[0]).name == "crun"


def judged(row: Row, ours: str, peers: Sequence[str]) -> list[Row]:
    """A line with its goal for each peer: the first's, unless the runtimes decide otherwise."""
    goals = [row.goal, *[None] * (len(peers) - 1)]
    if row.key == "host/ready" and has_crun(ours):
        goals = [READY_WITH_CRUN[has_crun(peer)] for peer in peers]
    return [replace(row, goal=goal) for goal in goals]


def rows(pods: Sequence[int], at_once: Sequence[int]) -> Iterator[Row]:
    """All lines, in the table's order."""
    for prefix, title, column in (("host", "host network", 1), ("bridge", "CNI bridge", 2)):
        for step in STEPS:
            name = NAMES.get(step[0], step[0])
            goal = step[column]
            assert goal is None or isinstance(goal, float)
            yield Row(f"{prefix}/{step[0]}", f"{name}, {title}", goal=goal)
    yield Row("host/cpu", "CPU a cycle, host network", "CPU ms", 0.6)
    yield Row("bridge/cpu", "CPU a cycle, CNI bridge", "CPU ms")
    for number in at_once:
        goal = 2.0 if number == 10 else None
        yield Row(
            f"at-once/{number}/rate",
            f"cycles a second, {number} at once",
            "1/s",
            goal,
            more_is_better=True,
        )
    yield Row("rss/idle", "RSS of the idle server", "MiB")
    for number in pods:
        yield from _with_pods(number)
    # Where one side had more of it than the other, their ratios are off.
    yield Row("steal", "CPU time that the hypervisor gave to others", "%", compared=False)


def _with_pods(number: int) -> Iterator[Row]:
    prefix, title, goals = f"pods/{number}", f"{number} pods", number == GOALS_FOR
    yield Row(f"{prefix}/fill", f"fill of {title}", "s", 0.5 if goals else None)
    yield Row(f"{prefix}/drain", f"drain of {title}", "s", 0.6 if goals else None)
    for method, goal in READS.items():
        yield Row(f"{prefix}/{method}", f"{method}, {title}", goal=goal if goals else None)
    yield Row(f"{prefix}/among/ready", f"one more pod ready, {title}")
    yield Row(f"{prefix}/among/ExecSync", f"ExecSync `true`, {title}")
    for kind in ("server", "logger", "shims", "pause"):
        yield Row(f"{prefix}/pss/{kind}", f"PSS of {kind}, {title}", "MiB")
    goal = 0.9 if goals else None
    yield Row(f"{prefix}/pss", f"PSS of server, logger, shims, {title}", "MiB", goal)


def percentile(samples: Sequence[float], share: float) -> float:
    """The nearest-rank percentile: a value that was measured."""
    return sorted(samples)[max(0, math.ceil(share * len(samples)) - 1)]


def pooled(result: Result, target: str, key: str) -> list[float]:
    return [value for samples in result.rounds[target] for value in samples.get(key, [])]


def ratio(result: Result, ours: str, peer: str, key: str) -> Ratio | None:
    """Of the rounds in which both have the measurement; None where none has."""
    above: list[float] = []
    below: list[float] = []
    found = []
    for mine, other in zip(result.rounds[ours], result.rounds[peer], strict=False):
        if mine.get(key) and other.get(key) and statistics.median(other[key]):
            above += mine[key]
            below += other[key]
            found.append(statistics.median(mine[key]) / statistics.median(other[key]))
    if not found:
        return None
    return Ratio(statistics.median(above) / statistics.median(below), min(found), max(found))


def measured_rows(result: Result) -> Iterator[Row]:
    """The lines that any target has something for."""
    for row in rows(result.about["pods"], result.about["at_once"]):
        for target in result.targets:
            if pooled(result, target, row.key) or row.key in result.errors.get(target, {}):
                yield row
                break


def figure(value: float) -> str:
    """A number with the digits that mean something."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _cell(result: Result, target: str, key: str) -> str:
    samples = pooled(result, target, key)
    if not samples:
        error = result.errors.get(target, {}).get(key)
        return f"fails ({error})" if error else "-"
    middle = figure(statistics.median(samples))
    # Of a handful, the 99th percentile is only the worst.
    return middle if len(samples) < 20 else f"{middle} ({figure(percentile(samples, 0.99))})"


def table(result: Result) -> str:
    """Markdown. The first target is ours, the others are its peers."""
    ours, *peers = result.targets
    head = ["", "unit", *result.targets]
    for peer in peers:
        head += [f"÷ {peer}" if len(peers) > 1 else "ratio (least-most)"]
    head += ["goal", ""] if peers else []
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in measured_rows(result):
        cells = [row.title, row.unit, *(_cell(result, t, row.key) for t in result.targets)]
        ratios = [ratio(result, ours, peer, row.key) if row.compared else None for peer in peers]
        cells += [
            f"{each.middle:.2f} ({each.low:.2f}-{each.high:.2f})" if each else "-"
            for each in ratios
        ]
        if peers:
            cells += _verdict(judged(row, ours, peers), ratios)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _verdict(rows: Sequence[Row], ratios: Sequence[Ratio | None]) -> list[str]:
    """The goals and whether they are met, peer by peer."""
    goals, verdicts = [], []
    for row, found in zip(rows, ratios, strict=True):
        if row.goal is not None:
            goals.append(f"{'≥' if row.more_is_better else '≤'} {row.goal:g}")
            verdicts.append("-" if found is None else "holds" if found.meets(row) else "**missed**")
    return ["; ".join(goals), "; ".join(verdicts)]
