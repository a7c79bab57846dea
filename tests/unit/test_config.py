from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from zos_cri import config
from zos_cri._pb import runc_options_pb2
from zos_cri.config_handlers import BlockIoEntry, block_io
from zos_cri.cri.features import handler_settings
from zos_cri.errors import InvalidArgument
from zos_cri.oci.base import Rlimit
from zos_cri.oci.host import RLIM_INFINITY


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
        ("[images]\nstall_timeout = 0", "$.images.stall_timeout", "> 0"),
        ("[images]\nconnections = 0", "$.images.connections", ">= 1"),
        ("[images]\nmin_free_bytes = -1", "$.images.min_free_bytes", ">= 0"),
        ("[container_log]\nmax_line_size = -1", "$.container_log.max_line_size", ">= 0"),
        ("[container_log]\nmax_line_size = 63", "container_log.max_line_size", "63 is under 64"),
        ("[log]\nlevel = 'loud'", "log.level", "loud"),
        ("[log]\nformat = 'xml'", "log.format", "xml"),
        ("[streaming]\ntls_cert = '/x'", "streaming", "go together"),
        ("[streaming]\naddress = 'x'", "streaming.address", "not HOST:PORT"),
        ("default_handler = 'kata'", "default_handler", 'no handler "kata", only runc'),
        ("[handlers.runc]\nshim = 'bin/shim'", "handlers.runc.shim", "neither a type nor a path"),
        ("[handlers.runc]\nruntime = './x'", "handlers.runc.runtime", "neither a name nor a path"),
        ("[handlers.runc]\noci_version = '2'", "handlers.runc.oci_version", "no version"),
        ("[handlers.runc]\nbase_spec = 'x.json'", "handlers.runc.base_spec", "absolute"),
        ("[handlers.runc]\nbase_spec = '/absent'", "handlers.runc.base_spec", "No such file"),
        ("[handlers.runc]\nconfig_path = 'x'", "handlers.runc.config_path", "absolute"),
        ("[handlers.runc]\nsandboxer = 'vm'", "sandboxer", "vm"),
        (
            "[handlers.runc]\nsandboxer = 'shim'\nwarm_shims = 1",
            "handlers.runc.warm_shims",
            'none where sandboxer is "shim"',
        ),
        (
            "[handlers.runc]\nsandboxer = 'shim'\npods_per_shim = 2",
            "handlers.runc.pods_per_shim",
            "only a shim of runc's",
        ),
        (
            "[handlers.runc]\nconfig_path = '/x'\npods_per_shim = 2",
            "handlers.runc.pods_per_shim",
            "only a shim of runc's",
        ),
        ("[handlers.runc]\npods_per_shim = 0", "pods_per_shim", ""),
        (
            "[handlers.runc]\nconfig_path = '/x'\noptions = {root = '/x'}",
            "handlers.runc.options",
            "don't go with config_path",
        ),
        ("[handlers.runc.options]\nno_pivot = true", "handlers.runc.options", "no_pivot"),
        ("[handlers.runc.options]\nio_uid = 'x'", "handlers.runc.options", ""),
        ("[handlers.runc]\nunset_seccomp_profile = 'x'", "unset_seccomp_profile", "is not"),
        ("[handlers.runc]\nunset_seccomp_profile = 'localhost/x'", "seccomp_profile", "is not"),
        ("[handlers.runc]\nsnapshot_options = ['lowerdir=/']", "snapshot_options", "lowerdir"),
        ("[handlers.runc]\nsnapshot_options = ['a,b']", "snapshot_options", "a,b"),
        ("[handlers.runc.rlimits]\nRLIMIT_X = [1, 2]", "handlers.runc.rlimits", "RLIMIT_X"),
        ("[handlers.runc.rlimits]\nRLIMIT_CORE = [2, 1]", "rlimits.RLIMIT_CORE", "2 and hard 1"),
        ("[handlers.runc.rlimits]\nRLIMIT_CORE = [-2, 1]", "rlimits.RLIMIT_CORE", "-2"),
        ("[handlers.runc.rlimits]\nRLIMIT_CORE = [1]", "rlimits", "length 2"),
        ("[handlers.runc]\npids_limit = -1", "$.handlers[...].pids_limit", ">= 0"),
        ("[blockio_classes]\nslow = [{weight = 5}]", "blockio_classes.slow.weight", "5"),
        ("[blockio_classes]\nslow = [{read_bps = 5}]", "blockio_classes.slow", "devices"),
        (
            "[blockio_classes]\nslow = [{devices = ['/dev/null'], weight = 50}]",
            "blockio_classes.slow.devices",
            "no block device",
        ),
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


