from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.fakes.pods import pod_config
from zos_cri._pb import cri_pb2 as pb
from zos_cri.cri.pods import PodFiles, hostname, resolv_conf
from zos_cri.errors import InvalidArgument
from zos_cri.linux.mount import Mount, mount, mounts_below


def test_a_resolver_configuration():
    dns = pb.DNSConfig(
        servers=["10.0.0.1", "fd00::1"], searches=["a.b", "c"], options=["ndots:5", "edns0"]
    )
    assert resolv_conf(dns) == (
        "search a.b c\nnameserver 10.0.0.1\nnameserver fd00::1\noptions ndots:5 edns0\n"
    )
    assert resolv_conf(pb.DNSConfig()) == ""


@pytest.mark.parametrize("field", ["servers", "searches", "options"])
@pytest.mark.parametrize("value", ["", "a b", "a\nnameserver 6.6.6.6", "a\t"])
def test_an_entry_that_would_be_more_than_a_word(field, value):
    with pytest.raises(InvalidArgument, match=f"(?s)dns_config.{field}: .* is not one word"):
        resolv_conf(pb.DNSConfig(**{field: [value]}))


@pytest.mark.parametrize("field", ["servers", "searches", "options"])
def test_too_many_entries(field):
    with pytest.raises(InvalidArgument, match="33 entries, at most 32"):
        resolv_conf(pb.DNSConfig(**{field: ["x"] * 33}))


def test_host_names():
    assert hostname(pod_config(hostname="web")) == "web"
    assert hostname(pod_config()) == os.uname().nodename
    assert hostname(pod_config(hostname="web", host=True)) == os.uname().nodename


def test_a_pod_on_the_hosts_namespaces_has_files_and_the_hosts_shm(tmp_path):
    files = PodFiles(tmp_path / "pod")
    config = pod_config(host=True)
    files.create(config)
    assert files.shm(config) == "/dev/shm"
    assert files.hosts.read_text() == Path("/etc/hosts").read_text()
    assert files.hostname.read_text() == os.uname().nodename + "\n"
    assert files.hosts.stat().st_mode & 0o777 == 0o644
    files.remove()
    files.remove()
    assert not files.directory.exists()


@pytest.mark.root
def test_a_pods_own_shm_is_unmounted_with_it(tmp_path):
    files = PodFiles(tmp_path / "pod")
    config = pod_config(dns_config=pb.DNSConfig(servers=["10.0.0.1"]))
    files.create(config)
    try:
        [mount] = mounts_below(str(tmp_path))
        assert mount.target == files.shm(config) == str(tmp_path / "pod" / "shm")
        assert os.stat(mount.target).st_mode & 0o7777 == 0o1777
        assert files.resolv_conf.read_text() == "nameserver 10.0.0.1\n"
    finally:
        files.remove()
    assert mounts_below(str(tmp_path)) == []


def test_without_a_resolver_configuration_it_is_the_hosts(tmp_path):
    files = PodFiles(tmp_path / "pod")
    files.create(pod_config(host=True, dns_config=pb.DNSConfig()))
    host = Path("/etc/resolv.conf")
    assert files.resolv_conf.read_text() == (host.read_text() if host.exists() else "")
    files.remove()


@pytest.mark.root
def test_the_files_belong_to_the_pods_root(tmp_path):
    files = PodFiles(tmp_path / "pod")
    ids = [pb.IDMapping(host_id=70_000, length=65_536)]
    config = pod_config(host=True)
    options = config.linux.security_context.namespace_options
    options.userns_options.CopyFrom(pb.UserNamespace(uids=ids, gids=ids))
    options.pid = options.ipc = pb.NamespaceMode.POD
    files.create(config)
    for path in (files.hosts, files.hostname, files.resolv_conf, files.directory / "shm"):
        assert (path.stat().st_uid, path.stat().st_gid) == (70_000, 70_000)
    files.remove()


@pytest.mark.root
def test_a_mount_that_nobody_expects_goes_too(tmp_path):
    files = PodFiles(tmp_path / "pod")
    files.create(pb.PodSandboxConfig())
    mount(Mount(type="tmpfs", source="tmpfs"), str(files._shm))
    mount(Mount(type="bind", source=str(files.hosts), options=("bind",)), str(files.hostname))
    files.remove()
    assert not files.directory.exists()
    assert mounts_below(str(tmp_path)) == []
