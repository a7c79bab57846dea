"""Values as TOML: what a configuration can hold, and no more (tomllib only reads)."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


def value(found: Any) -> str:
    """One value on one line. JSON's strings are TOML's basic strings, DEL apart."""
    match found:
        case bool():
            return "true" if found else "false"
        case int() | float():
            return repr(found)
        case str():
            return json.dumps(found, ensure_ascii=False).replace("\x7f", "\\u007f")
        case list() | tuple():
            return f"[{', '.join(map(value, found))}]"
        case dict():
            return f"{{{', '.join(f'{key(k)} = {value(v)}' for k, v in found.items())}}}"
    raise TypeError(f"{found!r} is nothing that a configuration holds")


def key(name: str) -> str:
    """A key, quoted where it must be."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else value(name)


def document(settings: Mapping[str, Any]) -> Iterator[str]:
    """The lines of a configuration: first the keys of no section, then the sections."""
    for name, found in settings.items():
        if not isinstance(found, dict):
            yield f"{key(name)} = {value(found)}"
    for name, found in settings.items():
        if isinstance(found, dict):
            tables = found.items() if name == "handlers" else [("", found)]
            for sub, table in tables:
                yield ""
                yield f"[{key(name)}{f'.{key(sub)}' if sub else ''}]"
                yield from (f"{key(k)} = {value(v)}" for k, v in table.items())
