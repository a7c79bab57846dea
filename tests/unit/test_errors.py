from __future__ import annotations

import errno

import grpc
import pytest

from zos_cri import errors
from zos_cri.network.cni import Network
from zos_cri.shim.status import ShimFailed


def tree(cls=errors.Error):
    yield cls
    for each in cls.__subclasses__():
        yield from tree(each)


@pytest.mark.parametrize("cls", errors.Error.__subclasses__())
def test_every_error_has_a_code_that_grpc_knows(cls):
    name = errors.grpc_code(cls("x"))
    assert name in grpc.StatusCode.__members__
    if cls.__module__ == "zos_cri.errors":
        assert name.replace("_", "").lower() == cls.__name__.lower()


def test_packages_derive_theirs_and_keep_the_code():
    assert Network.__module__  # its errors are loaded
    derived = [cls for cls in tree() if cls.__module__ != "zos_cri.errors"]
    assert derived
    for cls in derived:
        if cls is not ShimFailed:
            assert errors.grpc_code(cls.__new__(cls)) != "UNKNOWN", cls


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (TimeoutError(), "DEADLINE_EXCEEDED"),
        (ValueError("x"), "UNKNOWN"),
        (errors.Error("x"), "UNKNOWN"),
        (KeyError("x"), "UNKNOWN"),
        (OSError(errno.ENOENT, "x"), "UNKNOWN"),
        (OSError(errno.ENOSPC, "No space left on device"), "RESOURCE_EXHAUSTED"),
        (OSError(errno.EMFILE, "Too many open files"), "RESOURCE_EXHAUSTED"),
    ],
)
def test_codes_of_other_errors(error, code):
    assert errors.grpc_code(error) == code


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (errors.NotFound("no such\n\tthing "), "no such thing"),
        (errors.NotFound(), "NotFound"),
        (ValueError(""), "ValueError"),
        (OSError(2, "No such file", "/x"), "[Errno 2] No such file: '/x'"),
    ],
)
def test_a_message_is_one_line(error, line):
    assert errors.one_line(error) == line
