"""Pods as the kubelet asks for them, timed step by step over a CRI socket."""

from __future__ import annotations

import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import grpc

from zos_cri._pb import cri_pb2 as pb
from zos_cri._pb import cri_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

CALL_TIMEOUT: Final = 60.0  # seconds; the slowest call seen, among 50 at once, took 6
PULL_TIMEOUT: Final = 300.0
MAX_MESSAGE: Final = 16 << 20  # bytes: the kubelet's own limit
READ_FOR: Final = 1.0  # seconds, of each kind
READS: Final = 10  # of each kind, at least: containerd's lists of statistics take 0.2 s each
LABEL: Final = "zos-cri.bench"  # by it our pods are told from others on a socket that isn't ours

# What the kubelet hands to every container that isn't privileged.
MASKED: Final = (
    *("/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys"),
    *("/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug"),
    *("/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap"),
)
READONLY: Final = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
SERVICES: Final = ("KUBERNETES", "DNS", "WEB", "DATABASE")  # each gives a container 7 variables


class Recorder:
    """Measurements by name, in milliseconds unless the name's row in the report says otherwise."""

    def __init__(self) -> None:
        self.samples: dict[str, list[float]] = {}
        self.errors: dict[str, str] = {}

    def add(self, key: str, value: float) -> None:
        self.samples.setdefault(key, []).append(value)

    @contextmanager
    def time(self, key: str) -> Iterator[None]:
        """Notes how long the body took; nothing where it failed."""
        begun = time.perf_counter()
        yield
        self.add(key, (time.perf_counter() - begun) * 1000)


class Cri:
    """Both services of one socket, over one connection as the kubelet has it."""

    def __init__(self, endpoint: str) -> None:
        options = [
            ("grpc.max_receive_message_length", MAX_MESSAGE),
            ("grpc.max_send_message_length", MAX_MESSAGE),
        ]
        self._channel = grpc.insecure_channel(endpoint, options=options)
        self.runtime: Any = cri_pb2_grpc.RuntimeServiceStub(  # type: ignore[no-untyped-call]
            self._channel
        )
        self.images: Any = cri_pb2_grpc.ImageServiceStub(  # type: ignore[no-untyped-call]
            self._channel
        )

    def close(self) -> None:
        self._channel.close()

    def version(self, timeout: float = CALL_TIMEOUT) -> str:
        answer = self.runtime.Version(pb.VersionRequest(), timeout=timeout)
        return f"{answer.runtime_name} {answer.runtime_version}"

    def conditions(self) -> dict[str, bool]:
        """RuntimeReady and NetworkReady, as Status has them."""
        status = self.runtime.Status(pb.StatusRequest(), timeout=CALL_TIMEOUT).status
        return {each.type: each.status for each in status.conditions}

    def ensure_image(self, reference: str) -> None:
        """Pulls an image that isn't there."""
        image = pb.ImageSpec(image=reference)
        status = self.images.ImageStatus(pb.ImageStatusRequest(image=image), timeout=CALL_TIMEOUT)
        if not status.HasField("image"):
            self.images.PullImage(pb.PullImageRequest(image=image), timeout=PULL_TIMEOUT)

    def remove_pods(self, tag: str) -> None:
        """Stops and removes the pods that carry our label."""
        chosen = pb.ListPodSandboxRequest(filter=pb.PodSandboxFilter(label_selector={LABEL: tag}))
        for pod in self.runtime.ListPodSandbox(chosen, timeout=CALL_TIMEOUT).items:
            stop = pb.StopPodSandboxRequest(pod_sandbox_id=pod.id)
            self.runtime.StopPodSandbox(stop, timeout=CALL_TIMEOUT)
            remove = pb.RemovePodSandboxRequest(pod_sandbox_id=pod.id)
            self.runtime.RemovePodSandbox(remove, timeout=CALL_TIMEOUT)


@dataclass(frozen=True)
class Pod:
    """A pod with its one container, both running."""

    id: str
    container: str


