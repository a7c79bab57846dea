"""Archives: ours and skopeo's, read by both; layers as GNU tar and umoci unpack them."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import os
import random
import shutil
import stat
import subprocess
import tarfile
from typing import TYPE_CHECKING

import pytest

from tests.fakes import tars
from tests.fakes.registry import digest_of, tar_of
from zos_cri.errors import DataLoss, InvalidArgument, NotFound
from zos_cri.images import builtin, lowerfix
from zos_cri.images.merged import MergedView
from zos_cri.images.store import ImageStore
from zos_cri.images.unpack import unpack

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

pytestmark = pytest.mark.root

SKOPEO = shutil.which("skopeo")
UMOCI = shutil.which("umoci")


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[ImageStore]:
    opened = ImageStore(tmp_path / "images")
    await opened.start()
    yield opened
    await opened.aclose()


@pytest.fixture
async def other(tmp_path: Path) -> AsyncIterator[ImageStore]:
    opened = ImageStore(tmp_path / "other")
    await opened.start()
    yield opened
    await opened.aclose()


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def run(*argv: object) -> None:
    done = subprocess.run([str(a) for a in argv], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


async def test_saved_and_loaded(store: ImageStore, other: ImageStore, tmp_path: Path) -> None:
    image = await store.ensure_builtin()
    await store.save([builtin.NAME], tmp_path / "out.tar")
    (loaded,) = await other.load(tmp_path / "out.tar")
    assert loaded.id == image.id
    assert loaded.repo_tags == image.repo_tags
    assert loaded.repo_digests == image.repo_digests
    assert [i.id for i in await other.load(tmp_path / "out.tar")] == [image.id]
    packed = tmp_path / "out.tar.gz"
    packed.write_bytes(gzip.compress((tmp_path / "out.tar").read_bytes(), 1))
    await other.remove(image.id)
    assert (await other.load(packed))[0].id == image.id


async def test_skopeo_reads_ours_and_we_read_skopeos(
    store: ImageStore, other: ImageStore, tmp_path: Path
) -> None:
    if SKOPEO is None:
        pytest.skip("no skopeo")
    image = await store.ensure_builtin()
    ours = tmp_path / "ours.tar"
    await store.save([image.id], ours)
    quiet = (SKOPEO, "--insecure-policy", "copy", "--quiet")
    for source in (f"docker-archive:{ours}", f"oci-archive:{ours}"):
        layout = tmp_path / source.partition(":")[0]
        await asyncio.to_thread(run, *quiet, source, f"oci:{layout}:localhost/copied:1")
        (loaded,) = await other.load(layout)
        assert loaded.config == image.config
        assert loaded.repo_tags == ("localhost/copied:1",)
        await other.remove(loaded.id)
    docker = tmp_path / "docker.tar"
    target = f"docker-archive:{docker}:localhost/docker:2"
    await asyncio.to_thread(run, *quiet, f"oci-archive:{ours}", target)
    (loaded,) = await other.load(docker)
    assert loaded.id == image.id
    assert loaded.repo_tags == ("localhost/docker:2",)


async def test_loading_what_is_no_archive(store: ImageStore, tmp_path: Path) -> None:
    nothing = tmp_path / "nothing"
    nothing.write_bytes(b"x" * 3000)
    with pytest.raises(DataLoss):
        await store.load(nothing)
    plain = tmp_path / "plain.tar"
    plain.write_bytes(tar_of({"some": b"file"}))
    with pytest.raises(InvalidArgument, match="neither an OCI layout"):
        await store.load(plain)


async def test_a_link_in_an_archive_leads_nowhere_outside(
    store: ImageStore, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("[]")
    evil = tmp_path / "evil.tar"
    evil.write_bytes(tars.symlink(b"manifest.json", b"../../../../secret") + tars.end())
    with pytest.raises(InvalidArgument, match="neither"):
        await store.load(evil)


async def test_an_archive_for_another_machine(store: ImageStore, tmp_path: Path) -> None:
    layer = tar_of({"f": b"x"})
    config = {
        "architecture": "s390x",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [digest_of(layer)]},
    }
    manifest = [{"Config": "c.json", "RepoTags": ["a:1"], "Layers": ["l.tar"]}]
    archive = tmp_path / "s390x.tar"
    archive.write_bytes(
        tar_of(
            {
                "manifest.json": json.dumps(manifest).encode(),
                "c.json": json.dumps(config).encode(),
                "l.tar": layer,
            }
        )
    )
    with pytest.raises(NotFound, match="no image for linux/"):
        await store.load(archive)


async def test_a_damaged_archive(store: ImageStore, tmp_path: Path) -> None:
    await store.ensure_builtin()
    path = tmp_path / "out.tar"
    await store.save([builtin.NAME], path)
    data = bytearray(path.read_bytes())
    position = data.index(b"Standalone") if b"Standalone" in data else len(data) // 2
    data[position] ^= 1
    path.write_bytes(data)
    await store.remove(builtin.NAME)
    with pytest.raises(DataLoss, match=r"layer sha256:\w+: .*what came has the digest"):
        await store.load(path)


# Layers against other unpackers


def facts(root: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    inodes: dict[int, str] = {}
    for directory, names, files in sorted(os.walk(root)):
        for name in sorted([*names, *files]):
            path = os.path.join(directory, name)
            relative = os.path.relpath(path, root)
            status = os.lstat(path)
            content: object = None
            if stat.S_ISREG(status.st_mode):
                with open(path, "rb") as file:
                    content = digest_of(file.read())
            elif stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            first = inodes.setdefault(status.st_ino, relative)
            times = 0 if stat.S_ISLNK(status.st_mode) else int(status.st_mtime)
            found[relative] = (
                status.st_mode,
                status.st_uid,
                status.st_gid,
                status.st_rdev,
                status.st_size if stat.S_ISREG(status.st_mode) else 0,
                times,
                content,
                first,
                tuple(
                    (key, os.getxattr(path, key, follow_symlinks=False))
                    for key in sorted(os.listxattr(path, follow_symlinks=False))
                ),
            )
    return found


def a_tree(folder: Path, seed: int) -> None:
    """Files of all kinds with all that a layer may have of them."""
    chance = random.Random(seed)
    folders = [folder]
    files: list[Path] = []
    for number in range(120):
        parent = chance.choice(folders)
        path = parent / f"{'long' * chance.choice([0, 1, 40])}{number}-ä"
        kind = chance.random()
        if kind < 0.2:
            path.mkdir(mode=0o755)
            folders.append(path)
        elif kind < 0.6 or not files:
            path.write_bytes(chance.randbytes(chance.choice([0, 1, 511, 512, 513, 70_000])))
            files.append(path)
        elif kind < 0.7:
            path.symlink_to(chance.choice(["/etc/passwd", "../x", "y" * 150]))
            os.chown(path, 12, 34, follow_symlinks=False)
            continue
        elif kind < 0.8:
            path.hardlink_to(chance.choice(files))
            continue
        elif kind < 0.9:
            with open(path, "wb") as file:
                file.seek(chance.randrange(10**6))
                file.write(b"x" * 5000)
                file.truncate(2 * 10**6)
        else:
            os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, chance.choice([3, 5])))
        os.chown(path, chance.choice([0, 1000, 3_000_000]), chance.choice([0, 50]))
        path.chmod(chance.choice([0o644, 0o755, 0o4755, 0o2750, 0o1777, 0o600]))
        if path.is_file() and kind < 0.6 and chance.random() < 0.3:
            os.setxattr(path, "user.test", chance.randbytes(20))
    for path in sorted(folder.rglob("*"), reverse=True):
        os.utime(path, (1, chance.randrange(2**31)), follow_symlinks=False)


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "options",
    [
        ("--format=gnu",),
        ("--format=gnu", "--sparse"),
        ("--format=posix", "--xattrs", "--xattrs-include=*"),
        ("--format=posix", "--sparse", "--sparse-version=1.0"),
        ("--format=posix", "--sparse", "--sparse-version=0.1"),
        ("--format=posix", "--sparse", "--sparse-version=0.0"),
    ],
    ids=" ".join,
)
def test_as_gnu_tar_does(tmp_path: Path, seed: int, options: tuple[str, ...]) -> None:
    made, ours, theirs = tmp_path / "made", tmp_path / "ours", tmp_path / "theirs"
    for path in (made, ours, theirs):
        path.mkdir()
    a_tree(made, seed)
    archive = tmp_path / "a.tar"
    run("tar", "-C", made, *options, "--numeric-owner", "-cf", archive, ".")
    run("tar", "-C", theirs, "--xattrs", "--xattrs-include=*", "--numeric-owner", "-xpf", archive)
    with open(archive, "rb") as file:
        unpack(file, str(ours))
    assert facts(ours) == facts(theirs)


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("seed", range(12))
def test_as_umoci_does(tmp_path: Path, seed: int) -> None:
    """Three layers with whiteouts between them: our overlay against umoci's flat root."""
    if UMOCI is None:
        pytest.skip("no umoci")
    chance = random.Random(seed)
    layers = [layer(chance, first=number == 0) for number in range(3)]
    image = tmp_path / "image"
    write_layout(image, layers)
    run(UMOCI, "unpack", "--image", f"{image}:latest", tmp_path / "bundle")
    lowers: list[str] = []
    for number, content in enumerate(layers):
        root = tmp_path / f"l{number}"
        root.mkdir()
        unpacked = unpack(io.BytesIO(content), str(root))
        lower = MergedView([os.fsencode(path) for path in reversed(lowers)])
        lowerfix.fix(str(root), lower, unpacked)
        lowers.insert(0, str(root))
    merged = tmp_path / "merged"
    merged.mkdir()
    run("mount", "-t", "overlay", "overlay", "-o", f"lowerdir={':'.join(lowers)}", merged)
    try:
        assert {k: v[:7] for k, v in facts(merged).items()} == {
            k: v[:7] for k, v in facts(tmp_path / "bundle" / "rootfs").items()
        }
    finally:
        run("umount", merged)


