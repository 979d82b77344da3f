"""Who holds which cluster: against what QEMU itself frees, and against images that lie."""

from __future__ import annotations

import json
import os
import random
import struct
import subprocess
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

from snaptree.images import sharing as sharing_module
from snaptree.images.extents import taken_on_host
from snaptree.images.files import open_local
from snaptree.images.qcow2 import Qcow2Content, read_content
from snaptree.images.read_at import BadImageError
from snaptree.images.refcounts import Refcounts, read_refcounts
from snaptree.images.sharing import Kind, Sharing, Space, read_sharing
from snaptree.model.errors import CancelledError
from tests.images.conftest import QemuImg, run
from tests.images.test_qcow2 import Bytes, header

pytestmark = pytest.mark.qemu

KIBIBYTE = 1 << 10
MEBIBYTE = 1 << 20
GIBIBYTE = 1 << 30
WITHOUT_L1 = [Kind.DATA, Kind.VM_STATE, Kind.L2]


@dataclass(frozen=True)
class Reading:
    """All that is read of an image at one time."""

    content: Qcow2Content
    sharing: Sharing
    refcounts: Refcounts
    on_host: int
    """Bytes of the whole file."""
    taken: Sequence[int]
    """Bytes of each cluster."""

    @property
    def snapshot_table(self) -> set[int]:
        first = self.content.header.snapshots_offset >> self.content.header.cluster_bits
        return set(range(first, first + self.refcounts.snapshot_table))


def read(path: Path) -> Reading:
    with open_local(str(path)) as file:
        os.fsync(file.fileno())
        content = read_content(file)
        taken = taken_on_host(file)
        assert taken is not None
        on_host = os.fstat(file.fileno()).st_blocks * 512
        clusters = -(-file.size >> content.header.cluster_bits)
        of_each = taken(0, 1 << content.header.cluster_bits, clusters) if clusters < MEBIBYTE else np.zeros(0, np.int64)
        sharing = read_sharing(file, content, taken=taken)
        return Reading(content, sharing, read_refcounts(file, content), on_host, of_each.tolist())


def assert_clean(path: Path) -> Reading:
    """QEMU finds nothing wrong, and the two ways of counting agree: what is reached, and what has a reference count."""
    reading = read(path)
    check = json.loads(run("qemu-img", "check", "--output=json", path))
    assert check.get("leaks", 0) == check.get("corruptions", 0) == check["check-errors"] == 0
    assert reading.refcounts.in_use == reading.sharing.clusters + reading.refcounts.metadata
    assert reading.refcounts.leaked(reading.sharing.clusters) == 0
    assert reading.sharing.pointers_to_nowhere == 0
    if reading.taken:
        # What a file takes includes the blocks with its own map.
        assert 0 <= reading.on_host - sum(reading.taken) <= 64 * KIBIBYTE
    return reading


def qemu_io(path: Path, *commands: str, options: tuple[str, ...] = (), may_fail: bool = False) -> None:
    words = [word for command in commands for word in ("-c", command)]
    subprocess.run(["qemu-io", *options, "-f", "qcow2", *words, path], check=not may_fail, capture_output=True)


def copied(path: Path) -> Path:
    copy = path.with_suffix(".copy")
    run("cp", "--sparse=auto", "--reflink=never", path, copy)
    return copy


# ---- histories ----


@dataclass(frozen=True)
class Build:
    """How an image is made."""

    cluster_bits: int
    version: int
    extended_l2: bool = False
    compression: str = "zlib"
    is_preallocated: bool = False

    @property
    def cluster(self) -> int:
        return 1 << self.cluster_bits

    @property
    def span(self) -> int:
        """Bytes of disk for one L2 table."""
        return self.cluster * self.cluster // (16 if self.extended_l2 else 8)

    @property
    def options(self) -> str:
        options = f"cluster_size={self.cluster},compat={'1.1' if self.version == 3 else '0.10'}"
        if self.extended_l2:
            options += ",extended_l2=on"
        if self.compression != "zlib":
            options += f",compression_type={self.compression}"
        return options + (",preallocation=metadata" if self.is_preallocated else "")


def builds() -> st.SearchStrategy[Build]:
    plain = st.builds(Build, st.integers(9, 21), st.sampled_from([2, 3]))
    rich = st.builds(Build, st.integers(14, 21), st.just(3), st.booleans(), st.sampled_from(["zlib", "zstd"]))
    preallocated = st.builds(Build, st.integers(9, 12), st.sampled_from([2, 3]), is_preallocated=st.just(True))
    return st.one_of(plain, rich, preallocated)


