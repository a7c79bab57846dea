"""The layouts that hack/images writes: images that differ stay apart, and bytes don't change."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import io
import json
import sys
import tarfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def load_oci() -> Any:
    """hack/images is a folder of scripts, so it isn't on the path."""
    spec = importlib.util.spec_from_file_location(
        "hack_images_oci", ROOT / "hack" / "images" / "oci.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


oci = load_oci()


def blob(root: Path, digest: str) -> bytes:
    content = (root / "blobs" / digest.replace(":", "/")).read_bytes()
    assert f"sha256:{hashlib.sha256(content).hexdigest()}" == digest
    return content


def write(root: Path) -> Path:
    layout = oci.Layout(root, architecture="amd64")
    base = oci.Layer().folder("/tmp", mode=0o1777).file("/bin/sh", b"elf", mode=0o755)
    base.hard_link("/bin/ls", "/bin/sh").symlink("/lib", "usr/lib")
    layout.add(oci.Image((base,), {"Cmd": ["sh"]}), "a.example/base:1", "b.example/base:1")
    # Layers that nobody keeps: one's place in memory becomes the next one's.
    for mark in range(20):
        image = oci.Image((base, oci.Layer().file(f"/{mark}", b"", mode=0o4755)))
        layout.add(image, f"a.example/{mark}:1")
    layout.finish()
    return root


def test_each_image_has_its_own_layers_and_names(tmp_path: Path) -> None:
    root = write(tmp_path / "layout")

    entries = json.loads((root / "index.json").read_text())["manifests"]
    digests = {entry["annotations"][oci.NAME]: entry["digest"] for entry in entries}

    assert digests["a.example/base:1"] == digests["b.example/base:1"]
    assert len(digests) == 22
    assert len(set(digests.values())) == 21
    for mark in range(20):
        manifest = json.loads(blob(root, digests[f"a.example/{mark}:1"]))
        config = json.loads(blob(root, manifest["config"]["digest"]))
        layers = [gzip.decompress(blob(root, layer["digest"])) for layer in manifest["layers"]]
        assert config["rootfs"]["diff_ids"] == [
            f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers
        ]
        with tarfile.open(fileobj=io.BytesIO(layers[1])) as archive:
            assert [(entry.name, entry.mode) for entry in archive] == [(str(mark), 0o4755)]


def test_a_layer_keeps_modes_links_and_the_folders_on_the_way(tmp_path: Path) -> None:
    root = write(tmp_path / "layout")
    entries = json.loads((root / "index.json").read_text())["manifests"]
    manifest = json.loads(blob(root, entries[0]["digest"]))

    with tarfile.open(
        fileobj=io.BytesIO(blob(root, manifest["layers"][0]["digest"])), mode="r:gz"
    ) as archive:
        found = [(entry.name, entry.type, entry.mode, entry.linkname) for entry in archive]

    assert found == [
        ("tmp", tarfile.DIRTYPE, 0o1777, ""),
        ("bin", tarfile.DIRTYPE, 0o755, ""),
        ("bin/sh", tarfile.REGTYPE, 0o755, ""),
        ("bin/ls", tarfile.LNKTYPE, 0o755, "bin/sh"),
        ("lib", tarfile.SYMTYPE, 0o777, "usr/lib"),
    ]


def test_the_same_images_are_the_same_bytes(tmp_path: Path) -> None:
    first, second = write(tmp_path / "1"), write(tmp_path / "2")

    assert (first / "index.json").read_bytes() == (second / "index.json").read_bytes()
