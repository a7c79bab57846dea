"""CNI plugins that do as they are told: succeed, fail, hang, flood, lie, and say who called them.

They are real programs, for the real `linux.spawn`. What each does is read anew at every run, so it
can be changed while a server runs.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

_PROGRAM = Path(__file__).with_name("plugin.py")


class Call:
    """One run of a plugin, as the plugin saw it."""

    def __init__(self, record: dict[str, Any]) -> None:
        self.plugin: str = record["plugin"]
        self.env: dict[str, str] = record["env"]
        self.request: dict[str, Any] = json.loads(record["stdin"])
        self.stdin: str = record["stdin"]
        self.pid: int = record["pid"]

    @property
    def command(self) -> str:
        return self.env["CNI_COMMAND"]

    def __repr__(self) -> str:
        return f"{self.command} {self.plugin}"


class FakeCni:
    """A directory of plugins, and one of configurations.

    A plugin's script maps a command to what it does there: a step, or a list of steps for the
    first, second, … run, the last of which stays. Keys of a step:

    - `result`: printed as JSON; `stdout`, `stderr`: printed as they are; `flood`: bytes of noise
    - `exit`: the code; `kill`: a signal that ends it
    - `hang`: it sleeps until killed, a child of its too; `sleep`: seconds; `linger`: it leaves a
      child behind that holds its stdout
    - `wait_for`: a path it waits for before it goes on

    Without a step, ADD answers with `prevResult` or an address, VERSION with all versions, and the
    others with success.
    """

    def __init__(self, directory: Path) -> None:
        self.bin = directory / "cni-bin"
        self.conf = directory / "net.d"
        self.bin.mkdir(parents=True)
        self.conf.mkdir()
        self._log = self.bin / ".calls"

    def plugin(self, kind: str, **steps: dict[str, Any] | list[dict[str, Any]]) -> None:
        """Makes a plugin, or gives it another script."""
        script = self.bin / f".{kind}.json"
        fresh = script.with_suffix(".new")
        fresh.write_text(json.dumps(steps))
        fresh.replace(script)
        path = self.bin / kind
        if not path.exists():
            path.write_text(f"#!{sys.executable} -ISE\n" + _PROGRAM.read_text())
            path.chmod(0o755)

    def network(
        self, name: str = "net", *plugins: Any, file: str | None = None, **keys: Any
    ) -> Path:
        """Writes a configuration list; a plugin is a type or an object."""
        path = self.conf / (file or f"10-{name}.conflist")
        objects = [{"type": each} if isinstance(each, str) else each for each in plugins]
        document = {"cniVersion": "1.0.0", "name": name, "plugins": objects} | keys
        path.write_text(json.dumps(document))
        return path

    def calls(self, *commands: str) -> list[Call]:
        """The runs so far, in order; of these commands only where some are given."""
        if not self._log.exists():
            return []
        every = [Call(json.loads(line)) for line in self._log.read_text().splitlines()]
        return [call for call in every if not commands or call.command in commands]

    def said(self, *commands: str) -> list[str]:
        """As `calls`, each as `ADD bridge`."""
        return [repr(call) for call in self.calls(*commands)]
