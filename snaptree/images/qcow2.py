"""What a qcow2 image says of itself: its header, its extensions and its table of snapshots.

An image belongs to the guest's owner, who may be hostile: nothing is believed before it is checked against the
format's bounds (QEMU's docs/interop/qcow2.txt and block/qcow2.h) and the real length of the file.
"""

from __future__ import annotations

import posixpath
import struct
import sys
from dataclasses import dataclass
from typing import Final

from snaptree.images.read_at import BadImageError, ReadAt, in_words
from snaptree.model.estate import Image, InternalSnapshot
from snaptree.model.figures import Figure, unknown

MAGIC: Final = b"QFI\xfb"

_HEADER_V2: Final = struct.Struct(">4sIQIIQIIQQIIQ")
_HEADER_V3: Final = struct.Struct(">QQQII")  # what version 3 adds
_EXTENSION: Final = struct.Struct(">II")
_SNAPSHOT: Final = struct.Struct(">QIHHIIQII")
_BITMAPS: Final = struct.Struct(">IIQQ")
_LUKS_HEADER: Final = struct.Struct(">QQ")

_INCOMPATIBLE_DIRTY: Final = 1 << 0
_INCOMPATIBLE_CORRUPT: Final = 1 << 1
_INCOMPATIBLE_DATA_FILE: Final = 1 << 2
_INCOMPATIBLE_COMPRESSION: Final = 1 << 3
_INCOMPATIBLE_EXTENDED_L2: Final = 1 << 4
_INCOMPATIBLE_KNOWN: Final = (1 << 5) - 1

_EXTENSION_END: Final = 0
_EXTENSION_BACKING_FORMAT: Final = 0xE2792ACA
_EXTENSION_DATA_FILE: Final = 0x44415441
_EXTENSION_BITMAPS: Final = 0x23852875
_EXTENSION_LUKS_HEADER: Final = 0x0537BE77

_ENCRYPTIONS: Final = ("", "aes", "luks")
_COMPRESSIONS: Final = ("zlib", "zstd")

_LARGEST_NAME: Final = 1023
_LARGEST_OFFSET: Final = 1 << 56
_LARGEST_L1: Final = 32 << 20
_LARGEST_REFCOUNT_TABLE: Final = 8 << 20
_MOST_SNAPSHOTS: Final = 65_536
_LARGEST_SNAPSHOT_TABLE: Final = 64 << 20
_LARGEST_SNAPSHOT_EXTRA: Final = 1024
_MOST_TEXT: Final = 80 << 20
"""Bytes of memory for all names of snapshots, each with its own: Python may need four for a byte in the file."""
_KNOWN_SNAPSHOT_EXTRA: Final = 24
"""Sizes of memory and disk, and the count of instructions: what QEMU writes since version 5.2."""

_SMALLEST_CLUSTER: Final = 512
_START: Final = 64 << 10
"""Read first, in one go: the whole header cluster of nearly every image."""
_TABLE_PIECE: Final = 64 << 10
_TRIES: Final = 3


@dataclass(frozen=True, slots=True)
class Qcow2Header:
    """The header and its extensions, checked. Sizes and offsets are bytes."""

    version: int
    cluster_bits: int
    virtual_size: int
    l1_offset: int
    l1_entries: int
    refcount_table_offset: int
    refcount_table_size: int
    refcount_bits: int
    """Of each cluster's reference count: a power of two up to 64."""
    snapshots_offset: int
    snapshot_count: int
    backing_file: str | None
    """As written, perhaps relative: see `resolve`."""
    backing_format: str | None
    data_file: str | None
    """The file with the guest's data, as written; empty if there is one that is not named; None if there is none."""
    has_bitmaps: bool
    bitmap_directory: tuple[int, int]
    """Offset and length, not checked; nothing if there are no bitmaps."""
    luks_header: tuple[int, int]
    """Offset and length, not checked; nothing if there is none."""
    extended_l2: bool
    compression: str
    """`zlib` or `zstd`: how compressed clusters are compressed, if there are any."""
    encryption: str
    """Empty, `aes` or `luks`."""
    is_dirty: bool
    """Lazy refcounts were not written back: in use, or its QEMU crashed."""
    is_corrupt: bool
    """QEMU found it broken and refuses to write to it before a repair."""


@dataclass(frozen=True, slots=True)
class SnapshotEntry:
    """An entry of the snapshot table. Sizes are bytes, `created` seconds since 1970, UTC."""

    id: str
    name: str
    created: int
    vm_state_size: int
    disk_size: int
    """Of the guest's disk when the snapshot was taken: it may have been resized since."""
    l1_offset: int
    l1_entries: int
    table_bytes: int
    """What the entry takes in the snapshot table, its padding included."""
    rewritten_bytes: int
    """What it takes once QEMU writes the table anew: it then has all extra data that QEMU knows of."""


