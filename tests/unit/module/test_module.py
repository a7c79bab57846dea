from __future__ import annotations

import asyncio
import signal

import msgspec
import pytest

from tests.fakes.shim import until
from zos_cri.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from zos_cri.linux.mount import Mount
from zos_cri.linux.moves import Moves
from zos_cri.module.execs import Execs
from zos_cri.module.model import Container, MountInfo, Network, Usage
from zos_cri.module.module import LOG_CHUNK, ContainerModule, parse_signal
from zos_cri.store.lifecycle import ContainerState

BROKEN = Unavailable("not now")
GIVEN = Container(
    name="web", flist="/root", network=Network("/proc/self/ns/net"), entrypoint="/bin/sh -c 'a b'"
)


class FakeRootfs:
    """Notes what is lent."""

    def __init__(self):
        self.lent = {}
        self.failures = {}

    async def prepare(self, flist, container_id):
        if "prepare" in self.failures:
            raise self.failures["prepare"]
        self.lent[container_id] = flist
        return (Mount(type="overlay", source="overlay"),)

    async def release(self, container_id):
        if "release" in self.failures:
            raise self.failures["release"]
        self.lent.pop(container_id, None)


@pytest.fixture
def rootfs():
    return FakeRootfs()


@pytest.fixture
def module(bench, rootfs, tmp_path):
    def spec(*, id, container, cgroup):  # noqa: A002
        if container.working_dir == "/bad":
            raise InvalidArgument("working_dir: bad")
        return {"process": {"args": container.argv()}, "linux": {"cgroupsPath": cgroup}}

    return ContainerModule(
        containers=bench.containers,
        execs=Execs(
            containers=bench.containers,
            directory=tmp_path / "exec",
            metrics=bench.metrics,
            moves=Moves(None),
            drain_timeout=0.2,
        ),
        rootfs=rootfs,
        spec=spec,
        exec_process=lambda spec, argv: {"args": list(argv)},
        usage=lambda cgroup: Usage(timestamp=1, cpu=2, memory=len(cgroup), pids=3),
        handler="runc",
        logs=tmp_path / "logs",
    )


def given(**fields):
    return msgspec.structs.replace(GIVEN, **fields)


async def collect(stream):
    return b"".join([data async for data in stream])


# ---- run


async def test_run_inspect_delete(module, bench, rootfs, tmp_path):
    id_ = await module.run("tenant", given(tags={"a": "b"}, env={"A": "b"}))
    seen = module.inspect("tenant", "web")
    assert seen == module.inspect("tenant", id_[:8])
    assert seen.container == given(id=id_, tags={"a": "b"}, env={"A": "b"})
    assert (seen.ns, seen.state, seen.pid > 0) == ("tenant", "running", True)
    log = tmp_path / "logs" / "tenant" / "web.log"
    assert seen.log_path == str(log)
    assert log.stat().st_mode & 0o777 == 0o640
    created = bench.tasks.created[id_]
    assert created["stdout"] == created["stderr"] == f"file://{log}"
    assert bench.shims.calls == [("start", id_)]  # a group of its own
    assert module.list_ns() == ["tenant"]
    await module.delete("tenant", "web")
    assert rootfs.lent == bench.tasks.tasks == bench.shims.shims == {}
    assert list(module.list("tenant")) == []
    assert module.list_ns() == []
    assert log.exists()
    with pytest.raises(NotFound, match='ns "tenant" has no container "web"'):
        await module.delete("tenant", "web")


async def test_an_interactive_container_has_a_terminal_and_a_log_of_its_own(
    module, bench, tmp_path
):
    log = tmp_path / "logs" / "ns" / "web.log"
    log.parent.mkdir(parents=True)
    log.write_text("an earlier one's")
    id_ = await module.run("ns", given(interactive=True))
    created = bench.tasks.created[id_]
    assert (created["terminal"], created["stdout"], created["stderr"]) == (True, str(log), "")
    assert log.read_text() == ""