Operation = tuple[str, int, int, int]
"""What, in which L2 table, at which cluster of it, and how many (sub)clusters."""


def operations() -> st.SearchStrategy[list[Operation]]:
    what = st.sampled_from(["write", "write", "part", "zero", "unmap", "discard", "compress", "compress"])
    where = (st.integers(0, 3), st.integers(0, 11), st.integers(1, 6))
    snapshot = st.tuples(st.just("snapshot"), st.just(0), st.just(0), st.just(0))
    other = st.tuples(st.sampled_from(["revert", "delete", "resize"]), *where)
    return st.lists(
        st.one_of(st.tuples(what, *where), st.tuples(what, *where), snapshot, other), min_size=3, max_size=16
    )


def play(path: Path, build: Build, history: list[Operation]) -> None:
    """Do to an image what a history says. Sessions with compressed writes are apart: see QEMU's bug in them."""
    size = build.span * 4
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", build.options, path, str(size))
    names: list[str] = []
    sizes: dict[str, int] = {}
    for number, (what, table, cluster, count) in enumerate(history):
        offset = table * build.span + cluster * build.cluster
        length = min(count * build.cluster, size - offset)
        if what == "snapshot":
            name = f"s{number}" + "x" * (cluster * 20)
            run("qemu-img", "snapshot", "-c", name, path)
            names.append(name)
            sizes[name] = size
        elif what == "revert" and names:
            name = names[cluster % len(names)]
            if build.version == 3 or sizes[name] == size:
                run("qemu-img", "snapshot", "-a", name, path)
                size = sizes[name]
        elif what == "delete" and names:
            run("qemu-img", "snapshot", "-d", names.pop(cluster % len(names)), path)
        elif what == "resize" and (build.version == 3 or not names) and not build.is_preallocated:
            size = (table + 1) * build.span + cluster * 512
            run("qemu-img", "resize", "-q", "--shrink", path, str(size))
        elif length > 0 and what in ("write", "part", "zero", "unmap", "discard", "compress"):
            if what == "compress":
                length -= length % build.cluster
                commands = [
                    f"write -c -q -P {number} {start} {build.cluster}"
                    for start in range(offset, offset + length, build.cluster)
                ]
            else:
                command = {
                    "write": f"write -q -P {number}",
                    "part": f"write -q -P {number}",
                    "zero": "write -q -z",
                    "unmap": "write -q -z -u",
                    "discard": "discard -q",
                }[what]
                part = max(512, length // 5 // 512 * 512) if what == "part" else length
                commands = [f"{command} {offset} {min(part, length)}"]
            for command in commands:  # QEMU refuses to compress over a cluster that is there already
                qemu_io(path, command, options=("-d", "unmap"), may_fail=what == "compress")


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], tempfile.TemporaryDirectory[str]]:
    base = tmp_path_factory.mktemp("sharing")
    return lambda: tempfile.TemporaryDirectory(dir=base)


