"""What a snapshot's saved memory is: how much the guest had, what of it lies on disk, and how."""

from __future__ import annotations

from dataclasses import dataclass

from snaptree.model.estate import DomainLayers, MemorySnapshot, Snapshot
from snaptree.model.figures import Figure

UNCOMPRESSED = ("raw", "sparse")
"""libvirt's names for memory that is written as it is."""


@dataclass(frozen=True, slots=True)
class SavedMemory:
    """The RAM that a snapshot holds. Bytes; None or empty where that is not known."""

    file: str | None
    """None if it lies inside an image."""
    nominal: int | None
    """RAM of the guest."""
    on_disk: Figure
    compression: str
    """libvirt's name for how the file is written."""

    @property
    def zeros(self) -> int | None:
        """How much of the RAM was zeros, at least: QEMU writes a few bytes for such a page, and all of any other.

        None where it is compressed, because then any content may take little.
        """
        if self.compression not in UNCOMPRESSED or self.nominal is None or self.on_disk.bytes is None:
            return None
        return max(0, self.nominal - self.on_disk.bytes)


def saved_memory(snapshot: Snapshot, on_disk: Figure, layers: DomainLayers) -> SavedMemory | None:
    """What is known of a snapshot's memory, of which the costs say what it takes; None if it holds none."""
    match snapshot.memory:
        case MemorySnapshot.NO:
            return None
        case MemorySnapshot.INTERNAL:
            return SavedMemory(None, snapshot.nominal_memory, on_disk, "raw")
        case MemorySnapshot.EXTERNAL:
            compression = layers.memory_compressions.get(snapshot.memory_file or "", "")
            return SavedMemory(snapshot.memory_file, snapshot.nominal_memory, on_disk, compression)
