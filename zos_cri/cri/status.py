"""Status."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import msgspec

from zos_cri._pb import cri_pb2 as pb
from zos_cri.linux import dynmods
from zos_cri.shim.handler import SHIM

if TYPE_CHECKING:
    from zos_cri.cri.services import Services


async def status(services: Services, request: pb.StatusRequest) -> pb.StatusResponse:
    """Whether pods can be run and connected. Answered from memory: no shim or plugin is asked."""
    network = services.network.status()
    return pb.StatusResponse(
        status=pb.RuntimeStatus(
            conditions=[
                pb.RuntimeCondition(type="RuntimeReady", status=True),
                pb.RuntimeCondition(
                    type="NetworkReady",
                    status=network.ready,
                    reason=network.reason,
                    message=network.message,
                ),
                *_sandboxers(services),
            ]
        ),
        info=await _info(services) if request.verbose else {},
        runtime_handlers=_handlers(services),
        features=pb.RuntimeFeatures(
            supplemental_groups_policy=True,
            mount_options=True,
            user_namespaces_host_network=any(f.user_namespaces for f in services.features.values()),
        ),
    )


def _sandboxers(services: Services) -> list[pb.RuntimeCondition]:
    """Whether the shims that are to make sandboxes do; nothing where none is to."""
    if all(handler.sandboxer != SHIM for handler in services.config.handlers.values()):
        return []
    failures = services.sandboxes.by_shims.failures
    return [
        pb.RuntimeCondition(
            type="SandboxersReady",
            status=not failures,
            reason="HandlerFailed" if failures else "",
            message="; ".join(f'handler "{name}": {why}' for name, why in failures.items()),
        )
    ]


def _handlers(services: Services) -> list[pb.RuntimeHandler]:
    """Every handler by its name, and the default one by "" as well (CRI: RuntimeHandler.name)."""
    features = services.features
    named = [pb.RuntimeHandler(name=name, features=features[name]) for name in sorted(features)]
    default = services.config.default_handler
    return [pb.RuntimeHandler(name="", features=features[default]), *named]


async def _info(services: Services) -> dict[str, str]:
    network = services.network.status()
    return {
        "config": msgspec.json.encode(services.config).decode(),
        "cniStatus": json.dumps({"ready": network.ready, "message": network.message}),
        "counts": json.dumps(
            {
                "sandboxes": len(services.sandboxes.table),
                "containers": len(services.containers.table),
            }
        ),
        "cgroups": json.dumps(
            {"mode": services.cgroups.mode, "favordynmods": await dynmods.favored()}
        ),
        "defaultRuntime": msgspec.json.encode(services.runtime).decode(),
        "warmShims": json.dumps(services.sandboxes.places.warm.count()),
        "recovered": json.dumps(services.containers.recovered.is_set()),
    }
