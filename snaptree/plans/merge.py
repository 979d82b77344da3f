"""Deleting external snapshots by block jobs of our own: any of them, of machines that run or are off.

The model says which layers go and how what stands on them gets what it needs (`model/merging.py`). Here that becomes
steps, batch by batch, so that libvirt's records are right after each: merge, record, remove.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf
from types import MappingProxyType
from typing import TypeVar

from snaptree.model.estate import ImageKey, Snapshot, SnapshotDisk
from snaptree.model.figures import NOTHING, Figure, total
from snaptree.model.merging import Deletion, LayerMerge, LayerTree, MergeWay, Pile
from snaptree.plans.draft import Draft
from snaptree.plans.facts import LIBVIRT_9_9, Facts, external_disks, internal_images, is_external, memory_file_of
from snaptree.plans.plan import DeleteSnapshot, Layer, MergeLayers, RecordLayers, RemoveLeftover, Step
from snaptree.plans.rule import Case
from snaptree.plans.rules_depth import MOST_LAYERS_TO_START, NESTING_SINCE, NESTING_UNTIL
from snaptree.plans.rules_merge import LAYER_STAYS, MERGE_STUCK, REMOVED_LAYER_IS_NEEDED
from snaptree.plans.situation import Situation, elsewhere
from snaptree.plans.wording import files_named, machines_named, plain, quoted, snapshots_named

_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class Batch:
    """Snapshots that share layers which go, and what becomes of these. Others of the plan don't touch them."""

    names: tuple[str, ...]
    """Parents before children."""
    piles: tuple[Pile, ...]

    @property
    def merges(self) -> tuple[LayerMerge, ...]:
        """All merges, in their order."""
        return tuple(merge for pile in self.piles for merge in pile.merges)

    def keeps_no_layer(self, layer_tree: LayerTree) -> bool:
        """Whether all their layers go, so that libvirt's own delete would not merge into one that stays."""
        gone = frozenset[ImageKey]().union(*(pile.gone for pile in self.piles))
        held = [disk.frozen for name in self.names for disk in external_disks(layer_tree.tree[name]) if disk.frozen]
        return all(layer_tree.layers.key(path) in gone for path in held)

    def is_done_well_by_libvirt(self, layer_tree: LayerTree) -> bool:
        """Whether libvirt's own delete does just this: one layer down into the next, or nothing but files to remove."""
        return self.keeps_no_layer(layer_tree) and all(
            not pile.stuck and len(pile.merges) <= 1 and all(merge.is_plain_commit for merge in pile.merges)
            for pile in self.piles
        )


@dataclass(frozen=True, slots=True)
class Room:
    """What a merge takes on the host's disk, in bytes: `file` grows by so much at most."""

    file: str
    growth: Figure


def layer_tree_of(situation: Situation) -> LayerTree:
    """The machine's layers, with what is known of other machines and of this libvirt's limits."""
    users = elsewhere(situation.layers, situation.dependants, situation.unreadable_domains, situation.overlays_on)
    limit, facts = _most_layers(situation), Facts(situation)
    too_deep = frozenset(
        situation.layers.key(path)
        for path in situation.layers.images
        if limit is not None and facts.depth(path) > limit
    )
    return LayerTree(situation.tree, situation.layers, users, too_deep)


def batches(layer_tree: LayerTree, deletion: Deletion, names: Sequence[str]) -> list[Batch]:
    """Put snapshots together that share a pile of layers: neighbours, and those whose other disks are neighbours."""
    place = {name: number for number, name in enumerate(names)}
    groups: dict[str, tuple[list[str], list[Pile]]] = {name: ([name], []) for name in names}
    first_ones = _first_ones(layer_tree, deletion.piles)
    piles_in_turn = _in_turn(deletion.piles, lambda pile: first_ones.get(pile, ()))
    for pile in piles_in_turn:
        # What is inside an image that takes others in has to be deleted before.
        keys = pile.gone.union(*(merge.layers for merge in pile.merges))
        holders = {name for key in keys for name in layer_tree.holders.get(key, ()) if name in place}
        together: tuple[list[str], list[Pile]] = ([], [])
        for name in sorted(holders, key=place.__getitem__):
            if groups[name] is not together:
                members, piles = groups[name]
                together[0].extend(members)
                together[1].extend(piles)
                groups |= dict.fromkeys(members, together)
        together[1].append(pile)
    turns = {pile: number for number, pile in enumerate(piles_in_turn)}
    found = [
        Batch(tuple(sorted(members, key=place.__getitem__)), tuple(sorted(piles, key=turns.__getitem__)))
        for members, piles in {id(group): group for group in groups.values()}.values()
    ]
    batch_of = {pile: batch for batch in found for pile in batch.piles}

    def turn(batch: Batch) -> tuple[int, ...]:
        first, *rest = _order(layer_tree, batch)
        if layer_tree.too_deep:  # what lies below has to go first, until the host can open what stands on it
            return min(first, 1), place[batch.names[0]]
        return first, *rest, place[batch.names[0]]

    return _in_turn(
        sorted(found, key=turn),
        lambda batch: [batch_of[other] for pile in batch.piles for other in first_ones.get(pile, ())],
    )