@settings(max_examples=settings().max_examples // 2)
@given(build=builds(), history=operations(), chance=st.randoms(use_true_random=False))
def test_what_a_deletion_frees_is_what_qemu_frees(
    scratch: Callable[[], tempfile.TemporaryDirectory[str]],
    build: Build,
    history: list[Operation],
    chance: random.Random,
) -> None:
    with scratch() as directory:
        path = Path(directory, "disk.qcow2")
        play(path, build, history)
        before = assert_clean(path)
        names = [entry.name for entry in before.content.snapshots]
        note(f"snapshots: {names}")
        for _ in range(4 if names else 0):
            gone = chance.sample(range(len(names)), chance.randint(1, len(names)))
            assert_deletion_frees(copied(path), before.sharing.frees(gone), [names[number] for number in gone])
        if names:
            assert_union_is_known(copied(path), before, names, chance)


def assert_deletion_frees(path: Path, frees: Space, names: list[str]) -> None:
    first = before = read(path)
    for name in names:
        number = next(at for at, entry in enumerate(before.content.snapshots) if entry.name == name)
        run("qemu-img", "snapshot", "-d", name, path)
        after = read(path)
        assert_host_gets_back(before, after, before.sharing.frees([number]))
        before = after
    # QEMU may have needed another block of reference counts to write the new table.
    needed = before.refcounts.refcounts - first.refcounts.refcounts
    assert frees.in_image == (first.refcounts.in_use - before.refcounts.in_use + needed) * before.sharing.cluster


def assert_host_gets_back(before: Reading, after: Reading, frees: Space) -> None:
    """QEMU discards what it frees. Beside that, it writes a new table of snapshots, and discards the old one."""
    tables = before.snapshot_table | after.snapshot_table
    returned = sum(
        max(0, taken - taken_of(after, cluster)) for cluster, taken in enumerate(before.taken) if cluster not in tables
    )
    assert frees.on_host is not None
    if before.sharing.cluster >= os.sysconf("SC_PAGE_SIZE"):
        assert frees.on_host == returned
    else:
        assert frees.on_host >= returned, "of a block, all clusters must be free"


def taken_of(reading: Reading, cluster: int) -> int:
    return reading.taken[cluster] if cluster < len(reading.taken) else 0


def assert_union_is_known(path: Path, reading: Reading, names: list[str], chance: random.Random) -> None:
    """Make QEMU forget all but one snapshot and a parent of it: what is left is what both hold."""
    one, parent = chance.randrange(len(names)), chance.randrange(len(names))
    sharing = reading.sharing
    if (
        reading.content.header.version == 2
        and reading.content.snapshots[one].disk_size != reading.content.header.virtual_size
    ):
        return
    run("qemu-img", "snapshot", "-a", names[one], path)
    for number, name in enumerate(names):
        if number != parent:
            run("qemu-img", "snapshot", "-d", name, path)
    both = clusters_beside_l1(path) * sharing.cluster
    run("qemu-img", "snapshot", "-d", names[parent], path)
    alone = clusters_beside_l1(path) * sharing.cluster
    assert sharing.referred(one, WITHOUT_L1).in_image == alone
    of_parent = sharing.referred(parent, WITHOUT_L1).in_image
    assert sharing.written(one, parent, WITHOUT_L1).in_image == both - of_parent
    assert sharing.written(parent, one, WITHOUT_L1).in_image == both - alone


def clusters_beside_l1(path: Path) -> int:
    """By reference counts, without what the image needs for itself."""
    with open_local(str(path)) as file:
        content = read_content(file)
        refcounts = read_refcounts(file, content)
    tables = [content.header.l1_entries, *(entry.l1_entries for entry in content.snapshots)]
    l1 = sum(-(-entries * 8 >> content.header.cluster_bits) for entries in tables)
    return refcounts.in_use - refcounts.metadata - l1


# ---- features ----


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16, 32, 64])
def test_reference_counts_of_every_width(qemu_img: QemuImg, bits: int) -> None:
    path = qemu_img.create("a.qcow2", "8M", "-o", f"refcount_bits={bits},cluster_size=4k")
    qemu_io(path, "write -q 0 1M", "write -q 3M 68k")
    if bits > 1:
        qemu_img("snapshot", "-c", "first", path)
        qemu_io(path, "write -q 512k 1M")
    reading = assert_clean(path)
    assert reading.content.header.refcount_bits == bits
    assert reading.sharing.total([Kind.DATA]).in_image == (1024 + 68 + (1024 if bits > 1 else 0)) * KIBIBYTE


def test_leaked_clusters_are_those_that_qemu_img_finds(qemu_img: QemuImg) -> None:
    path = qemu_img.create("a.qcow2", "8M")
    qemu_io(path, "write -q 0 1M")
    with path.open("r+b") as file:  # forget three clusters of data
        header = content_of(path).header
        file.seek(header.l1_offset)
        (l2,) = struct.unpack(">Q", file.read(8))
        file.seek((l2 & 0x00FF_FFFF_FFFF_FE00) + 8 * 4)
        file.write(bytes(24))
    found = subprocess.run(["qemu-img", "check", "--output=json", path], capture_output=True, text=True, check=False)
    reading = read(path)
    assert reading.refcounts.leaked(reading.sharing.clusters) == json.loads(found.stdout)["leaks"] == 3


def content_of(path: Path) -> Qcow2Content:
    with open_local(str(path)) as file:
        return read_content(file)


def test_bitmaps_are_metadata(qemu_img: QemuImg) -> None:
    path = qemu_img.create("a.qcow2", "1G", "-o", "cluster_size=4k")
    for name in ("backup", "x" * 1000):
        qemu_img("bitmap", "--add", "-g", "512", path, name)
    qemu_io(path, "write -q 0 3M", "write -q 700M 3M")
    qemu_img("snapshot", "-c", "first", path)
    reading = assert_clean(path)
    assert reading.refcounts.bitmaps > 2


