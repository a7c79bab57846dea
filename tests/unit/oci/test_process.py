from __future__ import annotations

import pytest

from zos_cri._pb import cri_pb2
from zos_cri.errors import InvalidArgument
from zos_cri.oci import process
from zos_cri.oci.process import ImageConfig

IMAGE = ImageConfig(entrypoint=("/entry", "-e"), cmd=("cmd", "-c"))


@pytest.mark.parametrize(
    ("command", "args", "expected"),
    [
        ([], [], ["/entry", "-e", "cmd", "-c"]),
        ([], ["a"], ["/entry", "-e", "a"]),
        (["x"], [], ["x"]),
        (["x"], ["a"], ["x", "a"]),
    ],
)
def test_arguments(command: list[str], args: list[str], expected: list[str]) -> None:
    config = cri_pb2.ContainerConfig(command=command, args=args)
    assert process.arguments(config, IMAGE) == expected


def test_an_image_that_took_its_entrypoint_back() -> None:
    image = ImageConfig(entrypoint=("",), cmd=("cmd",))
    assert process.arguments(cri_pb2.ContainerConfig(), image) == ["cmd"]
    assert process.arguments(cri_pb2.ContainerConfig(args=["a"]), image) == ["a"]


@pytest.mark.parametrize(
    "config",
    [
        cri_pb2.ContainerConfig(),
        cri_pb2.ContainerConfig(command=[""]),
        cri_pb2.ContainerConfig(command=["a", "b\0c"]),
    ],
)
def test_nothing_to_run(config: cri_pb2.ContainerConfig) -> None:
    with pytest.raises(InvalidArgument, match=r"^command"):
        process.arguments(config, ImageConfig())


def test_the_environments_layers() -> None:
    config = cri_pb2.ContainerConfig(
        tty=True,
        envs=[
            cri_pb2.KeyValue(key="FROM", value=b"config"),
            cri_pb2.KeyValue(key="LINES", value=b"a\nb=c"),
            cri_pb2.KeyValue(key="EMPTY"),
        ],
    )
    image = ImageConfig(env=("PATH=/img", "FROM=image", "HOSTNAME=mine", "=odd", "BAD=\0"))
    assert process.of_container(config, image, hostname="pod") == [
        "PATH=/img",
        "TERM=xterm",
        "HOSTNAME=mine",
        "FROM=config",
        "LINES=a\nb=c",
        "EMPTY=",
    ]


def test_a_path_and_a_host_name_without_any_other() -> None:
    result = process.of_container(cri_pb2.ContainerConfig(), ImageConfig(), hostname="pod")
    assert result == [process.DEFAULT_PATH, "HOSTNAME=pod"]


def test_a_name_alone_takes_it_away_but_for_path() -> None:
    layers = (["A=1", "PATH=/x"], ["A", "PATH"])
    assert process.environment(*layers) == [process.DEFAULT_PATH]


@pytest.mark.parametrize(
    ("key", "value", "field"),
    [
        ("", b"x", "key"),
        ("A=B", b"x", "key"),
        ("A\0", b"x", "key"),
        ("A", b"x\0y", "value"),
        ("A", b"\xff", "value"),
    ],
)
def test_bad_variables(key: str, value: bytes, field: str) -> None:
    config = cri_pb2.ContainerConfig(
        envs=[cri_pb2.KeyValue(key="OK"), cri_pb2.KeyValue(key=key, value=value)]
    )
    with pytest.raises(InvalidArgument, match=rf"^envs\[1\]\.{field}: "):
        process.of_container(config, ImageConfig(), hostname="h")


@pytest.mark.parametrize(
    ("given", "image", "expected"),
    [("", "", "/"), ("", "/srv", "/srv"), ("", "srv/x", "/srv/x"), ("/a/b/", "/srv", "/a/b")],
)
def test_working_directories(given: str, image: str, expected: str) -> None:
    config = cri_pb2.ContainerConfig(working_dir=given)
    assert process.working_dir(config, ImageConfig(working_dir=image)) == expected


def test_a_relative_working_directory() -> None:
    with pytest.raises(InvalidArgument, match=r'^working_dir: "a/b" is not an absolute path$'):
        process.working_dir(cri_pb2.ContainerConfig(working_dir="a/b"), ImageConfig())
    with pytest.raises(InvalidArgument, match=r"^the image's working_dir: has a NUL"):
        process.working_dir(cri_pb2.ContainerConfig(), ImageConfig(working_dir="/\0"))


SPEC = {
    "process": {
        "terminal": False,
        "args": ["init"],
        "env": ["PATH=/p", "A=1"],
        "cwd": "/srv",
        "user": {"uid": 5},
        "capabilities": {"bounding": ["CAP_CHOWN"]},
        "noNewPrivileges": True,
    }
}


def test_an_exec_has_all_of_its_container() -> None:
    made = process.exec_process(
        SPEC, ["sh"], tty=True, env=["A=2", "B=3"], cwd="/tmp", size=(80, 24)
    )
    assert made == {
        "terminal": True,
        "args": ["sh"],
        "env": ["PATH=/p", "A=2", "TERM=xterm", "B=3"],
        "cwd": "/tmp",
        "user": {"uid": 5},
        "capabilities": {"bounding": ["CAP_CHOWN"]},
        "noNewPrivileges": True,
        "consoleSize": {"width": 80, "height": 24},
    }
    made["capabilities"]["bounding"].append("CAP_SYS_ADMIN")
    assert SPEC["process"]["capabilities"] == {"bounding": ["CAP_CHOWN"]}
    assert SPEC["process"]["args"] == ["init"]


@pytest.mark.parametrize("argv", [[], [""], ["a\0"]])
def test_an_exec_of_nothing(argv: list[str]) -> None:
    with pytest.raises(InvalidArgument, match=r"^cmd"):
        process.exec_process(SPEC, argv, tty=False)


def test_an_exec_without_a_terminal_has_no_size() -> None:
    spec = {"process": {**SPEC["process"], "consoleSize": {"width": 1, "height": 1}}}
    made = process.exec_process(spec, ["sh"], tty=False, size=(80, 24))
    assert "consoleSize" not in made
    assert made["env"] == ["PATH=/p", "A=1"]
