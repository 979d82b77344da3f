"""The qcow2 reader against qemu-img, and against images that lie."""

from __future__ import annotations

import struct
import subprocess
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snaptree.images.files import open_local
from snaptree.images.qcow2 import Qcow2Content, read_content, read_qcow2, resolve
from snaptree.images.read_at import BadImageError
from snaptree.model.estate import Image
from snaptree.model.figures import exact
from tests.images.conftest import QemuImg

MEBIBYTE = 1 << 20


def content_of(path: Path) -> Qcow2Content:
    with open_local(str(path)) as file:
        return read_content(file)


class Bytes:
    """An image in memory that counts what is read of it; beyond `data` it is a hole up to `size`."""

    def __init__(self, data: bytes, size: int | None = None) -> None:
        self.data = data
        self.size = len(data) if size is None else size
        self.bytes_read = 0
        self.reads = 0

    def read_at(self, offset: int, length: int) -> bytes:
        length = max(0, min(length, self.size - offset))
        self.bytes_read += length
        self.reads += 1
        return self.data[offset : offset + length].ljust(length, b"\0")


def image_of(source: Bytes) -> Image:
    return read_qcow2("/pool/disk.qcow2", source, exact(4096))


# ---- what qemu-img says ----


@pytest.mark.parametrize("cluster_bits", range(9, 22))
@pytest.mark.parametrize("compat", ["0.10", "1.1"])
def test_headers_of_all_cluster_sizes(qemu_img: QemuImg, cluster_bits: int, compat: str) -> None:
    path = qemu_img.create("a.qcow2", "12345344", "-o", f"cluster_size={1 << cluster_bits},compat={compat}")
    qemu_img("snapshot", "-c", "first", path)
    content = content_of(path)
    assert content.header.version == {"0.10": 2, "1.1": 3}[compat]
    assert content.header.cluster_bits == cluster_bits
    assert content.header.virtual_size == 12345344
    assert [entry.name for entry in content.snapshots] == ["first"]


@pytest.mark.parametrize("size", ["0", "512", "1G", "64T"])
def test_sizes(qemu_img: QemuImg, size: str) -> None:
    path = qemu_img.create("a.qcow2", size, "-o", "cluster_size=2M")
    assert content_of(path).header.virtual_size == qemu_img.info(path)["virtual-size"]


def test_features(qemu_img: QemuImg) -> None:
    plain = content_of(qemu_img.create("plain.qcow2")).header
    assert (plain.compression, plain.encryption, plain.data_file) == ("zlib", "", None)
    assert not any([plain.extended_l2, plain.has_bitmaps, plain.is_dirty, plain.is_corrupt])

    path = qemu_img.create("rich.qcow2", "1M", "-o", "extended_l2=on,compression_type=zstd,lazy_refcounts=on")
    qemu_img("bitmap", "--add", path, "backup")
    rich = content_of(path).header
    assert rich.compression == "zstd"
    assert rich.extended_l2
    assert rich.has_bitmaps


def test_luks(qemu_img: QemuImg) -> None:
    path = qemu_img.create(
        "secret.qcow2",
        "1M",
        *("--object", "secret,id=key,data=abc"),
        *("-o", "encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=10"),
    )
    assert content_of(path).header.encryption == "luks"


def test_backing_file_and_its_format(qemu_img: QemuImg) -> None:
    qemu_img("create", "-q", "-f", "raw", "base.raw", "1M")
    header = content_of(qemu_img.overlay("top.qcow2", "base.raw", "raw")).header
    assert (header.backing_file, header.backing_format) == ("base.raw", "raw")


def test_a_backing_name_as_long_as_the_format_allows(qemu_img: QemuImg) -> None:
    name = "./" * 500 + "base.qcow2"
    qemu_img.create("base.qcow2")
    path = qemu_img.overlay("top.qcow2", name)
    assert content_of(path).header.backing_file == name


