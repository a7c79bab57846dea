"""ReopenContainerLog at the end of a container."""

from __future__ import annotations

from types import SimpleNamespace
from unittest.mock import AsyncMock, Mock

import pytest

from zos_cri._pb import cri_pb2 as pb
from zos_cri.cri.reopen_container_log import reopen_container_log
from zos_cri.errors import FailedPrecondition, NotFound, ResourceExhausted


@pytest.mark.parametrize(
    ("fails", "error"),
    [
        # its log's end is written, and its record still says that it runs
        (NotFound("logger: no container c"), FailedPrecondition),
        (ResourceExhausted("logger: no space"), ResourceExhausted),
    ],
)
async def test_a_log_that_cannot_be_reopened(fails: Exception, error: type[Exception]) -> None:
    record = SimpleNamespace(meta=SimpleNamespace(id="c"))
    services = Mock(
        creation=Mock(container=Mock(return_value=record)),
        output=Mock(reopen=AsyncMock(side_effect=fails)),
    )
    with pytest.raises(error):
        await reopen_container_log(services, pb.ReopenContainerLogRequest(container_id="c"))
