"""AppArmor: which profiles are loaded, and the default one of containers.

Rules: apparmor.d(5), apparmor_parser(8). The kernel takes profiles compiled only, by
apparmor_parser, which is there wherever a distribution has AppArmor on.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from zos_cri.linux import blocking, spawn
from zos_cri.log import get_log

_log = get_log(__name__)

DEFAULT_NAME: Final = "zos-cri-default"
PROFILES: Final = Path("/sys/kernel/security/apparmor/profiles")
_LOAD_TIMEOUT: Final = 30.0  # compiling takes 0.1 s; a host that boots is slow
_MAX_PROFILES: Final = 4 << 20  # bytes; a desktop's 150 profiles have 6 KiB
# Where Debian has it; not every caller's PATH has the sbin directories.
_PATH: Final = "/usr/sbin:/sbin:/usr/bin:/bin"

# What a container may do is settled by capabilities, seccomp and masked paths. This holds also when
# one of these is loosened: no mounts, nothing of the kernel's written, no other profile's processes
# traced or killed. Mounting is denied to all but privileged containers, which have no profile.
DEFAULT_PROFILE: Final = f"""\
profile {DEFAULT_NAME} flags=(attach_disconnected,mediate_deleted) {{
  file,
  capability,
  network,
  unix,
  umount,

  signal receive peer=unconfined,
  signal receive peer=runc,
  signal receive peer=crun,
  signal (send, receive) peer={DEFAULT_NAME},
  ptrace (trace, read, tracedby, readby) peer={DEFAULT_NAME},

  deny mount,
  deny /proc/sys/** wklx,
  deny /proc/{{kcore,kmem,mem,sysrq-trigger}} rwklx,
  deny /proc/{{acpi,bus,fs,irq,scsi,tty}}/** wklx,
  deny /sys/{{block,bus,class,dev,devices,hypervisor,kernel,module,power}}/** wklx,
  deny /sys/fs/{{bpf,btrfs,ext4,f2fs,fuse,pstore,resctrl,selinux,smackfs,xfs}}/** wklx,
  deny /sys/firmware/** rwklx,
  deny /sys/kernel/security/** rwklx,
}}
"""


def loaded(listing: Path = PROFILES) -> frozenset[str]:
    """The names of the profiles that the kernel has; none where it has no AppArmor."""
    try:
        with listing.open(errors="surrogateescape") as file:
            lines = file.read(_MAX_PROFILES).splitlines()
    except OSError:
        return frozenset()
    return frozenset(line.rpartition(" (")[0] for line in lines)  # `name (enforce)`


async def load_default(listing: Path = PROFILES, path: str = _PATH) -> str:
    """Loads the default profile where the kernel doesn't have it yet; its name.

    Empty where it can't be loaded, and then containers run without one: the log has the reason.

    Args:
        listing: the kernel's list of profiles.
        path: where apparmor_parser is looked for.
    """
    if DEFAULT_NAME in await blocking.call(loaded, listing):
        return DEFAULT_NAME
    parser = shutil.which("apparmor_parser", path=path)
    if parser is None:
        _log.warning("no default AppArmor profile: there is no apparmor_parser")
        return ""
    # Without the cache, where the same name may have another text from before an upgrade.
    done = await spawn.run(
        [parser, "--add", "--skip-cache"], stdin=DEFAULT_PROFILE.encode(), timeout=_LOAD_TIMEOUT
    )
    # Another server may have loaded it at the same moment.
    if done.returncode != 0 and DEFAULT_NAME not in await blocking.call(loaded, listing):
        _log.warning("no default AppArmor profile: it can't be loaded", error=done.failure())
        return ""
    return DEFAULT_NAME
