"""The control plane: etcd, Kubernetes' three programs, and metrics-server."""

from __future__ import annotations

import json
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

from hack.clusters.keys import Authority, signing_key
from hack.clusters.programs import Program, run, wait_until

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / ".cache" / "tools" / "bin"
ADDRESS = "10.97.0.1"  # the nodes' gateway; not in 127/8, where nobody but us would reach it
URL = f"https://{ADDRESS}:6443"
SERVICES = "10.96.0.0/16"
PODS = "10.244.0.0/16"  # each node gets a /24 of it
ETCD = "http://127.0.0.1:2379"
START_TIMEOUT = 180.0
METRICS_PORT = 4443
ADMINISTRATORS = "system:masters"


class ControlPlane:
    """It runs in our own namespaces; the nodes are reached over a bridge in them."""

    def __init__(self, directory: Path) -> None:
        self.keys = directory / "keys"
        self._logs = directory
        self.authority = Authority(self.keys)
        self.kubeconfig = self.authority.kubeconfig("admin", "admin", URL, group=ADMINISTRATORS)
        self.etcd = self._program("etcd", *_etcd(directory / "etcd"))
        self.api = self._program("kube-apiserver", *self._api_server())
        self.managers = [
            self._program("kube-controller-manager", *self._controller_manager()),
            self._program("kube-scheduler", *self._scheduler()),
        ]
        self.metrics: list[Program] = []

    @property
    def programs(self) -> list[Program]:
        return [self.etcd, self.api, *self.managers, *self.metrics]

    def start(self) -> None:
        """Starts all of it, and waits until the API server is ready."""
        for program in (self.etcd, self.api):
            program.start()
        wait_until(self._is_ready, START_TIMEOUT, "the API server is ready", [self.etcd, self.api])
        for program in self.managers:
            program.start()
        if (TOOLS / "metrics-server").exists():
            self.metrics = [self._program("metrics-server", *self._metrics_server())]
            self.metrics[0].start()
            self.apply(*_metrics_service())

    def stop(self) -> None:
        for program in reversed(self.programs):
            program.end()

    def kubectl(self, *arguments: str | Path, stdin: str = "", timeout: float = 60) -> str:
        """Runs kubectl; its output. SystemExit, with what it said, where it fails."""
        return run(*self.kubectl_command(*arguments), stdin=stdin, timeout=timeout)

    def kubectl_command(self, *arguments: str | Path) -> list[str]:
        words = [TOOLS / "kubectl", f"--kubeconfig={self.kubeconfig}", *arguments]
        return [str(word) for word in words]

    def apply(self, *objects: dict[str, Any]) -> None:
        items = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        self.kubectl("apply", "--filename=-", stdin=json.dumps(items))

    def get(self, *arguments: str) -> dict[str, Any]:
        """`kubectl get`: an object, or a list with `items`."""
        return dict(json.loads(self.kubectl("get", "--output=json", *arguments)))

    def _is_ready(self) -> bool:
        with suppress(SystemExit, subprocess.TimeoutExpired):
            return self.kubectl("get", "--raw=/readyz", timeout=10) == "ok"
        return False

    def _program(self, name: str, *arguments: str) -> Program:
        return Program(self._logs / f"{name}.log", TOOLS / name, *arguments)

    def _api_server(self) -> list[str]:
        names = ["IP:" + ADDRESS, "IP:127.0.0.1", "IP:10.96.0.1", "DNS:localhost"]
        names += ["DNS:kubernetes", "DNS:kubernetes.default.svc"]
        certificate, key = self.authority.sign("apiserver", "kube-apiserver", hosts=names)
        kubelets = self.authority.sign("kubelets", "kube-apiserver-kubelets", group=ADMINISTRATORS)
        # What the API server hands on to metrics-server it signs by an authority of its own.
        front = Authority(self.keys / "front-proxy")
        proxy = front.sign("client", "front-proxy-client")
        private, public = signing_key(self.keys)
        return [
            f"--etcd-servers={ETCD}",
            f"--bind-address={ADDRESS}",
            f"--advertise-address={ADDRESS}",
            f"--service-cluster-ip-range={SERVICES}",
            f"--client-ca-file={self.authority.certificate}",
            f"--tls-cert-file={certificate}",
            f"--tls-private-key-file={key}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-signing-key-file={private}",
            f"--service-account-key-file={public}",
            "--authorization-mode=Node,RBAC",
            "--allow-privileged=true",
            "--endpoint-reconciler-type=none",
            f"--kubelet-client-certificate={kubelets[0]}",
            f"--kubelet-client-key={kubelets[1]}",
            "--kubelet-preferred-address-types=InternalIP",
            # There is no kube-proxy here: to metrics-server by its endpoint, not its service.
            "--enable-aggregator-routing=true",
            f"--proxy-client-cert-file={proxy[0]}",
            f"--proxy-client-key-file={proxy[1]}",
            f"--requestheader-client-ca-file={front.certificate}",
            "--requestheader-allowed-names=front-proxy-client",
            "--requestheader-username-headers=X-Remote-User",
            "--requestheader-group-headers=X-Remote-Group",
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        ]

    def _controller_manager(self) -> list[str]:
        name = "controller-manager"
        kubeconfig = self.authority.kubeconfig(name, "system:kube-controller-manager", URL)
        private, _ = signing_key(self.keys)
        return [
            f"--kubeconfig={kubeconfig}",
            f"--service-account-private-key-file={private}",
            f"--root-ca-file={self.authority.certificate}",
            "--use-service-account-credentials=true",
            "--allocate-node-cidrs=true",
            f"--cluster-cidr={PODS}",
            f"--service-cluster-ip-range={SERVICES}",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
        ]

    def _scheduler(self) -> list[str]:
        kubeconfig = self.authority.kubeconfig("scheduler", "system:kube-scheduler", URL)
        return [f"--kubeconfig={kubeconfig}", "--leader-elect=false", "--bind-address=127.0.0.1"]

    def _metrics_server(self) -> list[str]:
        user = "metrics-server"
        kubeconfig = self.authority.kubeconfig(user, user, URL, group=ADMINISTRATORS)
        return [
            f"--kubeconfig={kubeconfig}",
            f"--authentication-kubeconfig={kubeconfig}",
            f"--authorization-kubeconfig={kubeconfig}",
            f"--cert-dir={self.keys / 'metrics-server'}",
            f"--secure-port={METRICS_PORT}",
            "--kubelet-insecure-tls",
            "--kubelet-preferred-address-types=InternalIP",
            "--metric-resolution=10s",
            "--kubelet-request-timeout=5s",  # it must be less
        ]


