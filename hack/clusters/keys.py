"""Keys and certificates of a cluster, made by openssl; files that are there are left alone."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

DAYS = "3650"


class Authority:
    """A certificate authority of its own, and what it signs, in a directory."""

    def __init__(self, directory: Path, name: str = "ca") -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.key, self.certificate = directory / f"{name}.key", directory / f"{name}.crt"
        if not self.certificate.exists():
            _openssl(
                *("req", "-x509", *_new_key(self.key), "-days", DAYS),
                *("-subj", f"/CN=zos-cluster-{name}", "-out", str(self.certificate)),
            )

    def sign(
        self, name: str, user: str, *, group: str = "", hosts: Sequence[str] = ()
    ) -> tuple[Path, Path]:
        """A key and a certificate.

        Args:
            user: its common name: as whom Kubernetes knows the client.
            group: its organization: the client's group.
            hosts: names and addresses (`DNS:name`, `IP:address`) of a server.

        Returns:
            The certificate's file and the key's.
        """
        key, certificate = self._directory / f"{name}.key", self._directory / f"{name}.crt"
        if not certificate.exists():
            subject = (f"/O={group}" if group else "") + f"/CN={user}"
            extensions = [f"subjectAltName={','.join(hosts)}"] if hosts else []
            extensions.append("extendedKeyUsage=serverAuth,clientAuth")
            _openssl(
                *("req", "-x509", *_new_key(key), "-days", DAYS, "-subj", subject),
                *("-CA", str(self.certificate), "-CAkey", str(self.key)),
                *(word for extension in extensions for word in ("-addext", extension)),
                *("-addext", "basicConstraints=critical,CA:FALSE", "-out", str(certificate)),
            )
        return certificate, key

    def kubeconfig(self, name: str, user: str, server: str, *, group: str = "") -> Path:
        """A client's configuration for the API server at a URL, with a certificate of its own."""
        certificate, key = self.sign(name, user, group=group)
        path = self._directory / f"{name}.kubeconfig"
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {
                    "name": "zos",
                    "cluster": {"server": server, "certificate-authority": str(self.certificate)},
                }
            ],
            "users": [
                {
                    "name": user,
                    "user": {"client-certificate": str(certificate), "client-key": str(key)},
                }
            ],
            "contexts": [{"name": "zos", "context": {"cluster": "zos", "user": user}}],
            "current-context": "zos",
        }
        path.write_text(json.dumps(config, indent=2))
        return path


def signing_key(directory: Path) -> tuple[Path, Path]:
    """What signs service accounts' tokens: a private key and its public one."""
    private, public = directory / "sa.key", directory / "sa.pub"
    if not public.exists():
        _openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(private))
        _openssl("ec", "-in", str(private), "-pubout", "-out", str(public))
    return private, public


def _new_key(path: Path) -> tuple[str, ...]:
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")
    return (*curve, "-nodes", "-keyout", str(path))


def _openssl(*arguments: str) -> None:
    done = subprocess.run(
        ["openssl", *arguments], capture_output=True, text=True, timeout=30, check=False
    )
    if done.returncode != 0:
        raise SystemExit(f"openssl {arguments[0]}: {done.stderr.strip()}")