def test_luks_header_is_metadata(qemu_img: QemuImg) -> None:
    path = qemu_img.create(
        "secret.qcow2",
        "1M",
        *("--object", "secret,id=key,data=abc"),
        *("-o", "encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=10"),
    )
    secret = ("--object", "secret,id=key,data=abc", "--image-opts")
    options = f"driver=qcow2,file.filename={path},encrypt.format=luks,encrypt.key-secret=key"
    run("qemu-io", *secret, "-c", "write -q 0 256k", options)
    run("qemu-img", "snapshot", *secret, "-c", "first", options)
    run("qemu-io", *secret, "-c", "write -q 0 128k", options)
    reading = read(path)
    assert reading.refcounts.luks_header > 1
    assert reading.refcounts.in_use == reading.sharing.clusters + reading.refcounts.metadata
    assert reading.sharing.unique(0, [Kind.DATA]).in_image == 128 * KIBIBYTE


def test_data_in_a_second_file_is_left_out(qemu_img: QemuImg) -> None:
    path = qemu_img.create("meta.qcow2", "8M", "-o", f"data_file={qemu_img.directory}/data.raw")
    qemu_io(path, "write -q 0 1M", "write -q 3M 68k")
    reading = read(path)
    assert reading.refcounts.in_use == reading.sharing.clusters + reading.refcounts.metadata
    assert reading.sharing.total([Kind.DATA]).in_image == 0
    refused = subprocess.run(["qemu-img", "snapshot", "-c", "first", path], capture_output=True, check=False)
    assert refused.returncode, "then what is left out matters"


def test_blocks_that_are_preallocated_are_taken(qemu_img: QemuImg) -> None:
    path = qemu_img.create("a.qcow2", "1M", "-o", "preallocation=falloc")
    reading = assert_clean(path)
    assert reading.sharing.total([Kind.DATA]) == Space(MEBIBYTE, MEBIBYTE)


def test_saved_memory(qemu_img: QemuImg) -> None:
    path = qemu_img.create("a.qcow2", "1G")
    monitor(path, 'qemu-io d "write -q -P 1 0 1M"', "savevm one", 'qemu-io d "write -q -P 2 0 512k"', "savevm two")
    first = assert_clean(path)
    sizes = [entry.vm_state_size for entry in first.content.snapshots]
    for number in (0, 1):
        memory = first.sharing.memory(number)
        assert 0 < sizes[number] - memory.in_image < 64 * KIBIBYTE or 0 <= memory.in_image - sizes[number] < 65536
        assert memory.on_host is not None
        assert 0 < memory.on_host <= memory.in_image
        assert first.sharing.unique(number, [Kind.VM_STATE]) == memory
        assert first.sharing.memory_also_present(number).in_image == 0, "QEMU drops it once it is saved"
    for gone in ([0], [1], [0, 1]):
        assert_deletion_frees(copied(path), first.sharing.frees(gone), [["one", "two"][number] for number in gone])

    qemu_img("snapshot", "-a", "one", path)
    reverted = assert_clean(path)
    assert reverted.sharing.unique(0, [Kind.VM_STATE]).in_image == 0, "the present state holds it, too"
    assert reverted.sharing.memory(2) == reverted.sharing.memory(0) == reverted.sharing.memory_also_present(0)
    assert reverted.sharing.memory_also_present(1).in_image == 0
    qemu_img("resize", "-q", path, "2G")
    for gone in ([0], [1], [0, 1]):
        assert_deletion_frees(copied(path), read(path).sharing.frees(gone), [["one", "two"][number] for number in gone])


def monitor(path: Path, *commands: str) -> None:
    """What a machine's monitor is told, on a machine that stands still."""
    subprocess.run(
        [
            *("qemu-system-x86_64", "-nodefaults", "-display", "none", "-S", "-m", "8", "-accel", "tcg"),
            *("-monitor", "stdio", "-drive", f"file={path},format=qcow2,if=virtio,id=d"),
        ],
        input="".join(f"{command}\n" for command in [*commands, "quit"]),
        check=True,
        capture_output=True,
        text=True,
    )


# ---- the same in slices, and with many classes ----