def test_data_file(qemu_img: QemuImg) -> None:
    path = qemu_img.create("meta.qcow2", "1M", "-o", "data_file=data.raw,data_file_raw=on")
    assert content_of(path).header.data_file == "data.raw"
    image = read_qcow2(str(path), Bytes(path.read_bytes()), exact(4096))
    assert not image.allocated.is_known
    assert "data.raw" in image.allocated.how


def test_internal_snapshots_agree_with_qemu_img(qemu_img: QemuImg) -> None:
    path = qemu_img.create("a.qcow2")
    names = ["before update", "ünï-\u202ecode", "<b>x</b>", "x" * 250]
    for name in names:
        qemu_img("snapshot", "-c", name, path)
    told = [(entry["id"], entry["name"], entry["date-sec"]) for entry in qemu_img.info(path)["snapshots"]]
    assert [(entry.id, entry.name, entry.created) for entry in content_of(path).snapshots] == told
    assert [name for _, name, _ in told] == names


def test_a_snapshot_keeps_the_size_that_its_disk_had(qemu_img: QemuImg) -> None:
    path = qemu_img.create("a.qcow2")
    qemu_img("snapshot", "-c", "small", path)
    qemu_img("resize", "-q", path, "3M")
    content = content_of(path)
    assert content.header.virtual_size == 3 * MEBIBYTE
    assert content.snapshots[0].disk_size == MEBIBYTE


def test_names_that_are_not_utf_8_stay_different(qemu_img: QemuImg) -> None:
    path = qemu_img.create("a.qcow2")
    for name in (b"\xff", b"\xfe"):
        subprocess.run([b"qemu-img", b"snapshot", b"-c", name, bytes(path)], check=True)
    names = [entry.name for entry in content_of(path).snapshots]
    assert [name.encode("utf-8", "surrogateescape") for name in names] == [b"\xff", b"\xfe"]


@pytest.mark.qemu
def test_saved_memory_in_an_image_agrees_with_qemu_img(qemu_img: QemuImg) -> None:
    path = qemu_img.create("a.qcow2")
    subprocess.run(
        [
            *("qemu-system-x86_64", "-nodefaults", "-display", "none", "-S", "-m", "8", "-accel", "tcg"),
            *("-monitor", "stdio", "-drive", f"file={path},format=qcow2,if=virtio"),
        ],
        input="savevm with-memory\nquit\n",
        check=True,
        capture_output=True,
        text=True,
    )
    qemu_img("snapshot", "-c", "disk-only", path)
    told = [entry["vm-state-size"] for entry in qemu_img.info(path)["snapshots"]]
    assert [entry.vm_state_size for entry in content_of(path).snapshots] == told
    assert told[0] > 100_000
    assert told[1] == 0


def test_many_snapshots_in_a_table_longer_than_one_read() -> None:
    table = b"".join(snapshot_entry(f"{number}", f"snapshot {number}" + "x" * 200) for number in range(2000))
    source = Bytes(header(snapshots=2000).ljust(3 << 16, b"\0") + table)
    image = image_of(source)
    assert [entry.id for entry in image.internal_snapshots] == [str(number) for number in range(2000)]
    assert source.reads < 20, "a far host needs a round trip for each read"


# ---- names ----


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("base.qcow2", "/pool/web/base.qcow2"),
        ("./base.qcow2", "/pool/web/base.qcow2"),
        ("sub//base.qcow2", "/pool/web/sub/base.qcow2"),
        ("../base.qcow2", "/pool/web/../base.qcow2"),
        ("/images/base.qcow2", "/images/base.qcow2"),
        ("file:/images/base.qcow2", "/images/base.qcow2"),
        ("file:///images/base.qcow2", "/images/base.qcow2"),
        ("sub/a:b.qcow2", "/pool/web/sub/a:b.qcow2"),
        ("nbd://host/export", "nbd://host/export"),
        ("nbd:unix:/run/nbd.sock", "nbd:unix:/run/nbd.sock"),
        ('json:{"driver": "qcow2"}', 'json:{"driver": "qcow2"}'),
        ("file:base.qcow2", "file:base.qcow2"),
    ],
)
def test_what_a_backing_name_means(name: str, meaning: str) -> None:
    assert resolve(name, "/pool/web/top.qcow2") == meaning


