"""What becomes of layers when external snapshots are deleted: which go, what is merged, what that copies and frees.

A layer that holds no snapshot any more goes. What survives above it must go on showing what it showed, so the layer's
data moves: down into it from the one layer above (commit), or, where several survivors stand on it, up into each of
them (pull). A layer that another machine reads stays, whatever is deleted here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, pairwise
from types import MappingProxyType

from snaptree.model.estate import DiskSnapshot, DomainLayers, ImageKey, LayerOverlaps
from snaptree.model.figures import Confidence, Figure, total, unknown
from snaptree.model.tree import SnapshotTree

_NOT_ANALYSED = "what merging its layers gives back needs an analysis of their clusters"
_HOLDS_INTERNAL = "a layer to be merged holds internal snapshots as well"
_NOT_RECORDED = "the snapshot does not say which image holds this disk"
_MANUAL = "a disk is snapshotted by other means than libvirt's"


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """Which images other machines read."""

    users: Mapping[ImageKey, frozenset[str]] = field(default_factory=lambda: MappingProxyType({}))
    """Image -> names of other machines."""
    unknown: str = ""
    """Why there may be more users than these; empty if there are not."""


ALONE = Elsewhere()


@dataclass(frozen=True, slots=True)
class Deletion:
    """What deleting the external parts of a selection of snapshots comes to."""

    frees: Figure
    copies: Figure
    """By merging neighbours one after the other, from the bottom up, as libvirt deletes."""
    removed: frozenset[ImageKey]
    """Images that go as a whole, with all that lies in them, since nothing stands on them."""


@dataclass(frozen=True, slots=True)
class _Group:
    """Layers that become one: a survivor, and those directly below it that go."""

    survivor: ImageKey
    alone: tuple[ImageKey, ...]
    """From the top down: those that no other survivor stands on."""
    common: tuple[ImageKey, ...]
    """Below these: those that others stand on as well."""


@dataclass(frozen=True, eq=False)
class LayerTree:
    """The layers of a machine's disks: who stands on whom, and who holds what."""

    tree: SnapshotTree
    layers: DomainLayers
    elsewhere: Elsewhere = ALONE

    @cached_property
    def _paths(self) -> Mapping[ImageKey, str]:
        """The path by which each image is known to the analysis."""
        paths: dict[ImageKey, str] = {}
        for path in sorted(self.layers.images):
            paths.setdefault(self.layers.key(path), path)
        return paths

    @cached_property
    def below(self) -> Mapping[ImageKey, ImageKey]:
        """Image -> the one that it stands on."""
        return {
            self.layers.key(path): self.layers.key(image.backing)
            for path, image in self.layers.images.items()
            if image.backing is not None and not image.is_missing
        }

    @cached_property
    def above(self) -> Mapping[ImageKey, tuple[ImageKey, ...]]:
        """Image -> those that stand directly on it."""
        above: dict[ImageKey, tuple[ImageKey, ...]] = {}
        for overlay, base in self.below.items():
            above[base] = (*above.get(base, ()), overlay)
        return above

    @cached_property
    def holders(self) -> Mapping[ImageKey, frozenset[str]]:
        """Image -> snapshots whose content lies in it as its own layer (not merely below it)."""
        holders: dict[ImageKey, set[str]] = {}
        for snapshot in self.tree:
            for disk in snapshot.disks:
                if disk.frozen and disk.how in (DiskSnapshot.EXTERNAL, DiskSnapshot.INTERNAL):
                    holders.setdefault(self.layers.key(disk.frozen), set()).add(snapshot.name)
        return {key: frozenset(names) for key, names in holders.items()}

    @cached_property
    def active(self) -> frozenset[ImageKey]:
        """The layers that take the guest's writes."""
        return frozenset(self.layers.key(chain.active) for chain in self.layers.chains if chain.active is not None)

    def known_as(self, path: str) -> str:
        """The path by which the analysis knows an image."""
        return self._paths.get(self.layers.key(path), path)

    def stands_on(self, top: str, path: str) -> bool:
        """Whether an image is another one, or stands on it."""
        wanted = self.layers.key(path)
        key: ImageKey | None = self.layers.key(top)
        seen: set[ImageKey] = set()
        while key is not None and key != wanted and key not in seen:
            seen.add(key)
            key = self.below.get(key)
        return key == wanted

    def branches_on(self, key: ImageKey) -> int:
        """How many layers stand directly on an image, those of other machines not counted."""
        return len(self.above.get(key, ()))

    def deleting(self, names: Collection[str], kept: Collection[ImageKey] = ()) -> Deletion:
        """Work out what deleting exactly these snapshots does. `kept` are layers that stay for whatever reason."""
        selected = frozenset(names)
        unknowns, held = self._externally_held(selected)
        gone = self._with_nameless({key for key in held if self._goes(key, selected) and key not in kept}, kept)
        survivors = {key: frozenset(self._survivors_on(key, gone)) for key in gone}
        removed = frozenset(key for key, above in survivors.items() if not above)
        groups = [
            self._grouped(survivor, gone, survivors)
            for survivor in dict.fromkeys(chain.from_iterable(survivors.values()))
        ]
        pulled = {key for group in groups for key in group.common}
        frees = [self._bytes(key) for key in (*removed, *pulled)]
        copies: list[Figure] = []
        for group in groups:
            freed, copied = self._merged(group)
            frees.append(freed)
            copies += copied
        if gone and self.elsewhere.unknown:
            frees.append(Figure(0, Confidence.UPPER_BOUND, self.elsewhere.unknown))
        return Deletion(total([*unknowns, *frees]), total([*unknowns, *copies]), removed)

    def _externally_held(self, selected: frozenset[str]) -> tuple[list[Figure], set[ImageKey]]:
        unknowns, held = [], set()
        for name in selected:
            for disk in self.tree[name].disks:
                if disk.how is DiskSnapshot.MANUAL:
                    unknowns.append(unknown(_MANUAL))
                elif disk.how is DiskSnapshot.EXTERNAL and not disk.frozen:
                    unknowns.append(unknown(_NOT_RECORDED))
                elif disk.how is DiskSnapshot.EXTERNAL and disk.frozen:
                    held.add(self.layers.key(disk.frozen))
        return unknowns, held

    def _with_nameless(self, gone: set[ImageKey], kept: Collection[ImageKey]) -> set[ImageKey]:
        """Add the layers above that hold nothing and carry others: libvirt merges across them."""
        waiting = list(gone)
        while waiting:
            for overlay in self.above.get(waiting.pop(), ()):
                if overlay not in gone and overlay not in kept and self._is_nameless(overlay):
                    gone.add(overlay)
                    waiting.append(overlay)
        return gone

    def _is_nameless(self, key: ImageKey) -> bool:
        return (
            key not in self.holders and key not in self.active and key not in self.elsewhere.users and key in self.above
        )

    def _goes(self, key: ImageKey, selected: frozenset[str]) -> bool:
        image = self.layers.images.get(self._paths.get(key, ""))
        return (
            self.holders[key] <= selected
            and key not in self.active
            and key not in self.elsewhere.users
            and not (image is not None and image.is_missing)
        )

    def _survivors_on(self, key: ImageKey, gone: Collection[ImageKey]) -> Iterator[ImageKey]:
        """The nearest layers above that stay."""
        waiting, seen = [key], {key}
        while waiting:
            for overlay in self.above.get(waiting.pop(), ()):
                if overlay in seen:
                    continue
                seen.add(overlay)
                if overlay in gone:
                    waiting.append(overlay)
                else:
                    yield overlay

    def _grouped(
        self, survivor: ImageKey, gone: Collection[ImageKey], survivors: Mapping[ImageKey, Collection[ImageKey]]
    ) -> _Group:
        alone: list[ImageKey] = []
        common: list[ImageKey] = []
        key = self.below.get(survivor)
        while key is not None and key in gone and key not in alone and key not in common:
            # Whoever stands on a layer stands on all below it.
            (alone if len(survivors[key]) == 1 else common).append(key)
            key = self.below.get(key)
        return _Group(survivor, tuple(alone), tuple(common))

    def _merged(self, group: _Group) -> tuple[Figure, list[Figure]]:
        """What comes back from the layers that only this group needs, and what has to be copied for it."""
        names = [self._paths.get(key, "") for key in (group.survivor, *group.alone, *group.common)]
        overlaps = self.layers.overlaps.get(names[0])
        if overlaps is None or any(self.layers.overlaps.get(name) is not overlaps for name in names):
            return unknown(_NOT_ANALYSED), [unknown(_NOT_ANALYSED)]
        if any(self.layers.images[name].internal_snapshots for name in names):
            return unknown(_HOLDS_INTERNAL), [unknown(_HOLDS_INTERNAL)]
        into = names[0] if group.common else names[-1]  # what others stand on is never written to
        merge = overlaps.merge(names[-1], names[0], into)
        own = (group.survivor, *group.alone)
        rest = [key for key in own if self._paths[key] != into]
        before = total(self._bytes(key) for key in rest)
        if before.bytes is None:
            return before, [before]
        # Of what an image calls data the host may keep holes: so much more comes back, or is taken, than was counted.
        holes = {key: max(0, overlaps.data(self._paths[key]) - (self._bytes(key).bytes or 0)) for key in own}
        is_exact = merge.growth_least == merge.growth_most and not any(holes.values())
        frees = before.bytes - merge.growth_least + sum(holes[key] for key in rest)
        how = "layers that go, less what the merged one grows by"
        figure = Figure(frees, before.confidence if is_exact else Confidence.UPPER_BOUND, how)
        return figure, self._copies(group, names, overlaps)

    def _copies(self, group: _Group, names: list[str], overlaps: LayerOverlaps) -> list[Figure]:
        if group.common:
            merges = [overlaps.merge(names[-1], names[0], names[0])]
        else:
            merges = [overlaps.merge(lower, upper, lower) for upper, lower in pairwise(names)]
        least, most = (sum(each) for each in zip(*((m.copies_least, m.copies_most) for m in merges), strict=True))
        is_live = any(self.layers.images[name].allocated.confidence is Confidence.LIVE for name in names)
        sure = Confidence.LIVE if is_live else Confidence.EXACT
        return [Figure(most, sure if least == most else Confidence.UPPER_BOUND, "data of the layers that move")]

    def _bytes(self, key: ImageKey) -> Figure:
        image = self.layers.images.get(self._paths.get(key, ""))
        return unknown("this image was not looked at") if image is None else image.allocated
