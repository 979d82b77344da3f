"""What becomes of layers when external snapshots are deleted: which go, what is merged, what that copies and frees.

A layer that holds no snapshot any more goes. What survives above it must go on showing what it showed, so data moves:
down into it from the one layer above, which then goes in its stead (commit), or up into each of those above (pull). Of
several that go, the one in the middle that has most may take in both what is above it and what is below. Of the
survivors above, one at most can be committed, the last; which, whether any, and how far down, is a matter of bytes. A
layer that another machine reads stays, whatever is deleted here.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from itertools import chain
from types import MappingProxyType

from snaptree.model.estate import DiskSnapshot, DomainLayers, Image, ImageKey, LayerOverlaps, MergeBytes, Snapshot
from snaptree.model.figures import NOTHING, Confidence, Figure, total, unknown
from snaptree.model.text import plain
from snaptree.model.tree import SnapshotTree

_NOT_ANALYSED = "what merging its layers gives back needs an analysis of their clusters"
_HOLDS_INTERNAL = "a layer to be merged holds internal snapshots as well"
_NOT_RECORDED = "the snapshot does not say which image holds this disk"
_MOST_LOOKED_AT = 8
_MANUAL = "a disk is snapshotted by other means than libvirt's"


class MergeWay(StrEnum):
    """In which file layers become one; the values stand in JSON and in the journal."""

    COMMIT = "commit"
    """In the lowest one, which takes in those above it, and then their place."""
    PULL = "pull"
    """In the top one, which takes in those below it."""


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """Which images other machines read."""

    users: Mapping[ImageKey, frozenset[str]] = field(default_factory=lambda: MappingProxyType({}))
    """Image -> names of other machines."""
    unknown: str = ""
    """Why there may be more users than these; empty if there are not."""

    def on(self, snapshot: Snapshot, layers: DomainLayers) -> frozenset[str]:
        """Other machines that stand directly on what a snapshot froze, and not on anything of this machine's above."""
        held = {layers.key(disk.frozen) for disk in snapshot.disks if disk.frozen and disk.how is DiskSnapshot.EXTERNAL}
        on, above = set[str](), set[str]()
        for key in held:
            on |= self.users.get(key, frozenset())
        for image in layers.images.values():
            if image.backing is not None and layers.key(image.backing) in held:
                above |= self.users.get(layers.key(image.path), frozenset())
        return frozenset(on - above)


ALONE = Elsewhere()


@dataclass(frozen=True, slots=True)
class LayerMerge:
    """Layers that become one, from the top down: what the top one shows is kept, the others go with their snapshots."""

    layers: tuple[ImageKey, ...]
    into: ImageKey
    """The one that is written, and holds that content afterwards."""

    @property
    def top(self) -> ImageKey:
        """The layer whose content is kept."""
        return self.layers[0]

    @property
    def jobs(self) -> tuple[tuple[MergeWay, tuple[ImageKey, ...]], ...]:
        """Block jobs in their order: what is above is committed first, so that less has to be pulled from below."""
        at = self.layers.index(self.into)
        jobs = (MergeWay.COMMIT, self.layers[: at + 1]), (MergeWay.PULL, self.layers[at:])
        return tuple((way, layers) for way, layers in jobs if len(layers) > 1)

    @property
    def is_plain_commit(self) -> bool:
        """Whether one layer goes down into the next."""
        return len(self.layers) == 2 and self.into == self.layers[1]


@dataclass(frozen=True, slots=True)
class Pile:
    """Layers that go and stand on each other, and what becomes of those that stand on them."""

    gone: frozenset[ImageKey]
    merges: tuple[LayerMerge, ...] = ()
    """In this order: whoever is pulled into needs those below no more, and only then may one be committed."""
    stuck: str = ""
    """Why they can't be merged; empty if they can."""

    @property
    def removed(self) -> frozenset[ImageKey]:
        """Images whose files go: a layer that was committed into lives on, and the one that it took in goes."""
        if self.stuck:
            return frozenset()
        moved = [merge for merge in self.merges if merge.into != merge.top]
        return (self.gone | {merge.top for merge in moved}) - {merge.into for merge in moved}

    @property
    def dropped(self) -> frozenset[ImageKey]:
        """Images that go with all that lies inside them: what they held last may be moved, but not they themselves."""
        return self.removed & self.gone


@dataclass(frozen=True, slots=True)
class Deletion:
    """What deleting the external parts of a selection of snapshots comes to."""

    frees: Figure
    copies: Figure
    piles: tuple[Pile, ...]

    @property
    def dropped(self) -> frozenset[ImageKey]:
        """Images that go, with all that lies inside them."""
        return frozenset(chain.from_iterable(pile.dropped for pile in self.piles))


