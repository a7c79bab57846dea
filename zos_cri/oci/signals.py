"""Stop signals: CRI's enum, an image's string, and the number that kill(2) takes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from zos_cri._pb import cri_pb2
from zos_cri.oci.fields import bad

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT: Final = 15
"""SIGTERM."""

# signal(7), the numbers of x86, ARM and most others (a container's architecture is its host's).
_STANDARD: Final[Mapping[str, int]] = {
    "HUP": 1,
    "INT": 2,
    "QUIT": 3,
    "ILL": 4,
    "TRAP": 5,
    "ABRT": 6,
    "BUS": 7,
    "FPE": 8,
    "KILL": 9,
    "USR1": 10,
    "SEGV": 11,
    "USR2": 12,
    "PIPE": 13,
    "ALRM": 14,
    "TERM": 15,
    "STKFLT": 16,
    "CHLD": 17,
    "CONT": 18,
    "STOP": 19,
    "TSTP": 20,
    "TTIN": 21,
    "TTOU": 22,
    "URG": 23,
    "XCPU": 24,
    "XFSZ": 25,
    "VTALRM": 26,
    "PROF": 27,
    "WINCH": 28,
    "IO": 29,
    "PWR": 30,
    "SYS": 31,
}
_ALIASES: Final[Mapping[str, str]] = {"IOT": "ABRT", "CLD": "CHLD", "POLL": "IO"}
_REAL_TIME: Final = {"RTMIN": 34, "RTMAX": 64}
"""As libc counts: the kernel's first two are its own."""
_REAL_TIME_NAME: Final = re.compile(r"(RTMIN|RTMAX)(?:([+-])(\d{1,2}))?")
_RUNTIME_DEFAULT: Final = cri_pb2.Signal.SIGNAL_RUNTIME_DEFAULT


def number(text: str) -> int | None:
    """A signal's number: of a name with or without SIG, of RTMIN+n or RTMAX-n, of digits.

    None for what is no signal.
    """
    name = text.strip().upper().removeprefix("SIG")
    if name.isascii() and name.isdigit():
        value = int(name) if len(name) <= 2 else 0
        return value if 1 <= value <= _REAL_TIME["RTMAX"] else None
    name = _ALIASES.get(name, name)
    if name in _STANDARD:
        return _STANDARD[name]
    match = _REAL_TIME_NAME.fullmatch(name)
    if match is None:
        return None
    offset = int(match[3] or 0) * (-1 if match[2] == "-" else 1)
    value = _REAL_TIME[match[1]] + offset
    return value if _REAL_TIME["RTMIN"] <= value <= _REAL_TIME["RTMAX"] else None


def of_enum(signal: int) -> int:
    """The number of a `runtime.v1.Signal`; SIGNAL_RUNTIME_DEFAULT is SIGTERM.

    Raises:
        InvalidArgument: it is none.
    """
    if signal == _RUNTIME_DEFAULT:
        return DEFAULT
    if signal not in cri_pb2.Signal.values():
        raise bad("stop_signal", f"{signal} is no signal")
    name = cri_pb2.Signal.Name(signal).removeprefix("SIGNAL_")  # type: ignore[arg-type]
    value = number(name.replace("PLUS", "+").replace("MINUS", "-"))
    if value is None:
        raise bad("stop_signal", f"{name} is no signal")
    return value


def of_container(signal: int, image: str) -> int:
    """What stops a container: the config's signal, else the image's, else SIGTERM.

    An image's string that is no signal's is passed over: its maker isn't here to mend it, and a
    container that can't be stopped softly can still be stopped.

    Raises:
        InvalidArgument: the config's is no signal.
    """
    if signal != _RUNTIME_DEFAULT:
        return of_enum(signal)
    return number(image) or DEFAULT


def reported(signal: int) -> cri_pb2.Signal.ValueType:
    """The enum's value of a number, for ContainerStatus.stop_signal."""
    return _BY_NUMBER.get(signal, _RUNTIME_DEFAULT)


def _enum() -> dict[int, cri_pb2.Signal.ValueType]:
    result: dict[int, cri_pb2.Signal.ValueType] = {}
    for name, value in cri_pb2.Signal.items():
        # An alias has another name's number: that one is reported.
        plain = name.removeprefix("SIGNAL_SIG")
        if value != _RUNTIME_DEFAULT and plain not in _ALIASES:
            result.setdefault(of_enum(value), value)
    return result


_BY_NUMBER: Final = _enum()
