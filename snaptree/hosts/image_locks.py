"""Whether a QEMU has an image open, by the locks that it holds on it: it tells even where libvirt forgot.

QEMU locks single bytes of every image that it opens, at 100 and above for what it does and at 200 and above for what it
lets nobody else do (QEMU, block/file-posix.c: RAW_LOCK_PERM_BASE, RAW_LOCK_SHARED_BASE).
"""

from __future__ import annotations

import fcntl
import os
import struct
from typing import Final

_FIRST_BYTE: Final = 100
_BYTES: Final = 200
_FLOCK: Final = struct.Struct("hhqqi4x")
"""The kernel's `struct flock` where its offsets have 64 bits: type, whence, start, length, process."""


def is_open_in_qemu(path: str) -> bool:
    """Whether anybody holds one of QEMU's locks on a file here. False for a file that we may not open.

    Raises FileNotFoundError.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise
    except OSError:
        return False
    try:
        # Only asked, never taken. A lock to write with meets those to read with as well.
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _FIRST_BYTE, _BYTES, 0)
        answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, asked)
    except OSError:
        return False  # a file system without locks, on which QEMU takes none
    finally:
        os.close(descriptor)
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)
