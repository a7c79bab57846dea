from __future__ import annotations

import signal

import pytest

from zos_cri._pb import cri_pb2
from zos_cri.errors import InvalidArgument
from zos_cri.oci import signals

Signal = cri_pb2.Signal


@pytest.mark.parametrize("known", [s for s in signal.Signals if s.name[3:5] != "RT"])
def test_names_are_the_kernels(known: signal.Signals) -> None:
    assert signals.number(known.name) == known.value
    assert signals.number(known.name[3:].lower()) == known.value
    assert signals.number(str(known.value)) == known.value


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("SIGRTMIN", 34),
        ("RTMIN+3", 37),
        ("SIGRTMIN+30", 64),
        ("SIGRTMAX-14", 50),
        ("RTMAX", 64),
        (" SIGQUIT ", 3),
        ("SIGIOT", 6),
        ("37", 37),
    ],
)
def test_real_time_and_other_forms(text: str, number: int) -> None:
    assert signals.number(text) == number


@pytest.mark.parametrize(
    "text", ["", "SIG", "SIGFOO", "0", "65", "-9", "999", "RTMIN+31", "RTMAX+1", "RTMIN-1", "²"]
)
def test_what_is_none(text: str) -> None:
    assert signals.number(text) is None


@pytest.mark.parametrize("value", Signal.values())
def test_every_value_of_the_enum_has_its_number(value: int) -> None:
    number = signals.of_enum(value)
    if value == Signal.SIGNAL_RUNTIME_DEFAULT:
        assert number == signal.SIGTERM
        return
    name = Signal.Name(value).removeprefix("SIGNAL_")  # type: ignore[arg-type]
    name = name.replace("PLUS", "+").replace("MINUS", "-")
    assert number == signals.number(name)
    # What is reported is the same signal, by the same name but for aliases.
    assert signals.of_enum(signals.reported(number)) == number


def test_precedence() -> None:
    default = Signal.SIGNAL_RUNTIME_DEFAULT
    assert signals.of_container(Signal.SIGNAL_SIGUSR1, "SIGQUIT") == signal.SIGUSR1
    assert signals.of_container(default, "SIGQUIT") == signal.SIGQUIT
    assert signals.of_container(default, "") == signal.SIGTERM
    assert signals.of_container(default, "nonsense") == signal.SIGTERM


def test_a_number_that_the_enum_does_not_have() -> None:
    with pytest.raises(InvalidArgument, match=r"^stop_signal: 99 is no signal"):
        signals.of_container(99, "")


def test_reported() -> None:
    assert signals.reported(15) == Signal.SIGNAL_SIGTERM
    assert signals.reported(6) == Signal.SIGNAL_SIGABRT
    assert signals.reported(37) == Signal.SIGNAL_SIGRTMINPLUS3
    assert signals.reported(1000) == Signal.SIGNAL_RUNTIME_DEFAULT
