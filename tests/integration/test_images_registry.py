"""Real registries and real kills: Debian's docker-registry, TLS, mounts, a killed server."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import os
import random
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import urllib.request
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.fakes.registry import Registry, tar_of
from zos_cri.errors import FailedPrecondition, Unavailable
from zos_cri.images import builtin
from zos_cri.images.store import ImageStore
from zos_cri.linux.mount import mount, unmount

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

pytestmark = pytest.mark.root

REGISTRY = shutil.which("docker-registry")
SKOPEO = shutil.which("skopeo")


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[ImageStore]:
    opened = ImageStore(tmp_path / "images", certs_dirs=[tmp_path / "certs.d"])
    await opened.start()
    yield opened
    await opened.aclose()


@contextlib.contextmanager
def docker_registry(folder: Path) -> Iterator[str]:
    """Debian's docker-registry on a free port of loopback."""
    assert REGISTRY is not None
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    folder.mkdir()
    (folder / "config.yml").write_text(
        f"version: 0.1\nhttp:\n  addr: {address}\nlog:\n  accesslog:\n    disabled: true\n"
        f"storage:\n  filesystem:\n    rootdirectory: {folder}/data\n"
    )
    with open(folder / "log", "wb") as log:
        argv = ["setpriv", "--pdeathsig", "KILL", REGISTRY, "serve", str(folder / "config.yml")]
        process = subprocess.Popen(argv, stdout=log, stderr=log)
        try:
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            for _ in range(600):
                with contextlib.suppress(OSError), opener.open(f"http://{address}/v2/"):
                    break
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.05)  # nothing tells when a socket begins to listen
                    raise AssertionError((folder / "log").read_text())
            yield address
        finally:
            process.terminate()
            process.wait(20)


def passwd_in(root: Path) -> bytes:
    argv = ["chroot", str(root), "/bin/cat", "/etc/passwd"]
    return subprocess.run(argv, capture_output=True, check=True).stdout


async def test_debians_registry(store: ImageStore, tmp_path: Path) -> None:
    if REGISTRY is None or SKOPEO is None:
        pytest.skip("no docker-registry or no skopeo")
    image = await store.ensure_builtin()
    ours, plain = f"oci-archive:{tmp_path}/out.tar", f"docker-archive:{tmp_path}/plain.tar"
    await store.save([builtin.NAME], tmp_path / "out.tar")
    copy = [SKOPEO, "--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"]
    # Only what isn't compressed yet gets another compression.
    await asyncio.to_thread(subprocess.run, [*copy, ours, plain], check=True)
    for source, kind, extra in (
        (plain, ".tar+zstd", ("--format=oci", "--dest-compress-format=zstd")),
        (ours, ".tar.gzip", ("--format=v2s2",)),
    ):
        # One each: skopeo takes what a registry has, however it is compressed.
        with docker_registry(tmp_path / f"registry{kind}") as address:
            ref = f"{address}/deep/er/busybox:1"
            argv = [*copy, *extra, source, f"docker://{ref}"]
            await asyncio.to_thread(subprocess.run, argv, check=True)
            await store.remove(image.id)
            image_id = await store.pull(ref)
        pulled = store.find(ref)
        assert pulled is not None
        assert pulled.config == image.config
        named = store.catalog.manifests.values()
        types = {b.media_type for m in named if m.image_id == pulled.id for b in m.blobs}
        assert any(each.endswith(kind) for each in types)
        (overlay,) = await store.prepare_rootfs(image_id, "c1")
        target = tmp_path / "mounted"
        target.mkdir(exist_ok=True)
        mount(overlay, str(target))
        try:
            assert (await asyncio.to_thread(passwd_in, target)).startswith(b"root:")
        finally:
            unmount(str(target))
        await store.release_rootfs("c1")


