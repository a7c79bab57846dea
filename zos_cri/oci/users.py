"""Who a container's process is: CRI's fields, the image's USER, and the image's account files.

The account files are the image's, so whoever made the image wrote them: they are read within
bounds (an endless /etc/group has taken a runtime down, CVE-2026-47262), lines that don't parse are
passed over as libc passes them over, and nothing of them but numbers gets into a spec.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import msgspec

from zos_cri._pb import cri_pb2
from zos_cri.oci.fields import bad, quote

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from zos_cri.oci.host import Spec

MAX_ACCOUNT_FILE: Final = 1 << 20
"""Bytes of /etc/passwd or /etc/group: Debian's have 1 KiB, a site's with everyone 100 KiB."""
MAX_ID: Final = 2**31 - 1
"""runc takes no larger uid or gid, and so containerd doesn't either."""
MAX_GROUPS: Final = 65_536
"""NGROUPS_MAX: setgroups(2) takes no more."""

_CONTEXT: Final = "linux.security_context"
_NUMBER: Final = re.compile(r"\+?\d{1,20}", re.ASCII)


class Accounts(msgspec.Struct, frozen=True, kw_only=True):
    """The image's /etc/passwd and /etc/group as they are; None where there is no such file.

    Whoever reads them stops at MAX_ACCOUNT_FILE + 1 bytes, follows no symbolic link out of the
    root filesystem, and opens regular files only.
    """

    passwd: bytes | None = None
    group: bytes | None = None


class User(msgspec.Struct, frozen=True, kw_only=True):
    """What setuid, setgid and setgroups get; the primary group is among `groups`, in order."""

    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = (0,)


class _Account(msgspec.Struct, frozen=True):
    name: str
    uid: int
    gid: int


class _Group(msgspec.Struct, frozen=True):
    name: str
    gid: int
    members: tuple[str, ...]


def resolve(
    context: cri_pb2.LinuxContainerSecurityContext, image_user: str, accounts: Accounts
) -> User:
    """The user of a CRI container.

    `run_as_user` or `run_as_username` comes before the image's USER, which comes before root.
    The primary group is `run_as_group`, else the image's, else what /etc/passwd says, else 0.
    With the policy Merge the groups that /etc/group puts the user into are added to
    `supplemental_groups`; with Strict only those given and the primary one count.

    Raises:
        InvalidArgument: fields that don't go together, ids out of range, a user or group that the
            image doesn't have, or account files beyond all measure.
    """
    check_ids(context)
    by_id, by_name = context.HasField("run_as_user"), bool(context.run_as_username)
    if by_id and by_name:
        raise bad(f"{_CONTEXT}.run_as_username", "is given together with run_as_user")
    if context.HasField("run_as_group") and not (by_id or by_name):
        raise bad(f"{_CONTEXT}.run_as_group", "is given without run_as_user or run_as_username")
    if by_name:
        field, name, group = f"{_CONTEXT}.run_as_username", context.run_as_username, ""
    elif by_id:
        field, name, group = f"{_CONTEXT}.run_as_user", str(context.run_as_user.value), ""
    else:
        field = "the image's USER"
        name, _, group = image_user.partition(":")
        if ":" in group:
            raise bad(field, f"{quote(image_user)} is not user or user:group")
    account = _account(field, name or "0", accounts)
    gid = account.gid
    if context.HasField("run_as_group"):
        gid = context.run_as_group.value
    elif group:
        gid = _gid(field, group, accounts)
    groups = set(context.supplemental_groups) | {gid}
    if context.supplemental_groups_policy == cri_pb2.SupplementalGroupsPolicy.Merge:
        groups |= _memberships(account.name, accounts)
    if len(groups) > MAX_GROUPS:
        what = f"with the image's these are {len(groups)} groups, and a process has {MAX_GROUPS}"
        raise bad(f"{_CONTEXT}.supplemental_groups", what)
    return User(uid=account.uid, gid=gid, groups=tuple(sorted(groups)))


