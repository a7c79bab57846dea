"""How plugins come: the socket, and the files that are started."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import sys
import textwrap

import pytest

from tests.conftest import ROOT
from tests.fakes.nri_plugin import FakePlugin
from tests.fakes.shim import until
from zos_cri.nri import connect
from zos_cri.nri.connect import Connector, Settings, installed

# A plugin of our own, for the test's program must not need Go.
PROGRAM = """\
    #!{python}
    import asyncio, os, socket, sys
    sys.path.insert(0, {root!r})
    from tests.fakes.nri_plugin import FakePlugin

    async def main():
        fake = FakePlugin()
        connection = socket.socket(fileno=int(os.environ["NRI_PLUGIN_SOCKET"]))
        await asyncio.get_running_loop().create_connection(lambda: fake.trunk, sock=connection)
        await fake.register("ignored", "99")
        while not any(name == "Synchronize" for name, _ in fake.calls):
            await asyncio.sleep(0.01)
        names = sorted(os.environ.keys() - {{"LC_CTYPE"}})
        said = [os.environ["NRI_PLUGIN_NAME"], os.environ["NRI_PLUGIN_IDX"], *names]
        said += [str(os.getpid()), fake.last("Configure").config]
        open({out!r}, "w").write("\\n".join(said))
        await asyncio.sleep(1000)

    asyncio.run(main())
