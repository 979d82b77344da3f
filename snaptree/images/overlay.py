"""What the layers of a chain hold: what of each shows, what is shadowed by those above, what a merge would copy.

The disk is walked in windows, and every window from the bottom layer up. Nothing is ever cut finer than the smallest
cluster (or subcluster) of any layer, but around the ends of layers, which are true to the sector. What a job of QEMU
does with the same layers is told from what it does with clusters, not from what is in them.

Sources: QEMU's docs/interop/qcow2.txt, block/io.c (`bdrv_common_block_status_above`), block/mirror.c, block/commit.c,
block/stream.c and block/qcow2-cluster.c of version 7.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from snaptree.images.files import DEEPEST_CHAIN, LocalFile
from snaptree.images.qcow2 import Qcow2Content, read_content
from snaptree.images.read_at import BadImageError, ReadAt
from snaptree.images.tables import (
    COMPRESSED,
    COPIED,
    OFFSET_BITS,
    ZERO,
    Budget,
    Geometry,
    Offsets,
    Words,
    l2_places,
    read_l2_tables,
    read_words,
)
from snaptree.model.errors import CancelledError

Mask = NDArray[np.bool_]
Kinds = NDArray[np.uint8]
Codes = NDArray[np.uint16]
"""For each unit of a window the kind of its content and the layer that gives it: layer * 8 + kind; 0 if none does."""
Extents = NDArray[np.int64]
"""Rows of (start, stop) in bytes, ascending and apart."""

_TRANSPARENT: Final = 0
_ZERO_KIND: Final = 1
_PLACED_ZERO: Final = 2
"""Zeros that keep a place in the file; the next number where the places of neighbours are not neighbours."""
_DATA: Final = 4
_BEYOND: Final = 5
"""Zeros because this layer ends before the one above it."""
_KIND_BITS: Final = 3
_KIND_MASK: Final = np.uint16(7)

_SECTOR: Final = 512
_HOST_BLOCK: Final = 4096
"""The smallest piece of a file that a file system allots."""
_BLOCK: Final = 2 << 20
"""Windows begin and end at multiples of the largest cluster there is."""
_WINDOW_UNITS: Final = 1 << 20
_PORTION: Final = 1 << 18
"""Units handled at a time where numpy needs much more memory than they do."""
_L1_SLICE: Final = 1 << 14
"""Entries of an L1 table that are held at a time; all that a disk of 8 TiB has in clusters of 64 KiB."""
_MOST_UNITS: Final = 1 << 33
"""Units times layers that one walk looks at: some twenty seconds."""
_SMALLEST_GRANULE: Final = 4 << 10
_LARGEST_GRANULE: Final = 64 << 10


@dataclass(frozen=True, slots=True)
class Layer:
    """An opened image of a chain."""

    source: ReadAt
    content: Qcow2Content | None
    """None if it is raw, which only the bottom layer may be."""
    virtual_size: int
    """Bytes of the guest's disk, in whole sectors as QEMU counts them."""
    data_extents: Extents | None = None
    """Of a raw image: where its data is. None if nobody can tell: then all of it counts as data."""

    @classmethod
    def of_qcow2(cls, source: ReadAt, content: Qcow2Content | None = None) -> Layer:
        """Make a layer of a qcow2 image, with what was read of it before or is read now. Raises as `read_content`."""
        content = content or read_content(source)
        return cls(source, content, content.header.virtual_size // _SECTOR * _SECTOR)

    @classmethod
    def of_raw(cls, source: ReadAt) -> Layer:
        """Make a layer of a raw image; holes are known of local ones. Raises OSError."""
        extents = source.data_extents() if isinstance(source, LocalFile) else None
        return cls(source, None, _round_up(source.size, _SECTOR), extents)


@dataclass(frozen=True, slots=True)
class LayerCosts:
    """What one layer holds of the guest's disk, in bytes of the guest's."""

    data: int
    zero: int
    """Defined to be zeros, without data."""
    visible: int
    """Of its data: what shows at the top of the chain."""
    is_upper_bound: bool
    """Whether there may be less data: a raw image whose holes nobody can tell."""
    anomalies: int
    """Entries of its tables that a sound image does not have; while it is written to, a reason to read again."""

    @property
    def shadowed(self) -> int:
        """Of its data: what layers above hide."""
        return self.data - self.visible


@dataclass(frozen=True, slots=True)
class Merge:
    """What one job of QEMU writes into the layer that it merges into."""

    copied: int
    """Bytes of the guest's that are written as data."""
    zeroed: int
    """Bytes of the guest's that are written as zeros that take no space."""
    growth: int
    """Bytes that the file grows by: clusters it did not own, for data and for tables, but for reference counts.

    For an image that keeps its data in a second file, these are bytes of both.
    """
    freed: int
    """Bytes of the file that zeros make free, for itself to use again; given back to the host if it discards."""
    is_upper_bound: bool
    """Whether `growth` may be less, and `copied` too: where data may turn out to be zeros, compressed clusters are
    freed, or a raw file grows, whose holes may be unknown or have had blocks set aside for them."""


@dataclass(frozen=True, slots=True)
class CommitCosts:
    """What committing layers `top` down to just above `base` into `base` writes. Layers count from 0, the topmost."""

    top: int
    base: int
    live: Merge
    """If `top` is the active layer: QEMU mirrors."""
    intermediate: Merge
    """If another layer stands on `top`: QEMU's commit job, which writes zeros as data up to QEMU 10.0."""


@dataclass(frozen=True, slots=True)
class ChainCosts:
    """What was found of a chain. Everything counts from the top layer."""

    layers: tuple[LayerCosts, ...]
    commits: tuple[CommitCosts, ...]
    """Those asked for."""
    pulls: tuple[Merge, ...]
    """For each layer but the bottom one: what pulling all below into it writes (QEMU's block-stream without base)."""


def walk_chain(
    layers: Sequence[Layer],
    *,
    commits: Sequence[tuple[int, int]] | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> ChainCosts:
    """Walk a chain once. `layers` come top first; `commits` are pairs of (top, base), by default all neighbours.

    Any other pair takes a walk of its own, for which `measure_commit` is made. Memory is bounded by 150 MiB and some
    hundred KiB for each layer, time by a budget. Raises BadImageError, OSError, or CancelledError soon after
    `cancelled` turns true; ValueError for what no chain is.
    """
    pairs = [(top, top + 1) for top in range(len(layers) - 1)] if commits is None else commits
    return _walk(layers, pairs, cancelled, with_pulls=True)


def measure_commit(
    layers: Sequence[Layer], top: int, base: int, *, cancelled: Callable[[], bool] = lambda: False
) -> CommitCosts:
    """Walk for one commit: layers `top` to `base - 1`, counted from the topmost, into `base`.

    A walk of its own, of the layers from `top` to the bottom. Raises as `walk_chain`.
    """
    if not 0 <= top < base < len(layers):
        raise ValueError("what is committed lies above what it is committed into")
    found = _walk(layers[top:], [(0, base - top)], cancelled, with_pulls=False).commits[0]
    return CommitCosts(top, base, found.live, found.intermediate)


def _walk(
    layers: Sequence[Layer], pairs: Sequence[tuple[int, int]], cancelled: Callable[[], bool], *, with_pulls: bool
) -> ChainCosts:
    depth = len(layers)
    if not depth or any(layer.content is None for layer in layers[:-1]):
        raise ValueError("a chain has layers, and only the bottom one can be raw")
    if any(not 0 <= top < base < depth for top, base in pairs):
        raise ValueError("what is committed lies above what it is committed into")
    if depth > DEEPEST_CHAIN:
        raise BadImageError(f"it has more than {DEEPEST_CHAIN} layers")
    return _Walk(layers, pairs, cancelled, with_pulls=with_pulls).run()


# ---- layers, read window by window ----


@dataclass(frozen=True, slots=True)
class _Window:
    """A piece of the guest's disk, from `start` to `stop`, in units of `unit` bytes. No layer ends within a unit."""

    start: int
    stop: int
    unit: int

    @property
    def units(self) -> int:
        return (self.stop - self.start) // self.unit

    def units_before(self, end: int) -> int:
        """How many units lie before the end of a layer."""
        return min(max(end - self.start, 0) // self.unit, self.units)

    def count_bytes(self, mask: Mask, grain: int, end: int) -> int:
        """Bytes before `end` in the grains that are set; at most the last one is cut by it."""
        found = int(np.count_nonzero(mask)) * grain
        last, rest = divmod(end - self.start, grain)
        return found - (grain - rest) if rest and 0 <= last < len(mask) and mask[last] else found


@dataclass(frozen=True, slots=True)
class _Piece:
    """What a layer has in a window. All but `kinds` is None where a layer does not have such."""

    kinds: Kinds
    owned: Mask | None = None
    """For each cluster: whether it can be written in place."""
    compressed: Mask | None = None
    tables_owned: Mask | None = None
    """For each L2 table, the one that the window begins in first."""
    data_bytes: NDArray[np.int32] | None = None
    """For each unit of a raw layer."""
    held_bytes: NDArray[np.int32] | None = None
    """For each unit of a raw layer what its file takes."""


class _Qcow2Reader:
    """A qcow2 layer whose tables are read in step with the windows."""

    def __init__(self, layer: Layer, content: Qcow2Content, budget: Budget, cancelled: Callable[[], bool]) -> None:
        self.header = content.header
        self.geometry = Geometry(self.header.cluster_bits, self.header.extended_l2, layer.source.size)
        self.size = layer.virtual_size
        self.cluster = self.geometry.cluster
        self.finest = self.cluster // 32 if self.header.extended_l2 else self.cluster
        self.anomalies = 0
        self._source = layer.source
        self._budget = budget
        self._cancelled = cancelled
        self._tables = min(-(-self.size // self.geometry.l2_span), self.header.l1_entries)
        self._slice = -1
        self._next_touched: tuple[int, int | None] = (1 << 64, None)
        self._places: Offsets = np.zeros(0, np.int64)
        self._owned: Mask = np.zeros(0, np.bool_)

    def next_touched(self, offset: int) -> int | None:
        """Where the first L2 table at or after a place on the disk begins to speak, or that place."""
        asked, found = self._next_touched
        if not asked <= offset or (found is not None and offset > found):
            found = self._find_touched(offset)
            self._next_touched = offset, found
        return found

    def _find_touched(self, offset: int) -> int | None:
        index = offset // self.geometry.l2_span
        while index < self._tables:
            self._hold(index // _L1_SLICE)
            found = np.flatnonzero(self._places[index % _L1_SLICE :])
            if len(found):
                return max(offset, (index + int(found[0])) * self.geometry.l2_span)
            index = (index // _L1_SLICE + 1) * _L1_SLICE
        return None

    def owns_table(self, index: int) -> bool:
        """Whether there is an L2 table that can be written in place."""
        if index >= self._tables:
            return False
        self._hold(index // _L1_SLICE)
        return bool(self._owned[index % _L1_SLICE])

    def load(self, window: _Window) -> _Piece | None:
        """Read what the tables say of a window; None if there are none."""
        first = window.start // self.geometry.l2_span
        last = min(-(-window.stop // self.geometry.l2_span), self._tables)
        places, owned = self._l1(first, last)
        if not places.any():
            return None
        words = self._l2(window, first, places)
        piece = self._subclusters(words, window) if self.header.extended_l2 else self._clusters(words, window)
        piece.kinds[window.units_before(self.size) :] = _TRANSPARENT
        return _Piece(piece.kinds, piece.owned, piece.compressed, owned)

    def _hold(self, number: int) -> None:
        """Have a slice of the L1 table at hand."""
        if number == self._slice:
            return
        if self._cancelled():
            raise CancelledError("Reading the image was cancelled.")
        first = number * _L1_SLICE
        words = read_words(
            self._source, self.header.l1_offset + first * 8, min(_L1_SLICE, self._tables - first), self._budget
        )
        self._places, dropped = l2_places(words, self.geometry)
        self._owned = (words & np.uint64(COPIED)) != 0
        self._owned &= self._places != 0
        self._slice = number
        self.anomalies += dropped

    def _l1(self, first: int, last: int) -> tuple[Offsets, Mask]:
        """Places of L2 tables, and whether they can be written in place."""
        places, owned = [self._places[:0]], [self._owned[:0]]
        while first < last:
            self._hold(first // _L1_SLICE)
            begin = first % _L1_SLICE
            end = min(begin + last - first, _L1_SLICE)
            places.append(self._places[begin:end])
            owned.append(self._owned[begin:end])
            first += end - begin
        return np.concatenate(places), np.concatenate(owned)

    def _l2(self, window: _Window, first: int, places: Offsets) -> Words:
        """Words of the L2 entries of all clusters in a window, 0 where there is no table."""
        span, width = self.geometry.l2_span, self.geometry.l2_words
        distinct = np.sort(places[places != 0])
        if (distinct[1:] == distinct[:-1]).any():
            raise BadImageError("several entries of its L1 table lead to the same L2 table")
        per_cluster = width // self.geometry.l2_entries
        words = np.zeros((window.stop - window.start) // self.cluster * per_cluster, np.uint64)
        whole_first = -(-window.start // span)
        whole_last = min(window.stop // span, first + len(places))
        for index in {first, first + len(places) - 1}:  # the window may begin and end within a table
            place = int(places[index - first])
            if place == 0 or whole_first <= index < whole_last:
                continue
            begin, end = max(window.start, index * span), min(window.stop, (index + 1) * span)
            skipped = (begin - index * span) // self.cluster * per_cluster
            number = (end - begin) // self.cluster * per_cluster
            at = (begin - window.start) // self.cluster * per_cluster
            words[at : at + number] = read_words(self._source, place + skipped * 8, number, self._budget)
        if whole_first >= whole_last:
            return words
        at = (whole_first * span - window.start) // self.cluster * per_cluster
        rows = words[at : at + (whole_last - whole_first) * width].reshape(-1, width)
        whole = places[whole_first - first : whole_last - first]
        order = np.argsort(whole, kind="stable")
        order = order[np.count_nonzero(whole == 0) :]
        for number, tables in read_l2_tables(self._source, self.geometry, whole[order], self._budget, self._cancelled):
            rows[order[number : number + len(tables)]] = tables
        return words

    def _clusters(self, words: Words, window: _Window) -> _Piece:
        """Tell what plain L2 entries stand for."""
        seen = int(np.bitwise_or.reduce(words))
        has_place = self._has_place(words)
        owned = (words & np.uint64(COPIED)) != 0
        owned &= has_place
        kinds = has_place.view(np.uint8) * np.uint8(_DATA)
        compressed = None
        if seen & COMPRESSED:
            compressed = (words & np.uint64(COMPRESSED)) != 0
            kinds[compressed] = _DATA
            owned &= ~compressed
        if seen & ZERO:
            is_zero = (words & np.uint64(ZERO)) != 0
            if compressed is not None:
                is_zero &= ~compressed  # there it is part of the place
            if self.header.version < 3:
                self.anomalies += int(np.count_nonzero(is_zero))
            kinds[is_zero] = _ZERO_KIND
            is_zero &= has_place
            if is_zero.any():
                np.copyto(kinds, self._parity(words) + np.uint8(_PLACED_ZERO), where=is_zero)
        self._look_for_the_end(words, compressed)
        return _Piece(_spread(kinds, self.cluster, window.unit), owned, compressed)

    def _subclusters(self, words: Words, window: _Window) -> _Piece:
        """Tell what L2 entries with subclusters stand for: two bitmaps follow each, of data and of zeros."""
        entries = np.ascontiguousarray(words[0::2])
        bits = np.unpackbits(words[1::2].astype("<u8").view(np.uint8).reshape(-1, 8), axis=1, bitorder="little")
        is_data, is_zero = bits[:, :32].view(np.bool_), bits[:, 32:].view(np.bool_)
        has_place = self._has_place(entries)
        compressed = (entries & np.uint64(COMPRESSED)) != 0
        owned = ((entries & np.uint64(COPIED)) != 0) & has_place & ~compressed
        self.anomalies += int(np.count_nonzero(is_data & (is_zero | ~has_place[:, None])))
        kinds = np.zeros(is_data.shape, np.uint8)
        kinds[is_data & has_place[:, None]] = _DATA
        zero_kind = np.where(has_place, _PLACED_ZERO + self._parity(entries), _ZERO_KIND).astype(np.uint8)
        np.copyto(kinds, zero_kind[:, None], where=is_zero)
        kinds[compressed] = _DATA
        self._look_for_the_end(entries, compressed)
        return _Piece(_spread(kinds.reshape(-1), self.finest, window.unit), owned, compressed)

    def _has_place(self, entries: Words) -> Mask:
        """Whether entries that are not compressed lead somewhere; in a second file, place 0 is one like others."""
        bits = OFFSET_BITS | COPIED if self.header.data_file is not None else OFFSET_BITS
        has_place: Mask = (entries & np.uint64(bits)) != 0
        return has_place

    def _parity(self, entries: Words) -> Kinds:
        """Alternate wherever neighbours are not neighbours in the file, too: QEMU looks at them one by one then."""
        places = entries & np.uint64(OFFSET_BITS)
        breaks = np.zeros(len(places), np.uint8)
        breaks[1:] = places[1:] != places[:-1] + np.uint64(self.cluster)
        return np.bitwise_and(np.cumsum(breaks, dtype=np.uint8), 1, dtype=np.uint8)

    def _look_for_the_end(self, entries: Words, compressed: Mask | None) -> None:
        """Count clusters beyond the end of the file, which QEMU reads as zeros."""
        if self.header.data_file is not None:
            return
        places = entries & np.uint64(OFFSET_BITS)
        if compressed is not None:
            places[compressed] = 0
        if len(places) and int(places.max()) >= self.geometry.file_size:
            self.anomalies += int(np.count_nonzero(places >= np.uint64(self.geometry.file_size)))


class _RawReader:
    """A raw bottom layer: all of it is allocated, data or a hole that reads as zeros."""

    def __init__(self, layer: Layer) -> None:
        self.size = layer.virtual_size
        self.knows_holes = layer.data_extents is not None
        extents = np.array([[0, self.size]], np.int64) if layer.data_extents is None else layer.data_extents
        self._data = _Sums(extents.clip(0, self.size), _SECTOR)
        self._held = _Sums(extents.clip(0, self.size), _HOST_BLOCK)

    def next_touched(self, offset: int) -> int | None:
        return offset if offset < self.size else None

    def load(self, window: _Window) -> _Piece | None:
        if window.start >= self.size:
            return None
        data_bytes = self._data.in_units(window)
        kinds = np.where(data_bytes > 0, np.uint8(_DATA), np.uint8(_ZERO_KIND))
        kinds[window.units_before(self.size) :] = _TRANSPARENT
        return _Piece(kinds, data_bytes=data_bytes, held_bytes=self._held.in_units(window))


_Reader = _Qcow2Reader | _RawReader


class _Sums:
    """How many bytes of extents lie before any place."""

    def __init__(self, extents: Extents, grain: int) -> None:
        """Extents are widened to whole grains: a file may end within one."""
        extents = extents[extents[:, 0] < extents[:, 1]]
        starts, stops = extents[:, 0] // grain * grain, -(-extents[:, 1] // grain) * grain
        starts[1:] = np.maximum(starts[1:], stops[:-1])
        sums = np.cumsum(stops - starts) if len(starts) else np.zeros(0, np.int64)
        self._places = np.stack([starts, stops], axis=1).reshape(-1).astype(np.float64)
        self._before = np.stack([sums - (stops - starts), sums], axis=1).reshape(-1).astype(np.float64)

    def in_units(self, window: _Window) -> NDArray[np.int32]:
        """Bytes in each unit of a window. Whole numbers below 2^53 all of them, so that nothing is rounded."""
        found = np.zeros(window.units, np.int32)
        for first in range(0, window.units if len(self._places) else 0, _PORTION):
            last = min(first + _PORTION, window.units)
            edges = window.start + np.arange(first, last + 1, dtype=np.float64) * window.unit
            found[first:last] = np.diff(np.interp(edges, self._places, self._before))
        return found


# ---- what a job writes ----


class _Ledger:
    """Adds up what a job writes into its target, window by window."""

    def __init__(self, target: _Reader, end: int, backing_size: int | None) -> None:
        """`end` is where the layer ends that is written from."""
        self._target = target
        self._end = end
        self._copied = 0
        self._zeroed = 0
        self._growth = 0
        self._freed = 0
        self._is_upper_bound = False
        self._last_table = -1
        self._zeros_are_data = False
        self._fill_table = 1 << 62
        self.filled_from = -1
        """Within the cluster at this place zeros are written because the target grows over a longer layer below."""
        if isinstance(target, _RawReader):
            return
        self._zeros_are_data = target.header.version < 3 and backing_size is not None
        if end <= target.size:
            return
        l1_size = _round_up(target.header.l1_entries * 8, target.cluster)
        needed = _round_up(-(-end // target.geometry.l2_span) * 8, target.cluster)
        self._growth += max(needed - l1_size, 0)
        if backing_size is not None and backing_size > target.size:
            fill = _round_up(target.size, target.finest)
            if fill > target.size:
                self.filled_from = target.size
            if fill < end:
                self._fill_table = fill // target.geometry.l2_span
                tables = -(-end // target.geometry.l2_span) - self._fill_table
                self._growth += (tables - target.owns_table(self._fill_table)) * target.cluster

    def write(self, window: _Window, piece: _Piece | None, copied: Mask, zeroed: Mask, grain: int) -> None:
        """Book data and zeros for the grains of a window. Neither is smaller than the target's clusters, or aligned."""
        data_bytes = window.count_bytes(copied, grain, self._end)
        zero_bytes = window.count_bytes(zeroed, grain, self._end)
        if self._zeros_are_data:
            data_bytes, zero_bytes = data_bytes + zero_bytes, 0
            copied, zeroed = copied | zeroed, np.zeros_like(zeroed)
        self._copied += data_bytes
        self._zeroed += zero_bytes
        if isinstance(self._target, _RawReader):
            self._write_raw(window, piece, copied, zeroed, grain)
        else:
            self._write_qcow2(self._target, window, piece, copied, zeroed, grain)

    def _write_raw(self, window: _Window, piece: _Piece | None, copied: Mask, zeroed: Mask, grain: int) -> None:
        assert isinstance(self._target, _RawReader)
        self._is_upper_bound |= bool(copied.any())  # holes may be unknown, or have their blocks set aside
        if piece is None or piece.held_bytes is None or not self._target.knows_holes:
            self._growth += window.count_bytes(copied, grain, self._end)
            return
        block = max(grain, _HOST_BLOCK)
        end = window.units_before(_round_up(self._end, _HOST_BLOCK))
        copied, zeroed = (_gather(_gather(mask, grain, block), block, window.unit)[:end] for mask in (copied, zeroed))
        held = piece.held_bytes[:end]
        self._growth += int((window.unit - held[copied]).sum())
        self._freed += int(held[zeroed].sum())

    def _write_qcow2(
        self, target: _Qcow2Reader, window: _Window, piece: _Piece | None, copied: Mask, zeroed: Mask, grain: int
    ) -> None:
        copied, zeroed = _gather(copied, grain, target.cluster), _gather(zeroed, grain, target.cluster)
        last = max(self._end - window.start, 0)
        copied[-(-last // target.cluster) :] = False
        zeroed[-(-last // target.cluster) :] = False
        if window.start <= self.filled_from < window.stop:
            copied[(self.filled_from - window.start) // target.cluster] = True
        if piece is None or piece.owned is None:
            new = int(np.count_nonzero(copied))
        else:
            new = int(np.count_nonzero(copied & ~piece.owned))
            self._freed += int(np.count_nonzero(zeroed & piece.owned)) * target.cluster
        if piece is not None and piece.compressed is not None:
            self._is_upper_bound |= bool((piece.compressed & (copied | zeroed)).any())
        self._growth += (new + self._new_tables(target, window, piece, copied | zeroed)) * target.cluster

    def _new_tables(self, target: _Qcow2Reader, window: _Window, piece: _Piece | None, written: Mask) -> int:
        """Count the L2 tables that have to be made for the clusters written, those of earlier windows not again."""
        entries = target.geometry.l2_entries
        first_cluster = window.start // target.cluster
        first = first_cluster // entries
        begins = np.arange(first + 1, -(-(first_cluster + len(written)) // entries)) * entries - first_cluster
        needed = np.logical_or.reduceat(written, np.concatenate([[0], begins]))
        tables = np.flatnonzero(needed) + first
        if not len(tables):
            return 0
        last, self._last_table = self._last_table, int(tables[-1])
        tables = tables[(tables != last) & (tables < self._fill_table)] - first
        owned = 0
        if piece is not None and piece.tables_owned is not None:
            owned = int(np.count_nonzero(piece.tables_owned[tables[tables < len(piece.tables_owned)]]))
        return len(tables) - owned

    def expect_zeros_in_data(self) -> None:
        """Note that some of what is booked as data may be written as zeros."""
        self._is_upper_bound = True

    def total(self) -> Merge:
        return Merge(self._copied, self._zeroed, self._growth, self._freed, self._is_upper_bound)


def _granule(target: _Reader) -> int:
    """Bytes that a mirror job handles at a time (`bdrv_get_default_bitmap_granularity`)."""
    if isinstance(target, _RawReader):
        return _LARGEST_GRANULE
    return min(max(target.cluster, _SMALLEST_GRANULE), _LARGEST_GRANULE)


@dataclass(slots=True)
class _Commit:
    """A commit under way through a window."""

    top: int
    base: int
    live: _Ledger
    intermediate: _Ledger
    first_cut: int
    """The first layer that QEMU looks at in pieces smaller than a granule: no granule of zeros is found there."""
    base_piece: _Piece | None = None
    codes: Codes = field(default_factory=lambda: np.zeros(0, np.uint16))
    """What the layers that are committed define."""


# ---- the walk ----


class _Walk:
    def __init__(
        self,
        layers: Sequence[Layer],
        pairs: Sequence[tuple[int, int]],
        cancelled: Callable[[], bool],
        *,
        with_pulls: bool,
    ) -> None:
        budget = Budget()
        self._units_left = _MOST_UNITS
        self._cancelled = cancelled
        self._readers: list[_Reader] = [
            _RawReader(layer) if layer.content is None else _Qcow2Reader(layer, layer.content, budget, cancelled)
            for layer in layers
        ]
        self._sizes = [layer.virtual_size for layer in layers]
        self._commits = [self._commit(top, base) for top, base in pairs]
        self._pulls = [self._ledger(index, index) for index in range(len(layers) - 1 if with_pulls else 0)]
        depth = len(layers)
        self._data, self._zero, self._visible = [0] * depth, [0] * depth, [0] * depth

    def run(self) -> ChainCosts:
        for window in self._windows():
            self._look(window)
        return ChainCosts(
            tuple(self._layer_costs(index) for index in range(len(self._readers))),
            tuple(
                CommitCosts(each.top, each.base, each.live.total(), each.intermediate.total()) for each in self._commits
            ),
            tuple(pull.total() for pull in self._pulls),
        )

    def _layer_costs(self, index: int) -> LayerCosts:
        reader = self._readers[index]
        return LayerCosts(
            self._data[index],
            self._zero[index],
            self._visible[index],
            is_upper_bound=isinstance(reader, _RawReader) and not reader.knows_holes,
            anomalies=reader.anomalies if isinstance(reader, _Qcow2Reader) else 0,
        )

    def _ledger(self, top: int, target: int) -> _Ledger:
        backing_size = self._sizes[target + 1] if target + 1 < len(self._readers) else None
        return _Ledger(self._readers[target], self._sizes[top], backing_size)

    def _commit(self, top: int, base: int) -> _Commit:
        # QEMU asks one slice of an L2 table at a time: of clusters of 512 bytes, it speaks of 32 KiB.
        is_large = _granule(self._readers[base]) > 32 << 10
        cut = (
            index
            for index, reader in enumerate(self._readers[:base])
            if is_large and index >= top and isinstance(reader, _Qcow2Reader) and reader.cluster == 512
        )
        return _Commit(top, base, self._ledger(top, base), self._ledger(top, base), next(cut, base))

    def _windows(self) -> Iterator[_Window]:
        """Cut the disk up: windows that no layer touches are left out, ends of layers get small ones in sectors."""
        end = max(self._sizes)
        finest = min((each.finest for each in self._readers if isinstance(each, _Qcow2Reader)), default=_BLOCK)
        ends = sorted({size // _BLOCK * _BLOCK for size in self._sizes if size % _BLOCK})
        # Where a layer ends, those above it see zeros: even of such that no table speaks of.
        ragged = range(min(self._sizes[1:]), end) if len(set(self._sizes)) > 1 else range(0)
        start = 0
        while start < end:
            touched = [found for each in self._readers if (found := each.next_touched(start)) is not None]
            if ragged.start < ragged.stop:
                touched.append(max(start, ragged.start))
            if not touched:
                return
            start = min(touched) // _BLOCK * _BLOCK
            if start in ends:
                window = _Window(start, start + _BLOCK, _SECTOR)
            else:
                stop = min([start + max(finest * _WINDOW_UNITS, _BLOCK), *(each for each in ends if each > start)])
                window = _Window(start, min(stop, _round_up(end, _BLOCK)), self._unit(start, stop))
            yield window
            start = window.stop

    def _unit(self, start: int, stop: int) -> int:
        """The smallest cluster of all, and the smallest subcluster of those layers that have any here."""
        unit = _BLOCK
        for reader in self._readers:
            if isinstance(reader, _Qcow2Reader):
                touched = reader.next_touched(start) if reader.header.extended_l2 else None
                unit = min(unit, reader.finest if touched is not None and touched < stop else reader.cluster)
        return unit

    def _look(self, window: _Window) -> None:
        """Go through all layers from the bottom up, as the guest's reads go down."""
        view: Codes = np.zeros(window.units, np.uint16)
        raw_bytes: NDArray[np.int32] | None = None
        for index in reversed(range(len(self._readers))):
            if self._cancelled():
                raise CancelledError("Measuring the chain was cancelled.")
            piece = self._readers[index].load(window)
            self._units_left -= window.units
            if self._units_left < 0:
                raise BadImageError("its disk is too large, and cut too finely, to be measured")
            if piece is not None:
                self._count(index, window, piece)
                raw_bytes = piece.data_bytes if raw_bytes is None else raw_bytes
            if index < len(self._pulls):
                self._pull(index, window, piece, view)
            self._lay_over(view, index, window, piece, len(self._readers))
            for commit in self._commits:
                if index == commit.base:
                    commit.base_piece = piece
                    commit.codes = np.zeros(window.units, np.uint16)
                elif commit.top <= index < commit.base:
                    self._lay_over(commit.codes, index, window, piece, commit.base)
                if index == commit.top:
                    self._finish(commit, window, view)
        self._show(window, view, raw_bytes)

    def _count(self, index: int, window: _Window, piece: _Piece) -> None:
        """Add up what a layer defines."""
        if piece.data_bytes is not None:
            data = int(piece.data_bytes.sum())
            self._data[index] += data
            self._zero[index] += window.units_before(self._sizes[index]) * window.unit - data
            return
        data = int(np.count_nonzero(piece.kinds == _DATA))
        self._data[index] += data * window.unit
        self._zero[index] += (int(np.count_nonzero(piece.kinds)) - data) * window.unit

    def _lay_over(self, codes: Codes, index: int, window: _Window, piece: _Piece | None, bottom: int) -> None:
        """Put a layer over what those below it show; `bottom` is the first that does not belong to them."""
        end = window.units_before(self._sizes[index])
        if index + 1 < bottom:
            codes[window.units_before(self._sizes[index + 1]) : end] = (index + 1 << _KIND_BITS) + _BEYOND
        if piece is not None:
            own = piece.kinds.astype(np.uint16)
            own += np.uint16(index << _KIND_BITS)
            np.copyto(codes, own, where=piece.kinds != _TRANSPARENT)
        codes[end:] = _TRANSPARENT

    def _finish(self, commit: _Commit, window: _Window, view: Codes) -> None:
        """Book what a commit writes, now that all its layers are known, and what shows through them."""
        defined, base_piece = commit.codes != _TRANSPARENT, commit.base_piece
        commit.codes, commit.base_piece = np.zeros(0, np.uint16), None
        fills = window.start <= commit.live.filled_from < window.stop
        if not fills and not defined.any():
            return
        nothing = np.zeros(window.units, np.bool_)
        commit.intermediate.write(window, base_piece, defined, nothing, window.unit)
        grain = max(_granule(self._readers[commit.base]), window.unit)
        dirty = _gather(defined, window.unit, grain)
        shown = view.reshape(len(dirty), -1)
        is_zero = (shown[:, 0] & _KIND_MASK) != _DATA
        cut_from = commit.first_cut << _KIND_BITS
        is_zero &= (shown[:, 0] < cut_from) | (shown[:, 0] == cut_from + _BEYOND)
        if shown.shape[1] > 1:
            is_zero &= (shown == shown[:, :1]).all(axis=1)
        is_zero &= dirty
        base = self._readers[commit.base]
        if isinstance(base, _Qcow2Reader) and base.cluster > grain and is_zero.any():
            is_zero[:] = (
                False  # QEMU copies runs of zeros that are not aligned to clusters; how it cuts them is its own
            )
            commit.live.expect_zeros_in_data()
        commit.live.write(window, base_piece, dirty & ~is_zero, is_zero, grain)

    def _pull(self, index: int, window: _Window, piece: _Piece | None, below: Codes) -> None:
        """Book what a layer would get if everything below were pulled into it, cluster by cluster."""
        reader = self._readers[index]
        assert isinstance(reader, _Qcow2Reader)
        end = window.units_before(self._sizes[index])
        comes = below != 0
        if piece is not None:
            comes &= piece.kinds == _TRANSPARENT
        comes[end:] = False
        if not comes.any():
            return
        has_data = comes & ((below & _KIND_MASK) == _DATA)
        copied = _gather(has_data, window.unit, reader.cluster)
        zeroed = _gather(comes, window.unit, reader.cluster) & ~copied
        self._pulls[index].write(window, piece, copied, zeroed, reader.cluster)
        if has_data.any():
            self._pulls[index].expect_zeros_in_data()  # QEMU looks at what it pulls

    def _show(self, window: _Window, view: Codes, raw_bytes: NDArray[np.int32] | None) -> None:
        """Add up what is seen from the top."""
        counts = np.zeros(len(self._readers) << _KIND_BITS, np.int64)
        for first in range(0, len(view), _PORTION):
            counts += np.bincount(view[first : first + _PORTION], minlength=len(counts))
        for index, count in enumerate(counts[_DATA :: 1 << _KIND_BITS].tolist()):
            self._visible[index] += count * window.unit
        if raw_bytes is not None:
            bottom = len(self._readers) - 1
            code = (bottom << _KIND_BITS) + _DATA
            self._visible[bottom] += int(raw_bytes[view == code].sum()) - int(counts[code]) * window.unit


def _gather(mask: Mask, grain: int, coarser: int) -> Mask:
    """Say of larger grains whether any part of them is set; smaller ones than `grain` are as it is."""
    if coarser <= grain:
        return mask.copy() if coarser == grain else np.repeat(mask, grain // coarser)
    gathered: Mask = np.logical_or.reduce(mask.reshape(-1, coarser // grain), axis=1)
    return gathered


def _spread(kinds: Kinds, grain: int, finer: int) -> Kinds:
    return kinds if finer == grain else np.repeat(kinds, grain // finer)


def _round_up(number: int, grain: int) -> int:
    return -(-number // grain) * grain
