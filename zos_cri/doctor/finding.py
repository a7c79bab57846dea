"""One thing that was looked at."""

from __future__ import annotations

from typing import Literal

import msgspec

Level = Literal["ok", "warn", "fail"]


class Finding(msgspec.Struct, frozen=True):
    """A finding.

    Attributes:
        check: what was looked at, a word or two.
        level: `fail` means that pods can't be run, `warn` that something is missing or slower.
        found: what is there.
        advice: what to change; empty where nothing needs to be.
    """

    check: str
    level: Level
    found: str
    advice: str = ""


def ok(check: str, found: str) -> Finding:
    """Nothing to change."""
    return Finding(check, "ok", found)


def warn(check: str, found: str, advice: str) -> Finding:
    """Something is missing or slower."""
    return Finding(check, "warn", found, advice)


def fail(check: str, found: str, advice: str) -> Finding:
    """Pods can't be run."""
    return Finding(check, "fail", found, advice)