@dataclass(frozen=True, slots=True)
class Qcow2Content:
    """All that is read of an image without walking its clusters."""

    header: Qcow2Header
    snapshots: tuple[SnapshotEntry, ...]


def read_qcow2(path: str, source: ReadAt, allocated: Figure) -> Image:
    """Read an image of recorded format qcow2. Never raises for what is in it: `problem` says what is wrong."""
    try:
        content = read_content(source)
    except (BadImageError, OSError) as error:
        return Image(path, "qcow2", allocated, problem=in_words(error))
    data_file = content.header.data_file
    if data_file is not None:
        allocated = unknown(f"its data lies in a second file ({data_file or 'not named'}), which was not looked at")
    return as_image(path, content, allocated)


def as_image(path: str, content: Qcow2Content, allocated: Figure) -> Image:
    """Put what was read into the model's words."""
    header = content.header
    return Image(
        path=path,
        format="qcow2",
        allocated=allocated,
        virtual_size=header.virtual_size,
        backing=None if header.backing_file is None else resolve(header.backing_file, path),
        backing_format=header.backing_format,
        internal_snapshots=as_snapshots(content),
        has_bitmaps=header.has_bitmaps,
    )


def as_snapshots(content: Qcow2Content) -> tuple[InternalSnapshot, ...]:
    """Put the snapshot table into the model's words, in its order."""
    return tuple(
        InternalSnapshot(entry.id, entry.name, entry.vm_state_size, entry.created) for entry in content.snapshots
    )


def resolve(name: str, overlay: str) -> str:
    """Find what a name in an image means, as QEMU does: relative to the directory of the image that names it.

    URIs and `json:` stay as they are. So does `..`, for only the file system knows what is above a symbolic link.
    """
    if name.startswith("file:/"):
        name = name.removeprefix("file:")
    if has_protocol(name):
        return name
    joined = posixpath.join(posixpath.dirname(overlay), name)
    return joined if ".." in joined.split("/") else posixpath.normpath(joined)


def has_protocol(name: str) -> bool:
    """Whether QEMU would take a name for a protocol's (`nbd:...`, `json:...`) rather than a file's."""
    colon, slash = name.find(":"), name.find("/")
    return colon >= 0 and (slash < 0 or colon < slash)


def read_content(source: ReadAt) -> Qcow2Content:
    """Read header and snapshot table; if QEMU changed them meanwhile, again. Raises BadImageError or OSError."""
    for tries_left in reversed(range(_TRIES)):
        start = source.read_at(0, _START)
        try:
            header = read_header(source, start)
            snapshots = tuple(read_snapshots(source, header))
        except BadImageError:
            if not tries_left or _is_unchanged(source, start):
                raise
        else:
            if not snapshots or _is_unchanged(source, start):
                return Qcow2Content(header, snapshots)  # without a table, all came in one piece
    raise BadImageError("it changes faster than it can be read")


def _is_unchanged(source: ReadAt, start: bytes) -> bool:
    """Whether the fixed part of the header still is what it was; QEMU writes it in one piece."""
    return source.read_at(0, _SMALLEST_CLUSTER) == start[:_SMALLEST_CLUSTER]


def header_room(start: bytes) -> int:
    """How much of a file the header may take, of which `start` is the beginning: the first cluster. 0 if it is none."""
    bits = int.from_bytes(start[20:24], "big")
    return 1 << bits if 9 <= bits <= 21 else 0


