"""Codes to errors and back."""

from __future__ import annotations

import pytest

from zos_cri import errors
from zos_cri._pb import status_pb2
from zos_cri.shim.status import ShimFailed, from_error, to_error


def status(code: int, message: str = "it says so") -> status_pb2.Status:
    return status_pb2.Status(code=code, message=message)


def test_ok_is_no_error() -> None:
    assert to_error(status(0), "a call") is None


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (1, errors.Cancelled),
        (2, ShimFailed),
        (3, errors.InvalidArgument),
        (4, errors.DeadlineExceeded),
        (5, errors.NotFound),
        (6, errors.AlreadyExists),
        (7, errors.PermissionDenied),
        (8, errors.ResourceExhausted),
        (9, errors.FailedPrecondition),
        (10, errors.Unavailable),
        (11, errors.InvalidArgument),
        (12, errors.Unimplemented),
        (13, errors.Internal),
        (14, errors.Unavailable),
        (15, errors.DataLoss),
        (16, errors.PermissionDenied),
        (99, ShimFailed),
    ],
)
def test_codes(code: int, kind: type[errors.Error]) -> None:
    error = to_error(status(code), "a call")
    assert type(error) is kind
    assert str(error) == "a call: it says so"


def test_messages_are_one_line() -> None:
    assert str(to_error(status(5, "a\n b\n"), "a call")) == "a call: a b"
    assert str(to_error(status(5, ""), "a call")) == "a call: status 5 without a message"


def test_what_a_runtime_says_has_no_code_of_ours() -> None:
    assert errors.grpc_code(ShimFailed("runc said")) == "UNKNOWN"


@pytest.mark.parametrize("code", [1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 14, 15])
def test_there_and_back(code: int) -> None:
    error = to_error(status(code), "a call")
    assert error is not None
    assert from_error(error).code == code


def test_any_other_error_is_unknown() -> None:
    assert from_error(KeyError("x")) == status_pb2.Status(code=2, message="'x'")
