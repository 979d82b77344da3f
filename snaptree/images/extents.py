"""Which parts of a local file take space on its file system, and how much."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Callable, Iterator
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

Taken = Callable[[int, int, int], NDArray[np.int64]]
"""(offset, unit, units) -> bytes that each of `units` pieces of `unit` bytes from `offset` takes. Raises OSError."""

_FIEMAP: Final = 0xC020660B
"""FS_IOC_FIEMAP of Linux's linux/fiemap.h. Unlike SEEK_DATA it tells of preallocated blocks, as st_blocks does."""
_REQUEST: Final = struct.Struct("=QQIIII")
_EXTENT: Final = np.dtype(
    {"names": ["start", "length", "flags"], "formats": ["=u8", "=u8", "=u4"], "offsets": [0, 16, 40], "itemsize": 56}
)
_LAST: Final = 1
_UNWRITTEN: Final = 0x800
_AT_ONCE: Final = 2048
_UNSUPPORTED: Final = (errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSYS, errno.EINVAL)

_Extents = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Where extents begin and where they stop, in bytes."""


class OpenFile(Protocol):
    """What has a descriptor."""

    def fileno(self) -> int:
        """The descriptor, open."""


def taken_on_host(file: OpenFile) -> Taken | None:
    """A way to ask for the bytes that parts of an open file take; None if that cannot be told, as of a block device.

    Where the file system shares blocks between files, they count in full.
    """
    return _asking(file, without=0)


def written_in(file: OpenFile) -> Taken | None:
    """As `taken_on_host`, without what was set aside for a file, or made zeros, and never written since.

    It takes space, and QEMU finds zeros there. What was written a moment ago, and is in the host's memory only, may be
    missing, too: `shown_in` has it.
    """
    return _asking(file, without=_UNWRITTEN)


def shown_in(file: OpenFile) -> Taken | None:
    """As `taken_on_host`, what a reader of holes finds data in, as QEMU is one: what was written, however late.

    And sometimes what was only set aside, as long as the host has it in memory because somebody read it.
    """
    if not _is_regular(file):
        return None
    descriptor = file.fileno()

    def shown(offset: int, unit: int, units: int) -> NDArray[np.int64]:
        return _by_unit(_sought(descriptor, offset, offset + unit * units), offset, unit, units)

    return shown


def _is_regular(file: OpenFile) -> bool:
    return stat.S_ISREG(os.fstat(file.fileno()).st_mode)


def _asking(file: OpenFile, without: int) -> Taken | None:
    """Leave out extents that have any of these flags."""
    descriptor = file.fileno()
    if not _is_regular(file):
        return None
    try:
        for _ in _mapped(descriptor, 0, 1, without):
            pass
        is_mapped = True
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        is_mapped = False

    def taken(offset: int, unit: int, units: int) -> NDArray[np.int64]:
        stop = offset + unit * units
        extents = _mapped(descriptor, offset, stop, without) if is_mapped else _sought(descriptor, offset, stop)
        return _by_unit(extents, offset, unit, units)

    return taken


def _by_unit(extents: Iterator[_Extents], offset: int, unit: int, units: int) -> NDArray[np.int64]:
    parts = np.zeros(units, np.int64)  # of extents that begin or end inside a unit
    whole = np.zeros(units + 1, np.int64)  # where runs of units that are taken as a whole begin, and where they end
    for starts, stops in extents:
        begin = np.clip(starts - offset, 0, unit * units)
        end = np.clip(stops - offset, 0, unit * units)
        is_inside = end > begin
        begin, end = begin[is_inside], end[is_inside]
        first, last = begin // unit, (end - 1) // unit
        is_within_one = first == last
        np.add.at(parts, first, np.where(is_within_one, end, (first + 1) * unit) - begin)
        begin, end, first, last = (array[~is_within_one] for array in (begin, end, first, last))
        np.add.at(parts, last, end - last * unit)
        np.add.at(whole, first + 1, unit)
        np.add.at(whole, last, -unit)
    return parts + np.cumsum(whole[:units])


def _mapped(descriptor: int, start: int, stop: int, without: int) -> Iterator[_Extents]:
    buffer = bytearray(_REQUEST.size + _AT_ONCE * _EXTENT.itemsize)
    while start < stop:
        _REQUEST.pack_into(buffer, 0, start, stop - start, 0, 0, _AT_ONCE, 0)
        fcntl.ioctl(descriptor, _FIEMAP, buffer)
        found = _REQUEST.unpack_from(buffer)[3]
        if not found:
            return
        extents = np.frombuffer(bytes(buffer), _EXTENT, found, _REQUEST.size)
        starts = extents["start"].astype(np.int64)
        stops = starts + extents["length"].astype(np.int64)
        counts = (extents["flags"] & np.uint32(without)) == 0
        yield starts[counts], stops[counts]
        if int(extents["flags"][-1]) & _LAST or int(stops[-1]) <= start:
            return
        start = int(stops[-1])


def _sought(descriptor: int, start: int, stop: int) -> Iterator[_Extents]:
    while start < stop:
        starts: list[int] = []
        stops: list[int] = []
        while start < stop and len(starts) < _AT_ONCE:
            try:
                begin = os.lseek(descriptor, start, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                start = stop  # from here to its end the file is a hole
                break
            start = os.lseek(descriptor, begin, os.SEEK_HOLE)
            starts.append(begin)
            stops.append(start)
        yield np.array(starts, np.int64), np.array(stops, np.int64)
