"""kubectl's commands that go through the API server and the kubelet to our streaming server."""

from __future__ import annotations

import hashlib
import random
import re
import subprocess
import time
import urllib.request
from typing import TYPE_CHECKING

import pytest

from tests.cluster.objects import TIMEOUT, container, is_ready, on, phase

if TYPE_CHECKING:
    from pathlib import Path

    from hack.clusters.cluster import Cluster
    from tests.cluster.objects import Objects, Pod

pytestmark = [pytest.mark.root, pytest.mark.runtime, pytest.mark.go, pytest.mark.timeout(600)]

NODES = ("node1", "node2")
LINES = 2000


@pytest.mark.parametrize("node", NODES)
def test_exec(objects: Objects, node: str) -> None:
    objects.pod("talk", **on(node))
    objects.wait("talk", is_ready, "is ready")
    assert objects.kubectl("exec", "talk", "--", "hostname") == "talk\n"
    assert objects.kubectl("exec", "-i", "talk", "--", "cat", stdin="over\nand back\n") == (
        "over\nand back\n"
    )
    with objects.start("exec", "talk", "--", "sh", "-c", "echo out; echo err >&2; exit 7") as talk:
        out, _ = talk.communicate(timeout=60)
    assert talk.returncode == 7
    assert {"out", "err"} <= set(out.splitlines())
    # Much, both ways at once.
    data = random.Random(7).randbytes(3 << 20).hex()
    digest = hashlib.sha256(data.encode()).hexdigest()
    said = objects.kubectl("exec", "-i", "talk", "--", "sha256sum", stdin=data)
    assert said.split()[0] == digest


