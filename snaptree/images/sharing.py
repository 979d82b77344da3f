"""Which clusters of a qcow2 image are held by which of its internal snapshots, and by its present state.

An internal snapshot is a copy of the L1 table. Its clusters are shared with other snapshots and with the present
state until one of them is written to (QEMU's docs/interop/qcow2.txt, "Snapshots"). So what a snapshot costs, and what
its deletion frees, is a question of who else holds its clusters. Here every cluster that is reached gets the set of
its holders, and the clusters are counted by that set. All questions are then sums over a small table.

Beyond the end of the guest's disk an L1 table goes on with the saved memory, if there is any ("VM state"). After a
revert the present state holds the memory, too.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from snaptree.images.extents import Taken
from snaptree.images.qcow2 import Qcow2Content, as_snapshots
from snaptree.images.read_at import BadImageError, ReadAt
from snaptree.images.tables import (
    COMPRESSED,
    COPIED,
    LEAST_TABLE_BYTES,
    MOST_TABLE_BYTES,
    OFFSET_BITS,
    Budget,
    Geometry,
    Offsets,
    Words,
    distinct,
    most_table_bytes,
    read_batch,
    read_l1,
)
from snaptree.model.errors import CancelledError
from snaptree.model.estate import InternalSnapshot

_LARGEST_OFFSET: Final = 1 << 56
_LARGEST_L1: Final = 32 << 20
_MOST_L1_BYTES: Final = 2 << 30
"""Of the L1 tables of all snapshots together: 60,000 snapshots of a disk of 2 TiB."""
_MOST_TABLES: Final = 1 << 21
"""L2 tables, 64 TiB of disk in clusters of 16 KiB."""
_MOST_OFFSETS_KEPT: Final = 1 << 22
_MOST_CLASS_BYTES: Final = 96 << 20
"""For all sets of holders together, if each had the last snapshot: 400,000 sets of 1,000 snapshots."""
_MOST_HOLDER_BYTES: Final = 24 << 20
"""As they are: there are up to four copies of them."""
_LEAST_MOVES: Final = 1 << 17
_BYTES_PER_MOVE: Final = 512
"""Sets of holders that are joined with others, at least and for so many bytes that the file takes on the host: in real
images few clusters have a set of their own."""
_LEAST_LOOKED_AT: Final = 1 << 25
_BYTES_PER_CLUSTER: Final = 2
"""Clusters of the file that are looked at, held or not, at least and for so many bytes that the file takes on the host:
for each that is held its tables take 8, though they may be compressed."""
_BYTES_PER_CLASS: Final = 128
"""About what Python needs for a set besides its bits."""
_L1_PIECE: Final = 1 << 20
"""Entries of an L1 table that are read at once."""
_CHUNK: Final = 4 << 20
"""Bytes of L2 tables that are read at once, and compared with each other."""
_LEAST_COMPARED: Final = 4 << 10
"""Bytes of a table that is rather compared with another one than taken entry by entry."""
_MOST_COMPARED: Final = 1 << 20
"""Entries of all L1 tables together, so that finding out what to compare takes little time."""
_ALIKE: Final = 1 / 8
"""Two tables are alike if no larger part of their entries differs."""
_CHUNKS_TOGETHER: Final = 8
"""So many of these wait with what differs between tables, for that is little of each."""
_SLICE_BITS: Final = 24
"""So many clusters of the file (2^24) are looked at in one go: 1 TiB of clusters of 64 KiB."""
_MOST_SLICES: Final = 256
_PER_LOOK: Final = 8
"""Clusters that nobody holds are looked at so much faster than others."""
_BLOCK: Final = 1 << 17
"""Clusters that are counted at once."""
_GRAIN: Final = 1 << 12
"""Clusters that are passed over if nobody holds any of them, nor of their neighbours."""
_GRAINS_PASSED_OVER: Final = 2


_TOO_MANY_CLASSES: Final = "its snapshots share clusters in more ways than can be told apart"
_TOO_SCATTERED: Final = "its clusters are scattered over a larger file than any real image has"


class Kind(IntEnum):
    """What a cluster is for. One that is used for several counts as the last of them."""

    DATA = 0
    """Of the guest's disk, compressed or not."""
    VM_STATE = 1
    """Memory and devices of a snapshot taken while the machine ran."""
    L2 = 2
    L1 = 3


EVERY_KIND: Final = tuple(Kind)
_OF_THE_DISK: Final = (Kind.DATA, Kind.L2, Kind.L1)


