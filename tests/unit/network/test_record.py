"""Records of attachments: what survives, what doesn't, and what is said of damaged ones."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import msgspec
import pytest

from zos_cri.network.conf import parse_list
from zos_cri.network.record import IFNAME, Attachment, Records

if TYPE_CHECKING:
    from pathlib import Path

CONF = parse_list(
    b'{"cniVersion":"0.4.0","name":"net","disableCheck":true,"plugins":'
    b'[{"type":"bridge","big":123456789012345678901},{"type":"portmap"}]}',
    source="f",
)
RECORD = Attachment(
    container_id="abc",
    network="net",
    ifname="eth0",
    netns="/run/x",
    version="0.4.0",
    args="a=b",
    capabilities={"portMappings": [{"hostPort": 1}]},
    conf=CONF,
    begun=1,
)


@pytest.fixture
def records(tmp_path: Path) -> Records:
    return Records(tmp_path / "cni")


def test_written_and_read(records: Records) -> None:
    assert records.every() == []
    records.save(RECORD)
    (read,) = records.of("abc")
    assert read.conf is not None
    assert msgspec.structs.replace(read.conf, source="f") == CONF
    assert msgspec.structs.replace(read, conf=CONF) == RECORD
    done = msgspec.structs.replace(RECORD, result=b'{"ips":[]}', begun=2, complete=True)
    records.save(done)
    (read,) = records.of("abc")
    assert (read.result, read.begun, read.complete) == (b'{"ips":[]}', 2, True)


def test_in_the_order_of_add(records: Records) -> None:
    for index, network in ((1, "a"), (0, "b"), (2, "0")):
        records.save(
            msgspec.structs.replace(RECORD, network=network, index=index, ifname=f"eth{index}")
        )
    assert [each.network for each in records.of("abc")] == ["b", "a", "0"]
    assert records.ids() == ["abc"]
    assert len(records.every()) == 3


def test_nothing_is_left_after_the_last_one(records: Records, tmp_path: Path) -> None:
    other = msgspec.structs.replace(RECORD, network="b", ifname="eth1")
    records.save(RECORD)
    records.save(other)
    records.remove(RECORD)
    assert [each.network for each in records.of("abc")] == ["b"]
    records.remove(other)
    records.remove(other)
    assert list((tmp_path / "cni").iterdir()) == []


def test_only_root_reads_them(records: Records, tmp_path: Path) -> None:
    records.save(RECORD)
    for path in (tmp_path / "cni").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0


def test_a_write_that_was_cut_short_changes_nothing(records: Records, tmp_path: Path) -> None:
    records.save(RECORD)
    (tmp_path / "cni" / "abc" / "net@eth0.new").write_text("{")
    assert [each.damage for each in records.of("abc")] == [""]
    records.remove(RECORD)
    assert not (tmp_path / "cni" / "abc").exists()


def test_a_write_that_fails_leaves_the_former(
    records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    records.save(RECORD)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="No space left"):
        records.save(msgspec.structs.replace(RECORD, begun=2))
    assert [each.begun for each in records.of("abc")] == [1]


@pytest.mark.parametrize("data", ["", "{", "[]", '{"format":1}', "\0\0\0", '{"format":"x"}'])
def test_a_damaged_one_still_says_what_it_is_of(
    records: Records, tmp_path: Path, data: str
) -> None:
    records.save(RECORD)
    path = tmp_path / "cni" / "abc" / "net@eth0.json"
    path.write_text(data)
    (read,) = records.of("abc")
    assert (read.container_id, read.network, read.ifname) == ("abc", "net", "eth0")
    assert read.conf is None
    assert not read.newer
    assert read.damage.startswith(f"{path}: damaged: ")
    with pytest.raises(ValueError, match="damaged record"):
        records.save(read)


def test_one_of_a_later_release_is_left_alone(records: Records, tmp_path: Path) -> None:
    records.save(RECORD)
    path = tmp_path / "cni" / "abc" / "net@eth0.json"
    path.write_text(json.dumps({"format": 2, "something": "else"}))
    (read,) = records.of("abc")
    assert read.newer
    assert read.damage == f"{path}: written in format 2, known is 1"


@pytest.mark.parametrize("container_id", ["", ".", "..", "../x", "a/b"])
def test_ids_lead_nowhere_else(records: Records, tmp_path: Path, container_id: str) -> None:
    (tmp_path / "net@eth0.json").write_text("{}")
    assert records.of(container_id) == []


def test_other_files_are_passed_over(records: Records, tmp_path: Path) -> None:
    records.save(RECORD)
    (tmp_path / "cni" / "abc" / "note.txt").write_text("")
    (tmp_path / "cni" / "stray").write_text("")
    assert len(records.every()) == 1


@pytest.mark.parametrize("name", ["", ".", "a b", "a/b", "a:b", "a@b", "x" * 16, "\t"])
def test_interface_names_refused(name: str) -> None:
    assert not IFNAME.fullmatch(name)


def test_a_killed_writers_leftovers_go(tmp_path: Path) -> None:
    records = Records(tmp_path)
    (tmp_path / "pod").mkdir()
    (tmp_path / "pod" / "net@eth0.new").write_text("half")
    records.tidy("pod")
    records.tidy("pod")
    assert list(tmp_path.iterdir()) == []
