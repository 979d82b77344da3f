"""What the analysis of a far image reads, fetched beforehand with few round trips.

Header, snapshot table, L1 tables and L2 tables lead to each other, so that there are four rounds at most, five if
clusters are large; whatever is wanted in one of them is under way at once. A read of what was not fetched, because the
image changed meanwhile, goes to the image itself.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Final, Protocol

import numpy as np

from snaptree.images.qcow2 import Qcow2Content, header_room, read_content, read_header
from snaptree.images.read_at import ReadAt
from snaptree.images.tables import Budget, Geometry, distinct, most_table_bytes, read_l1
from snaptree.model.errors import CancelledError

FIRST_READ: Final = 256 << 10
"""Bytes that come with the header: there QEMU puts the L1 table of a new image, too."""
PIECE: Final = 1 << 20
"""Bytes of one read: so many take a link of 100 MBit/s the time of a few round trips, and can be cancelled."""
GAP: Final = 256 << 10
"""Bytes between two tables that are rather read along than skipped; at least those of `tables.read_l2_tables`."""
_ENTRY: Final = 256
"""More bytes than most entries of a snapshot table take; what of the table lies farther is read by itself."""
_TABLE_LEAST: Final = 64 << 10
_COST: Final = 64 << 10
"""Bytes that a read counts for at least: so many more come in the time that it takes."""
_MOST_BYTES: Final = 1 << 30
"""The tables of 8 TiB in clusters of 64 KiB."""

Piece = tuple[int, int]
"""Offset and length, in bytes."""


class FarImage(ReadAt, Protocol):
    """An image of which several parts can be under way at once."""

    def read_pieces(self, pieces: Iterable[Piece]) -> Iterator[bytes]:
        """What `read_at` gives for each, in order. Raises OSError."""


class MetadataCopy:
    """Parts of an image by their place in it, as `ReadAt`. Kept in a temporary file: there may be a lot of them."""

    def __init__(self, image: FarImage) -> None:
        self._image = image
        self._file = tempfile.TemporaryFile(prefix="snaptree-")  # noqa: SIM115  # it lives as long as the copy does
        weakref.finalize(self, self._file.close)
        self._starts: list[int] = []
        self._stops: list[int] = []
        self._places: list[int] = []
        self.bytes = 0
        """That were fetched."""

    @property
    def size(self) -> int:
        """Bytes of the image, when it was opened."""
        return self._image.size

    def read_at(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`, fewer only at the end. Raises OSError."""
        length = min(length, self.size - offset)
        parts = bytearray()
        while len(parts) < length:
            at = offset + len(parts)
            index = bisect_right(self._starts, at) - 1
            if index < 0 or self._stops[index] <= at:
                return self._image.read_at(offset, length)
            wanted = min(length - len(parts), self._stops[index] - at)
            parts += os.pread(self._file.fileno(), wanted, self._places[index] + at - self._starts[index])
        return bytes(parts)

    def fetch(self, wanted: Iterable[Piece], cancelled: Callable[[], bool]) -> None:
        """Have parts at hand that are not, neighbours by one read. Raises OSError, CancelledError."""
        missing = [part for piece in _merged(sorted(wanted)) for part in self._missing(*piece)]
        if not missing:
            return
        for (offset, _), part in zip(missing, self._image.read_pieces(missing), strict=True):
            if cancelled():
                raise CancelledError("Reading the image was cancelled.")
            os.pwrite(self._file.fileno(), part, self.bytes)
            index = bisect_right(self._starts, offset)
            self._starts.insert(index, offset)
            self._stops.insert(index, offset + len(part))
            self._places.insert(index, self.bytes)
            self.bytes += len(part)

    def _missing(self, begin: int, length: int) -> Iterator[Piece]:
        """What of a part is not at hand, so that no two pieces overlap."""
        at, end = begin, min(begin + length, self.size)
        while at < end:
            index = bisect_right(self._starts, at) - 1
            if index >= 0 and self._stops[index] > at:
                at = self._stops[index]
                continue
            stop = min(end, self._starts[index + 1]) if index + 1 < len(self._starts) else end
            yield at, stop - at
            at = stop


def copy_metadata(image: FarImage, allocated: int | None, cancelled: Callable[[], bool]) -> MetadataCopy:
    """Fetch what the analysis of a qcow2 image reads. Raises OSError, BadImageError, CancelledError.

    `allocated` are the bytes that the image takes on its host, if known: its tables are not larger.
    """
    copy = MetadataCopy(image)
    budget = Budget(min(_MOST_BYTES, most_table_bytes(allocated)))

    def fetch(wanted: Collection[Piece]) -> None:
        budget.take(sum(max(length, _COST) for _, length in _merged(sorted(wanted))))
        copy.fetch(wanted, cancelled)

    fetch([(0, FIRST_READ)])
    fetch([(0, header_room(copy.read_at(0, FIRST_READ)))])
    header = read_header(copy)
    if header.snapshot_count:
        fetch([(header.snapshots_offset, max(_TABLE_LEAST, header.snapshot_count * _ENTRY))])
    content = read_content(copy)
    geometry = Geometry(header.cluster_bits, header.extended_l2, image.size)
    tables = _l1_tables(content, image.size)
    fetch(tables)
    places = np.zeros(0, np.int64)
    for offset, length in tables:
        found, _ = read_l1(copy, geometry, offset, length // 8, budget)
        places = distinct(np.concatenate([places, found[found != 0]]))
    fetch([(place, geometry.cluster) for place in places.tolist()])
    return copy


def _l1_tables(content: Qcow2Content, size: int) -> set[Piece]:
    """Each once, however many snapshots say that it is theirs. Those that can't be are left to the analysis."""
    tables = {(entry.l1_offset, entry.l1_entries * 8) for entry in content.snapshots}
    tables.add((content.header.l1_offset, content.header.l1_entries * 8))
    return {(offset, length) for offset, length in tables if length and 0 < offset <= size - length}


def _merged(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Put neighbours together, and cut what is too long for one read. Takes them in ascending order."""
    begin = end = -1
    for offset, length in pieces:
        if begin >= 0 and offset <= end + GAP:
            end = max(end, offset + length)
            continue
        yield from _cut(begin, end)
        begin, end = offset, offset + length
    yield from _cut(begin, end)


def _cut(begin: int, end: int) -> Iterator[Piece]:
    for offset in range(begin, end, PIECE):
        yield offset, min(PIECE, end - offset)
