"""Helpers are forked, so each test has them in an interpreter of its own."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys

import pytest

PROLOGUE = """
import json, os, signal, sys, time
from zos_cri.errors import DataLoss, Error
from zos_cri.images.assemble import Tracker
from zos_cri.images.helpers import Helpers
from zos_cri.images.model import Blob
from zos_cri.images.unpack import Unpacked

tracker = Tracker([Blob("sha256:1", 10, "") for _ in range(10)])

def work(index):
    tracker.update(index, fetched=os.getpid(), unpacked=3, state="unpacking")
    if index == 7:
        raise DataLoss("a layer\\nis broken")
    if index == 8:
        os.kill(os.getpid(), signal.SIGKILL)
    if index == 9:
        time.sleep(600)
    tracker.update(index, unpacked=4, state="done")
    return Unpacked(str(index), (b"\\xff" * 70000,), ((b"a", b"\\n"),), ())

def began(index):
    while not (pid := tracker.snapshot()[index].fetched):
        time.sleep(0.01)
    return pid
"""


def run(code: str) -> object:
    done = subprocess.run(
        [sys.executable, "-c", PROLOGUE + code], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_what_is_made_comes_back() -> None:
    code = """
with Helpers(2, work) as helpers:
    made = [helpers.run(index) for index in range(5)]
seen = tracker.snapshot()
print(json.dumps([
    [m.diff_id for m in made],
    made[0].implied == (b"\\xff" * 70000,) and made[0].missing_links == ((b"a", b"\\n"),),
    [(s.unpacked, s.state) for s in seen[4:6]],
    len({s.fetched for s in seen[:5]} - {os.getpid()}),
]))
"""
    assert run(code) == [["0", "1", "2", "3", "4"], True, [[7, "done"], [0, "waiting"]], 2]


@pytest.mark.parametrize(
    ("index", "kind", "message"),
    [
        (7, "DataLoss", "a layer is broken"),
        (8, "Internal", "the process that unpacked it has died"),
    ],
)
def test_a_failure_comes_back(index: int, kind: str, message: str) -> None:
    code = f"""
with Helpers(1, work) as helpers:
    try:
        helpers.run({index})
    except Error as error:
        print(json.dumps([type(error).__name__, str(error)]))
"""
    assert run(code) == [kind, message]


def test_the_dead_are_not_waited_for() -> None:
    code = """
said = []
with Helpers(1, work) as helpers:
    for index in (8, 1):
        try:
            helpers.run(index)
        except Error as error:
            said.append(type(error).__name__)
print(json.dumps(said))
"""
    assert run(code) == ["Internal", "Internal"]


def test_they_end_with_the_statement_whatever_they_do() -> None:
    code = """
import threading
def ask(helpers):
    try:
        helpers.run(9)
    except Error:
        pass
with Helpers(1, work) as helpers:
    asker = threading.Thread(target=ask, args=(helpers,))
    asker.start()
    pid = began(9)
asker.join()
print(json.dumps(os.path.exists(f"/proc/{pid}")))
"""
    assert run(code) is False


def test_they_die_with_the_worker() -> None:
    code = """
import threading
with Helpers(2, work) as helpers:
    asker = threading.Thread(target=helpers.run, args=(9,))
    asker.start()
    print(began(9), flush=True)
    asker.join()
"""
    worker = subprocess.Popen(
        [sys.executable, "-c", PROLOGUE + code], stdout=subprocess.PIPE, text=True
    )
    with worker:
        assert worker.stdout is not None
        helper = os.pidfd_open(int(worker.stdout.readline()))
        try:
            assert not select.select([helper], [], [], 0)[0]
            worker.send_signal(signal.SIGKILL)
            assert select.select([helper], [], [], 30)[0]
        finally:
            os.close(helper)
        assert worker.stdout.read() == ""  # and nobody holds it open
