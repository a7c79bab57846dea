"""The commands for images: images, pull, rmi, load, save, gc."""

from __future__ import annotations

import getpass
import json
import os
import shutil
import sys
import tempfile
from typing import TYPE_CHECKING, Any, Final

from zos_cri.cli.client import TIMEOUT, add_socket, channel
from zos_cri.cli.table import print_table
from zos_cri.errors import InvalidArgument

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

BAR: Final = 30  # characters
_MIB: Final = 1 << 20


def add(commands: Commands) -> None:
    listing = _command(commands, "images", images, "list images", "zos-cri images -o json")
    listing.add_argument("-o", "--output", choices=("table", "json"), default="table")
    puller = _command(commands, "pull", pull, "pull an image", "zos-cri pull busybox:1.36")
    puller.add_argument("image", metavar="IMAGE", help="a reference, or flist:PATH or flist:URL")
    puller.add_argument("-u", "--username", default="", help="the password is asked for")
    puller.add_argument("-q", "--quiet", action="store_true", help="no progress, only the id")
    remover = _command(commands, "rmi", rmi, "remove images", "zos-cri rmi busybox:1.36")
    remover.add_argument("image", metavar="IMAGE", nargs="+")
    loader = _command(
        commands, "load", load, "load images from an archive", "zos-cri load -i images.tar"
    )
    loader.add_argument("-i", "--input", default="-", metavar="FILE", help="default: stdin")
    saver = _command(
        commands, "save", save, "save images to an archive", "zos-cri save -o box.tar busybox"
    )
    saver.add_argument("-o", "--output", default="-", metavar="FILE", help="default: stdout")
    saver.add_argument("image", metavar="IMAGE", nargs="+")
    collector = _command(
        commands, "gc", gc, "remove what no image or container needs", "zos-cri gc --dry-run"
    )
    collector.add_argument("--dry-run", action="store_true", help="only say what would go")


def _command(
    commands: Commands,
    name: str,
    run: Callable[[argparse.Namespace], int],
    text: str,
    example: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + ".", epilog=f"example: {example}"
    )
    add_socket(parser)
    parser.set_defaults(run=run)
    return parser


def _cri(connection: Any) -> Any:
    from zos_cri._pb import cri_pb2_grpc  # noqa: PLC0415 protobuf costs --help 30 ms

    return cri_pb2_grpc.ImageServiceStub(connection)  # type: ignore[no-untyped-call]


def _ours(connection: Any) -> Any:
    from zos_cri._pb import image_pb2_grpc  # noqa: PLC0415

    return image_pb2_grpc.ImageModuleStub(connection)  # type: ignore[no-untyped-call]


def images(arguments: argparse.Namespace) -> int:
    """`zos-cri images`."""
    from google.protobuf import json_format  # noqa: PLC0415

    from zos_cri._pb import cri_pb2 as pb  # noqa: PLC0415

    with channel(arguments.socket) as connection:
        found = _cri(connection).ListImages(pb.ListImagesRequest(), timeout=TIMEOUT).images
    if arguments.output == "json":
        rows = [json_format.MessageToDict(i, preserving_proto_field_name=True) for i in found]
        print(json.dumps(rows, indent=2))
        return 0
    print_table(
        ("IMAGE", "ID", "SIZE MIB", "PINNED"),
        [
            (name, image.id[:19], f"{image.size / _MIB:.1f}", "yes" if image.pinned else "")
            for image in found
            for name in (*image.repo_tags, *([] if image.repo_tags else image.repo_digests[:1]))
        ],
    )
    return 0


def pull(arguments: argparse.Namespace) -> int:
    """`zos-cri pull`: a bar for each layer where a person looks on."""
    from zos_cri._pb import image_pb2 as pb  # noqa: PLC0415

    password = getpass.getpass(f"password of {arguments.username}: ") if arguments.username else ""
    request = pb.PullRequest(image=arguments.image, username=arguments.username, password=password)
    bars = Bars(sys.stderr.isatty() and not arguments.quiet)
    with channel(arguments.socket) as connection:
        for answer in _ours(connection).Pull(request):
            bars.draw(answer.layers)
            if answer.image_id:
                bars.clear()
                print(answer.image_id)
    return 0


class Bars:
    """Progress bars on standard error, drawn over each other."""

    def __init__(self, wanted: bool) -> None:
        self._wanted = wanted
        self._lines = 0

    def draw(self, layers: Sequence[Any]) -> None:
        """Draws one bar a layer."""
        if not self._wanted or not layers:
            return
        self.clear()
        for layer in layers:
            share = layer.fetched / layer.size if layer.size else 0.0
            full = round(min(share, 1.0) * BAR)
            print(
                f"{layer.digest.partition(':')[2][:12]} [{'#' * full}{' ' * (BAR - full)}]"
                f" {layer.fetched / _MIB:7.1f} of {layer.size / _MIB:.1f} MiB  {layer.state}",
                file=sys.stderr,
            )
        self._lines = len(layers)

    def clear(self) -> None:
        """Takes the bars away."""
        if self._lines:
            print(f"\x1b[{self._lines}A\x1b[J", end="", file=sys.stderr, flush=True)
            self._lines = 0


def rmi(arguments: argparse.Namespace) -> int:
    """`zos-cri rmi`."""
    from zos_cri._pb import cri_pb2 as pb  # noqa: PLC0415

    with channel(arguments.socket) as connection:
        for image in arguments.image:
            request = pb.RemoveImageRequest(image=pb.ImageSpec(image=image))
            _cri(connection).RemoveImage(request, timeout=TIMEOUT)
    return 0


def load(arguments: argparse.Namespace) -> int:
    """`zos-cri load`."""
    from zos_cri._pb import image_pb2 as pb  # noqa: PLC0415

    with tempfile.TemporaryDirectory(prefix="zos-cri-load.") as directory:
        path = os.path.abspath(arguments.input)
        if arguments.input == "-":
            path = os.path.join(directory, "images.tar")
            with open(path, "wb") as file:
                shutil.copyfileobj(sys.stdin.buffer, file)
        with channel(arguments.socket) as connection:
            answer = _ours(connection).Load(pb.LoadRequest(path=path))
    for image in answer.images:
        print(image.id, *image.repo_tags)
    return 0


def save(arguments: argparse.Namespace) -> int:
    """`zos-cri save`."""
    from zos_cri._pb import image_pb2 as pb  # noqa: PLC0415

    if arguments.output == "-" and sys.stdout.isatty():
        raise InvalidArgument("--output: an archive is nothing for a terminal: name a file")
    with tempfile.TemporaryDirectory(prefix="zos-cri-save.") as directory:
        to_stdout = arguments.output == "-"
        path = os.path.join(directory, "images.tar")
        request = pb.SaveRequest(
            images=arguments.image, path=path if to_stdout else os.path.abspath(arguments.output)
        )
        with channel(arguments.socket) as connection:
            _ours(connection).Save(request)
        if to_stdout:
            with open(path, "rb") as file:
                shutil.copyfileobj(file, sys.stdout.buffer)
    return 0


def gc(arguments: argparse.Namespace) -> int:
    """`zos-cri gc`."""
    from zos_cri._pb import image_pb2 as pb  # noqa: PLC0415

    with channel(arguments.socket) as connection:
        request = pb.CollectRequest(dry_run=arguments.dry_run)
        report = _ours(connection).Collect(request, timeout=TIMEOUT)
    print(
        f"{'would remove' if arguments.dry_run else 'removed'} {report.layers} layers,"
        f" {report.archives} archives and {report.blocks} blocks of flists,"
        f" {report.bytes / _MIB:.1f} MiB"
    )
    return 0