def _first_ones(layer_tree: LayerTree, piles: Iterable[Pile]) -> Mapping[Pile, list[Pile]]:
    """Pile -> those to be merged before it: they commit a layer on which it lets several stand where one stood.

    Of those above a layer that goes, QEMU tells one only what it stands on from then on.
    """
    committed = {merge.top: pile for pile in piles for merge in pile.merges if merge.into != merge.top}
    return {
        pile: [committed[base]]
        for pile in piles
        if len(pile.merges) > 1 and (base := layer_tree.below.get(pile.merges[0].layers[-1])) in committed
    }


def _in_turn(items: Iterable[_Item], first_ones: Callable[[_Item], Iterable[_Item]]) -> list[_Item]:
    """Keep an order, but put before each item what has to come first."""
    waiting = [*reversed([*items])]
    seen: set[_Item] = set()
    placed: dict[_Item, None] = {}
    while waiting:
        item = waiting.pop()
        if item not in seen:
            seen.add(item)
            waiting += [item, *(other for other in first_ones(item) if other not in seen)]
        else:
            placed.setdefault(item)
    return [*placed]


def _order(layer_tree: LayerTree, batch: Batch) -> tuple[int, int]:
    """So that little room is needed at a time: first what gives back more than it takes, least taken first.

    Before all, what lies inside images, and layers on which nothing stands: what is below may be merged only then.
    """
    if not batch.merges:
        return 0, 0
    growth = sum(room.growth.bytes or 0 for room in rooms_of(layer_tree, batch))
    gone = sum(layer_tree.allocated(key).bytes or 0 for pile in batch.piles for key in pile.removed)
    return (1, growth) if gone >= growth else (2, -gone)


def rooms_of(layer_tree: LayerTree, batch: Batch) -> list[Room]:
    """What the merges of a batch take on disk."""
    return [Room(layer_tree.path(merge.into), layer_tree.growth(merge)) for merge in batch.merges]


def rooms_in_turn(layer_tree: LayerTree, parts: Iterable[Batch]) -> Iterator[tuple[Room, Figure]]:
    """Each merge of these batches in its turn, and the bytes that all so far take then, beyond what came back."""
    extra = NOTHING
    for part in parts:
        for room in rooms_of(layer_tree, part):
            extra = total([extra, room.growth])
            yield room, extra
        gone = sum(layer_tree.allocated(key).bytes or 0 for pile in part.piles for key in pile.removed)
        if extra.bytes is not None:
            extra = Figure(max(0, extra.bytes - gone), extra.confidence, extra.how)


def most_room(layer_tree: LayerTree, parts: Iterable[Batch]) -> Figure:
    """What merging these batches takes on disk when that is most."""
    return max(
        (extra for _, extra in rooms_in_turn(layer_tree, parts)),
        key=lambda figure: inf if figure.bytes is None else figure.bytes,
        default=NOTHING,
    )


def add_merges(
    draft: Draft, batch: Batch, layer_tree: LayerTree, names: tuple[str, ...], asked_for: tuple[str, ...]
) -> None:
    """Add the steps that delete a batch by our own jobs, or the reasons why there are none.

    `names` are all that the plan deletes, `asked_for` those that the user named.
    """
    writer = _Writer(draft, batch, layer_tree, names, asked_for)
    writer.delete_inside()
    for pile in batch.piles:
        if pile.stuck:
            writer.refuse_stuck(pile.stuck)
        for merge in pile.merges:
            writer.merge(merge)
    if not draft.is_refused:
        writer.record()
    if not draft.is_refused:
        writer.remove()


