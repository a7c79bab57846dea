"""Which hosts a registry's images are fetched from: `certs.d/<registry>/hosts.toml`.

The files are containerd's, folders and all (`host_port_`, `_default`), so that a host configured
for it is configured for us. They are read anew at each pull. One thing differs: a file that can't
be understood fails the pull and says where, instead of being read over.
"""

from __future__ import annotations

import re
import tomllib
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import msgspec

from zos_cri.errors import FailedPrecondition

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_LOOPBACK: Final = re.compile(r"localhost|127(?:\.\d+){3}|\[::1\]")
_DURATION: Final = re.compile(r"(\d+(?:\.\d*)?)(ms|s|m|h)")
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
DIAL_TIMEOUT: Final = 30.0  # seconds; as containerd's. A hosts.toml may set a shorter one


class Host(msgspec.Struct, frozen=True):
    """One place to ask.

    Attributes:
        scheme: `https`, `http`, or `auto`: https without verification first, http where that
            isn't spoken. Only loopback registries are asked so.
        host: name and port.
        path: the API's root, usually `/v2`.
        upstream: it is the registry itself, no mirror of it.
    """

    scheme: str
    host: str
    path: str = "/v2"
    resolve: bool = True
    pull: bool = True
    skip_verify: bool = False
    ca: tuple[str, ...] = ()
    client: tuple[tuple[str, str], ...] = ()
    header: tuple[tuple[str, str], ...] = ()
    dial_timeout: float = DIAL_TIMEOUT
    upstream: bool = False


def hosts_for(domain: str, directories: Sequence[Path]) -> tuple[Host, ...]:
    """The hosts for a registry's name, in the order they are to be tried.

    Args:
        directories: roots of such trees; the first that has a folder for the registry counts.

    Raises:
        FailedPrecondition: a file there can't be read or understood.
    """
    for root in directories:
        for name in _folders(domain):
            folder = root / name
            if folder.is_dir():
                return _from_folder(domain, folder)
    return (_upstream(domain),)


def _folders(domain: str) -> list[str]:
    host, colon, port = domain.rpartition(":")
    names = [f"{host}_{port}_"] if colon and port.isdigit() else []
    return [*names, domain, "_default"]


def _upstream(domain: str) -> Host:
    """The registry itself, where no file says more about it."""
    if domain == "docker.io":
        return Host("https", "registry-1.docker.io", upstream=True)
    host, colon, port = domain.rpartition(":")
    if not (colon and port.isdigit()):
        host, port = domain, ""
    if _LOOPBACK.fullmatch(host) and port not in ("", "443"):
        scheme = "http" if port == "80" else "auto"
        return Host(scheme, domain, skip_verify=True, upstream=True)
    return Host("https", domain, upstream=True)


def _from_folder(domain: str, folder: Path) -> tuple[Host, ...]:
    file = folder / "hosts.toml"
    try:
        text = file.read_text()
    except FileNotFoundError:
        return (_with_docker_certificates(_upstream(domain), folder),)
    except (OSError, UnicodeDecodeError) as error:
        raise FailedPrecondition(f"{file}: {error}") from error
    try:
        document = tomllib.loads(text)
        hosts = [
            _parse(name, table, folder) for name, table in _tables(document.get("host")).items()
        ]
        server = str(document.get("server") or "")
        last = _parse(server, document, folder) if server else _configured(domain, document, folder)
    except (tomllib.TOMLDecodeError, ValueError) as error:
        raise FailedPrecondition(f"{file}: {error}") from error
    return (*hosts, msgspec.structs.replace(last, upstream=True))


def _configured(domain: str, document: dict[str, Any], folder: Path) -> Host:
    """The registry itself with what stands at the file's top level."""
    upstream = _upstream(domain)
    given = _parse(f"{upstream.host}", document, folder)
    verify_set = "skip_verify" in document or given.ca or given.client
    return msgspec.structs.replace(
        given,
        scheme=upstream.scheme,
        path=upstream.path,
        skip_verify=given.skip_verify if verify_set else upstream.skip_verify,
    )


def _tables(value: object) -> dict[str, dict[str, Any]]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(v, dict) for v in value.values()):
        raise ValueError('host: expected tables [host."https://…"]')
    return value


def _parse(server: str, table: dict[str, Any], folder: Path) -> Host:
    """One host. Raises ValueError that names the field."""
    url = urlsplit(server if "://" in server else f"https://{server}")
    if url.scheme not in ("http", "https") or not url.netloc:
        raise ValueError(f"{server!r}: expected https://host or http://host")
    path = url.path.rstrip("/")
    override = bool(table.get("override_path"))
    if not override and not path.endswith("/v2"):
        path += "/v2"
    capabilities = table.get("capabilities") or ["pull", "resolve", "push"]
    known = {"pull", "resolve", "push", "referrers"}
    if not isinstance(capabilities, list) or not {str(c).lower() for c in capabilities} <= known:
        raise ValueError(f"{server}: capabilities: expected some of {', '.join(sorted(known))}")
    lower = {str(c).lower() for c in capabilities}
    return Host(
        scheme=url.scheme,
        host=url.netloc.rpartition("@")[2],
        path=path,
        resolve="resolve" in lower,
        pull="pull" in lower,
        skip_verify=bool(table.get("skip_verify")),
        ca=tuple(str(folder / name) for name in _strings(table.get("ca"), f"{server}: ca")),
        client=_pairs(table.get("client"), folder, server),
        header=_headers(table.get("header"), server),
        dial_timeout=_duration(table.get("dial_timeout"), server),
    )


def _strings(value: object, what: str) -> list[str]:
    if value is None:
        return []
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(item, str) for item in values):
        raise ValueError(f"{what}: expected a string or a list of strings")
    return [str(item) for item in values]


def _pairs(value: object, folder: Path, server: str) -> tuple[tuple[str, str], ...]:
    """Certificates and keys: a file with both, files with both, or pairs of files."""
    if value is None:
        return ()
    pairs = []
    for item in value if isinstance(value, list) else [value]:
        pair = _strings(item, f"{server}: client")
        if len(pair) not in (1, 2) or (len(pair) == 2 and not isinstance(item, list)):
            raise ValueError(f"{server}: client: expected a file or a pair of files")
        pairs.append((str(folder / pair[0]), str(folder / pair[-1])))
    return tuple(pairs)


def _headers(value: object, server: str) -> tuple[tuple[str, str], ...]:
    if value is None:
        return ()
    if not isinstance(value, dict):
        raise ValueError(f"{server}: header: expected a table")
    return tuple(
        (str(name), text)
        for name, given in value.items()
        for text in _strings(given, f"{server}: header {name}")
    )


def _duration(value: object, server: str) -> float:
    if value is None:
        return DIAL_TIMEOUT
    parts = _DURATION.findall(str(value))
    if not parts or "".join(n + u for n, u in parts) != str(value):
        raise ValueError(f"{server}: dial_timeout: expected a duration as 5s or 500ms")
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


def _with_docker_certificates(host: Host, folder: Path) -> Host:
    """Docker's layout of such a folder: `*.crt` are CAs, `*.cert` with `*.key` client pairs."""
    cas = tuple(str(path) for path in sorted(folder.glob("*.crt")))
    pairs = []
    for certificate in sorted(folder.glob("*.cert")):
        key = certificate.with_suffix(".key")
        if not key.exists():
            raise FailedPrecondition(f"{certificate}: its key {key.name} is missing")
        pairs.append((str(certificate), str(key)))
    return msgspec.structs.replace(
        host, ca=cas, client=tuple(pairs), skip_verify=host.skip_verify and not cas
    )
