"""Fuzzing of parsers: the same targets by hypothesis in every test run, by atheris for hours.

    pip install atheris                                   # once, where there is a wheel of it
    python -m tests.fuzz.harness                          # the targets' names
    python -m tests.fuzz.harness tar -max_total_time=600  # libFuzzer's options follow the name
    python -m tests.fuzz.harness tar crash-…              # one input again

A target is a function of bytes: whatever its parser doesn't say it raises is a finding. Targets
stand in `TARGETS` of the modules `tests/fuzz/fuzz_*.py`. What atheris finds worth keeping goes to
`.cache/fuzz/NAME`, and the next run begins with it.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

HERE = Path(__file__).resolve().parent
CORPUS = HERE.parents[1] / ".cache" / "fuzz"
# What atheris follows the branches of: our code, and parsers in Python that it relies on.
INSTRUMENTED = ("zos_cri", "tomllib", "h11")


class Target(NamedTuple):
    """What is fuzzed.

    Attributes:
        run: takes any bytes; an exception that it lets out is a finding.
        seeds: inputs to begin with: good ones, for the rest is changed from them.
    """

    name: str
    run: Callable[[bytes], object]
    seeds: tuple[bytes, ...] = ()


def targets() -> dict[str, Target]:
    """All targets, by name."""
    found: dict[str, Target] = {}
    for path in sorted(HERE.glob("fuzz_*.py")):
        module = importlib.import_module(f"tests.fuzz.{path.stem}")
        for target in module.TARGETS:
            assert target.name not in found, f"two targets {target.name}"
            found[target.name] = target
    return found


def pieces(data: bytes) -> tuple[bytes, int]:
    """An input for what reads a stream: its bytes, and how many may come at once."""
    return data[1:], (data[0] if data else 0) + 1


def main(argv: Sequence[str]) -> int:
    """Fuzzes one target until a finding, a limit of libFuzzer's options, or Ctrl-C."""
    atheris = None
    with contextlib.ExitStack() as stack:
        if argv:
            atheris = importlib.import_module("atheris")
            stack.enter_context(atheris.instrument_imports(include=list(INSTRUMENTED)))
        known = targets()
    if atheris is None or argv[0] not in known:
        print("targets:", *known)
        return 2 if argv else 0
    target = known[argv[0]]
    corpus = CORPUS / target.name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds):
        (corpus / f"seed-{number}").write_bytes(seed)
    again = any(not option.startswith("-") for option in argv[1:])
    place = [] if again else [str(corpus), f"-artifact_prefix={CORPUS}{os.sep}{target.name}-"]
    atheris.Setup([sys.argv[0], *argv[1:], *place], target.run)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
