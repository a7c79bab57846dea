from __future__ import annotations

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import pytest

from zos_cri import __version__, errors
from zos_cri._pb import container_pb2 as pb
from zos_cri._pb import container_pb2_grpc
from zos_cri.cli.main import EXIT_CODES, main, parse, parser
from zos_cri.cli.module import pairs, size

RUN = ["run", "--name", "web", "--flist", "/root", "--net", "web"]


class FakeModule(container_pb2_grpc.ContainerModuleServicer):
    """Answers every call from `answers`, notes the requests."""

    def __init__(self):
        self.requests = []
        self.answers = {}
        self.error = None

    def _answer(self, name, request, context):
        self.requests.append(request)
        if self.error is not None:
            context.abort(*self.error)
        return self.answers[name]

    def Run(self, request, context):  # noqa: N802
        return self._answer("Run", request, context)

    def Inspect(self, request, context):  # noqa: N802
        return self._answer("Inspect", request, context)

    def Delete(self, request, context):  # noqa: N802
        return self._answer("Delete", request, context)

    def List(self, request, context):  # noqa: N802
        return self._answer("List", request, context)[request.ns]

    def ListNamespaces(self, request, context):  # noqa: N802
        return self._answer("ListNamespaces", request, context)

    def Exec(self, request, context):  # noqa: N802
        return self._answer("Exec", request, context)

    def Signal(self, request, context):  # noqa: N802
        return self._answer("Signal", request, context)

    def Stats(self, request, context):  # noqa: N802
        return self._answer("Stats", request, context)

    def Logs(self, request, context):  # noqa: N802
        yield from self._answer("Logs", request, context)


@pytest.fixture
def socket(tmp_path):
    return str(tmp_path / "sock")


@pytest.fixture
def server(socket):
    with served(socket) as module:
        yield module


@contextmanager
def served(socket):
    module = FakeModule()
    server = grpc.server(ThreadPoolExecutor(2))
    container_pb2_grpc.add_ContainerModuleServicer_to_server(module, server)
    server.add_insecure_port(f"unix:{socket}")
    server.start()
    try:
        yield module
    finally:
        server.stop(0).wait()


@pytest.fixture
def call(socket, server):
    def call(command, *arguments):
        return main([command, "--socket", socket, *arguments])

    return call


def inspection(name="web", **status):
    return pb.InspectResponse(
        ns="default",
        container=pb.Container(id="c" * 64, name=name),
        status=pb.Status(**{"state": pb.RUNNING, "created_at": 10**18, **status}),
    )


# ---- the parser


def commands():
    """Every command with its words, those with further ones below them included."""
    return sorted(_commands((), parser()))


def _commands(words, root):
    for action in root._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, sub in action.choices.items():
                yield (*words, name)
                yield from _commands((*words, name), sub)


def epilog(words):
    found = parser()
    for word in words:
        [subparsers] = [a for a in found._actions if isinstance(a, argparse._SubParsersAction)]
        found = subparsers.choices[word]
    return found.epilog or ""


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_commands_help_says_what_it_does_by_an_example(words, capsys):
    with pytest.raises(SystemExit) as caught:
        main([*words, "--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert f"example: zos-cri {' '.join(words)}" in " ".join(out.split())


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_example_can_be_given(words):
    assert parse(epilog(words).removeprefix("example: zos-cri ").split()).run


def test_help_lists_the_exit_codes(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    out = " ".join(capsys.readouterr().out.split())
    for cls, code in EXIT_CODES.items():
        assert f"{code} {cls.__name__}" in out
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"zos-cri {__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["run", "--name", "x", "--", "sh"],
        [*RUN],
        [*RUN, "--memory", "much", "--", "x"],
        [*RUN, "--cpu", "many", "--", "x"],
        ["logs", "web", "--tail", "-1"],
        ["logs", "web", "--tail", "9" * 30],
        ["exec", "web"],
        ["exec", "web", "--"],
        ["inspect", "--", "web"],
        ["exec", "web", "--timeout", "-1", "--", "x"],
    ],
)
def test_a_wrong_command_line_ends_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: zos-cri" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "value"),
    [("0", 0), ("1024", 1024), ("1k", 1024), ("64M", 64 << 20), ("1G", 1 << 30), ("2t", 2 << 40)],
)
def test_sizes(text, value):
    assert size(text) == value


@pytest.mark.parametrize("text", ["", "M", "-1", "1.5G", "1X", "1GG", "1 G", "²", "16777216T"])
def test_what_is_no_size(text):
    with pytest.raises(argparse.ArgumentTypeError, match="is no size"):
        size(text)


def test_pairs():
    assert pairs("--env", ["A=b", "C=", "D=e=f"]) == {"A": "b", "C": "", "D": "e=f"}
    for wrong in ("A", "=b", ""):
        with pytest.raises(errors.InvalidArgument, match=f'--env: "{wrong}" is not NAME=VALUE'):
            pairs("--env", [wrong])


# ---- commands


