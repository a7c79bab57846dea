"""A CNI configuration rendered for a node's pod CIDRs (UpdateRuntimeConfig).

Templates are those that containerd's users have: a small part of Go's text/template, which is all
that such files use. Known are `.PodCIDR` (the first CIDR), `.PodCIDRRanges` (all of them),
`.Routes` (`0.0.0.0/0`, `::/0`: a default route for each family), and the actions

    {{.PodCIDR}}  {{$var}}  {{.}}  {{/* comment */}}
    {{range .List}}…{{end}}  {{range $x := .List}}…{{end}}  {{range $i, $x := .List}}…{{end}}
    {{if VALUE}}…{{else}}…{{end}}     VALUE false: 0, "" or an empty list

with `{{-` and `-}}` cutting the white space beside them. Anything else is an error that names it.
Values are CIDRs that were parsed before, so they can't break out of a JSON string.
"""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, Final

from zos_cri.errors import FailedPrecondition, InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

Value = str | int | list[str]

_ACTION: Final = re.compile(r"\{\{(-\s)?(.*?)(\s-)?\}\}", re.DOTALL)
_OPERAND: Final = r"(?:\$\w+|\.\w*)"
_RANGE: Final = re.compile(
    rf"range\s+(?:(?:(?P<index>\$\w+)\s*,\s*)?(?P<value>\$\w+)\s*:=\s*)?(?P<list>{_OPERAND})"
)
_IF: Final = re.compile(rf"if\s+(?P<operand>{_OPERAND})")


class TemplateError(FailedPrecondition):
    """The template uses what isn't known, or isn't well formed."""


def pod_cidrs(text: str) -> tuple[str, ...]:
    """The CIDRs of a kubelet's comma-separated list, the primary first.

    Raises:
        InvalidArgument: one isn't a network.
    """
    try:
        return tuple(
            str(ipaddress.ip_network(part.strip(), strict=False)) for part in text.split(",")
        )
    except ValueError as error:
        raise InvalidArgument(f"network_config.pod_cidr: {error}") from error


def render(template: str, cidrs: Sequence[str], *, source: str) -> str:
    """The template's text with the CIDRs (at least one) in place.

    Raises:
        TemplateError: see there; the message has `source`.
    """
    routes = {"6" if ":" in cidr else "4": "::/0" if ":" in cidr else "0.0.0.0/0" for cidr in cidrs}
    values: dict[str, Value] = {
        ".PodCIDR": cidrs[0],
        ".PodCIDRRanges": list(cidrs),
        ".Routes": [routes[family] for family in sorted(routes)],
    }
    body = _Parser(template, source).parse()
    return "".join(_evaluate(body, values, source))


class _Text(str):
    """Text between actions."""

    __slots__ = ()


class _Show:
    def __init__(self, operand: str) -> None:
        self.operand = operand


class _Range:
    def __init__(self, over: str, index: str | None, value: str | None) -> None:
        self.over, self.index, self.value = over, index, value
        self.body: list[_Node] = []
        self.otherwise: list[_Node] = []


class _If:
    def __init__(self, operand: str) -> None:
        self.operand = operand
        self.body: list[_Node] = []
        self.otherwise: list[_Node] = []


_Node = _Text | _Show | _Range | _If


class _Parser:
    """From the text to a tree of nodes."""

    def __init__(self, template: str, source: str) -> None:
        self._source = source
        self._tokens = list(_tokens(template))

    def parse(self) -> list[_Node]:
        root: list[_Node] = []
        open_blocks: list[_Range | _If] = []
        targets = [root]
        for kind, text in self._tokens:
            if kind == "text":
                targets[-1].append(_Text(text))
            elif text == "end" and open_blocks:
                open_blocks.pop()
                targets.pop()
            elif text == "else" and open_blocks and targets[-1] is open_blocks[-1].body:
                targets[-1] = open_blocks[-1].otherwise
            elif not (text.startswith("/*") and text.endswith("*/")):
                node = self._node(text)
                targets[-1].append(node)
                if isinstance(node, _Range | _If):
                    open_blocks.append(node)
                    targets.append(node.body)
        if open_blocks:
            raise TemplateError(f"{self._source}: {len(open_blocks)} {{{{end}}}} missing")
        return root

    def _node(self, action: str) -> _Node:
        if match := _RANGE.fullmatch(action):
            return _Range(match["list"], match["index"], match["value"])
        if match := _IF.fullmatch(action):
            return _If(match["operand"])
        if re.fullmatch(_OPERAND, action):
            return _Show(action)
        raise TemplateError(f"{self._source}: the action {{{{{action}}}}} isn't known here")


def _tokens(template: str) -> Iterator[tuple[str, str]]:
    position, trim = 0, False
    for match in _ACTION.finditer(template):
        text = template[position : match.start()]
        text = text.lstrip() if trim else text
        yield "text", text.rstrip() if match[1] else text
        yield "action", match[2].strip()
        position, trim = match.end(), match[3] is not None
    rest = template[position:]
    yield "text", rest.lstrip() if trim else rest


def _evaluate(body: list[_Node], values: Mapping[str, Value], source: str) -> Iterator[str]:
    for node in body:
        if isinstance(node, _Text):
            yield node
        elif isinstance(node, _Show):
            yield _show(_look_up(node.operand, values, source))
        elif isinstance(node, _If):
            chosen = node.body if _look_up(node.operand, values, source) else node.otherwise
            yield from _evaluate(chosen, values, source)
        else:
            yield from _evaluate_range(node, values, source)


def _evaluate_range(node: _Range, values: Mapping[str, Value], source: str) -> Iterator[str]:
    items = _look_up(node.over, values, source)
    if not isinstance(items, list):
        raise TemplateError(f"{source}: range over {node.over}, which isn't a list")
    for index, item in enumerate(items):
        inner: dict[str, Value] = {**values, ".": item}
        if node.index is not None:
            inner[node.index] = index
        if node.value is not None:
            inner[node.value] = item
        yield from _evaluate(node.body, inner, source)
    if not items:
        yield from _evaluate(node.otherwise, values, source)


def _look_up(operand: str, values: Mapping[str, Value], source: str) -> Value:
    if operand not in values:
        raise TemplateError(
            f"{source}: {operand} isn't known; there are .PodCIDR, .PodCIDRRanges and .Routes"
        )
    return values[operand]


def _show(value: Value) -> str:
    """As Go prints it: a list in brackets, separated by spaces."""
    return f"[{' '.join(value)}]" if isinstance(value, list) else str(value)
