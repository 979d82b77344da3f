"""The saved memory of snapshots, as documents and tables tell it."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console

from snaptree import words
from snaptree.model.saved_memory import SavedMemory, saved_memory
from snaptree.terminal.console import plain
from snaptree.terminal.reading import DomainReading
from snaptree.terminal.table import Column, Cut, add_row, print_table


def memories(reading: DomainReading) -> Iterator[tuple[str, SavedMemory]]:
    """The snapshots with memory, by name."""
    for snapshot in reading.tree:
        memory = saved_memory(snapshot, reading.costs.snapshots[snapshot.name].memory, reading.layers)
        if memory is not None:
            yield snapshot.name, memory


def memory_json(memory: SavedMemory) -> dict[str, Any]:
    """What a snapshot holds of the RAM, in bytes."""
    return {
        "file": memory.file,
        "nominal": memory.nominal,
        "disk": memory.on_disk.bytes,
        "confidence": memory.on_disk.confidence.value,
        "zeros": memory.zeros,
        "compression": memory.compression or None,
    }


def print_memories(out: Console, memories: Sequence[tuple[str, SavedMemory]]) -> None:
    """Print what each snapshot's memory takes, of how much, and where."""
    out.print(f"saved memory  ({words.count(len(memories), 'snapshot')})", style="bold")
    columns = (
        Column("Snapshot", turn=2, cut=Cut.MIDDLE, stays=True),
        Column("On disk", right=True),
        Column("Of RAM", right=True),
        Column("Compression"),
        Column("File", turn=1, cut=Cut.MIDDLE),
    )
    for name, memory in memories:
        add_row(
            columns,
            plain(name),
            words.figure(memory.on_disk),
            words.UNKNOWN if memory.nominal is None else words.size(memory.nominal),
            memory.compression or words.UNKNOWN,
            "inside the image" if memory.file is None else plain(posixpath.basename(memory.file)),
        )
    print_table(out, columns)
