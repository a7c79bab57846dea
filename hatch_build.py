"""The build hook: generates zos_cri/_pb from the .proto files in cri/."""

from __future__ import annotations

import importlib.resources
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# Where the files stand in descriptors and imports: cri/x.proto becomes zos_cri/_pb/x_pb2.py.
VIRTUAL_DIR = "zos_cri/_pb"


def generate(root: Path) -> None:
    """Writes `*_pb2.py`, `*_pb2.pyi` and `*_pb2_grpc.py` for each file of `cri/`.

    Raises:
        RuntimeError: protoc refused a file; its own message is on standard error.
    """
    from grpc_tools import protoc  # type: ignore[import-untyped]  # noqa: PLC0415 build time only

    well_known = importlib.resources.files("grpc_tools") / "_proto"
    plugin = shutil.which("protoc-gen-mypy", path=str(Path(sys.executable).parent)) or shutil.which(
        "protoc-gen-mypy"
    )
    protos = sorted(path.name for path in (root / "cri").glob("*.proto"))
    with tempfile.TemporaryDirectory(prefix=".pb-", dir=root) as scratch:
        arguments = [
            "protoc",
            f"-I{VIRTUAL_DIR}={root / 'cri'}",
            f"-I{well_known}",
            f"--python_out={scratch}",
            f"--grpc_python_out={scratch}",
            *(
                [f"--plugin=protoc-gen-mypy={plugin}", f"--mypy_out=quiet:{scratch}"]
                if plugin
                else []
            ),
            *(f"{VIRTUAL_DIR}/{name}" for name in protos),
        ]
        if protoc.main(arguments) != 0:
            raise RuntimeError(f"protoc failed for {root / 'cri'}: see its message above")
        made = Path(scratch) / VIRTUAL_DIR
        (made / "__init__.py").write_text('"""Generated from cri/*.proto by hatch_build.py."""\n')
        _replace(root / VIRTUAL_DIR, made)


def _replace(out: Path, made: Path) -> None:
    """File by file, and only what differs: a program may run from an editable install."""
    out.mkdir(parents=True, exist_ok=True)
    names = {path.name for path in made.iterdir()}
    for name in names:
        if not (out / name).exists() or (out / name).read_bytes() != (made / name).read_bytes():
            (made / name).replace(out / name)
    for stale in out.glob("*_pb2*"):
        if stale.name not in names:
            stale.unlink()


class ProtobufHook(BuildHookInterface[Any]):
    """Runs before every wheel, sdist and editable install."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if (Path(self.root) / "cri").is_dir():
            generate(Path(self.root))


if __name__ == "__main__":
    generate(Path(__file__).resolve().parent)