class Workload:
    """Makes pods on one target and notes what each call took.

    Args:
        cri: where to.
        tag: of this run: in names and labels.
        image: the container's; it must be there.
        cgroup_parent: of the pods.
        directory: for the pods' logs and the files that are mounted.
    """

    def __init__(
        self, cri: Cri, *, tag: str, image: str, cgroup_parent: str, directory: Path
    ) -> None:
        self._cri = cri
        self._tag = tag
        self._image = image
        self._cgroup_parent = cgroup_parent
        self._logs = directory / "logs"
        self._numbers = itertools.count()
        self._mounted = {
            "/etc/hosts": directory / "etc-hosts",
            "/dev/termination-log": directory / "termination-log",
        }
        self._logs.mkdir(parents=True, exist_ok=True)
        for path in self._mounted.values():
            path.write_text("127.0.0.1 localhost\n")

    # ---- configurations

    def _pod_config(self, *, bridge: bool) -> pb.PodSandboxConfig:
        number = next(self._numbers)
        name, uid = f"bench-{number}", f"{self._tag}-{number:08d}"
        node = pb.NamespaceMode.POD if bridge else pb.NamespaceMode.NODE
        return pb.PodSandboxConfig(
            metadata=pb.PodSandboxMetadata(name=name, namespace="bench", uid=uid),
            hostname=name if bridge else "",
            log_directory=str(self._logs / f"bench_{name}_{uid}"),
            dns_config=pb.DNSConfig(
                servers=["10.96.0.10"],
                searches=["bench.svc.cluster.local", "svc.cluster.local", "cluster.local"],
                options=["ndots:5"],
            ),
            labels={
                LABEL: self._tag,
                "io.kubernetes.pod.name": name,
                "io.kubernetes.pod.namespace": "bench",
                "io.kubernetes.pod.uid": uid,
            },
            annotations={"kubernetes.io/config.source": "api"},
            linux=pb.LinuxPodSandboxConfig(
                cgroup_parent=self._cgroup_parent,
                security_context=pb.LinuxSandboxSecurityContext(
                    namespace_options=pb.NamespaceOption(
                        network=node, pid=pb.NamespaceMode.CONTAINER, ipc=pb.NamespaceMode.POD
                    ),
                ),
            ),
        )

    def _container_config(self, pod: pb.PodSandboxConfig) -> pb.ContainerConfig:
        envs = [
            pb.KeyValue(key=f"{service}_{part}", value=b"10.96.0.1")
            for service in SERVICES
            for part in ("SERVICE_HOST", "SERVICE_PORT", "PORT", "TCP", "TCP_PROTO", "TCP_PORT")
        ]
        return pb.ContainerConfig(
            metadata=pb.ContainerMetadata(name="main"),
            image=pb.ImageSpec(image=self._image),
            command=["sleep", "1000000"],
            envs=envs,
            mounts=[
                pb.Mount(container_path=inside, host_path=str(outside))
                for inside, outside in self._mounted.items()
            ],
            labels={**pod.labels, "io.kubernetes.container.name": "main"},
            annotations={"io.kubernetes.container.restartCount": "0"},
            log_path="main/0.log",
            linux=pb.LinuxContainerConfig(
                resources=pb.LinuxContainerResources(
                    cpu_period=100_000,
                    cpu_shares=102,
                    memory_limit_in_bytes=64 << 20,
                    oom_score_adj=1000,
                ),
                security_context=pb.LinuxContainerSecurityContext(
                    namespace_options=pod.linux.security_context.namespace_options,
                    masked_paths=MASKED,
                    readonly_paths=READONLY,
                    seccomp=pb.SecurityProfile(profile_type=pb.SecurityProfile.Unconfined),
                ),
            ),
        )

    # ---- steps

    def _call(self, recorder: Recorder, prefix: str, method: str, request: Any) -> Any:
        with recorder.time(f"{prefix}/{method}"):
            return getattr(self._cri.runtime, method)(request, timeout=CALL_TIMEOUT)

    def ready(self, recorder: Recorder, prefix: str, *, bridge: bool = False) -> Pod:
        """RunPodSandbox, CreateContainer, StartContainer."""
        config = self._pod_config(bridge=bridge)
        with recorder.time(f"{prefix}/ready"):
            run = pb.RunPodSandboxRequest(config=config)
            pod = self._call(recorder, prefix, "RunPodSandbox", run).pod_sandbox_id
            create = pb.CreateContainerRequest(
                pod_sandbox_id=pod, config=self._container_config(config), sandbox_config=config
            )
            container = self._call(recorder, prefix, "CreateContainer", create).container_id
            start = pb.StartContainerRequest(container_id=container)
            self._call(recorder, prefix, "StartContainer", start)
        return Pod(pod, container)

    def exec_true(self, recorder: Recorder, prefix: str, pod: Pod) -> None:
        request = pb.ExecSyncRequest(container_id=pod.container, cmd=["true"], timeout=10)
        code = self._call(recorder, prefix, "ExecSync", request).exit_code
        if code != 0:
            raise RuntimeError(f"ExecSync true: exit code {code}")

    def gone(self, recorder: Recorder, prefix: str, pod: Pod) -> None:
        """StopContainer without a grace, RemoveContainer, StopPodSandbox, RemovePodSandbox."""
        for method, request in (
            ("StopContainer", pb.StopContainerRequest(container_id=pod.container, timeout=0)),
            ("RemoveContainer", pb.RemoveContainerRequest(container_id=pod.container)),
        ):
            self._call(recorder, prefix, method, request)
        with recorder.time(f"{prefix}/StopPodSandbox+RemovePodSandbox"):
            stop = pb.StopPodSandboxRequest(pod_sandbox_id=pod.id)
            self._call(recorder, prefix, "StopPodSandbox", stop)
            remove = pb.RemovePodSandboxRequest(pod_sandbox_id=pod.id)
            self._call(recorder, prefix, "RemovePodSandbox", remove)

    def cycle(self, recorder: Recorder, prefix: str, *, bridge: bool = False) -> None:
        """A pod's whole life."""
        with recorder.time(f"{prefix}/cycle"):
            pod = self.ready(recorder, prefix, bridge=bridge)
            self.exec_true(recorder, prefix, pod)
            self.gone(recorder, prefix, pod)

    # ---- many at once

    def at_once(self, recorder: Recorder, number: int, cycles: int) -> None:
        """Cycles a second with `number` of them under way at any time."""
        prefix = f"at-once/{number}"
        begun = time.perf_counter()
        spread(number, cycles, lambda _: self.cycle(recorder, prefix))
        recorder.add(f"{prefix}/rate", cycles / (time.perf_counter() - begun))

    def fill(self, recorder: Recorder, number: int, *, at_once: int) -> list[Pod]:
        """Makes pods; seconds until the last was ready."""
        prefix = f"pods/{number}"
        pods: list[Pod] = []
        begun = time.perf_counter()
        spread(at_once, number, lambda _: pods.append(self.ready(recorder, f"{prefix}/filling")))
        recorder.add(f"{prefix}/fill", time.perf_counter() - begun)
        return pods

    def drain(self, recorder: Recorder, pods: list[Pod], *, at_once: int) -> None:
        prefix = f"pods/{len(pods)}"
        begun = time.perf_counter()
        spread(at_once, len(pods), lambda n: self.gone(recorder, f"{prefix}/draining", pods[n]))
        recorder.add(f"{prefix}/drain", time.perf_counter() - begun)

    def reads(self, recorder: Recorder, pods: list[Pod], times: int) -> None:
        """What the kubelet reads while all these pods run; a call that fails is noted as that.

        Args:
            times: of each kind, at most: a slow one ends after `READ_FOR`.
        """
        pod = pods[len(pods) // 2]
        requests: dict[str, Callable[[], Any]] = {
            "ListContainers": pb.ListContainersRequest,
            "ListPodSandbox": pb.ListPodSandboxRequest,
            "ContainerStatus": lambda: pb.ContainerStatusRequest(container_id=pod.container),
            "PodSandboxStatus": lambda: pb.PodSandboxStatusRequest(pod_sandbox_id=pod.id),
            "ContainerStats": lambda: pb.ContainerStatsRequest(container_id=pod.container),
            "ListContainerStats": pb.ListContainerStatsRequest,
            "ListPodSandboxStats": pb.ListPodSandboxStatsRequest,
            "Status": pb.StatusRequest,
        }
        prefix = f"pods/{len(pods)}"
        for method, request in requests.items():
            try:
                end = time.perf_counter() + READ_FOR
                for number in range(times):
                    if number >= READS and time.perf_counter() > end:
                        break
                    self._call(recorder, prefix, method, request())
            except grpc.RpcError as error:
                recorder.errors[f"{prefix}/{method}"] = error.code().name


def spread(threads: int, times: int, work: Callable[[int], object]) -> None:
    """Calls `work(0 … times - 1)` from some threads; the first failure ends it and is raised."""
    numbers = iter(range(times))
    lock = threading.Lock()

    def take() -> int | None:
        with lock:
            return next(numbers, None)

    def loop() -> None:
        try:
            while (number := take()) is not None:
                work(number)
        except BaseException:
            _use_up(take)
            raise

    with ThreadPoolExecutor(threads) as pool:
        try:
            for each in [pool.submit(loop) for _ in range(threads)]:
                each.result()
        except BaseException:
            _use_up(take)  # an interrupt reaches only this thread
            raise


def _use_up(take: Callable[[], int | None]) -> None:
    while take() is not None:
        pass
