"""Here are the calls that no other test of this package makes, and what errors look like."""

from __future__ import annotations

import errno
import os
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from zos_cri.linux import syscalls

if TYPE_CHECKING:
    from collections.abc import Callable

root = pytest.mark.root


def in_thread(body: Callable[[], object]) -> object:
    """The result of `body()` in a thread that ends afterwards."""
    outcome: list[object] = []

    def run() -> None:
        try:
            outcome.append(body())
        except OSError as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(10)
    return outcome[0]


def test_errors_are_of_the_class_that_fits_and_name_the_path(tmp_path):
    gone = str(tmp_path / "gone")
    with pytest.raises(FileNotFoundError) as caught:
        syscalls.openat2(syscalls.AT_FDCWD, gone, flags=os.O_RDONLY)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOENT, gone)
    for call in (
        lambda: syscalls.open_tree(syscalls.AT_FDCWD, gone, 0),
        lambda: syscalls.umount2(gone),
        lambda: syscalls.mount("none", gone, "tmpfs", 0),
        lambda: syscalls.mount_setattr(syscalls.AT_FDCWD, gone, 0, attr_set=1),
    ):
        with pytest.raises(OSError, match="gone") as caught_each:
            call()
        assert caught_each.value.errno in (errno.ENOENT, errno.EPERM)


def test_bad_arguments_reach_the_kernel_as_they_are():
    for call in (
        lambda: syscalls.unshare(0x1),
        lambda: syscalls.setns(0, syscalls.CLONE_NEWNET),
        lambda: syscalls.fsconfig(0, 99),
        lambda: syscalls.fsmount(0),
        lambda: syscalls.syncfs(-1),
        lambda: syscalls.move_mount(-1, "/"),
    ):
        with pytest.raises(OSError, match=r"Errno"):
            call()


def test_descriptors_are_close_on_exec(tmp_path):
    fd = syscalls.openat2(syscalls.AT_FDCWD, str(tmp_path), flags=os.O_PATH)
    tree = syscalls.open_tree(fd, "", syscalls.AT_EMPTY_PATH)
    assert not os.get_inheritable(fd)
    assert not os.get_inheritable(tree)
    os.close(tree)
    os.close(fd)


def test_tee_leaves_what_it_copies():
    (one_out, one_in), (two_out, two_in) = os.pipe(), os.pipe()
    os.write(one_in, b"twice")
    assert syscalls.tee(one_out, two_in, 100) == 5
    assert os.read(one_out, 10) == os.read(two_out, 10) == b"twice"
    for fd in (one_out, one_in, two_out, two_in):
        os.close(fd)


def test_syncfs(tmp_path):
    fd = os.open(tmp_path, os.O_RDONLY)
    syscalls.syncfs(fd)
    os.close(fd)


@root
def test_namespaces_and_the_hostname_are_the_threads_own():
    before = socket.gethostname()

    def body():
        syscalls.unshare(syscalls.CLONE_NEWUTS)
        syscalls.sethostname("another")
        return socket.gethostname()

    assert in_thread(body) == "another"
    assert socket.gethostname() == before


@root
def test_entering_a_namespace():
    def body():
        syscalls.unshare(syscalls.CLONE_NEWUTS)
        changed = os.readlink("/proc/thread-self/ns/uts")
        fd = os.open("/proc/self/ns/uts", os.O_RDONLY)
        syscalls.setns(fd, syscalls.CLONE_NEWUTS)
        os.close(fd)
        return (
            changed != os.readlink("/proc/thread-self/ns/uts") == os.readlink("/proc/self/ns/uts")
        )

    assert in_thread(body) is True


@root
def test_the_effective_user_is_the_threads_own():
    def body():
        syscalls.set_thread_euid(65534)
        return os.geteuid()

    assert in_thread(body) == 65534
    assert os.geteuid() == 0
