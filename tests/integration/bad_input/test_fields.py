"""No field of a pod's or a container's configuration is without a row, or a reason to have none."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.bad_input.test_containers import CONTAINERS
from tests.integration.bad_input.test_pods import PODS
from zos_cri._pb import cri_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterator

    from google.protobuf.descriptor import Descriptor

    from tests.integration.bad_input.rows import Row

WRAPPERS = ("runtime.v1.Int64Value",)


def fields_of(message: Descriptor, prefix: str = "") -> Iterator[str]:
    """Paths of all fields below a message but for booleans, which can't be wrong by themselves."""
    for field in message.fields:
        path, inner = f"{prefix}{field.name}", field.message_type
        if inner is not None and inner.full_name not in WRAPPERS and not inner.has_options:
            yield from fields_of(inner, f"{path}.")
        elif field.type != field.TYPE_BOOL:
            yield path


def named_by(rows: list[Row]) -> set[str]:
    """The fields that messages must begin with, without indices and keys."""
    found = (re.match(r"[\w.]+", re.sub(r"\[[^]]*\]", "", says)) for _, _, _, says in rows)
    return {match[0] for match in found if match}


def reasons(*pairs: tuple[str, str]) -> dict[str, str]:
    return {field: why for fields, why in pairs for field in fields.split()}


# Fields that no value of their type is wrong in, or whose rules another field's row has.
ANY = "any of its type will do"
JUDGED = "the length's error says that the range ends beyond the last id"
USERNS = "linux.security_context.namespace_options.userns_options"
POD_REASONS = reasons(
    ("labels metadata.attempt", ANY),
    ("annotations", "those that mean something have rows of their own names"),
    (f"{USERNS}.uids.host_id {USERNS}.gids.host_id", JUDGED),
    ("linux.overhead.hugepage_limits.limit linux.resources.hugepage_limits.limit", ANY),
    ("linux.security_context.namespace_options.target_id", "TARGET itself is refused"),
)
IMAGE_FIELDS = ("annotations", "image_ref", "runtime_handler", "user_specified_image")
CONTAINER_REASONS = reasons(
    ("labels metadata.attempt", ANY),
    ("annotations", "those that mean something have rows of their own names"),
    (" ".join(f"image.{name} mounts.image.{name}" for name in IMAGE_FIELDS), "nothing reads them"),
    (f"{USERNS}.uids.host_id {USERNS}.gids.host_id", JUDGED),
    (
        " ".join(
            f"mounts.{of}Mappings.{end}_id"
            for of in ("uid", "gid")
            for end in ("container", "host")
        ),
        JUDGED,
    ),
    ("linux.resources.hugepage_limits.limit", ANY),
    ("linux.resources.hugepage_limits.page_size", "test_huge_pages: not every host has them"),
)


@pytest.mark.parametrize(
    ("message", "rows", "excused"),
    [
        (pb.PodSandboxConfig, PODS, POD_REASONS),
        (pb.ContainerConfig, CONTAINERS, CONTAINER_REASONS),
    ],
    ids=["pod", "container"],
)
def test_every_field_has_a_row(message: Any, rows: list[Row], excused: dict[str, str]) -> None:
    # A node of the other kind reads `windows`, this one passes it over.
    fields = {f for f in fields_of(message.DESCRIPTOR) if not f.startswith("windows.")}
    named = named_by(rows)
    assert sorted(fields - named - excused.keys()) == []
    assert sorted(excused.keys() - fields) == [], "no such fields"
    assert sorted(excused.keys() & named) == [], "these have rows"
