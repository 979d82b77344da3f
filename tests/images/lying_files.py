"""Images on disk that lie: small files, or such with few bytes in vast holes, that are meant to take all there is."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

MEBIBYTE = 1 << 20
TEBIBYTE = 1 << 40
VAST = 15 * TEBIBYTE
"""Less than the longest file that ext4 has."""
LARGEST_L1 = 4 << 20
"""Entries."""

Chain = tuple[Path, ...]
"""Top first."""


@dataclass(frozen=True)
class Snapshot:
    l1_offset: int
    l1_entries: int
    disk_size: int = 0
    name: bytes = b"s"

    def packed(self) -> bytes:
        extra = struct.pack(">QQQ", 0, self.disk_size, 0)
        entry_id = b"1"
        entry = struct.pack(
            ">QIHHIIQII", self.l1_offset, self.l1_entries, len(entry_id), len(self.name), 0, 0, 0, 0, len(extra)
        )
        entry += extra + entry_id + self.name
        return entry + bytes(-len(entry) % 8)


@dataclass(frozen=True)
class Header:
    cluster_bits: int = 16
    size: int = 0
    l1_offset: int = 0
    l1_entries: int = 0
    snapshots: int = 0
    snapshots_offset: int = 0
    refcount_table_offset: int = 0
    refcount_table_clusters: int = 0
    extended_l2: bool = False
    backing: str = ""
    extensions: bytes = b""

    def packed(self) -> bytes:
        backing = self.backing.encode()
        extensions = self.extensions + bytes(8)
        place = 104 + len(extensions) if backing else 0
        words = (
            *(b"QFI\xfb", 3, place, len(backing), self.cluster_bits, self.size, 0, self.l1_entries, self.l1_offset),
            *(self.refcount_table_offset, self.refcount_table_clusters, self.snapshots, self.snapshots_offset),
            *(16 if self.extended_l2 else 0, 0, 0, 4, 104),
        )
        return struct.pack(">4sIQIIQIIQQIIQQQQII", *words) + extensions + backing


def write(path: Path, size: int, pieces: Iterable[tuple[int, bytes]]) -> Path:
    """Write a file that is a hole but for these pieces."""
    with path.open("wb") as file:
        for offset, content in pieces:
            file.seek(offset)
            file.write(content)
        file.truncate(max(size, file.seek(0, os.SEEK_END)))
    return path


def entries(values: NDArray[np.int64] | NDArray[np.uint64] | Sequence[int]) -> bytes:
    """Words of a table, as they stand in the file."""
    return np.asarray(values).astype(">u8").tobytes()


def span(cluster_bits: int, extended_l2: bool = False) -> int:
    """Bytes of the disk that one L2 table speaks of."""
    return 1 << (2 * cluster_bits - (4 if extended_l2 else 3))


# ---- the gallery ----

Painter = Callable[[Path], Chain]
GALLERY: dict[str, Painter] = {}
L1_PLACE = 8 * MEBIBYTE
L2_PLACE = L1_PLACE + 64 * MEBIBYTE
TABLE_PLACE = 2 * MEBIBYTE  # of the snapshots


def one(
    path: Path,
    l1: bytes = b"",
    l2: bytes = b"",
    snapshots: Sequence[Snapshot] = (),
    *,
    cluster_bits: int = 16,
    size: int = VAST,
    disk: int | None = None,
    l1_entries: int | None = None,
    extended_l2: bool = False,
    backing: str = "",
    more: Iterable[tuple[int, bytes]] = (),
) -> Path:
    """An image whose present state has this L1; it and an L2 stand in their places, which are multiples of 2 MiB."""
    number = len(l1) // 8 if l1_entries is None else l1_entries
    table = b"".join(snapshot.packed() for snapshot in snapshots)
    header = Header(
        cluster_bits=cluster_bits,
        size=min(number * span(cluster_bits, extended_l2), (1 << 63) - 1) if disk is None else disk,
        l1_offset=L1_PLACE,
        l1_entries=number,
        snapshots=len(snapshots),
        snapshots_offset=TABLE_PLACE,
        extended_l2=extended_l2,
        backing=backing,
    )
    pieces = [(0, header.packed()), (TABLE_PLACE, table), (L1_PLACE, l1), (L2_PLACE, l2), *more]
    return write(path, size, [piece for piece in pieces if piece[1]])


def painted(paint: Painter) -> Painter:
    GALLERY[paint.__name__] = paint
    return paint


def _scattered(number: int, cluster_bits: int, seed: int = 1, size: int = VAST) -> NDArray[np.int64]:
    """Places of different clusters, all over a file."""
    clusters = (size >> cluster_bits) - 1
    return (1 + np.random.default_rng(seed).integers(0, clusters, number)) << cluster_bits


@painted
def snapshots_that_share_one_large_l1(directory: Path) -> Chain:
    l1 = entries([L2_PLACE]) * LARGEST_L1
    snapshots = [Snapshot(L1_PLACE, LARGEST_L1)] * 200
    return (one(directory / "a", l1, entries([5 << 16, 5 << 16]), snapshots),)


@painted
def snapshots_that_share_one_large_l1_of_different_entries(directory: Path) -> Chain:
    l1 = entries(L2_PLACE + (np.arange(LARGEST_L1) << 16))
    snapshots = [Snapshot(L1_PLACE, LARGEST_L1)] * 200
    return (one(directory / "a", l1, snapshots=snapshots),)


@painted
def snapshots_with_slices_of_one_large_l1(directory: Path) -> Chain:
    """Each begins a cluster after the other: none is the same."""
    l1 = entries(L2_PLACE + (np.arange(LARGEST_L1) % 1000 << 16))
    snapshots = [Snapshot(L1_PLACE + (number << 9), LARGEST_L1 - 64 * number) for number in range(200)]
    return (one(directory / "a", l1, snapshots=snapshots, cluster_bits=9),)


@painted
def snapshots_with_a_large_l1_each_in_holes(directory: Path) -> Chain:
    snapshots = [Snapshot((number + 8) << 26, LARGEST_L1) for number in range(200)]
    return (one(directory / "a", b"", snapshots=snapshots),)


@painted
def identical_l1_entries(directory: Path) -> Chain:
    return (one(directory / "a", entries([L2_PLACE]) * LARGEST_L1, entries([5 << 16]) * 8192),)


@painted
def identical_l1_entries_in_small_clusters(directory: Path) -> Chain:
    return (one(directory / "a", entries([L2_PLACE]) * LARGEST_L1, entries([5 << 9]) * 64, cluster_bits=9),)


@painted
def identical_l2_entries(directory: Path) -> Chain:
    tables = 256
    l1 = entries(L2_PLACE + (np.arange(tables) << 16))
    return (one(directory / "a", l1, entries(np.full(8192 * tables, 5 << 16 | 1 << 63, np.uint64))),)


@painted
def l1_entries_at_the_end_of_a_vast_file(directory: Path) -> Chain:
    l1 = entries(VAST - ((1 + np.arange(LARGEST_L1)) << 16) * 7)
    return (one(directory / "a", l1),)


@painted
def l1_entries_scattered_in_a_vast_file(directory: Path) -> Chain:
    return (one(directory / "a", entries(_scattered(LARGEST_L1, 16))),)


@painted
def l1_entries_scattered_near_each_other(directory: Path) -> Chain:
    """Small tables with just such gaps between them as are read along."""
    return (one(directory / "a", entries(L2_PLACE + np.arange(1 << 20) * (65536 + 512)), cluster_bits=9),)


@painted
def few_l1_entries_near_each_other(directory: Path) -> Chain:
    return (one(directory / "a", entries(L2_PLACE + np.arange(1 << 15) * 65536), cluster_bits=9),)


@painted
def small_clusters_with_a_full_l1_over_holes(directory: Path) -> Chain:
    l1 = entries(L2_PLACE + (np.arange(LARGEST_L1) * 2048 << 9))
    return (one(directory / "a", l1, cluster_bits=9),)


@painted
def small_clusters_with_a_dense_full_l1_over_holes(directory: Path) -> Chain:
    return (one(directory / "a", entries(L2_PLACE + (np.arange(LARGEST_L1) << 9)), cluster_bits=9),)


@painted
def small_clusters_with_tables_in_scattered_holes(directory: Path) -> Chain:
    return (one(directory / "a", entries(_scattered(1 << 16, 9)), cluster_bits=9),)


@painted
def data_scattered_over_a_vast_file(directory: Path) -> Chain:
    """Each entry in a part of the file of its own."""
    return (one(directory / "a", entries([L2_PLACE]), entries(_scattered(8192, 16))),)


@painted
def data_of_small_clusters_scattered_over_a_vast_file(directory: Path) -> Chain:
    tables = 64
    l1 = entries(L2_PLACE + (np.arange(tables) << 9))
    return (one(directory / "a", l1, entries(_scattered(64 * tables, 9)), cluster_bits=9),)


@painted
def data_of_small_clusters_scattered_over_a_tebibyte(directory: Path) -> Chain:
    tables = 1 << 14
    l1 = entries(L2_PLACE + (np.arange(tables) << 9))
    size = TEBIBYTE // 8
    l2 = entries(_scattered(64 * tables, 9, size=size))
    return (one(directory / "a", l1, l2, cluster_bits=9, size=size),)


@painted
def many_tables_of_scattered_data(directory: Path) -> Chain:
    """Some 40 MiB of real tables."""
    tables = 600
    l1 = entries(L2_PLACE + (np.arange(tables) << 16))
    return (one(directory / "a", l1, entries(_scattered(8192 * tables, 16, size=4 * TEBIBYTE)), size=4 * TEBIBYTE),)


@painted
def many_tables_of_scattered_data_in_snapshots(directory: Path) -> Chain:
    """Each table belongs to a snapshot of its own, and all clusters to many of them."""
    tables = 600
    more = [(((number + 1) << 16) + (1 << 30), entries([L2_PLACE + (number << 16)])) for number in range(tables)]
    snapshots = [Snapshot(offset, 1, 1 << 29) for offset, _ in more]
    l2 = entries(_scattered(8192 * tables, 16, size=8 << 30))
    return (one(directory / "a", entries([L2_PLACE]), l2, snapshots, size=8 << 30, more=more),)


@painted
def small_tables_of_random_data_in_snapshots(directory: Path) -> Chain:
    tables, clusters = 4000, 1 << 16
    more = [(((number + 1) << 9) + (1 << 28), entries([L2_PLACE + (number << 9)])) for number in range(tables)]
    snapshots = [Snapshot(offset, 1, 1 << 15) for offset, _ in more]
    l2 = entries((1 + np.random.default_rng(3).integers(0, clusters, 64 * tables)) << 9)
    l1 = entries([L2_PLACE])
    return (one(directory / "a", l1, l2, snapshots, cluster_bits=9, size=1 << 29, more=more),)


def _snapshots_with_tables_alike(directory: Path, tables: int, bits: int, changes: int) -> Chain:
    """Each snapshot has a table of its own, and few entries of it differ from those of another."""
    random = np.random.default_rng(11)
    l2 = np.tile(random.integers(1, 1 << 16, 1 << bits - 3), (tables, 1))
    for row in l2[1:]:
        row[random.integers(0, len(row), changes)] = random.integers(1, 1 << 16, changes)
    more = [(((number + 1) << bits) + (1 << 28), entries([L2_PLACE + (number << bits)])) for number in range(tables)]
    snapshots = [Snapshot(offset, 1, span(bits)) for offset, _ in more]
    path = one(
        directory / "a", entries([L2_PLACE]), entries(l2 << bits), snapshots, cluster_bits=bits, size=1 << 32, more=more
    )
    return (path,)


@painted
def small_tables_that_are_alike_in_many_snapshots(directory: Path) -> Chain:
    return _snapshots_with_tables_alike(directory, 4000, 12, 60)


@painted
def tables_that_are_alike_in_many_snapshots(directory: Path) -> Chain:
    return _snapshots_with_tables_alike(directory, 400, 16, 1000)


@painted
def small_tables_that_are_nearly_the_same_in_many_snapshots(directory: Path) -> Chain:
    return _snapshots_with_tables_alike(directory, 4000, 12, 1)


def _as_many_snapshots(directory: Path, number: int, step: int, *, size: int = VAST) -> Chain:
    snapshots = [Snapshot(L1_PLACE + index * step, 1, name=b"snapshot-%d" % index) for index in range(number)]
    l1 = entries([L2_PLACE]).ljust(step or 8, b"\0") * (number if step else 1)
    return (one(directory / "a", l1, snapshots=snapshots, cluster_bits=9, size=size, l1_entries=1),)


@painted
def all_snapshots_that_there_can_be(directory: Path) -> Chain:
    return _as_many_snapshots(directory, 65_536, 512)


@painted
def all_snapshots_on_one_table(directory: Path) -> Chain:
    return _as_many_snapshots(directory, 65_536, 0)


@painted
def all_snapshots_in_a_hole(directory: Path) -> Chain:
    """The table is a hole: each entry is empty."""
    header = Header(cluster_bits=16, snapshots=65_536, snapshots_offset=1 << 40)
    return (write(directory / "a", VAST, [(0, header.packed())]),)


@painted
def half_of_all_snapshots(directory: Path) -> Chain:
    return _as_many_snapshots(directory, 25_000, 512)


@painted
def a_tenth_of_all_snapshots(directory: Path) -> Chain:
    return _as_many_snapshots(directory, 6_000, 512)


@painted
def a_tenth_of_all_snapshots_in_slices(directory: Path) -> Chain:
    """Roots and slices multiply: clusters lie in 200 parts of the file."""
    path = directory / "a"
    snapshots = [Snapshot(L1_PLACE + index * 512, 1) for index in range(6_000)]
    l1 = entries([L2_PLACE]).ljust(512, b"\0") * 6_000
    l2 = entries((1 + np.arange(64)) << 37)
    return (one(path, l1, l2, snapshots, cluster_bits=9, l1_entries=1),)


@painted
def snapshots_with_long_names(directory: Path) -> Chain:
    """A character beyond the first plane makes Python keep all characters of its name in four bytes."""
    name = b"n" * 65_000 + "\N{PARTY POPPER}".encode()
    table = [Snapshot(0, 0, name=name)] * 1024
    return (one(directory / "a", snapshots=table, more=[(128 << 20, b"\0")]),)


@painted
def snapshots_with_names_that_are_no_text(directory: Path) -> Chain:
    return (one(directory / "a", snapshots=[Snapshot(0, 0, name=b"\xff" * 900)] * 60_000),)


@painted
def subclusters_with_random_bits(directory: Path) -> Chain:
    tables = 900
    l1 = entries(L2_PLACE + (np.arange(tables) << 16))
    l2 = np.random.default_rng(5).integers(0, 1 << 63, 8192 * tables, np.int64)
    return (one(directory / "a", l1, entries(l2), extended_l2=True),)


@painted
def subclusters_in_good_places_with_random_bits(directory: Path) -> Chain:
    tables = 900
    l1 = entries(L2_PLACE + (np.arange(tables) << 16))
    l2 = np.random.default_rng(5).integers(0, 1 << 63, 8192 * tables, np.int64)
    l2[::2] = _scattered(4096 * tables, 16, size=TEBIBYTE)
    return (one(directory / "a", l1, entries(l2), extended_l2=True, size=TEBIBYTE),)


@painted
def subclusters_of_the_smallest_size(directory: Path) -> Chain:
    tables = 3_000
    l1 = entries(L2_PLACE + (np.arange(tables) << 14))
    l2 = np.random.default_rng(5).integers(0, 1 << 63, 2048 * tables, np.int64)
    return (one(directory / "a", l1, entries(l2), extended_l2=True, cluster_bits=14),)


@painted
def clusters_of_two_mebibytes(directory: Path) -> Chain:
    """All its tables are holes."""
    return (one(directory / "a", entries(L2_PLACE + (np.arange(1 << 19) << 21)), cluster_bits=21),)


@painted
def clusters_of_two_mebibytes_with_random_tables(directory: Path) -> Chain:
    tables = 24
    l1 = entries(L2_PLACE + (np.arange(tables) << 21))
    return (one(directory / "a", l1, entries(_scattered(tables << 18, 21)), cluster_bits=21),)


@painted
def compressed_entries_everywhere(directory: Path) -> Chain:
    tables = 700
    l1 = entries(L2_PLACE + (np.arange(tables) << 16))
    l2 = _scattered(8192 * tables, 16, size=TEBIBYTE).astype(np.uint64) | np.uint64(1 << 62 | 255 << 54)
    return (one(directory / "a", l1, entries(l2), size=TEBIBYTE),)


@painted
def compressed_entries_in_small_clusters(directory: Path) -> Chain:
    tables = 1 << 15
    l1 = entries(L2_PLACE + (np.arange(tables) << 9))
    l2 = _scattered(64 * tables, 9, size=TEBIBYTE // 64).astype(np.uint64) | np.uint64(3 << 61)
    return (one(directory / "a", l1, entries(l2), cluster_bits=9, size=TEBIBYTE // 64),)


@painted
def random_tables(directory: Path) -> Chain:
    tables = 900
    l1 = entries(L2_PLACE + (np.arange(tables) << 16))
    l2 = np.random.default_rng(9).integers(0, 1 << 63, 8192 * tables, np.int64)
    return (one(directory / "a", l1, entries(l2)),)


@painted
def a_ring_of_tables(directory: Path) -> Chain:
    l1 = entries(L2_PLACE + (np.arange(LARGEST_L1) % (1 << 15) << 16))
    return (one(directory / "a", l1),)


@painted
def an_l1_that_is_its_own_l2(directory: Path) -> Chain:
    l1 = entries(L1_PLACE + (np.arange(LARGEST_L1) % 512 << 16))
    return (one(directory / "a", l1),)


@painted
def a_disk_of_eight_exbibytes(directory: Path) -> Chain:
    return (one(directory / "a", entries([0]) * LARGEST_L1, cluster_bits=21, disk=(1 << 61)),)


@painted
def a_refcount_table_of_random_places(directory: Path) -> Chain:
    header = Header(refcount_table_offset=L1_PLACE, refcount_table_clusters=128)
    return (write(directory / "a", VAST, [(0, header.packed()), (L1_PLACE, entries(_scattered(1 << 20, 16)))]),)


@painted
def a_refcount_table_of_large_blocks(directory: Path) -> Chain:
    header = Header(cluster_bits=21, refcount_table_offset=L1_PLACE, refcount_table_clusters=4)
    blocks = L2_PLACE + (np.arange(1 << 20) << 21)
    return (write(directory / "a", VAST, [(0, header.packed()), (L1_PLACE, entries(blocks))]),)


@painted
def bitmaps_in_holes(directory: Path) -> Chain:
    extension = struct.pack(">IIIIQQ", 0x23852875, 24, 1, 0, 64 << 20, 1 << 30)
    directory_entry = struct.pack(">QIIBBHI", 1 << 32, (1 << 32) - 1, 0, 1, 16, 0, 0)
    header = Header(refcount_table_offset=L1_PLACE, refcount_table_clusters=1, extensions=extension)
    pieces = [(0, header.packed()), (1 << 30, directory_entry.ljust(24, b"\0") * 10_000)]
    return (write(directory / "a", VAST, pieces),)


# ---- chains ----


def _chain_of(directory: Path, number: int, paint: Callable[[Path, str], Path]) -> Chain:
    names = [directory / f"layer{index}" for index in range(number)]
    return tuple(
        paint(path, str(below) if below is not None else "")
        for path, below in zip(names, [*names[1:], None], strict=True)
    )


@painted
def hundreds_of_layers_with_a_large_l1_in_a_hole(directory: Path) -> Chain:
    return _chain_of(directory, 400, lambda path, below: one(path, l1_entries=LARGEST_L1, backing=below))


@painted
def hundreds_of_layers_with_tables_in_holes(directory: Path) -> Chain:
    l1 = entries(L2_PLACE + (np.arange(512) << 16))
    return _chain_of(directory, 499, lambda path, below: one(path, l1, backing=below))


@painted
def hundreds_of_layers_with_tables_in_holes_but_one(directory: Path) -> Chain:
    l1 = entries(L2_PLACE + (np.arange(512) << 16))
    hidden = entries([0] * 512)
    return _chain_of(
        directory, 499, lambda path, below: one(path, l1 if path.name == "layer0" else hidden, backing=below)
    )


@painted
def hundreds_of_layers_of_small_clusters(directory: Path) -> Chain:
    l1 = entries(L2_PLACE + (np.arange(4096) << 9))
    l2 = entries((9 + np.arange(64, dtype=np.uint64)) << np.uint64(9) | np.uint64(1 << 63))
    return _chain_of(
        directory, 499, lambda path, below: one(path, l1, l2 * 16, cluster_bits=9, backing=below, size=1 << 40)
    )


@painted
def hundreds_of_layers_with_one_real_table_each(directory: Path) -> Chain:
    l1 = entries([L2_PLACE])
    l2 = entries(_scattered(8192, 16))
    return _chain_of(directory, 499, lambda path, below: one(path, l1, l2, backing=below))


@painted
def hundreds_of_layers_of_different_clusters(directory: Path) -> Chain:
    def paint(path: Path, below: str) -> Path:
        bits = 9 + int(path.name.removeprefix("layer")) % 13
        l1 = entries([L2_PLACE] * (1 + (1 << 30) // span(bits)))
        return one(path, l1[:8], entries(_scattered(1 << bits - 3, bits)), cluster_bits=bits, backing=below)

    return _chain_of(directory, 480, paint)


@painted
def hundreds_of_layers_on_a_vast_disk(directory: Path) -> Chain:
    """One at the top has a table in every thousandth place, the others have none."""
    l1 = np.zeros(1 << 20, np.int64)
    l1[::1000] = L2_PLACE + (np.arange(len(l1[::1000])) << 16)
    return _chain_of(
        directory,
        499,
        lambda path, below: one(path, entries(l1) if path.name == "layer0" else b"", l1_entries=1 << 20, backing=below),
    )


@painted
def a_chain_of_random_subclusters(directory: Path) -> Chain:
    def paint(path: Path, below: str) -> Path:
        l1 = entries(L2_PLACE + (np.arange(40) << 16))
        l2 = np.random.default_rng(int(path.name[-1])).integers(0, 1 << 63, 8192 * 40, np.int64)
        return one(path, l1, entries(l2), extended_l2=True, backing=below)

    return _chain_of(directory, 10, paint)


@painted
def a_chain_of_random_tables(directory: Path) -> Chain:
    def paint(path: Path, below: str) -> Path:
        l1 = entries(L2_PLACE + (np.arange(40) << 16))
        l2 = np.random.default_rng(int(path.name[-1])).integers(0, 1 << 63, 8192 * 40, np.int64)
        return one(path, l1, entries(l2), backing=below)

    return _chain_of(directory, 10, paint)


@painted
def small_clusters_on_a_vast_raw_hole(directory: Path) -> Chain:
    base = write(directory / "base.raw", VAST, [(1 << 40, b"x" * 65536)])
    top = one(directory / "top", entries([0] * 4), extended_l2=True, cluster_bits=14, disk=VAST, l1_entries=LARGEST_L1)
    return top, base


@painted
def a_vast_raw_hole_below_hundreds_of_layers(directory: Path) -> Chain:
    base = write(directory / "base.raw", VAST, [(1 << 40, b"x" * 65536)])
    tops = _chain_of(directory, 300, lambda path, below: one(path, l1_entries=1 << 15, backing=below or str(base)))
    return *tops, base


@painted
def a_raw_image_in_pieces_below_small_clusters(directory: Path) -> Chain:
    pieces = [(number << 13, b"x") for number in range(12_000)]
    base = write(directory / "base.raw", 1 << 30, pieces)
    top = one(directory / "top", entries([0]), extended_l2=True, cluster_bits=14, disk=1 << 30, l1_entries=1 << 12)
    return top, base


@painted
def a_ring_of_images(directory: Path) -> Chain:
    return _chain_of(directory, 3, lambda path, below: one(path, backing=below or str(directory / "layer0")))


# ---- saved memory ----


@painted
def saved_memory_with_the_longest_description(directory: Path) -> Chain:
    start = struct.pack("<16s5I56x", b"LibvirtQemudSave", 2, 64 << 20, 1, 0, 0)
    return (write(directory / "a", VAST, [(0, start)]),)


@painted
def saved_memory_that_lies(directory: Path) -> Chain:
    start = struct.pack("<16s5I56x", b"LibvirtQemudSave", 2, (1 << 32) - 1, 1, 0, 0)
    return (write(directory / "a", VAST, [(0, start)]),)