def test_exec_with_a_terminal(objects: Objects) -> None:
    objects.pod("talk")
    objects.wait("talk", is_ready, "is ready")
    # Its size comes by a message of its own, and may come after the command has begun; until then
    # busybox's stty says nothing, and succeeds.
    script = "tty; until stty size 2>/dev/null | grep .; do :; done"
    command = objects.command("exec", "-it", "talk", "--", "sh", "-c", f"'{script}'")
    # `script` gives kubectl a terminal.
    done = subprocess.run(
        ["script", "-qec", f"stty rows 33 cols 77; {' '.join(command)}", "/dev/null"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout
    assert "/dev/pts/" in done.stdout
    assert "33 77" in done.stdout


def test_attach(objects: Objects) -> None:
    echo = container("while read line; do echo got $line; done", stdin=True, stdinOnce=True)
    objects.pod("ear", echo, restartPolicy="Never")
    objects.wait("ear", is_ready, "is ready")
    with objects.start("attach", "-i", "ear") as attached:
        assert attached.stdin
        assert attached.stdout
        attached.stdin.write("first\n")
        attached.stdin.flush()
        while (line := attached.stdout.readline()) != "got first\n":
            assert line, "it ended before it answered"
        attached.stdin.write("second\n")
        attached.stdin.close()
        attached.stdin = None
        assert "got second\n" in attached.stdout.read()
        assert attached.wait(60) == 0
    # Its input has ended, and so has it.
    objects.wait("ear", phase("Succeeded"), "has succeeded")


def test_run_interactively(objects: Objects) -> None:
    said = objects.kubectl(
        *("run", "once", "-i", "--rm", "--restart=Never", "--image-pull-policy=Never", "--quiet"),
        *("--image=localhost/zos-cri/busybox:latest", "--", "sh", "-c", "read x; sleep 1; echo $x"),
        stdin="hello\n",
        timeout=TIMEOUT,
    )
    assert "hello\n" in said


def test_logs_that_are_followed(objects: Objects) -> None:
    """From the first line to the last, each once; it ends with the container."""
    script = f"i=0; while [ $i -lt {LINES} ]; do echo line $i; i=$((i+1)); "
    script += "[ $((i % 500)) != 0 ] || sleep 1; done"
    objects.pod("writer", container(script), restartPolicy="Never")
    objects.wait("writer", lambda pod: pod["status"]["phase"] != "Pending", "has started")
    with objects.start("logs", "-f", "writer") as following:
        out, _ = following.communicate(timeout=TIMEOUT)
    assert following.returncode == 0
    assert out == "".join(f"line {number}\n" for number in range(LINES))
    assert objects.kubectl("logs", "--tail=2", "writer").splitlines() == [
        f"line {LINES - 2}",
        f"line {LINES - 1}",
    ]


def test_logs_of_the_container_before(objects: Objects) -> None:
    # The second run stays: were it to end, the kubelet would remove the first, log and all.
    script = "[ ! -e /kept/ran ] || exec sleep 1000; touch /kept/ran; echo the first run; exit 1"
    twice = container(script, volumeMounts=[{"name": "kept", "mountPath": "/kept"}])
    objects.pod("twice", twice, volumes=[{"name": "kept", "emptyDir": {}}])
    objects.wait("twice", lambda pod: is_ready(pod) and restarted(pod), "was restarted")
    assert objects.kubectl("logs", "--previous", "twice") == "the first run\n"


def restarted(pod: Pod) -> bool:
    return any(each["restartCount"] >= 1 for each in pod["status"].get("containerStatuses", ()))


def test_cp(objects: Objects, tmp_path: Path) -> None:
    objects.pod("files")
    objects.wait("files", is_ready, "is ready")
    there = tmp_path / "there"
    (there / "deep").mkdir(parents=True)
    content = random.Random(8).randbytes(5 << 20)
    (there / "deep" / "data").write_bytes(content)
    (there / "text").write_text("hello\n")
    objects.kubectl("cp", there, "files:/tmp/there")
    assert objects.kubectl("exec", "files", "--", "cat", "/tmp/there/text") == "hello\n"
    objects.kubectl("cp", "files:/tmp/there", tmp_path / "back")
    assert (tmp_path / "back" / "deep" / "data").read_bytes() == content


@pytest.mark.parametrize("node", NODES)
def test_port_forward(objects: Objects, node: str) -> None:
    page = "x" * (1 << 20)
    script = f"head -c {len(page)} /dev/zero | tr '\\0' x >/tmp/index.html; "
    objects.pod("web", container(script + "exec httpd -f -p 8080 -h /tmp"), **on(node))
    objects.wait("web", is_ready, "is ready")
    with objects.start("port-forward", "pod/web", ":8080") as forwarding:
        try:
            assert forwarding.stdout
            said = forwarding.stdout.readline()
            match = re.search(r"127\.0\.0\.1:(\d+) -> 8080", said)
            assert match, said
            for _ in range(3):
                with urllib.request.urlopen(f"http://127.0.0.1:{match[1]}/", timeout=30) as reply:
                    assert reply.read().decode() == page
        finally:
            forwarding.terminate()
            forwarding.communicate(timeout=30)


def test_top(cluster: Cluster, objects: Objects) -> None:
    """metrics-server reads our figures from the kubelets."""
    objects.pod("busy", container("while :; do :; done", resources={"limits": {"cpu": "200m"}}))
    objects.wait("busy", is_ready, "is ready")
    deadline = time.monotonic() + TIMEOUT
    while True:
        try:
            line = objects.kubectl("top", "pod", "busy", "--no-headers")
        except AssertionError:
            assert time.monotonic() < deadline
            time.sleep(1)
            continue
        name, cpu, memory = line.split()
        if int(cpu.removesuffix("m")) >= 50:
            break
        assert time.monotonic() < deadline, line
        time.sleep(1)
    assert name == "busy"
    assert memory.endswith("Mi")
    nodes = [line.split() for line in objects.kubectl("top", "nodes", "--no-headers").splitlines()]
    assert {words[0] for words in nodes} == set(NODES)
    assert all(re.fullmatch(r"\d+m", words[1]) for words in nodes), nodes