def _etcd(data: Path) -> list[str]:
    peers = "http://127.0.0.1:2380"
    return [
        f"--data-dir={data}",
        f"--listen-client-urls={ETCD}",
        f"--advertise-client-urls={ETCD}",
        f"--listen-peer-urls={peers}",
        f"--initial-advertise-peer-urls={peers}",
        f"--initial-cluster=default={peers}",
        "--unsafe-no-fsync",  # nothing in it is to outlive the machine
    ]


def _metrics_service() -> list[dict[str, Any]]:
    """What makes the API server hand metrics.k8s.io on to our process."""
    named = {"name": "metrics-server", "namespace": "kube-system"}
    port = {"name": "https", "port": METRICS_PORT, "protocol": "TCP"}
    return [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": named,
            "spec": {"ports": [{**port, "port": 443, "targetPort": METRICS_PORT}]},
        },
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {**named, "labels": {"kubernetes.io/service-name": "metrics-server"}},
            "addressType": "IPv4",
            "ports": [port],
            "endpoints": [{"addresses": [ADDRESS], "conditions": {"ready": True}}],
        },
        {
            "apiVersion": "apiregistration.k8s.io/v1",
            "kind": "APIService",
            "metadata": {"name": "v1beta1.metrics.k8s.io"},
            "spec": {
                "service": {"name": "metrics-server", "namespace": "kube-system"},
                "group": "metrics.k8s.io",
                "version": "v1beta1",
                "insecureSkipTLSVerify": True,
                "groupPriorityMinimum": 100,
                "versionPriority": 100,
            },
        },
    ]
