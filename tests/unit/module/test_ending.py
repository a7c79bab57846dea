"""Which of a stop's signals are sent without the runtime."""

from __future__ import annotations

import signal

import pytest

from tests.fakes.containers import ID
from zos_cri.module import ending
from zos_cri.shim.handler import Handler


class Init:
    """The container's first process, for whom signals are sent by pid."""

    def __init__(self, bench):
        self.bench = bench
        self.sent = []
        self.known = True
        self.frozen = False
        bench.containers._signal_init = self

    def __call__(self, pid, number, name):
        assert (pid, name) == (self.bench.containers.get(ID).status.pid, ID)
        if not self.known:
            return False
        self.sent.append(int(number))
        if not self.frozen and number not in self.bench.tasks.ignored:
            self.bench.tasks.end(ID, 128 + number)
        return True


@pytest.fixture
def init(bench):
    return Init(bench)


async def test_signals_go_to_the_process_itself(bench, init):
    bench.tasks.ignored = {signal.SIGTERM}
    await bench.run()
    await bench.containers.stop(ID, timeout=0.05)
    assert init.sent == [signal.SIGTERM, signal.SIGKILL]
    assert bench.tasks.count("kill") == 0
    assert bench.status().exit_code == 137


async def test_the_runtime_sends_what_can_not_be_sent_to_a_process_known_for_certain(bench, init):
    init.known = False
    await bench.run()
    await bench.containers.stop(ID, timeout=0)
    assert bench.tasks.count("kill", ID, signal.SIGKILL) == 1


async def test_a_frozen_container_is_thawed_by_the_runtime(bench, init, monkeypatch):
    monkeypatch.setattr(ending, "DIRECT_GRACE", 0.01)
    init.frozen = True
    await bench.run()
    await bench.containers.stop(ID, timeout=0)
    assert init.sent == [signal.SIGKILL]
    assert bench.tasks.count("kill", ID, signal.SIGKILL) == 1
    assert bench.status().exit_code == 137


async def test_where_the_end_of_init_ends_nothing_else_the_runtime_kills_all(bench, init):
    await bench.run(kill_all=True)
    await bench.containers.stop(ID, timeout=0)
    assert init.sent == []
    assert bench.tasks.count("kill", ID, signal.SIGKILL, "all") == 1


@pytest.mark.parametrize(
    ("handler", "on_host"),
    [
        (Handler(), True),
        (Handler(runtime="/opt/bin/crun"), True),
        (Handler(runtime="runsc"), False),
        (Handler(shim="io.containerd.kata.v2", config_path="/etc/kata.toml"), False),
    ],
    ids=["runc", "crun", "gvisor", "kata"],
)
async def test_only_processes_of_the_host_are_signalled(bench, init, handler, on_host):
    await bench.run()
    bench.shims.shims[bench.containers.get(ID).meta.group].handler = handler
    await bench.containers.stop(ID, timeout=0)
    assert bool(init.sent) is on_host
    assert bench.tasks.count("kill") == (0 if on_host else 1)
