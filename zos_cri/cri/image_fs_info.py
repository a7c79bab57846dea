"""ImageFsInfo."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zos_cri._pb import cri_pb2 as pb

if TYPE_CHECKING:
    from zos_cri.cri.services import Services
    from zos_cri.images.model import FsInfo


async def image_fs_info(services: Services, _: pb.ImageFsInfoRequest) -> pb.ImageFsInfoResponse:
    """What all images take, and what all containers have written, of the disk they are on."""
    info = await services.images.fs_info()
    return pb.ImageFsInfoResponse(
        image_filesystems=[_usage(info, info.used_bytes, info.used_inodes)],
        container_filesystems=[_usage(info, info.containers_bytes, info.containers_inodes)],
    )


def _usage(info: FsInfo, used: int, inodes: int) -> pb.FilesystemUsage:
    return pb.FilesystemUsage(
        timestamp=info.timestamp_ns,
        fs_id=pb.FilesystemIdentifier(mountpoint=info.mountpoint),
        used_bytes=pb.UInt64Value(value=used),
        inodes_used=pb.UInt64Value(value=inodes),
    )
