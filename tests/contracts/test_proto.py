"""Our .proto files hold exactly what upstream's hold, and the comparison would see it if not."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.go

ROOT = Path(__file__).resolve().parents[2]
CRI = ROOT / "cri"
TIMEOUT = 240  # seconds; the first run fetches six modules, and maybe Go


def compare(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "hack" / "protos", "--cri", folder],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )


def test_our_files_hold_what_upstream_has() -> None:
    result = compare(CRI)

    assert (result.returncode, result.stdout) == (0, "16 files hold what upstream has\n"), (
        result.stderr
    )


@pytest.mark.parametrize(
    ("file", "old", "new", "expected"),
    [
        pytest.param(
            "cri.proto",
            "bool stdin_once = 13;",
            "bool stdin_once = 113;",
            "field runtime.v1.ContainerConfig.stdin_once: optional bool = 113 json=stdinOnce;"
            " upstream: optional bool = 13 json=stdinOnce",
            id="number",
        ),
        pytest.param(
            "types.proto",
            "int64 size = 3;",
            "uint64 size = 3;",
            "field containerd.types.Descriptor.size: optional uint64 = 3 json=size;"
            " upstream: optional int64 = 3 json=size",
            id="type",
        ),
        pytest.param(
            "cri.proto",
            "MountPropagation propagation = 5;",
            "Protocol propagation = 5;",
            "field runtime.v1.Mount.propagation: optional .runtime.v1.Protocol = 5",
            id="type name",
        ),
        pytest.param(
            "task_v3.proto",
            "repeated containerd.types.Mount rootfs = 3;",
            "containerd.types.Mount rootfs = 3;",
            "field containerd.task.v3.CreateTaskRequest.rootfs: optional .containerd.types.Mount",
            id="label",
        ),
        pytest.param(
            "task_v2.proto",
            "string stdin = 5;",
            "",
            "field containerd.task.v2.CreateTaskRequest.stdin: missing (optional string = 5",
            id="missing field",
        ),
        pytest.param(
            "sandbox.proto",
            "string netns_path = 5;",
            "string netns_path = 5; bool extra = 70;",
            "field containerd.runtime.sandbox.v1.CreateSandboxRequest.extra:"
            " upstream has no such thing",
            id="field too many",
        ),
        pytest.param(
            "bootstrap.proto",
            "optional string socket_dir = 9;",
            "string socket_dir = 9;",
            "oneof containerd.runtime.bootstrap.v1.BootstrapParams._socket_dir: missing",
            id="presence",
        ),
        pytest.param(
            "cri.proto",
            "repeated IDMapping uidMappings = 6;",
            'repeated IDMapping uidMappings = 6 [json_name = "uids"];',
            "field runtime.v1.Mount.uidMappings: repeated .runtime.v1.IDMapping = 6 json=uids;",
            id="json name",
        ),
        pytest.param(
            "types.proto",
            "map<string, string> annotations = 5;",
            "map<string, bytes> annotations = 5;",
            "field containerd.types.Descriptor.AnnotationsEntry.value: optional bytes = 2",
            id="map entry",
        ),
        pytest.param(
            "cri.proto",
            "string password = 2 [debug_redact = true];",
            "string password = 2;",
            "field runtime.v1.AuthConfig.password: optional string = 2 json=password;",
            id="option",
        ),
        pytest.param(
            "runc_options.proto",
            "reserved 8;",
            "",
            "message containerd.runc.v1.Options: message reserved=[]",
            id="reserved",
        ),
        pytest.param(
            "task_types.proto",
            "PAUSED = 4;",
            "PAUSED = 6;",
            "value containerd.v1.types.Status.PAUSED: = 6 deprecated=False;",
            id="enum value",
        ),
        pytest.param(
            "cri.proto",
            "returns (stream StreamImagesResponse)",
            "returns (StreamImagesResponse)",
            "rpc runtime.v1.ImageService.StreamImages:",
            id="streaming",
        ),
        pytest.param(
            "ttrpc_events.proto",
            "package containerd.services.events.ttrpc.v1;",
            "package containerd.services.events.ttrpc.v2;",
            "package: containerd.services.events.ttrpc.v2 proto3;",
            id="package",
        ),
        pytest.param(
            "status.proto",
            "int32 code = 1;",
            "int32 kode = 1;",
            "field google.rpc.Status.code: missing",
            id="field's name",
        ),
    ],
)
def test_a_difference_is_named(
    tmp_path: Path, file: str, old: str, new: str, expected: str
) -> None:
    folder = tmp_path / "cri"
    shutil.copytree(CRI, folder)
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new, 1))

    result = compare(folder)

    assert result.returncode == 1
    assert f"{file}: {expected}" in result.stdout


def test_a_file_too_many_and_one_too_few_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "cri"
    shutil.copytree(CRI, folder)
    (folder / "runtimeoptions.proto").rename(folder / "stray.proto")

    result = compare(folder)

    assert result.returncode == 1
    assert "runtimeoptions.proto: there is no such file" in result.stdout
    assert "stray.proto: no upstream is known for it" in result.stdout
