from __future__ import annotations

from zos_cri.app.core import fetching
from zos_cri.config import ImageConfig
from zos_cri.images.jobs import Fetching
from zos_cri.images.model import Floor


def test_what_is_configured_counts() -> None:
    given = ImageConfig(
        min_throughput=5.0,
        stall_timeout=2.5,
        connections=3,
        max_layer_bytes=77,
        min_free_bytes=8,
        signature_policy="/policy.json",
        registries_d="/registries.d",
    )
    expected = Fetching(
        floor=Floor(rate=5.0, window=2.5),
        connections=3,
        max_layer_bytes=77,
        min_free_bytes=8,
        policy="/policy.json",
        registries_d="/registries.d",
    )
    assert fetching(given) == expected
    assert fetching(ImageConfig()) == Fetching()
