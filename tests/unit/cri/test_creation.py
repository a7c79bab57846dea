from __future__ import annotations

import asyncio
import json
from typing import Any, cast

import msgspec
import pytest

from tests.fakes.images import BUSYBOX, FakeImages, FakeOutput
from tests.fakes.nri import nri_over
from tests.fakes.pods import pod_config
from tests.fakes.shim import until
from zos_cri._pb import cri_pb2 as pb
from zos_cri.checkpoint.criu import Criu
from zos_cri.cri.cdi import CdiSpecs
from zos_cri.cri.creation import Creation
from zos_cri.cri.restores import Restores
from zos_cri.cri.views import Views
from zos_cri.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from zos_cri.oci.container import HandlerSettings
from zos_cri.oci.host import HostFacts
from zos_cri.store.lifecycle import ContainerState

BROKEN = Unavailable("not now")


class Maker:
    """A Creation, and what stands around it."""

    def __init__(self, bench):
        self.bench = bench
        self.images = cast("Any", FakeImages())
        self.output = cast("Any", FakeOutput())
        self.views = Views()
        self.creation = Creation(
            containers=bench.containers,
            sandboxes=bench.sandboxes,
            images=self.images,
            output=self.output,
            views=self.views,
            handlers={"runc": HandlerSettings()},
            host=HostFacts(),
            metrics=bench.metrics,
            cdi=CdiSpecs(()),
            restores=Restores(images=self.images, criu=Criu(), directory=bench.directory / "cp"),
            nri=nri_over(bench, self.views),
        )
        self.pod = ""

    async def create(self, config=None, **fields):
        return await self.creation.create(self.pod, config or container_config(**fields))

    def leftovers(self):
        bundles = self.bench.shims.bundles
        found = [path.name for path in bundles.iterdir()] if bundles.exists() else []
        found += [*self.images.rootfs, *self.output.attached]
        return found + [record.meta.id for record in self.bench.containers]


def container_config(name="main", **fields):
    image = pb.ImageSpec(image=fields.pop("image", "busybox"))
    return pb.ContainerConfig(metadata=pb.ContainerMetadata(name=name), image=image, **fields)


@pytest.fixture
async def maker(bench):
    maker = Maker(bench)
    config = pod_config(host=True, log_directory="/var/log/pods/x")
    maker.pod = await bench.sandboxes.run(config, "")
    return maker


async def test_a_container_of_the_image_and_the_configuration(maker, bench):
    id_ = await maker.create(log_path="main/0.log", command=["sleep", "1"], tty=True)
    record = maker.creation.container(id_[:12])
    meta = record.meta
    assert (meta.ns, meta.group, meta.name, meta.owner) == (maker.pod, maker.pod, "main_0", "cri")
    assert meta.stop_signal == 3  # the image's
    assert meta.rootfs[0].type == "overlay"
    assert not meta.kill_all
    spec = json.loads((bench.shims.bundles / id_ / "config.json").read_bytes())
    assert spec["process"]["args"] == ["sleep", "1"]
    assert "A=b" in spec["process"]["env"]
    extra, config = maker.views.parts(record)
    assert (extra.image_id, extra.image_ref) == (BUSYBOX.id, "busybox")
    assert extra.log_path == "/var/log/pods/x/main/0.log"
    assert config.command == ["sleep", "1"]
    await bench.containers.start(id_)
    assert maker.output.attached == {id_: "/var/log/pods/x/main/0.log"}


async def test_without_a_pid_namespace_of_its_own_all_are_killed(maker, bench):
    options = pb.NamespaceOption(pid=pb.NamespaceMode.POD)
    pod = await bench.sandboxes.run(pod_config("other", host=True, shared_pid=True), "")
    context = pb.LinuxContainerSecurityContext(namespace_options=options)
    config = container_config(linux=pb.LinuxContainerConfig(security_context=context))
    id_ = await maker.creation.create(pod, config)
    assert maker.creation.container(id_).meta.kill_all


async def test_the_same_call_joins_or_finds_and_another_is_refused(maker):
    ids = await asyncio.gather(*(maker.create() for _ in range(3)))
    ids.append(await maker.create())
    assert len(set(ids)) == 1
    with pytest.raises(AlreadyExists, match=r'container "main_0" exists in the pod: .* is created'):
        await maker.create(command=["x"])
    assert len(maker.images.rootfs) == 1


def image_mount(image: str, **fields: Any) -> pb.Mount:
    return pb.Mount(container_path="/x", image=pb.ImageSpec(image=image), **fields)


async def test_an_image_as_a_volume(maker):
    etc = pb.Mount(container_path="/y", host_path="/etc")
    id_ = await maker.create(mounts=[etc, image_mount("busybox")])
    spec = json.loads((maker.bench.shims.bundles / id_ / "config.json").read_bytes())
    mounts = {mount["destination"]: mount for mount in spec["mounts"]}
    assert mounts["/x"]["source"] == f"/views/{id_}/1"
    assert mounts["/x"]["options"] == ["rbind", "rprivate", "ro"]


