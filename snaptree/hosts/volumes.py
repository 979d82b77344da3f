"""Images through libvirt's storage volumes: on another host, or here where the user may not read the file."""

from __future__ import annotations

import contextlib
import xml.etree.ElementTree as ET
from typing import Any

import libvirt

from snaptree.hosts.connection import Connection
from snaptree.hosts.domain_xml import parse
from snaptree.images.qcow2 import read_qcow2
from snaptree.model.errors import SnapTreeError
from snaptree.model.estate import Image
from snaptree.model.figures import exact, unknown

_NO_POOL_HINT = "Put its directory into a storage pool (virsh pool-create-as NAME dir --target DIRECTORY)."


class VolumeBytes:
    """Parts of a volume's content, as the readers of `images` want them. Each read is two round trips or more."""

    def __init__(self, connection: Connection, volume: Any, size: int) -> None:
        self._connection = connection
        self._volume = volume
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


class VolumeImages:
    """Reads images by their path on the host. Pools are refreshed once, when a new overlay is not found."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._refreshed = connection.host.read_only  # a read-only connection must not refresh

    def read_image(self, path: str, recorded_format: str) -> Image:
        """What can be known of the image. Never raises for an image: `problem` says what is missing and why."""
        try:
            volume = self._lookup(path)
            root = parse(volume.XMLDesc())
            allocated = exact(int(root.findtext("allocation") or 0), "space allocated to the storage volume")
        except libvirt.libvirtError as error:
            return _unreadable(path, recorded_format, _why_no_volume(error))
        except (SnapTreeError, ValueError) as error:
            return _unreadable(path, recorded_format, f"its storage volume cannot be understood: {error}")
        if recorded_format != "qcow2":
            return Image(path, recorded_format, allocated, virtual_size=int(root.findtext("capacity") or 0))
        if self._connection.host.read_only:
            # The volume's own description names one level below; the content can't be had.
            return Image(
                path,
                recorded_format,
                allocated,
                backing=root.findtext("backingStore/path"),
                backing_format=_format(root.find("backingStore")),
                problem="a read-only connection may not read the image's content",
            )
        size = int(root.findtext("physical") or 0)
        return read_qcow2(path, VolumeBytes(self._connection, volume, size), allocated)

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
            if error.get_error_code() != libvirt.VIR_ERR_NO_STORAGE_VOL or self._refreshed:
                raise
        self._refreshed = True
        for pool in self._connection.handle.listAllStoragePools(libvirt.VIR_CONNECT_LIST_STORAGE_POOLS_ACTIVE):
            try:
                pool.refresh()
            except libvirt.libvirtError:
                continue  # one broken pool must not hide the others
        return self._connection.handle.storageVolLookupByPath(path)


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