# ---- images that lie ----

SPAN = 8192 * 65536  # bytes of disk for each L1 entry, with clusters of 64 KiB


def header(
    *,
    magic: bytes = b"QFI\xfb",
    version: int = 3,
    backing: tuple[int, int] = (0, 0),
    cluster_bits: int = 16,
    size: int = MEBIBYTE,
    encryption: int = 0,
    l1: tuple[int, int] = (1, 2 << 16),
    refcounts: tuple[int, int] = (1 << 16, 1),
    snapshots: int = 0,
    snapshots_offset: int = 3 << 16,
    incompatible: int = 0,
    refcount_order: int = 4,
    length: int = 112,
    compression: int = 0,
    extensions: bytes = b"",
) -> bytes:
    """A header of which every part can be made to lie."""
    fixed = struct.pack(
        ">4sIQIIQIIQQIIQ",
        magic,
        version,
        *backing,
        cluster_bits,
        size,
        encryption,
        *l1,
        *refcounts,
        snapshots,
        snapshots_offset,
    )
    added = struct.pack(">QQQIIB7x", incompatible, 0, 0, refcount_order, length, compression)
    return fixed + added + extensions


def snapshot_entry(identity: str, name: str, extra: bytes = b"", extra_length: int | None = None) -> bytes:
    fixed = struct.pack(
        ">QIHHIIQII",
        2 << 16,
        1,
        len(identity.encode()),
        len(name.encode()),
        1_700_000_000,
        0,
        0,
        7,
        len(extra) if extra_length is None else extra_length,
    )
    entry = fixed + extra + identity.encode() + name.encode()
    return entry + bytes(-len(entry) % 8)


def test_the_made_up_header_is_a_good_one() -> None:
    image = image_of(Bytes(header(), 4 << 16))
    assert image.problem == ""
    assert image.virtual_size == MEBIBYTE


def test_the_old_place_of_the_memory_size_counts_where_there_is_no_new_one() -> None:
    entries = snapshot_entry("1", "old") + snapshot_entry("2", "new", struct.pack(">QQ", 1 << 40, MEBIBYTE))
    image = image_of(Bytes(header(snapshots=2).ljust(3 << 16, b"\0") + entries))
    assert [entry.vm_state_size for entry in image.internal_snapshots] == [7, 1 << 40]


def test_a_name_ends_at_a_nul_as_qemu_reads_it() -> None:
    image = image_of(Bytes(header(snapshots=1).ljust(3 << 16, b"\0") + snapshot_entry("1", "shown\0hidden")))
    assert image.internal_snapshots[0].name == "shown"


