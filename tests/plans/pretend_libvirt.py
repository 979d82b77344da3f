"""A libvirt in memory that does what the real one does with images, right or wrong, and knows every image's content.

Written from libvirt 11.3's qemu_snapshot.c, not from SnapTree's rules: it checks nothing that libvirt does not check,
and happily unlinks and overwrites what libvirt would. `test_pretend_libvirt.py` holds it against the real one.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from snaptree.model.estate import (
    Annotations,
    DiskChain,
    DiskSnapshot,
    Domain,
    DomainLayers,
    DomainState,
    Host,
    Image,
    InternalSnapshot,
    MemorySnapshot,
    Snapshot,
    SnapshotDisk,
)
from snaptree.model.figures import exact
from snaptree.model.tree import SnapshotTree
from snaptree.plans.plan import (
    DeleteSnapshot,
    DescribeSnapshot,
    ForkAtSnapshot,
    MergeLayers,
    MergeWay,
    RecordLayers,
    RemoveLeftover,
    RevertToSnapshot,
    Step,
    StopMachine,
    TakeSnapshot,
)
from snaptree.plans.situation import Disk, Situation

BLOCKS = 3
Blocks = tuple[int | None, ...]
"""What an image holds itself: a token for each block that was written, None where the layer below shows."""

UNREADABLE = -1
"""What a guest would read through a missing file."""


class RefusedError(Exception):
    """libvirt answers with an error; nothing was changed."""


class CrashError(Exception):
    """libvirt's daemon would be gone."""


@dataclass
class File:
    own: Blocks = (None,) * BLOCKS
    backing: str | None = None
    format: str = "qcow2"
    inside: dict[str, tuple[str, Blocks]] = field(default_factory=dict)
    """Internal snapshot -> its number and content."""
    next_id: int = 1


@dataclass
class Held:
    """A snapshot as libvirt recorded it, and (as only we know) what the guest's disks held when it was taken."""

    parent: str | None
    external: bool
    state: DomainState
    created: int
    how: dict[str, DiskSnapshot]
    frozen: dict[str, str]
    overlays: dict[str, str] = field(default_factory=dict)
    revert_overlays: dict[str, str] = field(default_factory=dict)
    content: dict[str, tuple[int, ...]] = field(default_factory=dict)
    memory_file: str | None = None
    records_chain: bool = False
    """Its definition lists the layers below: so when the active layer was made while the machine ran."""
    doubtful: bool = False
    """Somebody marked it so."""