def figures(sharing: Sharing) -> list[object]:
    """All that can be asked of each holder alone and of each pair."""
    holders = range(sharing.present + 1)
    return [
        (sharing.referred(one, [kind]), sharing.unique(one, [kind]), sharing.written(one, other, [kind]))
        for one in holders
        for other in holders
        for kind in Kind
    ]


def test_a_large_file_is_read_in_slices(qemu_img: QemuImg, monkeypatch: pytest.MonkeyPatch) -> None:
    path = qemu_img.create("a.qcow2", "4M", "-o", "cluster_size=512")
    for number in range(4):
        qemu_io(path, f"write -q {number * 700}k 300k", "write -q 3M 64k", f"discard -q {number * 128}k 16k")
        qemu_img("snapshot", "-c", f"s{number}", path)
    whole = read(path).sharing
    monkeypatch.setattr(sharing_module, "_SLICE_BITS", 3)
    monkeypatch.setattr(sharing_module, "_CHUNK", 2048)
    with pytest.raises(BadImageError, match="scattered"):
        read(path)
    monkeypatch.setattr(sharing_module, "_SLICE_BITS", 7)
    assert figures(read(path).sharing) == figures(whole)
    assert read(path).sharing.pointers_to_nowhere == 0


@given(
    additions=st.lists(
        st.tuples(st.lists(st.integers(0, 19), max_size=12), st.integers(0, 11), st.sampled_from(list(Kind))),
        max_size=30,
    ),
    most=st.sampled_from([2, 5, 1000]),
)
def test_classes_are_sets_of_holders(additions: list[tuple[list[int], int, Kind]], most: int) -> None:
    classes = sharing_module._Classes(20, 2)
    classes._most_before_sweep = most
    expected: list[tuple[int, Kind]] = [(0, Kind.DATA)] * 20
    for places, holder, kind in additions:
        classes.add(np.array(places, np.int64), 1 << holder, kind)
        for place in set(places):
            expected[place] = (expected[place][0] | 1 << holder, max(expected[place][1], kind))
    assert [classes.classes[number] for number in classes.of] == expected


