from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zos_cri._pb import cri_pb2
from zos_cri.errors import InvalidArgument
from zos_cri.oci import users
from zos_cri.oci.users import Accounts, User

STRICT = cri_pb2.SupplementalGroupsPolicy.Strict
Context = cri_pb2.LinuxContainerSecurityContext

ACCOUNTS = Accounts(
    passwd=b"""\
# a comment
root:x:0:0:root:/root:/bin/sh
web:x:33:34:web:/var/www:/bin/false
user:x:1000:1000::/home/user:/bin/sh
broken
huge:x:99999999999:0::/:/bin/sh
""",
    group=b"""\
root:x:0:
wheel:x:10:root,user
web:x:34:web
user:x:1000:user
defined:x:50000:user, web
toobig:x:9999999999:user
""",
)


def number(value: int) -> cri_pb2.Int64Value:
    return cri_pb2.Int64Value(value=value)


def resolve(context: Context | None = None, image: str = "", accounts: Accounts = ACCOUNTS) -> User:
    return users.resolve(context or Context(), image, accounts)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ("", User(uid=0, gid=0, groups=(0, 10))),
        ("0", User(uid=0, gid=0, groups=(0, 10))),
        ("web", User(uid=33, gid=34, groups=(34, 50000))),
        ("33", User(uid=33, gid=34, groups=(34, 50000))),
        ("web:wheel", User(uid=33, gid=10, groups=(10, 50000))),
        ("web:7", User(uid=33, gid=7, groups=(7, 50000))),
        ("1002:1003", User(uid=1002, gid=1003, groups=(1003,))),
        ("1002", User(uid=1002, gid=0, groups=(0,))),
        (":7", User(uid=0, gid=7, groups=(7, 10))),
    ],
)
def test_the_images_user(image: str, expected: User) -> None:
    assert resolve(image=image) == expected


def test_the_configs_user_comes_before_the_images() -> None:
    assert resolve(Context(run_as_user=number(1000)), "web").uid == 1000
    assert resolve(Context(run_as_username="user"), "web").uid == 1000
    assert resolve(Context(run_as_user=number(0)), "web:34") == User(uid=0, gid=0, groups=(0, 10))


def test_merge_adds_the_images_groups_and_strict_does_not() -> None:
    context = Context(run_as_user=number(1000), supplemental_groups=[1234, 1234])
    assert resolve(context).groups == (10, 1000, 1234, 50000)
    context.supplemental_groups_policy = STRICT
    assert resolve(context).groups == (1000, 1234)


def test_run_as_group_replaces_the_primary_group() -> None:
    context = Context(
        run_as_user=number(1000), run_as_group=number(5), supplemental_groups_policy=STRICT
    )
    assert resolve(context) == User(uid=1000, gid=5, groups=(5,))


def test_without_account_files_numbers_still_work() -> None:
    assert resolve(image="7:8", accounts=Accounts()) == User(uid=7, gid=8, groups=(8,))
    assert resolve(accounts=Accounts()) == User()


@pytest.mark.parametrize(
    ("context", "image", "message"),
    [
        (
            Context(run_as_username="nobody"),
            "",
            r'^linux\.security_context\.run_as_username: no user "nobody" in the image\'s',
        ),
        (
            Context(run_as_user=number(1), run_as_username="web"),
            "",
            r"run_as_username: is given together with run_as_user$",
        ),
        (Context(run_as_group=number(1)), "", r"run_as_group: is given without"),
        (Context(run_as_user=number(-1)), "", r"run_as_user: -1 is not between"),
        (Context(run_as_user=number(2**31)), "", r"run_as_user: 2147483648 is not between"),
        (
            Context(run_as_user=number(1), run_as_group=number(-1)),
            "",
            r"run_as_group: -1 is not between",
        ),
        (Context(supplemental_groups=[1, -1]), "", r"supplemental_groups\[1\]: -1"),
        (Context(supplemental_groups_policy=7), "", r"supplemental_groups_policy: 7 is no"),  # type: ignore[arg-type]
        (Context(), "ghost", r"^the image's USER: no user \"ghost\""),
        (Context(), "web:ghost", r"^the image's USER: no group \"ghost\""),
        (Context(), "a:b:c", r"^the image's USER: \"a:b:c\" is not user or user:group"),
        (Context(), "99999999999", r"^the image's USER: 99999999999 is not between"),
        # The line is there, but no process could have that id.
        (Context(run_as_username="huge"), "", r"no user \"huge\""),
    ],
)
def test_bad_users(context: Context, image: str, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        resolve(context, image)


def test_no_passwd_at_all_is_said() -> None:
    with pytest.raises(InvalidArgument, match="the image has no /etc/passwd"):
        resolve(Context(run_as_username="web"), accounts=Accounts())


def test_account_files_have_a_bound() -> None:
    endless = b"g:x:1:user\n" * 100_000
    accounts = Accounts(passwd=ACCOUNTS.passwd, group=endless)
    with pytest.raises(InvalidArgument, match=r"/etc/group is longer than 1048576 bytes"):
        resolve(Context(run_as_user=number(1000)), accounts=accounts)
    with pytest.raises(InvalidArgument, match=r"/etc/passwd is longer"):
        resolve(Context(run_as_username="x"), accounts=Accounts(passwd=endless))


def test_a_user_in_too_many_groups() -> None:
    lines = b"".join(b"g:x:%d:u\n" % gid for gid in range(1, users.MAX_GROUPS + 2))
    accounts = Accounts(passwd=b"u:x:1:1::/:\n", group=lines)
    with pytest.raises(InvalidArgument, match="a process has 65536"):
        resolve(Context(run_as_user=number(1)), accounts=accounts)


def test_only_a_newline_ends_a_line() -> None:
    # Split at any of these, the rest would be an account that the file doesn't have.
    passwd = "evil\x0broot2:x:0:0::/:\nok\x85admin:x:0:0::/:\nme\rtoor:x:0:0::/:\n".encode()
    for name in ("root2", "admin", "toor"):
        with pytest.raises(InvalidArgument, match="no user"):
            resolve(Context(run_as_username=name), accounts=Accounts(passwd=passwd))


def test_the_first_of_two_accounts_counts() -> None:
    accounts = Accounts(passwd=b"a:x:1:1::/:\na:x:0:0::/:\n")
    assert resolve(Context(run_as_username="a"), accounts=accounts).uid == 1


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_whatever_the_image_has_the_ids_are_in_range(passwd: bytes, group: bytes) -> None:
    accounts = Accounts(passwd=b"u:x:5:6::/:\n" + passwd, group=group)
    user = resolve(Context(run_as_username="u"), accounts=accounts)
    assert (user.uid, user.gid) == (5, 6)
    assert all(0 <= gid <= users.MAX_ID for gid in user.groups)


def test_the_entry_and_what_is_reported() -> None:
    entry = users.entry(User(uid=1, gid=2, groups=(2, 3)), additional=[44])
    assert entry == {"uid": 1, "gid": 2, "additionalGids": [2, 3, 44]}
    reported = users.reported({"process": {"user": entry}})
    assert reported == cri_pb2.ContainerUser(
        linux=cri_pb2.LinuxContainerUser(uid=1, gid=2, supplemental_groups=[2, 3, 44])
    )
