"""SIGHUP: the configuration is read again, checked, and taken over while the server runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from zos_cri import failpoints, log
from zos_cri.errors import Error, one_line
from zos_cri.log import get_log

if TYPE_CHECKING:
    from collections.abc import Callable

    from zos_cri.config import Config

_log = get_log(__name__)

LIVE: Final = frozenset({"log", "failpoints"})  # counts at once; all else from the next start on


class Reload:
    """Holds the configuration that counts."""

    def __init__(self, config: Config, load: Callable[[], Config]) -> None:
        """
        Args:
            load: reads it anew; raises an Error that says what is wrong.
        """
        self.config = config
        self._load = load

    def take(self) -> tuple[str, ...]:
        """Reads the configuration, and takes over what counts at once.

        Nothing changes where it can't be read or is wrong: the log says why.

        Returns:
            the sections that differ and count from the next start on only.
        """
        try:
            found = self._load()
        except (Error, OSError) as error:
            _log.error("configuration not reloaded: nothing is changed", error=one_line(error))
            return ()
        changed = {
            name
            for name in found.__struct_fields__
            if getattr(found, name) != getattr(self.config, name)
        }
        later = tuple(sorted(changed - LIVE))
        if "log" in changed:
            log.setup(level=found.log.level, fmt=found.log.format)
        if "failpoints" in changed:
            failpoints.arm(found.failpoints)
        live = {name: getattr(found, name) for name in changed & LIVE}
        self.config = msgspec.structs.replace(self.config, **live)
        _log.info("configuration reloaded", changed=",".join(sorted(changed)) or "nothing")
        return later