@pytest.mark.parametrize(
    ("data", "why"),
    [
        pytest.param(b"", "does not begin like a qcow2", id="empty"),
        pytest.param(header(magic=b"KDMV"), "does not begin like a qcow2", id="another format"),
        pytest.param(header()[:50], "ends in the middle of its header", id="cut"),
        pytest.param(header()[:80], "ends in the middle of its header", id="cut in what version 3 adds"),
        pytest.param(header(version=1), "version 1", id="version 1"),
        pytest.param(header(version=4), "version 4", id="version 4"),
        pytest.param(header(cluster_bits=8), "clusters of 2\\^8", id="small clusters"),
        pytest.param(header(cluster_bits=4_000_000_000), "clusters of 2", id="huge clusters"),
        pytest.param(header(incompatible=16, cluster_bits=13), "subclusters", id="small subclusters"),
        pytest.param(header(encryption=3), "encrypted", id="unknown encryption"),
        pytest.param(header(compression=2, incompatible=8), "compressed", id="unknown compression"),
        pytest.param(header(incompatible=1 << 5), "newer", id="unknown feature"),
        pytest.param(header(incompatible=1 << 63), "newer", id="unknown feature at the top"),
        pytest.param(header(refcount_order=7), "reference counts", id="refcounts"),
        pytest.param(header(length=103), "103 bytes", id="short header length"),
        pytest.param(header(length=1 << 31), "bytes long", id="long header length"),
        pytest.param(header(size=1 << 63), "too short", id="disk larger than its L1"),
        pytest.param(header(l1=(0, 0)), "too short", id="no L1"),
        pytest.param(header(l1=(1 << 23, 2 << 16)), "larger than", id="long L1"),
        pytest.param(header(l1=(1, 0)), "lies where none", id="L1 on the header"),
        pytest.param(header(l1=(1, 100)), "lies where none", id="unaligned L1"),
        pytest.param(header(l1=(1, 1 << 56)), "lies where none", id="L1 far out"),
        pytest.param(header(l1=(1, (1 << 64) - (1 << 16))), "lies where none", id="L1 at the end of 64 bits"),
        pytest.param(header(l1=(1, 4 << 16)), "beyond the end", id="L1 beyond the end"),
        pytest.param(header(refcounts=(1 << 16, 1 << 31)), "refcount table is larger", id="refcount table"),
        pytest.param(header(snapshots=65_537), "65537 snapshots", id="too many snapshots"),
        pytest.param(header(snapshots=1, snapshots_offset=4 << 16), "beyond the end", id="table beyond the end"),
        pytest.param(header(snapshots=1, snapshots_offset=8), "lies where none", id="unaligned table"),
        pytest.param(header(backing=(120, 1024)), "backing file", id="long backing name"),
        pytest.param(header(backing=(65530, 20)), "backing file", id="backing name beyond the header"),
        pytest.param(header(backing=(1 << 60, 20)), "backing file", id="backing name far out"),
        pytest.param(
            header(extensions=struct.pack(">II", 0xE2792ACA, 1 << 31)), "extension is longer", id="long extension"
        ),
        pytest.param(
            header(extensions=struct.pack(">II", 0xE2792ACA, 2000)), "name in its header", id="long format name"
        ),
        pytest.param(
            header(snapshots=1).ljust(3 << 16, b"\0") + snapshot_entry("1", "x", extra_length=1025),
            "entry of its snapshot table is larger",
            id="large extra data",
        ),
    ],
)
def test_a_lying_header_is_told(data: bytes, why: str) -> None:
    is_whole = len(data) >= len(header()) or not data.startswith(b"QFI")
    size = 4 << 16 if is_whole and data else len(data)
    image = image_of(Bytes(data, size))
    assert image.problem
    with pytest.raises(BadImageError, match=why):
        read_content(Bytes(data, size))
    assert image.allocated == exact(4096), "what it takes on disk is known all the same"


def test_a_table_cut_off_by_the_end_of_the_file_is_told() -> None:
    data = header(snapshots=2).ljust(3 << 16, b"\0") + snapshot_entry("1", "x" * 60)
    assert "middle of its snapshot table" in image_of(Bytes(data)).problem


