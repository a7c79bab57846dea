from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from zos_cri._pb import cri_pb2 as pb
from zos_cri.cri import cdi as module
from zos_cri.cri.cdi import CdiSpecs
from zos_cri.errors import InvalidArgument
from zos_cri.oci import cdi

if TYPE_CHECKING:
    from pathlib import Path

YAML = """\
cdiVersion: "0.6.0"
kind: vendor.com/yaml
devices:
  - name: one
    containerEdits:
      env: [YAML=yes]
      deviceNodes:
        - {path: /dev/in, hostPath: %s, fileMode: 0640}
"""


def spec(kind: str = "vendor.com/x", **devices: str) -> str:
    """A file whose devices each set one variable."""
    edits = {name: {"env": [f"{name}={value}"]} for name, value in devices.items()}
    listed = [{"name": name, "containerEdits": edit} for name, edit in edits.items()]
    return json.dumps({"cdiVersion": "1.0.0", "kind": kind, "devices": listed})


async def env(specs: CdiSpecs, *names: str) -> tuple[str, ...]:
    edits = await specs.edits(asked(*names))
    assert edits is not None
    return edits.env


def asked(*names: str) -> list[Any]:
    return [pb.CDIDevice(name=name) for name in names]


def rewrite(path: Path, text: str) -> None:
    """As vendors' tools do: a file that is there is whole."""
    new = path.with_name("new")
    new.write_text(text)
    new.replace(path)


async def test_nothing_is_read_where_nothing_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    assert await CdiSpecs((str(tmp_path),)).edits([]) is None


async def test_json_and_yaml_and_the_numbers_of_nodes(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/dev/null")
    (tmp_path / "a.json").write_text(spec(A="1"))
    (tmp_path / "b.yaml").write_text(YAML % (tmp_path / "link"))
    (tmp_path / "c.yml").write_text("not looked at: [")
    edits = await CdiSpecs((str(tmp_path),)).edits(asked("vendor.com/x=A", "vendor.com/yaml=one"))
    assert edits is not None
    assert edits.env == ("A=1", "YAML=yes")
    (node,) = edits.device_nodes
    assert (node.type, node.major, node.minor, node.file_mode) == ("c", 1, 3, 0o640)


async def test_later_directories_first_and_what_changes_is_read_anew(tmp_path: Path) -> None:
    etc, run = tmp_path / "etc", tmp_path / "run"
    specs = CdiSpecs((str(etc), str(run)))
    with pytest.raises(InvalidArgument, match="no CDI spec file has a device"):
        await specs.edits(asked("vendor.com/x=A"))
    etc.mkdir()
    (etc / "a.json").write_text(spec(A="1", B="1"))
    assert await env(specs, "vendor.com/x=A") == ("A=1",)
    run.mkdir()
    (run / "a.json").write_text(spec(A="2"))
    assert await env(specs, "vendor.com/x=A", "vendor.com/x=B") == ("A=2", "B=1")
    for value in range(3, 20):  # within a tick of the clock, and of one length
        (run / "a.json").write_text(spec(A=str(value % 10)))
        assert await env(specs, "vendor.com/x=A") == (f"A={value % 10}",)
    rewrite(run / "a.json", spec(A="new"))
    assert await env(specs, "vendor.com/x=A") == ("A=new",)
    (run / "a.json").unlink()
    assert await env(specs, "vendor.com/x=A") == ("A=1",)


async def test_what_is_unchanged_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    path.write_text(spec(A="1"))
    monkeypatch.setattr(module, "_SETTLED", -(10**9))  # as if it had been written long ago
    specs = CdiSpecs((str(tmp_path),))
    read: list[str] = []
    parse = cdi.parse_spec

    def noted(document: object, name: str) -> Any:
        read.append(name)
        return parse(document, name)

    monkeypatch.setattr(cdi, "parse_spec", noted)
    for _ in range(3):
        await env(specs, "vendor.com/x=A")
    assert read == [str(path)]
    rewrite(path, spec(A="2"))
    assert await env(specs, "vendor.com/x=A") == ("A=2",)
    assert len(read) == 2


@pytest.mark.parametrize(("after", "value"), [(1, "1"), (2 * 10**9, "old")])
def test_what_was_read_right_after_it_was_written_is_not_trusted(
    tmp_path: Path, after: int, value: str
) -> None:
    path = tmp_path / "a.json"
    path.write_text(spec(A="old"))
    old = module._read(str(path), None)
    path.write_text(spec(A="1"))
    stamp = module._read(str(path), None).stamp
    known = msgspec.structs.replace(old, stamp=stamp, read_at=max(stamp[3:]) + after)
    found = module._read(str(path), known).spec
    assert found is not None
    assert found.devices[0].container_edits.env == (f"A={value}",)


@pytest.mark.parametrize("name", ["bad.json", "bad.yaml"])
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "bad"),
        (spec(kind="x", A="1"), "is not vendor/class"),
        ("[" * 100_000, "bad"),
        ("x" * (module.FILE_LIMIT + 1), "larger than"),
        (None, "No such file"),
    ],
    ids=["cut off", "bad kind", "deep", "large", "dangling"],
)
async def test_a_bad_file_takes_only_its_own_devices_away(
    tmp_path: Path, name: str, text: str | None, says: str
) -> None:
    if text is None:
        (tmp_path / name).symlink_to("nowhere")
    else:
        (tmp_path / name).write_text(text)
    (tmp_path / "good.json").write_text(spec(A="1"))
    specs = CdiSpecs((str(tmp_path),))
    assert await env(specs, "vendor.com/x=A") == ("A=1",)
    with pytest.raises(InvalidArgument) as error:
        await specs.edits(asked("vendor.com/other=A"))
    text = str(error.value)
    assert '"vendor.com/other=A"; not used: ' in text
    assert str(tmp_path / name) in text
    assert says.lower() in text.lower()
    assert "\n" not in text


async def test_yaml_that_multiplies(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: &a [x]\nb: &b [*a, *a]\nc: [*b, *b]\n")
    with pytest.raises(InvalidArgument, match=r"a\.yaml: YAML aliases are not taken"):
        await CdiSpecs((str(tmp_path),)).edits(asked("vendor.com/x=A"))


async def test_a_fifo_is_no_file_to_wait_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.json")
    with pytest.raises(InvalidArgument, match=r"a\.json"):
        await CdiSpecs((str(tmp_path),)).edits(asked("vendor.com/x=A"))


async def test_a_device_that_is_not_on_this_host(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(YAML % "/dev/absent")
    with pytest.raises(InvalidArgument, match='"/dev/absent" is not such a device'):
        await CdiSpecs((str(tmp_path),)).edits(asked("vendor.com/yaml=one"))
