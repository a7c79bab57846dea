"""Port-forward: pairs of streams, ports."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zos_cri.wire.portforward import Pair, Pairing, PortForwardError, parse_port, port_prefix


def headers(kind: str, request_id: str = "0", port: str = "80") -> dict[str, str]:
    return {"streamtype": kind, "port": port, "requestid": request_id}


def test_two_streams_make_a_pair() -> None:
    pairing = Pairing()
    assert pairing.add(1, headers("error")) == ("0", None)
    assert pairing.add(3, headers("data")) == ("0", Pair("0", 80, data_stream=3, error_stream=1))
    assert pairing.add(5, headers("error")) == ("0", None)  # an id may come again


def test_pairs_may_be_interleaved_and_in_either_order() -> None:
    pairing = Pairing()
    pairing.add(1, headers("error", "a", "80"))
    pairing.add(3, headers("data", "b", "81"))
    assert pairing.add(5, headers("data", "a", "80"))[1] == Pair("a", 80, 5, 1)
    assert pairing.add(7, headers("error", "b", "81"))[1] == Pair("b", 81, 3, 7)


def test_clients_without_request_ids() -> None:
    # Before Kubernetes 1.2: the data stream's id is the error stream's next.
    pairing = Pairing()
    assert pairing.add(1, {"streamtype": "error", "port": "80"})[1] is None
    pair = pairing.add(3, {"streamtype": "data", "port": "80"})[1]
    assert pair is not None
    assert (pair.data_stream, pair.error_stream) == (3, 1)


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"streamtype": "data"},
        headers("stdin"),
        headers("data", port="0"),
        headers("data", port="65536"),
        headers("data", port="-1"),
        headers("data", port="8O"),
        headers("data", port="٣"),
        headers("data", port=""),
        headers("data", port="9" * 5000),
        headers("data", request_id="x" * 257),
    ],
)
def test_wrong_headers_change_nothing(wrong: dict[str, str]) -> None:
    pairing = Pairing()
    pairing.add(1, headers("error"))
    with pytest.raises(PortForwardError):
        pairing.add(3, wrong)
    assert pairing.add(5, headers("data"))[1] == Pair("0", 80, 5, 1)


def test_a_second_stream_of_one_kind() -> None:
    pairing = Pairing()
    pairing.add(1, headers("error"))
    with pytest.raises(PortForwardError, match="has its error stream already"):
        pairing.add(3, headers("error"))


def test_forgetting() -> None:
    pairing = Pairing()
    pairing.add(1, headers("error"))
    assert pairing.forget("0") == [1]
    assert pairing.forget("0") == []
    assert pairing.add(3, headers("data"))[1] is None


def test_lonely_streams_are_bounded() -> None:
    pairing = Pairing()
    for number in range(1000):
        pairing.add(2 * number + 1, headers("error", str(number)))
    with pytest.raises(PortForwardError, match="wait for the other"):
        pairing.add(5001, headers("error", "one more"))
    assert pairing.add(9, headers("data", "0"))[1] is not None


def test_ports() -> None:
    assert [parse_port(text) for text in ("1", "80", "65535", "00080")] == [1, 80, 65535, 80]
    assert port_prefix(0x1234) == b"\x34\x12"


@settings(deadline=None)
@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["streamtype", "port", "requestid"]),
            st.sampled_from(["data", "error", "80", "0", "", "x"]),
        ),
        max_size=20,
    )
)
def test_any_headers(streams: list[dict[str, str]]) -> None:
    pairing = Pairing()
    for number, fields in enumerate(streams):
        try:
            _, pair = pairing.add(2 * number + 1, fields)
        except PortForwardError:
            continue
        if pair is not None:
            assert pair.data_stream != pair.error_stream
