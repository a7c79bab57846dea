"""User namespaces of pods; those, and mounts, are real."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.fakes.pods import pod_config
from tests.unit.cri.test_creation import Maker, container_config
from zos_cri._pb import cri_pb2 as pb
from zos_cri._pb import runc_options_pb2
from zos_cri.cri import userns
from zos_cri.cri.sandbox_parts import pins
from zos_cri.errors import InvalidArgument
from zos_cri.linux import namespaces
from zos_cri.oci.container import HandlerSettings
from zos_cri.oci.namespaces import pod_plan
from zos_cri.store.lifecycle import SandboxState

pytestmark = pytest.mark.root
FIRST = 300000


def mapped(config):
    mapping = pb.IDMapping(container_id=0, host_id=FIRST, length=65536)
    gids = pb.IDMapping(container_id=0, host_id=FIRST + 1, length=65536)
    options = config.linux.security_context.namespace_options
    options.ipc = pb.NamespaceMode.POD
    options.userns_options.CopyFrom(
        pb.UserNamespace(mode=pb.NamespaceMode.POD, uids=[mapping], gids=[gids])
    )
    return config


@pytest.fixture
def able(bench):
    bench.sandboxes._user_namespaces = {"runc"}
    return bench


def test_only_a_handler_that_can_is_given_one():
    userns.check(pod_plan(mapped(pod_config())), "runc", {"runc"})
    userns.check(pod_plan(pod_config()), "old", {"runc"})
    with pytest.raises(InvalidArgument, match=r'userns_options: the runtime handler "old"'):
        userns.check(pod_plan(mapped(pod_config())), "old", {"runc"})


def test_the_mappings_and_the_hosts_id_of_root():
    assert userns.of_pod(pod_config()) is None
    assert userns.root_of(None) == (0, 0)
    mappings = userns.of_pod(mapped(pod_config()))
    assert mappings is not None
    assert mappings.mount_options() == (
        f"uidmap=0:{FIRST}:65536",
        f"gidmap=0:{FIRST + 1}:65536",
    )
    assert userns.root_of(mappings) == (FIRST, FIRST + 1)


async def test_it_is_refused_before_anything_is_made(bench):
    with pytest.raises(InvalidArgument, match="userns_options"):
        await bench.sandboxes.run(mapped(pod_config()), "")
    assert (bench.shims.calls, bench.network.calls, bench.leftovers()) == ([], [], [])


async def test_it_owns_the_pods_other_namespaces(able):
    pod = await able.sandboxes.run(mapped(pod_config(hostname="web")), "")
    meta = able.sandboxes.ready(pod).meta
    assert list(pins(meta)) == ["user", "net", "ipc", "uts"]
    for kind, path in pins(meta).items():
        assert namespaces.kind_of(path) == kind
    shm = able.sandboxes.files(pod).directory / "shm"
    assert (shm.stat().st_uid, shm.stat().st_gid) == (FIRST, FIRST + 1)
    await able.sandboxes.remove(pod)
    assert able.leftovers() == []


async def test_on_the_hosts_network(able):
    pod = await able.sandboxes.run(mapped(pod_config(host=True)), "")
    assert list(pins(able.sandboxes.ready(pod).meta)) == ["user", "ipc"]
    await able.sandboxes.remove(pod)
    assert able.leftovers() == []


async def test_a_pod_that_fails_leaves_nothing(able):
    able.init.failure = InvalidArgument("no")
    with pytest.raises(InvalidArgument):
        await able.sandboxes.run(mapped(pod_config(shared_pid=True)), "")
    assert able.leftovers() == []


async def test_without_its_pin_the_pod_is_lost(able):
    pod = await able.sandboxes.run(mapped(pod_config()), "")
    again = able.serve_pods()
    await again.recover()
    assert able.pod(pod).state is SandboxState.READY
    await namespaces.unpin(able.sandboxes.ready(pod).meta.userns)
    await again.recover()
    assert able.pod(pod).state is SandboxState.NOT_READY


async def test_a_container_of_such_a_pod(able):
    maker = Maker(able)
    maker.creation._handlers = {"runc": HandlerSettings(id_mapped_mounts=True)}
    maker.pod = await able.sandboxes.run(mapped(pod_config()), "")
    id_ = await maker.create(container_config())
    meta = maker.creation.container(id_).meta
    assert (meta.root_uid, meta.root_gid) == (FIRST, FIRST + 1)
    assert maker.images.id_mappings[id_].root == (FIRST, FIRST + 1)
    bundle = Path(meta.bundle)
    found = bundle.stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o7777) == (0, FIRST + 1, 0o710)
    assert (bundle / "config.json").stat().st_mode & 0o7777 == 0o600
    spec = json.loads((bundle / "config.json").read_bytes())
    joined = {ns["type"]: ns.get("path", "") for ns in spec["linux"]["namespaces"]}
    assert joined["user"] == able.sandboxes.ready(maker.pod).meta.userns
    # The user namespace has them: a runtime refuses them for one that it joins.
    assert "uidMappings" not in spec["linux"]
    await able.containers.start(id_)
    options = runc_options_pb2.Options.FromString(able.tasks.created[id_]["options"].value)
    assert (options.io_uid, options.io_gid) == (FIRST, FIRST + 1)
    await maker.creation.start_undone(maker.creation.container(id_))
    assert maker.images.id_mappings[id_].root == (FIRST, FIRST + 1)


async def test_a_container_of_another_pod_is_the_hosts_roots(bench):
    maker = Maker(bench)
    maker.pod = await bench.sandboxes.run(pod_config(host=True), "")
    meta = maker.creation.container(await maker.create()).meta
    assert (meta.root_uid, meta.root_gid, os.stat(meta.bundle).st_mode & 0o7777) == (0, 0, 0o700)
    assert set(maker.images.id_mappings.values()) == {None}