def read_header(source: ReadAt, start: bytes | None = None) -> Qcow2Header:
    """Check and take apart the header; its beginning is `start` if that is at hand. Raises BadImageError or OSError."""
    if start is None:
        start = source.read_at(0, _START)
    if not start.startswith(MAGIC):
        raise BadImageError("it does not begin like a qcow2 image, although that is its recorded format")
    if len(start) < _HEADER_V2.size:
        raise BadImageError("it ends in the middle of its header")
    (
        _,
        version,
        backing_offset,
        backing_length,
        cluster_bits,
        virtual_size,
        encryption,
        l1_entries,
        l1_offset,
        refcount_table_offset,
        refcount_table_clusters,
        snapshot_count,
        snapshots_offset,
    ) = _HEADER_V2.unpack_from(start)
    if version not in (2, 3):
        raise BadImageError(f"it is a qcow2 image of version {version}, which is unknown")
    if not 9 <= cluster_bits <= 21:
        raise BadImageError(f"its header names clusters of 2^{cluster_bits} bytes")
    cluster = 1 << cluster_bits
    if cluster > len(start):
        start = source.read_at(0, cluster)
    incompatible, refcount_order, header_length, compression = (
        _read_version_3(start, cluster) if version == 3 else (0, 4, 72, 0)
    )
    extended_l2 = bool(incompatible & _INCOMPATIBLE_EXTENDED_L2)
    if extended_l2 and cluster_bits < 14:
        raise BadImageError("its header names subclusters in clusters that are too small for them")
    if encryption >= len(_ENCRYPTIONS):
        raise BadImageError(f"it is encrypted in an unknown way ({encryption})")
    refcount_table_size = refcount_table_clusters << cluster_bits
    _check_l1(l1_entries, virtual_size, cluster, 16 if extended_l2 else 8)
    _check_table(source, "L1 table", l1_offset, l1_entries * 8, cluster, _LARGEST_L1)
    _check_table(source, "refcount table", refcount_table_offset, refcount_table_size, cluster, _LARGEST_REFCOUNT_TABLE)
    if snapshot_count > _MOST_SNAPSHOTS:
        raise BadImageError(f"its header names {snapshot_count} snapshots")
    smallest_table = snapshot_count * _SNAPSHOT.size
    _check_table(source, "snapshot table", snapshots_offset, smallest_table, cluster, _LARGEST_SNAPSHOT_TABLE)
    extensions = _read_extensions(start, header_length, backing_offset or cluster, cluster)
    return Qcow2Header(
        version=version,
        cluster_bits=cluster_bits,
        virtual_size=virtual_size,
        l1_offset=l1_offset,
        l1_entries=l1_entries,
        refcount_table_offset=refcount_table_offset,
        refcount_table_size=refcount_table_size,
        refcount_bits=1 << refcount_order,
        snapshots_offset=snapshots_offset,
        snapshot_count=snapshot_count,
        backing_file=_backing_name(start, backing_offset, backing_length, cluster),
        backing_format=_text(extensions.get(_EXTENSION_BACKING_FORMAT, b"")) or None,
        data_file=_text(extensions.get(_EXTENSION_DATA_FILE, b"")) if incompatible & _INCOMPATIBLE_DATA_FILE else None,
        has_bitmaps=_EXTENSION_BITMAPS in extensions,
        bitmap_directory=_bitmap_directory(extensions.get(_EXTENSION_BITMAPS, b"")),
        luks_header=_luks_header(extensions.get(_EXTENSION_LUKS_HEADER, b"")),
        extended_l2=extended_l2,
        compression=_COMPRESSIONS[compression],
        encryption=_ENCRYPTIONS[encryption],
        is_dirty=bool(incompatible & _INCOMPATIBLE_DIRTY),
        is_corrupt=bool(incompatible & _INCOMPATIBLE_CORRUPT),
    )


def read_snapshots(source: ReadAt, header: Qcow2Header) -> list[SnapshotEntry]:
    """Read the table of internal snapshots, in its order. Raises BadImageError."""
    table = _Table(source, header.snapshots_offset)
    return [_read_snapshot(table, header.virtual_size) for _ in range(header.snapshot_count)]


class _Table:
    """The snapshot table, read on and on in pieces: only its entries tell how long it is."""

    def __init__(self, source: ReadAt, offset: int) -> None:
        self._source = source
        self._next_piece = offset
        self._piece = b""
        self._used = 0
        self._left = _LARGEST_SNAPSHOT_TABLE
        self._text_left = _MOST_TEXT

    def take_text(self, length: int) -> str:
        """Take a name."""
        text = _text(self.take(length))
        self._text_left -= sys.getsizeof(text)
        if self._text_left < 0:
            raise BadImageError("the names of its snapshots are longer than those of any real image")
        return text

    def skip_padding(self) -> None:
        """Go to where the next entry begins. After the last one the file may end without padding."""
        self.take(self._left % 8)  # the largest table is a multiple of 8, so that this is what is left to one

    def take(self, length: int) -> bytes:
        """Take the next bytes."""
        self._left -= length
        if self._left < 0:
            raise BadImageError("its snapshot table is larger than the format allows")
        missing = length - (len(self._piece) - self._used)
        if missing > 0:
            wanted = max(missing, _TABLE_PIECE)
            read = self._source.read_at(self._next_piece, wanted)
            if len(read) < missing:
                raise BadImageError("it ends in the middle of its snapshot table")
            self._next_piece += len(read)
            self._piece = self._piece[self._used :] + read
            self._used = 0
        taken = self._piece[self._used : self._used + length]
        self._used += length
        return taken


