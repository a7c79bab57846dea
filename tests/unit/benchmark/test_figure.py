"""The picture is a well-formed SVG that has the figures in it."""

from __future__ import annotations

from xml.etree import ElementTree

from hack.benchmark.figure import GOOD, svg
from hack.benchmark.report import Result

SVG = "{http://www.w3.org/2000/svg}"


def drawn(ours: dict[str, list[float]], peer: dict[str, list[float]]) -> ElementTree.Element:
    result = Result(
        targets=["ours & co", "peer"],
        rounds={"ours & co": [ours], "peer": [peer]},
        about={"pods": [100], "at_once": [10]},
    )
    return ElementTree.fromstring(svg(result))


def bars(picture: ElementTree.Element) -> list[ElementTree.Element]:
    return picture.findall(f"{SVG}rect")[1:]  # the first one is the paper


def texts(picture: ElementTree.Element) -> list[str]:
    return [each.text or "" for each in picture.findall(f"{SVG}text")]


def test_only_lines_with_a_goal_and_a_peer_are_drawn() -> None:
    picture = drawn(
        {"host/cycle": [10.0], "host/CreateContainer": [1.0], "host/ready": [1.0]},
        {"host/cycle": [40.0], "host/CreateContainer": [1.0]},
    )
    assert len(bars(picture)) == 1
    assert "0.25" in texts(picture)
    assert "10.0 : 40.0 ms" in texts(picture)
    assert picture.find(f"{SVG}title").text == "ours & co compared with peer"  # type: ignore[union-attr]


def test_rates_are_turned_round() -> None:
    picture = drawn({"at-once/10/rate": [20.0]}, {"at-once/10/rate": [5.0]})
    (bar,) = bars(picture)
    assert bar.get("fill") == GOOD
    assert "1 ÷ cycles a second, 10 at once" in texts(picture)
    assert "0.25" in texts(picture)


def test_what_is_far_off_stays_in_the_picture() -> None:
    picture = drawn({"host/cycle": [1000.0]}, {"host/cycle": [1.0]})
    (bar,) = bars(picture)
    assert float(bar.get("x", "")) + float(bar.get("width", "")) < 900 - 100
    assert bar.get("fill") != GOOD
    assert "1000.00" in texts(picture)
