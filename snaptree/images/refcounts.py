"""The reference counts of a qcow2 image: which clusters are in use, and which the image needs for itself.

Costs do not need them. They tell how much of an image leaked, that is, is kept for nothing: a program that ended while
it wrote leaves that behind, and `qemu-img check -r leaks` gives it back.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from snaptree.images.qcow2 import Qcow2Content
from snaptree.images.read_at import BadImageError, ReadAt
from snaptree.images.tables import (
    OFFSET_BITS,
    Budget,
    Geometry,
    Offsets,
    distinct,
    most_table_bytes,
    read_l2_tables,
)
from snaptree.model.errors import CancelledError

_LARGEST_DIRECTORY: Final = 64 << 20
_MOST_BITMAPS: Final = 65_535
_BITMAP: Final = struct.Struct(">QIIBBHI")
_PIECE: Final = 1 << 20
"""Words of a bitmap's table that are read at once."""


@dataclass(frozen=True, slots=True)
class Refcounts:
    """Clusters by what they are for. All are numbers of clusters."""

    in_use: int
    """Those with a reference count above zero."""
    header: int
    refcounts: int
    """The table of reference counts, and its blocks."""
    snapshot_table: int
    bitmaps: int
    """Directory, tables and content of persistent bitmaps."""
    luks_header: int

    @property
    def metadata(self) -> int:
        """What no snapshot and no guest holds: the image itself needs it."""
        return self.header + self.refcounts + self.snapshot_table + self.bitmaps + self.luks_header

    def leaked(self, reached: int) -> int:
        """Those in use for nothing, if snapshots and present state reach so many (`Sharing.clusters`)."""
        return max(0, self.in_use - self.metadata - reached)


def read_refcounts(
    source: ReadAt,
    content: Qcow2Content,
    *,
    allocated: int | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Refcounts:
    """Count the clusters in use, of an image that takes so many bytes on the host, if that is known.

    Raises BadImageError, OSError or CancelledError.
    """
    header = content.header
    geometry = Geometry(header.cluster_bits, header.extended_l2, source.size)
    budget = Budget(most_table_bytes(allocated))
    blocks = _blocks(source, geometry, header.refcount_table_offset, header.refcount_table_size)
    in_use = 0
    for _, words in read_l2_tables(source, geometry, blocks, budget, cancelled):  # blocks are clusters, too
        in_use += _count_above_zero(words.view(np.uint8).ravel(), header.refcount_bits)
    snapshot_bytes = sum(entry.table_bytes for entry in content.snapshots)
    return Refcounts(
        in_use=in_use,
        header=1,
        refcounts=len(blocks) + header.refcount_table_size // geometry.cluster,
        snapshot_table=-(-snapshot_bytes // geometry.cluster),
        bitmaps=_bitmap_clusters(source, geometry, header.bitmap_directory, budget, cancelled),
        luks_header=-(-header.luks_header[1] // geometry.cluster),
    )


def _blocks(source: ReadAt, geometry: Geometry, offset: int, length: int) -> Offsets:
    """Places of the refcount blocks, ascending, without those that cannot be."""
    words = np.frombuffer(_read(source, offset, length), ">u8")
    offsets = distinct((words & np.uint64(OFFSET_BITS)).astype(np.int64))
    is_good = (offsets != 0) & (offsets % geometry.cluster == 0) & (offsets + geometry.cluster <= geometry.file_size)
    good: Offsets = offsets[is_good]
    return good


def _count_above_zero(raw: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], bits: int) -> int:
    """How many counts of so many bits are not zero. Their bytes may come in any order within 8 bytes."""
    if bits >= 8:
        return int(np.count_nonzero(raw.view(f"u{bits // 8}")))
    mask = (1 << bits) - 1
    return sum(int(np.count_nonzero(raw & np.uint8(mask << shift))) for shift in range(0, 8, bits))


def _bitmap_clusters(
    source: ReadAt, geometry: Geometry, directory: tuple[int, int], budget: Budget, cancelled: Callable[[], bool]
) -> int:
    offset, length = directory
    if length == 0:
        return 0
    if length > _LARGEST_DIRECTORY:
        raise BadImageError("its directory of bitmaps is larger than the format allows")
    raw = _read(source, offset, length)
    clusters = -(-length // geometry.cluster)
    position = number = 0
    while position + _BITMAP.size <= length:
        number += 1
        if number > _MOST_BITMAPS:
            raise BadImageError("it has more bitmaps than the format allows")
        table, entries, _, _, _, name_length, extra_length = _BITMAP.unpack_from(raw, position)
        position += -(-(_BITMAP.size + name_length + extra_length) // 8) * 8
        clusters += -(-entries * 8 // geometry.cluster)
        for first in range(0, entries, _PIECE):
            if cancelled():
                raise CancelledError("Reading the image was cancelled.")
            words = min(_PIECE, entries - first)
            budget.take(max(words * 8, 4096))
            piece = np.frombuffer(_read(source, table + first * 8, words * 8), ">u8")
            clusters += int(np.count_nonzero(piece & np.uint64(OFFSET_BITS)))
    return clusters


def _read(source: ReadAt, offset: int, length: int) -> bytes:
    if offset + length > source.size:
        raise BadImageError("one of its tables lies beyond the end of the file")
    raw = source.read_at(offset, length)
    if len(raw) < length:
        raise BadImageError("it ends in the middle of a table")
    return raw
