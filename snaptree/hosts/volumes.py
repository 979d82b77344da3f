"""Images through libvirt's storage volumes: on another host, or here where the user may not read the file."""

from __future__ import annotations

import contextlib
import posixpath
import time
import xml.etree.ElementTree as ET
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from threading import Event, Lock
from typing import TYPE_CHECKING, Any, Final, TypeVar

import libvirt

from snaptree.hosts.connection import Connection
from snaptree.hosts.domain_xml import parse
from snaptree.images.qcow2 import read_qcow2
from snaptree.images.versions import Remembered, Version
from snaptree.model.errors import SnapTreeError
from snaptree.model.estate import Image
from snaptree.model.figures import Figure, exact, unknown

if TYPE_CHECKING:
    from snaptree.images.metadata_copy import Piece

_NO_POOL_HINT = "Put its directory into a storage pool (virsh pool-create-as NAME dir --target DIRECTORY)."
MOST_AT_ONCE: Final = 32
"""Reads that are under way: each is two round trips, which a far host makes long, and nearly no work for it."""

_BUSY_SECONDS: Final = 5.0
_BUSY_WAIT_SECONDS: Final = 0.05

_images: Remembered[Image] = Remembered(4096)
"""By URI and path: the beginning of one that is as it was need not come again."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class VolumeBytes:
    """Parts of a volume's content, as the readers of `images` want them. Each read is two round trips or more."""

    def __init__(self, connection: Connection, volume: Any, size: int, at_once: int = MOST_AT_ONCE) -> None:
        self._connection = connection
        self._volume = volume
        self._at_once = at_once
        self.size = size

    def read_at(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`; fewer at the end. Raises OSError if the host refuses."""
        length = min(length, self.size - offset)
        if length <= 0:
            return b""
        stream = self._connection.handle.newStream(0)
        try:
            self._volume.download(stream, offset, length, 0)
            parts = bytearray()
            while len(parts) < length:
                part = stream.recv(min(length - len(parts), 256 * 1024))
                if not part:
                    break
                parts += part
            stream.finish()
        except libvirt.libvirtError as error:
            with contextlib.suppress(libvirt.libvirtError):  # it may be broken already
                stream.abort()
            raise OSError(error.get_error_message()) from error
        return bytes(parts)

    def read_pieces(self, pieces: Iterable[Piece]) -> Iterator[bytes]:
        """What `read_at` gives for each, in order; several are under way at once. Raises OSError."""
        return side_by_side(lambda piece: self.read_at(*piece), pieces, self._at_once)


def side_by_side(work: Callable[[_Item], _Result], items: Iterable[_Item], at_once: int) -> Iterator[_Result]:
    """Do something for each item, for so many of them at once; gives what comes of it in order."""
    waiting: deque[Future[_Result]] = deque()
    pool = ThreadPoolExecutor(at_once, thread_name_prefix="snaptree-volume")
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > at_once:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


@dataclass(frozen=True, slots=True)
class FoundVolume:
    """A volume as its host describes it now."""

    volume: Any
    allocated: int
    capacity: int
    physical: int
    version: Version
    root: ET.Element

    @property
    def backing(self) -> str | None:
        """What it stands on, as far as the host looked: one level."""
        return self.root.findtext("backingStore/path")


def _found(volume: Any) -> FoundVolume:
    """Ask for a volume's description, which the host reads anew. Raises libvirtError, SnapTreeError, ValueError."""
    root = parse(volume.XMLDesc())
    allocated, capacity, physical = (int(root.findtext(name) or 0) for name in ("allocation", "capacity", "physical"))
    changed = root.findtext("target/timestamps/ctime") or ""
    modified = root.findtext("target/timestamps/mtime") or ""
    seconds, _, fraction = changed.partition(".")
    has_trace = bool(seconds) and root.get("type", "file") == "file"
    # The host's clock may be another than ours, if not by much.
    nanoseconds = int(seconds) * 10**9 + int(fraction.ljust(9, "0")) if has_trace else None
    version = Version.of((allocated, capacity, physical, changed, modified), nanoseconds)
    return FoundVolume(volume, allocated, capacity, physical, version, root)


class VolumeImages:
    """Reads images by their path on the host. Pools are refreshed once, when a new overlay is not found."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._refreshed = False
        self._not_refreshed: set[str] = set()
        self._lock = Lock()

    def read_image(self, path: str, recorded_format: str) -> Image:
        """What can be known of the image. Never raises for an image: `problem` says what is missing and why."""
        try:
            found = self.find(path)
        except libvirt.libvirtError as error:
            image = _unreadable(path, recorded_format, _why_no_volume(error))
            return replace(image, is_missing=True) if self._is_missing(path, error) else image
        except (SnapTreeError, ValueError) as error:
            return _unreadable(path, recorded_format, f"its storage volume cannot be understood: {error}")
        allocated = exact(found.allocated, "space allocated to the storage volume")
        if recorded_format != "qcow2":
            return Image(path, recorded_format, allocated, virtual_size=found.capacity)
        if self._connection.host.read_only:
            # The volume's own description names one level below; the content can't be had.
            return Image(
                path,
                recorded_format,
                allocated,
                backing=found.backing,
                backing_format=_format(found.root.find("backingStore")),
                problem="a read-only connection may not read the image's content",
            )
        return _images.get((self._connection.uri, path), found.version) or self._read(path, found, allocated)

    def _read(self, path: str, found: FoundVolume, allocated: Figure) -> Image:
        image = read_qcow2(path, VolumeBytes(self._connection, found.volume, found.physical), allocated)
        if not image.problem:
            _images.keep((self._connection.uri, path), image, found.version)
        return image

    def _is_missing(self, path: str, error: libvirt.libvirtError) -> bool:
        """Whether there is certainly no such file: its directory is a pool, just refreshed, that has no such volume."""
        if error.get_error_code() != libvirt.VIR_ERR_NO_STORAGE_VOL or self._connection.host.read_only:
            return False
        try:
            pool = self._connection.handle.storagePoolLookupByTargetPath(posixpath.dirname(path))
            return bool(pool.isActive()) and pool.UUIDString() not in self._not_refreshed
        except libvirt.libvirtError:
            return False

    def find(self, path: str) -> FoundVolume:
        """Find the volume of a path. Raises libvirtError, SnapTreeError, ValueError."""
        return _found(self._lookup(path))

    def format_of(self, path: str) -> str:
        """The format that the host found when it last refreshed the pool; `raw` if it knows no such volume."""
        try:
            return _format(parse(self._lookup(path).XMLDesc()).find("target")) or "raw"
        except (libvirt.libvirtError, SnapTreeError):
            return "raw"

    def _lookup(self, path: str) -> Any:
        """Find the volume; an overlay made since its pool was last refreshed is found after a refresh."""
        try:
            return self._connection.handle.storageVolLookupByPath(path)
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_STORAGE_VOL or self._connection.host.read_only:
                raise
        with self._lock:
            self._refresh()
        return self._connection.handle.storageVolLookupByPath(path)

    def _refresh(self) -> None:
        if self._refreshed:
            return
        self._refreshed = True
        for pool in self._connection.handle.listAllStoragePools(libvirt.VIR_CONNECT_LIST_STORAGE_POOLS_ACTIVE):
            try:
                refresh_pool(pool)
            except libvirt.libvirtError:  # one broken pool must not hide the others
                self._not_refreshed.add(pool.UUIDString())


def refresh_pool(pool: Any) -> None:
    """Let the host look what is in a pool by now. Raises libvirtError.

    It refuses to while it does anything else with the pool, such as closing the stream of a volume that was read.
    """
    give_up = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            pool.refresh()
        except libvirt.libvirtError as error:
            # "pool '...' has asynchronous jobs running" has no code of its own
            if error.get_error_code() != libvirt.VIR_ERR_INTERNAL_ERROR or time.monotonic() > give_up:
                raise
            Event().wait(_BUSY_WAIT_SECONDS)
        else:
            return


def _format(element: ET.Element | None) -> str:
    found = None if element is None else element.find("format")
    return "" if found is None else found.get("type", "")


def _unreadable(path: str, recorded_format: str, why: str) -> Image:
    return Image(path, recorded_format, unknown(why), problem=why)


def _why_no_volume(error: libvirt.libvirtError) -> str:
    if error.get_error_code() == libvirt.VIR_ERR_NO_STORAGE_VOL:
        return f"it is in no storage pool of the host. {_NO_POOL_HINT}"
    if error.get_error_code() == libvirt.VIR_ERR_NO_SUPPORT:
        return "this connection has no storage pools to read it through"
    return str(error.get_error_message())
