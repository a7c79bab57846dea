"""The program behind `FakeCni`. Its name is the plugin's type; its script lies beside it."""

import json
import os
import signal
import subprocess
import sys
import time

RESULT = {
    "cniVersion": "1.0.0",
    "interfaces": [{"name": "eth0", "sandbox": "/run/x", "mac": "02:00:00:00:00:01"}],
    "ips": [{"address": "10.9.0.2/24", "gateway": "10.9.0.1", "interface": 0}],
}
VERSIONS = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]


def main() -> int:
    directory, kind = os.path.split(os.path.abspath(sys.argv[0]))
    command = os.environ["CNI_COMMAND"]
    stdin = sys.stdin.read()
    number = note(directory, kind, command, stdin)
    with open(os.path.join(directory, f".{kind}.json")) as file:
        steps = json.load(file).get(command, {})
    step = steps[min(number, len(steps) - 1)] if isinstance(steps, list) else steps
    return act(step, command, json.loads(stdin))


def note(directory: str, kind: str, command: str, stdin: str) -> int:
    """Writes the run down; how many there were before of this plugin and command."""
    path = os.path.join(directory, ".calls")
    env = {key: value for key, value in os.environ.items() if key.startswith(("CNI_", "PATH"))}
    record = {"plugin": kind, "env": env, "stdin": stdin, "pid": os.getpid()}
    with open(path, "a+") as file:
        file.write(json.dumps(record) + "\n")  # one write: appended whole
        file.flush()
        file.seek(0)
        before = [json.loads(line) for line in file]
    same = [e for e in before if (e["plugin"], e["env"]["CNI_COMMAND"]) == (kind, command)]
    return len(same) - 1


def act(step: dict, command: str, request: dict) -> int:  # type: ignore[type-arg]
    deadline = time.monotonic() + 30
    while "wait_for" in step and not os.path.exists(step["wait_for"]):
        time.sleep(0.005)
        if time.monotonic() > deadline:
            return 99
    if step.get("hang") or step.get("linger"):
        child = subprocess.Popen(["sleep", "60"], stdin=subprocess.DEVNULL)
        if step.get("hang"):
            child.wait()
    time.sleep(step.get("sleep", 0))
    sys.stderr.write(step.get("stderr", ""))
    if "flood" in step:
        sys.stdout.write("x" * step["flood"])
    elif "stdout" in step:
        sys.stdout.write(step["stdout"])
    elif "result" in step:
        json.dump(step["result"], sys.stdout)
    elif command == "ADD":
        answer = request.get("prevResult") or RESULT | {"cniVersion": request["cniVersion"]}
        json.dump(answer, sys.stdout)
    elif command == "VERSION":
        json.dump({"cniVersion": "1.1.0", "supportedVersions": VERSIONS}, sys.stdout)
    sys.stdout.flush()
    if "kill" in step:
        os.kill(os.getpid(), step["kill"])
        signal.pause()
    return int(step.get("exit", 0))


if __name__ == "__main__":
    sys.exit(main())
