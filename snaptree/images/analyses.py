"""What the clusters of images tell, remembered for as long as the images don't change: here, and on other hosts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from snaptree.images.read_at import BadImageError, ReadAt
from snaptree.images.versions import Remembered, Version

if TYPE_CHECKING:
    from snaptree.images.copy_map import CopyMap
    from snaptree.images.extents import Taken
    from snaptree.images.layer_windows import Layer
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
        from snaptree.images.overlaps import read_overlaps  # numpy is loaded when it is needed

        paths = sorted(below)
        key = place.name, *paths
        if key in self._overlaps and (known := self._overlaps.get(key, *place.versions(paths))) is not None:
            return known
        with place.open_images({path: formats[path] for path in paths}, cancelled) as opened:
            overlaps = read_overlaps(_layers_of(opened, formats), below, cancelled=cancelled)
        if overlaps.anomalies:
            raise BadImageError("its tables point to nowhere: it is broken, or written to at this moment")
        self._overlaps.keep(key, overlaps, *(opened[path].version for path in paths))
        return overlaps

    def copy_map(
        self, place: Place, formats: Mapping[str, str], into: str | None, cancelled: Callable[[], bool]
    ) -> CopyMap:
        """Where lies what merging layers copies, of which `into` covers the others, if it is one of them.

        It is for once, and not remembered. Raises as `sharing`, but for what is being changed.
        """
        from snaptree.images.copy_map import read_copy_map  # numpy is loaded when it is needed

        with place.open_images(formats, cancelled) as opened:
            layers = _layers_of(opened, formats)
            covered_by = None if into is None else layers.pop(into)
            return read_copy_map([*layers.values()], covered_by, cancelled=cancelled)


def _layers_of(opened: Mapping[str, OpenImage], formats: Mapping[str, str]) -> dict[str, Layer]:
    """Make layers of images that are open, in the order of `formats`. Raises BadImageError or OSError."""
    from snaptree.images.layer_windows import Layer

    return {
        path: Layer.of_raw(image.source, image.taken, image.written, image.shown, image.allocated)
        if formats[path] == "raw"
        else Layer.of_qcow2(image.source, image.allocated)
        for path, image in ((path, opened[path]) for path in formats)
    }
