"""The build hook: generates zos_cri/_pb from the .proto files in cri/."""

from __future__ import annotations

import importlib.resources
import shutil
import sys
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

    out = root / VIRTUAL_DIR
    out.mkdir(parents=True, exist_ok=True)
    for stale in out.glob("*_pb2*"):
        stale.unlink()
    well_known = importlib.resources.files("grpc_tools") / "_proto"
    plugin = shutil.which("protoc-gen-mypy", path=str(Path(sys.executable).parent)) or shutil.which(
        "protoc-gen-mypy"
    )
    protos = sorted(path.name for path in (root / "cri").glob("*.proto"))
    arguments = [
        "protoc",
        f"-I{VIRTUAL_DIR}={root / 'cri'}",
        f"-I{well_known}",
        f"--python_out={root}",
        f"--grpc_python_out={root}",
        *([f"--plugin=protoc-gen-mypy={plugin}", f"--mypy_out=quiet:{root}"] if plugin else []),
        *(f"{VIRTUAL_DIR}/{name}" for name in protos),
    ]
    if protoc.main(arguments) != 0:
        raise RuntimeError(f"protoc failed for {root / 'cri'}: see its message above")
    (out / "__init__.py").write_text('"""Generated from cri/*.proto by hatch_build.py."""\n')


class ProtobufHook(BuildHookInterface[Any]):
    """Runs before every wheel, sdist and editable install."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if (Path(self.root) / "cri").is_dir():
            generate(Path(self.root))


if __name__ == "__main__":
    generate(Path(__file__).resolve().parent)
