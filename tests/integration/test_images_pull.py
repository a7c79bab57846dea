"""Pulls against a registry of our own that can do everything wrong."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import json
import os
import random
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.fakes.registry import INDEX, Fault, Registry, digest_of, tar_of
from zos_cri.errors import (
    DataLoss,
    DeadlineExceeded,
    Error,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
    Unimplemented,
)
from zos_cri.images.fetch import PART
from zos_cri.images.jobs import Fetching
from zos_cri.images.model import Auth, Floor
from zos_cri.images.store import ImageStore
from zos_cri.linux import spawn

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.root

FAST = Fetching(floor=Floor(rate=1000, window=0.6))


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry() as server:
        yield server


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[ImageStore]:
    opened = ImageStore(tmp_path / "images", certs_dirs=[tmp_path / "certs.d"], fetching=FAST)
    await opened.start()
    yield opened
    await opened.aclose()


def small(registry: Registry, name: str = "a/b", tag: str = "1", **fields: Any) -> str:
    """An image of two layers; answers its reference."""
    layers = [tar_of({"etc/one": b"1"}), tar_of({"etc/two": tag.encode() * 5000})]
    registry.add_image(name, tag, layers, **fields)
    return f"{registry.address}/{name}:{tag}"


def large(registry: Registry, size: int) -> str:
    """An image of one layer that doesn't compress."""
    layer = tar_of({"blob": random.Random(size).randbytes(size)})
    registry.add_image("large", "1", [layer], compress=lambda content: content)
    return f"{registry.address}/large:1"


def mirror(tmp_path: Path, domain: str, *servers: str, server: str = "") -> None:
    folder = tmp_path / "certs.d" / domain
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f'server = "{server}"'] if server else []
    lines += [f'[host."{one}"]\n  capabilities = ["pull", "resolve"]' for one in servers]
    (folder / "hosts.toml").write_text("\n".join(lines))


def content(store: ImageStore, image_id: str, path: str) -> bytes:
    image = store.find(image_id)
    assert image is not None
    for chain_id in reversed(image.chain_ids):
        found = store.layout.layer(store.catalog.layers[chain_id].n) / path
        if found.exists():
            return found.read_bytes()
    raise FileNotFoundError(path)


def ingest(store: ImageStore) -> list[str]:
    return sorted(os.listdir(store.layout.ingest))


def archives(store: ImageStore) -> list[str]:
    return sorted(os.listdir(store.layout.blobs / "sha256"))


async def test_a_pull(store: ImageStore, registry: Registry) -> None:
    ref = small(registry)
    image_id = await store.pull(ref)
    image = await store.status(ref)
    assert image is not None
    assert image.id == image_id
    assert image.repo_tags == (ref,)
    digest = digest_of(registry.manifests[("a/b", "1")][1])
    assert image.repo_digests == (f"{registry.address}/a/b@{digest}",)
    assert content(store, image_id, "etc/two") == b"1" * 5000
    assert ingest(store) == []
    assert len(archives(store)) == 2
    # By digest: the same image, known by no tag of that repository.
    assert await store.pull(image.repo_digests[0]) == image_id
    assert registry.count("/blobs/" + registry.layers_of("a/b", "1")[0]) == 1


async def test_a_digest_alone_gives_no_tag(store: ImageStore, registry: Registry) -> None:
    small(registry)
    digest = digest_of(registry.manifests[("a/b", "1")][1])
    ref = f"{registry.address}/a/b@{digest}"
    image = store.find(await store.pull(ref))
    assert image is not None
    assert (image.repo_tags, image.repo_digests) == ((), (ref,))


async def test_layers_and_images_are_shared(store: ImageStore, registry: Registry) -> None:
    one, two = small(registry, tag="1"), small(registry, tag="2")
    first, second = await store.pull(one), await store.pull(two)
    assert first != second
    base = registry.layers_of("a/b", "1")[0]
    assert registry.count(base) == 1
    assert len(store.catalog.layers) == 3
    registry.manifests[("c", "x")] = registry.manifests[("a/b", "1")]
    assert await store.pull(f"{registry.address}/c:x") == first
    image = store.find(first)
    assert image is not None
    assert len(image.repo_tags) == 2
    assert len(image.repo_digests) == 2
    await store.remove(one)
    assert store.find(f"{registry.address}/c:x") is None
    assert store.find(second) is not None