def layer(chance: random.Random, *, first: bool) -> bytes:
    """Entries below two levels of directories, and whiteouts where there is something below."""
    parts = []
    for top in b"abc":
        name = bytes([top])
        if not first and chance.random() < 0.3:
            parts.append(tars.file(b".wh." + name))
            continue
        parts.append(tars.directory(name, mode=chance.choice([0o755, 0o700]), mtime=5))
        if not first and chance.random() < 0.3:
            parts.append(tars.file(name + b"/.wh..wh..opq"))
        for inner in b"xyz":
            path = name + b"/" + bytes([inner])
            kind = chance.random()
            if kind < 0.3:
                parts.append(tars.file(path, chance.randbytes(30), uid=chance.randrange(9)))
            elif kind < 0.5:
                parts.append(tars.directory(path, mtime=6) + tars.file(path + b"/f", b"f"))
            elif kind < 0.6:
                parts.append(tars.symlink(path, b"nowhere"))
            elif kind < 0.75 and not first:
                parts.append(tars.file(name + b"/.wh." + bytes([inner])))
    return b"".join(parts) + tars.end()


def write_layout(folder: Path, layers: list[bytes]) -> None:
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def add(content: bytes, media_type: str) -> dict[str, object]:
        digest = digest_of(content)
        (blobs / digest[7:]).write_bytes(content)
        return {"mediaType": media_type, "digest": digest, "size": len(content)}

    kind = "application/vnd.oci.image"
    described = [add(content, f"{kind}.layer.v1.tar") for content in layers]
    config = {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [digest_of(content) for content in layers]},
    }
    manifest = {
        "schemaVersion": 2,
        "config": add(json.dumps(config).encode(), f"{kind}.config.v1+json"),
        "layers": described,
    }
    entry = add(json.dumps(manifest).encode(), f"{kind}.manifest.v1+json")
    entry["annotations"] = {"org.opencontainers.image.ref.name": "latest"}
    index = {"schemaVersion": 2, "manifests": [entry]}
    (folder / "index.json").write_text(json.dumps(index))
    (folder / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')


def test_tarfile_agrees_on_what_it_wrote(tmp_path: Path, umask: None) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("ü" * 120)
        info.size, info.mtime = 3, 1.25
        tar.addfile(info, io.BytesIO(b"abc"))
    root = tmp_path / "root"
    root.mkdir()
    unpack(io.BytesIO(buffer.getvalue()), str(root))
    (made,) = root.iterdir()
    assert made.read_bytes() == b"abc"
    assert made.stat().st_mtime == 1.25
