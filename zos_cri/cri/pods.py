"""What a pod has beside its containers: its files, its /dev/shm, its names for the kernel."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from zos_cri.cri import userns
from zos_cri.errors import InvalidArgument
from zos_cri.linux.mount import Mount, mount, unmount, unmount_tree
from zos_cri.oci import fields, resources, security, users
from zos_cri.oci.base import oom_score_adj
from zos_cri.oci.host import HostFacts
from zos_cri.oci.namespaces import pod_plan

if TYPE_CHECKING:
    from zos_cri._pb import cri_pb2 as pb

HOST_FILE_LIMIT: Final = 1 << 20  # bytes read of the host's hosts and resolv.conf
MAX_HOSTNAME: Final = 64  # sethostname(2)
MAX_SEARCHES: Final = 32  # as Kubernetes validates (MaxDNSSearchPaths)
MAX_NAMESERVERS: Final = 32  # glibc reads 3; more than this is no resolv.conf
SHM_OPTIONS: Final = ("nosuid", "nodev", "noexec", "mode=1777", "size=67108864")


def namespace_options(config: pb.PodSandboxConfig) -> pb.NamespaceOption:
    """The pod's namespace options; the defaults are POD for all."""
    return config.linux.security_context.namespace_options


def check(config: pb.PodSandboxConfig, *, systemd: bool) -> None:
    """Refuses what is wrong with a pod by itself, before anything of it is made.

    Args:
        systemd: its cgroups are made by systemd.

    Raises:
        InvalidArgument: the message names the field.
    """
    hostname(config)
    resolv_conf(config.dns_config)
    log_directory(config)
    linux = config.linux
    resources.cgroups_path("linux.cgroup_parent", linux.cgroup_parent, "x", systemd=systemd)
    for field in ("overhead", "resources"):
        given: pb.LinuxContainerResources = getattr(linux, field)
        resources.linux_resources(given, HostFacts(), field=f"linux.{field}")
        oom_score_adj(f"linux.{field}.oom_score_adj", given.oom_score_adj, HostFacts())
    context = linux.security_context
    users.check_ids(context)
    security.check_pods(context)
    options = context.selinux_options
    security.selinux_labels("linux.security_context.selinux_options", options, HostFacts())


def log_directory(config: pb.PodSandboxConfig) -> str:
    """The directory of the containers' logs, "" where they have none.

    Raises:
        InvalidArgument: it is no absolute path, or goes up.
    """
    path = config.log_directory
    if path and fields.absolute_path("log_directory", path) and ".." in path.split("/"):
        raise fields.bad("log_directory", f"{fields.quote(path)} has a '..' in it")
    return path


def hostname(config: pb.PodSandboxConfig) -> str:
    """The pod's host name: the host's own on its network, and where none is given.

    Raises:
        InvalidArgument: it is too long for the kernel, or more than a word.
    """
    name = (
        os.uname().nodename
        if pod_plan(config).host_network
        else config.hostname or os.uname().nodename
    )
    if len(name.encode()) > MAX_HOSTNAME:
        raise InvalidArgument(f'hostname: "{name}" is longer than {MAX_HOSTNAME} bytes')
    # It becomes a line of a file and a variable of every container.
    if not name.isprintable() or name.split() != [name]:
        raise fields.bad("hostname", f"{fields.quote(name)} is not one word")
    return name


def resolv_conf(dns: pb.DNSConfig) -> str:
    """The text of resolv.conf(5) for a DNS configuration.

    Raises:
        InvalidArgument: too many entries, or one that would be more than a word.
    """
    for field, values, most in (
        ("servers", dns.servers, MAX_NAMESERVERS),
        ("searches", dns.searches, MAX_SEARCHES),
        ("options", dns.options, MAX_SEARCHES),
    ):
        if len(values) > most:
            raise InvalidArgument(f"dns_config.{field}: {len(values)} entries, at most {most}")
        for value in values:
            if not value or value.split() != [value]:
                raise InvalidArgument(f'dns_config.{field}: "{value}" is not one word')
    lines = [f"search {' '.join(dns.searches)}"] if dns.searches else []
    lines += [f"nameserver {server}" for server in dns.servers]
    lines += [f"options {' '.join(dns.options)}"] if dns.options else []
    return "".join(f"{line}\n" for line in lines)


class PodFiles:
    """A pod's directory: hosts, hostname, resolv.conf, shm, and the pinned namespaces."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.hosts = directory / "hosts"
        self.hostname = directory / "hostname"
        self.resolv_conf = directory / "resolv.conf"
        self._shm = directory / "shm"

    def shm(self, config: pb.PodSandboxConfig) -> str:
        """What the pod's containers have as /dev/shm."""
        return "/dev/shm" if pod_plan(config).host_ipc else str(self._shm)

    def namespace(self, kind: str) -> str:
        """Where the namespace of this kind is pinned."""
        return str(self.directory / kind)

    def create(self, config: pb.PodSandboxConfig) -> None:
        """Writes the files and mounts /dev/shm. Blocks.

        Raises:
            InvalidArgument: the configuration can't be written down.
            OSError: the kernel refused.
        """
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o711)
        resolver = resolv_conf(config.dns_config)
        if not config.HasField("dns_config") or not resolver:
            resolver = _host_file("/etc/resolv.conf")
        uid, gid = userns.root_of(userns.of_pod(config))
        for path, text in (
            (self.resolv_conf, resolver),
            (self.hosts, _host_file("/etc/hosts")),
            (self.hostname, hostname(config) + "\n"),
        ):
            path.write_text(text)
            path.chmod(0o644)
            if (uid, gid) != userns.HOST_ROOT:
                # No id-mapped mounts: /run is a tmpfs, which has them only since Linux 6.3.
                os.chown(path, uid, gid)
        if not pod_plan(config).host_ipc:
            self._shm.mkdir(exist_ok=True, mode=0o1777)
            options = (*SHM_OPTIONS, f"uid={uid}", f"gid={gid}")
            mount(Mount(type="tmpfs", source="shm", options=options), str(self._shm))

    def remove(self) -> None:
        """Unmounts and removes all of it; nothing to do a second time. Blocks.

        Raises:
            OSError: a mount is busy.
        """
        if not self.directory.exists():
            return
        # A container's mount namespace may keep the pod's shm a moment longer than its processes.
        unmount(str(self._shm), lazy=True)
        try:
            self._remove_files()
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            # Something else is mounted there: only now it pays to read all the host's mounts.
            unmount_tree(str(self.directory), lazy=True)
            self._remove_files()

    def _remove_files(self) -> None:
        for path in sorted(self.directory.iterdir()):
            if path.is_dir():
                path.rmdir()
            else:
                path.unlink()
        self.directory.rmdir()


def _host_file(path: str) -> str:
    try:
        with Path(path).open() as file:
            return file.read(HOST_FILE_LIMIT)
    except FileNotFoundError:
        return ""
