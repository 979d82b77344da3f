"""How fast a machine's disks grow, from what was written between its snapshots."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from snaptree.model.costs import DomainCosts
from snaptree.model.tree import SnapshotTree

DAY: Final = 86_400
"""Seconds."""
_LOOKS_BACK: Final = 30 * DAY
"""What was written longer ago says little of what will be."""
_LEAST: Final = 3_600
"""Seconds that have to be known of: a burst is no habit."""


@dataclass(frozen=True, slots=True)
class Growth:
    """What was written to all disks, in bytes, in so many seconds of the last 30 days. Saved memory is left out."""

    bytes: int
    seconds: int

    @property
    def bytes_per_day(self) -> int:
        """So much was written each day."""
        return self.bytes * DAY // self.seconds


def growth_of(tree: SnapshotTree, costs: DomainCosts, now: int) -> Growth | None:
    """Look from *Now* back along the line of snapshots that it descends from. `now` is in seconds since 1970, UTC.

    A time of which nobody knows what was written is left out, and so is all before the first snapshot: that was not
    written in that time. None if less than an hour is left.
    """
    known = [(seconds, written) for seconds, written in _times(tree, costs, now) if written is not None]
    seconds = sum(seconds for seconds, _ in known)
    return Growth(sum(written for _, written in known), seconds) if seconds >= _LEAST else None


def _times(tree: SnapshotTree, costs: DomainCosts, now: int) -> Iterator[tuple[int, int | None]]:
    """Times between two points, the last one first: seconds, and bytes that were written in them."""
    until, written, name = now, costs.now.bytes, tree.current
    while name is not None and until > now - _LOOKS_BACK:
        since = tree[name].created
        yield max(0, until - since), written
        until, written, name = since, costs.snapshots[name].written.bytes, tree.parents[name]