@pytest.mark.parametrize(
    ("fields", "error", "says"),
    [
        ({"name": ""}, InvalidArgument, "config.metadata.name: is empty"),
        ({"image": ""}, InvalidArgument, "config.image.image: is empty"),
        ({"image": "absent"}, NotFound, 'config.image.image: "absent" is not on this'),
        ({"log_path": "../x"}, InvalidArgument, "leads out of"),
        ({"working_dir": "relative"}, InvalidArgument, "working_dir"),
        ({"stop_signal": 1000}, InvalidArgument, "stop_signal"),
        (
            {"mounts": [image_mount("absent")]},
            NotFound,
            r'mounts\[0\].image.image: "absent" is not',
        ),
        ({"mounts": [image_mount("")]}, InvalidArgument, r"mounts\[0\].image.image: is empty"),
        (
            {"mounts": [image_mount("busybox", image_sub_path="absent")]},
            InvalidArgument,
            r'mounts\[0\].image_sub_path: ImageVolumeMountFailed: .* "absent"',
        ),
        (
            {"mounts": [image_mount("busybox", image_sub_path="a\0b")]},
            InvalidArgument,
            r"mounts\[0\].image_sub_path: has a NUL",
        ),
    ],
)
async def test_what_is_wrong_is_named_and_nothing_is_left(maker, fields, error, says):
    with pytest.raises(error, match=says):
        await maker.create(**fields)
    assert maker.leftovers() == []


@pytest.mark.parametrize("stage", ["read_files", "prepare_rootfs", "prepare_volumes", "mount_view"])
async def test_a_stage_that_fails_leaves_nothing(maker, stage):
    maker.images.failures[stage] = BROKEN
    with pytest.raises(Unavailable):
        await maker.create(mounts=[image_mount("busybox")])
    assert maker.leftovers() == []


async def test_only_in_a_ready_pod(maker, bench):
    with pytest.raises(NotFound):
        await maker.creation.create("f" * 64, container_config())
    await bench.sandboxes.stop(maker.pod)
    with pytest.raises(FailedPrecondition, match="not ready"):
        await maker.create()


async def test_a_pod_that_goes_meanwhile_takes_its_new_container_along(maker, bench):
    held = asyncio.Event()
    original = maker.images.prepare_rootfs

    async def slow(image_id, container_id, **options):
        await held.wait()
        return await original(image_id, container_id, **options)

    maker.images.prepare_rootfs = slow
    create = asyncio.create_task(maker.create())
    await asyncio.sleep(0.05)
    await bench.sandboxes.remove(maker.pod)
    held.set()
    with pytest.raises((NotFound, FailedPrecondition)):
        await create
    assert maker.leftovers() == []


async def test_a_start_in_a_pod_that_is_being_stopped_makes_no_new_shim(maker, bench):
    id_ = await maker.create()
    await bench.sandboxes.stop(maker.pod)
    with pytest.raises(FailedPrecondition, match="not ready"):
        await bench.containers.start(id_)
    assert bench.shims.shims == {}
    assert bench.status(id_).state is ContainerState.EXITED


async def test_what_was_lent_is_given_back_and_tried_again_until_it_is(maker, bench):
    id_ = await maker.create()
    await bench.containers.start(id_)
    maker.images.failures["release_rootfs"] = BROKEN
    with pytest.raises(Unavailable):
        await bench.containers.remove(id_)
    assert maker.output.finished == [id_]
    maker.images.failures.clear()
    await bench.containers.remove(id_)
    assert maker.leftovers() == []


async def test_a_log_that_cannot_be_opened_fails_the_start(maker, bench):
    id_ = await maker.create()
    maker.output.failures["attach"] = BROKEN
    with pytest.raises(Unavailable):
        await bench.containers.start(id_)
    assert (bench.status(id_).exit_code, bench.status(id_).reason) == (128, "StartError")


async def test_containers_of_others_and_half_made_ones_are_not_there(maker, bench):
    await bench.create()
    with pytest.raises(NotFound):
        maker.creation.container("c" * 64)
    create = asyncio.create_task(maker.create())
    await until(lambda: len(bench.db.containers) == 2)
    half = next(r for r in bench.containers if r.meta.owner == "cri")
    if half.status.state is ContainerState.CREATING:
        with pytest.raises(NotFound):
            maker.creation.container(half.meta.id)
    maker.creation.container(await create)
    await bench.containers.remove("c" * 64)


def with_volumes(*paths):
    config = msgspec.structs.replace(BUSYBOX.config, volumes=paths)
    return msgspec.structs.replace(BUSYBOX, config=config)


async def test_volumes_are_bound_with_the_images_owners(maker, bench):
    maker.images.image = with_volumes("/data", "/data/", "/etc/hosts")
    id_ = await maker.create()
    spec = json.loads((bench.shims.bundles / id_ / "config.json").read_bytes())
    (volume,) = [m for m in spec["mounts"] if m["destination"] == "/data"]
    assert volume["source"] == "/volumes/data"
    assert "rw" in volume["options"]
    (hosts,) = [m for m in spec["mounts"] if m["destination"] == "/etc/hosts"]
    assert not hosts["source"].startswith("/volumes")
