from __future__ import annotations

import pytest

from zos_cri.errors import InvalidArgument
from zos_cri.oci import fields


@pytest.mark.parametrize(
    ("given", "clean"),
    [("/a", "/a"), ("/a/", "/a"), ("//a//b/.", "/a/b"), ("/a/../b", "/b"), ("/", "/")],
)
def test_absolute_paths_are_cleaned(given: str, clean: str) -> None:
    assert fields.absolute_path("f", given) == clean


@pytest.mark.parametrize("given", ["", "a", "./a", "/a\0b", "/" + "a" * 4096])
def test_what_is_no_absolute_path(given: str) -> None:
    with pytest.raises(InvalidArgument, match=r"^mounts\[2\]\.host_path: "):
        fields.absolute_path("mounts[2].host_path", given)


def test_a_target_with_dotdot_is_refused_or_cleaned() -> None:
    with pytest.raises(InvalidArgument, match=r"target: \"/a/\.\./b\" has a '\.\.' in it"):
        fields.mount_target("target", "/a/../b")
    assert fields.mount_target("target", "/a/../../b", dotdot=True) == "/b"
    # A name that merely has dots in it is a name.
    assert fields.mount_target("target", "/a/..b") == "/a/..b"


@pytest.mark.parametrize("given", ["/", "//", "/.", "/a/.."])
def test_the_root_is_not_for_mounting_over(given: str) -> None:
    with pytest.raises(InvalidArgument, match="root of the container"):
        fields.mount_target("target", given, dotdot=True)


def test_an_error_is_one_readable_line() -> None:
    message = str(fields.bad("f", f"no {fields.quote('a' * 500 + chr(10))}"))
    assert "\n" not in message
    assert len(message) < 160
    assert fields.quote("a\nb") == '"a\\nb"'


def test_depth_and_below() -> None:
    assert [fields.depth(path) for path in ("/", "/a", "/a/b")] == [0, 1, 2]
    assert fields.is_below("/dev/shm", "/dev")
    assert fields.is_below("/dev", "/dev")
    assert not fields.is_below("/devices", "/dev")
    assert fields.is_below("/a", "/")
