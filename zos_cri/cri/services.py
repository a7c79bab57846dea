"""What the RPCs work with: built once by `app`, handed to every one of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from zos_cri._pb import cri_pb2 as pb
    from zos_cri.config import Config
    from zos_cri.cri.checkpoints import Checkpoints
    from zos_cri.cri.creation import Creation
    from zos_cri.cri.events import Events
    from zos_cri.cri.limits import Limits
    from zos_cri.cri.nri import Nri
    from zos_cri.cri.output import Output
    from zos_cri.cri.sandboxes import Sandboxes
    from zos_cri.cri.stats_targets import Statistics
    from zos_cri.cri.views import Views
    from zos_cri.images.store import ImageStore
    from zos_cri.linux.cgroup import Cgroups
    from zos_cri.metrics import Metrics
    from zos_cri.module.containers import Containers
    from zos_cri.module.execs import Execs
    from zos_cri.network.cni import Network
    from zos_cri.oci.host import HostFacts
    from zos_cri.shim.choice import Choice
    from zos_cri.streaming.server import StreamingServer


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """
    Attributes:
        runtime: the default handler's.
        features: what each handler's shim and runtime can do.
    """

    config: Config
    runtime: Choice
    metrics: Metrics
    containers: Containers
    execs: Execs
    sandboxes: Sandboxes
    creation: Creation
    views: Views
    output: Output
    images: ImageStore
    network: Network
    features: Mapping[str, pb.RuntimeHandlerFeatures]
    host: HostFacts
    cgroups: Cgroups
    streaming: StreamingServer
    stats: Statistics
    events: Events
    checkpoints: Checkpoints
    limits: Limits
    nri: Nri
