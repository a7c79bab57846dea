from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from zos_cri.errors import InvalidArgument, PermissionDenied
from zos_cri.linux import selinux

if TYPE_CHECKING:
    from pathlib import Path

LABEL = "system_u:object_r:container_file_t:s0:c1,c2"


@pytest.fixture
def labels(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """What is set, by path: a kernel without SELinux may take no such attribute."""
    found: dict[str, bytes] = {}

    def note(path: str, name: str, value: bytes, *, follow_symlinks: bool) -> None:
        assert (name, follow_symlinks) == ("security.selinux", False)
        found[path] = value

    monkeypatch.setattr(os, "setxattr", note)
    return found


def test_a_tree_and_nothing_that_it_leads_to(tmp_path: Path, labels: dict[str, bytes]) -> None:
    top = tmp_path / "volume"
    (top / "deep").mkdir(parents=True)
    (top / "deep/file").touch()
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").touch()
    (top / "link").symlink_to(tmp_path / "other")
    selinux.relabel(str(top), LABEL)
    paths = {str(top), *(str(top / name) for name in ("deep", "deep/file", "link"))}
    assert labels == dict.fromkeys(paths, LABEL.encode() + b"\0")


def test_a_file(tmp_path: Path, labels: dict[str, bytes]) -> None:
    (tmp_path / "file").touch()
    selinux.relabel(str(tmp_path / "file"), LABEL)
    assert list(labels) == [str(tmp_path / "file")]


@pytest.mark.parametrize("path", ["/", "/etc", "/usr/../etc/", "/var/lib"])
def test_the_systems_directories(path: str, labels: dict[str, bytes]) -> None:
    with pytest.raises(InvalidArgument, match="is the system's"):
        selinux.relabel(path, LABEL)
    assert labels == {}


@pytest.mark.parametrize(
    ("number", "says"), [(1, "Operation not permitted"), (22, "has no label"), (95, "")]
)
def test_what_the_kernel_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, says: str
) -> None:
    def refuse(path: str, *_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), path)

    monkeypatch.setattr(os, "setxattr", refuse)
    if not says:  # a file system without labels
        selinux.relabel(str(tmp_path), LABEL)
        return
    with pytest.raises(PermissionDenied, match=says):
        selinux.relabel(str(tmp_path), LABEL)
