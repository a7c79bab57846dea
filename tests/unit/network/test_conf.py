"""Network configurations: what is read, what is refused and how, and that changes are noticed."""

from __future__ import annotations

import contextlib
import json
import os
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zos_cri.network import conf
from zos_cri.network.conf import ConfDir, ConfError, NoConf, load, parse_list, parse_single

if TYPE_CHECKING:
    from pathlib import Path


def encoded(**keys: Any) -> bytes:
    document = {"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "bridge"}]} | keys
    return json.dumps({k: v for k, v in document.items() if v is not None}).encode()


def write(directory: Path, file: str, **keys: Any) -> Path:
    path = directory / file
    path.write_bytes(encoded(**keys))
    return path


def names(directory: Path, number: int = 0) -> list[str]:
    return [network.name for network in load(str(directory), number)]


class TestList:
    def test_all_of_it(self) -> None:
        network = parse_list(
            encoded(
                cniVersions=["0.4.0", "1.1.0", "9.9.9"],
                disableCheck=True,
                disableGC="TRUE",
                plugins=[
                    {"type": "bridge", "ipam": {"type": "host-local"}},
                    {"type": "portmap", "capabilities": {"portMappings": True, "x": False}},
                ],
            ),
            source="f",
        )
        assert network.versions == ("0.4.0", "1.0.0", "1.1.0")
        assert (network.disable_check, network.disable_gc) == (True, True)
        bridge, portmap = network.plugins
        assert (bridge.type, bridge.ipam, bridge.capabilities) == (
            "bridge",
            "host-local",
            frozenset(),
        )
        assert portmap.capabilities == {"portMappings"}

    @pytest.mark.parametrize(
        ("keys", "message"),
        [
            ({"name": None}, "name: missing"),
            ({"name": 3}, "name: Expected `str`"),
            ({"name": "../x"}, "name: '../x' must be letters"),
            ({"name": "x" * 129}, "at most 128"),
            ({"name": ""}, "name: ''"),
            ({"cniVersion": "1.2.0"}, "cniVersion: 1.2.0 isn't supported; known are 0.1.0"),
            ({"cniVersions": ["2.0.0"], "cniVersion": None}, "cniVersions: 2.0.0 isn't"),
            ({"cniVersion": 1}, "cniVersion: Expected `str`"),
            ({"cniVersions": "1.0.0"}, "cniVersions: Expected `array`"),
            ({"disableCheck": "yes"}, "disableCheck: expected true or false"),
            ({"disableGC": 1}, "disableGC: expected true or false"),
            ({"plugins": []}, "plugins: the list is empty"),
            ({"plugins": {}}, "plugins: Expected `array`"),
            ({"plugins": None}, "plugins: missing"),
            ({"plugins": None, "loadOnlyInlinedPlugins": True}, "and loadOnlyInlinedPlugins"),
            ({"plugins": ["x"]}, r"plugins\[0\]: not a JSON object"),
            ({"plugins": [{}]}, r"plugins\[0\]: type: missing"),
            ({"plugins": [{"type": ""}]}, r"plugins\[0\]: type: ''"),
            ({"plugins": [{"type": "../sh"}]}, r"type: '../sh' isn't a program's name"),
            ({"plugins": [{"type": "a"}, {"type": ".."}]}, r"plugins\[1\]: type"),
            ({"plugins": [{"type": "a", "capabilities": {"x": 1}}]}, "capabilities: Expected"),
        ],
    )
    def test_errors_name_the_file_and_the_field(self, keys: Any, message: Any) -> None:
        with pytest.raises(ConfError, match=message) as caught:
            parse_list(encoded(**keys), source="/etc/cni/net.d/10-x.conflist")
        assert str(caught.value).startswith("/etc/cni/net.d/10-x.conflist: ")

    @pytest.mark.parametrize("data", [b"", b"[]", b"{", b'{"a":\xff}', b'{"a":' + b"[" * 99999])
    def test_what_is_no_json_object(self, data: Any) -> None:
        with pytest.raises(ConfError, match="f: not a JSON object"):
            parse_list(data, source="f")

    @given(st.binary(max_size=200))
    def test_no_input_raises_anything_else(self, data: bytes) -> None:
        for parse in (parse_list, parse_single):
            with contextlib.suppress(ConfError):
                parse(data, source="f")

    def test_no_version_at_all_means_the_first(self) -> None:
        assert parse_list(encoded(cniVersion=None), source="f").versions == ("0.1.0",)

    def test_plugins_keep_their_bytes(self) -> None:
        raw = b'{"type":"x", "big": 123456789012345678901234567890, "f": 1.10, "n":null}'
        data = b'{"name":"net","cniVersion":"1.0.0","plugins":[' + raw + b"]}"
        assert parse_list(data, source="f").plugins[0].raw == raw

    def test_it_can_be_written_down_and_read_again(self) -> None:
        network = parse_list(encoded(disableGC=True, plugins=[{"type": "a", "x": 1}]), source="f")
        again = parse_list(network.to_json("1.0.0"), source="f")
        assert again == network


class TestSingle:
    def test_a_plugin_by_itself(self) -> None:
        network = parse_single(b'{"cniVersion":"0.3.1","name":"n","type":"ptp"}', source="f")
        assert (network.name, network.versions) == ("n", ("0.3.1",))
        assert [plugin.type for plugin in network.plugins] == ["ptp"]

    def test_a_list_in_it_is_told_where_it_belongs(self) -> None:
        with pytest.raises(ConfError, match=r"belongs in a .conflist file"):
            parse_single(encoded(), source="f")


class TestDirectory:
    def test_lexical_order_and_the_first_ones(self, tmp_path: Path) -> None:
        write(tmp_path, "20-b.conflist", name="b")
        (tmp_path / "10-a.conf").write_text('{"name":"a","type":"x"}')
        (tmp_path / "15-j.json").write_text('{"name":"j","type":"x"}')
        write(tmp_path, "05-ignored.conflist.bak", name="c")
        (tmp_path / "00-dir.conf").mkdir()
        assert names(tmp_path) == ["a", "j", "b"]
        assert names(tmp_path, 2) == ["a", "j"]
        assert names(tmp_path, 1) == ["a"]

    def test_none(self, tmp_path: Path) -> None:
        for directory in (tmp_path, tmp_path / "absent"):
            with pytest.raises(NoConf, match=f"no network configuration in {directory}"):
                load(str(directory), 1)

    def test_a_broken_file_stops_everything_unless_it_comes_too_late(self, tmp_path: Path) -> None:
        write(tmp_path, "10-a.conflist", name="a")
        (tmp_path / "20-b.conflist").write_text("{")
        assert names(tmp_path, 1) == ["a"]
        with pytest.raises(ConfError, match=r"20-b.conflist: not a JSON object"):
            load(str(tmp_path), 2)

    def test_the_same_name_twice(self, tmp_path: Path) -> None:
        write(tmp_path, "10-a.conflist")
        write(tmp_path, "20-b.conflist")
        with pytest.raises(ConfError, match=r"20-b.*'net' is the name of .*10-a.conflist too"):
            load(str(tmp_path), 0)

    def test_loopback_alone_is_passed_over(self, tmp_path: Path) -> None:
        (tmp_path / "00-lo.conf").write_text('{"name":"lo","type":"loopback"}')
        with pytest.raises(NoConf):
            load(str(tmp_path), 1)
        write(tmp_path, "10-a.conflist", plugins=[{"type": "loopback"}, {"type": "bridge"}])
        assert names(tmp_path, 1) == ["net"]

    def test_bounds(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "10-a.conf").write_bytes(b" " * (conf.MAX_CONF + 1))
        with pytest.raises(ConfError, match="larger than 1048576 bytes"):
            load(str(tmp_path), 1)
        monkeypatch.setattr(conf, "MAX_FILES", 0)
        with pytest.raises(ConfError, match="1 configuration files, at most 0"):
            load(str(tmp_path), 1)

    def test_what_lies_there_never_makes_us_wait(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "10-a.conf")
        with pytest.raises(ConfError, match=r"10-a.conf: not a regular file"):
            load(str(tmp_path), 1)
        (tmp_path / "10-a.conf").unlink()
        (tmp_path / "10-a.conf").symlink_to(tmp_path / "absent")
        with pytest.raises(ConfError, match=r"10-a.conf: No such file"):
            load(str(tmp_path), 1)

    def test_folders_of_further_plugins(self, tmp_path: Path) -> None:
        folder = tmp_path / "net"
        folder.mkdir()
        (folder / "20-b.conf").write_text('{"type":"b"}')
        (folder / "10-a.conf").write_text('{"type":"a"}')
        (folder / "x.json").write_text("no")
        path = write(tmp_path, "10-net.conflist")
        network = load(str(tmp_path), 1)[0]
        assert [plugin.type for plugin in network.plugins] == ["bridge", "a", "b"]
        write(tmp_path, path.name, plugins=None)
        assert [plugin.type for plugin in load(str(tmp_path), 1)[0].plugins] == ["a", "b"]
        write(tmp_path, path.name, loadOnlyInlinedPlugins=True)
        assert [plugin.type for plugin in load(str(tmp_path), 1)[0].plugins] == ["bridge"]
        write(tmp_path, path.name)
        (folder / "20-b.conf").write_text('{"x":1}')
        with pytest.raises(ConfError, match=r"net/20-b.conf: type: missing"):
            load(str(tmp_path), 1)


class TestChanges:
    def settle(self, directory: Path) -> None:
        """Makes all files old enough for their time stamps to be trusted."""
        newest = max(path.stat().st_ctime_ns for path in directory.rglob("*"))
        while time.time_ns() - newest < 2 * conf._RACY_NS:
            time.sleep(0.002)

    @pytest.fixture
    def loads(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        made: list[str] = []
        real = conf.load

        def counted(directory: str, number: int) -> Any:
            made.append(directory)
            return real(directory, number)

        monkeypatch.setattr(conf, "load", counted)
        return made

    def test_unchanged_files_are_read_once(self, tmp_path: Path, loads: list[str]) -> None:
        write(tmp_path, "10-a.conflist")
        self.settle(tmp_path)
        confs = ConfDir(str(tmp_path), 1)
        for _ in range(5):
            assert confs.networks()[0].name == "net"
        assert len(loads) == 1

    def test_a_fresh_file_is_read_again(
        self, tmp_path: Path, loads: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It may change once more within its time stamp's granularity."""
        monkeypatch.setattr(conf, "_RACY_NS", 60 * 10**9)
        confs = ConfDir(str(tmp_path), 1)
        write(tmp_path, "10-a.conflist", name="aa")
        confs.networks()
        write(tmp_path, "10-a.conflist", name="bb")
        assert confs.networks()[0].name == "bb"
        confs.networks()
        assert len(loads) == 3

    def test_changes_of_all_kinds(self, tmp_path: Path) -> None:
        confs = ConfDir(str(tmp_path), 1)
        with pytest.raises(NoConf):
            confs.networks()
        path = write(tmp_path, "10-a.conflist", name="a")
        assert confs.networks()[0].name == "a"
        first = write(tmp_path, "05-b.conflist", name="b")
        self.settle(tmp_path)
        assert confs.networks()[0].name == "b"
        generation = confs.generation
        assert confs.networks()[0].name == "b"
        assert confs.generation == generation
        first.unlink()
        assert confs.networks()[0].name == "a"
        assert confs.generation == generation + 1
        path.write_text("{")
        with pytest.raises(ConfError, match="10-a"):
            confs.networks()
        write(tmp_path, "10-a.conflist", name="c")
        assert confs.networks()[0].name == "c"

    def test_a_folder_that_appears_and_changes(self, tmp_path: Path) -> None:
        write(tmp_path, "10-net.conflist")
        self.settle(tmp_path)
        confs = ConfDir(str(tmp_path), 1)
        assert len(confs.networks()[0].plugins) == 1
        (tmp_path / "net").mkdir()
        (tmp_path / "net" / "a.conf").write_text('{"type":"a"}')
        assert len(confs.networks()[0].plugins) == 2
        self.settle(tmp_path)
        confs.networks()
        (tmp_path / "net" / "a.conf").unlink()
        assert len(confs.networks()[0].plugins) == 1

    def test_to_look_is_cheap(self, tmp_path: Path) -> None:
        for number in range(10):
            write(tmp_path, f"{number}.conflist", name=f"n{number}")
        self.settle(tmp_path)
        confs = ConfDir(str(tmp_path), 1)
        confs.networks()
        begun = time.perf_counter()
        for _ in range(100):
            confs.networks()
        # The bound only says that nothing is read or parsed.
        assert (time.perf_counter() - begun) / 100 < 0.005
