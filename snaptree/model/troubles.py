"""What is wrong with a machine, in a sentence each: layers that are missing or can't be read, chains too deep."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

from snaptree.model.text import plain, quoted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from snaptree.model.estate import DomainLayers
    from snaptree.model.tree import SnapshotTree

DEEP_CHAIN = 30
"""Layers from which on a chain is worth a warning: each one slows the guest's reads, and libvirt ends at 200."""


class Severity(IntEnum):
    """How bad a trouble is."""

    WARNING = 1
    ERROR = 2

    @property
    def word(self) -> str:
        """As it stands on the terminal and in JSON: `warning` or `error`."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something that an administrator should know about a machine."""

    severity: Severity
    text: str


def worst_first(troubles: Iterable[Trouble]) -> tuple[Trouble, ...]:
    """Troubles in the order in which to look at them."""
    return tuple(sorted(troubles, key=lambda trouble: -trouble.severity))


def troubles_of_layers(tree: SnapshotTree | None, layers: DomainLayers) -> Iterator[Trouble]:
    """What is wrong with the chains that a machine stands on, and with the layers that its snapshots name."""
    for chain in layers.chains:
        if chain.problem:
            yield Trouble(Severity.ERROR, f"Disk {plain(chain.target)}: {plain(chain.problem)}")
        if len(chain.layers) >= DEEP_CHAIN:
            yield Trouble(
                Severity.WARNING,
                f"Disk {plain(chain.target)} stands on a chain of {len(chain.layers)} layers: slow reads.",
            )
    # Overlays may be missing: libvirt unlinks the last one of a branch when it leaves it. Content may not.
    frozen = {disk.frozen for snapshot in tree or () for disk in snapshot.disks}
    in_use = {path for chain in layers.chains for path in chain.layers}
    bases = {image.backing for image in layers.images.values()} - in_use
    unread: dict[str, list[str]] = {}
    for path, image in sorted(layers.images.items()):
        if image.is_missing:
            is_said = any(path in chain.layers and path in chain.problem for chain in layers.chains)
            if (path in frozen or path in bases) and not is_said:
                yield Trouble(Severity.ERROR, f"The image {plain(path)} is missing, and with it what it held.")
        elif image.problem and path not in in_use:  # what is in use says so itself
            unread.setdefault(image.problem, []).append(path)
    for problem, paths in unread.items():
        more = f" So it is with {len(paths) - 1} more." if len(paths) > 1 else ""
        yield Trouble(
            Severity.WARNING, f"The image {plain(paths[0])} can't be read: {plain(problem).rstrip('.')}.{more}"
        )


def troubles_of_tree(tree: SnapshotTree, *, is_complete: bool) -> Iterator[Trouble]:
    """What is wrong with the snapshots themselves, as libvirt lists them."""
    for snapshot in tree:
        if snapshot.problem:
            yield Trouble(Severity.WARNING, f"Snapshot {quoted(snapshot.name)}: {plain(snapshot.problem)}")
        if snapshot.delete_in_progress:
            yield Trouble(Severity.WARNING, f"A delete below snapshot {quoted(snapshot.name)} was interrupted.")
    if is_complete and len(tree) and tree.current is None:
        yield Trouble(Severity.WARNING, "libvirt knows of no current snapshot: what runs now descends from none.")
