"""What the clusters of images tell, remembered for as long as the images don't change: here, and on other hosts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from snaptree.images.read_at import BadImageError, ReadAt
from snaptree.images.versions import Remembered, Version

if TYPE_CHECKING:
    from snaptree.images.extents import Taken
    from snaptree.images.overlaps import Overlaps
    from snaptree.images.sharing import Sharing

_MOST_ANALYSED: Final = 512


@dataclass(frozen=True, slots=True)
class OpenImage:
    """An image that is open for reading."""

    source: ReadAt
    version: Version
    """As it was when it was opened."""
    allocated: int | None
    """Bytes that it takes on its host."""
    taken: Taken | None = None
    """What parts of it take there; None where nobody can tell."""
    written: Taken | None = None
    """What was certainly written in parts of it; None where nobody can tell."""
    shown: Taken | None = None
    """What may have been, as a reader of holes sees it; None where nobody can tell."""


class Place(Protocol):
    """Where images are: on this computer, or on another host."""

    name: str
    """Tells paths of one place from the same ones of another."""

    def versions(self, paths: Sequence[str]) -> tuple[Version, ...]:
        """Look at images. Raises OSError or BadImageError."""

    def open_images(
        self, formats: Mapping[str, str], cancelled: Callable[[], bool]
    ) -> AbstractContextManager[Mapping[str, OpenImage]]:
        """Open images, given with their formats. Raises OSError, BadImageError or CancelledError."""


class Analyses:
    """Analyses images, and remembers what was found in those that did not change. Any thread may use it."""

    def __init__(self) -> None:
        self._sharing: Remembered[Sharing] = Remembered(_MOST_ANALYSED)
        self._overlaps: Remembered[Overlaps] = Remembered(_MOST_ANALYSED)

    def sharing(self, place: Place, path: str, cancelled: Callable[[], bool]) -> Sharing:
        """Who holds the clusters of a qcow2 image.

        Raises OSError, BadImageError also if it is being changed, CancelledError soon after `cancelled` turns true.
        """
        from snaptree.images.qcow2 import read_content  # numpy is loaded when it is needed
        from snaptree.images.sharing import read_sharing

        key = place.name, path
        if key in self._sharing and (known := self._sharing.get(key, *place.versions([path]))) is not None:
            return known
        with place.open_images({path: "qcow2"}, cancelled) as opened:
            image = opened[path]
            sharing = read_sharing(
                image.source,
                read_content(image.source),
                taken=image.taken,
                allocated=image.allocated,
                cancelled=cancelled,
            )
        if sharing.pointers_to_nowhere:
            raise BadImageError("its tables point to nowhere: it is broken, or written to at this moment")
        self._sharing.keep(key, sharing, image.version)
        return sharing

    def overlaps(
        self, place: Place, below: Mapping[str, str | None], formats: Mapping[str, str], cancelled: Callable[[], bool]
    ) -> Overlaps:
        """What images that stand on each other hold, each given with what it stands on. Raises as `sharing`."""
        from snaptree.images.layer_windows import Layer  # numpy is loaded when it is needed
        from snaptree.images.overlaps import read_overlaps

        paths = sorted(below)
        key = place.name, *paths
        if key in self._overlaps and (known := self._overlaps.get(key, *place.versions(paths))) is not None:
            return known
        with place.open_images({path: formats[path] for path in paths}, cancelled) as opened:
            layers = {
                path: Layer.of_raw(image.source, image.taken, image.written, image.shown, image.allocated)
                if formats[path] == "raw"
                else Layer.of_qcow2(image.source, image.allocated)
                for path, image in opened.items()
            }
            overlaps = read_overlaps(layers, below, cancelled=cancelled)
        if overlaps.anomalies:
            raise BadImageError("its tables point to nowhere: it is broken, or written to at this moment")
        self._overlaps.keep(key, overlaps, *(opened[path].version for path in paths))
        return overlaps
