"""Draws the ratios as an SVG: a bar for each goal, its peer at 1, the goal as a mark."""

from __future__ import annotations

import html
import statistics
from typing import TYPE_CHECKING, Final

from hack.benchmark.report import Ratio, figure, judged, measured_rows, pooled, ratio

if TYPE_CHECKING:
    from hack.benchmark.report import Result, Row

WIDTH: Final = 960
LEFT: Final = 360  # pixels for titles
RIGHT: Final = 170  # for figures
LINE: Final = 26
TOP: Final = 74
GREATEST: Final = 2.0  # ratios are drawn up to here; their figures say the rest
GOOD, BAD, INK, FAINT = "#2a7f62", "#b3541e", "#222222", "#bbbbbb"
STYLE: Final = "font-family: sans-serif; font-size: 13px"


def svg(result: Result) -> str:
    """The picture of the first target against the second."""
    ours, peer = result.targets[:2]
    bars = [
        (row, found)
        for each in measured_rows(result)
        for row in judged(each, ours, [peer])
        if row.goal is not None and (found := ratio(result, ours, peer, row.key))
    ]
    height = TOP + LINE * len(bars) + 20
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" role="img" style="{STYLE}">',
        f"<title>{_text(ours)} compared with {_text(peer)}</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        _label(16, 24, f"{ours} ÷ {peer}, less is better", weight="bold"),
        _label(
            16, 44, "bar: median of the rounds; line: least to most; mark: the goal", colour="#666"
        ),
    ]
    for tick in (0.0, 0.5, 1.0, 1.5, 2.0):
        x = _x(tick)
        colour = INK if tick == 1 else FAINT
        parts.append(
            f'<line x1="{x}" y1="{TOP - 6}" x2="{x}" y2="{height - 16}" stroke="{colour}"/>'
        )
        parts.append(_label(x, TOP - 12, f"{tick:g}", anchor="middle"))
    for number, (row, found) in enumerate(bars):
        parts += _bar(result, row, found, y=TOP + LINE * number)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _bar(result: Result, row: Row, found: Ratio, *, y: int) -> list[str]:
    middle, low, high, goal, title = found.middle, found.low, found.high, row.goal, row.title
    assert goal is not None
    if row.more_is_better:  # turned round, so that less is better in every line
        middle, low, high, goal = 1 / middle, 1 / high, 1 / low, 1 / goal
        title = f"1 ÷ {title}"
    colour = GOOD if found.meets(row) else BAD
    centre = y + LINE / 2
    ours, peer = (
        figure(statistics.median(pooled(result, target, row.key))) for target in result.targets[:2]
    )
    return [
        _label(LEFT - 10, centre + 4, title.replace("`", ""), anchor="end"),
        f'<rect x="{_x(0)}" y="{y + 5}" width="{_x(middle) - _x(0):.1f}" height="{LINE - 10}" '
        f'fill="{colour}"/>',
        f'<line x1="{_x(low)}" y1="{centre}" x2="{_x(high)}" y2="{centre}" stroke="{INK}"/>',
        f'<line x1="{_x(goal)}" y1="{y + 2}" x2="{_x(goal)}" y2="{y + LINE - 2}" '
        f'stroke="{INK}" stroke-width="3"/>',
        _label(WIDTH - RIGHT + 12, centre + 4, f"{middle:.2f}", weight="bold"),
        _label(WIDTH - RIGHT + 50, centre + 4, f"{ours} : {peer} {row.unit}", colour="#666"),
    ]


def _x(value: float) -> float:
    return round(LEFT + min(value, GREATEST) / GREATEST * (WIDTH - LEFT - RIGHT), 1)


def _text(text: str) -> str:
    return html.escape(text)


def _label(
    x: float,
    y: float,
    text: str,
    *,
    anchor: str = "start",
    weight: str = "normal",
    colour: str = INK,
) -> str:
    return (
        f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-weight="{weight}" '
        f'fill="{colour}">{_text(text)}</text>'
    )