"""


@pytest.fixture
def settings(tmp_path):
    for name in ("plugins", "conf"):
        (tmp_path / name).mkdir()
    return Settings(str(tmp_path / "nri" / "nri.sock"), tmp_path / "plugins", tmp_path / "conf")


@pytest.fixture
async def connector(bench, settings):
    connector = Connector(bench.plugins, settings)
    yield connector
    await connector.aclose()


def put(settings, name, text="", mode=0o755):
    path = settings.directory / name
    path.write_text(textwrap.dedent(text))
    path.chmod(mode)
    return path


# ---- the socket


async def test_the_socket_is_roots_alone_and_gone_with_the_server(bench, settings):
    connector = Connector(bench.plugins, settings)
    await connector.start()
    found = os.stat(settings.socket)
    assert (stat.S_IMODE(found.st_mode), stat.S_ISSOCK(found.st_mode)) == (0o600, True)
    await connector.aclose()
    assert not os.path.exists(settings.socket)


async def test_a_plugin_that_connects(bench, connector, settings):
    await connector.start()
    fake = FakePlugin()
    await fake.dial(settings.socket)
    await fake.register("a", "10")
    await until(lambda: bench.plugins.names == ["10-a"])
    await connector.aclose()
    await until(lambda: fake.runtime.closed)


async def test_one_that_says_nothing_holds_up_nobody(bench, connector, settings, caplog):
    await connector.start()
    _, silent = await asyncio.open_unix_connection(settings.socket)
    fake = FakePlugin()
    await fake.dial(settings.socket)
    await fake.register()
    await until(lambda: bench.plugins.names == ["10-fake"])
    silent.close()


async def test_garbage_ends_the_connection(bench, connector, settings, caplog):
    await connector.start()
    reader, writer = await asyncio.open_unix_connection(settings.socket)
    writer.write(b"GET / HTTP/1.1\r\n\r\n")
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()
    await until(lambda: not bench.plugins._connected)


async def test_a_socket_of_somebody_else_is_left_alone(bench, settings, caplog):
    first = Connector(bench.plugins, settings)
    await first.start()
    second = Connector(bench.plugins, settings)
    await second.start()  # and the server goes on without
    assert "no NRI socket" in caplog.text
    await second.aclose()
    assert os.path.exists(settings.socket)
    await first.aclose()


async def test_a_socket_that_was_left_is_replaced(bench, connector, settings):
    """By a server that was killed."""
    os.mkdir(os.path.dirname(settings.socket))
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(settings.socket)
    await connector.start()
    fake = FakePlugin()
    await fake.dial(settings.socket)
    await fake.register()
    await until(lambda: bench.plugins.names == ["10-fake"])


async def test_a_socket_that_another_has_put_there_stays(bench, settings):
    connector = Connector(bench.plugins, settings)
    await connector.start()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(f"{settings.socket}.new")
        os.rename(f"{settings.socket}.new", settings.socket)
        await connector.aclose()
        assert os.path.exists(settings.socket)


async def test_no_socket_where_none_is_wanted(bench, settings):
    connector = Connector(bench.plugins, settings._replace(socket=""))
    await connector.start()
    assert not os.path.exists(settings.socket)
    await connector.aclose()


async def test_more_than_there_is_room_for(bench, connector, settings, caplog):
    await connector.start()
    while len(bench.plugins._connected) < 64:
        bench.plugins.plugin()
    reader, writer = await asyncio.open_unix_connection(settings.socket)
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()
    assert "NRI plugin refused" in caplog.text


# ---- installed ones


def test_files_that_are_plugins(settings, caplog):
    put(settings, "20-b")
    put(settings, "05-a-b")
    put(settings, "10-not-executable", mode=0o644)
    put(settings, "noindex")
    put(settings, "1-short")
    put(settings, "10-bad name")
    (settings.directory / "30-directory").mkdir()
    (settings.config_directory / "05-a-b.conf").write_text("its own")
    (settings.config_directory / "a-b.conf").write_text("not this one")
    (settings.config_directory / "b.conf").write_text("by its name")
    found = installed(settings)
    assert [(str(f.identity), f.config) for f in found] == [
        ("05-a-b", "its own"),
        ("20-b", "by its name"),
    ]
    assert caplog.text.count("NRI plugin not used") == 3


def test_a_configuration_that_cannot_be_read(settings, caplog):
    put(settings, "10-a")
    put(settings, "20-b")
    (settings.config_directory / "a.conf").write_bytes(b"\xff")
    (settings.config_directory / "b.conf").write_bytes(b"x" * (connect.CONFIG_LIMIT + 1))
    assert installed(settings) == []
    assert caplog.text.count("NRI plugin not used") == 2


def test_no_directory_is_no_plugins(settings, tmp_path, caplog):
    assert installed(settings._replace(directory=tmp_path / "none")) == []
    assert caplog.text == ""
    file = tmp_path / "file"
    file.touch()
    assert installed(settings._replace(directory=file)) == []
    assert "NRI plugins not looked for" in caplog.text


async def test_one_that_is_started(bench, settings, tmp_path):
    out = tmp_path / "out"
    text = PROGRAM.format(python=sys.executable, root=str(ROOT), out=str(out))
    put(settings, "07-mine", text)
    (settings.config_directory / "mine.conf").write_text("its configuration")
    connector = Connector(bench.plugins, settings)
    await connector.start()
    assert bench.plugins.names == ["07-mine"]
    await until(lambda: out.exists() and out.read_text().endswith("configuration"))
    said = out.read_text().split("\n")
    assert said[:2] == ["mine", "07"]
    assert said[2:-2] == ["NRI_PLUGIN_IDX", "NRI_PLUGIN_NAME", "NRI_PLUGIN_SOCKET"]
    assert said[-1] == "its configuration"
    await connector.aclose()
    assert bench.plugins.names == []
    # Ended and reaped: no child is left.
    with pytest.raises(ProcessLookupError):
        os.kill(int(said[-2]), 0)


async def test_one_that_cannot_be_started_or_ends_at_once(bench, settings, caplog):
    put(settings, "10-no-program", "#!/no/such/interpreter\n")
    put(settings, "20-ends", "#!/bin/sh\nexit 1\n")
    connector = Connector(bench.plugins, settings)
    await connector.start()
    assert bench.plugins.names == []
    assert caplog.text.count("NRI plugin not started") == 2
    assert not bench.plugins._connected
    await connector.aclose()