def reported(spec: Spec) -> cri_pb2.ContainerUser:
    """ContainerStatus.user: who a container's first process is, by its spec."""
    user = spec["process"]["user"]
    linux = cri_pb2.LinuxContainerUser(
        uid=user["uid"],
        gid=user["gid"],
        supplemental_groups=user.get("additionalGids", ()),
    )
    return cri_pb2.ContainerUser(linux=linux)


def entry(user: User, additional: Iterable[int] = ()) -> dict[str, object]:
    """OCI's process.user."""
    groups = sorted({*user.groups, *additional})
    return {"uid": user.uid, "gid": user.gid, "additionalGids": groups}


def check_ids(
    context: cri_pb2.LinuxContainerSecurityContext | cri_pb2.LinuxSandboxSecurityContext,
) -> None:
    """Refuses ids that no process could have, of a container or a pod.

    Raises:
        InvalidArgument: the message names the field.
    """
    for name in ("run_as_user", "run_as_group"):
        if context.HasField(name):
            _in_range(f"{_CONTEXT}.{name}", getattr(context, name).value)
    for index, gid in enumerate(context.supplemental_groups):
        _in_range(f"{_CONTEXT}.supplemental_groups[{index}]", gid)
    policy = context.supplemental_groups_policy
    if policy not in cri_pb2.SupplementalGroupsPolicy.values():
        raise bad(f"{_CONTEXT}.supplemental_groups_policy", f"{policy} is no policy")


def _in_range(field: str, number: int) -> int:
    if not 0 <= number <= MAX_ID:
        raise bad(field, f"{number} is not between 0 and {MAX_ID}")
    return number


def _account(field: str, name: str, accounts: Accounts) -> _Account:
    """The account of a name or number; a number needs none, a name does."""
    users = _users(field, accounts)
    if _NUMBER.fullmatch(name):
        uid = _in_range(field, int(name))
        return next((user for user in users if user.uid == uid), _Account("", uid, 0))
    for user in users:
        if user.name == name:
            return user
    if accounts.passwd is None:
        raise bad(field, f"no user {quote(name)}: the image has no /etc/passwd")
    raise bad(field, f"no user {quote(name)} in the image's /etc/passwd")


def _gid(field: str, name: str, accounts: Accounts) -> int:
    if _NUMBER.fullmatch(name):
        return _in_range(field, int(name))
    for group in _groups(accounts):
        if group.name == name:
            return group.gid
    raise bad(field, f"no group {quote(name)} in the image's /etc/group")


def _memberships(name: str, accounts: Accounts) -> set[int]:
    if not name:
        return set()
    # A group of the user's own name is the primary one of most systems, listed or not.
    return {
        group.gid for group in _groups(accounts) if name in group.members and group.name != name
    }


def _users(field: str, accounts: Accounts) -> Iterator[_Account]:
    for fields in _lines(field, "/etc/passwd", accounts.passwd):
        if len(fields) >= 4 and (uid := _id(fields[2])) is not None:
            # A primary group that can't be one must not become 0 without a word.
            gid = _id(fields[3])
            if gid is not None:
                yield _Account(fields[0], uid, gid)


def _groups(accounts: Accounts) -> Iterator[_Group]:
    for fields in _lines("the image", "/etc/group", accounts.group):
        if len(fields) >= 4 and (gid := _id(fields[2])) is not None:
            members = tuple(member.strip() for member in fields[3].split(","))
            yield _Group(fields[0], gid, members)


def _id(text: str) -> int | None:
    """A number of an account file, None for what no process could have."""
    if not _NUMBER.fullmatch(text) or int(text) > MAX_ID:
        return None
    return int(text)


def _lines(field: str, path: str, data: bytes | None) -> Iterator[list[str]]:
    if data is None:
        return
    if len(data) > MAX_ACCOUNT_FILE:
        raise bad(field, f"the image's {path} is longer than {MAX_ACCOUNT_FILE} bytes")
    # Only "\n" ends a line, as for libc: splitlines() would take "\r" for an end as well.
    for raw in data.split(b"\n"):
        line = raw.decode("utf-8", "surrogateescape").strip()
        if line and not line.startswith("#"):
            yield line.split(":")
