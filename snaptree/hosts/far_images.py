"""Images that are analysed through libvirt: what their analysis reads is fetched first, and kept while it is true."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import libvirt

from snaptree.hosts.connection import Connection
from snaptree.hosts.volumes import MOST_AT_ONCE, FoundVolume, VolumeBytes, VolumeImages, side_by_side
from snaptree.images.analyses import OpenImage
from snaptree.images.versions import Remembered, Version
from snaptree.model.errors import SnapTreeError

if TYPE_CHECKING:
    from snaptree.images.metadata_copy import MetadataCopy

_MOST_COPIED: Final = 512 << 20
"""Bytes of temporary files."""
_IMAGES_AT_ONCE: Final = 8

_copies: Remembered[MetadataCopy] = Remembered(_MOST_COPIED, lambda copy: copy.bytes)
"""By URI and path: the frozen layers of a machine that runs stay as they are."""


class FarImages:
    """Images of one connection's host, as `Analyses` wants them."""

    def __init__(self, connection: Connection, volumes: VolumeImages) -> None:
        self.name = connection.uri
        self._connection = connection
        self._volumes = volumes

    def versions(self, paths: Sequence[str]) -> tuple[Version, ...]:
        """Look at images. Raises OSError."""
        return tuple(found.version for found in side_by_side(self._look, paths, _IMAGES_AT_ONCE))

    @contextmanager
    def open_images(
        self, formats: Mapping[str, str], cancelled: Callable[[], bool]
    ) -> Iterator[Mapping[str, OpenImage]]:
        """Fetch what is needed of images. Raises OSError, BadImageError, CancelledError."""
        from snaptree.images.metadata_copy import copy_metadata  # numpy is loaded when it is needed

        images_at_once = min(len(formats), _IMAGES_AT_ONCE)

        def opened(path: str) -> OpenImage:
            found = self._look(path)
            source = VolumeBytes(self._connection, found.volume, found.physical, MOST_AT_ONCE // images_at_once)
            if formats[path] == "raw":
                return OpenImage(source, found.version, found.allocated)
            copy = _copies.get((self.name, path), found.version)
            if copy is None:
                copy = copy_metadata(source, found.allocated, cancelled)
                _copies.keep((self.name, path), copy, found.version)
            return OpenImage(copy, found.version, found.allocated)

        yield dict(zip(formats, side_by_side(opened, formats, images_at_once), strict=True))

    def _look(self, path: str) -> FoundVolume:
        try:
            return self._volumes.find(path)
        except libvirt.libvirtError as error:
            raise OSError(error.get_error_message()) from error
        except (SnapTreeError, ValueError) as error:
            raise OSError(f"its storage volume cannot be understood: {error}") from error
