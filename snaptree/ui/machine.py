"""One machine as the window knows it: everything read so far, and what is worth saying about it at a glance."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from snaptree.model.estate import Consistency, SnapshotKind
from snaptree.model.figures import Figure, unknown
from snaptree.model.troubles import Trouble, troubles_of_layers, troubles_of_tree, worst_first
from snaptree.plans.advice import Advice, advice_on, advice_on_failure, advice_on_operation
from snaptree.plans.of_no_use import with_interrupted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from snaptree.jobs.host_backend import CostReading, HostStatus, TreeReading
    from snaptree.model.errors import SnapTreeError
    from snaptree.model.estate import Domain, LooksAt, Snapshot
    from snaptree.model.tree import SnapshotTree
    from snaptree.plans.operation import Operation

_SAMPLE = 500

_NOT_READ = unknown("not read yet")


class MachineId(NamedTuple):
    """A machine in an estate of many hosts, where the same UUID may be on two."""

    uri: str
    uuid: str


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
    unfinished: Operation | None = None
    """What was interrupted on it, and is neither finished nor left as it is."""
    advice: tuple[Advice, ...] | None = None
    """What else was found; None before it was looked for."""
    together: Mapping[str, tuple[Domain, ...]] = field(default_factory=lambda: MappingProxyType({}))
    """Group of its snapshots -> all machines of its host that are known to have one of it, by name; itself included."""

    @property
    def tree(self) -> SnapshotTree | None:
        """The snapshots, perhaps not all of them yet."""
        return None if self.reading is None else self.reading.tree

    @property
    def snapshot_count(self) -> int | None:
        """How many snapshots it has, None if nobody knows yet."""
        return self.domain.snapshot_count if self.tree is None else len(self.tree)

    @property
    def looks_at(self) -> LooksAt | None:
        """What it was made to look at; None if it was made for something else, or nobody knows yet."""
        return None if self.costs is None else self.costs.layers.looks_at

    @cached_property
    def disk(self) -> Figure:
        """Bytes of all its images."""
        return _NOT_READ if self.costs is None else self.costs.costs.disk

    @cached_property
    def memory(self) -> Figure:
        """Bytes of the memory that its snapshots saved."""
        return _NOT_READ if self.costs is None else self.costs.costs.memory

    @cached_property
    def of_no_use(self) -> Mapping[str, str]:
        """Its snapshots that nobody can rely on to go back to, each with the reason in a word or two."""
        if self.tree is None:
            return MappingProxyType({})
        known = {} if self.costs is None else self.costs.of_no_use
        return with_interrupted(known, self.tree, self.unfinished)

    @cached_property
    def oldest(self) -> int | None:
        """When its oldest snapshot was taken, in seconds since 1970."""
        return min((snapshot.created for snapshot in self.tree), default=None) if self.tree is not None else None

    @cached_property
    def depth(self) -> int | None:
        """Layers that its deepest disk stands on; None as long as nobody knows."""
        return None if self.costs is None else self.costs.layers.depth

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
    def findings(self) -> tuple[Advice, ...]:
        """What should be looked at, the worst first. Before advice comes, that is what can be seen to be wrong."""
        known = self.advice
        if known is None:
            known = tuple(advice_on(trouble) for trouble in self._troubles())
        return worst_first([*advice_on_failure(self.error), *advice_on_operation(self.unfinished), *known])

    @property
    def worst(self) -> Advice | None:
        """The first thing to look at."""
        return self.findings[0] if self.findings else None

    def _troubles(self) -> Iterator[Trouble]:
        if self.costs is not None:
            yield from troubles_of_layers(self.tree, self.costs.layers)
        if self.tree is not None:
            yield from troubles_of_tree(self.tree, is_complete=self.reading is not None and self.reading.complete)
