"""The tables of a qcow2 image that say where each of its guest's clusters lies: read few and large, checked, as arrays.

A disk has one L1 table for its present state and one for each internal snapshot. Its entries lead to L2 tables of one
cluster each, and their entries to clusters of data (QEMU's docs/interop/qcow2.txt, "Cluster mapping"). Several L1
tables may lead to one L2 table. Both may hold anything: what points nowhere is dropped and counted, and how much is
read in all has an end. That end depends on what the file takes on the host: QEMU writes its tables out, so that those
in holes of a sparse file are none, however many the image names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from snaptree.images.read_at import BadImageError, ReadAt
from snaptree.model.errors import CancelledError

Offsets = NDArray[np.int64]
"""Places in the file, in bytes. Less than 2^56, so that their sums are safe."""
Words = NDArray[np.uint64]

OFFSET_BITS: Final = 0x00FF_FFFF_FFFF_FE00
"""Of an entry of either table: where in the file what it stands for begins; 0 if nowhere."""
COPIED: Final = 1 << 63
"""Of an entry: nobody else holds what it stands for, so that it may be written in place."""
COMPRESSED: Final = 1 << 62
"""Of an L2 entry: the rest is laid out otherwise."""
ZERO: Final = 1
"""Of an L2 entry without subclusters: it reads as zeros, whether it has a place or not."""

_BATCH: Final = 512 << 10
"""Bytes of tables that are handed over at once: large enough for numpy, small enough for a processor's cache."""
_GAP: Final = 16 << 10
"""Bytes between two tables that are rather read along than skipped by another read, if tables are not much smaller."""
_GAP_CLUSTERS: Final = 8
_BLOCK: Final = 4 << 10
"""Bytes that any read costs at least: what most file systems give out and read."""
MOST_TABLE_BYTES: Final = 8 << 30
"""More is read of no image: the L2 tables of 64 TiB in clusters of 64 KiB."""
LEAST_TABLE_BYTES: Final = 34 << 20
"""So much may be read of any image: an L1 table may be the largest there is, and lie in a hole."""
_COMPRESSED_TABLES: Final = 4
"""So many times what it takes a file may hold: some file systems compress, and tables well."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """How an image is cut up. `file_size` in bytes, when it was looked at: nothing of it can lie beyond that."""

    cluster_bits: int
    extended_l2: bool
    file_size: int

    @property
    def cluster(self) -> int:
        """Bytes of a cluster."""
        return 1 << self.cluster_bits

    @property
    def l2_words(self) -> int:
        """Words of 8 bytes in an L2 table: two for an entry with subclusters, else one."""
        return self.cluster // 8

    @property
    def l2_entries(self) -> int:
        """Entries in an L2 table, one for each cluster of the guest's."""
        return self.l2_words // (2 if self.extended_l2 else 1)

    @property
    def l2_span(self) -> int:
        """Bytes of the guest's disk that one L2 table speaks of."""
        return self.l2_entries << self.cluster_bits

    @property
    def host_clusters(self) -> int:
        """Clusters in the file, a cut-off last one included."""
        return -(-self.file_size // self.cluster)


class Budget:
    """How much may still be read and worked on in one walk of one image: hostile ones lead in circles."""

    def __init__(
        self, most: int = MOST_TABLE_BYTES, why: str = "its tables are larger than those of any real image"
    ) -> None:
        self._left = most
        self._why = why

    def take(self, number: int) -> None:
        """Take so much, of bytes where nothing else is said. Raises BadImageError when it is used up."""
        self.check(number)
        self._left -= number

    def check(self, number: int) -> None:
        """See whether so much is left. Raises BadImageError if not."""
        if number > self._left:
            raise BadImageError(self._why)


def most_table_bytes(allocated: int | None) -> int:
    """How much of an image's tables may be read, if its file takes so many bytes on the host; None if nobody knows."""
    if allocated is None:
        return MOST_TABLE_BYTES
    return min(MOST_TABLE_BYTES, LEAST_TABLE_BYTES + _COMPRESSED_TABLES * allocated)


def read_l1(source: ReadAt, geometry: Geometry, offset: int, entries: int, budget: Budget) -> tuple[Offsets, int]:
    """Read an L1 table: the place of each L2 table, 0 where there is none; and how many entries pointed nowhere.

    `offset` and `entries` are believed to be inside the file. Raises BadImageError or OSError.
    """
    return l2_places(read_words(source, offset, entries, budget), geometry)


def read_words(source: ReadAt, offset: int, number: int, budget: Budget) -> Words:
    """Read a table, or a part of one, as it stands in the file. Raises BadImageError or OSError."""
    if not number:
        return np.zeros(0, np.uint64)
    budget.take(max(number * 8, _BLOCK))
    return _words(source.read_at(offset, number * 8), number)


def l2_places(words: Words, geometry: Geometry) -> tuple[Offsets, int]:
    """Take the place of each L2 table out of the entries of an L1 table, as `read_l1` does."""
    offsets = (words & np.uint64(OFFSET_BITS)).astype(np.int64)
    is_bad = (offsets & (geometry.cluster - 1) != 0) | (offsets + geometry.cluster > geometry.file_size)
    bad = int(np.count_nonzero(is_bad & (offsets != 0)))
    offsets[is_bad] = 0
    return offsets, bad


def read_l2_tables(
    source: ReadAt, geometry: Geometry, offsets: Offsets, budget: Budget, cancelled: Callable[[], bool]
) -> Iterator[tuple[int, Words]]:
    """Read L2 tables at ascending, different places that `read_l1` gave.

    Yields (number of the first one, their words with one row for each), half a megabyte at a time; what is yielded is
    overwritten next. Raises BadImageError or OSError, CancelledError soon after `cancelled` turns true.
    """
    per_batch = max(1, _BATCH // geometry.cluster)
    tables = np.empty((min(per_batch, len(offsets)), geometry.l2_words), np.uint64)
    for first in range(0, len(offsets), per_batch):
        batch = offsets[first : first + per_batch]
        read_batch(source, geometry, batch, budget, cancelled, tables[: len(batch)])
        yield first, tables[: len(batch)]


def distinct(offsets: Offsets) -> Offsets:
    """In ascending order, each once. numpy's own `unique` hashes, and multiples of a cluster's size hash badly."""
    offsets = np.sort(offsets)
    is_new = np.ones(len(offsets), np.bool_)
    is_new[1:] = offsets[1:] != offsets[:-1]
    return offsets[is_new]


def read_batch(
    source: ReadAt, geometry: Geometry, batch: Offsets, budget: Budget, cancelled: Callable[[], bool], tables: Words
) -> None:
    """Read L2 tables at ascending, different places into the rows of an array, those that lie close with one read.

    Raises BadImageError, OSError or CancelledError.
    """
    if cancelled():
        raise CancelledError("Reading the image was cancelled.")
    cluster = geometry.cluster
    breaks = np.flatnonzero(batch[1:] - batch[:-1] > cluster + min(_GAP, _GAP_CLUSTERS * cluster)) + 1
    starts = [0, *breaks.tolist()]
    places = batch.tolist()
    for start, stop in zip(starts, [*starts[1:], len(places)], strict=True):
        begin = places[start]
        length = places[stop - 1] - begin + cluster
        budget.take(max(length, _BLOCK))
        words = _raw_words(source.read_at(begin, length), length // 8)
        if stop - start == 1:  # the bytes are swapped on the way
            tables[start] = words
        elif length == (stop - start) * cluster:
            tables[start:stop].reshape(-1)[:] = words
        else:
            rows = (batch[start:stop] - begin) >> 3
            tables[start:stop] = np.lib.stride_tricks.sliding_window_view(words, geometry.l2_words)[rows]


def _raw_words(raw: bytes, wanted: int) -> NDArray[Any]:
    """See words of 8 bytes, big-endian as they are, in what was read. Raises BadImageError if there are too few."""
    if len(raw) < wanted * 8:
        raise BadImageError("it ends in the middle of a table")
    return np.frombuffer(raw, ">u8", wanted)


def _words(raw: bytes, wanted: int) -> Words:
    """Take words of 8 bytes out of what was read, as `_raw_words` sees them."""
    return _raw_words(raw, wanted).astype(np.uint64)
