from __future__ import annotations

from typing import Any

import pytest

from zos_cri._pb import cri_pb2
from zos_cri.errors import InvalidArgument
from zos_cri.oci import mounts
from zos_cri.oci.mounts import BIDIRECTIONAL, HOST_TO_CONTAINER, BindMount, MountFacts
from zos_cri.oci.namespaces import IdMapping, PodPlan

MAPPED = PodPlan(
    uids=(IdMapping(container_id=0, host_id=9, length=5),),
    gids=(IdMapping(container_id=0, host_id=9, length=5),),
)


def plan(*given: cri_pb2.Mount, **options: Any) -> mounts.MountPlan:
    facts = options.pop("facts", None) or [MountFacts(source="/real") for _ in given]
    defaults: dict[str, Any] = {
        "pod": PodPlan(),
        "recursive_read_only": False,
        "id_mapped_mounts": False,
    }
    extra = options.pop("extra", ())
    return mounts.plan(given, facts, extra, **(defaults | options))


def mount(**fields: Any) -> cri_pb2.Mount:
    return cri_pb2.Mount(**({"container_path": "/data", "host_path": "/link"} | fields))


def image(**fields: Any) -> cri_pb2.Mount:
    asked: dict[str, Any] = {
        "container_path": "/i",
        "readonly": True,
        "image": cri_pb2.ImageSpec(image="x"),
    }
    return cri_pb2.Mount(**(asked | fields))


def test_the_resolved_source_is_mounted() -> None:
    made = plan(mount(), facts=[MountFacts(source="/real/place")])
    assert made.mounts == (
        {
            "destination": "/data",
            "type": "bind",
            "source": "/real/place",
            "options": ["rbind", "rprivate", "rw"],
        },
    )
    assert made.rootfs_propagation == ""


@pytest.mark.parametrize(
    ("asked", "has", "option"),
    [
        (HOST_TO_CONTAINER, "shared", "rslave"),
        (HOST_TO_CONTAINER, "slave", "rslave"),
        (BIDIRECTIONAL, "shared", "rshared"),
    ],
)
def test_propagation(asked: Any, has: Any, option: str) -> None:
    made = plan(mount(propagation=asked), facts=[MountFacts(source="/s", propagation=has)])
    assert option in made.mounts[0]["options"]
    assert made.rootfs_propagation == option


def test_the_roots_propagation_is_the_widest_asked_for() -> None:
    shared = MountFacts(source="/s", propagation="shared")
    given = [
        mount(container_path="/a", propagation=BIDIRECTIONAL),
        mount(container_path="/b", propagation=HOST_TO_CONTAINER),
    ]
    assert plan(*given, facts=[shared] * 2).rootfs_propagation == "rshared"
    assert plan(*given[::-1], facts=[shared] * 2).rootfs_propagation == "rshared"


@pytest.mark.parametrize(
    ("asked", "has"),
    [
        (HOST_TO_CONTAINER, "private"),
        (HOST_TO_CONTAINER, "unbindable"),
        (BIDIRECTIONAL, "slave"),
        (BIDIRECTIONAL, "private"),
        (9, "shared"),
    ],
)
def test_propagation_that_the_source_cannot_give(asked: Any, has: Any) -> None:
    fact = MountFacts(source="/s", propagation=has, mount_point="/mnt")
    with pytest.raises(InvalidArgument, match=r"^mounts\[0\]\.propagation: "):
        plan(mount(propagation=asked), facts=[fact])


def test_read_only_and_recursively_so() -> None:
    assert "ro" in plan(mount(readonly=True)).mounts[0]["options"]
    both = mount(readonly=True, recursive_read_only=True)
    options = plan(both, recursive_read_only=True).mounts[0]["options"]
    assert "rro" in options
    assert "ro" not in options


@pytest.mark.parametrize(
    ("fields", "supported", "message"),
    [
        ({}, True, "is true, and readonly is not"),
        (
            {"readonly": True, "propagation": HOST_TO_CONTAINER},
            True,
            "needs the propagation PRIVATE",
        ),
        ({"readonly": True, "propagation": BIDIRECTIONAL}, True, "needs the propagation PRIVATE"),
        ({"readonly": True}, False, "^mounts.0..recursive_read_only: RROUnsupported: "),
    ],
)
def test_recursive_read_only_has_its_rules(
    fields: dict[str, Any], supported: bool, message: str
) -> None:
    fact = MountFacts(source="/s", propagation="shared")
    with pytest.raises(InvalidArgument, match=message):
        plan(
            mount(recursive_read_only=True, **fields),
            facts=[fact],
            recursive_read_only=supported,
        )