HANDLER = """
[handlers.runc]
pod_annotations = ["pod.io/*"]
container_annotations = ["own.io/*"]
snapshot_options = ["nodev"]
unset_seccomp_profile = "runtime/default"
pids_limit = 100
privileged_without_host_devices = true
[handlers.runc.options]
no_new_keyring = true
[handlers.runc.rlimits]
RLIMIT_CORE = [0, -1]
"""


def test_a_handlers_settings_reach_specs_and_its_shim(tmp_path):
    base = tmp_path / "base.json"
    base.write_text('{"hooks": {}}')
    settings = parse(f'{HANDLER}[handlers.other]\nbase_spec = "{base}"')
    sent = config.handlers(settings)["runc"].task_options()
    options = runc_options_pb2.Options.FromString(sent.value)
    assert (options.no_new_keyring, options.binary_name) == (True, "runc")
    specs = handler_settings(settings, {"runc": None, "other": None})
    assert specs["runc"].pod_annotations == ("pod.io/*",)
    assert specs["runc"].container_annotations == ("own.io/*",)
    assert specs["runc"].snapshot_options == ("nodev",)
    assert specs["runc"].unset_seccomp_profile == "runtime/default"
    assert specs["runc"].pids_limit == 100
    assert specs["runc"].privileged_without_host_devices
    assert specs["runc"].rlimits == (Rlimit(type="RLIMIT_CORE", soft=0, hard=RLIM_INFINITY),)
    assert specs["runc"].base_spec is None
    assert specs["other"].base_spec == {"hooks": {}}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("[]", "is not an object"),
        ('{"process": []}', "process is not an object"),
        ('{"linux": {"resources": 1}}', "linux.resources is not an object"),
        ('{"linux": {"devices": [{}]}}', "linux.devices is no list of objects that have a path"),
        ('{"mounts": {}}', "mounts is no list of objects that have a destination"),
        ("x" * (4 << 20) + "x", "larger than"),
    ],
    ids=range(8),
)
def test_a_base_spec_that_is_none(tmp_path, text, says):
    base = tmp_path / "base.json"
    base.write_text(text)
    with pytest.raises(InvalidArgument) as caught:
        parse(f'[handlers.runc]\nbase_spec = "{base}"')
    assert str(caught.value).startswith(f"/etc/x.toml: handlers.runc.base_spec: {base}: ")
    assert says in str(caught.value)


def test_block_io_classes_in_the_terms_of_specs(tmp_path):
    device = tmp_path / "disk"
    try:
        os.mknod(device, 0o600 | stat.S_IFBLK, os.makedev(7, 99))
    except PermissionError:
        pytest.skip("needs root")
    entries = (
        BlockIoEntry(weight=50),
        BlockIoEntry(devices=(str(device),), weight=20, read_bps=1000, write_iops=7),
    )
    disk = {"major": 7, "minor": 99}
    assert block_io("slow", entries) == {
        "weight": 50,
        "weightDevice": [disk | {"weight": 20}],
        "throttleReadBpsDevice": [disk | {"rate": 1000}],
        "throttleWriteIOPSDevice": [disk | {"rate": 7}],
    }


def test_shims_are_kept_warm_for_the_default_handler_unless_said_otherwise():
    settings = parse(
        """
        default_handler = "a"
        [handlers.a]
        [handlers.b]
        [handlers.c]
        warm_shims = 2
        """
    )
    assert config.warm_shims(settings) == {"a": config.WARM_SHIMS, "b": 0, "c": 2}
    assert config.warm_shims(parse("[handlers.runc]\nwarm_shims = 0")) == {"runc": 0}
    assert config.warm_shims(parse("[handlers.runc]\nsandboxer = 'shim'")) == {"runc": 0}
    assert config.pods_per_shim(parse("[handlers.a]\npods_per_shim = 9\n[handlers.runc]")) == {
        "a": 9,
        "runc": 1,
    }
    with pytest.raises(InvalidArgument, match=r"handlers\[\.\.\.\]\.warm_shims"):
        parse("[handlers.runc]\nwarm_shims = 101")


@pytest.mark.parametrize(
    ("text", "is_open"),
    [
        ("", True),
        ("[handlers.runc]\nshim = '/opt/containerd-shim-runc-v2-rs'", True),
        ("[handlers.runc]\nruntime = 'runc'", False),
        ("[handlers.runc]\nshim = 'io.containerd.kata.v2'", False),
        ("[handlers.runc]\nconfig_path = '/x'", False),
        ("[handlers.runc]\noptions = {binary_name = 'crun'}", False),
    ],
)
def test_a_runtime_is_left_open_where_nothing_says_which(text, is_open):
    handler = config.parse(text.encode(), "x").handlers["runc"]
    assert handler.runtime_is_open is is_open


def test_a_handler_without_a_runtime_has_runc():
    assert config.handlers(config.Config())["runc"].runtime == "runc"