class _Writer:
    """Writes the steps of one batch."""

    def __init__(
        self,
        draft: Draft,
        batch: Batch,
        layer_tree: LayerTree,
        names: tuple[str, ...],
        asked_for: tuple[str, ...],
    ) -> None:
        self._draft = draft
        self._batch = batch
        self._layer_tree = layer_tree
        self._names = frozenset(names)
        self._asked_for = asked_for
        self._going = frozenset(batch.names)
        self._before = draft.facts
        self._moved: dict[str, Layer] = {}
        self._deleted: set[str] = set()
        self._removed = self._from_the_top_down(key for pile in batch.piles for key in pile.removed)
        merged = {self._before.key(layer_tree.path(key)) for merge in batch.merges for key in merge.layers}
        self._obsolete = frozenset(self._removed.keys() - merged)
        """Files that nobody reads any more, at this point of the plan."""

    def _from_the_top_down(self, keys: Iterable[ImageKey]) -> Mapping[str, None]:
        paths = {self._path(key) for key in keys}
        return dict.fromkeys(sorted(paths, key=lambda path: (-self._before.depth(path), path)))

    def _case(self, step: Step, name: str | None = None) -> Case:
        return self._draft.case(
            step,
            name=name,
            batch=self._asked_for,
            obsolete=self._obsolete,
            deleting=self._names,
        )

    def refuse_stuck(self, problem: str) -> None:
        situation = self._draft.situation
        off = f", or shut {plain(situation.domain.name)} down" if situation.layers.is_running else ""
        words = {"snapshots": snapshots_named(self._batch.names), "problem": plain(problem), "off": off}
        self._draft.refuse(MERGE_STUCK.say(self._draft.case(RemoveLeftover("", "")), words))

    def delete_inside(self) -> None:
        """Let libvirt delete what lies inside images, but for what goes with all of its images."""
        tree = self._draft.situation.tree
        whole = {self._path(key) for pile in self._batch.piles for key in pile.dropped}
        for name in reversed(self._batch.names):
            images = self._before.keys(internal_images(tree[name]))
            if is_external(tree[name]) or (images and images <= whole):
                continue
            step = DeleteSnapshot(name, self._draft.situation.tree.children(name), merges=False)
            self._draft.add(self._case(step))
            self._deleted.add(name)

    # Merging

    def merge(self, merge: LayerMerge) -> None:
        for way, keys in merge.jobs:
            for part in self._in_parts(way, [self._path(key) for key in keys]):
                self._add_merge(way, part)
        top, into = self._path(merge.top), self._path(merge.into)
        if into != top:
            self._moved |= dict.fromkeys(self._aliases.get(top, [top]), Layer(into, self._format(into)))

    def _path(self, key: ImageKey) -> str:
        return self._before.key(self._layer_tree.path(key))

    def _in_parts(self, way: MergeWay, layers: list[str]) -> Iterator[list[str]]:
        """All layers at once; or, where libvirt can't open so many, from the lowest up as many as it can.

        The lowest stays the lowest: it takes in one part after the other.
        """
        limit = _most_layers(self._draft.situation)
        if way is MergeWay.COMMIT and limit is not None and not self._is_live(layers[0]):
            *upper, lowest = layers
            below = sum(1 for _ in self._draft.facts.stack(lowest)) - 1
            at_once = limit - below - 2  # beside the lowest, and the one above that is told what it stands on
            while at_once > 0 and len(upper) > at_once:
                yield [*upper[-at_once:], lowest]
                upper = upper[:-at_once]
            layers = [*upper, lowest]
        yield layers

    def _add_merge(self, way: MergeWay, layers: list[str]) -> None:
        facts = self._draft.facts
        top = layers[0]
        is_live = self._is_live(top)
        if is_live:
            target, line = next((target, line) for target, line in facts.chains.items() if top in line)
            stack = list(line)
        else:
            target = self._target(top)
            stack = list(facts.stack(top))
            if way is MergeWay.COMMIT and (upper := facts.above.get(top, frozenset()) - self._obsolete):
                stack = [min(upper), *stack]
        is_known = _lie_on_each_other(layers, stack)
        opened = tuple(Layer(path, self._format(path)) for path in (stack if is_known else layers))
        step = MergeLayers(target, way, tuple(layers), opened, is_live=is_live)
        if is_known:
            self._draft.add(self._case(step))
        else:
            self._draft.judge(self._case(step))  # one that can't be read is most likely why
            if not self._draft.is_refused:
                self.refuse_stuck(f"{layers[0]} does not stand on {layers[-1]} now")
        self._obsolete |= set(layers) - {step.merged}

    def _is_live(self, layer: str) -> bool:
        return self._draft.situation.layers.is_running and layer in self._draft.facts.live

    def _target(self, layer: str) -> str:
        """The disk that a layer is a part of."""
        facts = self._draft.facts
        for target, line in facts.chains.items():
            if layer in line:
                return target
        held = (disk for snapshot in self._draft.start.tree for disk in snapshot.disks)
        return next((disk.target for disk in held if layer in facts.keys([disk.frozen, disk.overlay])), "")

    def _format(self, path: str) -> str:
        image = self._draft.facts.image(path)
        return "qcow2" if image is None else image.format

    @cached_property
    def _aliases(self) -> Mapping[str, list[str]]:
        """Every path under which each image is known."""
        aliases: dict[str, list[str]] = {}
        for known in self._before.situation.layers.images:
            aliases.setdefault(self._before.key(known), []).append(known)
        return aliases

    # Recording

    def record(self) -> None:
        """Let libvirt know; each snapshot that goes is judged by the rules about deleting it."""
        tree = self._draft.situation.tree
        survivors = [snapshot for snapshot in tree if snapshot.name not in self._going]
        forgotten = [name for name in reversed(self._batch.names) if name not in self._deleted]
        overlays, revert_overlays = self._overlays(survivors)
        step = RecordLayers(
            moved=MappingProxyType(dict(self._moved)),
            removed=tuple(alias for path in self._removed for alias in self._aliases.get(path, [path])),
            parents=MappingProxyType(
                {
                    snapshot.name: self._surviving_ancestor(snapshot.name)
                    for snapshot in survivors
                    if tree.parents[snapshot.name] in self._going
                }
            ),
            overlays=overlays,
            revert_overlays=revert_overlays,
            forgotten=tuple(forgotten),
        )
        self._warn_of_layers_that_stay()
        for name in reversed(forgotten):
            self._draft.judge(self._case(step, name))
        self._draft.add_unjudged(step)

    def _surviving_ancestor(self, name: str) -> str | None:
        tree = self._draft.situation.tree
        return next((each for each in tree.ancestors(name) if each not in self._going), None)

    def _current_after(self) -> str | None:
        current = self._draft.situation.tree.current
        if current is None or current not in self._going:
            return current
        return self._surviving_ancestor(current)

    def _overlays(
        self, survivors: Sequence[Snapshot]
    ) -> tuple[Mapping[str, Mapping[str, str]], Mapping[str, Mapping[str, str]]]:
        """What took over from each snapshot, where that is another layer now; and what is in use since a revert."""
        overlays: dict[str, Mapping[str, str]] = {}
        revert_overlays: dict[str, Mapping[str, str]] = {}
        current = self._current_after()
        for snapshot in survivors:
            in_use = {target: self._now(path) for target, path in snapshot.revert_overlays}
            noted = {disk.target: self._overlay_of(disk) for disk in external_disks(snapshot)}
            if snapshot.name == current:
                # libvirt removes what it has noted here when it leaves this snapshot, for all disks in the same place.
                active = {disk.target: top for disk in external_disks(snapshot) if (top := self._active_on(disk))}
                if any(target not in in_use and noted[target] != top for target, top in active.items()):
                    if self._notes_reverts() and self._has_other_children(snapshot.name):
                        in_use |= active
                    else:
                        noted |= active
            changed = {
                disk.target: overlay
                for disk in external_disks(snapshot)
                if (overlay := noted[disk.target]) not in (None, disk.overlay)
                # What is in use is noted once, but never a file that goes instead.
                and (overlay != in_use.get(disk.target) or disk.overlay in self._removed)
            }
            if changed:
                overlays[snapshot.name] = MappingProxyType(changed)
            if in_use != dict(snapshot.revert_overlays):
                revert_overlays[snapshot.name] = MappingProxyType(in_use)
        return MappingProxyType(overlays), MappingProxyType(revert_overlays)

    def _notes_reverts(self) -> bool:
        return self._draft.situation.host.libvirt_version >= LIBVIRT_9_9

    def _has_other_children(self, name: str) -> bool:
        tree = self._draft.situation.tree
        return any(self._surviving_ancestor(each) == name for each in tree.descendants(name) if each not in self._going)

    def _now(self, path: str) -> str:
        """Where what a file showed is shown now."""
        layer = self._moved.get(path)
        return path if layer is None else layer.path

    def _overlay_of(self, disk: SnapshotDisk) -> str | None:
        """The layer to be noted as what took over from a snapshot's: the one that is, if it still stands on it."""
        facts = self._draft.facts
        if disk.frozen is None:
            return disk.overlay
        frozen = facts.key(self._now(disk.frozen))
        if disk.overlay is not None:
            noted = facts.key(self._now(disk.overlay))
            if noted not in self._removed and facts.below.get(noted) == frozen:
                return self._now(disk.overlay)
        standing = [layer for layer in facts.above.get(frozen, ()) if layer not in self._removed]
        in_use = [layer for layer in facts.chains.get(disk.target, ()) if layer in standing]
        now = None if disk.overlay is None else self._now(disk.overlay)
        return in_use[0] if in_use else min(standing, default=now)

    def _active_on(self, disk: SnapshotDisk) -> str | None:
        """The layer that takes the writes now, if it stands directly on this snapshot's."""
        facts = self._draft.facts
        line = facts.chains.get(disk.target, ())
        if disk.frozen is None or len(line) < 2 or line[1] != facts.key(self._now(disk.frozen)):
            return None
        return line[0]

    def _warn_of_layers_that_stay(self) -> None:
        gone = {self._path(key) for pile in self._batch.piles for key in pile.gone}
        for name in self._batch.names:
            for disk in external_disks(self._draft.start.tree[name]):
                if disk.frozen is None or (layer := self._before.key(disk.frozen)) in gone:
                    continue
                if problem := self._why_it_stays(layer):
                    words = {"file": plain(layer), "snapshots": snapshots_named([name]), "problem": problem}
                    self._draft.warn(LAYER_STAYS.say(self._draft.case(RemoveLeftover(layer, "")), words))

    def _why_it_stays(self, layer: str) -> str:
        if users := self._layer_tree.elsewhere.users.get(self._before.situation.layers.key(layer)):
            return f"it is the base of {machines_named(users)}."
        if inside := [name for name in self._before.internal_in.get(layer, ()) if name not in self._names]:
            return f"it holds {snapshots_named(inside)}."
        return ""

    # Removing

    def remove(self) -> None:
        """Remove what nothing refers to any more; refuse the whole if something does."""
        gone: set[str] = set()
        for path in self._removed:
            if problem := self._why_needed(path, gone):
                words = {"file": plain(path), "problem": problem, "snapshots": snapshots_named(self._batch.names)}
                self._draft.refuse(REMOVED_LAYER_IS_NEEDED.say(self._draft.case(RemoveLeftover(path, "")), words))
                return
            gone.add(path)
        why = "its data was merged, or belonged to what is deleted"
        self._draft.add_unjudged(*(RemoveLeftover(path, why) for path in self._removed))
        tree = self._draft.start.tree
        kept = {other.memory_file for other in self._draft.situation.tree}
        for name in self._batch.names:
            memory_file = memory_file_of(tree[name])
            if memory_file is None or memory_file in kept or memory_file in self._draft.situation.missing_files:
                continue
            self._draft.add_unjudged(RemoveLeftover(memory_file, f"the saved memory of {quoted(name)}"))

    def _why_needed(self, path: str, gone: Collection[str]) -> str:
        """Why a file has to stay once those that are `gone` were removed; empty if it may go."""
        facts, situation = self._draft.facts, self._draft.situation
        if path in facts.live:
            return f"{plain(situation.domain.name)} stands on it."
        if holders := {*facts.frozen_by.get(path, ()), *facts.internal_in.get(path, ())} - self._names:
            return f"it holds {snapshots_named(sorted(holders))}."
        if users := set(facts.returned_to.get(path, ())) - self._names:
            return f"a revert to {snapshots_named(sorted(users))}, which left this disk out, goes back to it."
        if overlays := facts.others_above(path).difference(gone):
            return f"{files_named(overlays)} stands on it."
        if machines := facts.dependants.get(path):
            return f"{machines_named(machines)} reads it."
        if facts.silent:
            return f"{files_named(facts.silent)} can't be read, so nobody knows whether it stands on it."
        if situation.unreadable_domains and path not in self._before.made_by_snapshots:
            unreadable = machines_named(situation.unreadable_domains)
            return f"the disks of {unreadable} can't be followed, so nobody knows whether they stand on it."
        return ""


def _lie_on_each_other(layers: Sequence[str], stack: Sequence[str]) -> bool:
    start = stack.index(layers[0])
    return list(stack[start : start + len(layers)]) == list(layers)


def _most_layers(situation: Situation) -> int | None:
    """How many layers a machine may have that this libvirt starts; None if there is no such limit."""
    has_limit = NESTING_SINCE <= situation.host.libvirt_version < NESTING_UNTIL
    return MOST_LAYERS_TO_START if has_limit else None
