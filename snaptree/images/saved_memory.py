"""Files of saved memory, as libvirt writes them for external snapshots and `virsh save`."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from snaptree.images.files import allocated_by, look_at, open_local, why_not_read
from snaptree.images.read_at import BadImageError, ReadAt
from snaptree.model.figures import Figure, exact, unknown

_COMPLETE: Final = b"LibvirtQemudSave"
_PARTIAL: Final = b"LibvirtQemudPart"
_SIZE: Final = 92
_LATEST_VERSION: Final = 2
_LARGEST_XML: Final = 64 << 20
_COMPRESSIONS: Final = ("raw", "gzip", "bzip2", "xz", "lzop", "zstd", "sparse")


@dataclass(frozen=True, slots=True)
class MemoryHeader:
    """The beginning of a file of saved memory. `data_length` is bytes of XML; the memory follows them."""

    is_complete: bool
    """Whether the save ran to its end."""
    data_length: int
    was_running: bool
    compression: str
    """libvirt's name; a number where it is newer than this program."""


def read_memory_file(path: str | Path) -> Figure:
    """Bytes that saved memory takes on disk: allocated ones, for such files may be sparse. Never raises.

    Unknown if the file is missing or is no saved memory. Who may not read it is told its bytes all the same.
    """
    path = str(path)
    try:
        allocated = allocated_by(look_at(path))
        is_complete = _is_complete(path)
    except FileNotFoundError:
        return unknown(f"no such file: {path}")
    except (OSError, BadImageError) as error:
        return unknown(f"{path}: {why_not_read(error)}")
    if is_complete or allocated.bytes is None:
        return allocated
    return exact(allocated.bytes, "of a save that did not finish: it cannot be reverted to")


def read_compression(path: str | Path) -> str:
    """How saved memory is written, by libvirt's name; empty if that can't be found out. Never raises."""
    try:
        with open_local(str(path)) as file:
            return read_memory_header(file).compression
    except (OSError, BadImageError):
        return ""


def _is_complete(path: str) -> bool:
    """Whether the save ran to its end, as far as this user may know."""
    try:
        with open_local(path) as file:
            return read_memory_header(file).is_complete
    except PermissionError:
        return True


def read_memory_header(source: ReadAt) -> MemoryHeader:
    """Check and take apart the header. It has the byte order of the host that wrote it. Raises BadImageError."""
    raw = source.read_at(0, _SIZE)
    magic = raw[:16]
    if magic not in (_COMPLETE, _PARTIAL):
        raise BadImageError("it does not begin like saved memory")
    if len(raw) < _SIZE:
        raise BadImageError("it ends in the middle of its header")
    version, data_length, was_running, compression = struct.unpack_from("<4I", raw, 16)
    if version > _LATEST_VERSION:
        version, data_length, was_running, compression = struct.unpack_from(">4I", raw, 16)
    if version > _LATEST_VERSION:
        raise BadImageError(f"its header is of version {version}, which is unknown")
    if data_length > _LARGEST_XML or _SIZE + data_length > source.size:
        raise BadImageError("its description of the machine is longer than it may be")
    return MemoryHeader(
        is_complete=magic == _COMPLETE,
        data_length=data_length,
        was_running=bool(was_running),
        compression=_COMPRESSIONS[compression] if compression < len(_COMPRESSIONS) else str(compression),
    )