@pytest.mark.parametrize("clusters", [300, 70_000])
def test_more_classes_than_a_small_number_holds(clusters: int) -> None:
    classes = sharing_module._Classes(clusters, 9_000 // 8)
    for cluster in range(clusters):
        classes.add(np.array([cluster]), cluster + 1, Kind.DATA)
    assert [classes.classes[number][0] for number in classes.of.tolist()] == list(range(1, clusters + 1))


def test_too_many_classes_are_refused() -> None:
    classes = sharing_module._Classes(20_000, 65_536 // 8)

    def add_all() -> None:
        for cluster in range(20_000):
            classes.add(np.array([cluster]), 1 << cluster, Kind.DATA)

    with pytest.raises(BadImageError, match="more ways"):
        add_all()


# ---- images that lie ----

L1_PLACE = 8 << 16
L2_PLACE = L1_PLACE + (32 << 20)


def entry(number: int, offset: int = L1_PLACE, entries: int = 1, disk_size: int = GIBIBYTE) -> bytes:
    extra = struct.pack(">QQ", 0, disk_size)
    name = b"%8d" % number
    return struct.pack(">QIHHIIQII", offset, entries, 8, 8, 0, 0, 0, 0, len(extra)) + extra + name * 2


class Lying(Bytes):
    """An image of a petabyte, mostly hole, whose tables are made up. Its snapshots stand in its fourth cluster."""

    def __init__(self, snapshots: list[bytes], l1: bytes = b"", l2: bytes = b"", cluster_bits: int = 16) -> None:
        start = header(
            snapshots=len(snapshots),
            cluster_bits=cluster_bits,
            size=0,
            l1=(len(l1) // 8, L1_PLACE),
            snapshots_offset=1 << 48,
        )
        super().__init__(start.ljust(L1_PLACE, b"\0") + l1.ljust(32 << 20, b"\0") + l2, 1 << 50)
        self.table = b"".join(snapshots)

    def read_at(self, offset: int, length: int) -> bytes:
        if offset >= 1 << 48:
            return self.table[offset - (1 << 48) :][:length].ljust(length, b"\0")
        return super().read_at(offset, length)


def bounded(source: Bytes, most_bytes: int = 256 * MEBIBYTE, most_seconds: float = 20) -> Sharing | None:
    """What is read, None if it is refused. Neither takes much of anything; time is the processor's, of a slow one."""
    content = read_content(source)
    began = time.process_time()
    tracemalloc.start()
    try:
        return read_sharing(source, content)
    except BadImageError:
        return None
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < most_bytes
        assert time.process_time() - began < most_seconds


def test_many_snapshots_that_share_one_large_table() -> None:
    same = struct.pack(">Q", L2_PLACE) * (4 << 20)
    different = (np.arange(4 << 20, dtype=np.int64) * 65536 + L2_PLACE).astype(">i8").tobytes()
    for l1 in (same, different):
        snapshots = [entry(number, entries=4 << 20) for number in range(200)]
        found = bounded(Lying(snapshots, l1, struct.pack(">QQ", 5 << 16, 5 << 16)))
        assert (found is None) == (l1 is different)
        if found is not None:
            assert found.referred(7, [Kind.L2, Kind.DATA, Kind.VM_STATE]).in_image == 2 << 16
            assert found.unique(7).in_image == 0


@pytest.mark.parametrize("stride", [0, 1])
def test_as_many_snapshots_as_there_may_be(stride: int) -> None:
    snapshots = [entry(number, L1_PLACE + number * stride * 512) for number in range(65_536)]
    l1 = struct.pack(">Q", L2_PLACE).ljust(512, b"\0") * 65_536
    found = bounded(Lying(snapshots, l1[: 32 << 20], cluster_bits=9))
    assert (found is None) == bool(stride), "so many sets of so many holders are refused"


def test_clusters_all_over_a_petabyte() -> None:
    l1 = struct.pack(">Q", L2_PLACE)
    l2 = (np.arange(8192, dtype=np.int64) << 37).astype(">i8").tobytes()
    assert bounded(Lying([entry(0)], l1, l2)) is None


def test_pointers_to_nowhere_are_left_out_and_counted() -> None:
    cluster = 1 << 16
    l1 = struct.pack(">QQQQ", L2_PLACE, 1 << 55, L2_PLACE + 512, 0)
    compressed_out = 1 << 62 | 1 << 53
    l2 = struct.pack(">QQQQQ", 5 * cluster, 5 * cluster + 512, 1 << 55, compressed_out, 6 * cluster | 1)
    found = bounded(Lying([entry(0, entries=4)], l1, l2))
    assert found is not None
    assert found.pointers_to_nowhere == 2 + 2 + 3, "in the L1 of the snapshot and of the present, and in one L2"
    assert found.total([Kind.DATA, Kind.VM_STATE]).in_image == 2 * cluster


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (entry(0, 0), "where none can be"),
        (entry(0, 100), "where none can be"),
        (entry(0, 1 << 57), "where none can be"),
        (entry(0, 1 << 55), "beyond the end"),
        (entry(0, entries=1 << 31), "larger than"),
    ],
)
def test_a_snapshot_whose_table_is_nowhere_is_told(bad: bytes, why: str) -> None:
    source = Lying([bad])
    with pytest.raises(BadImageError, match=why):
        read_sharing(source, read_content(source))


def test_snapshots_beside_a_second_file_are_refused(qemu_img: QemuImg) -> None:
    path = qemu_img.create("a.qcow2")
    qemu_img("snapshot", "-c", "first", path)
    data = bytearray(path.read_bytes())
    data[79] |= 4
    source = Bytes(bytes(data))
    with pytest.raises(BadImageError, match="second file"):
        read_sharing(source, read_content(source))


@pytest.mark.parametrize("after", range(6))
def test_reading_can_be_cancelled(qemu_img: QemuImg, after: int) -> None:
    path = qemu_img.create("a.qcow2", "8M", "-o", "cluster_size=512")
    qemu_io(path, "write -q 0 4M")
    qemu_img("snapshot", "-c", "first", path)
    calls = 0

    def cancelled() -> bool:
        nonlocal calls
        calls += 1
        return calls > after

    source = Bytes(path.read_bytes())
    with pytest.raises(CancelledError):
        read_sharing(source, read_content(source), cancelled=cancelled)


class MadeUp(Bytes):
    """An image in clusters of 4 KiB whose snapshots' tables are mostly alike, and what a plain walk finds in it."""

    first = 200
    """The first cluster of data; the L2 tables come before."""
    clusters = 1000

    def __init__(self, draw: random.Random, roots: int, columns: int, changes: int) -> None:
        self.draw = draw
        self.last = (self.first + self.clusters) // 2  # so that changes lead elsewhere
        self.tables: list[list[int]] = []
        l1s: list[list[int]] = [[self._new_table([0] * 512, 400) for _ in range(columns)]]
        self.last = self.clusters
        for _ in range(roots):
            l1s.append([self._changed(table, changes) for table in draw.choice(l1s)])
        present, *snapshots = l1s
        start = header(
            snapshots=roots, cluster_bits=12, size=512 << 12, l1=(columns, 2 << 12), snapshots_offset=1 << 12
        ).ljust(1 << 12, b"\0")
        start += b"".join(entry(n, (n + 3) << 12, columns, 512 << 12) for n in range(roots)).ljust(1 << 12, b"\0")
        for l1 in l1s:
            start += b"".join(struct.pack(">Q", 20 + table << 12) for table in l1).ljust(1 << 12, b"\0")
        start = start.ljust(20 << 12, b"\0") + b"".join(struct.pack(">512Q", *table) for table in self.tables)
        super().__init__(start, self.clusters << 12)
        self.roots = [*snapshots, present]

    def _changed(self, table: int, changes: int) -> int:
        """The same table, a copy with some changes, or at times with so many that little is left of it."""
        how = self.draw.random()
        if how < 0.3 or len(self.tables) >= 150:
            return table
        return self._new_table(self.tables[table], 500 if how > 0.9 else self.draw.randint(0, changes))

    def _new_table(self, old: list[int], changes: int) -> int:
        new = old.copy()
        for place in self.draw.sample(range(512), changes):
            new[place] = self._entry()
        self.tables.append(new)
        return len(self.tables) - 1

    def _entry(self) -> int:
        cluster = self.draw.randint(self.first, self.last - 1) << 12
        kinds = [0, 1, cluster, cluster, cluster, cluster | 1, cluster | 1 << 63, cluster | 512, 1 << 40]
        place = self.draw.randint(self.first << 12, self.last + 1 << 12)
        return self.draw.choice([*kinds, 1 << 62 | self.draw.randint(0, 15) << 58 | place])

    def _held(self, word: int) -> tuple[set[int], bool]:
        """Clusters that an entry holds, and whether it points nowhere."""
        place = word & 0x00FF_FFFF_FFFF_FE00
        if word & 1 << 62:
            begin = word & (1 << 58) - 1
            end = (begin >> 9 << 9) + ((word >> 58 & 15) + 1) * 512
            held = set(range(begin >> 12, (end - 1 >> 12) + 1))
            return (held, False) if end <= self.size else (set(), True)
        if place == 0:
            return set(), False
        return (set(), True) if place % 4096 or place >= self.size else ({place >> 12}, False)

    def walked(self) -> tuple[dict[tuple[frozenset[int], Kind], int], int]:
        """How many clusters each set of holders holds, and how many entries point nowhere."""
        holders: dict[int, set[int]] = {}
        kinds: dict[int, Kind] = {}

        def hold(cluster: int, root: int, kind: Kind) -> None:
            holders.setdefault(cluster, set()).add(root)
            kinds[cluster] = max(kinds.get(cluster, Kind.DATA), kind)

        for root, l1 in enumerate(self.roots):
            hold((root + 3) if root < len(self.roots) - 1 else 2, root, Kind.L1)
            for column, table in enumerate(l1):
                hold(20 + table, root, Kind.L2)
                for word in self.tables[table]:
                    for cluster in self._held(word)[0]:
                        hold(cluster, root, Kind.VM_STATE if column else Kind.DATA)
        found: dict[tuple[frozenset[int], Kind], int] = {}
        for cluster, those in holders.items():
            key = frozenset(those), kinds[cluster]
            found[key] = found.get(key, 0) + 1
        reached = {table for l1 in self.roots for table in l1}
        return found, sum(self._held(word)[1] for table in reached for word in self.tables[table])


@given(
    seed=st.integers(0, 1 << 32),
    roots=st.integers(1, 9),
    columns=st.integers(1, 3),
    changes=st.sampled_from([0, 1, 20, 200]),
    chunk=st.sampled_from([1, 3, 10, 1000]),
    together=st.sampled_from([1, 2, 100]),
    slice_bits=st.sampled_from([3, 7, 24]),
)
def test_tables_that_are_alike_are_counted_as_if_walked_one_by_one(
    seed: int, roots: int, columns: int, changes: int, chunk: int, together: int, slice_bits: int
) -> None:
    image = MadeUp(random.Random(seed), roots, columns, changes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharing_module, "_CHUNK", chunk << 12)
        patch.setattr(sharing_module, "_CHUNKS_TOGETHER", together)
        patch.setattr(sharing_module, "_SLICE_BITS", slice_bits)
        sharing = read_sharing(image, read_content(image))
    found = {
        (frozenset(holder for holder in range(roots + 1) if row[holder >> 3] >> (holder & 7) & 1), Kind(kind)): clusters
        for row, kind, clusters in zip(
            sharing._holders.tolist(), sharing._kinds.tolist(), sharing._clusters.tolist(), strict=True
        )
    }
    assert (found, sharing.pointers_to_nowhere) == image.walked()


class Full(Bytes):
    """A full disk of 2 TiB with a snapshot; its clusters lie in order, or in none."""

    def __init__(self, step: int) -> None:
        tables = 4096
        l1 = (np.arange(tables, dtype=np.int64) * 65536 + L2_PLACE).astype(">i8").tobytes()
        start = header(snapshots=1, size=2 << 40, l1=(tables, L1_PLACE), snapshots_offset=3 << 16)
        table = entry(0, L1_PLACE + (1 << 20), tables, 2 << 40)
        start = start.ljust(3 << 16, b"\0") + table
        super().__init__(start.ljust(L1_PLACE, b"\0") + l1.ljust(1 << 20, b"\0") + l1, (2 << 40) + (1 << 30))
        self.step = step

    def read_at(self, offset: int, length: int) -> bytes:
        if offset < L2_PLACE:
            return super().read_at(offset, length)
        numbers = np.arange((offset - L2_PLACE) >> 3, (offset - L2_PLACE + length) >> 3, dtype=np.int64)
        return (((numbers * self.step % (1 << 25)) << 16) + (1 << 30)).astype(">i8").tobytes()


@pytest.mark.parametrize("step", [1, 7919 * 2 + 1])
def test_a_full_disk_of_two_terabytes_takes_little_memory(step: int) -> None:
    found = bounded(Full(step), 150 * MEBIBYTE)
    assert found is not None
    assert found.referred(0, [Kind.DATA]).in_image == 2 << 40
    assert found.unique(0, [Kind.DATA]).in_image == 0


@pytest.fixture(scope="module")
def real_images(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    images = []
    for options in ("cluster_size=512", "cluster_size=4k,compat=0.10", "cluster_size=16k,extended_l2=on"):
        path = tmp_path_factory.mktemp("fuzz") / "a.qcow2"
        run("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, path, "600k")
        run("qemu-img", "bitmap", "--add", path, "backup") if "0.10" not in options else ""
        for number in range(3):
            qemu_io(path, f"write -q {number * 64}k 64k")
            qemu_io(path, f"write -q -c {256 + number * 16}k 16k")
            run("qemu-img", "snapshot", "-c", f"s{number}", path)
        images.append(path.read_bytes())
    return images


@settings(max_examples=settings().max_examples * 4)
@given(
    which=st.integers(0, 2),
    changes=st.lists(
        st.tuples(
            st.integers(0, 20),
            st.integers(0, 600),
            st.one_of(
                st.sampled_from([b"\0", b"\xff", b"\x40", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff\xff\xff\xfe\0"]),
                st.binary(min_size=1, max_size=8),
            ),
        ),
        min_size=1,
        max_size=8,
    ),
)
def test_no_change_to_an_image_makes_reading_fail(
    real_images: list[bytes], which: int, changes: list[tuple[int, int, bytes]]
) -> None:
    data = bytearray(real_images[which])
    good = read_content(Bytes(bytes(data)))
    places = [0, good.header.snapshots_offset, good.header.refcount_table_offset, good.header.bitmap_directory[0]]
    l1s = [good.header.l1_offset, *(snapshot.l1_offset for snapshot in good.snapshots)]
    for l1 in l1s:
        words = struct.unpack_from(">2Q", data, l1)
        places += [l1, *(word & 0x00FF_FFFF_FFFF_FE00 for word in words)]
    for place, offset, new in changes:
        at = places[place % len(places)] + offset
        data[at : at + len(new)] = new
    source = Bytes(bytes(data))
    try:
        content = read_content(source)
    except BadImageError:
        return
    for read_it in (read_sharing, read_refcounts):
        try:
            found = read_it(source, content)
        except BadImageError:
            continue
        if isinstance(found, Sharing):
            assert found.total().in_image <= source.size + found.cluster
            figures(found) if found.present < 8 else None
    assert source.bytes_read < 200 * MEBIBYTE