def test_run_says_all_that_was_given(server, call, capsys):
    server.answers["Run"] = pb.RunResponse(id="c1")
    arguments = ["--env", "A=b", "--tag", "t=u", "-v", "/a:/b:ro,nosuid", "-v", "/c:/d"]
    arguments += ["--tmpfs", "/tmp:size=1m", "--cpu", "0.5", "--memory", "64M", "-w", "/w", "-i"]
    arguments += ["--elevated", "--shutdown-timeout", "3", "--ns", "tenant"]
    assert call(*RUN, *arguments, "--", "sh", "-c", "echo 'a b'") == 0
    assert capsys.readouterr().out == "c1\n"
    [request] = server.requests
    assert request.ns == "tenant"
    container = request.container
    assert (container.name, container.flist, container.network.namespace) == ("web", "/root", "web")
    assert container.entrypoint == """sh -c 'echo '"'"'a b'"'"''"""
    assert (dict(container.env), dict(container.tags)) == ({"A": "b"}, {"t": "u"})
    assert [(m.type, m.source, m.target, list(m.options)) for m in container.mounts] == [
        ("", "/a", "/b", ["ro", "nosuid"]),
        ("", "/c", "/d", []),
        ("tmpfs", "tmpfs", "/tmp", ["size=1m"]),
    ]
    assert (container.cpu, container.memory, container.working_dir) == (0.5, 64 << 20, "/w")
    assert container.interactive
    assert container.elevated
    assert container.shutdown_timeout == 3
    assert call(*RUN, "-o", "json", "--", "true") == 0
    assert json.loads(capsys.readouterr().out) == {"id": "c1"}


@pytest.mark.parametrize("mount", ["/a", "/a:/b:ro:x", ""])
def test_a_mount_that_is_none(call, capsys, mount):
    assert call(*RUN, "-v", mount, "--", "x") == 3
    assert f'--mount: "{mount}" is not SOURCE:TARGET[:OPTIONS]' in capsys.readouterr().err


def test_inspect_delete_and_signal(server, call, capsys):
    server.answers = {
        "Inspect": inspection(),
        "Delete": pb.DeleteResponse(),
        "Signal": pb.SignalResponse(),
    }
    assert call("inspect", "web") == 0
    assert json.loads(capsys.readouterr().out)["container"]["name"] == "web"
    assert call("delete", "web", "--ns", "n") == 0
    assert call("signal", "web", "HUP") == 0
    assert (server.requests[1].ns, server.requests[1].id) == ("n", "web")
    assert server.requests[2].signal == "HUP"
    assert capsys.readouterr().out == ""


def test_ps(server, call, capsys):
    ended = inspection("db", state=pb.EXITED, exit_code=3, reason="Error")
    server.answers = {
        "ListNamespaces": pb.ListNamespacesResponse(namespaces=["a", "b"]),
        "List": {
            "default": pb.ListResponse(containers=[inspection()]),
            "a": pb.ListResponse(containers=[inspection()]),
            "b": pb.ListResponse(containers=[ended]),
        },
    }
    assert call("ps", "--all-ns") == 0
    header, first, second = capsys.readouterr().out.splitlines()
    assert header.split() == ["NS", "NAME", "ID", "STATE", "CREATED"]
    assert first.split()[:4] == ["default", "web", "c" * 13, "running"]
    assert "exited (3, Error)" in second
    assert call("ps", "-o", "json") == 0
    assert [each["container"]["name"] for each in json.loads(capsys.readouterr().out)] == ["web"]


def test_logs(server, call, capfdbinary):
    server.answers["Logs"] = [pb.LogsResponse(data=b"a\n"), pb.LogsResponse(data=b"\xff")]
    assert call("logs", "-f", "--tail", "7", "web") == 0
    assert capfdbinary.readouterr().out == b"a\n\xff"
    assert server.requests[0].follow
    assert server.requests[0].tail_lines == 7
    assert call("logs", "web") == 0
    assert not server.requests[1].HasField("tail_lines")


def test_exec_ends_with_the_commands_code(server, call, capfdbinary):
    server.answers["Exec"] = pb.ExecResponse(stdout=b"out", stderr=b"err", exit_code=9)
    assert call("exec", "--timeout", "2", "web", "--", "ls", "-l", "--", "x") == 9
    captured = capfdbinary.readouterr()
    assert (captured.out, captured.err) == (b"out", b"err")
    assert list(server.requests[0].argv) == ["ls", "-l", "--", "x"]
    assert server.requests[0].timeout == 2


def test_stats(server, call, capsys):
    server.answers["Stats"] = pb.StatsResponse(timestamp=1, cpu=2 * 10**9, memory=3 << 20, pids=4)
    assert call("stats", "web") == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["2.000", "3.0", "4"]
    assert call("stats", "-o", "json", "web") == 0
    assert json.loads(capsys.readouterr().out)["pids"] == 4


# ---- errors


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, 3),
        (grpc.StatusCode.NOT_FOUND, 4),
        (grpc.StatusCode.ALREADY_EXISTS, 5),
        (grpc.StatusCode.FAILED_PRECONDITION, 6),
        (grpc.StatusCode.DEADLINE_EXCEEDED, 7),
        (grpc.StatusCode.UNAVAILABLE, 8),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, 1),
        (grpc.StatusCode.INTERNAL, 1),
        (grpc.StatusCode.UNKNOWN, 1),
    ],
)
def test_an_error_is_one_line_and_its_exit_code(server, call, capsys, code, exit_code):
    server.error = (code, "what\nfailed")
    for command in ("delete", "logs"):  # one answers once, the other streams
        assert call(command, "web") == exit_code
        captured = capsys.readouterr()
        assert (captured.out, captured.err) == ("", "zos-cri: what failed\n")


def test_no_server_is_said_so(socket, capsys):
    assert main(["ps", "--socket", socket]) == 8
    err = capsys.readouterr().err
    assert f"no server answers at {socket}" in err
    assert err.count("\n") == 1
