"""The layers of a disk, read side by side: what each of them says of one window of the guest's disk after the other.

Windows go from the disk's beginning to its end. All layers of a disk are read in the same units: the smallest cluster
(or subcluster) of any of them. Sources: QEMU's docs/interop/qcow2.txt, "Cluster mapping".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from snaptree.images.extents import Taken
from snaptree.images.qcow2 import Qcow2Header, read_header
from snaptree.images.read_at import BadImageError, ReadAt
from snaptree.images.tables import (
    COMPRESSED,
    COPIED,
    MOST_TABLE_BYTES,
    OFFSET_BITS,
    ZERO,
    Budget,
    Geometry,
    Offsets,
    Words,
    l2_places,
    most_table_bytes,
    read_batch,
    read_l2_tables,
    read_words,
)
from snaptree.model.errors import CancelledError

Kinds = NDArray[np.uint8]
"""For each unit of a window TRANSPARENT, ZERO_KIND or DATA."""

TRANSPARENT: Final = 0
"""What lies below shows."""
ZERO_KIND: Final = 1
DATA: Final = 2

LARGEST_CLUSTER: Final = 2 << 20
_SMALLEST_UNIT: Final = 512
_WINDOW_UNITS: Final = 1 << 14
_MOST_WINDOW_UNITS: Final = 1 << 18
"""So few that what is worked on stays in a processor's cache; the more the better where layers hold something."""
_MOST_VIEW_UNITS: Final = 1 << 24
"""Of all views that are held at once: 32 MiB."""
_L1_SLICE: Final = 1 << 14
"""Entries of an L1 table that are held at a time; all that a disk of 8 TiB has in clusters of 64 KiB."""


@dataclass(frozen=True, slots=True)
class Layer:
    """An opened image that others stand on, or that stands on others."""

    source: ReadAt
    header: Qcow2Header | None
    """None if it is raw, which only a bottom layer may be."""
    virtual_size: int
    """Bytes of the guest's disk."""
    allocated: int | None = None
    """Bytes that its file takes on the host, if that is known: its tables hardly hold more, whatever it says."""
    taken: Taken | None = None
    """Of a raw image: what parts of it take on the host. None if nobody can tell: then all of it counts as data."""
    written: Taken | None = None
    """Of a raw image: what of that was certainly written. None if nobody can tell: all of that then."""
    shown: Taken | None = None
    """Of a raw image: what of it may have been written; the rest reads as zeros. None if that is what certainly was."""

    @classmethod
    def of_qcow2(cls, source: ReadAt, allocated: int | None = None) -> Layer:
        """Make a layer of a qcow2 image. Raises BadImageError or OSError."""
        header = read_header(source)
        return cls(source, header, header.virtual_size, allocated)

    @classmethod
    def of_raw(
        cls,
        source: ReadAt,
        taken: Taken | None = None,
        written: Taken | None = None,
        shown: Taken | None = None,
        allocated: int | None = None,
    ) -> Layer:
        """Make a layer of a raw image."""
        return cls(source, None, source.size, allocated, taken, written, shown)


