"""Annotations of a spec: io.kubernetes.cri.*, and those of the pod that a handler asks for.

Runtimes in virtual machines, sandboxing runtimes and the runc shim's grouping read them; the names
are containerd's, which they agree on.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from zos_cri._pb import cri_pb2

PREFIX: Final = "io.kubernetes.cri."
CONTAINER_TYPE: Final = PREFIX + "container-type"
SANDBOX_ID: Final = PREFIX + "sandbox-id"
SANDBOX_NAME: Final = PREFIX + "sandbox-name"
SANDBOX_NAMESPACE: Final = PREFIX + "sandbox-namespace"
SANDBOX_UID: Final = PREFIX + "sandbox-uid"
SANDBOX_LOG_DIRECTORY: Final = PREFIX + "sandbox-log-directory"
CONTAINER_NAME: Final = PREFIX + "container-name"
IMAGE_NAME: Final = PREFIX + "image-name"


def of_sandbox(sandbox_id: str, config: cri_pb2.PodSandboxConfig) -> dict[str, str]:
    """What a pod's own spec says of it, with the resources that all of it may have."""
    result = {
        CONTAINER_TYPE: "sandbox",
        **_pod(sandbox_id, config),
        SANDBOX_LOG_DIRECTORY: config.log_directory,
    }
    if config.linux.HasField("resources"):
        resources = config.linux.resources
        result |= {
            PREFIX + "sandbox-cpu-period": str(resources.cpu_period),
            PREFIX + "sandbox-cpu-quota": str(resources.cpu_quota),
            PREFIX + "sandbox-cpu-shares": str(resources.cpu_shares),
            PREFIX + "sandbox-memory": str(resources.memory_limit_in_bytes),
        }
    return result


def of_container(
    sandbox_id: str, sandbox: cri_pb2.PodSandboxConfig, *, name: str, image: str
) -> dict[str, str]:
    """What a container's spec says of it: `name` is its metadata's, `image` what the user wrote."""
    return {
        CONTAINER_TYPE: "container",
        **_pod(sandbox_id, sandbox),
        CONTAINER_NAME: name,
        IMAGE_NAME: image,
    }


def _pod(sandbox_id: str, config: cri_pb2.PodSandboxConfig) -> dict[str, str]:
    return {
        SANDBOX_ID: sandbox_id,
        SANDBOX_NAME: config.metadata.name,
        SANDBOX_NAMESPACE: config.metadata.namespace,
        SANDBOX_UID: config.metadata.uid,
    }


def passed_on(annotations: Mapping[str, str], patterns: Iterable[str]) -> dict[str, str]:
    """Annotations whose key matches one of the handler's globs (`*`, `?`, `[…]`).

    As with Go's path.Match, which containerd's settings are written for, `*` and `?` don't match a
    `/`: `io.katacontainers.*` is one level of names.
    """
    compiled = [re.compile(_glob(pattern)) for pattern in patterns]
    return {
        key: value
        for key, value in annotations.items()
        # Ours say which pod a container belongs to: an annotation must not say otherwise.
        if not key.startswith(PREFIX) and any(glob.fullmatch(key) for glob in compiled)
    }


def _glob(pattern: str) -> str:
    """A glob as a regular expression: `*`, `?` and sets as `[a-z]` or `[^.]`."""
    return "".join(_part(part) for part in re.split(r"(\*|\?|\[\^?[\w.\-]+\])", pattern))


def _part(part: str) -> str:
    if part in ("*", "?"):
        return "[^/]*" if part == "*" else "[^/]"
    return part if part.startswith("[") and part.endswith("]") else re.escape(part)


def resource_class(
    kind: str, container: str, container_annotations: Mapping[str, str], pod: Mapping[str, str]
) -> str:
    """The RDT or block I/O class that annotations give a container, "" for none.

    Args:
        kind: `rdt` or `blockio`.
        container: The container's name.
        container_annotations: Its own: `io.kubernetes.cri.<kind>-class` comes before the pod's.
        pod: `<kind>.resources.beta.kubernetes.io/container.<name>` comes before `…/pod`.
    """
    prefix = f"{kind}.resources.beta.kubernetes.io/"
    own = container_annotations.get(f"{PREFIX}{kind}-class")
    if own is not None:
        return own
    return pod.get(f"{prefix}container.{container}", pod.get(f"{prefix}pod", ""))
