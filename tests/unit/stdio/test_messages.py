"""The control protocol's framing and messages."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zos_cri.errors import InvalidArgument
from zos_cri.stdio import messages as m

REQUESTS: list[m.AnyRequest] = [
    m.Attach(seq=1, spec=m.LogSpec(id="a", log_path="/x", stdout="/o", max_line=-1)),
    m.Reopen(seq=2, id="a"),
    m.Finish(seq=3, id="a", timeout=0.5),
    m.Detach(seq=4, id="a"),
    m.Tap(seq=5, id="a", stderr=False),
    m.List(seq=6),
    m.Status(seq=7),
    m.Ping(seq=8),
]


@given(st.lists(st.integers(1, 50), max_size=40))
def test_frames_come_out_however_they_are_cut(cuts: list[int]) -> None:
    data = b"".join(m.frame(request) for request in REQUESTS)
    frames = m.Frames(m.MAX_REQUEST)
    bodies = []
    for cut in cuts:
        bodies += frames.feed(data[:cut])
        data = data[cut:]
    bodies += frames.feed(data)
    assert [m.parse_request(body) for body in bodies] == REQUESTS


def test_a_frame_over_the_limit_is_refused_by_its_length_alone() -> None:
    frames = m.Frames(10)
    with pytest.raises(m.ProtocolError, match="limit 10"):
        frames.feed(b"\0\0\0\x0b")


@pytest.mark.parametrize("body", [b"", b"{}", b'{"op":"fly"}', b'{"op":"reopen"}', b"\xff"])
def test_what_is_no_request_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidArgument):
        m.parse_request(body)


def test_replies() -> None:
    reply = m.Reply(seq=3, result=m.raw(m.Finished(known=True, dropped=5)))
    (body,) = m.Frames(1000).feed(m.frame(reply))
    assert bytes(m.parse_reply(body).result) == b'{"known":true,"complete":true,"dropped":5}'
    with pytest.raises(m.ProtocolError):
        m.parse_reply(b"[]")