@dataclass(frozen=True, slots=True)
class Space:
    """Clusters held, in bytes. Part of the last cluster may lie beyond the file's end."""

    in_image: int
    """Clusters times their size: what the image can use again once they are free."""
    on_host: int | None
    """Bytes that the clusters take on the host's file system; None if that is not known. A deletion returns at most
    these: QEMU may be told not to (`discard=ignore`), and blocks larger than a cluster may stay for their rest."""


@dataclass(frozen=True, slots=True, eq=False)
class Sharing:
    """Who holds what in one image. Holders are numbers: of the snapshot in its table, or `present`."""

    cluster: int
    """Bytes of a cluster."""
    snapshots: tuple[InternalSnapshot, ...]
    """The image's, when it was read; their places are their numbers."""
    pointers_to_nowhere: int
    """Table entries that were left out, because they point beyond the file or between clusters: more than none means
    that the image is broken, or was written to meanwhile."""
    _holders: NDArray[np.uint8]
    """For each set of holders its bits, the first snapshot's first."""
    _sizes: NDArray[np.int64]
    """How many holders each set has."""
    _kinds: NDArray[np.uint8]
    _clusters: NDArray[np.int64]
    _taken: NDArray[np.int64] | None
    _table: int
    """Bytes of the snapshot table now."""
    _table_anew: tuple[int, ...]
    """For each snapshot the length of its entry, written anew."""
    _whole_table_anew: int

    @property
    def present(self) -> int:
        """The number of the present state: how many snapshots there are."""
        return len(self.snapshots)

    @property
    def clusters(self) -> int:
        """How many clusters are held by anybody."""
        return int(self._clusters.sum())

    def total(self, kinds: Collection[Kind] = EVERY_KIND) -> Space:
        """What is held by anybody."""
        return self._sum(np.ones(len(self._clusters), np.bool_), kinds)

    def referred(self, holder: int, kinds: Collection[Kind] = EVERY_KIND) -> Space:
        """What a snapshot or the present state holds, shared or not."""
        return self._sum(self._held_by(holder), kinds)

    def unique(self, holder: int, kinds: Collection[Kind] = EVERY_KIND) -> Space:
        """What nobody else holds."""
        return self._sum(self._held_by_none_but([holder]), kinds)

    def written(self, holder: int, parent: int | None, kinds: Collection[Kind] = EVERY_KIND) -> Space:
        """What a holder has and its parent has not; all of it if there is no parent."""
        held = self._held_by(holder)
        return self._sum(held if parent is None else held & ~self._held_by(parent), kinds)

    def written_to_disk(self, holder: int, parent: int | None) -> Space:
        """As `written`, without saved memory."""
        return self.written(holder, parent, _OF_THE_DISK)

    def data(self, holder: int) -> Space:
        """What a holder has of the guest's disk, without the tables that lead to it."""
        return self.referred(holder, [Kind.DATA])

    def frees(self, snapshots: Collection[int], kinds: Collection[Kind] = EVERY_KIND) -> Space:
        """What becomes free if all these snapshots are deleted.

        With every kind asked for, the snapshot table counts: QEMU writes it anew, without them. It may even grow, if
        an old QEMU wrote it. The host's bytes are without it.
        """
        space = self._sum(self._held_by_none_but(snapshots), kinds)
        if set(kinds) != set(Kind) or not snapshots:
            return space
        after = self._whole_table_anew - sum(self._table_anew[number] for number in set(snapshots))
        shrinks = -(-self._table // self.cluster) - -(-after // self.cluster)
        return Space(space.in_image + shrinks * self.cluster, space.on_host)

    def memory(self, holder: int) -> Space:
        """Saved memory that a snapshot holds, or the present state after a revert."""
        return self._sum(self._held_by(holder), [Kind.VM_STATE])

    def memory_also_present(self, snapshot: int) -> Space:
        """Saved memory of a snapshot that the present state holds, too: deleting the snapshot will not free it."""
        return self._sum(self._held_by(snapshot) & self._held_by(self.present), [Kind.VM_STATE])

    def with_memory_dropped(self, snapshot: int) -> Sharing:
        """As a running QEMU has it after taking a snapshot: the present state does not hold the memory saved in it.

        It drops that from its tables at once (`qcow2_snapshot_create`), but writes them with the next flush only.
        """
        dropped = self._held_by(snapshot) & self._held_by(self.present) & (self._kinds == Kind.VM_STATE)
        holders = self._holders.copy()
        holders[dropped, self.present >> 3] &= np.uint8(0xFF ^ (1 << (self.present & 7)))
        return replace(self, _holders=holders, _sizes=self._sizes - dropped)

    def _held_by(self, holder: int) -> NDArray[np.bool_]:
        if not 0 <= holder <= self.present:
            raise IndexError(f"there is no holder {holder}")
        return (self._holders[:, holder >> 3] >> (holder & 7) & 1).astype(np.bool_)

    def _held_by_none_but(self, holders: Collection[int]) -> NDArray[np.bool_]:
        found = np.zeros(len(self._holders), np.int64)
        for holder in set(holders):
            found += self._held_by(holder)
        is_theirs: NDArray[np.bool_] = found == self._sizes
        return is_theirs

    def _sum(self, which: NDArray[np.bool_], kinds: Collection[Kind]) -> Space:
        wanted = np.uint8(sum(1 << kind for kind in set(kinds)))
        which = which & ((wanted >> self._kinds) & 1).astype(np.bool_)
        taken = None if self._taken is None else int(self._taken[which].sum())
        return Space(int(self._clusters[which].sum()) * self.cluster, taken)


def read_sharing(
    source: ReadAt,
    content: Qcow2Content,
    *,
    taken: Taken | None = None,
    allocated: int | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Sharing:
    """Read all tables of an image and count its clusters by their holders.

    `taken` tells what the image's clusters take on the host (`extents.taken_on_host`). `allocated` is what the whole
    file takes, if that is known: it bounds the work, so that an image of few bytes takes less than a second, whatever
    it says. If the guest's data lies in a second file, that is left out: no snapshot holds any of it, since QEMU takes
    none of such an image. Peak memory is less than 256 MiB, whatever the image. Raises BadImageError, OSError, or
    CancelledError soon after `cancelled` turns true.
    """
    return _Walk(source, content, taken, allocated, cancelled).read()


_Chunk = NDArray[np.intp] | slice
"""Which of all L2 tables, in ascending order."""
_Reached = tuple[Offsets, NDArray[np.int64] | None, Kind]
"""Places of L2 tables, the columns of those that are to be compared, and what they lead to."""


@dataclass(frozen=True, slots=True)
class _Root:
    """An L1 table, and the set of those whose it is."""

    offset: int
    entries: int
    disk_entries: int
    """So many are of the disk, the rest of the saved memory."""
    holders: int


class _Walk:
    def __init__(
        self,
        source: ReadAt,
        content: Qcow2Content,
        taken: Taken | None,
        allocated: int | None,
        cancelled: Callable[[], bool],
    ) -> None:
        header = content.header
        if header.data_file is not None and content.snapshots:
            raise BadImageError("it has internal snapshots although its data lies in a second file, as none can")
        self._source = source
        self._content = content
        self._taken = taken
        self._cancelled = cancelled
        self._geometry = Geometry(header.cluster_bits, header.extended_l2, source.size)
        self._has_data = header.data_file is None
        self._budget = Budget(most_table_bytes(allocated))
        known = MOST_TABLE_BYTES * _BYTES_PER_MOVE if allocated is None else allocated
        self._budget_again = Budget(min(MOST_TABLE_BYTES, LEAST_TABLE_BYTES + known))
        """For tables that are read another time, since they lead to several slices of the file."""
        self._l1_budget = Budget(min(_MOST_L1_BYTES, 2 * LEAST_TABLE_BYTES + known))  # each may be read twice
        self._moves = Budget(_LEAST_MOVES + known // _BYTES_PER_MOVE, _TOO_MANY_CLASSES)
        self._looks = Budget(_LEAST_LOOKED_AT + known // _BYTES_PER_CLUSTER, _TOO_SCATTERED)
        self._roots = _roots(content, self._geometry)
        places = np.array([(root.offset, root.offset + root.entries * 8 - 1) for root in self._roots], np.int64)
        self._l1_clusters = places.reshape(-1, 2).T >> header.cluster_bits
        """The first of each root's L1 table, and the last."""
        self._kept: dict[_Root, list[_Reached]] = {}
        self._most_kept = _MOST_OFFSETS_KEPT
        self._is_comparing = (
            self._geometry.cluster >= _LEAST_COMPARED
            and len(self._roots) > 1
            and sum(root.entries for root in self._roots) <= _MOST_COMPARED
        )
        self._columns: NDArray[np.int64] | None = None
        """For each L2 table its number in the L1 table of a root that reaches it. Tables of one column speak of the
        same part of the disk, and are mostly alike."""
        self._nowhere = 0
        self._width = (len(content.snapshots) >> 3) + 1
        """Bytes of a set of holders."""

    def read(self) -> Sharing:
        tables = self._distinct_tables()
        classes = self._classify_tables(tables)
        totals: dict[_Class, tuple[int, int]] = {}
        chunks = list(self._chunks(len(tables))) if self._has_data else []
        chunks_of: dict[int, list[_Chunk]] = {}
        self._count_slice(0, tables, classes, chunks, totals, chunks_of)
        for number in self._slices_of_tables(tables):
            chunks_of.setdefault(number, [])
        chunks_of.pop(0, None)
        for number in sorted(chunks_of):
            self._count_slice(number, tables, classes, chunks_of[number], totals, None)
        return self._as_sharing(totals)

    def _chunks(self, tables: int) -> Iterator[_Chunk]:
        """Cut all tables into parts that are read at once: those to be compared with each other come together."""
        at_once = max(1, _CHUNK // self._geometry.cluster)
        order = None if self._columns is None else np.argsort(self._columns, kind="stable")
        for first in range(0, tables, at_once):
            part = slice(first, min(first + at_once, tables))
            yield part if order is None else np.sort(order[part])

    def _as_sharing(self, totals: dict[_Class, tuple[int, int]]) -> Sharing:
        raw = b"".join(holders.to_bytes(self._width, "little") for holders, _ in totals)
        anew = tuple(entry.rewritten_bytes for entry in self._content.snapshots)
        return Sharing(
            cluster=self._geometry.cluster,
            snapshots=as_snapshots(self._content),
            pointers_to_nowhere=self._nowhere,
            _holders=np.frombuffer(raw, np.uint8).reshape(len(totals), self._width),
            _sizes=np.array([holders.bit_count() for holders, _ in totals], np.int64),
            _kinds=np.array([kind for _, kind in totals], np.uint8),
            _clusters=np.array([clusters for clusters, _ in totals.values()], np.int64),
            _taken=None if self._taken is None else np.array([taken for _, taken in totals.values()], np.int64),
            _table=sum(entry.table_bytes for entry in self._content.snapshots),
            _table_anew=anew,
            _whole_table_anew=sum(anew),
        )

    # ---- which L2 tables there are, and whose ----

    def _distinct_tables(self) -> Offsets:
        """Places of all L2 tables, ascending."""
        found = np.zeros(0, np.int64)
        waiting: list[Offsets] = []
        number_waiting = 0
        for root in self._roots:
            for offsets, _, _ in self._tables_of(root, is_first_time=True):
                waiting.append(offsets)
                number_waiting += len(offsets)
                if number_waiting > max(_L1_PIECE, len(found)):
                    found = self._merged(found, waiting)
                    number_waiting = 0
        return self._merged(found, waiting)

    def _merged(self, found: Offsets, waiting: list[Offsets]) -> Offsets:
        """All places in ascending order, each once; empties what waits."""
        merged = distinct(np.concatenate([found, *waiting]))
        waiting.clear()
        if len(merged) > _MOST_TABLES:
            raise BadImageError("it has more L2 tables than any real image")
        self._budget.check(len(merged) * self._geometry.cluster)  # as they will be read
        return merged

    def _tables_of(self, root: _Root, *, is_first_time: bool = False) -> Iterator[_Reached]:
        """Different places of the L2 tables that a root reaches. Small L1 tables are read once and kept."""
        if root in self._kept:
            yield from self._kept[root]
            return
        kept: list[_Reached] = []
        for first, end, kind in (
            (0, root.disk_entries, Kind.DATA),
            (root.disk_entries, root.entries, Kind.VM_STATE),
        ):
            for start in range(first, end, _L1_PIECE):
                self._check_cancelled()
                entries = min(_L1_PIECE, end - start)
                offsets, bad = read_l1(self._source, self._geometry, root.offset + start * 8, entries, self._l1_budget)
                if is_first_time:
                    self._nowhere += bad
                columns = None
                if self._is_comparing:
                    offsets, columns = _distinct_with_columns(offsets, start)
                else:
                    offsets = distinct(offsets[offsets != 0])
                if self._most_kept >= 0:
                    self._most_kept -= len(offsets)
                    kept.append((offsets, columns, kind))
                yield offsets, columns, kind
        if self._most_kept >= 0:
            self._kept[root] = kept

    def _classify_tables(self, tables: Offsets) -> _Classes:
        """Find the holders of each L2 table, and what it leads to: data or saved memory."""
        classes = _Classes(len(tables), self._width, self._moves)
        if self._is_comparing:
            self._columns = np.zeros(len(tables), np.int64)
        for root in self._roots:
            for offsets, columns, kind in self._tables_of(root):
                places = np.searchsorted(tables, offsets)
                places = places[places < len(tables)]
                is_known = tables[places] == offsets[: len(places)]  # the L1 may have changed since it was read first
                places = places[is_known]
                classes.add(places, root.holders, kind)
                if self._columns is not None and columns is not None:
                    self._columns[places] = columns[: len(is_known)][is_known]
        self._kept.clear()
        return classes

    # ---- which clusters of the file there are, and whose ----

    def _count_slice(
        self,
        number: int,
        tables: Offsets,
        table_classes: _Classes,
        chunks: list[_Chunk],
        totals: dict[_Class, tuple[int, int]],
        chunks_of: dict[int, list[_Chunk]] | None,
    ) -> None:
        """Count the clusters of one slice of the file. The first time round, note which chunks lead to which slice."""
        first = number << _SLICE_BITS
        held = _Classes(min(1 << _SLICE_BITS, self._geometry.host_clusters - first), self._width, self._moves)
        self._looks.take(len(held.of) // _PER_LOOK)
        budget = self._budget_again if chunks_of is None else self._budget
        for chunk, entries, (holders, kind), times in self._entries(tables, table_classes, chunks, budget):
            clusters, bad = held_clusters(entries, self._geometry)
            if chunks_of is not None:
                self._nowhere += bad * times
                for other in self._slices_of(clusters):
                    self._note_slice(chunks_of, other, chunk)
            held.add(self._in_slice(clusters, first), holders, kind)
        self._add_tables(held, first, tables, table_classes)
        self._sum_up(held, first, totals)

    def _entries(
        self, tables: Offsets, classes: _Classes, chunks: list[_Chunk], budget: Budget
    ) -> Iterator[tuple[_Chunk, Words, _Class, int]]:
        """The entries of L2 tables by their class. What stands in several tables comes once, with how many they are."""
        room = np.empty((max(1, _CHUNK // self._geometry.cluster), self._geometry.l2_words), np.uint64)
        waiting: dict[int, list[Words]] = {}
        for number_read, chunk in enumerate(chunks, 1):
            places = tables[chunk]
            words = room[: len(places)]
            read_batch(self._source, self._geometry, places, budget, self._cancelled, words)
            entries = words[:, ::2] if self._geometry.extended_l2 else words
            if self._columns is None:
                for number, rows in _grouped(classes.of[chunk]):
                    yield chunk, entries[rows], classes.classes[number], 1
                continue
            for same, of_class, times in _compared(entries, self._columns[chunk], classes, classes.of[chunk], waiting):
                yield chunk, same, of_class, times
            together = 1 if self._has_slices else _CHUNKS_TOGETHER  # which lead to what slice is noted for each
            if number_read % together == 0 or number_read == len(chunks):
                for number, parts in waiting.items():
                    yield chunk, np.concatenate(parts), classes.classes[number], 1
                waiting.clear()

    def _note_slice(self, chunks_of: dict[int, list[_Chunk]], number: int, chunk: _Chunk) -> None:
        if number not in chunks_of and len(chunks_of) >= _MOST_SLICES:
            raise BadImageError(_TOO_SCATTERED)
        noted = chunks_of.setdefault(number, [])
        if not noted or noted[-1] is not chunk:
            noted.append(chunk)

    @property
    def _has_slices(self) -> bool:
        return self._geometry.host_clusters > 1 << _SLICE_BITS

    def _slices_of(self, clusters: NDArray[np.int64]) -> set[int]:
        if not self._has_slices or not len(clusters):
            return set()
        lowest, highest = int(clusters.min()) >> _SLICE_BITS, int(clusters.max()) >> _SLICE_BITS
        return {lowest} if lowest == highest else set(np.unique(clusters >> _SLICE_BITS).tolist())

    def _slices_of_tables(self, tables: Offsets) -> set[int]:
        slices = self._slices_of(tables >> self._geometry.cluster_bits)
        for end in self._l1_clusters:  # none is so long that it has a slice between its ends
            slices |= self._slices_of(end)
        if len(slices) > _MOST_SLICES:
            raise BadImageError("its tables are scattered over a larger file than any real image has")
        return slices

    def _add_tables(self, held: _Classes, first: int, tables: Offsets, table_classes: _Classes) -> None:
        bits = self._geometry.cluster_bits
        begin, end = np.searchsorted(tables, [first << bits, first + len(held.of) << bits])
        for of_class, rows in _grouped(table_classes.of[begin:end]):
            holders, _ = table_classes.classes[of_class]
            held.add((tables[begin:end][rows] >> bits) - first, holders, Kind.L2)
        begins, lasts = self._l1_clusters
        for number in np.flatnonzero((begins < first + len(held.of)) & (lasts >= first)).tolist():
            self._check_cancelled()
            clusters = np.arange(begins[number], lasts[number] + 1, dtype=np.int64)
            held.add(self._in_slice(clusters, first), self._roots[number].holders, Kind.L1)

    def _in_slice(self, clusters: NDArray[np.int64], first: int) -> NDArray[np.int64]:
        if not self._has_slices:
            return clusters
        clusters = clusters - first
        return clusters[(clusters >= 0) & (clusters < 1 << _SLICE_BITS)]

    def _sum_up(self, held: _Classes, first: int, totals: dict[_Class, tuple[int, int]]) -> None:
        number_of = np.zeros(len(held.classes), np.int64)
        bytes_of = np.zeros(len(held.classes), np.int64)
        for start, stop in _held_parts(held.of):
            self._check_cancelled()
            self._looks.take(stop - start)
            block = held.of[start:stop]
            runs = np.append(0, np.flatnonzero(block[1:] != block[:-1]) + 1)  # neighbours mostly are of one class
            numbers = block[runs]
            number_of += np.bincount(numbers, np.diff(runs, append=len(block)), len(number_of)).astype(np.int64)
            if self._taken is not None:
                offset = (first + start) << self._geometry.cluster_bits
                taken = np.add.reduceat(self._taken(offset, self._geometry.cluster, len(block)), runs)
                bytes_of += np.bincount(numbers, taken, len(bytes_of)).astype(np.int64)  # exact up to 2^53
        for number in np.flatnonzero(number_of).tolist():
            if number != _NOBODY:
                clusters, taken_before = totals.get(held.classes[number], (0, 0))
                totals[held.classes[number]] = (
                    clusters + int(number_of[number]),
                    taken_before + int(bytes_of[number]),
                )
        _check_size(len(totals), self._width)
        _check_holders(holders for holders, _ in totals)

    def _check_cancelled(self) -> None:
        if self._cancelled():
            raise CancelledError("Reading the image was cancelled.")


def _roots(content: Qcow2Content, geometry: Geometry) -> list[_Root]:
    """The L1 tables, each once, however many say that it is theirs. Raises BadImageError."""
    header = content.header
    tables = [(entry.l1_offset, entry.l1_entries, entry.disk_size) for entry in content.snapshots]
    tables.append((header.l1_offset, header.l1_entries, header.virtual_size))
    holders_of: dict[tuple[int, int, int], int] = {}
    for number, (offset, entries, disk_size) in enumerate(tables):
        if entries == 0:
            continue
        if entries * 8 > _LARGEST_L1:
            raise BadImageError("the L1 table of a snapshot is larger than the format allows")
        if offset == 0 or offset % geometry.cluster or offset + entries * 8 > _LARGEST_OFFSET:
            raise BadImageError("the L1 table of a snapshot lies where none can be")
        if offset + entries * 8 > geometry.file_size:
            raise BadImageError("the L1 table of a snapshot lies beyond the end of the file")
        table = (offset, entries, min(entries, -(-disk_size // geometry.l2_span)))
        holders_of[table] = holders_of.get(table, 0) | 1 << number
        _check_size(len(holders_of), (len(tables) >> 3) + 1)
    _check_holders(holders_of.values())
    return [_Root(*table, holders) for table, holders in holders_of.items()]


def _distinct_with_columns(offsets: Offsets, first: int) -> tuple[Offsets, NDArray[np.int64]]:
    """Different places of L2 tables, ascending, and the number of an entry that leads to each, counted from `first`."""
    numbers = np.flatnonzero(offsets != 0)
    offsets, numbers = offsets[numbers], numbers + first
    if (offsets[1:] > offsets[:-1]).all():
        return offsets, numbers
    order = np.argsort(offsets, kind="stable")
    offsets, numbers = offsets[order], numbers[order]
    is_new = np.append(True, offsets[1:] != offsets[:-1])
    return offsets[is_new], numbers[is_new]


def _compared(
    entries: Words,
    columns: NDArray[np.int64],
    classes: _Classes,
    numbers: NDArray[Any],
    waiting: dict[int, list[Words]],
) -> Iterator[tuple[Words, _Class, int]]:
    """Compare tables of the same column: snapshots of one disk differ little, and comparing is faster than following.

    Yields what is the same in several tables, with the class of what is in all of them, and how many they are. The rest
    is put to what is waiting, by the number of its class.
    """
    alike: dict[int, list[int]] = {}  # row -> itself, and those that are mostly like it
    differs = np.zeros(entries.shape, np.bool_)  # of these rows: where not all are the same
    latest: dict[int, int] = {}
    for row, column in enumerate(columns.tolist()):
        first = latest.get(column)
        if first is not None:
            found = entries[row] != entries[first]
            if np.count_nonzero(found) <= len(found) * _ALIKE:
                differs[first] |= found
                alike[first].append(row)
                continue
        latest[column] = row
        alike[row] = [row]
    class_of = numbers.tolist()
    same: dict[tuple[_Class, int], list[int]] = {}
    for first, rows in alike.items():
        same.setdefault((classes.joined({class_of[row] for row in rows}), len(rows)), []).append(first)
        places = np.flatnonzero(differs[first])
        for row in rows if len(places) else ():
            waiting.setdefault(class_of[row], []).append(entries[row, places])
    for (of_class, times), rows in same.items():
        yield entries[rows][~differs[rows]], of_class, times


def held_clusters(entries: Words, geometry: Geometry) -> tuple[NDArray[np.int64], int]:
    """The clusters of the file that L2 entries hold, some more than once, and how many entries point nowhere."""
    bits_set = int(np.bitwise_or.reduce(entries, axis=None))  # one look that mostly spares several
    standard = entries
    if bits_set & COMPRESSED:
        is_compressed = (entries & np.uint64(COMPRESSED)) != 0
        standard = entries[~is_compressed]
    places = standard & np.uint64(OFFSET_BITS)
    places = places[places != 0]
    clusters = (places >> np.uint64(geometry.cluster_bits)).view(np.int64)
    bad = 0
    unaligned = OFFSET_BITS & (geometry.cluster - 1)
    if bits_set & unaligned or (len(clusters) and int(clusters.max()) >= geometry.host_clusters):
        is_good = (places & np.uint64(unaligned) == 0) & (clusters < geometry.host_clusters)
        clusters = clusters[is_good]
        bad = len(places) - len(clusters)
    if not bits_set & COMPRESSED:
        return clusters, bad
    first, last = compressed_clusters(entries[is_compressed], geometry)
    is_good = last < geometry.host_clusters
    first, last = first[is_good], last[is_good]
    parts = [clusters, first, last[last > first], first[last > first + 1] + 1]
    return np.concatenate(parts), bad + int(np.count_nonzero(~is_good))


def compressed_clusters(entries: Words, geometry: Geometry) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and last cluster of the file with a piece of each compressed cluster of the guest's: at most three."""
    shift = 62 - (geometry.cluster_bits - 8)
    offset = entries & np.uint64((1 << shift) - 1)
    sectors = ((entries & np.uint64(~(COPIED | COMPRESSED) & (1 << 64) - 1)) >> np.uint64(shift)) + np.uint64(1)
    start = offset >> np.uint64(9)
    to_cluster = np.uint64(geometry.cluster_bits - 9)
    first = (start >> to_cluster).view(np.int64)
    last = ((start + sectors - np.uint64(1)) >> to_cluster).view(np.int64)
    return first, last


def _held_parts(classes: NDArray[Any]) -> Iterator[tuple[int, int]]:
    """Parts of so many clusters at most that are counted at once, without those where nobody holds anything."""
    whole = len(classes) // _GRAIN * _GRAIN
    is_held = classes[:whole].reshape(-1, _GRAIN).max(axis=1) != 0
    if whole < len(classes):
        is_held = np.append(is_held, classes[whole:].any())
    held = np.flatnonzero(is_held)
    if not len(held):
        return
    breaks = np.flatnonzero(np.diff(held) > _GRAINS_PASSED_OVER) + 1
    for grains in np.split(held, breaks):
        stop = min((int(grains[-1]) + 1) * _GRAIN, len(classes))
        for start in range(int(grains[0]) * _GRAIN, stop, _BLOCK):
            yield start, min(start + _BLOCK, stop)


# ---- classes: sets of holders, with a number each ----

_Class = tuple[int, Kind]
"""A set of holders as the bits of a number, and a Kind."""
_NOBODY: Final = 0


class _Classes:
    """For each of many clusters the number of its class. Few classes take one byte for each cluster, many four."""

    def __init__(self, clusters: int, width: int, moves: Budget | None = None) -> None:
        self.of: NDArray[Any] = np.zeros(clusters, np.uint8)  # of any unsigned type
        self.classes: list[_Class] = [(0, Kind.DATA)]
        self._numbers: dict[_Class, int] = {self.classes[_NOBODY]: _NOBODY}
        self._width = width
        self._moves = moves
        self._most_before_sweep = max(256, (8 << 20) // (width + _BYTES_PER_CLASS))

    def add(self, places: NDArray[np.int64], holders: int, kind: Kind) -> None:
        """Add holders to those of the clusters at these places."""
        if len(places) == 0:
            return
        if len(self.classes) > self._most_before_sweep:
            self._sweep()
        before = self.of[places]
        one = int(before[0])
        if (before == one).all():
            moved = self._moved([one], holders, kind)[0]  # first, since it may make room for wider numbers
            self.of[places] = moved
            return
        if len(places) < len(self.classes):
            found, positions = np.unique(before, return_inverse=True)
            moves = self._moved(found.tolist(), holders, kind)
            self.of[places] = moves[positions]
        else:
            is_there = np.zeros(len(self.classes), np.bool_)
            is_there[before] = True
            found = np.flatnonzero(is_there)
            moves = np.zeros(len(is_there), np.uint32)
            moves[found] = self._moved(found.tolist(), holders, kind)
            self.of[places] = moves.astype(self.of.dtype)[before]

    def joined(self, numbers: Iterable[int]) -> _Class:
        """The class of what is of all these classes."""
        holders, kind = 0, Kind.DATA
        for number in numbers:
            more, other = self.classes[number]
            holders, kind = holders | more, max(kind, other)
        return holders, kind

    def _moved(self, numbers: list[int], holders: int, kind: Kind) -> NDArray[np.uint32]:
        """The classes that clusters of these classes are of from now on."""
        if self._moves is not None:
            self._moves.take(len(numbers))
        moved = []
        for number in numbers:
            holders_before, kind_before = self.classes[number]
            moved.append(self._number((holders_before | holders, max(kind_before, kind))))
        self._widen()
        return np.array(moved, np.uint32)

    def _number(self, of_class: _Class) -> int:
        number = self._numbers.setdefault(of_class, len(self.classes))
        if number == len(self.classes):
            self.classes.append(of_class)
        return number

    def _widen(self) -> None:
        if len(self.classes) - 1 > np.iinfo(self.of.dtype).max:
            self.of = self.of.astype(np.uint16 if len(self.classes) <= 1 << 16 else np.uint32)

    def _sweep(self) -> None:
        """Forget the classes that no cluster is of any more. Raises BadImageError if those left are too many."""
        is_there = np.zeros(len(self.classes), np.bool_)
        for start in range(0, len(self.of), _BLOCK):
            is_there[self.of[start : start + _BLOCK]] = True
        is_there[_NOBODY] = True
        left = np.flatnonzero(is_there)
        _check_size(len(left), self._width)
        moves = np.zeros(len(is_there), self.of.dtype)
        moves[left] = np.arange(len(left))
        for start in range(0, len(self.of), _BLOCK):
            self.of[start : start + _BLOCK] = moves[self.of[start : start + _BLOCK]]
        self.classes = [self.classes[number] for number in left.tolist()]
        _check_holders(holders for holders, _ in self.classes)
        self._numbers = {of_class: number for number, of_class in enumerate(self.classes)}
        self._most_before_sweep = max(self._most_before_sweep, 2 * len(left))


def _check_size(classes: int, width: int) -> None:
    if classes * (width + _BYTES_PER_CLASS) > _MOST_CLASS_BYTES:
        raise BadImageError(_TOO_MANY_CLASSES)


def _check_holders(sets: Iterable[int]) -> None:
    if sum(holders.bit_length() // 8 + _BYTES_PER_CLASS for holders in sets) > _MOST_HOLDER_BYTES:
        raise BadImageError(_TOO_MANY_CLASSES)


def _grouped(classes: NDArray[Any]) -> Iterator[tuple[int, NDArray[np.intp] | slice]]:
    """Each class that occurs, and where."""
    if len(classes) == 0:
        return
    if (classes == classes[0]).all():
        yield int(classes[0]), slice(None)
        return
    order = np.argsort(classes, kind="stable")
    breaks = np.flatnonzero(np.diff(classes[order])) + 1
    for positions in np.split(order, breaks):
        yield int(classes[positions[0]]), positions