def test_options_of_a_mounts_own() -> None:
    made = plan(mount(mount_options=["noexec", "nosuid", "noexec"]))
    assert made.mounts[0]["options"][-2:] == ["noexec", "nosuid"]
    for option in ("exec", "rw", "shared", "size=1", ""):
        with pytest.raises(InvalidArgument, match=r"^mounts\[0\]\.mount_options\[1\]: "):
            plan(mount(mount_options=["nodev", option]))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (mount(container_path=""), r"container_path: is empty"),
        (mount(container_path="data"), r"container_path: \"data\" is not an absolute path"),
        (mount(container_path="/x/.."), r"container_path: the root"),
        (mount(host_path=""), r"host_path: is empty"),
        (mount(host_path="rel"), r"host_path: \"rel\" is not an absolute path"),
        (mount(image_sub_path="x"), r"image_sub_path: is given without an image"),
        (image(host_path="/x"), r"host_path: is given together with an image"),
        (image(image=cri_pb2.ImageSpec()), r"image\.image: is empty"),
        (image(propagation=mounts.BIDIRECTIONAL), r"propagation: is not PRIVATE, and an image"),
        (mount(uidMappings=[cri_pb2.IDMapping(length=1)]), r"uidMappings: and gidMappings go"),
    ],
)
def test_bad_mounts(given: cri_pb2.Mount, message: str) -> None:
    with pytest.raises(InvalidArgument, match=r"^mounts\[0\]\." + message):
        plan(given)


def test_a_missing_source() -> None:
    gone = [MountFacts(source="/real", exists=False)]
    with pytest.raises(InvalidArgument, match=r'host_path: "/link" does not exist'):
        plan(mount(), facts=gone)
    with pytest.raises(InvalidArgument, match=r"image_sub_path: ImageVolumeMountFailed: "):
        plan(image(image_sub_path="no/such"), facts=gone)


def test_an_images_view_is_bound_where_it_was_mounted() -> None:
    for readonly in (True, False):
        made = plan(image(readonly=readonly), facts=[MountFacts(source="/view/sub")])
        assert made.mounts[0]["source"] == "/view/sub"
        assert made.mounts[0]["options"] == ["rbind", "rprivate", "ro"]


def test_mapped_ids() -> None:
    ids = [cri_pb2.IDMapping(container_id=0, host_id=7, length=2)]
    mapped = mount(uidMappings=ids, gidMappings=ids)
    made = plan(mapped, id_mapped_mounts=True).mounts[0]
    assert made["uidMappings"] == [{"containerID": 0, "hostID": 7, "size": 2}]
    assert made["gidMappings"] == made["uidMappings"]
    with pytest.raises(InvalidArgument, match="has no id-mapped mounts"):
        plan(mapped)
    # The view itself is id-mapped already.
    assert "uidMappings" not in plan(image(uidMappings=ids, gidMappings=ids)).mounts[0]


def test_the_configs_mount_replaces_the_pods_file() -> None:
    files = mounts.PodFiles(hosts="/p/hosts", hostname="/p/hn", resolv_conf="/p/rc", shm="/p/shm")
    own = mounts.pod_mounts(files, readonly=True)
    made = plan(mount(container_path="//etc/hosts/"), extra=own)
    by_target = {entry["destination"]: entry for entry in made.mounts}
    assert set(by_target) == {"/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/dev/shm"}
    assert by_target["/etc/hosts"]["source"] == "/real"
    assert by_target["/etc/hostname"]["options"] == ["rbind", "rprivate", "ro"]
    sealed = ["nosuid", "nodev", "noexec"]
    assert by_target["/dev/shm"]["options"] == ["rbind", "rprivate", "rw", *sealed]
    hosts = plan(extra=mounts.pod_mounts(mounts.PodFiles(shm="/dev/shm"), readonly=False))
    assert hosts.mounts[0]["options"] == ["rbind", "rprivate", "rw", *sealed[:2]]


def test_files_that_a_pod_does_not_have() -> None:
    assert mounts.pod_mounts(mounts.PodFiles(), readonly=False) == ()


def test_the_pods_mapping_is_for_what_asks_for_it_and_not_for_the_pods_files() -> None:
    volume = mounts.BindMount(source="/v", target="/data", id_mapped=True)
    own = mounts.pod_mounts(mounts.PodFiles(hosts="/h", shm="/s"), readonly=False)
    made = plan(extra=(volume, *own), pod=MAPPED, id_mapped_mounts=True).mounts
    assert [("uidMappings" in entry) for entry in made] == [True, False, False]


def test_of_two_mounts_at_one_place_the_later_counts() -> None:
    made = plan(
        mount(),
        mount(readonly=True),
        facts=[MountFacts(source="/1"), MountFacts(source="/2")],
    )
    assert [entry["source"] for entry in made.mounts] == ["/2"]


def test_bounds_and_the_callers_own_mistakes() -> None:
    with pytest.raises(InvalidArgument, match=r"^mounts: are 5000"):
        plan(*[mount()] * 5000)
    with pytest.raises(ValueError, match="facts of 2"):
        plan(mount(), facts=[MountFacts(source="/1")] * 2)


def test_only_who_asks_for_it_is_relabelled() -> None:
    given = [mount(selinux_relabel=True), mount()]
    facts = [MountFacts(source="/1"), MountFacts(source="/2")]
    assert mounts.to_relabel(given, facts) == ("/1",)


def test_volumes_of_the_callers_own() -> None:
    made = plan(extra=[BindMount(source="/v", target="/vol", options=("noexec",))])
    assert made.mounts[0]["options"] == ["rbind", "rprivate", "rw", "noexec"]
