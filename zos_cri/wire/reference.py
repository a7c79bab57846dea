"""Image references: what people write (`busybox`, `host:5000/a:tag@sha256:…`), in a normal form.

The grammar and the defaults are those of the distribution project, which the kubelet and crictl
share: no registry means `docker.io`, one path component there means `library/`, no tag and no
digest means `:latest`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

DEFAULT_DOMAIN: Final = "docker.io"
DEFAULT_TAG: Final = "latest"
# distribution's NameTotalLengthMax; registries refuse longer names.
MAX_NAME: Final = 255
# A name, a tag and the longest digest fit with room; nothing longer is worth a regular expression.
MAX_REFERENCE: Final = 1024

_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?")
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[\w][\w.-]{0,127}", re.ASCII)
_HEX: Final = {"sha256": 64, "sha384": 96, "sha512": 128}
_LOWER_HEX = re.compile(r"[0-9a-f]+")


class InvalidReference(ValueError):
    """Not an image reference; the message says why."""


@dataclass(frozen=True, slots=True)
class Reference:
    """A normalised reference. At least one of `tag` and `digest` is set."""

    domain: str
    path: str
    tag: str = ""
    digest: str = ""

    @property
    def name(self) -> str:
        """The repository: `docker.io/library/busybox`."""
        return f"{self.domain}/{self.path}"

    @property
    def key(self) -> str:
        """What an image is stored under: the name with its digest, else with its tag.

        Where both are given the digest decides and the tag is only a note, as for the kubelet.
        """
        return f"{self.name}@{self.digest}" if self.digest else f"{self.name}:{self.tag}"

    def with_digest(self, digest: str) -> str:
        """`name@digest`, as repo digests are written."""
        return f"{self.name}@{digest}"

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.name}{tag}{digest}"


def is_digest(text: str) -> bool:
    """Whether `text` is a digest of a known algorithm, in lower case and of the right length."""
    algorithm, colon, encoded = text.partition(":")
    return bool(
        colon
        and len(encoded) == _HEX.get(algorithm, -1)
        and _LOWER_HEX.fullmatch(encoded) is not None
    )


def parse(text: str) -> Reference:
    """The reference that `text` means.

    Raises:
        InvalidReference: it breaks the grammar, or is a bare 64-digit id.
    """
    if not text or len(text) > MAX_REFERENCE:
        reason = "it is empty" if not text else f"it is longer than {MAX_REFERENCE} characters"
        raise InvalidReference(f"image reference {text[:80]!r}: {reason}")
    rest, at, digest = text.partition("@")
    if at and not is_digest(digest):
        raise InvalidReference(
            f"image reference {text!r}: {digest!r} is no sha256, sha384 or sha512 digest"
        )
    rest, tag = _split_tag(rest)
    if tag is not None and not _TAG.fullmatch(tag):
        raise InvalidReference(f"image reference {text!r}: {tag!r} is no tag")
    if not at and tag is None and len(rest) == 64 and _LOWER_HEX.fullmatch(rest):
        raise InvalidReference(f"image reference {text!r}: 64 hexadecimal digits are an id")
    domain, path = _split_domain(rest)
    if not _DOMAIN.fullmatch(domain):
        raise InvalidReference(f"image reference {text!r}: {domain!r} is no registry host")
    if not _PATH.fullmatch(path):
        hint = ", a repository is in lower case" if path != path.lower() else ""
        raise InvalidReference(f"image reference {text!r}: {path!r} is no repository{hint}")
    if len(domain) + 1 + len(path) > MAX_NAME:
        raise InvalidReference(
            f"image reference {text[:80]!r}: the name is longer than {MAX_NAME} characters"
        )
    if tag is None and not digest:
        tag = DEFAULT_TAG
    return Reference(domain, path, tag or "", digest)


def _split_tag(text: str) -> tuple[str, str | None]:
    """A colon after the last slash begins a tag; one before it belongs to a port."""
    colon = text.rfind(":")
    return (text[:colon], text[colon + 1 :]) if colon > text.rfind("/") else (text, None)


def _split_domain(name: str) -> tuple[str, str]:
    """What stands before the first slash is a host if it looks like one, else part of the path."""
    first, slash, rest = name.partition("/")
    looks_like_host = (
        any(c in first for c in ".:[") or first == "localhost" or first != first.lower()
    )
    if not slash or not looks_like_host:
        domain, path = DEFAULT_DOMAIN, name
    else:
        domain, path = first, rest
    if domain == "index.docker.io":
        domain = DEFAULT_DOMAIN
    if domain == DEFAULT_DOMAIN and "/" not in path:
        path = f"library/{path}"
    return domain, path