def test_the_largest_lie_costs_little() -> None:
    """65,536 snapshots with the longest names, in a hole of a petabyte."""
    entry = struct.pack(">QIHHIIQII", 0, 0, 65535, 65535, 0, 0, 0, 0, 1024)
    stride = -(-(len(entry) + 1024 + 2 * 65535) // 8) * 8
    table = b"".join(entry.ljust(stride, b"n") for _ in range(520))
    source = Bytes(header(snapshots=65_536).ljust(3 << 16, b"\0") + table, 1 << 50)
    tracemalloc.start()
    image = image_of(source)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "larger than the format allows" in image.problem
    assert peak < 100 * MEBIBYTE
    assert source.bytes_read < 80 * MEBIBYTE


def good_images() -> list[bytes]:
    entries = snapshot_entry("1", "first", struct.pack(">QQ", 5, MEBIBYTE)) + snapshot_entry("2", "second")
    extensions = struct.pack(">II8s", 0xE2792ACA, 5, b"qcow2") + struct.pack(">IIQQQ", 0x23852875, 24, 0, 0, 0)
    extensions += struct.pack(">II8sII", 0x44415441, 8, b"data.raw", 0, 0)
    chained = header(backing=(1000, 10), snapshots=2, snapshots_offset=4096, extensions=extensions, incompatible=4)
    version_2 = header(version=2, snapshots=2, snapshots_offset=4096, cluster_bits=12, l1=(1, 8192))
    chained_small = struct.pack(">4sIQI", b"QFI\xfb", 3, 1000, 10) + struct.pack(">I", 12) + chained[24:]
    return [
        (chained_small[:1000].ljust(1000, b"\0") + b"base.qcow2").ljust(4096, b"\0") + entries.ljust(4096, b"\0"),
        version_2.ljust(4096, b"\0") + entries.ljust(4096, b"\0") + bytes(4096),
    ]


@settings(max_examples=400, deadline=None)
@given(
    data=st.sampled_from(good_images()),
    size=st.sampled_from([1 << 18, 1 << 40]),
    changes=st.lists(
        st.tuples(
            st.one_of(st.integers(0, 200), st.integers(990, 1020), st.integers(4096, 4250)),
            st.one_of(
                st.sampled_from([b"\0", b"\xff", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff"]), st.binary(max_size=8)
            ),
        ),
        max_size=6,
    ),
)
def test_no_change_to_an_image_makes_its_reader_fail(data: bytes, size: int, changes: list[tuple[int, bytes]]) -> None:
    changed = bytearray(data)
    for offset, new in changes:
        changed[offset : offset + len(new)] = new
    source = Bytes(bytes(changed), size)
    image = image_of(source)
    assert isinstance(image.problem, str)
    assert image.problem == "" or image.internal_snapshots == ()
    assert source.bytes_read <= 3 * (70 * MEBIBYTE)


@given(st.binary(max_size=300))
def test_random_bytes_are_a_problem_not_a_failure(data: bytes) -> None:
    assert image_of(Bytes(data)).problem
    assert image_of(Bytes(b"QFI\xfb" + data)).problem


# ---- images that change while they are read ----


class Changing(Bytes):
    """Between any two reads of the table, QEMU takes another snapshot: `times` times."""

    def __init__(self, before: bytes, after: bytes, times: int) -> None:
        super().__init__(before)
        self.states = [after, before] * times
        self.left = times

    def read_at(self, offset: int, length: int) -> bytes:
        read = super().read_at(offset, length)
        if offset >= 3 << 16 and self.left:
            self.left -= 1
            self.data = self.states.pop(0)
            self.size = len(self.data)
        return read


def test_a_table_that_moves_while_it_is_read_is_read_again() -> None:
    before = header(snapshots=1).ljust(3 << 16, b"\0") + snapshot_entry("1", "before")
    after = header(snapshots=2).ljust(3 << 16, b"\0") + snapshot_entry("1", "before") + snapshot_entry("2", "after")
    image = image_of(Changing(before, after, times=1))
    assert [entry.name for entry in image.internal_snapshots] == ["before", "after"]


def test_an_image_that_never_rests_is_told() -> None:
    before = header(snapshots=1).ljust(3 << 16, b"\0") + snapshot_entry("1", "before")
    after = header(snapshots=2).ljust(3 << 16, b"\0") + snapshot_entry("1", "before") + snapshot_entry("2", "after")
    assert "changes faster" in image_of(Changing(before, after, times=100)).problem


def test_a_source_that_fails_is_told() -> None:
    class Broken(Bytes):
        def read_at(self, offset: int, length: int) -> bytes:
            raise OSError(5, "Input/output error")

    assert image_of(Broken(b"")).problem == "Input/output error"
