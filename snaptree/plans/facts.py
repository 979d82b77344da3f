"""What follows from a situation: which image holds what, who stands on whom, and which files a change would touch.

Images are compared by identity (device and inode) where that is known: two paths may be one file.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import islice, pairwise

from snaptree.model.estate import DiskSnapshot, Image, MemorySnapshot, Snapshot, SnapshotDisk, SnapshotKind
from snaptree.plans.of_no_use import (
    DOUBTFUL,
    HALF_DELETED,
    IMAGE_MISSING,
    MEMORY_MISSING,
    NOT_IN_IMAGE,
    with_interrupted,
)
from snaptree.plans.situation import Disk, Situation

QEMU_10 = 10_000_000
"""A paused machine lets go of its images also when its memory was loaded, and then takes no new layers on them."""
LIBVIRT_9_1 = 9_001_000
"""Deleting a snapshot removes its memory file."""
LIBVIRT_9_3 = 9_003_000
"""Internal snapshots of a UEFI machine that is off."""
LIBVIRT_9_9 = 9_009_000
"""External reverts, and deletes that look after the branches not in use."""
LIBVIRT_10_9 = 10_009_000
"""Internal snapshots through QMP: UEFI with qcow2 NVRAM, and names that must be fit for a job."""
LIBVIRT_10_10 = 10_010_000
"""Internal reverts through QMP."""
LIBVIRT_11_0 = 11_000_000
"""Deleting an external leaf below an internal snapshot keeps the image that holds the internal one (GitLab #734)."""


@dataclass(frozen=True, slots=True)
class Merge:
    """One disk's part in deleting an external snapshot: `overlay` is committed into `into`, then unlinked."""

    target: str
    overlay: str
    into: str


@dataclass(frozen=True, slots=True)
class DeleteEffect:
    """What libvirt does to files when it deletes a snapshot."""

    merges: tuple[Merge, ...] = ()
    removes: tuple[str, ...] = ()
    """Frozen layers that are unlinked with everything in them."""
    leaks: tuple[str, ...] = ()
    """Frozen layers that nothing needs any more and libvirt leaves behind."""


@dataclass(frozen=True, slots=True)
class BrokenLink:
    """An image that does not stand on what the snapshots recorded. `holder` is None for the running state."""

    holder: str | None
    target: str
    image: str
    recorded_below: str
    actual_below: str | None


def is_external(snapshot: Snapshot) -> bool:
    """Whether libvirt treats it as external: its memory or any of its disks is."""
    return snapshot.kind is not SnapshotKind.INTERNAL


def is_same_snapshot(one: Snapshot, other: Snapshot) -> bool:
    """Whether two names stand for one external snapshot, as no two freeze the same layers. One may have no memory."""
    if one.name == other.name or (one.created, one.disks) != (other.created, other.disks):
        return False
    return bool(external_disks(one)) or (is_external(one) and one.memory_file == other.memory_file)


def disk_of(snapshot: Snapshot, target: str) -> SnapshotDisk | None:
    """How a snapshot holds one disk; None if it does not know it."""
    return next((disk for disk in snapshot.disks if disk.target == target), None)


def external_disks(snapshot: Snapshot) -> tuple[SnapshotDisk, ...]:
    """The disks that a snapshot holds as a frozen layer."""
    return tuple(disk for disk in snapshot.disks if disk.how is DiskSnapshot.EXTERNAL)


def internal_images(snapshot: Snapshot) -> tuple[str, ...]:
    """The images inside which a snapshot lies."""
    return tuple(disk.frozen for disk in snapshot.disks if disk.how is DiskSnapshot.INTERNAL and disk.frozen)


def takes_writes(disk: Disk) -> bool:
    """Whether a guest can change this disk's content, so that a snapshot has to hold it."""
    is_empty = disk.type == "file" and disk.path is None
    return not (is_empty or disk.read_only or disk.device == "cdrom")


_normal = lru_cache(maxsize=1 << 16)(posixpath.normpath)
"""The same paths are asked for again in each of the situations that a plan of many steps goes through."""


def is_part_of_memory(disk: Disk) -> bool:
    """Whether saved RAM holds what a guest knows of this disk's file systems, so that both are of one moment or lost.

    Floppies are never held, and nobody's file systems lie there.
    """
    return takes_writes(disk) and disk.device != "floppy"


@dataclass(frozen=True, eq=False)
class Facts:
    """Everything derived from one situation, each worked out when first asked for. Images are canonical paths."""

    situation: Situation

    def image(self, path: str) -> Image | None:
        """What is known about an image."""
        return self.situation.layers.images.get(path)

    def key(self, path: str) -> str:
        """The one path by which an image is known here."""
        return self._canonical.get(path) or _normal(path)

    def keys(self, paths: Iterable[str | None]) -> frozenset[str]:
        """Canonical paths of those that are paths."""
        return frozenset(self.key(path) for path in paths if path)

    @cached_property
    def _canonical(self) -> Mapping[str, str]:
        first: dict[tuple[int, int], str] = {}
        canonical = {}
        for path in sorted(self.situation.layers.images):
            identity = self.situation.layers.images[path].identity
            if identity is not None:
                canonical[path] = first.setdefault(identity, _normal(path))
        return canonical

    # What the machine stands on

    @cached_property
    def chains(self) -> Mapping[str, tuple[str, ...]]:
        """Disk -> layers in use now, active first."""
        return {
            chain.target: tuple(self.key(layer) for layer in chain.layers) for chain in self.situation.layers.chains
        }

    @cached_property
    def live(self) -> frozenset[str]:
        """Every layer in use now."""
        return frozenset(layer for layers in self.chains.values() for layer in layers)

    @cached_property
    def active(self) -> frozenset[str]:
        """The layers that take writes now."""
        return frozenset(layers[0] for layers in self.chains.values() if layers)

    @cached_property
    def below(self) -> Mapping[str, str | None]:
        """Image -> the image it stands on, None at the bottom. Images that could not be read are not in it."""
        below: dict[str, str | None] = {}
        for path, image in self.situation.layers.images.items():
            if not image.problem and not image.is_missing:
                below[self.key(path)] = self.key(image.backing) if image.backing else None
        # The running QEMU knows better than a header that is being rewritten.
        for chain in self.situation.layers.chains:
            layers = self.chains[chain.target]
            below.update(pairwise(layers))
            if layers and not chain.problem:
                below[layers[-1]] = None
        return below

    @cached_property
    def above(self) -> Mapping[str, Set[str]]:
        """Image -> existing images that stand directly on it."""
        above: dict[str, set[str]] = {}
        for image, base in self.below.items():
            if base is not None:
                above.setdefault(base, set()).add(image)
        for base, overlays in self.situation.overlays_on.items():
            above.setdefault(self.key(base), set()).update(
                self.key(overlay) for overlay in overlays if not self._is_missing(overlay)
            )
        return above

    def stack(self, path: str) -> Iterator[str]:
        """An image and everything below it, as far as it is known."""
        seen: set[str] = set()
        layer: str | None = self.key(path)
        while layer is not None and layer not in seen:
            seen.add(layer)
            yield layer
            layer = self.below.get(layer)

    def depth(self, path: str) -> int:
        """How many layers an image and those below it are."""
        line = []
        for layer in self.stack(path):
            if (known := self._depths.get(layer)) is not None:
                break
            line.append(layer)
        else:
            known = 0
        for layer in reversed(line):
            known += 1
            self._depths[layer] = known
        return known

    @cached_property
    def _depths(self) -> dict[str, int]:
        """Those that were asked for."""
        return {}

    def _is_missing(self, path: str) -> bool:
        image = self.image(path)
        return image is not None and image.is_missing

    def missing_in_stack(self, path: str) -> tuple[str, ...]:
        """Of an image and everything below it: files that do not exist."""
        return tuple(layer for layer in self.stack(path) if layer in self.missing)

    @cached_property
    def missing(self) -> frozenset[str]:
        """Images that something names and that do not exist."""
        return self.keys(path for path, image in self.situation.layers.images.items() if image.is_missing)

    @cached_property
    def unreadable(self) -> Mapping[str, str]:
        """Image -> why it can't be read, for those that exist."""
        return {
            self.key(path): image.problem
            for path, image in self.situation.layers.images.items()
            if image.problem and not image.is_missing
        }

    @cached_property
    def silent(self) -> frozenset[str]:
        """Layers of the machine and its snapshots that don't say what they stand on: they are gone, or unreadable."""
        return (self.missing | self.unreadable.keys()) & (self.live | self.frozen_by.keys())

    # Who needs an image

    @cached_property
    def returned_to(self) -> Mapping[str, tuple[str, ...]]:
        """Image -> snapshots that left its disk out, and to which a revert puts the machine on it all the same."""
        found: dict[str, list[str]] = {}
        for snapshot in self.situation.tree:
            for disk in snapshot.disks:
                if disk.how is DiskSnapshot.NO and disk.frozen:
                    found.setdefault(self.key(disk.frozen), []).append(snapshot.name)
        return {image: tuple(names) for image, names in found.items()}

    @cached_property
    def frozen_by(self) -> Mapping[str, tuple[str, ...]]:
        """Image -> external snapshots whose content it holds."""
        frozen: dict[str, list[str]] = {}
        for snapshot in self.situation.tree:
            for disk in external_disks(snapshot):
                if disk.frozen:
                    frozen.setdefault(self.key(disk.frozen), []).append(snapshot.name)
        return {image: tuple(names) for image, names in frozen.items()}

    def other_names(self, snapshot: Snapshot) -> tuple[str, ...]:
        """Under which names libvirt lists an external snapshot as well."""
        return tuple(other.name for other in self._taken_at[snapshot.created] if is_same_snapshot(snapshot, other))

    @cached_property
    def _taken_at(self) -> Mapping[int, tuple[Snapshot, ...]]:
        """Second -> snapshots."""
        taken: dict[int, list[Snapshot]] = {}
        for snapshot in self.situation.tree:
            taken.setdefault(snapshot.created, []).append(snapshot)
        return {second: tuple(snapshots) for second, snapshots in taken.items()}

    @cached_property
    def internal_in(self) -> Mapping[str, tuple[str, ...]]:
        """Image -> internal snapshots inside it: those that libvirt lists, and strangers in the image's own table."""
        inside: dict[str, dict[str, None]] = {}
        for snapshot in self.situation.tree:
            for path in internal_images(snapshot):
                inside.setdefault(self.key(path), {})[snapshot.name] = None
        for path, image in self.situation.layers.images.items():
            if not image.is_missing:
                for entry in image.internal_snapshots:
                    inside.setdefault(self.key(path), {})[entry.name] = None
        return {path: tuple(names) for path, names in inside.items()}

    @cached_property
    def dependants(self) -> Mapping[str, frozenset[str]]:
        """Image -> other machines that read it."""
        dependants: dict[str, set[str]] = {}
        for path, names in self.situation.dependants.items():
            dependants.setdefault(self.key(path), set()).update(names)
        return {path: frozenset(names) for path, names in dependants.items()}

    @cached_property
    def made_by_snapshots(self) -> frozenset[str]:
        """Images that a snapshot or revert of this machine made: nobody else is likely to stand on them."""
        tree = self.situation.tree
        overlays = [disk.overlay for snapshot in tree for disk in snapshot.disks]
        overlays += [path for snapshot in tree for _, path in snapshot.revert_overlays]
        frozen = [disk.frozen for snapshot in tree if tree.parents[snapshot.name] for disk in external_disks(snapshot)]
        return self.keys([*overlays, *frozen])

    # What was recorded, and what is

    def base_of_now(self, target: str) -> Snapshot | None:
        """The nearest snapshot that froze this disk: what the running state stands on."""
        for name in self._line_of_now():
            disk = disk_of(self.situation.tree[name], target)
            if disk is not None and disk.how is DiskSnapshot.EXTERNAL:
                return self.situation.tree[name]
        return None

    def parent_for_disk(self, name: str, target: str) -> Snapshot | None:
        """The nearest ancestor that holds this disk in any way: what libvirt calls the parent when it deletes."""
        tree = self.situation.tree
        for ancestor in tree.ancestors(name):
            disk = disk_of(tree[ancestor], target)
            if disk is not None and disk.how is not DiskSnapshot.NO:
                return tree[ancestor]
        return None

    @cached_property
    def broken_links(self) -> tuple[BrokenLink, ...]:
        """Where the images do not stand on each other as the snapshots recorded it."""
        return tuple(self._broken_links())

    def _broken_links(self) -> Iterator[BrokenLink]:
        tree = self.situation.tree
        for snapshot in tree:
            bases = self._bases_on.get(tree.parents[snapshot.name] or "", {})
            for disk in snapshot.disks:
                if disk.frozen and disk.how is not DiskSnapshot.NO and disk.target in bases:
                    yield from self._check_link(snapshot.name, disk.target, self.key(disk.frozen), bases[disk.target])
                if disk.frozen and disk.how is DiskSnapshot.EXTERNAL and disk.overlay:
                    # Where the layer was merged away by hand, what stood on it stands lower now.
                    overlay, frozen = self.key(disk.overlay), self.key(disk.frozen)
                    yield from self._check_link(None, disk.target, overlay, (frozen,))
        bases = self._bases_on.get(tree.current or "", {})
        for target, layers in self.chains.items():
            if layers and target in bases:
                yield from self._check_link(None, target, layers[0], bases[target])

    @cached_property
    def _bases_on(self) -> Mapping[str, Mapping[str, tuple[str, ...]]]:
        """Snapshot -> disk -> the images that the disk may stand on afterwards; one that may stand on any is left out.

        That is what the nearest external one froze. Or, if one on the way left the disk out, the image that the disk
        had then: reverted to, that one got an overlay all the same. Or the image in which one on the way lies: an
        external one on that may have been deleted, and its layer been left for the internal one.
        """
        tree = self.situation.tree
        bases_on: dict[str, Mapping[str, tuple[str, ...]]] = {}
        for snapshot in tree:
            bases = bases_on.get(tree.parents[snapshot.name] or "", {})
            changed: dict[str, tuple[str, ...]] = {}
            for disk in snapshot.disks:
                if disk.frozen is None:
                    continue
                frozen = self.key(disk.frozen)
                if disk.how is DiskSnapshot.EXTERNAL:
                    changed[disk.target] = (frozen,)
                elif (
                    disk.how in (DiskSnapshot.NO, DiskSnapshot.INTERNAL)
                    and disk.target in bases
                    and frozen not in bases[disk.target]
                ):
                    changed[disk.target] = (*bases[disk.target], frozen)
            bases_on[snapshot.name] = {**bases, **changed} if changed else bases
        return bases_on

    def _check_link(self, holder: str | None, target: str, image: str, bases: tuple[str, ...]) -> Iterator[BrokenLink]:
        if image not in self.below:
            return
        below, seen = self.below[image], {image}
        # Layers of snapshots that were forgotten may lie between, which others need, or internal snapshots inside.
        while below is not None and below not in bases and below not in seen and self._is_only_between(below):
            seen.add(below)
            below = self.below.get(below)
        if below not in bases:
            yield BrokenLink(holder, target, image, bases[0], self.below[image])

    def _is_only_between(self, image: str) -> bool:
        """Whether what an image shows is no snapshot's and not in use: it is there for what stands on it."""
        return image not in self.frozen_by and image not in self.active

    def _line_of_now(self) -> Iterator[str]:
        """The current snapshot and its ancestors, nearest first."""
        current = self.situation.tree.current
        if current is not None:
            yield current
            yield from self.situation.tree.ancestors(current)

    @cached_property
    def doubtful(self) -> frozenset[str]:
        """Frozen layers that something may have written to since: what lies below a gap, and what takes writes now."""
        return self._merged_into | self._takes_writes

    @cached_property
    def _holders(self) -> Mapping[str, tuple[Snapshot, ...]]:
        """Image -> snapshots, external and internal, taken while it was the active layer."""
        holders: dict[str, list[Snapshot]] = {}
        for snapshot in self.situation.tree:
            for disk in snapshot.disks:
                if disk.frozen and disk.how in (DiskSnapshot.EXTERNAL, DiskSnapshot.INTERNAL):
                    holders.setdefault(self.key(disk.frozen), []).append(snapshot)
        return {image: tuple(snapshots) for image, snapshots in holders.items()}

    def written_after(self, name: str, layer: str) -> bool:
        """Whether a layer that this snapshot stands on was written to later: then it holds something else by now.

        So it was if a snapshot taken later, or a descendant, was taken while that layer was active. Or if one that
        descends from whoever froze it holds it all the same: libvirt's own delete merged down into it.
        """
        tree = self.situation.tree
        line = {name, *tree.ancestors(name)}
        holders = self._holders.get(layer, ())
        froze = line.intersection(self.frozen_by.get(layer, ()))
        return any(
            other.created > tree[name].created or not {name, *froze}.isdisjoint(tree.ancestors(other.name))
            for other in holders
            if other.name not in line
        )

    def doubts_about(self, snapshot: Snapshot) -> tuple[str, ...]:
        """Layers that a snapshot stands on, and that may hold something else than when it was taken."""
        for disk in snapshot.disks:
            stack = self._suspects(disk)
            wrong = tuple(
                layer for layer in stack if layer in self.doubtful or self.written_after(snapshot.name, layer)
            )
            if wrong:
                return wrong
            for link in self.broken_links:
                if stack and link.holder is not None and disk.frozen and link.image == self.key(disk.frozen):
                    return (link.actual_below or link.image,)
        return ()

    def _suspects(self, disk: SnapshotDisk) -> tuple[str, ...]:
        """The layers whose writes a snapshot would show: one inside an image is safe from those to the image itself."""
        if disk.frozen is None or disk.how not in (DiskSnapshot.EXTERNAL, DiskSnapshot.INTERNAL):
            return ()
        return tuple(islice(self.stack(disk.frozen), 0 if disk.how is DiskSnapshot.EXTERNAL else 1, None))

    @cached_property
    def written_to_since(self) -> frozenset[str]:
        """Snapshots with a layer that was written to after they were taken, as others' records and layers in use tell.

        Most often a layer above was merged into it by hand. What stands above both is left out: it shows the same as
        before.
        """
        if not self._is_suspect:
            return frozenset()  # as it mostly is, and thousands would have to be asked one by one
        return frozenset(snapshot.name for snapshot in self.situation.tree if self.is_written_to_since(snapshot))

    @cached_property
    def of_no_use(self) -> Mapping[str, str]:
        """Snapshots that nobody can rely on to go back to, each with the reason in a word or two."""
        found: dict[str, str] = {}
        for snapshot in self.situation.tree:
            name = snapshot.name
            if any(disk.frozen and self._stands_on_nothing(disk.frozen) for disk in snapshot.disks):
                found[name] = IMAGE_MISSING
            elif any(self.lacks(path, name) for path in internal_images(snapshot)):
                found[name] = NOT_IN_IMAGE
            elif snapshot.memory_file in self.situation.missing_files:
                found[name] = MEMORY_MISSING
            elif name in self.situation.half_deleted:
                found[name] = HALF_DELETED
            elif snapshot.annotations.doubtful or (self._is_suspect and self.doubts_about(snapshot)):
                found[name] = DOUBTFUL
        return with_interrupted(found, self.situation.tree, self.situation.unfinished)

    def _stands_on_nothing(self, path: str) -> bool:
        return bool(self.missing) and bool(self.missing_in_stack(path))

    def lacks(self, path: str, name: str) -> bool:
        """Whether an image is known not to hold an internal snapshot."""
        image = self.image(path)
        if image is None or image.problem or image.format != "qcow2":
            return False
        return name not in image.numbers and all(entry.name != name for entry in image.internal_snapshots)

    def is_written_to_since(self, snapshot: Snapshot) -> bool:
        """Whether a snapshot is one of `written_to_since`."""
        return any(
            self.written_after(snapshot.name, layer)
            or (layer in self._takes_writes)
            or (layer in self._merged_into and (above, layer) not in self._gaps)
            for disk in snapshot.disks
            for suspects in (self._suspects(disk),)
            for above, layer in pairwise((self.key(disk.frozen or ""), *suspects))
        )

    @cached_property
    def _gaps(self) -> frozenset[tuple[str, str]]:
        """Images and what they stand on, where that is not what was recorded."""
        return frozenset((link.image, link.actual_below) for link in self.broken_links if link.actual_below is not None)

    @cached_property
    def _merged_into(self) -> frozenset[str]:
        return frozenset(below for _, below in self._gaps)

    @cached_property
    def _takes_writes(self) -> frozenset[str]:
        return self.active & self.frozen_by.keys()

    @cached_property
    def _is_suspect(self) -> bool:
        """Whether any snapshot can be one of `written_to_since`.

        Where all stand on each other as recorded, who froze a layer by itself is an ancestor of all that stand on it,
        and who lies inside one that nothing stands on changed nothing. Of those that no layer is recorded below, none
        stands on what another froze.
        """
        if self.broken_links or self.doubtful:
            return True
        for layer, holders in self._holders.items():
            if len(holders) > 1 if layer in self.frozen_by else bool(self.above.get(layer)):
                return True
        lowest = {
            self.key(disk.frozen)
            for snapshot in self.situation.tree
            for disk in snapshot.disks
            if disk.frozen
            and disk.target not in self._bases_on.get(self.situation.tree.parents[snapshot.name] or "", {})
        }
        return any(layer in self.frozen_by for image in lowest for layer in islice(self.stack(image), 1, None))

    @cached_property
    def owners_of_now(self) -> frozenset[str]:
        """Snapshots that the layers in use say the running state descends from directly."""
        owners: set[str] = set()
        for layers in self.chains.values():
            if len(layers) > 1:
                owners.update(self.frozen_by.get(layers[1], ()))
            owners.update(name for name in self.internal_in.get(layers[0], ()) if name in self.situation.tree)
        return frozenset(owners)

    @cached_property
    def current_owns_now(self) -> bool:
        """Whether the layers in use stand where the current snapshot says. True where that can't be told."""
        if self.situation.tree.current is None:
            return False
        return all(self._stands_on_line(target, layers) for target, layers in self.chains.items())

    def _stands_on_line(self, target: str, layers: tuple[str, ...]) -> bool:
        for name in self._line_of_now():
            snapshot = self.situation.tree[name]
            disk = disk_of(snapshot, target)
            if disk is None or disk.frozen is None or not layers:
                continue
            frozen = self.key(disk.frozen)
            match disk.how:
                case DiskSnapshot.EXTERNAL:
                    # Its own overlay is in use, or at least one on its layer. The first alone: merged by hand below.
                    overlays = self.keys([disk.overlay, dict(snapshot.revert_overlays).get(target)])
                    return layers[0] in overlays or self._stands_on(layers, frozen)
                case DiskSnapshot.INTERNAL:
                    return layers[0] == frozen or self._stands_on(layers, frozen)
                case DiskSnapshot.MANUAL:
                    return True
                case DiskSnapshot.NO if frozen in layers[:2]:
                    return True
        return True

    def _stands_on(self, layers: tuple[str, ...], image: str) -> bool:
        """Whether the active layer stands on an image, with nothing between that belongs to a snapshot."""
        return image in layers[1:] and all(map(self._is_only_between, layers[1 : layers.index(image)]))

    # What a change does to files

    @cached_property
    def unlinked_by_external_revert(self) -> tuple[str, ...]:
        """Overlays that libvirt unlinks when it leaves the current snapshot for an external one."""
        tree = self.situation.tree
        if tree.current is None:
            return ()
        current = tree[tree.current]
        if current.revert_overlays:
            return tuple(self.key(path) for _, path in current.revert_overlays)
        return tuple(self.key(disk.overlay) for disk in external_disks(current) if disk.overlay)

    def delete_effect(self, snapshot: Snapshot) -> DeleteEffect:
        """What libvirt does to files when it deletes this snapshot: nothing where it does not accept to."""
        if not is_external(snapshot):
            return DeleteEffect()
        tree = self.situation.tree
        children = tree.children(snapshot.name)
        if len(children) > 1 or (children and (snapshot.name == tree.current or not self.is_in_use(snapshot.name))):
            return DeleteEffect()
        if snapshot.name == tree.current or children:
            return DeleteEffect(merges=tuple(self._merges(snapshot)))
        removes, leaks = [], []
        for disk in external_disks(snapshot):
            if disk.frozen is None:
                continue
            parent = self.parent_for_disk(snapshot.name, disk.target)
            # Since 11.0 libvirt unlinks it only if the parent is external, so that an overlay of that is all that goes.
            if self.situation.host.libvirt_version < LIBVIRT_11_0 or (parent is not None and is_external(parent)):
                removes.append(self.key(disk.frozen))
            else:
                leaks.append(self.key(disk.frozen))
        return DeleteEffect(removes=tuple(removes), leaks=tuple(leaks))

    def is_in_use(self, name: str) -> bool:
        """Whether the running state descends from this snapshot, as libvirt sees it."""
        return name in self.situation.tree.path_to_current

    def _merges(self, snapshot: Snapshot) -> Iterator[Merge]:
        for disk in external_disks(snapshot):
            overlay = self._overlay_in_use(snapshot, disk)
            if overlay is not None and disk.frozen is not None:
                yield Merge(disk.target, overlay, self.key(disk.frozen))

    def _overlay_in_use(self, snapshot: Snapshot, disk: SnapshotDisk) -> str | None:
        """The layer that took over from a snapshot: what its child froze, or what is active now."""
        tree = self.situation.tree
        for child in tree.children(snapshot.name):
            frozen = disk_of(tree[child], disk.target)
            if frozen is not None and frozen.frozen:
                return self.key(frozen.frozen)
        layers = self.chains.get(disk.target)
        if layers:
            return layers[0]
        return self.key(disk.overlay) if disk.overlay else None

    def others_above(self, image: str, expected: Iterable[str] = ()) -> frozenset[str]:
        """Images that stand on this one, other than those that may."""
        others = set(self.above.get(self.key(image), ()))
        for path in expected:
            if not others:
                break  # mostly at once: plans may name thousands of layers
            others.discard(self.key(path))
        return frozenset(others)

    @property
    def has_external(self) -> bool:
        """Whether any snapshot is external."""
        return any(is_external(snapshot) for snapshot in self.situation.tree)


def memory_file_of(snapshot: Snapshot) -> str | None:
    """The file that holds an external snapshot's RAM."""
    return snapshot.memory_file if snapshot.memory is MemorySnapshot.EXTERNAL else None