class Authority:
    """A CA, and certificates by it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
        certificate = self._sign(self._name, self._key.public_key(), ca=True)
        (folder / "ca.crt").write_bytes(certificate)

    def _sign(self, name: x509.Name, key: ec.EllipticCurvePublicKey, *, ca: bool) -> bytes:
        now = datetime.datetime.now(datetime.UTC)
        hour = datetime.timedelta(hours=1)
        builder = x509.CertificateBuilder().subject_name(name).issuer_name(self._name)
        builder = builder.public_key(key).serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(now - hour).not_valid_after(now + hour)
        builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), True)
        address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        builder = builder.add_extension(x509.SubjectAlternativeName([address]), False)
        signed = builder.sign(self._key, hashes.SHA256())
        return signed.public_bytes(serialization.Encoding.PEM)

    def issue(self, name: str) -> tuple[Path, Path]:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        cert_path, key_path = self.folder / f"{name}.crt", self.folder / f"{name}.key"
        cert_path.write_bytes(self._sign(subject, key.public_key(), ca=False))
        key_path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return cert_path, key_path


def hosts_file(tmp_path: Path, domain: str, text: str) -> None:
    folder = tmp_path / "certs.d" / domain
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "hosts.toml").write_text(text)


async def test_tls(store: ImageStore, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue("server"))
    with Registry(tls=context) as registry:
        registry.add_image("a", "1", [tar_of({"f": b"x"})])
        url = f"https://{registry.address}"
        hosts_file(tmp_path, "tls.test", f'server = "{url}"')
        with pytest.raises(Unavailable, match="certificate verify failed"):
            await store.pull("tls.test/a:1")
        hosts_file(tmp_path, "tls.test", f'server = "{url}"\nskip_verify = true')
        await store.pull("tls.test/a:1")
        hosts_file(tmp_path, "own.test", f'server = "{url}"\nca = "{tmp_path}/ca/ca.crt"')
        await store.pull("own.test/a:1")
        # A loopback registry needs no file: https without verification first.
        await store.pull(f"{registry.address}/a:1")
        hosts_file(tmp_path, "none.test", f'server = "{url}"\nca = "nothing.crt"')
        with pytest.raises(FailedPrecondition, match=r"can't be used .*nothing\.crt"):
            await store.pull("none.test/a:1")


async def test_client_certificates(store: ImageStore, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue("server"))
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(tmp_path / "ca" / "ca.crt")
    certificate, key = authority.issue("client")
    with Registry(tls=context) as registry:
        registry.add_image("a", "1", [tar_of({"f": b"x"})])
        text = f'server = "https://{registry.address}"\nca = "{tmp_path}/ca/ca.crt"\n'
        hosts_file(tmp_path, "mutual.test", text)
        with pytest.raises(Unavailable, match="RegistryUnavailable"):
            await store.pull("mutual.test/a:1")
        hosts_file(tmp_path, "mutual.test", f'{text}client = [["{certificate}", "{key}"]]')
        await store.pull("mutual.test/a:1")


async def test_a_mount_of_many_layers(store: ImageStore, tmp_path: Path) -> None:
    with Registry() as registry:
        layers = [tar_of({f"f{n}": b"%d" % n, "same": b"%d" % n}) for n in range(130)]
        registry.add_image("many", "1", layers)
        image_id = await store.pull(f"{registry.address}/many:1")
    (overlay,) = await store.prepare_rootfs(image_id, "c1")
    target = tmp_path / "mounted"
    target.mkdir()
    mount(overlay, str(target))
    try:
        assert (target / "same").read_bytes() == b"129"
        assert len(os.listdir(target)) == 131
        (target / "new").write_text("x")
    finally:
        unmount(str(target))
    view = await store.mount_view(image_id, "c1", "v1")
    assert view is not None
    assert len(os.listdir(view)) == 131
    with pytest.raises(OSError, match="Read-only"):
        (view / "new").write_text("x")
    await store.release_rootfs("c1")
    assert not view.exists()


# More of them: ZOS_CRI_TEST_KILLS=50
KILLS = int(os.environ.get("ZOS_CRI_TEST_KILLS") or 12)

PULLER = """
import asyncio, pathlib, sys
from zos_cri.images.store import ImageStore

async def main():
    store = ImageStore(pathlib.Path(sys.argv[1]))
    await store.start()
    print("open", flush=True)
    await store.pull(sys.argv[2])
    print("pulled", flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_a_killed_server_leaves_nothing_half_written(tmp_path: Path) -> None:
    """kill -9 of the server at random moments of a pull: the next one succeeds."""
    chance = random.Random(3)
    root = tmp_path / "images"
    size = 2_000_000
    with Registry() as registry:
        layers = [tar_of({f"f{n}": chance.randbytes(size)}) for n in range(3)]
        registry.add_image("a", "1", layers)
        ref = f"{registry.address}/a:1"
        for _ in range(KILLS):
            argv = [sys.executable, "-c", PULLER, str(root), ref]
            process = await asyncio.create_subprocess_exec(
                *argv, stdout=subprocess.PIPE, cwd=os.getcwd()
            )
            assert process.stdout is not None
            assert await process.stdout.readline() == b"open\n"
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.stdout.readline(), chance.uniform(0, 0.8))
            process.send_signal(signal.SIGKILL)
            await process.wait()
        store = ImageStore(root)
        await store.start()
        image_id = await store.pull(ref)
        image = store.find(image_id)
        assert image is not None
        for number, chain_id in enumerate(image.chain_ids):
            path = store.layout.layer(store.catalog.layers[chain_id].n) / f"f{number}"
            assert path.stat().st_size == size
        # The last killed server's worker may be ending still; what it leaves is found by gc.
        await store.gc()
        assert len(list((store.layout.blobs / "sha256").iterdir())) == 3
        assert len(os.listdir(store.layout.layers)) == 4
        async with asyncio.timeout(20):
            while os.listdir(store.layout.ingest) or os.listdir(store.layout.trash):
                await asyncio.sleep(0.05)
                await store.gc()
        await store.aclose()
