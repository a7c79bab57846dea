"""The image that is always there: the distribution's static busybox, as an image like any other.

It lets a host without any registry start containers. The same busybox makes the same image: all
times are 0 and the order is fixed.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from zos_cri.errors import FailedPrecondition
from zos_cri.images.manifest import go_architecture
from zos_cri.images.model import (
    MEDIA_OCI_CONFIG,
    MEDIA_OCI_LAYER,
    MEDIA_OCI_MANIFEST,
    Blob,
    NewImage,
    NewLayer,
)
from zos_cri.images.trees import tree_usage
from zos_cri.linux import spawn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

NAME: Final = "localhost/zos-cri/busybox:latest"
BUSYBOX: Final = Path("/bin/busybox")
# Listing its applets takes busybox a millisecond; this is for a host that is out of breath.
_APPLETS_TIMEOUT: Final = 30.0

_PASSWD: Final = """\
root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
bin:x:2:2:bin:/bin:/bin/false
sys:x:3:3:sys:/dev:/bin/false
mail:x:8:8:mail:/var/mail:/bin/false
www-data:x:33:33:www-data:/var/www:/bin/false
operator:x:37:37:Operator:/var:/bin/false
nobody:x:65534:65534:nobody:/home:/bin/false
"""
_GROUP: Final = """\
root:x:0:
daemon:x:1:
bin:x:2:
sys:x:3:
tty:x:5:
disk:x:6:
mail:x:8:
wheel:x:10:root
utmp:x:43:
www-data:x:33:
operator:x:37:
staff:x:50:
users:x:100:
nogroup:x:65534:
"""
_DIRECTORIES: Final = {
    "bin": 0o755, "dev": 0o755, "etc": 0o755, "home": 0o755, "proc": 0o555, "root": 0o700,
    "run": 0o755, "sbin": 0o755, "sys": 0o555, "tmp": 0o1777, "usr": 0o755, "usr/bin": 0o755,
    "usr/sbin": 0o755, "var": 0o755, "var/log": 0o755, "var/tmp": 0o1777, "var/www": 0o755,
}  # fmt: skip


async def applets(busybox: Path) -> tuple[str, ...]:
    """Where busybox wants its applets linked: `bin/sh`, `usr/bin/awk`, ….

    Raises:
        FailedPrecondition: it can't be run, or lists nothing.
    """
    try:
        done = await spawn.run([str(busybox), "--list-full"], timeout=_APPLETS_TIMEOUT)
    except OSError as error:
        raise FailedPrecondition(
            f"built-in image: {error}: install busybox-static, or set its path"
        ) from error
    links = tuple(sorted(set(done.stdout.decode().split())))
    if done.returncode or not links:
        raise FailedPrecondition(f"built-in image: {done.failure()}")
    return links


def make(
    staging: Path, busybox: Path, links: Sequence[str], blob_path: Callable[[str], Path]
) -> NewImage:
    """Writes the layer's archive to its place among the blobs, and its tree to `staging`.

    Raises:
        FailedPrecondition: busybox needs shared libraries, which the image wouldn't have.
    """
    program = busybox.read_bytes()
    if _interpreter(program):
        raise FailedPrecondition(f"built-in image: {busybox} isn't static: install busybox-static")
    archive = _archive(program, links)
    diff_id = _digest(archive)
    _write(blob_path(diff_id), archive)
    staging.mkdir(mode=0o755)
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        # Ours, made three lines above; the reader for others' archives is elsewhere. Python 3.11.2,
        # which is Debian 12's, has no argument for it yet.
        tar.extraction_filter = getattr(tarfile, "fully_trusted_filter", None)
        tar.extractall(staging)
    os.chmod(staging, 0o755)
    usage = tree_usage(os.fsencode(staging))
    config = _config(diff_id)
    blob = Blob(diff_id, len(archive), MEDIA_OCI_LAYER)
    manifest = _manifest(config, blob)
    digest = _digest(manifest)
    return NewImage(
        id=_digest(config),
        config=config,
        manifest_digest=digest,
        manifest_type=MEDIA_OCI_MANIFEST,
        manifest=manifest,
        chain_ids=(diff_id,),
        layers=(NewLayer(diff_id, diff_id, "", str(staging), usage.bytes, usage.inodes),),
        blobs=(blob,),
        names=(NAME, f"{NAME.rpartition(':')[0]}@{digest}"),
    )


def _config(diff_id: str) -> bytes:
    return _json(
        {
            "architecture": go_architecture(os.uname().machine),
            "config": {
                "Cmd": ["sh"],
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
                "Labels": {"org.opencontainers.image.title": "busybox of the host"},
            },
            "created": "1970-01-01T00:00:00Z",
            "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "zos-cri"}],
            "os": "linux",
            "rootfs": {"diff_ids": [diff_id], "type": "layers"},
        }
    )


def _manifest(config: bytes, layer: Blob) -> bytes:
    return _json(
        {
            "schemaVersion": 2,
            "mediaType": MEDIA_OCI_MANIFEST,
            "config": {
                "mediaType": MEDIA_OCI_CONFIG,
                "digest": _digest(config),
                "size": len(config),
            },
            "layers": [{"mediaType": layer.media_type, "digest": layer.digest, "size": layer.size}],
        }
    )


def _archive(program: bytes, links: Sequence[str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for info, content in _entries(program, links):
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def _entries(program: bytes, links: Sequence[str]) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    directories = dict(_DIRECTORIES)
    for link in links:
        parts = link.split("/")[:-1]
        for depth in range(1, len(parts) + 1):
            directories.setdefault("/".join(parts[:depth]), 0o755)
    for name, mode in sorted(directories.items()):
        yield _info(name, mode, tarfile.DIRTYPE), b""
    files = {"bin/busybox": (0o755, program)}
    files |= {"etc/passwd": (0o644, _PASSWD.encode()), "etc/group": (0o644, _GROUP.encode())}
    for name, (mode, content) in files.items():
        info = _info(name, mode, tarfile.REGTYPE)
        info.size = len(content)
        yield info, content
    for link in links:
        if link not in files:
            info = _info(link, 0o777, tarfile.SYMTYPE)
            info.linkname = "/bin/busybox"
            yield info, b""


def _info(name: str, mode: int, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.mode, info.type = mode, kind
    return info


def _interpreter(program: bytes) -> bool:
    """Whether an ELF program asks for a dynamic linker (PT_INTERP names it by its path)."""
    return b"/ld-linux" in program[:4096] or b"/ld-musl" in program[:4096]


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}")
    with open(temporary, "wb") as file:
        file.write(content)
    os.replace(temporary, path)


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _json(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":"), sort_keys=True).encode()
