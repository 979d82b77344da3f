"""The snapshots of one domain as a tree: who descends from whom, in the order people read them."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from functools import cached_property, lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING

from natsort import natsort_keygen

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from snaptree.model.estate import Snapshot

_natural = lru_cache(maxsize=1 << 16)(natsort_keygen())
"""The same names are put in order again whenever a machine is read, and after each step of a plan."""


@dataclass(frozen=True)
class SnapshotTree:
    """Snapshots by name, parents before children, siblings and strangers by age and then natural name.

    A parent that is not listed makes its child a root; relations that run in a circle are cut at their
    oldest member. Both happen after files vanished from the daemon's directory, and must not hide anything.
    """

    snapshots: Mapping[str, Snapshot]
    """Every snapshot by name; iteration gives the reading order."""
    parents: Mapping[str, str | None]
    """The parent of each as the tree has it: None for roots."""
    current: str | None
    """The snapshot that the running state descends from; None if libvirt knows of none."""

    @classmethod
    def build(cls, snapshots: Iterable[Snapshot], current: str | None) -> SnapshotTree:
        """Order snapshots into a tree. A `current` that is not among them counts as none."""
        by_name = {snapshot.name: snapshot for snapshot in snapshots}
        parents = _cut_circles(
            {name: snapshot.parent if snapshot.parent in by_name else None for name, snapshot in by_name.items()},
            by_name,
        )
        order = _reading_order(by_name, parents)
        return cls(
            MappingProxyType({name: by_name[name] for name in order}),
            MappingProxyType({name: parents[name] for name in order}),
            current if current in by_name else None,
        )

    def __len__(self) -> int:
        return len(self.snapshots)

    def __contains__(self, name: object) -> bool:
        return name in self.snapshots

    def __iter__(self) -> Iterator[Snapshot]:
        return iter(self.snapshots.values())

    def __getitem__(self, name: str) -> Snapshot:
        return self.snapshots[name]

    @cached_property
    def _children(self) -> dict[str | None, list[str]]:
        children: dict[str | None, list[str]] = {}
        for name, parent in self.parents.items():
            children.setdefault(parent, []).append(name)
        return children

    @property
    def roots(self) -> tuple[str, ...]:
        """Snapshots without a parent, in reading order."""
        return tuple(self._children.get(None, ()))

    def children(self, name: str) -> tuple[str, ...]:
        """Direct children in reading order."""
        return tuple(self._children.get(name, ()))

    def ancestors(self, name: str) -> Iterator[str]:
        """Parent, grandparent, ... up to the root."""
        parent = self.parents[name]
        while parent is not None:
            yield parent
            parent = self.parents[parent]

    def descendants(self, name: str) -> Iterator[str]:
        """Everything below, parents before children; not `name` itself."""
        stack = list(reversed(self.children(name)))
        while stack:
            descendant = stack.pop()
            yield descendant
            stack.extend(reversed(self.children(descendant)))

    @cached_property
    def path_to_current(self) -> frozenset[str]:
        """The current snapshot and its ancestors: what the running state stands on."""
        if self.current is None:
            return frozenset()
        return frozenset({self.current, *self.ancestors(self.current)})


def _age_key(snapshot: Snapshot) -> tuple[int, object, str]:
    return snapshot.created, _natural(snapshot.name), snapshot.name


def _cut_circles(parents: dict[str, str | None], snapshots: Mapping[str, Snapshot]) -> dict[str, str | None]:
    """Give every circle of parents a root: its oldest member."""
    settled: set[str] = set()
    for start in parents:
        path: list[str] = []
        on_path: set[str] = set()
        name: str | None = start
        while name is not None and name not in settled and name not in on_path:
            path.append(name)
            on_path.add(name)
            name = parents[name]
        if name is not None and name in on_path:
            circle = path[path.index(name) :]
            parents[min(circle, key=lambda member: _age_key(snapshots[member]))] = None
        settled |= on_path
    return parents


def _reading_order(snapshots: Mapping[str, Snapshot], parents: Mapping[str, str | None]) -> list[str]:
    """Oldest first, but never a child before its parent, whatever the clock said when it was taken."""
    children: dict[str | None, list[str]] = {}
    for name, parent in parents.items():
        children.setdefault(parent, []).append(name)
    ready = [(_age_key(snapshots[name]), name) for name in children.get(None, ())]
    heapq.heapify(ready)
    order: list[str] = []
    while ready:
        _, name = heapq.heappop(ready)
        order.append(name)
        for child in children.get(name, ()):
            heapq.heappush(ready, (_age_key(snapshots[child]), child))
    return order
