"""What SIGHUP takes over, and that a wrong configuration changes nothing."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import pytest

from zos_cri import config, failpoints
from zos_cri.app.reload import Reload

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _all_off() -> Iterator[None]:
    yield
    failpoints.arm({})


def reload(*texts: bytes) -> Reload:
    """One that reads these files, one after the other."""
    found = iter(texts)
    return Reload(config.Config(), lambda: config.parse(next(found), "test.toml"))


def test_what_counts_at_once() -> None:
    it = reload(b'[log]\nlevel = "warning"\n[failpoints]\n"cni.add.before" = "error"\n')
    assert it.take() == ()
    assert logging.getLogger().level == logging.WARNING
    assert it.config.log.level == "warning"
    with pytest.raises(failpoints.Failpoint):
        asyncio.run(failpoints.hit("cni.add.before"))


def test_what_counts_later_is_said_each_time() -> None:
    text = b'init = "tini"\n[log]\nlevel = "warning"\n[exec]\ndrain_timeout = 17\n'
    it = reload(text, text)
    assert it.take() == ("exec", "init")
    assert it.config == config.Config(log=config.LogConfig(level="warning"))
    assert it.take() == ("exec", "init")


def test_a_wrong_one_changes_nothing_and_says_why(caplog: pytest.LogCaptureFixture) -> None:
    it = reload(b'[log]\nlevel = "warning"\n[failpoints]\n"cni.add" = "error"\n')
    before = logging.getLogger().level
    assert it.take() == ()
    assert (logging.getLogger().level, it.config) == (before, config.Config())
    (record,) = caplog.records
    assert record.getMessage() == "configuration not reloaded: nothing is changed"
    error = record.__dict__["fields"]["error"]
    assert error == "test.toml: failpoints: there is no point 'cni.add'"