def _read_snapshot(table: _Table, virtual_size: int) -> SnapshotEntry:
    table.skip_padding()
    l1_offset, l1_entries, id_length, name_length, created, _, _, vm_state_size, extra_length = _SNAPSHOT.unpack(
        table.take(_SNAPSHOT.size)
    )
    if extra_length > _LARGEST_SNAPSHOT_EXTRA:
        raise BadImageError("an entry of its snapshot table is larger than the format allows")
    extra = table.take(extra_length)
    if len(extra) >= 8:
        vm_state_size = int.from_bytes(extra[:8], "big")
    disk_size = int.from_bytes(extra[8:16], "big") if len(extra) >= 16 else virtual_size
    entry_id = table.take_text(id_length)
    name = table.take_text(name_length)
    names = id_length + name_length
    return SnapshotEntry(
        id=entry_id,
        name=name,
        created=created,
        vm_state_size=vm_state_size,
        disk_size=disk_size,
        l1_offset=l1_offset,
        l1_entries=l1_entries,
        table_bytes=_padded(_SNAPSHOT.size + extra_length + names),
        rewritten_bytes=_padded(_SNAPSHOT.size + max(extra_length, _KNOWN_SNAPSHOT_EXTRA) + names),
    )


def _padded(length: int) -> int:
    return -(-length // 8) * 8


def _read_version_3(start: bytes, cluster: int) -> tuple[int, int, int, int]:
    """Incompatible features, refcount order, header length, and compression type, checked."""
    if len(start) < _HEADER_V2.size + _HEADER_V3.size:
        raise BadImageError("it ends in the middle of its header")
    incompatible, _, _, refcount_order, header_length = _HEADER_V3.unpack_from(start, _HEADER_V2.size)
    if incompatible & ~_INCOMPATIBLE_KNOWN:
        raise BadImageError("it uses features of qcow2 that are newer than this program")
    if refcount_order > 6:
        raise BadImageError(f"its header names reference counts of 2^{refcount_order} bits")
    if not _HEADER_V2.size + _HEADER_V3.size <= header_length <= cluster:
        raise BadImageError(f"its header says that it is {header_length} bytes long")
    compression = start[104] if header_length > 104 and len(start) > 104 else 0
    if compression >= len(_COMPRESSIONS):
        raise BadImageError(f"it is compressed in an unknown way ({compression})")
    return incompatible, refcount_order, header_length, compression


def _check_l1(entries: int, virtual_size: int, cluster: int, entry_size: int) -> None:
    """Check that the L1 table is long enough for the disk. One entry stands for one L2 table of a cluster."""
    span = cluster // entry_size * cluster
    if entries * span < virtual_size:
        raise BadImageError("its L1 table is too short for the size of its disk")


def _check_table(source: ReadAt, what: str, offset: int, length: int, cluster: int, largest: int) -> None:
    """Check that a table lies where a table may. Raises BadImageError."""
    if length == 0:
        return
    if length > largest:
        raise BadImageError(f"its {what} is larger than the format allows")
    if offset == 0 or offset % cluster or offset + length > _LARGEST_OFFSET:
        raise BadImageError(f"its {what} lies where none can be")
    if offset + length > source.size:
        raise BadImageError(f"its {what} lies beyond the end of the file")


def _read_extensions(start: bytes, offset: int, end: int, cluster: int) -> dict[int, bytes]:
    """Header extensions by type. They end with one of type 0, or where the backing file's name begins."""
    extensions: dict[int, bytes] = {}
    end = min(end, cluster, len(start))
    while offset + _EXTENSION.size <= end:
        kind, length = _EXTENSION.unpack_from(start, offset)
        offset += _EXTENSION.size
        if kind == _EXTENSION_END:
            break
        if length > end - offset:
            raise BadImageError("a header extension is longer than the header")
        if length > _LARGEST_NAME and kind in (_EXTENSION_BACKING_FORMAT, _EXTENSION_DATA_FILE):
            raise BadImageError("a name in its header is longer than the format allows")
        extensions[kind] = start[offset : offset + length]
        offset += -(-length // 8) * 8
    return extensions


def _bitmap_directory(extension: bytes) -> tuple[int, int]:
    if len(extension) < _BITMAPS.size:
        return 0, 0
    _, _, length, offset = _BITMAPS.unpack_from(extension)
    return offset, length


def _luks_header(extension: bytes) -> tuple[int, int]:
    if len(extension) < _LUKS_HEADER.size:
        return 0, 0
    offset, length = _LUKS_HEADER.unpack_from(extension)
    return offset, length


def _backing_name(start: bytes, offset: int, length: int, cluster: int) -> str | None:
    if offset == 0 or length == 0:
        return None
    if length > _LARGEST_NAME or offset + length > min(cluster, len(start)):
        raise BadImageError("the name of its backing file lies outside of its header")
    return _text(start[offset : offset + length]) or None


def _text(raw: bytes) -> str:
    """Decode a name so that it compares as QEMU compares it: up to a NUL, every byte, UTF-8 or not."""
    return raw.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
