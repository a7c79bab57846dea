"""Dialects: what is written, what is read, what is remembered."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.fakes.shim import options
from zos_cri import errors
from zos_cri._pb import bootstrap_pb2
from zos_cri.shim.bootstrap import (
    Dialect,
    DialectCache,
    Encoding,
    Identity,
    Parameters,
    Result,
    parse,
    stdin,
)

if TYPE_CHECKING:
    from pathlib import Path

PARAMETERS = Parameters(
    id="g",
    namespace="zos",
    events_address="/e",
    grpc_address="/a",
    publish_binary="/p",
    socket_dir="/s",
    options=options("o"),
    debug=True,
)


def test_stdin_of_current_shims() -> None:
    message = bootstrap_pb2.BootstrapParams.FromString(stdin(Dialect.PARAMS, PARAMETERS))
    expected = bootstrap_pb2.BootstrapParams(
        instance_id="g",
        namespace="zos",
        log_level=bootstrap_pb2.LOG_LEVEL_DEBUG,
        containerd_grpc_address="/a",
        containerd_ttrpc_address="/e",
        containerd_binary="/p",
        socket_dir="/s",
        extensions=[bootstrap_pb2.Extension(value=options("o"))],
    )
    assert message == expected


def test_stdin_of_older_shims() -> None:
    assert stdin(Dialect.ANY, PARAMETERS) == options("o").SerializeToString()
    assert stdin(Dialect.NONE, PARAMETERS) == b""


ADDRESS = "unix:///run/s/a"


@pytest.mark.parametrize(
    ("stdout", "result"),
    [
        # as containerd-shim-runc-v2 2.4.2 and 1.6.20 really answered
        (
            b"\x08\x03\x12\x0funix:///run/s/a\x1a\x05ttrpc",
            Result(ADDRESS, "ttrpc", 3, Encoding.PROTOBUF),
        ),
        (b"unix:///run/s/a", Result(ADDRESS, "ttrpc", 2, Encoding.TEXT)),
        (b"unix:///run/s/a\n", Result(ADDRESS, "ttrpc", 2, Encoding.TEXT)),
        (
            b'{"version":3,"address":"unix:///run/s/a","protocol":"ttrpc"}\n',
            Result(ADDRESS, "ttrpc", 3, Encoding.JSON),
        ),
        (b'{"address":"unix:///run/s/a"}', Result(ADDRESS, "ttrpc", 2, Encoding.JSON)),
        (b'{"version":2,"address":"a","protocol":"grpc"}', Result("a", "grpc", 2, Encoding.JSON)),
    ],
)
def test_answers(stdout: bytes, result: Result) -> None:
    assert parse(stdout) == result


@pytest.mark.parametrize(
    "stdout",
    [
        b"",
        b" \n",
        b"two words",
        b"{}",
        b'{"version":"x","address":"a"}',
        b"\xff\xfe",
        b"[1]",
        b"{x",
    ],
)
def test_no_answers(stdout: bytes) -> None:
    if stdout == b"[1]":  # one word, so an abstract socket's name for all we know
        assert parse(stdout).encoding is Encoding.TEXT
        return
    with pytest.raises(errors.Internal, match="no address"):
        parse(stdout)


@pytest.fixture
def binary(tmp_path: Path) -> Path:
    path = tmp_path / "shim"
    path.write_text("")
    return path


def test_all_dialects_are_tried_in_order_until_one_is_known(tmp_path: Path, binary: Path) -> None:
    cache = DialectCache(tmp_path / "state" / "dialects.json")
    identity = Identity.of(str(binary))
    assert list(cache.to_try(identity)) == [Dialect.PARAMS, Dialect.ANY, Dialect.NONE]
    cache.learn(identity, Dialect.ANY)
    assert list(cache.to_try(identity)) == [Dialect.ANY]
    again = DialectCache(tmp_path / "state" / "dialects.json")
    assert list(again.to_try(identity)) == [Dialect.ANY]
    again.forget(identity)
    again.forget(identity)
    assert DialectCache(tmp_path / "state" / "dialects.json").get(identity) is None


def test_an_upgraded_binary_is_another(tmp_path: Path, binary: Path) -> None:
    cache = DialectCache(None)
    cache.learn(Identity.of(str(binary)), Dialect.ANY)
    os.utime(binary, ns=(1, 1))
    assert cache.get(Identity.of(str(binary))) is None


@pytest.mark.parametrize("content", ["{", '[{"dialect":"Klingon"}]', "[1]"])
def test_a_damaged_file_is_passed_over(tmp_path: Path, binary: Path, content: str) -> None:
    (tmp_path / "dialects.json").write_text(content)
    cache = DialectCache(tmp_path / "dialects.json")
    identity = Identity.of(str(binary))
    assert cache.get(identity) is None
    cache.learn(identity, Dialect.PARAMS)
    assert DialectCache(tmp_path / "dialects.json").get(identity) is Dialect.PARAMS


def test_a_file_that_cannot_be_written_is_no_error(tmp_path: Path, binary: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = DialectCache(tmp_path / "file" / "dialects.json")
    cache.learn(Identity.of(str(binary)), Dialect.ANY)
    assert cache.get(Identity.of(str(binary))) is Dialect.ANY
