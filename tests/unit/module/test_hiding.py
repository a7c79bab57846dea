from __future__ import annotations

import asyncio
import json

import pytest

from tests.fakes.shim import until
from zos_cri.linux.mount import Mount, MountError, mount, mounts_below, unmount
from zos_cri.module import hiding
from zos_cri.module.hiding import Hiding
from zos_cri.shim.handler import Handler


@pytest.fixture
def bundle(tmp_path):
    """A bundle whose root filesystem is mounted, as the shim does it."""
    path = tmp_path / "bundle"
    rootfs = path / "rootfs"
    rootfs.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    mount(Mount(type="tmpfs", source="tmpfs"), str(rootfs))
    yield path
    unmount(str(rootfs), lazy=True)


@pytest.mark.root
def test_a_root_filesystem_in_use_is_hidden(bundle, tmp_path):
    with (bundle / "rootfs" / "used").open("w") as used:
        hiding.hide([tmp_path / "gone", bundle])
        assert mounts_below(str(bundle)) == []
        used.write("goes on")
    hiding.hide([bundle])  # the shim was first


@pytest.mark.root
def test_a_poststop_hook_finds_the_root_filesystem(bundle):
    hooks = {"poststop": [{"path": "/bin/true"}]}
    (bundle / "config.json").write_text(json.dumps({"hooks": hooks}))
    hiding.hide([bundle])
    assert len(mounts_below(str(bundle))) == 1


def test_one_that_cannot_be_hidden_holds_up_no_other(tmp_path, monkeypatch):
    asked = []

    def refuse(target, *, lazy):
        asked.append((target, lazy))
        raise MountError(f"unmount {target}: refused", 1)

    monkeypatch.setattr("zos_cri.linux.mount.unmount", refuse)
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    hiding.hide([tmp_path / "a", tmp_path / "b"])
    assert asked == [(str(tmp_path / name / "rootfs"), True) for name in "ab"]


async def test_those_of_one_while_are_hidden_together(monkeypatch):
    hidden: list[list[str]] = []
    monkeypatch.setattr(hiding, "hide", lambda paths: hidden.append([p.name for p in paths]))
    tasks = []
    each = Hiding(lambda work: tasks.append(asyncio.create_task(work)), delay=0.05)
    for name in "abc":
        each.soon(f"/{name}")
    await until(lambda: hidden)
    each.soon("/d")
    await asyncio.gather(*tasks)
    assert hidden == [["a", "b", "c"], ["d"]]


@pytest.mark.parametrize("runtime", ["runc", "runsc"])
async def test_only_what_runs_on_the_host_has_a_mount_of_its_own(bench, monkeypatch, runtime):
    hidden: list[str] = []
    monkeypatch.setattr(bench.containers._hiding, "soon", hidden.append)
    bench.containers._handlers = {"runc": Handler(runtime=runtime)}
    await bench.create()
    assert hidden == []
    await bench.containers.start("c")
    bundle = bench.containers.find("c").meta.bundle
    assert hidden == ([bundle] if runtime == "runc" else [])
