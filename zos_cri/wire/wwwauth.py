"""WWW-Authenticate: what a registry wants for authentication (RFC 9110, 11.6.1; RFC 6750, 3)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

# A header longer than this is no challenge; it also bounds what the expressions below look at.
MAX_HEADER: Final = 16384
_TOKEN: Final = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_SCHEME = re.compile(rf"\s*,*\s*({_TOKEN})(?=\s|,|$)(?!\s*=)")
_PARAMETER = re.compile(rf'\s*,?\s*({_TOKEN})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]*)(?!["]))')
_TOKEN68 = re.compile(r"\s+[0-9A-Za-z\-._~+/]+=*(?=\s*(?:,|$))")


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way to authenticate. `scheme` and the parameters' names are in lower case."""

    scheme: str
    parameters: dict[str, str] = field(default_factory=dict)


def parse(header: str) -> list[Challenge]:
    """The challenges of one header, in order. What can't be understood ends the list."""
    challenges: list[Challenge] = []
    position = 0
    header = header[:MAX_HEADER]
    while scheme := _SCHEME.match(header, position):
        position = scheme.end()
        if token := _TOKEN68.match(header, position):
            position = token.end()
        parameters: dict[str, str] = {}
        while parameter := _PARAMETER.match(header, position):
            name, quoted, plain = parameter.groups()
            value = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else plain
            parameters.setdefault(name.lower(), value)
            position = parameter.end()
        challenges.append(Challenge(scheme[1].lower(), parameters))
    return challenges
