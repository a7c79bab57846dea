"""Version."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from zos_cri import __version__
from zos_cri._pb import cri_pb2 as pb

if TYPE_CHECKING:
    from zos_cri.cri.services import Services

KUBE_API_VERSION: Final = "0.1.0"  # the only one there has been
CRI_VERSION: Final = "v1"


async def version(_: Services, __: pb.VersionRequest) -> pb.VersionResponse:
    """Names the server and its API. Answered at any time, also during the recovery."""
    return pb.VersionResponse(
        version=KUBE_API_VERSION,
        runtime_name="zos-cri",
        runtime_version=__version__,
        runtime_api_version=CRI_VERSION,
    )