@pytest.mark.parametrize(
    "case",
    [
        ({"name": "a/b"}, InvalidArgument, "name: "),
        ({"name": ""}, InvalidArgument, "name: "),
        ({"name": ".."}, InvalidArgument, "name: "),
        ({"name": "x" * 64}, InvalidArgument, "name: "),
        ({"id": "x"}, InvalidArgument, "id: "),
        ({"flist": ""}, InvalidArgument, "flist: "),
        ({"network": Network("")}, InvalidArgument, "network.namespace: no"),
        ({"network": Network("absent")}, NotFound, "network.namespace: /run/netns/absent: No such"),
        ({"network": Network("a/b")}, InvalidArgument, "network.namespace: .* not an absolute"),
        ({"network": Network("/etc/passwd")}, InvalidArgument, "is not a network namespace"),
        ({"network": Network("/proc/self/ns/mnt")}, InvalidArgument, "is not a network namespace"),
        ({"working_dir": "x"}, InvalidArgument, "working_dir: "),
        ({"working_dir": "/bad"}, InvalidArgument, "working_dir: bad"),
        ({"cpu": -1.0}, InvalidArgument, "cpu: "),
        ({"cpu": float("nan")}, InvalidArgument, "cpu: "),
        ({"memory": -1}, InvalidArgument, "memory: "),
        ({"shutdown_timeout": -1.0}, InvalidArgument, "shutdown_timeout: "),
        ({"shutdown_timeout": float("inf")}, InvalidArgument, "shutdown_timeout: "),
        ({"env": {"": "x"}}, InvalidArgument, "env: "),
        ({"env": {"A=B": "x"}}, InvalidArgument, "env: "),
        ({"env": {"A": "x\0"}}, InvalidArgument, "env: "),
        ({"env": {"A": "x" * 200_000}}, InvalidArgument, "env: .* longer"),
        ({"entrypoint": ""}, InvalidArgument, "entrypoint: no command"),
        ({"entrypoint": "a 'b"}, InvalidArgument, "entrypoint: no closing quotation"),
        ({"mounts": (MountInfo(source="x", target="/x"),)}, InvalidArgument, r"mounts\[0\].source"),
        (
            {"mounts": (MountInfo(source="/absent/x", target="/x"),)},
            NotFound,
            r"mounts\[0\].source: /absent/x: No such file",
        ),
    ],
)
async def test_what_is_wrong_is_named_and_nothing_is_left(module, bench, rootfs, case):
    fields, error, says = case
    with pytest.raises(error, match=says):
        await module.run("ns", given(**fields))
    assert rootfs.lent == bench.tasks.tasks == {}
    assert len(bench.containers.table) == 0


@pytest.mark.parametrize("ns", ["", "..", "a/b", "x" * 64])
async def test_a_namespace_is_a_name(module, ns):
    with pytest.raises(InvalidArgument, match="ns: "):
        await module.run(ns, GIVEN)


@pytest.mark.parametrize("stage", ["rootfs", "shim", "create", "start"])
async def test_a_run_that_fails_leaves_nothing(module, bench, rootfs, stage):
    if stage == "rootfs":
        rootfs.failures["prepare"] = BROKEN
    elif stage == "shim":
        bench.shims.fail("start", BROKEN)
    else:
        bench.tasks.fail(stage, BROKEN)
    with pytest.raises(Unavailable, match="not now"):
        await module.run("ns", GIVEN)
    assert rootfs.lent == bench.tasks.tasks == bench.shims.shims == {}
    assert len(bench.containers.table) == 0
    assert not any(bench.shims.bundles.glob("*"))
    rootfs.failures.clear()
    await module.run("ns", GIVEN)


async def test_one_name_is_one_container_of_its_namespace(module, bench, rootfs):
    results = await asyncio.gather(
        *(module.run("ns", GIVEN) for _ in range(3)), return_exceptions=True
    )
    assert sorted(type(r).__name__ for r in results) == ["AlreadyExists", "AlreadyExists", "str"]
    with pytest.raises(AlreadyExists, match='ns "ns" has a container named "web" already'):
        await module.run("ns", GIVEN)
    await module.run("other", GIVEN)
    assert len(rootfs.lent) == 2


async def test_a_run_goes_on_without_its_caller(module, bench):
    gate = bench.tasks.hold("create")
    run = asyncio.create_task(module.run("ns", GIVEN))
    await until(lambda: bench.tasks.calls)
    run.cancel()
    gate.set()
    await until(lambda: module.inspect("ns", "web").state == "running")


async def test_what_an_interrupted_run_left_is_removed(module, bench, rootfs):
    id_ = await module.run("ns", GIVEN)
    await bench.db.containers.update(
        id_, lambda s: msgspec.structs.replace(s, state=ContainerState.CREATED)
    )
    await module.recover()
    assert len(bench.containers.table) == 0
    assert rootfs.lent == {}


