"""Specs of ours under a real runc: what they promise is asked of the kernel from inside."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.integration.oci.bundles import RUNC, TIMEOUT, Bundle, Paths, bits, cri, module, status
from zos_cri._pb import cri_pb2
from zos_cri.linux.namespaces import IdMap, pin_user, unpin
from zos_cri.oci import base, container, mounts, process, sandbox, users
from zos_cri.oci.host import CAPABILITIES, RLIM_INFINITY, HostFacts
from zos_cri.oci.module import ModuleMount, module_spec

pytestmark = [pytest.mark.root, pytest.mark.runtime]


def test_a_module_container_is_confined(bundle: Bundle, paths: Paths, host: HostFacts) -> None:
    from zos_cri.oci.capabilities import DEFAULT

    script = """
        cat /proc/self/status
        echo Hostname: $(hostname)
        echo Net: $(readlink /proc/self/ns/net)
        echo Pid1: $(cat /proc/1/comm)
        (echo 1 > /proc/sys/kernel/domainname) 2>/dev/null || echo Sysctl: refused
        echo Masked: $(head -c 9 /proc/keys)
    """
    output = bundle.run(module_spec(module(bundle, paths, script, hostname="box"), host))
    seen = status(output)
    expected = bits(DEFAULT & host.capabilities)
    assert seen["Seccomp"] == "2"
    assert seen["NoNewPrivs"] == "1"
    assert (seen["CapBnd"], seen["CapEff"], seen["CapPrm"]) == (expected,) * 3
    assert (seen["CapInh"], seen["CapAmb"]) == (bits(set()),) * 2
    assert seen["Hostname"] == "box"
    assert seen["Net"] == f"net:[{os.stat(paths.network).st_ino}]"
    assert seen["Pid1"] == "sh"
    assert seen.get("Sysctl") == "refused", output
    assert "Masked" not in seen


def test_an_elevated_container_is_not(bundle: Bundle, paths: Paths, host: HostFacts) -> None:
    device = base.DeviceNode(path="/dev/zos-null", type="c", major=1, minor=3)
    script = """
        cat /proc/self/status
        echo x > /proc/sys/kernel/domainname && echo Sysctl: written
        mount -t tmpfs none /tmp && echo Mount: made
        echo x > /dev/zos-null && echo Device: there
    """
    spec = module_spec(module(bundle, paths, script, elevated=True), host, devices=(device,))
    seen = status(bundle.run(spec))
    assert (seen["Seccomp"], seen["NoNewPrivs"]) == ("0", "0")
    assert seen["CapEff"] == bits(host.capabilities)
    assert (seen["Sysctl"], seen["Mount"], seen["Device"]) == ("written", "made", "there")


def test_module_mounts_and_limits(
    bundle: Bundle, paths: Paths, host: HostFacts, tmp_path: Path
) -> None:
    (tmp_path / "volume" / "deep").mkdir(parents=True)
    (tmp_path / "volume" / "file").write_text("from the host")
    given = (
        ModuleMount(source="none", target="/data/ram", type="tmpfs", options=("size=64k",)),
        ModuleMount(source=str(tmp_path / "volume"), target="/data", options=("ro",)),
    )
    (tmp_path / "volume" / "ram").mkdir()
    script = """
        echo File: $(cat /data/file)
        touch /data/new 2>/dev/null || echo Data: read only
        touch /data/ram/new && echo Ram: writable
        ulimit -n
    """
    limits = (base.Rlimit(type="RLIMIT_NOFILE", soft=64, hard=128),)
    made = module(bundle, paths, script, mounts=given, rlimits=limits, cpu=0.5, memory=64 << 20)
    output = bundle.run(module_spec(made, host))
    seen = status(output)
    assert (seen["File"], seen["Data"], seen["Ram"]) == ("from the host", "read only", "writable")
    assert output.split()[-1] == "64"


def test_limits_above_our_own_are_taken_down(bundle: Bundle, paths: Paths, host: HostFacts) -> None:
    import resource

    own = {"RLIMIT_NOFILE": resource.getrlimit(resource.RLIMIT_NOFILE)[1]}
    from msgspec.structs import replace

    strict = replace(host, rlimits_raisable=False, rlimits=own)
    limit = base.Rlimit(type="RLIMIT_NOFILE", soft=RLIM_INFINITY, hard=RLIM_INFINITY)
    made = module(bundle, paths, "ulimit -n", rlimits=(limit,), oom_score_adj=-999)
    assert bundle.run(module_spec(made, strict)).strip() == str(own["RLIMIT_NOFILE"])


def test_cri_users_and_groups(bundle: Bundle, paths: Paths, host: HostFacts) -> None:
    accounts = users.Accounts(
        passwd=b"root:x:0:0::/:/bin/sh\nweb:x:33:34::/:/bin/sh\n",
        group=b"root:x:0:\nweb:x:34:\nstaff:x:50:web,other\n",
    )
    context = cri_pb2.LinuxContainerSecurityContext(
        run_as_username="web", supplemental_groups=[1234], no_new_privs=True
    )
    spec = cri(bundle, paths, host, "cat /proc/self/status", context=context, accounts=accounts)
    seen = status(bundle.run(spec))
    assert seen["Uid"].split() == ["33"] * 4
    assert seen["Gid"].split() == ["34"] * 4
    assert seen["Groups"].split() == ["34", "50", "1234"]
    assert seen["NoNewPrivs"] == "1"
    # Not root and without ambient capabilities: it may get them, and has none.
    assert seen["CapEff"] == bits(set())


def test_cri_capabilities_are_those_asked_for(
    bundle: Bundle, paths: Paths, host: HostFacts
) -> None:
    context = cri_pb2.LinuxContainerSecurityContext(
        run_as_user=cri_pb2.Int64Value(value=1000),
        capabilities=cri_pb2.Capability(
            drop_capabilities=["ALL"],
            add_capabilities=["chown"],
            add_ambient_capabilities=["NET_BIND_SERVICE"],
        ),
    )
    seen = status(bundle.run(cri(bundle, paths, host, "cat /proc/self/status", context=context)))
    ambient = bits({"CAP_NET_BIND_SERVICE"})
    assert seen["CapBnd"] == bits({"CAP_CHOWN", "CAP_NET_BIND_SERVICE"})
    assert (seen["CapAmb"], seen["CapEff"], seen["CapInh"]) == (ambient,) * 3


def test_a_privileged_cri_container(bundle: Bundle, paths: Paths, host: HostFacts) -> None:
    context = cri_pb2.LinuxContainerSecurityContext(privileged=True)
    script = "cat /proc/self/status; mount | grep -E ' /sys '"
    output = bundle.run(cri(bundle, paths, host, script, context=context))
    assert status(output)["CapEff"] == bits(host.capabilities)
    assert "(rw," in output.splitlines()[-1]


def test_cri_paths_are_masked_and_readonly(bundle: Bundle, paths: Paths, host: HostFacts) -> None:
    (bundle.path / "rootfs" / "bin" / "ls").unlink()  # A mask follows the link.
    shutil.copy(bundle.path / "rootfs" / "bin" / "busybox", bundle.path / "rootfs" / "bin" / "ls")
    context = cri_pb2.LinuxContainerSecurityContext(
        masked_paths=["/bin/ls"], readonly_paths=["/tmp"], readonly_rootfs=True
    )
    script = """
        /bin/ls 2>/dev/null || echo Masked: yes
        touch /tmp/x 2>/dev/null || echo Tmp: read only
        touch /x 2>/dev/null || echo Root: read only
    """
    seen = status(bundle.run(cri(bundle, paths, host, script, context=context)))
    assert seen == {"Masked": "yes", "Tmp": "read only", "Root": "read only"}


def test_cri_mounts_deeper_ones_later_with_their_options(
    bundle: Bundle, paths: Paths, host: HostFacts, tmp_path: Path
) -> None:
    volume, inner = tmp_path / "volume", tmp_path / "inner"
    for directory in (volume / "in", inner):
        directory.mkdir(parents=True)
    (inner / "file").touch()
    given = [
        (
            cri_pb2.Mount(
                container_path="/data/in", host_path=str(inner), mount_options=["noexec"]
            ),
            mounts.MountFacts(source=str(inner)),
        ),
        (
            cri_pb2.Mount(container_path="/data", host_path=str(volume), readonly=True),
            mounts.MountFacts(source=str(volume)),
        ),
    ]
    script = "grep ' /data' /proc/self/mountinfo; ls /data/in"
    lines = bundle.run(cri(bundle, paths, host, script, given=given)).splitlines()
    options = {line.split()[4]: line.split()[5].split(",") for line in lines[:2]}
    assert "ro" in options["/data"]
    assert "noexec" in options["/data/in"]
    assert lines[2] == "file"


def test_recursively_read_only(
    bundle: Bundle, paths: Paths, host: HostFacts, tmp_path: Path
) -> None:
    volume = tmp_path / "volume"
    (volume / "sub").mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", str(volume / "sub")], check=True)
    try:
        mount = cri_pb2.Mount(
            container_path="/data",
            host_path=str(volume),
            readonly=True,
            recursive_read_only=True,
        )
        given = [(mount, mounts.MountFacts(source=str(volume)))]
        script = "touch /data/sub/x 2>/dev/null || echo Sub: read only"
        handler = container.HandlerSettings(recursive_read_only=True)
        spec = cri(bundle, paths, host, script, given=given, handler=handler)
        assert status(bundle.run(spec)) == {"Sub": "read only"}
    finally:
        subprocess.run(["umount", str(volume / "sub")], check=True)


@pytest.mark.go
@pytest.mark.parametrize("network", [cri_pb2.NamespaceMode.POD, cri_pb2.NamespaceMode.NODE])
async def test_a_user_namespace_of_the_pods(
    bundle: Bundle, host: HostFacts, tmp_path: Path, network: Any
) -> None:
    kinds = ("user", "net", "ipc", "uts")
    files = {kind: str(tmp_path / f"own-{kind}") for kind in kinds}
    ids = [IdMap(0, 100_000, 65_536)]
    mapping = [cri_pb2.IDMapping(host_id=100_000, length=65_536)]
    options = cri_pb2.NamespaceOption(
        pid=cri_pb2.NamespaceMode.CONTAINER,
        network=network,
        userns_options=cri_pb2.UserNamespace(uids=mapping, gids=mapping),
    )
    volume = tmp_path / "volume"
    volume.mkdir()
    config = cri_pb2.ContainerConfig(
        command=["/bin/sh", "-c", "cat /proc/self/uid_map /proc/self/status; touch /data/x"],
        mounts=[
            cri_pb2.Mount(
                container_path="/data",
                host_path=str(volume),
                uidMappings=mapping,
                gidMappings=mapping,
            )
        ],
        linux=cri_pb2.LinuxContainerConfig(
            security_context=cri_pb2.LinuxContainerSecurityContext(
                namespace_options=options,
                capabilities=cri_pb2.Capability(add_capabilities=["ALL"]),
                seccomp=cri_pb2.SecurityProfile(),
            )
        ),
    )
    pod = cri_pb2.PodSandboxConfig(
        linux=cri_pb2.LinuxPodSandboxConfig(
            cgroup_parent="/",
            security_context=cri_pb2.LinuxSandboxSecurityContext(namespace_options=options),
        )
    )
    spec = container.container_spec(
        container.ContainerInputs(
            id=bundle.id,
            sandbox_id="pod",
            image_name="busybox",
            hostname="pod-1",
            namespaces=Paths(
                network=files["net"], ipc=files["ipc"], uts=files["uts"], user=files["user"]
            ),
            mount_facts=(mounts.MountFacts(source=str(volume)),),
        ),
        sandbox=pod,
        config=config,
        image=process.ImageConfig(),
        handler=container.HandlerSettings(id_mapped_mounts=True),
        host=host,
    )
    hand_over(bundle.path / "rootfs", 100_000)
    await pin_user(files, uid_mappings=ids, gid_mappings=ids, timeout=TIMEOUT)
    try:
        output = bundle.run(spec, runc=str(RUNC))
    finally:
        for file in files.values():
            await unpin(file)
    assert output.split()[:3] == ["0", "100000", "65536"]
    assert "warning" not in output
    # All that the kernel knows, also those that the host hasn't to give: they count inside only.
    everything = bits(set(CAPABILITIES[: host.last_capability + 1]))
    assert status(output)["CapEff"] == everything
    # Root inside is root on the volume, since that is id-mapped, and nobody anywhere else.
    assert (volume / "x").stat().st_uid == 0


def hand_over(root: Path, owner: int) -> None:
    """What an id-mapped root filesystem would look like."""
    (root / "data").mkdir()
    for path in (root, *root.rglob("*")):
        os.lchown(path, owner, owner)


def test_the_environment_and_the_working_directory(
    bundle: Bundle, paths: Paths, host: HostFacts
) -> None:
    spec = cri(bundle, paths, host, "env; pwd")
    lines = bundle.run(spec).splitlines()
    assert "HOSTNAME=pod-1" in lines
    assert process.DEFAULT_PATH in lines
    assert lines[-1] == "/"


def test_the_pods_init_holds_its_pid_namespace(
    bundle: Bundle, paths: Paths, host: HostFacts
) -> None:
    binary = shutil.which("catatonit")
    assert binary, "catatonit is not installed"
    shutil.rmtree(bundle.path / "rootfs")
    (bundle.path / "rootfs").mkdir()
    shutil.copy(binary, bundle.path / "rootfs" / "catatonit")
    pod = cri_pb2.PodSandboxConfig(linux=cri_pb2.LinuxPodSandboxConfig(cgroup_parent="/"))
    spec = sandbox.sandbox_init_spec(
        sandbox_id=bundle.id,
        sandbox=pod,
        paths=paths,
        handler=container.HandlerSettings(),
        host=host,
    )
    (bundle.path / "config.json").write_text(json.dumps(spec))
    runc = ["runc", "--root", str(bundle.state)]
    detached = [*runc, "run", "-d", "-b", str(bundle.path), bundle.id]
    null = subprocess.DEVNULL
    subprocess.run(detached, check=True, timeout=TIMEOUT, stdin=null, stdout=null, stderr=null)
    try:
        state = subprocess.run(
            [*runc, "state", bundle.id], check=True, capture_output=True, timeout=TIMEOUT
        )
        pid = json.loads(state.stdout)["pid"]
        inside = status(Path(f"/proc/{pid}/status").read_text())
        assert inside["NSpid"].split()[-1] == "1"
        assert (inside["CapBnd"], inside["Seccomp"], inside["NoNewPrivs"]) == (
            bits(set()),
            "2",
            "1",
        )
        assert os.stat(f"/proc/{pid}/ns/net").st_ino == os.stat(paths.network).st_ino
        assert os.stat(f"/proc/{pid}/ns/ipc").st_ino == os.stat(paths.ipc).st_ino
    finally:
        subprocess.run([*runc, "delete", "-f", bundle.id], check=True, timeout=TIMEOUT)
    # Nothing was made in the directory that pods share but the targets of its mounts.
    left = {path.name for path in (bundle.path / "rootfs").iterdir()}
    assert left == {"catatonit", "dev", "proc"}
    assert not any((bundle.path / "rootfs" / "dev").iterdir())


def test_an_exec_is_confined_as_its_container(
    bundle: Bundle, paths: Paths, host: HostFacts
) -> None:
    spec = module_spec(module(bundle, paths, "sleep 60"), host)
    (bundle.path / "config.json").write_text(json.dumps(spec))
    runc = ["runc", "--root", str(bundle.state)]
    null = subprocess.DEVNULL
    detached = [*runc, "run", "-d", "-b", str(bundle.path), bundle.id]
    subprocess.run(detached, check=True, timeout=TIMEOUT, stdin=null, stdout=null, stderr=null)
    try:
        argv = ["/bin/sh", "-c", "cat /proc/self/status; echo Extra: $EXTRA"]
        described = process.exec_process(spec, argv, tty=False, env=["EXTRA=1"])
        file = bundle.path / "process.json"
        file.write_text(json.dumps(described))
        done = subprocess.run(
            [*runc, "exec", "-p", str(file), bundle.id],
            check=True,
            capture_output=True,
            timeout=TIMEOUT,
        )
        seen = status(done.stdout.decode())
        assert (seen["Seccomp"], seen["NoNewPrivs"], seen["Extra"]) == ("2", "1", "1")
    finally:
        subprocess.run([*runc, "delete", "-f", bundle.id], check=True, timeout=TIMEOUT)