async def test_a_tag_that_moves(store: ImageStore, registry: Registry) -> None:
    ref = small(registry, tag="1")
    old = await store.pull(ref)
    small(registry, tag="2")
    registry.manifests[("a/b", "1")] = registry.manifests[("a/b", "2")]
    new = await store.pull(ref)
    assert new != old
    image = store.find(old)
    assert image is not None
    assert image.repo_tags == ()


async def test_a_pull_of_what_is_here_fetches_nothing(
    store: ImageStore, registry: Registry
) -> None:
    ref = small(registry)
    await store.pull(ref)
    before = len(registry.requests)
    await store.pull(ref)
    assert [method for method, _, _ in registry.requests[before:]] == ["HEAD"]


def zstd(data: bytes) -> bytes:
    from zos_cri.images.decompress import _zstd_module

    packed: bytes = _zstd_module().compress(data)
    return packed


@pytest.mark.parametrize(
    "compress",
    [
        lambda data: data,
        zstd,
        lambda data: gzip.compress(data[:700]) + gzip.compress(data[700:]),
    ],
    ids=["plain", "zstd", "gzip members"],
)
async def test_compressions(
    store: ImageStore, registry: Registry, compress: Callable[[bytes], bytes]
) -> None:
    image_id = await store.pull(small(registry, compress=compress))
    assert content(store, image_id, "etc/two") == b"1" * 5000