async def test_containers_of_others_are_not_the_modules(module, bench):
    await bench.create(ns="ns", name="theirs")
    assert module.list_ns() == []
    with pytest.raises(NotFound):
        module.inspect("ns", "theirs")
    await module.run("ns", GIVEN)
    with pytest.raises(NotFound):
        module.inspect("elsewhere", "web")


# ---- exec, signal, stats


async def test_exec(module):
    await module.run("ns", GIVEN)
    result = await module.exec("ns", "web", ["/bin/sh", "-c", "echo $0; exit 2"], timeout=10)
    assert (result.stdout, result.exit_code) == (b"/bin/sh\n", 2)
    for argv in ([], [""]):
        with pytest.raises(InvalidArgument, match="argv"):
            await module.exec("ns", "web", argv)


async def test_signal_and_stats_are_for_what_runs(module, bench):
    id_ = await module.run("ns", GIVEN)
    assert (await module.stats("ns", "web")).memory == len(f"/zos/ns/{id_}")
    with pytest.raises(InvalidArgument, match='signal: there is no "FOO"'):
        await module.signal("ns", "web", "FOO")
    await module.signal("ns", "web", "sigkill")
    await until(lambda: module.inspect("ns", "web").state == "exited")
    for call in (module.stats("ns", "web"), module.signal("ns", "web", "HUP")):
        with pytest.raises(FailedPrecondition, match="is exited, not running"):
            await call


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("TERM", 15),
        ("sigterm", 15),
        ("15", 15),
        ("RTMIN+3", signal.SIGRTMIN + 3),
        ("SIGRTMAX", signal.SIGRTMAX),
        ("64", 64),
    ],
)
def test_signals(text, number):
    assert parse_signal(text) == number


@pytest.mark.parametrize("text", ["", "0", "65", "-1", "SIG", "RTMIN+99", "TERM\n1", "²"])
def test_what_is_no_signal(text):
    with pytest.raises(InvalidArgument):
        parse_signal(text)


# ---- logs


@pytest.fixture
async def log(module, tmp_path):
    await module.run("ns", GIVEN)
    return tmp_path / "logs" / "ns" / "web.log"


@pytest.mark.parametrize("end", ["", "\n"])
@pytest.mark.parametrize("lines", [0, 1, 2, 3, 4, 100])
async def test_tail(module, log, end, lines):
    log.write_text("one\n\nthree" + end)
    expected = ("one\n\nthree" + end).splitlines(keepends=True)[-lines:] if lines else []
    assert await collect(module.logs("ns", "web", tail_lines=lines)) == "".join(expected).encode()


async def test_tail_of_a_long_log(module, log):
    line = "x" * 99 + "\n"
    log.write_text(line * 5000 + "y" * (LOG_CHUNK * 3) + "\n" + line)
    assert await collect(module.logs("ns", "web", tail_lines=1)) == line.encode()
    assert len(await collect(module.logs("ns", "web", tail_lines=3))) == LOG_CHUNK * 3 + 201
    assert len(await collect(module.logs("ns", "web", tail_lines=4000))) == (
        LOG_CHUNK * 3 + 1 + 3999 * 100
    )
    assert len(await collect(module.logs("ns", "web"))) == log.stat().st_size
    with pytest.raises(InvalidArgument, match="tail_lines"):
        await collect(module.logs("ns", "web", tail_lines=10**9))


async def test_follow_ends_with_the_container_and_misses_nothing(module, bench, log):
    log.write_text("first\n")
    seen = []

    async def follow():
        async for data in module.logs("ns", "web", follow=True):
            seen.append(data)  # noqa: PERF401 looked at meanwhile

    following = asyncio.create_task(follow())
    await until(lambda: seen == [b"first\n"])
    with log.open("a") as file:
        file.write("second\n")
    await until(lambda: b"".join(seen) == b"first\nsecond\n")
    with log.open("a") as file:
        file.write("last\n")
    bench.tasks.end(module.inspect("ns", "web").container.id, 0)
    async with asyncio.timeout(5):
        await following
    assert b"".join(seen) == b"first\nsecond\nlast\n"


async def test_follow_ends_when_the_container_is_deleted(module, log, bench):
    following = asyncio.create_task(collect(module.logs("ns", "web", follow=True)))
    await asyncio.sleep(0.05)
    await module.delete("ns", "web")
    async with asyncio.timeout(5):
        assert await following == b""
    assert not bench.containers.exits._watches


async def test_logs_of_what_is_not_there(module, log):
    with pytest.raises(NotFound):
        await collect(module.logs("ns", "absent"))
    log.unlink()
    assert await collect(module.logs("ns", "web")) == b""
