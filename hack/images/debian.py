"""Sources and programs from the distribution's archive, without installing anything."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from oci import EPOCH

if TYPE_CHECKING:
    from collections.abc import Iterable

TIMEOUT = 600  # seconds, for each call: a slow mirror's 100 MB
SOURCES = Path("/etc/apt")


class Archive:
    """apt with a state of its own below `root`: the host's sources, no host's packages.

    With nothing installed, apt fetches a program's whole closure, so that no library is taken
    from the host that would not stand there elsewhere.
    """

    def __init__(self, root: Path, sources: str = "") -> None:
        """
        Args:
            sources: lines of a sources.list in place of the host's.
        """
        self._root = root
        for folder in ("sources.list.d", "lists/partial", "archives/partial"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        (root / "status").touch()
        if sources:
            (root / "sources.list").write_text(sources)
        else:
            self._copy_sources()

    def update(self) -> None:
        self._apt("update")

    def source(self, package: str, target: Path) -> Path:
        """Fetches and unpacks a source package with the distribution's patches."""
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        self._apt("source", "--download-only", "--only-source", package, cwd=target)
        (description,) = target.glob("*.dsc")
        tree = target / "tree"
        run("dpkg-source", "--no-check", "--extract", str(description), str(tree))
        return tree

    def tarballs(self, package: str, target: Path) -> list[Path]:
        """Fetches a source package's upstream releases alone."""
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        self._apt("source", "--download-only", "--only-source", "--tar-only", package, cwd=target)
        return [each for each in sorted(target.glob("*.orig*.tar.*")) if each.suffix != ".asc"]

    def unpack(self, packages: Iterable[str], target: Path) -> None:
        """Fetches packages with all that they depend on, and unpacks the lot into one tree."""
        for stale in (self._root / "archives").glob("*.deb"):
            stale.unlink()
        self._apt("install", "--yes", "--download-only", "--no-install-recommends", *packages)
        shutil.rmtree(target, ignore_errors=True)
        for folder in ("bin", "lib", "lib64", "sbin"):
            # A merged /usr, whether the packages count on it (Debian 13) or not yet (12).
            (target / "usr" / folder).mkdir(parents=True)
            (target / folder).symlink_to(f"usr/{folder}")
        for package in sorted((self._root / "archives").glob("*.deb")):
            # By tar, since dpkg-deb --extract would put a folder in place of lib -> usr/lib.
            with subprocess.Popen(
                ["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE
            ) as content:
                subprocess.run(
                    ["tar", "--extract", "--keep-directory-symlink", "--directory", str(target)],
                    stdin=content.stdout,
                    check=True,
                    timeout=TIMEOUT,
                )
            if content.returncode != 0:
                raise RuntimeError(f"dpkg-deb failed for {package}")

    def _apt(self, *arguments: str, cwd: Path | None = None) -> None:
        options = {
            "APT::Sandbox::User": "root",  # _apt may not enter our folder
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled": "false",  # of use to desktops
            "Debug::NoLocking": "1",
            "Dir::Cache": str(self._root),
            "Dir::Cache::archives": str(self._root / "archives"),
            "Dir::Etc::sourcelist": str(self._root / "sources.list"),
            "Dir::Etc::sourceparts": str(self._root / "sources.list.d"),
            "Dir::State::lists": str(self._root / "lists"),
            "Dir::State::status": str(self._root / "status"),
        }
        settings = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
        run("apt-get", "-qq", *settings, *arguments, cwd=cwd)

    def _copy_sources(self) -> None:
        """The host's sources with deb-src beside each deb, in both of apt's formats."""
        lists = [SOURCES / "sources.list", *sorted(SOURCES.glob("sources.list.d/*.list"))]
        text = "\n".join(path.read_text() for path in lists if path.exists())
        lines = [line for line in text.splitlines() if re.match(r"deb\s", line)]
        lines += [re.sub(r"^deb\s", "deb-src ", line) for line in lines]
        (self._root / "sources.list").write_text("".join(f"{line}\n" for line in lines))
        for path in SOURCES.glob("sources.list.d/*.sources"):
            both = re.sub(r"(?m)^Types:.*$", "Types: deb deb-src", path.read_text())
            (self._root / "sources.list.d" / path.name).write_text(both)


def libraries(tree: Path, programs: Iterable[Path]) -> dict[str, Path]:
    """What programs in a tree need to run: path in the image -> file in the tree.

    The tree's own dynamic loader is asked, with the tree's libraries: the host's don't count.
    """
    found: dict[str, Path] = {}
    folders = sorted({str(path.parent) for path in tree.glob("**/lib/**/*.so.*") if path.is_file()})
    for program in programs:
        loader = _loader(program)
        if loader is not None:
            found[loader] = tree / loader.lstrip("/")
        start = next(iter(found.values()))
        listed = run(str(start), "--library-path", ":".join(folders), "--list", str(program))
        for name, file in re.findall(r"^\s*(\S+) => (/\S+)", listed, re.MULTILINE):
            if "/" not in name:
                found[f"/lib/{name}"] = Path(file)
        if missing := re.findall(r"(\S+) => not found", listed):
            raise RuntimeError(f"{program} needs {missing}, which no package brought")
    return found


def _loader(program: Path) -> str | None:
    match = re.search(r"program interpreter: ([^\]]+)\]", run("readelf", "-l", str(program)))
    return match[1] if match else None


def run(*command: str, cwd: Path | None = None, stdin: str = "") -> str:
    """Runs a command and answers its standard output; what it says beside is shown if it fails."""
    result = subprocess.run(
        command,
        cwd=cwd,
        input=stdin,
        capture_output=True,
        check=False,
        text=True,
        timeout=TIMEOUT,
        env={
            **os.environ,
            "DEBIAN_FRONTEND": "noninteractive",
            "LC_ALL": "C",
            "SOURCE_DATE_EPOCH": str(EPOCH),  # busybox's banner has the time of its build
        },
    )
    if result.returncode != 0:
        sys.stderr.write(result.stderr)
        raise SystemExit(f"{' '.join(command)}: exit code {result.returncode}")
    return result.stdout
