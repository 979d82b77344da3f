"""One machine as the window knows it: everything read so far, and what is worth saying about it at a glance."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from snaptree.model.estate import Consistency, SnapshotKind
from snaptree.model.figures import Figure, unknown
from snaptree.plans.wording import plain, quoted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from snaptree.jobs.host_backend import CostReading, HostStatus, TreeReading
    from snaptree.model.errors import SnapTreeError
    from snaptree.model.estate import Domain, Snapshot
    from snaptree.model.tree import SnapshotTree

DEEP_CHAIN = 30
"""Layers from which on a chain is worth a warning: each one slows the guest's reads, and libvirt ends at 200."""

_SAMPLE = 500

_NOT_READ = unknown("not read yet")


class MachineId(NamedTuple):
    """A machine in an estate of many hosts, where the same UUID may be on two."""

    uri: str
    uuid: str


class Severity(IntEnum):
    """How bad a trouble is."""

    WARNING = 1
    ERROR = 2


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something that an administrator should know about a machine."""

    severity: Severity
    text: str


@dataclass(frozen=True)
class Machine:
    """One machine: its entry in the list, and its tree and costs as far as they have been read."""

    id: MachineId
    host: HostStatus
    domain: Domain
    reading: TreeReading | None = None
    costs: CostReading | None = None
    error: SnapTreeError | None = None
    """Why reading its snapshots failed; what was read before stays."""

    @property
    def tree(self) -> SnapshotTree | None:
        """The snapshots, perhaps not all of them yet."""
        return None if self.reading is None else self.reading.tree

    @property
    def snapshot_count(self) -> int | None:
        """How many snapshots it has, None if nobody knows yet."""
        return self.domain.snapshot_count if self.tree is None else len(self.tree)

    @cached_property
    def disk(self) -> Figure:
        """Bytes of all its images."""
        return _NOT_READ if self.costs is None else self.costs.costs.disk

    @cached_property
    def memory(self) -> Figure:
        """Bytes of the memory that its snapshots saved."""
        return _NOT_READ if self.costs is None else self.costs.costs.memory

    @cached_property
    def oldest(self) -> int | None:
        """When its oldest snapshot was taken, in seconds since 1970."""
        return min((snapshot.created for snapshot in self.tree), default=None) if self.tree is not None else None

    @cached_property
    def depth(self) -> int | None:
        """Snapshots in its longest line of descent."""
        return None if self.tree is None else self.tree.depth

    @cached_property
    def usual_kind(self) -> SnapshotKind | None:
        """The kind that most of its snapshots have: said once, so that only the others need a badge."""
        counts = Counter(snapshot.kind for snapshot in self._sample)
        return counts.most_common(1)[0][0] if counts else None

    @cached_property
    def usual_consistency(self) -> Consistency | None:
        """What most of its snapshots give a reverted guest."""
        counts = Counter(snapshot.consistency for snapshot in self._sample)
        return counts.most_common(1)[0][0] if counts else None

    @property
    def _sample(self) -> Iterator[Snapshot]:
        """Snapshots from all over the tree: some hundred say what is usual as well as thousands."""
        return islice(self.tree or (), 0, None, 1 + (self.snapshot_count or 0) // _SAMPLE)

    @cached_property
    def troubles(self) -> tuple[Trouble, ...]:
        """What is wrong with it, the worst first."""
        return tuple(sorted(self._troubles(), key=lambda trouble: -trouble.severity))

    @property
    def worst(self) -> Trouble | None:
        """The first thing to look at."""
        return self.troubles[0] if self.troubles else None

    def _troubles(self) -> Iterator[Trouble]:
        if self.error is not None:
            yield Trouble(Severity.ERROR, self.error.summary)
        if self.costs is not None:
            for chain in self.costs.layers.chains:
                if chain.problem:
                    yield Trouble(Severity.ERROR, f"Disk {plain(chain.target)}: {plain(chain.problem)}")
                if len(chain.layers) >= DEEP_CHAIN:
                    yield Trouble(
                        Severity.WARNING,
                        f"Disk {plain(chain.target)} stands on a chain of {len(chain.layers)} layers: slow reads.",
                    )
            # Overlays may be missing: libvirt unlinks the last one of a branch when it leaves it. Content may not.
            images = self.costs.layers.images
            for path in sorted({disk.frozen for snapshot in self.tree or () for disk in snapshot.disks if disk.frozen}):
                if path in images and images[path].is_missing:
                    yield Trouble(Severity.ERROR, f"The image {plain(path)} is missing, and with it what it held.")
        if self.tree is not None:
            yield from _troubles_of(self.tree, is_complete=self.reading is not None and self.reading.complete)


def _troubles_of(tree: SnapshotTree, *, is_complete: bool) -> Iterator[Trouble]:
    for snapshot in tree:
        if snapshot.problem:
            yield Trouble(Severity.WARNING, f"Snapshot {quoted(snapshot.name)}: {plain(snapshot.problem)}")
        if snapshot.delete_in_progress:
            yield Trouble(Severity.WARNING, f"A delete below snapshot {quoted(snapshot.name)} was interrupted.")
    if is_complete and len(tree) and tree.current is None:
        yield Trouble(Severity.WARNING, "libvirt knows of no current snapshot: what runs now descends from none.")
