"""A file system whose server hangs when it is told to: a dead NFS server, on any machine.

An empty directory as long as it answers. Once it hangs it still reads what the kernel asks and
answers nothing: whoever has asked is in an uninterruptible sleep, which SIGKILL doesn't end either,
until the mount is aborted.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct
import threading
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType
    from typing import Self

# linux/fuse.h
_LOOKUP: Final = 1
_FORGET: Final = 2
_GETATTR: Final = 3
_INIT: Final = 26
_INTERRUPT: Final = 36
_BATCH_FORGET: Final = 42
_IN: Final = struct.Struct("IIQQIIII")
_OUT: Final = struct.Struct("IiQ")
_BUFFER: Final = 1 << 20
_MNT_FORCE: Final = 1
_MNT_DETACH: Final = 2

_libc = ctypes.CDLL(None, use_errno=True)


class HangingFuse:
    """Mounted at a directory for as long as it is entered."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = -1
        self._hangs = threading.Event()
        self.asked = threading.Event()  # something was asked since it hangs

    def __enter__(self) -> Self:
        self.path.mkdir(parents=True, exist_ok=True)
        self._fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={self._fd},rootmode=40755,user_id=0,group_id=0,allow_other"
        if _libc.mount(b"hang", os.fsencode(self.path), b"fuse.hang", 0, options.encode()):
            raise OSError(ctypes.get_errno(), "mount", str(self.path))
        threading.Thread(target=self._serve, name="fuse", daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.abort()

    def hang(self) -> None:
        """Answers nothing any more."""
        self._hangs.set()

    def abort(self) -> None:
        """Ends the mount: whoever waits gets an error."""
        if self._fd >= 0:
            _libc.umount2(os.fsencode(self.path), _MNT_FORCE)  # wakes whoever waits
            _libc.umount2(os.fsencode(self.path), _MNT_DETACH)
            self._fd = -1

    def _serve(self) -> None:
        descriptor = self._fd
        with contextlib.suppress(OSError):  # ENODEV: it is unmounted
            while True:
                request = os.read(descriptor, _BUFFER)
                _, opcode, unique, *_ = _IN.unpack_from(request)
                if opcode in (_FORGET, _BATCH_FORGET, _INTERRUPT):
                    continue
                if self._hangs.is_set():
                    self.asked.set()
                    continue
                code, body = _answer(opcode)
                os.write(descriptor, _OUT.pack(_OUT.size + len(body), -code, unique) + body)
        os.close(descriptor)


def _answer(opcode: int) -> tuple[int, bytes]:
    """An error number and what follows the header."""
    if opcode == _INIT:
        return 0, struct.pack("IIIIHHIIHHI28x", 7, 31, 0, 0, 8, 8, 4096, 1, 1, 0, 0)
    if opcode == _GETATTR:
        root = struct.pack("6Q10I", *(1, *[0] * 5), *(*[0] * 3, 0o40755, 2, *[0] * 3, 512, 0))
        return 0, struct.pack("QII", 0, 0, 0) + root
    return (errno.ENOENT if opcode == _LOOKUP else errno.ENOSYS), b""
