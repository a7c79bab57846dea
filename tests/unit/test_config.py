from __future__ import annotations

from pathlib import Path

import pytest

from zos_cri import config
from zos_cri.errors import InvalidArgument


def parse(text):
    return config.parse(text.encode(), "/etc/x.toml")


def test_everything_has_a_default():
    settings = parse("")
    assert settings == config.Config()
    assert settings.socket == Path("/run/zos-cri/zos-cri.sock")
    assert settings.state_dir == Path("/var/lib/zos-cri")
    assert settings.run_dir == Path("/run/zos-cri")


def test_what_is_said_counts():
    settings = parse(
        """
        default_handler = "crun"
        [server]
        run = "/run/x"
        socket = "/run/y.sock"
        [cni]
        bin_dirs = ["/a", "/b"]
        plugin_timeout = 5
        [handlers.crun]
        runtime = "crun"
        systemd_cgroup = true
        """
    )
    assert settings.socket == Path("/run/y.sock")
    assert settings.cni.bin_dirs == ("/a", "/b")
    assert settings.cni.plugin_timeout == 5
    handler = config.handlers(settings)["crun"]
    assert (handler.name, handler.runtime, handler.systemd_cgroup) == ("crun", "crun", True)
    assert handler.root == "/run/x/runtime"


@pytest.mark.parametrize(
    ("text", "key", "says"),
    [
        ("sockets = 1", "sockets", "unknown field"),
        ("[server]\nsockte = 1", "sockte", "unknown field"),
        ("[handlers.x]\nshym = 1", "shym", "unknown field"),
        ("[server]\nsocket = 1", "$.server.socket", "Expected `str`, got `int`"),
        ("[server]\nsocket_gid = 'x'", "$.server.socket_gid", "Expected `int`"),
        ("[server]\nsocket_gid = -1", "$.server.socket_gid", ">= 0"),
        ("[server]\nsocket = 'x'", "server.socket", "not an absolute path"),
        ("[server]\nrun = 'x'", "server.run", "not an absolute path"),
        ("[server]\nrun = '/" + "x" * 100 + "'", "server.socket", "longer than 107"),
        ("[server]\nmetrics = '9474'", "server.metrics", "not HOST:PORT"),
        ("[server]\nmetrics = 'h:70000'", "server.metrics", "not HOST:PORT"),
        ("[cdi]\ndirs = ['/etc/cdi', 'x']", "cdi.dirs", "not an absolute path"),
        ("[cni]\nplugin_timeout = 0", "$.cni.plugin_timeout", "> 0"),
        ("[cni]\nbin_dirs = ['bin']", "cni.bin_dirs", "not an absolute path"),
        ("[container_log]\nmax_line_size = -1", "$.container_log.max_line_size", ">= 0"),
        ("[log]\nlevel = 'loud'", "log.level", "loud"),
        ("[log]\nformat = 'xml'", "log.format", "xml"),
        ("[streaming]\ntls_cert = '/x'", "streaming", "go together"),
        ("[streaming]\naddress = 'x'", "streaming.address", "not HOST:PORT"),
        ("default_handler = 'kata'", "default_handler", 'no handler "kata", only runc'),
        ("[server", "/etc/x.toml", "Expected ']'"),
        ("x = '\xff'", "/etc/x.toml", ""),
    ],
)
def test_what_is_wrong_is_named_with_file_and_key(text, key, says):
    with pytest.raises(InvalidArgument) as caught:
        config.parse(text.encode("latin-1"), "/etc/x.toml")
    message = str(caught.value)
    assert message.startswith("/etc/x.toml: ")
    assert key in message
    assert says in message


def test_a_file_is_read_whole(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text('init = "/usr/bin/catatonit"')
    assert config.load(path).init == "/usr/bin/catatonit"
    path.write_text("#" * (config.CONFIG_LIMIT + 1))
    with pytest.raises(InvalidArgument, match=r"config\.toml: larger than"):
        config.load(path)


def test_a_file_that_is_named_must_be_there(tmp_path):
    with pytest.raises(InvalidArgument, match=r"absent\.toml: No such file"):
        config.load(tmp_path / "absent.toml")


def test_without_a_name_it_is_the_default_file_where_there_is_one():
    if not config.DEFAULT_PATH.exists():
        assert config.load() == config.Config()
