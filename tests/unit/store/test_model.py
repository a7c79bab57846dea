from __future__ import annotations

import msgspec
import pytest

from zos_cri.linux.mount import Mount
from zos_cri.store.model import (
    ContainerMeta,
    ContainerStatus,
    SandboxMeta,
    SandboxStatus,
    Stdio,
)

META = ContainerMeta(
    id="a" * 64,
    ns="ns",
    name="web",
    group="b" * 64,
    handler="runc",
    created_at=1,
    bundle="/b",
    cgroup="/c",
    rootfs=(Mount(type="overlay", source="overlay", options=("lowerdir=/a",)),),
    stdio=Stdio(stdout="file:///log"),
    tags={"a": "b"},
    extra=b"\0\xff",
)
SANDBOX = SandboxMeta(id="s", name="n", config=b"\0", handler="runc", created_at=2)


@pytest.mark.parametrize("value", [META, ContainerStatus(), SANDBOX, SandboxStatus(ips=("::1",))])
def test_what_is_stored_is_read_back(value):
    assert msgspec.json.decode(msgspec.json.encode(value), type=type(value)) == value


def test_fields_that_an_older_version_lacks_have_defaults():
    older = msgspec.json.encode({"state": "running", "version": 1})
    assert msgspec.json.decode(older, type=ContainerStatus).resources == b""


@pytest.mark.parametrize("value", [META, ContainerStatus(), SANDBOX, SandboxStatus()])
def test_nothing_changes_in_place(value):
    with pytest.raises(AttributeError):
        value.version = 2