@dataclass(frozen=True, slots=True)
class Window:
    """A piece of the guest's disk: `units` of `unit` bytes from `start`."""

    start: int
    units: int
    unit: int

    @property
    def stop(self) -> int:
        """Where it ends, in bytes."""
        return self.start + self.units * self.unit

    def units_before(self, end: int) -> int:
        """How many units begin before a place on the disk."""
        return min(max(-(-(end - self.start) // self.unit), 0), self.units)


@dataclass(slots=True)
class Held:
    """Bytes that a layer's file has for the guest's data, added up as its windows are read."""

    owned: int = 0
    """In clusters that can be written in place, whether there is data in them or zeros."""
    owned_data: int = 0
    """Of these, in clusters with data."""
    shared_data: int = 0
    """In clusters with data that can't be written in place: compressed, or held by an internal snapshot as well."""
    unsure: int = 0
    """In what counts as data, and may be zeros."""
    tables: int = 0
    """L2 tables that can be written in place."""


class LayerReader(Protocol):
    """Reads one layer, window by window."""

    cluster: int
    """Bytes in which its file grows."""
    finest: int
    """Bytes of the smallest piece that it tells of."""
    table_span: int
    """Bytes of the guest's disk that one table speaks of."""
    size: int
    """Bytes of the guest's disk."""
    anomalies: int
    """Entries of its tables, met so far, that a sound image does not have."""
    held: Held

    def next_touched(self, offset: int) -> int | None:
        """Where at or after a place on the disk it may define anything next; None if nowhere."""

    def load(self, window: Window) -> Kinds | None:
        """What it defines in a window; None if nothing. Raises BadImageError, OSError or CancelledError."""


class Room:
    """Two arrays of words that all readers of one disk work in, for fresh memory takes longer than what is done in it.

    What is in them is of use until the next window is loaded.
    """

    def __init__(self) -> None:
        self._arrays = np.empty((2, 0), np.uint64)

    def of(self, length: int) -> tuple[Words, Words]:
        """Both, so long."""
        if length > self._arrays.shape[1]:
            self._arrays = np.empty((2, length), np.uint64)
        return self._arrays[0, :length], self._arrays[1, :length]


def readers_of(layers: Sequence[Layer], cancelled: Callable[[], bool]) -> list[LayerReader]:
    """Make the readers of a disk's layers. They share a budget, and room to work in: there may be hundreds."""
    allocated = allocated_by(layers)
    budget = Budget(MOST_TABLE_BYTES * len(layers) if allocated is None else most_table_bytes(allocated))
    room = Room()
    return [
        _RawReader(layer) if layer.header is None else _Qcow2Reader(layer, layer.header, budget, room, cancelled)
        for layer in layers
    ]


def allocated_by(layers: Iterable[Layer]) -> int | None:
    """Bytes that all files together take on the host; None if that is not known of each."""
    total = 0
    for layer in layers:
        if layer.allocated is None:
            return None
        total += layer.allocated
    return total


def touched_windows(readers: Sequence[LayerReader], unit: int, grain: int, views: int) -> Iterator[Window]:
    """Windows that some layer may say something of; they begin and end at multiples of `grain`.

    They are so narrow that so many `views` of one can be held at once.
    """

    def is_touched(start: int, stop: int) -> bool:
        return any((found := each.next_touched(start)) is not None and found < stop for each in readers)

    end = max((reader.size for reader in readers), default=0)
    widest, narrowest = (
        max(min(units, _MOST_VIEW_UNITS // views) * unit // grain * grain, grain)
        for units in (_MOST_WINDOW_UNITS, _WINDOW_UNITS)
    )
    start = 0
    while start < end:
        touched = [found for each in readers if (found := each.next_touched(start)) is not None]
        if not touched:
            return
        start = min(touched) // grain * grain
        most = min(widest, -(-(end - start) // grain) * grain)
        length = min(narrowest, most)
        while length < most and is_touched(start + length, start + 2 * length):
            length = min(2 * length, most)
        yield Window(start, length // unit, unit)
        start += length


class _Qcow2Reader:
    def __init__(
        self, layer: Layer, header: Qcow2Header, budget: Budget, room: Room, cancelled: Callable[[], bool]
    ) -> None:
        self._header = header
        self._geometry = Geometry(self._header.cluster_bits, self._header.extended_l2, layer.source.size)
        self.size = layer.virtual_size
        self.cluster = self._geometry.cluster
        self.finest = self.cluster // 32 if self._header.extended_l2 else self.cluster
        self.table_span = self._geometry.l2_span
        self.anomalies = 0
        self.held = Held()
        self._source = layer.source
        self._budget = budget
        self._room = room
        self._cancelled = cancelled
        self._tables = min(-(-self.size // self.table_span), self._header.l1_entries)
        self._slice = -1
        self._places: Offsets = np.zeros(0, np.int64)
        self._touched: NDArray[np.uint16] = np.zeros(0, np.uint16)
        """Those entries of the slice at hand that lead to a table."""
        self._next_touched: tuple[int, int | None] = (1 << 64, None)

    def next_touched(self, offset: int) -> int | None:
        asked, found = self._next_touched
        if not asked <= offset or (found is not None and offset > found):
            found = self._find_touched(offset)
            self._next_touched = offset, found
        return found

    def _find_touched(self, offset: int) -> int | None:
        index = offset // self.table_span
        while index < self._tables:
            number, within = divmod(index, _L1_SLICE)
            self._hold(number)
            found = int(np.searchsorted(self._touched, np.uint16(within)))
            if found < len(self._touched):
                return max(offset, (number * _L1_SLICE + int(self._touched[found])) * self.table_span)
            index = (number + 1) * _L1_SLICE
        return None

    def load(self, window: Window) -> Kinds | None:
        first = window.start // self.table_span
        last = min(-(-window.stop // self.table_span), self._tables)
        places = self._l1(first, last)
        if not places.any():
            return None
        words = self._l2(window, first, places)
        kinds = self._subclusters(words) if self._header.extended_l2 else self._clusters(words)
        if self.finest != window.unit:
            kinds = np.repeat(kinds, self.finest // window.unit)
        kinds[window.units_before(self.size) :] = TRANSPARENT
        return kinds

    def _hold(self, number: int) -> None:
        """Have a slice of the L1 table at hand."""
        if number == self._slice:
            return
        if self._cancelled():
            raise CancelledError("Reading the image was cancelled.")
        first = number * _L1_SLICE
        entries = min(_L1_SLICE, self._tables - first)
        words = read_words(self._source, self._header.l1_offset + first * 8, entries, self._budget)
        self._places, dropped = l2_places(words, self._geometry)
        if number > self._slice:  # windows go forward: each slice is counted once
            self.anomalies += dropped
            self.held.tables += int(np.count_nonzero((self._places != 0) & ((words & np.uint64(COPIED)) != 0)))
        self._touched = np.flatnonzero(self._places).astype(np.uint16)
        self._slice = number

    def _l1(self, first: int, last: int) -> Offsets:
        """Places of L2 tables."""
        number, begin = divmod(first, _L1_SLICE)
        if first < last <= (number + 1) * _L1_SLICE:  # the common case
            self._hold(number)
            return self._places[begin : begin + last - first]
        places = [self._places[:0]]
        while first < last:
            self._hold(first // _L1_SLICE)
            begin = first % _L1_SLICE
            end = min(begin + last - first, _L1_SLICE)
            places.append(self._places[begin:end])
            first += end - begin
        return np.concatenate(places)

    def _l2(self, window: Window, first: int, places: Offsets) -> Words:
        """Words of the L2 entries of all clusters in a window, 0 where there is no table."""
        span, width = self.table_span, self._geometry.l2_words
        per_cluster = width // self._geometry.l2_entries
        if places[0] and (places[1:] > places[:-1]).all() and len(places) * span == window.units * window.unit:
            # The common case of an image that was written from its beginning on.
            words, _ = self._room.of(len(places) * width)
            read_batch(
                self._source, self._geometry, places, self._budget, self._cancelled, words.reshape(len(places), width)
            )
            return words
        found = np.sort(places[places != 0])
        if (found[1:] == found[:-1]).any():
            raise BadImageError("several entries of its L1 table lead to the same L2 table")
        words, _ = self._room.of(window.units * window.unit // self.cluster * per_cluster)
        words[:] = 0
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
        for number, tables in read_l2_tables(self._source, self._geometry, whole[order], self._budget, self._cancelled):
            rows[order[number : number + len(tables)]] = tables
        return words

    def _clusters(self, words: Words) -> Kinds:
        """Tell what plain L2 entries stand for."""
        seen = int(np.bitwise_or.reduce(words))
        if (kinds := self._plain_clusters(words, seen)) is not None:
            return kinds
        _, offsets = self._room.of(len(words))
        np.bitwise_and(words, np.uint64(OFFSET_BITS), out=offsets)
        has_place = offsets != 0
        if self._header.data_file is not None:  # there, place 0 is one like others
            has_place |= (words & np.uint64(COPIED)) != 0
        kinds = _data_where(has_place)
        has_data = has_place
        if seen & COMPRESSED:
            compressed = (words & np.uint64(COMPRESSED)) != 0
            kinds[compressed] = DATA
            has_data, has_place = has_place | compressed, has_place & ~compressed
            offsets[compressed] = 0
        if seen & ZERO:
            is_zero = (words & np.uint64(ZERO)) != 0
            if seen & COMPRESSED:
                is_zero &= ~compressed  # there it is part of the place
            if self._header.version < 3:
                self.anomalies += int(np.count_nonzero(is_zero))
            kinds[is_zero] = ZERO_KIND
            has_data = has_data & ~is_zero
        self._count(words, offsets, seen, has_place, has_data)
        return kinds

    def _plain_clusters(self, words: Words, seen: int) -> Kinds | None:
        """Tell it if each entry is empty, or leads to data that nobody else holds: the common case, cheaply."""
        signed = words.view(np.int64)  # COPIED is the sign
        if seen & ~(OFFSET_BITS | COPIED) or not len(signed) or signed.max() > 0 or signed.min() == -COPIED:
            return None
        has_place = words != 0
        owned = int(np.count_nonzero(has_place)) * self.cluster
        self.held.owned += owned
        self.held.owned_data += owned
        file_size = self._geometry.file_size
        if self._header.data_file is None and int(words.max()) & OFFSET_BITS >= file_size:
            self.anomalies += int(np.count_nonzero(words & np.uint64(OFFSET_BITS) >= np.uint64(file_size)))
        return _data_where(has_place)

    def _subclusters(self, words: Words) -> Kinds:
        """Tell what L2 entries with subclusters stand for: two bitmaps follow each, of data and of zeros."""
        entries = np.ascontiguousarray(words[0::2])
        data = words[1::2].astype(np.uint32)  # the lower half
        zeros = (words[1::2] >> np.uint64(32)).astype(np.uint32)
        has_place = self._has_place(entries)
        compressed = (entries & np.uint64(COMPRESSED)) != 0
        has_place &= ~compressed
        self.anomalies += int(np.count_nonzero((data & zeros) != 0))
        self.anomalies += int(np.count_nonzero((data != 0) & ~has_place))
        data[~has_place] = 0
        data &= ~zeros
        data[compressed] = 0xFFFF_FFFF
        zeros[compressed] = 0
        offsets = entries & np.uint64(OFFSET_BITS)
        offsets[~has_place] = 0
        self._count(entries, offsets, OFFSET_BITS, has_place, data != 0)
        kinds: Kinds = _bits(data) * np.uint8(DATA)
        kinds |= _bits(zeros)  # ZERO_KIND
        return kinds

    def _has_place(self, entries: Words) -> NDArray[np.bool_]:
        """Whether entries that are not compressed lead somewhere; in a second file, place 0 is one like others."""
        bits = OFFSET_BITS | COPIED if self._header.data_file is not None else OFFSET_BITS
        has_place: NDArray[np.bool_] = (entries & np.uint64(bits)) != 0
        return has_place

    def _count(
        self, entries: Words, offsets: Words, seen: int, has_place: NDArray[np.bool_], has_data: NDArray[np.bool_]
    ) -> None:
        """Add up what the file has for these clusters. Those beyond its end, which QEMU reads as zeros, are odd.

        `seen` are the bits that any entry has: no offset is higher than all of them together.
        """
        owned = entries.view(np.int64) < 0  # COPIED is the highest bit
        owned &= has_place
        count = int(np.count_nonzero(owned))
        owned_data = count if has_data is has_place else int(np.count_nonzero(owned & has_data))
        self.held.owned += count * self.cluster
        self.held.owned_data += owned_data * self.cluster
        self.held.shared_data += (int(np.count_nonzero(has_data)) - owned_data) * self.cluster
        may_be_beyond = self._header.data_file is None and seen & OFFSET_BITS >= self._geometry.file_size
        if may_be_beyond and len(offsets) and int(offsets.max()) >= self._geometry.file_size:
            self.anomalies += int(np.count_nonzero(offsets >= np.uint64(self._geometry.file_size)))


class _RawReader:
    """What was written is data; holes are zeros, and so is what was set aside on the host.

    Where a reader of holes finds data in what was set aside, it may have been written a moment ago.
    """

    def __init__(self, layer: Layer) -> None:
        self.size = layer.virtual_size
        self.cluster = self.finest = self.table_span = LARGEST_CLUSTER
        self.anomalies = 0
        self.held = Held()
        self._taken = layer.taken
        self._written = layer.written
        self._shown = layer.shown

    def next_touched(self, offset: int) -> int | None:
        return offset if offset < self.size else None

    def load(self, window: Window) -> Kinds | None:
        units = window.units_before(self.size)
        if not units:
            return None
        kinds = np.zeros(window.units, np.uint8)
        if self._taken is None:
            kinds[:units] = DATA
            self.held.shared_data += units * window.unit
            self.held.unsure += units * window.unit
            return kinds
        taken = self._taken(window.start, window.unit, units)
        written = taken if self._written is None else self._written(window.start, window.unit, units)
        shown = written if self._shown is None else self._shown(window.start, window.unit, units)
        is_data = (written > 0) | (shown > 0)
        kinds[:units] = np.where(is_data, np.uint8(DATA), np.uint8(ZERO_KIND))
        self.held.unsure += int(np.count_nonzero(is_data & (written == 0))) * window.unit
        whole = int(np.count_nonzero(taken >= window.unit)) * window.unit
        some = int(np.count_nonzero(taken > 0)) * window.unit
        self.held.owned += some
        self.held.owned_data += whole
        return kinds


def _data_where(is_data: NDArray[np.bool_]) -> Kinds:
    kinds: Kinds = is_data.view(np.uint8) * np.uint8(DATA)
    return kinds


def _bits(words: NDArray[np.uint32]) -> NDArray[np.uint8]:
    """The bits of all words, the lowest of each first."""
    return np.unpackbits(words.astype("<u4", copy=False).view(np.uint8), bitorder="little")


def common_unit(readers: list[LayerReader]) -> int:
    """Bytes of the unit in which all these layers can be read."""
    return max(_SMALLEST_UNIT, min((reader.finest for reader in readers), default=LARGEST_CLUSTER))
