from pathlib import Path

import pytest

from zos_cri.errors import NotFound
from zos_cri.linux import namespaces, netdev
from zos_cri.linux.netdev import Interface

TEXT = """\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo
    lo:    9       1    0    0    0     0          0         0        9       1    0    0    0     0
  eth0: 1000      10    1    2    0     0          0         0     2000      20    3    4    0     0
 net1:5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20
"""


def test_interfaces_without_the_loopback() -> None:
    assert netdev.parse(TEXT) == (
        Interface("eth0", 1000, 10, 1, 2, 2000, 20, 3, 4),
        Interface("net1", 5, 6, 7, 8, 13, 14, 15, 16),
    )


@pytest.mark.parametrize("text", ["", "one line\n", "\n\n  torn: 1 2 3\n", "\n\nno colon\n"])
def test_what_is_no_line_of_an_interface_is_left_out(text: str) -> None:
    assert netdev.parse(text) == ()


@pytest.mark.root
async def test_a_namespace_is_read_and_left(tmp_path: Path) -> None:
    path = str(tmp_path / "net")
    home = Path("/proc/thread-self/ns/net").readlink()
    await namespaces.pin({"net": path}, timeout=10)
    try:
        assert netdev.interfaces(path) == ()
        assert Path("/proc/thread-self/ns/net").readlink() == home
    finally:
        await namespaces.unpin(path)
    with pytest.raises(NotFound):
        netdev.interfaces(path)


@pytest.mark.root
def test_what_is_no_namespace_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    home = Path("/proc/thread-self/ns/net").readlink()
    with pytest.raises(OSError, match="Invalid argument"):
        netdev.interfaces(str(tmp_path / "file"))
    assert Path("/proc/thread-self/ns/net").readlink() == home
