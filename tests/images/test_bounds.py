"""Nothing that is in an image makes the program fail, hang, or take all memory.

For any input whatever: what is wrong with it is told as BadImageError or OSError, and the process that looks at it has
less than 256 MiB in memory at any time. And for any input that takes less than 64 MiB on the host, each look takes
less than a second of the processor. Images that take more may take longer, for their tables may be that large: those
of a full disk of 16 TiB take 2 GiB. What bounds the work is what a file takes, never its length: a guest's owner can
make a file of any length for nothing.

Time is the processor's, of the process that looks, and the least of ten tries where the first took too long: how busy
the computer is does not count, for though neighbours slow a processor by a third, they do so for moments. A gallery
(`lying_files.py`) has the worst that we know; hypothesis looks for more.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.images.analysing import EVERY_LOOK, Analyser
from tests.images.conftest import run
from tests.images.lying_files import GALLERY, LARGEST_L1, MEBIBYTE, VAST, Header, Snapshot, entries, span, write

MOST_SECONDS = 1.0
TRIES = 10
MOST_BYTES = 256 * MEBIBYTE
SMALL = 64 * MEBIBYTE
"""Bytes that an input takes on the host, below which it is to be looked at in time."""


@dataclass
class Bounds:
    """Looks at inputs, holds them against the bounds, and remembers the worst."""

    directory: Path
    analyser: Analyser = field(default_factory=Analyser)
    inputs: int = 0
    read: int = 0
    """Those that some look at their tables did not refuse."""
    slowest: tuple[float, str] = (0.0, "")
    highest: tuple[int, str] = (0, "")

    def hold(self, name: str, chain: Sequence[Path], looks: Sequence[str]) -> None:
        self.inputs += 1
        is_small = sum(path.stat().st_blocks * 512 for path in chain) < SMALL
        found = self.analyser.look_at(chain, looks)
        walks = [look.refused for look in found if look.what in ("sharing", "overlaps", "memory")]
        self.read += any(not refused or "point to nowhere" in refused for refused in walks)  # that is told at the end
        for look in found:
            what = f"{look.what} of {name}"
            assert not look.failed, f"{what}: {look.failed}"
            seconds = look.seconds
            for _ in range(TRIES - 1):
                if is_small and seconds >= MOST_SECONDS:
                    seconds = min(seconds, self.analyser.look_at(chain, [look.what])[0].seconds)
            if is_small:
                self.slowest = max(self.slowest, (seconds, what))
            self.highest = max(self.highest, (look.peak, what))
            assert not is_small or seconds < MOST_SECONDS, f"{what} takes {seconds:.2f} s ({look.refused})"
            assert look.peak < MOST_BYTES, f"{what} takes {look.peak / MEBIBYTE:.0f} MiB ({look.refused})"

    def figures(self) -> str:
        return (
            f"\n{self.inputs} inputs, {self.read} of them read to their end;"
            f" slowest {self.slowest[0]:.2f} s ({self.slowest[1]}),"
            f" highest peak {self.highest[0] / MEBIBYTE:.0f} MiB ({self.highest[1]})\n"
        )


@pytest.fixture(scope="module")
def bounds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bounds]:
    bounds = Bounds(tmp_path_factory.mktemp("bounds"))
    yield bounds
    bounds.analyser.close()
    sys.stdout.write(bounds.figures())


@pytest.mark.parametrize("name", GALLERY)
def test_the_gallery_of_the_worst(bounds: Bounds, name: str) -> None:
    with TemporaryDirectory(dir=bounds.directory) as directory:
        bounds.hold(name, GALLERY[name](Path(directory)), EVERY_LOOK)


# ---- made-up images ----

_BITS = st.one_of(st.sampled_from([9, 12, 14, 16, 21]), st.integers(9, 21))
_SIZES = st.one_of(st.sampled_from([1 << 20, 1 << 24, 1 << 30, 1 << 40, VAST]), st.integers(0, VAST))
_NUMBERS = st.one_of(
    st.sampled_from([0, 1, 2, (1 << 31) - 1, 1 << 32, (1 << 56) - 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]),
    st.integers(0, 63).map(lambda bit: 1 << bit),
    st.integers(0, (1 << 64) - 1),
)
_FIELDS = [(4, 4), (8, 8), (16, 4), (20, 4), (24, 8), (32, 4), (36, 4), (40, 8), (48, 8), (56, 4), (60, 4), (64, 8)]
_FIELDS += [(72, 8), (80, 8), (88, 8), (96, 4), (100, 4), (104, 1), (104, 4), (108, 4)]
"""Of the header: where, and of how many bytes."""
_FLAGS = st.sampled_from([0, 0, 1, 1 << 63, 1 << 62, 1 << 62 | 255 << 54, 3 << 61])
_SPARSE = st.sampled_from([0, 0, 0, 1, 7])
_COUNTS = st.one_of(st.sampled_from([1, 2, 3, 64, 512, 4096, 1 << 16]), st.integers(1, 1 << 13))


@dataclass(frozen=True)
class Words:
    """How the entries of a table are made: many, from few numbers."""

    pattern: str
    count: int
    stride: int
    seed: int
    flags: int
    gaps: int
    """So many of each so many and one are 0."""

    def made(self, cluster_bits: int, place: int, size: int, most: int = 1 << 18) -> NDArray[np.uint64]:
        """Entries that point to clusters from a place on, or all over the file."""
        number = min(self.count, most)
        index = np.arange(number, dtype=np.uint64)
        clusters = max(size >> cluster_bits, 2)
        random = np.random.default_rng(self.seed)
        first = np.uint64(place >> cluster_bits)
        numbers = {
            "same": first + np.uint64(0) * index,
            "row": first + index * np.uint64(self.stride),
            "ring": first + index % np.uint64(max(self.stride, 1)),
            "scattered": random.integers(1, clusters, number, np.uint64),
            "near": first + random.integers(0, max(self.stride, 1), number, np.uint64),
            "end": np.uint64(clusters - 1) - index % np.uint64(clusters - 1),
        }.get(self.pattern)
        if numbers is None:
            return random.integers(0, (1 << 64) - 1, number, np.uint64)
        words: NDArray[np.uint64] = (numbers << np.uint64(cluster_bits)) | np.uint64(self.flags)
        if self.gaps:
            words[index % np.uint64(self.gaps + 1) != 0] = 0
        return words


_PATTERNS = st.sampled_from(["same", "row", "row", "ring", "scattered", "near", "end", "random"])
_STRIDES = st.one_of(st.sampled_from([0, 1, 2, 3, 9, 129, 1 << 12, 1 << 15]), st.integers(0, 1 << 20))
_WORDS = st.builds(Words, _PATTERNS, _COUNTS, _STRIDES, st.integers(0, 999), _FLAGS, _SPARSE)


@dataclass(frozen=True)
class MadeUp:
    """An image, from few numbers."""

    cluster_bits: int
    extended_l2: bool
    size: int
    l1: Words
    l1_entries: int
    """As the header says, if it says more than there are."""
    l2: Words
    snapshots: tuple[tuple[int, int, int, int], ...]
    """Of each kind how many, by how many clusters each L1 lies after the one before, entries, and length of name."""
    snapshot_disk: int
    lies: tuple[tuple[tuple[int, int], int], ...]
    """Fields of the header that are something else."""
    strays: tuple[tuple[int, int, int], ...]
    """Words in the tables that are something else."""
    extensions: bytes
    cut: int
    """The file ends so many bytes earlier."""

    def write(self, path: Path, backing: str = "") -> Path:
        bits = max(self.cluster_bits, 14) if self.extended_l2 else self.cluster_bits
        at_snapshots, at_l1, at_l2 = 4 * MEBIBYTE, 16 * MEBIBYTE, 64 * MEBIBYTE
        l1 = self.l1.made(bits, at_l2, self.size)
        snapshots = bytearray()
        total = 0
        for many, step, number, name in self.snapshots:
            for index in range(many):
                place = at_l1 + (index * step << bits)
                snapshots += Snapshot(place, min(number, LARGEST_L1), self.snapshot_disk, b"n" * name).packed()
            total += many
        number = max(len(l1), self.l1_entries)
        header = Header(
            cluster_bits=bits,
            size=min(number * span(bits, self.extended_l2), (1 << 63) - 1),
            l1_offset=at_l1,
            l1_entries=number,
            snapshots=total,
            snapshots_offset=at_snapshots,
            refcount_table_offset=at_l1,
            refcount_table_clusters=1,
            extended_l2=self.extended_l2,
            backing=backing,
            extensions=self.extensions if len(self.extensions) < 200 else b"",
        )
        start = bytearray(header.packed())
        for (offset, width), value in self.lies:
            start[offset : offset + width] = (value & (1 << 8 * width) - 1).to_bytes(width, "big")
        pieces = [(0, bytes(start)), (at_snapshots, bytes(snapshots[: 8 * MEBIBYTE])), (at_l1, entries(l1))]
        pieces.append((at_l2, entries(self.l2.made(bits, at_l2 + MEBIBYTE, self.size))))
        tables = (at_snapshots, at_l1, at_l2)
        pieces += [(tables[which] + word * 8, struct.pack(">Q", value)) for which, word, value in self.strays]
        write(path, self.size, [piece for piece in pieces if piece[1]])
        if self.cut:
            with path.open("r+b") as file:
                file.truncate(max(0, path.stat().st_size - self.cut))
        return path


_SNAPSHOTS = st.tuples(
    st.sampled_from([1, 2, 5, 50, 400, 3000]),
    st.sampled_from([0, 1, 2, 100]),
    st.one_of(st.sampled_from([0, 1, 2, 64, 4096, 1 << 17, LARGEST_L1]), st.integers(0, 1 << 22)),
    st.sampled_from([0, 3, 200, 1000]),
)
_EXTENSIONS = st.one_of(
    st.just(b""),
    st.builds(
        lambda kind, body, length: struct.pack(">II", kind, len(body) if length is None else length) + body,
        st.sampled_from([0xE2792ACA, 0x6803F857, 0x23852875, 0x44415441, 0x0537BE77]),
        st.binary(max_size=48).map(lambda body: body + bytes(-len(body) % 8)),
        st.one_of(st.none(), st.none(), st.integers(0, (1 << 32) - 1)),
    ),
)
_IMAGES = st.builds(
    MadeUp,
    cluster_bits=_BITS,
    extended_l2=st.booleans(),
    size=_SIZES,
    l1=_WORDS,
    l1_entries=st.one_of(st.just(0), st.just(0), st.sampled_from([1 << 12, 1 << 17, LARGEST_L1])),
    l2=_WORDS,
    snapshots=st.one_of(st.just(()), st.lists(_SNAPSHOTS, max_size=3).map(tuple)),
    snapshot_disk=st.one_of(st.sampled_from([0, 1 << 30, 1 << 62]), _NUMBERS),
    lies=st.one_of(st.just(()), st.lists(st.tuples(st.sampled_from(_FIELDS), _NUMBERS), max_size=2).map(tuple)),
    strays=st.one_of(
        st.just(()), st.lists(st.tuples(st.integers(0, 2), st.integers(0, 600), _NUMBERS), max_size=4).map(tuple)
    ),
    extensions=_EXTENSIONS,
    cut=st.one_of(st.just(0), st.just(0), st.just(0), st.sampled_from([1, 511, 512, 4096, 1 << 26])),
)


@pytest.mark.timeout(7200)
@given(image=_IMAGES)
def test_made_up_images(bounds: Bounds, image: MadeUp) -> None:
    with TemporaryDirectory(dir=bounds.directory) as directory:
        path = image.write(Path(directory) / "a")
        bounds.hold("a made-up image", [path], ["content", "sharing", "refcounts", "chain", "overlaps"])


_SUBCLUSTERS_ALL_ALIKE = MadeUp(
    cluster_bits=12,
    extended_l2=True,
    size=276_487,
    l1=Words("scattered", 612, 8, 415, 1, 0),
    l1_entries=1 << 17,
    l2=Words("scattered", 2343, 1672, 944, 0, 0),
    snapshots=((400, 0, 0, 1000),),
    snapshot_disk=1 << 30,
    lies=(),
    strays=(),
    extensions=b"",
    cut=0,
)


@pytest.mark.timeout(7200)
@example(layers=[(_SUBCLUSTERS_ALL_ALIKE, 100)], base=None, repeats=False)
@settings(phases=[Phase.explicit, Phase.reuse, Phase.generate])  # smaller ones take less, and so break no bound
@given(
    layers=st.lists(st.tuples(_IMAGES, st.sampled_from([1, 1, 2, 10, 100])), min_size=1, max_size=4),
    base=st.one_of(st.none(), _SIZES),
    repeats=st.booleans(),
)
def test_made_up_chains(bounds: Bounds, layers: list[tuple[MadeUp, int]], base: int | None, repeats: bool) -> None:
    with TemporaryDirectory(dir=bounds.directory) as directory:
        images = [image for image, times in layers for _ in range(times)]
        paths = [Path(directory) / f"layer{number}" for number in range(len(images))]
        if base is not None:
            paths.append(write(Path(directory) / "base.raw", base, [(base // 2, b"x")]))
        bottom = str(paths[0]) if repeats else ""
        below = [*map(str, paths[1:]), bottom]
        for path, image, backing in zip(paths, images, below, strict=False):
            image.write(path, backing)
        bounds.hold("a made-up chain", paths, ["chain", "overlaps"])


# ---- real images, changed ----


@pytest.fixture(scope="module")
def real_images(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[bytes, list[int]]]:
    """Contents, and where their tables are."""
    images = []
    for options in ("cluster_size=512", "cluster_size=4k,compat=0.10", "cluster_size=16k,extended_l2=on"):
        path = tmp_path_factory.mktemp("real") / "a.qcow2"
        run("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, path, "600k")
        for number in range(3):
            run("qemu-io", "-c", f"write -q {number * 64}k 64k", path)
            run("qemu-io", "-c", f"write -q -c {256 + number * 16}k 16k", path)
            run("qemu-img", "snapshot", "-c", f"s{number}", path)
        content = path.read_bytes()
        l1, refcounts, snapshots = (struct.unpack_from(">Q", content, offset)[0] for offset in (40, 48, 64))
        l2 = struct.unpack_from(">Q", content, l1)[0] & 0x00FF_FFFF_FFFF_FE00
        images.append((content, [0, l1, l2, refcounts, snapshots, struct.unpack_from(">Q", content, snapshots)[0]]))
    return images


@pytest.mark.timeout(7200)
@given(
    which=st.integers(0, 2),
    changes=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 32), _NUMBERS), min_size=1, max_size=8),
    lies=st.lists(st.tuples(st.sampled_from(_FIELDS), _NUMBERS), max_size=2),
    size=st.one_of(st.just(0), _SIZES),
)
def test_real_images_that_were_changed(
    bounds: Bounds,
    real_images: list[tuple[bytes, list[int]]],
    which: int,
    changes: list[tuple[int, int, int]],
    lies: list[tuple[tuple[int, int], int]],
    size: int,
) -> None:
    content, places = bytearray(real_images[which][0]), real_images[which][1]
    for table, word, value in changes:
        at = places[table] + (word * 8 if table else _FIELDS[word % len(_FIELDS)][0])
        content[at : at + 8] = struct.pack(">Q", value)
    content[:8] = real_images[which][0][:8]  # else most end here
    for (offset, width), value in lies:
        content[offset : offset + width] = (value & (1 << 8 * width) - 1).to_bytes(width, "big")
    with TemporaryDirectory(dir=bounds.directory) as directory:
        path = write(Path(directory) / "a", size, [(0, bytes(content))])
        bounds.hold("a changed image", [path], ["content", "sharing", "refcounts", "chain", "overlaps"])


@pytest.mark.timeout(7200)
@given(
    magic=st.sampled_from([b"LibvirtQemudSave", b"LibvirtQemudPart", b"LibvirtQemudSavf"]),
    order=st.sampled_from("<>"),
    words=st.lists(
        st.one_of(st.integers(0, 3), st.sampled_from([1 << 20, 64 << 20, 65 << 20]), st.integers(0, (1 << 32) - 1)),
        min_size=5,
        max_size=5,
    ),
    length=st.integers(0, 92),
    is_whole=st.booleans(),
    size=_SIZES,
)
def test_saved_memory(
    bounds: Bounds, magic: bytes, order: str, words: list[int], length: int, is_whole: bool, size: int
) -> None:
    header = struct.pack(f"{order}16s5I56x", magic, *words)
    with TemporaryDirectory(dir=bounds.directory) as directory:
        path = write(Path(directory) / "a", size if is_whole else 0, [(0, header if is_whole else header[:length])])
        bounds.hold("saved memory", [path], ["memory", "content"])


# ---- what must not be refused ----


def test_a_sound_image_of_many_tables_is_read(bounds: Bounds) -> None:
    """Two terabytes, all tables written out and no data yet: more than its file takes is never needed."""
    path = bounds.directory / "full.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", path, "2T")
    for look in bounds.analyser.look_at([path], ["content", "sharing", "refcounts", "overlaps"]):
        assert (look.refused, look.failed) == ("", "")
        assert look.peak < MOST_BYTES
    path.unlink()


def test_as_many_snapshots_as_can_be_told_apart(bounds: Bounds) -> None:
    """Of small disks: so many are read, and more are refused in words."""
    with TemporaryDirectory(dir=bounds.directory) as directory:
        [few] = GALLERY["a_tenth_of_all_snapshots"](Path(directory))
        [sharing] = bounds.analyser.look_at([few], ["sharing"])
        assert (sharing.refused, sharing.failed) == ("", "")
        [many] = GALLERY["all_snapshots_that_there_can_be"](Path(directory))
        [sharing] = bounds.analyser.look_at([many], ["sharing"])
        assert "more ways than can be told apart" in sharing.refused
