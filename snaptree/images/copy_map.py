"""Where on a disk lies what a job of QEMU's copies.

A pull, and a commit below the layer in use, go over the whole disk from its beginning to its end. QEMU tells how far
they are on the disk; what no layer says anything of takes no time and is held to no limit. So the place says how many
bytes were copied, once it is known where they lie (QEMU's block/commit.c and block/stream.c, 7.2 to 11.1).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

import numpy as np
from numpy.typing import NDArray

from snaptree.images.layer_windows import (
    LARGEST_CLUSTER,
    TRANSPARENT,
    Layer,
    LayerReader,
    Window,
    common_unit,
    readers_of,
    touched_windows,
)
from snaptree.images.read_at import BadImageError
from snaptree.model.errors import CancelledError

_MOST_STRETCHES: Final = 1 << 14
"""Into so many the disk is cut: by single clusters up to 1 GiB, by 64 MiB at 1 TiB."""
_MOST_UNITS: Final = 1 << 31
"""Units times layers that are looked at: some seconds."""


@dataclass(frozen=True, slots=True)
class CopyMap:
    """How many bytes a job has copied once it has come to a place on the disk."""

    size: int
    """Bytes of the disk."""
    stretch: int
    """Bytes of the disk between two entries of `before`."""
    before: tuple[int, ...]
    """What is copied of all before each stretch; the last is all of it."""

    @property
    def total(self) -> int:
        """All that is copied."""
        return self.before[-1]

    def copied(self, place: int) -> int:
        """What is copied of all before a place. Within a stretch, it counts as spread evenly."""
        if place >= self.size:
            return self.total
        index, rest = divmod(max(place, 0), self.stretch)
        return self.before[index] + (self.before[index + 1] - self.before[index]) * rest // self.stretch


def read_copy_map(
    sources: Sequence[Layer], covered_by: Layer | None = None, *, cancelled: Callable[[], bool] = lambda: False
) -> CopyMap:
    """Find out where the sources hold anything, be it data or zeros; what `covered_by` holds is left out.

    For a commit the sources are what goes, for a pull what is below the layer that is pulled into: that covers them.
    The first of all these is as large as the disk. Raises BadImageError, OSError, and CancelledError soon after
    `cancelled` turns true.
    """
    readers = readers_of([*sources, *([] if covered_by is None else [covered_by])], cancelled)
    size = readers[0 if covered_by is None else -1].size
    unit = common_unit(readers)
    stretch = unit
    while -(-size // stretch) > _MOST_STRETCHES:
        stretch *= 2
    counts = np.zeros(max(1, -(-size // stretch)), np.int64)
    looks = 0
    for window in touched_windows(readers, unit, LARGEST_CLUSTER, 2):
        looks += window.units * len(readers)
        if looks > _MOST_UNITS:
            raise BadImageError("its disk is too large, and cut too finely, to be looked at")
        if cancelled():
            raise CancelledError("Looking at the layers was cancelled.")
        copied = _copied_in(window, readers[: len(sources)], readers[len(sources) :])
        copied[window.units_before(size) :] = False
        places = (np.flatnonzero(copied) + window.start // unit) // (stretch // unit)
        counts += np.bincount(places, minlength=len(counts))
    return CopyMap(size, stretch, tuple(accumulate((counts * unit).tolist(), initial=0)))


def _copied_in(window: Window, sources: Sequence[LayerReader], covers: Sequence[LayerReader]) -> NDArray[np.bool_]:
    copied = np.zeros(window.units, np.bool_)
    for reader in sources:
        if (kinds := reader.load(window)) is not None:
            copied |= kinds != TRANSPARENT
    for reader in covers:
        if (kinds := reader.load(window)) is not None:
            copied &= kinds == TRANSPARENT
    return copied