async def test_an_index_gives_the_image_for_this_machine(
    store: ImageStore, registry: Registry
) -> None:
    entries = []
    for architecture, variant in (("arm64", "v8"), ("amd64", ""), ("s390x", "")):
        digest = registry.add_image(
            "multi",
            "",
            [tar_of({"arch": architecture.encode()})],
            architecture=architecture,
        )
        platform = {"os": "linux", "architecture": architecture, "variant": variant}
        size = len(registry.manifests[("multi", digest)][1])
        entries.append({"digest": digest, "size": size, "platform": platform})
    unknown = {"os": "unknown", "architecture": "unknown"}
    entries.append({"digest": digest, "size": 1, "platform": unknown})
    document = {"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}
    index = registry.add_manifest("multi", "1", document, INDEX)
    image_id = await store.pull(f"{registry.address}/multi:1")
    expected = {"x86_64": b"amd64", "aarch64": b"arm64"}[os.uname().machine]
    assert content(store, image_id, "arch") == expected
    image = store.find(image_id)
    assert image is not None
    assert image.repo_digests == (f"{registry.address}/multi@{index}",)
    document["manifests"] = [entries[2], entries[3]]
    registry.add_manifest("multi", "2", document, INDEX)
    with pytest.raises(NotFound, match=r"no image for linux/\w+; there are: linux/s390x"):
        await store.pull(f"{registry.address}/multi:2")


async def test_a_second_caller_joins(store: ImageStore, registry: Registry) -> None:
    ref = small(registry)
    layer = registry.layers_of("a/b", "1")[1]
    registry.faults[layer] = [Fault(wait=0.5)]
    ids = await asyncio.gather(*(store.pull(ref) for _ in range(5)))
    assert len(set(ids)) == 1
    assert registry.count("/manifests/1") == 1


async def test_progress_is_seen(store: ImageStore, registry: Registry) -> None:
    ref = large(registry, 400_000)
    registry.faults[registry.layers_of("large", "1")[0]] = [Fault(slow=0.004)]
    pull = asyncio.ensure_future(store.pull(ref))
    async with asyncio.timeout(20):
        while True:
            progress = store.progress(ref)
            if progress and progress.layers and progress.layers[0].fetched > 0:
                break
            await asyncio.sleep(0.02)
    assert progress.layers[0].size > 400_000
    assert "of 1 layers" in progress.summary()
    assert store.all_progress()
    await pull
    assert store.progress(ref) is None


# What the network does


async def test_a_connection_that_breaks_is_gone_on_with(
    store: ImageStore, registry: Registry
) -> None:
    ref = large(registry, 1_000_000)
    layer = registry.layers_of("large", "1")[0]
    registry.faults[layer] = [Fault(cut_after=300_000), Fault(cut_after=200_000)]
    image_id = await store.pull(ref)
    assert len(content(store, image_id, "blob")) == 1_000_000
    ranges = [h.get("Range") for _, path, h in registry.requests if path.endswith(layer)]
    assert ranges == [None, "bytes=300000-", "bytes=500000-"]


async def test_large_layers_come_over_several_connections(
    store: ImageStore, registry: Registry
) -> None:
    ref = large(registry, 3 * PART + 1000)
    image_id = await store.pull(ref)
    assert len(content(store, image_id, "blob")) == 3 * PART + 1000
    layer = registry.layers_of("large", "1")[0]
    ranges = {h.get("Range") for _, path, h in registry.requests if path.endswith(layer)}
    assert len(ranges) == 4
    assert None not in ranges


@pytest.mark.parametrize("cut", [False, True])
async def test_a_registry_without_ranges(store: ImageStore, registry: Registry, cut: bool) -> None:
    registry.ranges = False
    ref = large(registry, 2 * PART + 1000)
    if cut:
        layer = registry.layers_of("large", "1")[0]
        registry.faults[layer] = [Fault(), Fault(), Fault(cut_after=PART), Fault(cut_after=PART)]
    image_id = await store.pull(ref)
    assert len(content(store, image_id, "blob")) == 2 * PART + 1000


async def test_a_stall_ends_at_the_floor(store: ImageStore, registry: Registry) -> None:
    ref = large(registry, 500_000)
    layer = registry.layers_of("large", "1")[0]
    registry.faults[layer] = [Fault(stall_after=100_000)]  # until the registry is closed
    image_id = await store.pull(ref, timeout=120)
    assert len(content(store, image_id, "blob")) == 500_000
    assert registry.count(layer) == 2


async def test_a_trickle_is_a_stall_too(store: ImageStore, registry: Registry) -> None:
    ref = large(registry, 200_000)
    layer = registry.layers_of("large", "1")[0]
    registry.faults[layer] = [Fault(slow=10)] * 20
    with pytest.raises(Unavailable, match=r"RegistryUnavailable: .*stalled|timed out"):
        await store.pull(ref)


async def test_a_stall_without_an_end_is_an_error(store: ImageStore, registry: Registry) -> None:
    ref = small(registry)
    registry.faults["1"] = [Fault(stall_after=10)] * 20
    with pytest.raises(Unavailable, match=r"RegistryUnavailable: .*timed out"):
        await store.pull(ref)


async def test_busy_and_broken_for_a_while(store: ImageStore, registry: Registry) -> None:
    ref = small(registry)
    base, top = registry.layers_of("a/b", "1")
    registry.faults["1"] = [Fault(status=429, headers={"Retry-After": "1"}), Fault(status=500)]
    registry.faults[base] = [Fault(status=503)]
    registry.faults[top] = [Fault(status=429, headers={"Retry-After": "0"}), Fault(status=502)]
    began = time.monotonic()
    await store.pull(ref)
    assert time.monotonic() - began >= 1


@pytest.mark.parametrize(
    ("fault", "error", "match"),
    [
        (Fault(status=404), NotFound, "image not found: .*HTTP 404"),
        (Fault(status=403), PermissionDenied, "access refused: .*HTTP 403"),
        (Fault(status=500), Unavailable, "RegistryUnavailable: .*HTTP 500"),
        (
            Fault(status=429, headers={"Retry-After": "3600"}),
            Unavailable,
            "RegistryUnavailable: .*HTTP 429",
        ),
        (Fault(replace=b"{}"), Unavailable, "it served sha256:.* for sha256:"),
        (Fault(length=10**7), Unavailable, "RegistryUnavailable"),
        (Fault(cut_after=10), Unavailable, "RegistryUnavailable"),
        (Fault(replace=b"x" * (5 << 20)), Unavailable, "more than"),
    ],
)
async def test_manifests_that_fail(
    store: ImageStore, registry: Registry, fault: Fault, error: type[Error], match: str
) -> None:
    ref = small(registry)
    registry.faults["1"] = [fault] * 10
    with pytest.raises(error, match=match) as caught:
        await store.pull(ref)
    message = str(caught.value)
    assert registry.address in message
    assert "\n" not in message
    assert ingest(store) == []
    assert await store.list() == ()


@pytest.mark.parametrize(
    ("fault", "error", "match"),
    [
        (Fault(status=404), NotFound, "HTTP 404"),
        (Fault(status=500), Unavailable, "RegistryUnavailable: .*HTTP 500"),
        (Fault(replace=b"y" * 100), Unavailable, "the connection ended"),
        (Fault(replace=b"y" * 10_000), Unavailable, "more than its"),
        (Fault(cut_after=0), Unavailable, "RegistryUnavailable"),
    ],
)
async def test_layers_that_fail(
    store: ImageStore, registry: Registry, fault: Fault, error: type[Error], match: str
) -> None:
    ref = small(registry)
    layer = registry.layers_of("a/b", "1")[1]
    registry.faults[layer] = [fault] * 20
    with pytest.raises(error, match=match) as caught:
        await store.pull(ref)
    assert f"layer {layer}: " in str(caught.value)
    assert registry.address in str(caught.value)
    assert await store.list() == ()
    assert store.catalog.layers == {}


async def test_a_length_that_is_too_short_is_gone_on_from(
    store: ImageStore, registry: Registry
) -> None:
    ref = small(registry)
    registry.faults[registry.layers_of("a/b", "1")[1]] = [Fault(length=1)] * 8
    image_id = await store.pull(ref)
    assert content(store, image_id, "etc/two") == b"1" * 5000


async def test_a_layer_with_a_wrong_digest(store: ImageStore, registry: Registry) -> None:
    ref = small(registry)
    layer = registry.layers_of("a/b", "1")[1]
    registry.blobs[layer] = gzip.compress(tar_of({"evil": b"e" * 5000}), 1, mtime=0)
    size = len(registry.blobs[layer])
    document = json.loads(registry.manifests[("a/b", "1")][1])
    document["layers"][1]["size"] = size
    registry.add_manifest("a/b", "1", document, document["mediaType"])
    with pytest.raises(DataLoss, match=f"layer {layer}: .*what came has the digest sha256:"):
        await store.pull(ref)
    assert store.catalog.layers == {}
    await store.gc()
    assert archives(store) == []
    assert ingest(store) == []


async def test_a_layer_with_a_wrong_diff_id(store: ImageStore, registry: Registry) -> None:
    ref = small(registry)
    document = json.loads(registry.manifests[("a/b", "1")][1])
    config = json.loads(registry.blobs[document["config"]["digest"]])
    config["rootfs"]["diff_ids"].reverse()
    document["config"] = registry.add_blob(json.dumps(config).encode())
    registry.add_manifest("a/b", "1", document, "")
    with pytest.raises(DataLoss, match=r"it unpacks to sha256:.* the configuration says"):
        await store.pull(ref)


async def test_a_hostile_layer_names_the_layer_and_the_entry(
    store: ImageStore, registry: Registry
) -> None:
    from tests.fakes import tars

    evil = tars.symlink(b".", b"/etc") + tars.end()
    registry.add_image("evil", "1", [evil])
    with pytest.raises(InvalidArgument, match=r"layer sha256:\w+: \.: the root can't be"):
        await store.pull(f"{registry.address}/evil:1")


async def test_limits_of_the_disk(tmp_path: Path, registry: Registry) -> None:
    fetching = Fetching(max_layer_bytes=100_000)
    store = ImageStore(tmp_path / "limited", fetching=fetching)
    await store.start()
    with pytest.raises(ResourceExhausted, match="larger than 100000 bytes"):
        await store.pull(large(registry, 500_000))
    assert await store.list() == ()
    await store.aclose()


async def test_what_is_no_image(store: ImageStore, registry: Registry) -> None:
    registry.add_manifest("no", "1", {"schemaVersion": 1}, "")
    with pytest.raises(Unimplemented, match="schema 1"):
        await store.pull(f"{registry.address}/no:1")
    artifact = {
        "schemaVersion": 2,
        "config": {**registry.add_blob(b"{}"), "mediaType": "application/vnd.helm.config"},
        "layers": [],
    }
    registry.add_manifest("no", "2", artifact, "application/vnd.oci.image.manifest.v1+json")
    with pytest.raises(Unimplemented, match="no container image"):
        await store.pull(f"{registry.address}/no:2")
    with pytest.raises(InvalidArgument, match="no repository"):
        await store.pull("Not/An Image")


# Mirrors


async def test_mirrors_in_order(store: ImageStore, registry: Registry, tmp_path: Path) -> None:
    small(registry)
    with Registry() as empty:
        mirror(
            tmp_path,
            "example.test",
            "http://127.0.0.1:1",
            f"http://{empty.address}",
            f"http://{registry.address}",
        )
        image_id = await store.pull("example.test/a/b:1")
        assert empty.requests
    image = store.find(image_id)
    assert image is not None
    assert image.repo_tags == ("example.test/a/b:1",)


async def test_all_that_failed_are_named(store: ImageStore, tmp_path: Path) -> None:
    with Registry() as empty:
        mirror(
            tmp_path,
            "example.test",
            "http://127.0.0.1:1",
            server=f"http://{empty.address}",
        )
        with pytest.raises(NotFound) as caught:
            await store.pull("example.test/a/b:1")
        assert f"tried 127.0.0.1:1: connection refused; {empty.address}: HTTP 404" in str(
            caught.value
        )


async def test_a_mirror_that_lies_is_passed_by(
    store: ImageStore, registry: Registry, tmp_path: Path
) -> None:
    small(registry)
    layer = registry.layers_of("a/b", "1")[1]
    with Registry() as liar:
        liar.manifests = registry.manifests
        liar.blobs = dict(registry.blobs)
        right = registry.blobs[layer]
        liar.blobs[layer] = right[:-1] + bytes([right[-1] ^ 1])
        mirror(
            tmp_path,
            "example.test",
            f"http://{liar.address}",
            server=f"http://{registry.address}",
        )
        image_id = await store.pull("example.test/a/b:1")
    assert content(store, image_id, "etc/two") == b"1" * 5000
    assert registry.count(layer) == 1


async def test_mirrors_are_told_whose_content_we_want(
    store: ImageStore, registry: Registry, tmp_path: Path
) -> None:
    small(registry)
    folder = tmp_path / "certs.d" / "_default"
    folder.mkdir(parents=True)
    (folder / "hosts.toml").write_text(
        f'[host."http://{registry.address}"]\n  [host."http://{registry.address}".header]\n'
        '    X-Test = ["yes"]\n'
    )
    await store.pull("example.test/a/b:1")
    assert registry.queries == {"ns=example.test"}
    assert all(headers.get("X-Test") == "yes" for _, _, headers in registry.requests)


async def test_a_broken_hosts_file_is_named(store: ImageStore, tmp_path: Path) -> None:
    folder = tmp_path / "certs.d" / "example.test"
    folder.mkdir(parents=True)
    (folder / "hosts.toml").write_text("server = [")
    with pytest.raises(Error, match=r"hosts\.toml: "):
        await store.pull("example.test/a:1")


# Authentication


async def test_anonymous_tokens(store: ImageStore, registry: Registry) -> None:
    registry.token_url = f"http://{registry.address}/token"
    await store.pull(small(registry))
    assert registry.count("/token") == 1
    await store.pull(small(registry, tag="2"))
    assert registry.count("/token") == 1  # by scope, from the pull before


AUTHS = {
    "user and password": Auth(username="u", password="p:w"),
    "auth": Auth(auth=base64.b64encode(b"u:p:w").decode()),
    "identity token": Auth(identity_token="p:w"),
    "registry token": Auth(registry_token="ready"),
}


@pytest.mark.parametrize("name", AUTHS)
async def test_bearer(store: ImageStore, registry: Registry, name: str) -> None:
    registry.token_url = f"http://{registry.address}/token"
    registry.users = {"u": "p:w"}
    registry.good_tokens = {"ready"}
    ref = small(registry)
    with pytest.raises(PermissionDenied, match="access refused"):
        await store.pull(ref)
    await store.pull(ref, AUTHS[name])


@pytest.mark.parametrize("name", ["user and password", "auth"])
async def test_basic(store: ImageStore, registry: Registry, name: str) -> None:
    registry.users = {"u": "p:w"}
    ref = small(registry)
    with pytest.raises(PermissionDenied, match="credentials are needed"):
        await store.pull(ref)
    with pytest.raises(PermissionDenied, match="credentials are refused"):
        await store.pull(ref, Auth(username="u", password="wrong"))
    await store.pull(ref, AUTHS[name])


async def test_a_token_that_ends_within_a_pull(store: ImageStore, registry: Registry) -> None:
    registry.token_url = f"http://{registry.address}/token"
    ref = small(registry)
    await store.pull(ref)
    registry.good_tokens.clear()
    await store.pull(small(registry, tag="2"))
    assert registry.count("/token") == 2


async def test_credentials_for_another_server_are_kept_back(
    store: ImageStore, registry: Registry
) -> None:
    registry.users = {"u": "p:w"}
    auth = Auth(username="u", password="p:w", server_address="https://other.example")
    with pytest.raises(PermissionDenied, match="credentials are needed"):
        await store.pull(small(registry), auth)
    assert not any("Authorization" in headers for _, _, headers in registry.requests)
    here = Auth(username="u", password="p:w", server_address=f"http://{registry.address}")
    await store.pull(small(registry), here)


async def test_malformed_auth_is_not_quoted(store: ImageStore, registry: Registry) -> None:
    registry.users = {"u": "p:w"}
    with pytest.raises(InvalidArgument, match="base64") as caught:
        await store.pull(small(registry), Auth(auth="c2VjcmV0"))
    assert "c2VjcmV0" not in str(caught.value)
    assert repr(Auth(password="secret")) == "Auth(password)"


async def test_credentials_stay_behind_at_a_redirect(store: ImageStore, registry: Registry) -> None:
    registry.users = {"u": "p:w"}
    ref = small(registry)
    with Registry() as storage:
        storage.blobs = registry.blobs
        for digest in list(registry.blobs):
            location = f"http://{storage.address}/v2/x/blobs/{digest}"
            registry.faults[digest] = [Fault(status=307, headers={"Location": location})]
        await store.pull(ref, AUTHS["auth"])
        assert storage.requests
        assert not any("Authorization" in headers for _, _, headers in storage.requests)


# Cancelling, killing, time


async def test_a_deadline_says_how_far_it_came(store: ImageStore, registry: Registry) -> None:
    ref = small(registry)
    layer = registry.layers_of("a/b", "1")[1]
    registry.faults[layer] = [Fault(wait=30)] * 20
    with pytest.raises(DeadlineExceeded, match=r"not pulled within 2 s: .*layers"):
        await store.pull(ref, timeout=2)


async def gone(store: ImageStore) -> None:
    """Waits until nothing of a pull is left."""
    async with asyncio.timeout(20):
        while ingest(store) or store.all_progress() or archives(store):
            await asyncio.sleep(0.02)


async def test_the_last_caller_who_leaves_ends_it(store: ImageStore, registry: Registry) -> None:
    ref = small(registry)
    layer = registry.layers_of("a/b", "1")[1]
    registry.faults[layer] = [Fault(wait=60)]
    pulls = [asyncio.ensure_future(store.pull(ref)) for _ in range(2)]
    async with asyncio.timeout(20):
        while not registry.count(layer):
            await asyncio.sleep(0.02)
    pulls[0].cancel()
    await asyncio.sleep(0.1)
    assert store.progress(ref) is not None
    pulls[1].cancel()
    await asyncio.gather(*pulls, return_exceptions=True)
    await gone(store)
    # Nobody is told of the cancelled one: the next begins anew.
    assert await store.pull(ref)


async def test_a_killed_worker_is_an_error_and_leaves_nothing_listed(
    store: ImageStore, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 50 random moments; each next pull succeeds."""
    name, layers = "killed", 4  # each is made by a process that the worker forks
    bits = [tar_of({f"blob{n}": random.Random(n).randbytes(100_000)}) for n in range(layers)]
    registry.add_image(name, "1", bits, compress=lambda content: content)
    ref = f"{registry.address}/{name}:1"

    def whole(image_id: str) -> bool:
        return all(len(content(store, image_id, f"blob{n}")) == 100_000 for n in range(layers))

    started: list[spawn.Process] = []
    start = spawn.start

    async def watched(*args: Any, **kwargs: Any) -> spawn.Process:
        process = await start(*args, **kwargs)
        started.append(process)
        return process

    monkeypatch.setattr(spawn, "start", watched)
    chance = random.Random(7)
    killed = 0
    for _ in range(50):
        # One that was started ahead may be the pull's.
        started[:] = [process for process in started if process.returncode is None]
        pull = asyncio.ensure_future(store.pull(ref))
        await asyncio.wait([pull], timeout=chance.uniform(0, 0.7))
        for process in started:
            process.kill(signal.SIGKILL)
        with contextlib.suppress(Error):
            await pull
        killed += store.find(ref) is None
        listed = await store.list()
        for image in listed:
            assert whole(image.id)
        await store.remove(ref)
    assert killed > 5
    image_id = await store.pull(ref)
    assert whole(image_id)
    await store.gc()
    assert ingest(store) == []
    assert len(archives(store)) == layers
    assert {int(name) for name in os.listdir(store.layout.layers)} == {
        0,
        *(layer.n for layer in store.catalog.layers.values()),
    }


# Damage


async def test_a_damaged_layer_is_found_at_start(tmp_path: Path, registry: Registry) -> None:
    ref = small(registry)
    store = ImageStore(tmp_path / "images")
    await store.start()
    image_id = await store.pull(ref)
    async with asyncio.timeout(20):
        while not all(layer.seal for layer in store.catalog.layers.values()):
            await asyncio.sleep(0.02)
    image = store.find(image_id)
    assert image is not None
    victim = store.layout.layer(store.catalog.layers[image.chain_ids[1]].n) / "etc" / "two"
    await store.aclose()
    victim.write_bytes(b"")

    again = ImageStore(tmp_path / "images")
    await again.start()
    tries = [again.prepare_rootfs(image_id, f"c{n}") for n in range(4)]  # each may look at it
    results = await asyncio.gather(*tries, return_exceptions=True)
    assert [type(r) for r in results] == [NotFound] * 4, results
    assert again.find(ref) is None
    before = registry.count(registry.layers_of("a/b", "1")[0])
    assert await again.pull(ref) == image_id
    assert content(again, image_id, "etc/two") == b"1" * 5000
    assert registry.count(registry.layers_of("a/b", "1")[0]) == before
    assert await again.prepare_rootfs(image_id, "c1")
    await again.aclose()


async def test_a_damaged_layer_stays_for_its_container_as_it_is(
    tmp_path: Path, registry: Registry
) -> None:
    ref = small(registry)
    store = ImageStore(tmp_path / "images")
    await store.start()
    image_id = await store.pull(ref)
    await store.prepare_rootfs(image_id, "c1")
    image = store.find(image_id)
    assert image is not None
    number = store.catalog.layers[image.chain_ids[1]].n
    await store.set_damaged(number)
    assert store.find(ref) is None
    assert await store.pull(ref) == image_id
    names = set(store.catalog.layers)
    await store.set_damaged(number)  # as it was: its container's, and not the new one's
    assert store.find(ref)
    await store.aclose()

    again = ImageStore(tmp_path / "images")
    await again.start()
    await again.prepare_rootfs(image_id, "c2")
    assert set(again.catalog.layers) == names
    await again.release_rootfs("c1")
    await again.gc()
    assert {layer.n for layer in again.catalog.layers.values()}.isdisjoint({number})
    await again.set_damaged(number)  # a look that had begun before
    await again.aclose()
