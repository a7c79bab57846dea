"""An image that isn't the built-in one, and so may be collected."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hack.clusters.node import Node

BUSYBOX = Path("/bin/busybox")
COMMANDS = ("sh", "sleep", "echo", "cat")


def load_image(node: Node, name: str, archive: Path, content: str) -> None:
    """Loads an image with the host's static busybox and a file `content`."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        tar.add(BUSYBOX, "bin/busybox")
        for command in COMMANDS:
            link = tarfile.TarInfo(f"bin/{command}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
        _add(tar, "content", content.encode())
    digest = hashlib.sha256(layer.getvalue()).hexdigest()
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Env": ["PATH=/bin"], "Cmd": ["sleep", "1000"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
    with tarfile.open(archive, "w") as tar:
        _add(tar, "manifest.json", json.dumps(manifest).encode())
        _add(tar, "config.json", json.dumps(config).encode())
        _add(tar, "layer.tar", layer.getvalue())
    subprocess.run(
        [sys.executable, "-m", "zos_cri", "load", "--socket", node.socket, "-i", archive],
        check=True,
    )


def image_names(node: Node) -> set[str]:
    """The names of the images that a node has."""
    done = subprocess.run(
        [sys.executable, "-m", "zos_cri", "images", "--socket", node.socket, "-o", "json"],
        check=True,
        capture_output=True,
        text=True,
    )
    return {name for image in json.loads(done.stdout) for name in image.get("repo_tags", ())}


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))