@dataclass(frozen=True, eq=False)
class LayerTree:
    """The layers of a machine's disks: who stands on whom, and who holds what."""

    tree: SnapshotTree
    layers: DomainLayers
    elsewhere: Elsewhere = ALONE
    too_deep: Collection[ImageKey] = ()
    """Layers that stand on more than this host's libvirt can open: nothing can be pulled into them."""
    of_no_use: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Snapshots that nobody can rely on to go back to, each with the reason, if whoever made this looked for them."""
    _counts: dict[LayerMerge, MergeBytes | None] = field(default_factory=dict, init=False, repr=False)
    _alone: dict[str, Deletion] = field(default_factory=dict, init=False, repr=False)
    """What deleting one snapshot does, of those that were asked for: whoever looks for the cheapest asks for all."""
    _latest: dict[tuple[frozenset[str], frozenset[ImageKey]], Deletion] = field(
        default_factory=dict, init=False, repr=False
    )
    """What was asked last: whoever plans a deletion asks what it costs, how deep what is left will be, and so on."""

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
        asked = frozenset(names), frozenset(kept)
        if len(names) != 1 or kept:
            if asked not in self._latest:
                self._latest.clear()
                self._latest[asked] = self._deleting(*asked)
            return self._latest[asked]
        (name,) = names
        if name not in self._alone:
            self._alone[name] = self._deleting(*asked)
        return self._alone[name]

    def _deleting(self, selected: frozenset[str], kept: Collection[ImageKey]) -> Deletion:
        unknowns, held = self._externally_held(selected)
        gone = self._with_empty({key for key in held if self._goes(key, selected) and key not in kept}, kept, selected)
        standing = self._standing_on_each_other(gone)
        vanish = frozenset(chain.from_iterable(layers for layers in standing if not self._survivors_on(layers)))
        piles = tuple(self._pile(layers, selected, vanish) for layers in standing)
        frees, copies = [], []
        for pile in piles:
            freed, copied = self._figures(pile)
            frees.append(freed)
            copies.append(copied)
        if gone and self.elsewhere.unknown:
            frees.append(Figure(0, Confidence.UPPER_BOUND, self.elsewhere.unknown))
        return Deletion(total([*unknowns, *frees]), total([*unknowns, *copies]), piles)

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

    def _with_empty(self, gone: set[ImageKey], kept: Collection[ImageKey], selected: frozenset[str]) -> set[ImageKey]:
        """Add the layers above that hold nothing any more: those that carry others are merged along.

        One that carries none has been left by the machine, and was kept for internal snapshots that go.
        """
        waiting = list(gone)
        while waiting:
            for overlay in self.above.get(waiting.pop(), ()):
                is_new = overlay not in gone and overlay not in kept
                is_known = overlay in self.above or overlay in self.holders
                if is_new and is_known and self._goes(overlay, selected):
                    gone.add(overlay)
                    waiting.append(overlay)
        return gone

    def _goes(self, key: ImageKey, selected: frozenset[str]) -> bool:
        image = self._image(key)
        return (
            self.holders.get(key, frozenset()) <= selected
            and key not in self.active
            and key not in self.elsewhere.users
            and not (image is not None and (image.is_missing or _inside(image) - selected))
        )

    def _standing_on_each_other(self, gone: Collection[ImageKey]) -> list[tuple[ImageKey, ...]]:
        """Layers that go, in piles of those that touch: the lowest first, in no particular order above it."""
        piles: dict[ImageKey, list[ImageKey]] = {}
        lowest_of: dict[ImageKey, ImageKey] = {}
        for key in sorted(gone, key=self._name):
            line = {key: None}
            lowest = key
            while lowest not in lowest_of and (below := self.below.get(lowest)) in gone:
                if below is None or below in line:
                    break
                lowest = below
                line[lowest] = None
            lowest = lowest_of.get(lowest, lowest)
            lowest_of |= dict.fromkeys(line, lowest)
            pile = piles.setdefault(lowest, [lowest])
            if key != lowest:
                pile.append(key)
        return [tuple(pile) for pile in piles.values()]

    def _survivors_on(self, layers: Collection[ImageKey]) -> dict[ImageKey, ImageKey]:
        """What stands on layers that go and does not go itself; and the one of them that it stands on."""
        going = frozenset(layers)
        return {
            overlay: key
            for key in layers
            for overlay in sorted(self.above.get(key, ()), key=self._name)
            if overlay not in going
        }

    def _pile(self, layers: tuple[ImageKey, ...], selected: frozenset[str], vanish: Collection[ImageKey]) -> Pile:
        """Choose how the survivors on these layers get what they need of them: what copies least of what is possible.

        Where that is the same, or nobody knows, layers are committed: so libvirt does it. Those that `vanish` have no
        survivors on them, and go before.
        """
        gone = frozenset(layers)
        lowest = layers[0]
        paths = {top: (top, *self._down_to(lowest, key)) for top, key in self._survivors_on(layers).items()}
        no_pull = {top: self._why_not_merged(path, top, selected, vanish) for top, path in paths.items()}
        choices = [
            (*(LayerMerge(paths[top], top) for top in paths if top != last), LayerMerge(path, into))
            for last, path in paths.items()
            if not any(no_pull[top] for top in paths if top != last)
            for into in self._may_take_all(path)
            if not self._why_not_merged(path, into, selected, vanish)
        ]
        if not paths:
            return Pile(gone)
        if not choices:
            if len(paths) == 1:
                (path,) = paths.values()
                return Pile(gone, stuck=self._why_not_merged(path, lowest, selected, vanish))
            return Pile(gone, stuck=next(filter(None, no_pull.values())))
        kept = self._returned_to(selected)
        return min(
            (Pile(gone, merges) for merges in choices),
            key=lambda pile: (
                len(pile.removed & kept),
                sum(map(self._effort, pile.merges)),
                sum(len(merge.jobs) for merge in pile.merges),
                sum(merge.into == merge.top for merge in pile.merges),
            ),
        )

    def _may_take_all(self, path: tuple[ImageKey, ...]) -> list[ImageKey]:
        """Those of a line of layers that one looks at as the one to be written, from the bottom up.

        Of a long line both ends, and a few that have most: the more a layer has, the less is copied into it.
        """
        between = heapq.nlargest(_MOST_LOOKED_AT, path[1:-1], key=lambda key: self.allocated(key).bytes or 0)
        looked_at = {path[0], path[-1], *between}
        return [key for key in reversed(path) if key in looked_at]

    def _returned_to(self, selected: frozenset[str]) -> frozenset[ImageKey]:
        """Layers to which a revert puts disks that a snapshot left out: whatever they show by then, they must exist."""
        return frozenset(
            self.layers.key(disk.frozen)
            for snapshot in self.tree
            if snapshot.name not in selected
            for disk in snapshot.disks
            if disk.how is DiskSnapshot.NO and disk.frozen
        )

    def _down_to(self, lowest: ImageKey, key: ImageKey) -> Iterator[ImageKey]:
        yield key
        while key != lowest:
            key = self.below[key]
            yield key

    def _why_not_merged(
        self, path: tuple[ImageKey, ...], into: ImageKey, selected: frozenset[str], vanish: Collection[ImageKey]
    ) -> str:
        problem = "" if into == path[0] else self._why_not_committed(path[0], into, selected, vanish)
        if not problem and into != path[-1]:
            # What the active layer was committed into is the active one then.
            problem = self._why_not_pulled_into(into, selected, is_active=path[0] in self.active)
        return problem

    def _why_not_pulled_into(self, key: ImageKey, selected: frozenset[str], *, is_active: bool) -> str:
        image = self._image(key)
        is_below_active = self.layers.is_running and key in self._in_use and not is_active
        if inside := _inside(image) - selected:
            return f"{self._name(key)} holds {_snapshots(inside)}, which would lose what lies below"
        if users := self.elsewhere.users.get(key):
            return f"{self._name(key)} is the base of {_machines(users)}, and must not be written"
        if is_below_active:
            return f"{self._name(key)} is in use, and can't take in other layers while the machine runs"
        if key in self.too_deep and not (is_active and self.layers.is_running):
            return f"{self._name(key)} stands on more layers than this libvirt can open"
        return ""

    def _why_not_committed(
        self, key: ImageKey, into: ImageKey, selected: frozenset[str], vanish: Collection[ImageKey]
    ) -> str:
        image, lower = self._image(key), self._image(into)
        if inside := _inside(image) - selected:
            return f"{self._name(key)} holds {_snapshots(inside)}, which would be lost"
        if users := self.elsewhere.users.get(key):
            return f"{self._name(key)} is the base of {_machines(users)}, and has to stay"
        if len(set(self.above.get(key, ())) - set(vanish)) > (0 if key in self.active else 1):
            return f"several layers stand on {self._name(key)}, and only one of them can be told that it went"
        sizes = [None if each is None else each.virtual_size for each in (image, lower)]
        if sizes[0] is not None and sizes[1] is not None and sizes[0] < sizes[1]:
            return f"{self._name(into)} is larger than {self._name(key)}: the disk would grow"
        return ""

    @cached_property
    def _in_use(self) -> frozenset[ImageKey]:
        return frozenset(self.layers.key(path) for line in self.layers.chains for path in line.layers)

    def _effort(self, merge: LayerMerge) -> int:
        """Bytes that a merge copies; where nobody counted, what the layers that would move take."""
        if (counted := self._counted(merge)) is not None:
            return counted.copies_most
        return sum(self.allocated(key).bytes or 0 for key in merge.layers if key != merge.into)

    def _counted(self, merge: LayerMerge) -> MergeBytes | None:
        """What a merge takes, looked up once; None where its layers were not analysed."""
        if merge not in self._counts:
            overlaps = self._overlaps(merge.layers)
            if not self.stands_on(self._name(merge.top), self._name(merge.layers[-1])):
                overlaps = None  # merged already
            names = (self._name(merge.layers[-1]), self._name(merge.top), self._name(merge.into))
            self._counts[merge] = None if overlaps is None else overlaps.merge(*names)
        return self._counts[merge]

    def _overlaps(self, keys: Collection[ImageKey]) -> LayerOverlaps | None:
        """The analysis that knows all of these layers, and may count what merging them takes."""
        found = [self.layers.overlaps.get(self._name(key)) for key in keys]
        return found[0] if all(each is found[0] for each in found) else None

    def _figures(self, pile: Pile) -> tuple[Figure, Figure]:
        """What comes back from layers that go, and what has to be copied for it."""
        if pile.stuck:
            return unknown(pile.stuck), unknown(pile.stuck)
        if not pile.merges:
            return total(self.allocated(key) for key in pile.gone), NOTHING
        keys = {*pile.gone, *(merge.top for merge in pile.merges)}
        overlaps = self._overlaps(keys)
        if overlaps is None:
            return unknown(_NOT_ANALYSED), unknown(_NOT_ANALYSED)
        if any(_inside(self._image(key)) for key in keys):
            return unknown(_HOLDS_INTERNAL), unknown(_HOLDS_INTERNAL)
        before = total(self.allocated(key) for key in sorted(pile.removed, key=self._name))
        if before.bytes is None:
            return before, before
        counted = [bounds for merge in pile.merges if (bounds := self._counted(merge)) is not None]
        # Of what an image calls data the host may keep holes: so much more comes back, or is taken, than was counted.
        holes = {key: max(0, overlaps.data(self._name(key)) - (self.allocated(key).bytes or 0)) for key in keys}
        is_exact = all(each.growth_least == each.growth_most for each in counted) and not any(holes.values())
        frees = before.bytes - sum(each.growth_least for each in counted) + sum(holes[key] for key in pile.removed)
        how = "layers that go, less what the merged ones grow by"
        least, most = sum(each.copies_least for each in counted), sum(each.copies_most for each in counted)
        is_live = any(self.allocated(key).confidence is Confidence.LIVE for key in keys)
        sure = Confidence.LIVE if is_live else Confidence.EXACT
        return (
            Figure(frees, before.confidence if is_exact else Confidence.UPPER_BOUND, how),
            Figure(most, sure if least == most else Confidence.UPPER_BOUND, "data of the layers that move"),
        )

    def copies(self, merge: LayerMerge) -> Figure:
        """What a merge at most copies."""
        counted = self._counted(merge)
        if counted is not None:
            return Figure(counted.copies_most, Confidence.UPPER_BOUND, "data of the layers that move")
        return self.moves(merge)

    def growth(self, merge: LayerMerge) -> Figure:
        """What the layer that is written at most grows by."""
        counted = self._counted(merge)
        if counted is not None:
            return Figure(max(0, counted.growth_most), Confidence.UPPER_BOUND, "clusters that it has not")
        return self.moves(merge)

    def moves(self, merge: LayerMerge) -> Figure:
        """What a merge at most copies, by the sizes of the layers that move."""
        moved = total(self.allocated(key) for key in merge.layers if key != merge.into)
        if moved.bytes is None:
            return moved
        return Figure(moved.bytes, Confidence.UPPER_BOUND, "all of the layers that move, as if they did not overlap")

    def _name(self, key: ImageKey) -> str:
        return self._paths.get(key, str(key))

    def path(self, key: ImageKey) -> str:
        """The path by which an image is known here."""
        return self._name(key)

    def _image(self, key: ImageKey) -> Image | None:
        return self.layers.images.get(self._paths.get(key, ""))

    def allocated(self, key: ImageKey) -> Figure:
        """Bytes that an image takes on the host's disk."""
        image = self._image(key)
        return unknown("this image was not looked at") if image is None else image.allocated


def _inside(image: Image | None) -> frozenset[str]:
    """Names of the snapshots inside an image."""
    return frozenset() if image is None else frozenset(entry.name for entry in image.internal_snapshots)


def _snapshots(names: Collection[str]) -> str:
    return "internal snapshots (" + ", ".join(sorted(map(plain, names))[:3]) + ")"


def _machines(names: Collection[str]) -> str:
    return ", ".join(sorted(map(plain, names))[:3])
