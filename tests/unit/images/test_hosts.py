from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from zos_cri.errors import FailedPrecondition
from zos_cri.images.hosts import Host, hosts_for
from zos_cri.images.http import proxy_for

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("domain", "host"),
    [
        ("docker.io", Host("https", "registry-1.docker.io", upstream=True)),
        ("quay.io", Host("https", "quay.io", upstream=True)),
        ("host:5000", Host("https", "host:5000", upstream=True)),
        ("localhost:5000", Host("auto", "localhost:5000", skip_verify=True, upstream=True)),
        ("127.1.2.3:5000", Host("auto", "127.1.2.3:5000", skip_verify=True, upstream=True)),
        ("[::1]:5000", Host("auto", "[::1]:5000", skip_verify=True, upstream=True)),
        ("localhost:80", Host("http", "localhost:80", skip_verify=True, upstream=True)),
        ("localhost", Host("https", "localhost", upstream=True)),
        ("127.0.0.1.example", Host("https", "127.0.0.1.example", upstream=True)),
    ],
)
def test_without_files(domain: str, host: Host) -> None:
    assert hosts_for(domain, []) == (host,)


def write(tmp_path: Path, folder: str, text: str) -> None:
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / folder / "hosts.toml").write_text(text)


def test_all_that_a_file_may_say(tmp_path: Path) -> None:
    write(
        tmp_path,
        "docker.io",
        """
        server = "https://upstream.example"
        ca = "up.crt"
        [host."http://mirror.example:5000"]
          capabilities = ["pull"]
          dial_timeout = "1m500ms"
        [host."https://proxy.example/prefix"]
          skip_verify = true
          ca = ["/abs.crt", "rel.crt"]
          client = [["a.cert", "a.key"], ["both.pem"]]
          override_path = true
          [host."https://proxy.example/prefix".header]
            X-One = "1"
            X-Two = ["2", "3"]
        [host."other.example/v2"]
          client = "c.pem"
        """,
    )
    folder = str(tmp_path / "docker.io")
    assert hosts_for("docker.io", [tmp_path]) == (
        Host("http", "mirror.example:5000", resolve=False, dial_timeout=60.5),
        Host(
            "https",
            "proxy.example",
            "/prefix",
            skip_verify=True,
            ca=("/abs.crt", f"{folder}/rel.crt"),
            client=(
                (f"{folder}/a.cert", f"{folder}/a.key"),
                (f"{folder}/both.pem", f"{folder}/both.pem"),
            ),
            header=(("X-One", "1"), ("X-Two", "2"), ("X-Two", "3")),
        ),
        Host("https", "other.example", client=((f"{folder}/c.pem", f"{folder}/c.pem"),)),
        Host("https", "upstream.example", ca=(f"{folder}/up.crt",), upstream=True),
    )


def test_folders_in_order(tmp_path: Path) -> None:
    write(tmp_path, "_default", '[host."https://all.example"]')
    assert hosts_for("a.example", [tmp_path])[0].host == "all.example"
    assert hosts_for("a.example", [tmp_path])[1].host == "a.example"
    write(tmp_path, "a.example:5000", '[host."https://colon.example"]')
    assert hosts_for("a.example:5000", [tmp_path])[0].host == "colon.example"
    write(tmp_path, "a.example_5000_", '[host."https://under.example"]')
    assert hosts_for("a.example:5000", [tmp_path])[0].host == "under.example"
    other = tmp_path / "other"
    write(other, "a.example", '[host."https://first.example"]')
    assert hosts_for("a.example", [other, tmp_path])[0].host == "first.example"


def test_docker_certificates(tmp_path: Path) -> None:
    folder = tmp_path / "localhost:5000"
    folder.mkdir()
    for name in ("ca.crt", "me.cert", "me.key"):
        (folder / name).touch()
    (host,) = hosts_for("localhost:5000", [tmp_path])
    assert host.ca == (str(folder / "ca.crt"),)
    assert host.client == ((str(folder / "me.cert"), str(folder / "me.key")),)
    assert not host.skip_verify
    (folder / "me.key").unlink()
    with pytest.raises(FailedPrecondition, match=r"its key me\.key is missing"):
        hosts_for("localhost:5000", [tmp_path])


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("server = [", "hosts.toml"),
        ('server = "ftp://x"', "expected https://host"),
        ('host = "x"', "expected tables"),
        ('[host."https://x"]\ncapabilities = ["fly"]', "capabilities"),
        ('[host."https://x"]\nca = 5', "https://x: ca"),
        ('[host."https://x"]\nclient = [["a", "b", "c"]]', "client"),
        ('[host."https://x"]\nheader = "x"', "header"),
        ('[host."https://x"]\ndial_timeout = "soon"', "dial_timeout"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, text: str, match: str) -> None:
    write(tmp_path, "a.example", text)
    with pytest.raises(FailedPrecondition, match=match):
        hosts_for("a.example", [tmp_path])


@pytest.mark.parametrize(
    ("scheme", "host", "proxy"),
    [
        ("https", "a.example", "http://p:1"),
        ("https", "a.example:5000", "http://p:1"),
        ("http", "a.example", "http://q:2"),
        ("https", "in.corp.example", ""),
        ("https", "exact.example:5000", ""),
        ("https", "localhost:5000", ""),
        ("https", "127.0.0.1:5000", ""),
    ],
)
def test_proxies(scheme: str, host: str, proxy: str) -> None:
    environ = {
        "HTTPS_PROXY": "http://p:1",
        "http_proxy": "q:2",
        "NO_PROXY": ".corp.example,exact.example",
    }
    assert proxy_for(scheme, host, environ) == proxy
    assert proxy_for(scheme, host, {}) == ""