class PretendLibvirt:
    """One machine, off or paused, and other machines' clones on the same host."""

    def __init__(self, disks: int = 1, base_format: str = "qcow2", *, paths: Mapping[str, str] | None = None) -> None:
        self.files: dict[str, File] = {}
        self.disks: dict[str, str] = {}
        self.snapshots: dict[str, Held] = {}
        self.current: str | None = None
        self.state = DomainState.OFF
        self.memory_files: set[str | None] = set()
        self.clones: dict[str, str] = {}
        """Another machine -> its disk."""
        self.clock = 1_700_000_000
        self.token = 0
        named = {target: f"/images/{target}.{base_format}" for target in ("vda", "vdb")[:disks]}
        for target, path in (paths or named).items():
            self.files[path] = File(tuple(self._token() for _ in range(BLOCKS)), format=base_format)
            self.disks[target] = path

    def copy(self) -> PretendLibvirt:
        return copy.deepcopy(self)

    # What everybody reads

    def visible(self, path: str | None) -> tuple[int, ...]:
        if path is None:
            return (0,) * BLOCKS
        file = self.files.get(path)
        if file is None:
            return (UNREADABLE,) * BLOCKS
        return self._over(file.own, file.backing)

    def _over(self, own: Blocks, backing: str | None) -> tuple[int, ...]:
        below = self.visible(backing)
        if UNREADABLE in below:
            return below
        return tuple(under if block is None else block for block, under in zip(own, below, strict=True))

    def now(self) -> dict[str, tuple[int, ...]]:
        return {target: self.visible(path) for target, path in self.disks.items()}

    def held(self, name: str) -> dict[str, tuple[int, ...]]:
        """What the images hold of a snapshot; compare with its `content`."""
        snapshot = self.snapshots[name]
        content = {}
        for target, how in snapshot.how.items():
            path = snapshot.frozen[target]
            if how is DiskSnapshot.EXTERNAL:
                content[target] = self.visible(path)
            elif how is DiskSnapshot.INTERNAL:
                file = self.files.get(path)
                entry = None if file is None else file.inside.get(name)
                unreadable = (UNREADABLE,) * BLOCKS
                content[target] = unreadable if file is None or entry is None else self._over(entry[1], file.backing)
        return content

    def is_intact(self, name: str) -> bool:
        content = self.snapshots[name].content
        return all(content[target] == found for target, found in self.held(name).items())

    def children(self, name: str | None) -> list[str]:
        return [child for child, snapshot in self.snapshots.items() if snapshot.parent == name]

    def ancestors(self, name: str) -> list[str]:
        found = []
        parent = self.snapshots[name].parent
        while parent is not None:
            found.append(parent)
            parent = self.snapshots[parent].parent
        return found

    def descendants(self, name: str) -> list[str]:
        return [other for other in self.snapshots if name in self.ancestors(other)]

    def chain(self, path: str) -> list[str]:
        chain = []
        layer: str | None = path
        while layer is not None and layer in self.files:
            chain.append(layer)
            layer = self.files[layer].backing
        return chain

    # The guest, and other people

    def _token(self) -> int:
        self.token += 1
        return self.token

    def write(self, block: int, target: str = "vda") -> None:
        file = self.files[self.disks[target]]
        file.own = (*file.own[:block], self._token(), *file.own[block + 1 :])

    def clone(self, machine: str, base: str) -> None:
        """Another machine's disk on one of our images."""
        path = f"/images/{machine}.qcow2"
        self.files[path] = File(backing=base)
        self.clones[machine] = path

    def overlay_by_hand(self, base: str) -> None:
        """qemu-img create -b: something of somebody's, that no machine mentions."""
        self.files[f"/images/by-hand-{self._token()}.qcow2"] = File(backing=base)

    def commit_by_hand(self, target: str, position: int, *, keep: bool) -> None:
        """virsh blockcommit of one layer into the one below. No snapshot hears of it."""
        chain = self.chain(self.disks[target])
        top, base = chain[position], chain[position + 1]
        self.files[base].own = tuple(
            under if block is None else block
            for block, under in zip(self.files[top].own, self.files[base].own, strict=True)
        )
        if position:
            self.files[chain[position - 1]].backing = base
        else:
            self.disks[target] = base
        if not keep:
            del self.files[top]

    def pull_by_hand(self, target: str) -> None:
        """virsh blockpull: the active layer takes in all that is below."""
        file = self.files[self.disks[target]]
        if UNREADABLE in self.visible(self.disks[target]):
            raise RefusedError("could not open backing file")
        file.own, file.backing = self.visible(self.disks[target]), None

    # libvirt

    def run(self, step: Step) -> None:
        """Carry out one step, two seconds later."""
        self.clock += 2
        match step:
            case TakeSnapshot():
                self.take(step)
            case RevertToSnapshot():
                self.revert(step.name)
            case StopMachine():
                self.state = DomainState.OFF
            case ForkAtSnapshot():
                self.fork(step)
            case DeleteSnapshot():
                self.delete(step.name)
            case MergeLayers():
                self.merge(step)
            case RecordLayers():
                self.record(step)
            case DescribeSnapshot():
                self.snapshots[step.name].doubtful = step.after.doubtful
            case RemoveLeftover():
                self.files.pop(step.path, None)
                self.memory_files -= {step.path}

    def take(self, step: TakeSnapshot) -> None:
        if step.name in self.snapshots:
            raise RefusedError("exists")
        external = DiskSnapshot.EXTERNAL in step.disks.values()
        internal = DiskSnapshot.INTERNAL in step.disks.values()
        if external and internal:
            raise RefusedError("mixing internal and external targets for a snapshot is not yet supported")
        if internal and DiskSnapshot.NO in step.disks.values():
            raise RefusedError("internal and full system snapshots require all disks to be selected for snapshot")
        if internal and any(self.files[path].format != "qcow2" for path in self.disks.values()):
            raise RefusedError("unsupported for storage type raw")
        if any(path in self.files or path in self.memory_files for path in (*step.overlays.values(), step.memory_file)):
            raise RefusedError("external snapshot file already exists")
        snapshot = Held(
            parent=self.current,
            external=external,
            state=DomainState.DISK_ONLY if self.state.is_active and step.memory is MemorySnapshot.NO else self.state,
            memory_file=step.memory_file,
            created=self.clock,
            how=dict(step.disks),
            frozen=dict(self.disks),
            overlays=dict(step.overlays),
            content=self.now(),
        )
        if step.memory_file is not None:
            self.memory_files.add(step.memory_file)
        for target, overlay in step.overlays.items():
            self.files[overlay] = File(backing=self.disks[target])
            self.disks[target] = overlay
        if internal:
            for path in self.disks.values():
                file = self.files[path]
                file.inside[step.name] = (str(file.next_id), file.own)
                file.next_id += 1
        if self.current is not None:
            self.snapshots[self.current].revert_overlays = {}
        self.snapshots[step.name] = snapshot
        self.current = step.name

    def revert(self, name: str) -> None:
        snapshot = self.snapshots[name]
        if snapshot.external:
            self._revert_external(name, snapshot)
        else:
            self._revert_internal(name, snapshot)
        self.current = name
        self.state = DomainState.OFF if snapshot.state is DomainState.DISK_ONLY else snapshot.state

    def _revert_internal(self, name: str, snapshot: Held) -> None:
        for path in snapshot.frozen.values():
            if any(layer not in self.files for layer in self._recorded_chain(path)):
                raise RefusedError("could not open backing file")
            if name not in self.files[path].inside:
                raise RefusedError("can't find snapshot")
        for path in snapshot.frozen.values():
            file = self.files[path]
            by_number = [content for number, content in file.inside.values() if number == name]
            file.own = by_number[0] if by_number else file.inside[name][1]
        self.disks = dict(snapshot.frozen)

    def _revert_external(self, name: str, snapshot: Held) -> None:
        if self.current is None:
            raise CrashError("no current snapshot")
        overlays = {target: f"{path.rpartition('.')[0]}.{self.clock}" for target, path in snapshot.frozen.items()}
        if snapshot.memory_file is not None and snapshot.memory_file not in self.memory_files:
            raise RefusedError("could not open saved memory")
        for target, path in snapshot.frozen.items():
            if any(layer not in self.files for layer in self._recorded_chain(path)):
                raise RefusedError("could not open backing file")
            if overlays[target] in self.files:
                raise RefusedError("external snapshot file already exists")
        for target, path in snapshot.frozen.items():
            self.files[overlays[target]] = File(backing=path)
        current = self.snapshots[self.current]
        unlinked = current.revert_overlays or (current.overlays if current.external else {})
        for path in unlinked.values():
            self.files.pop(path, None)
        current.revert_overlays = {}
        if self.children(name):
            snapshot.revert_overlays = dict(overlays)
        else:
            self._own(snapshot, overlays)
        self.disks = dict(overlays)

    def fork(self, step: ForkAtSnapshot) -> None:
        """What SnapTree does where libvirt can't revert: libvirt hears of the new layers only as the snapshot's own."""
        assert not self.state.is_active, "the machine must be off"
        snapshot = self.snapshots[step.name]
        if snapshot.memory_file is not None and snapshot.memory_file not in self.memory_files:
            raise RefusedError("could not open saved memory")
        for target, overlay in step.overlays.items():
            assert overlay not in self.files, f"{overlay} is somebody's"
            assert step.bases[target].path == snapshot.frozen[target]
            if any(layer not in self.files for layer in self._recorded_chain(step.bases[target].path)):
                raise RefusedError("could not open backing file")
            self.files[overlay] = File(backing=step.bases[target].path)
            if step.owns_overlays and snapshot.how[target] is DiskSnapshot.EXTERNAL:
                snapshot.overlays[target] = overlay
        self.disks = dict(step.overlays)
        self.current = step.name
        self.state = DomainState.OFF if snapshot.state is DomainState.DISK_ONLY else snapshot.state

    def _own(self, snapshot: Held, overlays: dict[str, str]) -> None:
        """Overlays of a revert take the place of its own: disks that were left out become part of it, as they are."""
        for target in overlays:
            if snapshot.how[target] is not DiskSnapshot.EXTERNAL:
                snapshot.content[target] = self.visible(snapshot.frozen[target])
        snapshot.overlays = dict(overlays)
        snapshot.how = dict.fromkeys(overlays, DiskSnapshot.EXTERNAL)

    def _recorded_chain(self, path: str) -> list[str]:
        chain: list[str] = []
        layer: str | None = path
        while layer is not None:
            chain.append(layer)
            layer = self.files[layer].backing if layer in self.files else None
        return chain

    def delete(self, name: str) -> None:
        snapshot = self.snapshots[name]
        if snapshot.external:
            self._check_external_delete(name)
            if name == self.current or self.children(name):
                self._merge(name, snapshot)
            else:
                self._unlink_frozen(name, snapshot)
            self.memory_files -= {snapshot.memory_file}
        else:
            if self.state.is_active and snapshot.frozen != self.disks:
                raise RefusedError("disk image is not the same as disk image currently used by VM")
            for path in snapshot.frozen.values():
                if path in self.files:
                    self.files[path].inside.pop(name, None)
        self._forget(name, snapshot)

    def _check_external_delete(self, name: str) -> None:
        children = self.children(name)
        if name == self.current and children:
            raise RefusedError("deletion of active external snapshot that is not a leaf snapshot is not supported")
        if name != self.current and children:
            if self.current is None:
                raise CrashError("no current snapshot")
            if name not in self.ancestors(self.current):
                raise RefusedError("deletion of non-leaf external snapshot that is not in active chain")
        if len(children) > 1:
            raise RefusedError("deletion of external disk snapshot with multiple children snapshots not supported")

    def _parent_for_disk(self, name: str, target: str) -> Held | None:
        for ancestor in self.ancestors(name):
            if self.snapshots[ancestor].how.get(target, DiskSnapshot.NO) is not DiskSnapshot.NO:
                return self.snapshots[ancestor]
        return None

    def _external_targets(self, snapshot: Held) -> list[str]:
        return [target for target, how in snapshot.how.items() if how is DiskSnapshot.EXTERNAL]

    def _merge(self, name: str, snapshot: Held) -> None:
        children = self.children(name)
        merges = {}
        for target in self._external_targets(snapshot):
            overlay = self.snapshots[children[0]].frozen[target] if children else self.disks[target]
            chain = self.chain(self.disks[target])
            if overlay not in chain:
                raise RefusedError("could not find image in chain")
            base = self.files[overlay].backing
            if base is None:
                raise RefusedError("failed to find parent disk source in backing chain")
            if base != snapshot.frozen[target]:
                raise RefusedError("snapshot VM disk source and parent disk source are not the same")
            if any(layer not in self.files for layer in self._recorded_chain(self.disks[target])):
                raise RefusedError("could not open backing file")
            parent = self._parent_for_disk(name, target)
            if parent is not None and not parent.external:
                raise RefusedError("deleting external snapshot that has internal snapshot as parent not supported")
            merges[target] = (overlay, base)
        active_path = {self.current, *self.ancestors(self.current)} if self.current else set()
        for other in set(self.descendants(name)) - active_path:
            branch = self.snapshots[other]
            if not branch.records_chain and any(
                len(self._recorded_chain(path)) > 1 or path not in self.files for path in branch.frozen.values()
            ):
                raise CrashError("looks for the backing store of a branch whose layers are not recorded")
        for target, (overlay, base) in merges.items():
            above = self.chain(self.disks[target])
            position = above.index(overlay)
            merged = self.files[overlay]
            self.files[base].own = tuple(
                under if block is None else block for block, under in zip(merged.own, self.files[base].own, strict=True)
            )
            followed = {above[position - 1]} if position else set()
            for other in self.descendants(name):
                if other not in active_path:
                    followed |= set(self.snapshots[other].frozen.values())
            for path in followed:
                if path in self.files and self.files[path].backing == overlay:
                    self.files[path].backing = base
            del self.files[overlay]
            if self.disks[target] == overlay:
                self.disks[target] = base
            for other in self.descendants(name):
                if self.snapshots[other].external and self.snapshots[other].frozen.get(target) == overlay:
                    self.snapshots[other].frozen[target] = base

    def _unlink_frozen(self, name: str, snapshot: Held) -> None:
        for target in self._external_targets(snapshot):
            parent = self._parent_for_disk(name, target)
            if parent is not None and parent.external:
                self.files.pop(snapshot.frozen[target], None)

    def _forget(self, name: str, snapshot: Held) -> None:
        for child in self.children(name):
            self.snapshots[child].parent = snapshot.parent
        if snapshot.parent is not None and (parent := self.snapshots[snapshot.parent]).revert_overlays:
            self._own(parent, parent.revert_overlays)
            parent.revert_overlays = {}
        if self.current == name:
            self.current = snapshot.parent
        del self.snapshots[name]

    # QEMU's block jobs, and what libvirt is told of them

    def merge(self, step: MergeLayers) -> None:
        stack = [layer.path for layer in step.stack]
        if stack != self._recorded_chain(stack[0]):
            raise RefusedError("the images stand on others than expected")
        in_use = (
            {layer for path in self.disks.values() for layer in self.chain(path)} if self.state.is_active else set()
        )
        top, lowest = step.layers[0], step.layers[-1]
        position = stack.index(top)
        if tuple(stack[position : position + len(step.layers)]) != step.layers:
            raise RefusedError("the layers do not lie on each other")
        if step.is_live:
            if stack[0] != self.disks[step.target]:
                raise RefusedError("the machine does not use these layers")
            if step.way is MergeWay.PULL and position:
                raise RefusedError("libvirt pulls into active layers only")
        elif {step.merged, *stack[: position + 1]} & in_use:
            raise RefusedError("Failed to get write lock")
        if self.files[top].inside:
            raise RefusedError("an internal snapshot would be lost")
        merged: Blocks = (None,) * BLOCKS
        for path in reversed(step.layers):
            own = self.files[path].own
            merged = tuple(under if block is None else block for block, under in zip(own, merged, strict=True))
        if step.way is MergeWay.PULL:
            self.files[top].own, self.files[top].backing = merged, self.files[lowest].backing
            return
        self.files[lowest].own = merged
        if position:
            self.files[stack[position - 1]].backing = lowest
        elif step.is_live:
            self.disks[step.target] = lowest

    def record(self, step: RecordLayers) -> None:
        for target, path in self.disks.items():
            if path in step.moved:
                if self.state.is_active:
                    raise RefusedError("a running machine's disk is not moved by a definition")
                self.disks[target] = step.moved[path].path
        for name, held in self.snapshots.items():
            if any(set(self._recorded_chain(path)) & {*step.removed, *step.moved} for path in held.frozen.values()):
                held.records_chain = False
            held.frozen = {
                target: step.moved[path].path if path in step.moved else path for target, path in held.frozen.items()
            }
            held.overlays |= step.overlays.get(name, {})
            if name in step.revert_overlays:
                held.revert_overlays = dict(step.revert_overlays[name])
            held.parent = step.parents.get(name, held.parent)
        for name in step.forgotten:
            if self.children(name):
                raise RefusedError("it has children")
            held = self.snapshots.pop(name)
            left = (set(held.frozen.values()) & self.files.keys()) - {*step.removed}
            if any(name in self.files[path].inside for path in left):
                raise RefusedError("its data would be left inside an image")
            if self.current == name:
                self.current = held.parent

    # What SnapTree would read

    def situation(self, version: int = 11_003_000) -> Situation:
        overlays_on: dict[str, set[str]] = {}
        dependants: dict[str, set[str]] = {}
        for path, file in self.files.items():
            if file.backing is not None:
                overlays_on.setdefault(file.backing, set()).add(path)
        for machine, disk in self.clones.items():
            for layer in self.chain(disk)[1:]:
                dependants.setdefault(layer, set()).add(machine)
        images = {path: self._image(path) for path in self._named_images()}
        return Situation(
            host=Host("qemu:///pretend", "pretend", "QEMU", version, 7_002_000, False, True, version >= 9_009_000),
            domain=Domain("7c0e4a3c-0000-4000-8000-000000000001", "pretend", self.state, True),
            tree=SnapshotTree.build([self._snapshot(name) for name in self.snapshots], self.current),
            layers=DomainLayers(
                chains=tuple(
                    DiskChain(
                        target,
                        tuple(self.chain(path)),
                        "" if self._is_whole(path) else "a backing file is missing",
                    )
                    for target, path in self.disks.items()
                ),
                images=MappingProxyType(images),
                is_running=self.state.is_active,
            ),
            disks=self._disks(),
            recorded_disks=MappingProxyType(
                {
                    name: tuple(
                        Disk(
                            target, "disk", "file", self._format(path), path, "virtio", records_chain=held.records_chain
                        )
                        for target, path in held.frozen.items()
                    )
                    for name, held in self.snapshots.items()
                }
            ),
            dependants=MappingProxyType({path: frozenset(names) for path, names in dependants.items()}),
            overlays_on=MappingProxyType({path: frozenset(names) for path, names in overlays_on.items()}),
            existing_files=frozenset({*self.files, *(path for path in self.memory_files if path)}),
            missing_files=frozenset(
                held.memory_file
                for held in self.snapshots.values()
                if held.memory_file is not None and held.memory_file not in self.memory_files
            ),
            takes_new_layers=frozenset({"/images"}),
            memory_bytes=1 << 26,
            now=self.clock,
        )

    def _is_whole(self, path: str) -> bool:
        return all(layer in self.files for layer in self._recorded_chain(path))

    def _named_images(self) -> set[str]:
        named = set(self.disks.values())
        for snapshot in self.snapshots.values():
            named |= {*snapshot.frozen.values(), *snapshot.overlays.values(), *snapshot.revert_overlays.values()}
        return {layer for path in named for layer in self._recorded_chain(path)}

    def _image(self, path: str) -> Image:
        file = self.files.get(path)
        if file is None:
            return Image(path, "qcow2", exact(0), is_missing=True, problem="missing")
        return Image(
            path=path,
            format=file.format,
            allocated=exact(sum(block is not None for block in file.own) << 16),
            backing=file.backing,
            backing_format=None if file.backing is None else "qcow2",
            internal_snapshots=tuple(InternalSnapshot(number, name, 0, 0) for name, (number, _) in file.inside.items()),
        )

    def _snapshot(self, name: str) -> Snapshot:
        held = self.snapshots[name]
        return Snapshot(
            name=name,
            parent=held.parent,
            created=held.created,
            state=held.state,
            memory=self._memory(held),
            memory_file=held.memory_file,
            disks=tuple(
                SnapshotDisk(
                    target,
                    how,
                    frozen=held.frozen.get(target),
                    overlay=held.overlays.get(target) if how is DiskSnapshot.EXTERNAL else None,
                    frozen_format=self._format(held.frozen.get(target)),
                )
                for target, how in held.how.items()
            ),
            revert_overlays=tuple(held.revert_overlays.items()),
            annotations=Annotations(doubtful=held.doubtful),
        )

    def _memory(self, held: Held) -> MemorySnapshot:
        if held.external:
            return MemorySnapshot.NO if held.memory_file is None else MemorySnapshot.EXTERNAL
        return MemorySnapshot.INTERNAL if held.state.is_active else MemorySnapshot.NO

    def _format(self, path: str | None) -> str:
        return self.files[path].format if path in self.files else "qcow2"

    def _disks(self) -> tuple[Disk, ...]:
        return tuple(
            Disk(target, "disk", "file", self._format(path), path, "virtio") for target, path in self.disks.items()
        )
