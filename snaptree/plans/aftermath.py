"""What a situation looks like after a step, by what libvirt does: so that the next step of a plan is judged on it.

Pure. Assumes that the step succeeds, and follows libvirt 9.9 and later; before, external reverts are our own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import groupby, pairwise
from types import MappingProxyType

from snaptree.model.estate import (
    Annotations,
    Consistency,
    DiskChain,
    DiskSnapshot,
    DomainState,
    Image,
    InternalSnapshot,
    MemorySnapshot,
    Snapshot,
    SnapshotDisk,
)
from snaptree.model.figures import Confidence, Figure, exact, total
from snaptree.model.tree import SnapshotTree
from snaptree.plans.facts import (
    LIBVIRT_9_1,
    QEMU_10,
    DeleteEffect,
    Facts,
    disk_of,
    internal_images,
    is_external,
    memory_file_of,
)
from snaptree.plans.naming import revert_overlay_path
from snaptree.plans.plan import (
    CopyOut,
    DeleteSnapshot,
    DescribeSnapshot,
    DropManagedSave,
    EndOrphanedMerge,
    ForgetMemory,
    ForkAtSnapshot,
    FreezeFileSystems,
    MakeLook,
    MergeLayers,
    MergeWay,
    RecordLayers,
    RemoveLeftover,
    RemoveLook,
    RenameSnapshot,
    RevertToSnapshot,
    StartLook,
    StateAfter,
    Step,
    StopMachine,
    TakeSnapshot,
    ThawFileSystems,
)
from snaptree.plans.situation import Disk, Situation

_JUST_MADE = exact(0, "made by this plan itself")


def after(situation: Situation, *steps: Step) -> Situation:
    """The situation after steps have been run. Who holds the clusters of an image is then for nobody to say."""
    then = situation
    for removes, group in groupby(steps, key=lambda step: isinstance(step, RemoveLeftover)):
        if removes:  # there may be thousands
            then = _without_files(then, {step.path for step in group if isinstance(step, RemoveLeftover)})
            continue
        for step in group:
            then = _after(then, step)
    return replace(then, layers=replace(then.layers, sharing=MappingProxyType({})))


def _after(situation: Situation, step: Step) -> Situation:
    match step:
        case TakeSnapshot():
            return after_take(situation, step)
        case FreezeFileSystems() | ThawFileSystems():
            return situation
        case RevertToSnapshot():
            return after_revert(situation, step)
        case StopMachine():
            return replace(
                situation,
                domain=replace(situation.domain, state=DomainState.OFF),
                layers=replace(situation.layers, is_running=False),
                images_let_go=False,
                block_jobs=(),
            )
        case DropManagedSave():
            return replace(situation, domain=replace(situation.domain, has_managed_save=False))
        case ForkAtSnapshot():
            return after_fork(situation, step)
        case DeleteSnapshot():
            return after_delete(situation, step)
        case EndOrphanedMerge():
            return replace(situation, block_jobs=(), domain=replace(situation.domain, state=DomainState.OFF))
        case MergeLayers():
            return after_merge(situation, step)
        case DescribeSnapshot():
            return after_describe(situation, step)
        case RenameSnapshot():
            return after_rename(situation, step)
        case RecordLayers():
            return after_record(situation, step)
        case ForgetMemory():
            return after_forgotten_memory(situation, step)
        case RemoveLeftover():
            return _without_files(situation, {step.path})
        case CopyOut():
            return replace(situation, existing_files=situation.existing_files | {step.path})
        case MakeLook():
            return after_look(situation, step)
        case StartLook():
            return situation
        case RemoveLook():
            return _without_files(situation, set(step.files))


def leaks_memory_file(situation: Situation) -> bool:
    """Whether this libvirt leaves the memory file behind when it deletes a snapshot (fixed in 9.1)."""
    return situation.host.libvirt_version < LIBVIRT_9_1


# Taking


def after_take(situation: Situation, step: TakeSnapshot) -> Situation:
    """The situation once a snapshot was taken: it is current, and its overlays take the writes."""
    snapshot = _taken(situation, step)
    layers = situation.layers
    images = dict(layers.images)
    chains = []
    for chain in layers.chains:
        overlay = step.overlays.get(chain.target)
        if overlay is not None and chain.active is not None:
            images[overlay] = _overlay_image(overlay, chain.active, images)
            chains.append(replace(chain, layers=(overlay, *chain.layers)))
        else:
            chains.append(chain)
    for path in internal_images(snapshot):
        if path in images:
            images[path] = _with_entry(images[path], snapshot, situation.memory_bytes)
    memory_files = {step.memory_file: _JUST_MADE} if step.memory_file is not None else {}
    return replace(
        situation,
        # The overlay of an earlier revert is frozen from now on: libvirt no longer notes it as the one in use.
        tree=SnapshotTree.build(
            [
                *(
                    replace(other, revert_overlays=()) if other.name == snapshot.parent else other
                    for other in situation.tree
                ),
                snapshot,
            ],
            snapshot.name,
        ),
        layers=replace(
            layers,
            chains=tuple(chains),
            images=MappingProxyType(images),
            memory_files=MappingProxyType({**layers.memory_files, **memory_files}),
        ),
        disks=_on_overlays(situation.disks, step.overlays),
        recorded_disks=MappingProxyType({**situation.recorded_disks, step.name: _as_recorded(situation.disks)}),
        existing_files=situation.existing_files | {*step.overlays.values(), *memory_files},
        images_let_go=_lets_go(snapshot.memory, situation.domain.state) or situation.images_let_go,
    )


def _taken(situation: Situation, step: TakeSnapshot) -> Snapshot:
    state = situation.domain.state
    if state.is_active and step.memory is MemorySnapshot.NO:
        state = DomainState.DISK_ONLY
    return Snapshot(
        name=step.name,
        parent=situation.tree.current,
        # libvirt counts seconds; a clock that was set back must not put a child before its parent.
        created=max(situation.now, *(other.created for other in situation.tree), 0),
        state=state,
        description=step.description,
        memory=step.memory,
        memory_file=step.memory_file,
        nominal_memory=situation.memory_bytes or None,
        disks=tuple(
            SnapshotDisk(
                target=disk.target,
                how=step.disks.get(disk.target, DiskSnapshot.NO),
                frozen=disk.path,
                overlay=step.overlays.get(disk.target),
                frozen_format=disk.format,
            )
            for disk in situation.disks
        ),
        annotations=Annotations(consistency=step.consistency, safety=step.safety, group=step.group),
    )


def _overlay_image(path: str, base: str, images: Mapping[str, Image]) -> Image:
    below = images.get(base)
    return Image(
        path=path,
        format="qcow2",
        allocated=_JUST_MADE,
        virtual_size=None if below is None else below.virtual_size,
        backing=base,
        backing_format=None if below is None else below.format,
    )


def _with_entry(image: Image, snapshot: Snapshot, memory: int) -> Image:
    numbers = [int(entry.id) for entry in image.internal_snapshots if entry.id.isdigit()]
    entry = InternalSnapshot(
        id=str(max(numbers, default=0) + 1),
        name=snapshot.name,
        vm_state_size=memory if snapshot.memory is MemorySnapshot.INTERNAL else 0,
        created=snapshot.created,
    )
    return replace(image, internal_snapshots=(*image.internal_snapshots, entry))


def _as_recorded(disks: Iterable[Disk]) -> tuple[Disk, ...]:
    """Whether libvirt will list their layers can't be foreseen."""
    return tuple(replace(disk, records_chain=False) for disk in disks)


def _on_overlays(disks: Iterable[Disk], overlays: Mapping[str, str]) -> tuple[Disk, ...]:
    return tuple(
        replace(disk, path=overlays[disk.target], format="qcow2") if disk.target in overlays else disk for disk in disks
    )


def _lets_go(memory: MemorySnapshot, state: DomainState) -> bool:
    """To QEMU saving memory to a file is a migration, and loading it one too: images follow when it resumes."""
    return memory is MemorySnapshot.EXTERNAL and state is DomainState.PAUSED


def _lets_go_when_loaded(situation: Situation, memory: MemorySnapshot, state: DomainState) -> bool:
    return situation.host.hypervisor_version >= QEMU_10 and _lets_go(memory, state)


# Reverting


def after_revert(situation: Situation, step: RevertToSnapshot) -> Situation:
    """The situation once the machine is what it was at a snapshot."""
    target = situation.tree[step.name]
    state = _state_after(target, step.state_after)
    situation = replace(
        situation,
        domain=replace(situation.domain, state=state),
        layers=replace(situation.layers, is_running=state.is_active),
        images_let_go=_lets_go_when_loaded(situation, target.memory, state),
    )
    if is_external(target):
        return _after_external_revert(situation, target)
    return replace(
        situation,
        tree=SnapshotTree.build(situation.tree, target.name),
        layers=replace(situation.layers, chains=_chains_at(situation, target)),
        disks=_disks_at(situation, target),
    )


def _state_after(target: Snapshot, wanted: StateAfter) -> DomainState:
    match wanted:
        case StateAfter.RUNNING:
            return DomainState.RUNNING
        case StateAfter.PAUSED:
            return DomainState.PAUSED
        case StateAfter.OFF:
            return DomainState.OFF
        case StateAfter.AS_CAPTURED:
            return DomainState.OFF if target.state is DomainState.DISK_ONLY else target.state


def _after_external_revert(situation: Situation, target: Snapshot) -> Situation:
    facts = Facts(situation)
    unlinked = facts.unlinked_by_external_revert
    overlays = revert_overlays(situation, target)
    reverted = _on_new_layers(situation, target, overlays, _with_revert_overlays(situation.tree, target, overlays))
    # libvirt names them by the second in which it makes them.
    reverted = replace(reverted, unnamed_layers=situation.unnamed_layers | set(overlays.values()))
    return _without_files(reverted, _known_paths(facts, unlinked) - set(overlays.values()))


def after_fork(situation: Situation, step: ForkAtSnapshot) -> Situation:
    """The situation once the machine stands on new layers over a snapshot's own. No file is gone."""
    target = situation.tree[step.name]
    state = _state_after(target, step.state_after)
    snapshots = [
        with_own_overlays(snapshot, step.overlays) if snapshot.name == step.name and step.owns_overlays else snapshot
        for snapshot in situation.tree
    ]
    forked = _on_new_layers(situation, target, step.overlays, snapshots)
    return replace(
        forked,
        domain=replace(situation.domain, state=state),
        layers=replace(forked.layers, is_running=state.is_active),
        images_let_go=_lets_go_when_loaded(situation, target.memory, state),
    )


def _on_new_layers(
    situation: Situation, target: Snapshot, overlays: Mapping[str, str], snapshots: Iterable[Snapshot]
) -> Situation:
    images = dict(situation.layers.images)
    chains = []
    for chain in _chains_at(situation, target):
        overlay = overlays.get(chain.target)
        if overlay is not None and chain.active is not None:
            images[overlay] = _overlay_image(overlay, chain.active, images)
            chain = replace(chain, layers=(overlay, *chain.layers))
        chains.append(chain)
    return replace(
        situation,
        tree=SnapshotTree.build(snapshots, target.name),
        layers=replace(situation.layers, chains=tuple(chains), images=MappingProxyType(images)),
        disks=_on_overlays(_disks_at(situation, target), overlays),
        existing_files=situation.existing_files | set(overlays.values()),
    )


def revert_overlays(situation: Situation, target: Snapshot) -> dict[str, str]:
    """Disk -> the new layer over it once it is reverted to, named as libvirt does it.

    libvirt puts one also over the disks that the snapshot left out, and so do we.
    """
    disks = {disk.target: disk for disk in situation.recorded_disks.get(target.name, situation.disks)}
    frozen = {
        held.target: held.frozen
        for held in target.disks
        if held.frozen
        and (
            held.how is not DiskSnapshot.NO
            or (held.target in disks and disks[held.target].device != "cdrom" and not disks[held.target].read_only)
        )
    }
    second = situation.now + 1
    while situation.existing_files & {revert_overlay_path(path, second) for path in frozen.values()}:
        second += 1
    return {name: revert_overlay_path(path, second) for name, path in frozen.items()}


def _with_revert_overlays(tree: SnapshotTree, target: Snapshot, overlays: Mapping[str, str]) -> list[Snapshot]:
    """libvirt notes them beside the overlays that children stand on, or in their place if there are no children."""
    snapshots = []
    for snapshot in tree:
        if snapshot.name == tree.current:
            snapshot = replace(snapshot, revert_overlays=())
        if snapshot.name == target.name:
            if tree.children(target.name):
                snapshot = replace(snapshot, revert_overlays=tuple(overlays.items()))
            else:
                snapshot = _with_overlays(snapshot, overlays)
        snapshots.append(snapshot)
    return snapshots


def _with_overlays(snapshot: Snapshot, overlays: Mapping[str, str]) -> Snapshot:
    return replace(
        snapshot,
        disks=tuple(
            replace(disk, how=DiskSnapshot.EXTERNAL, overlay=overlays[disk.target]) if disk.target in overlays else disk
            for disk in snapshot.disks
        ),
    )


def with_own_overlays(snapshot: Snapshot, overlays: Mapping[str, str]) -> Snapshot:
    """A snapshot from whose external disks these layers took over, and from none that it left out."""
    return replace(
        snapshot,
        disks=tuple(
            replace(disk, overlay=overlays[disk.target])
            if disk.target in overlays and disk.how is DiskSnapshot.EXTERNAL
            else disk
            for disk in snapshot.disks
        ),
    )


def _chains_at(situation: Situation, target: Snapshot) -> tuple[DiskChain, ...]:
    """The chains that a snapshot's own layers give."""
    facts = Facts(situation)
    return tuple(DiskChain(disk.target, tuple(facts.stack(disk.frozen))) for disk in target.disks if disk.frozen)


def _disks_at(situation: Situation, target: Snapshot) -> tuple[Disk, ...]:
    restored = []
    for disk in situation.recorded_disks.get(target.name, situation.disks):
        held = disk_of(target, disk.target)
        if held is not None and held.frozen:
            restored.append(replace(disk, path=held.frozen, format=held.frozen_format or disk.format))
        else:
            restored.append(disk)
    return tuple(restored)


# Deleting


def after_delete(situation: Situation, step: DeleteSnapshot) -> Situation:
    """The situation once a snapshot is gone: its overlays merged down, its children its parent's."""
    facts = Facts(situation)
    tree = situation.tree
    gone = tree[step.name]
    effect = facts.delete_effect(gone)
    images = _merged_images(facts, effect)
    if not is_external(gone):
        for path in internal_images(gone):
            if path in images:
                entries = tuple(entry for entry in images[path].internal_snapshots if entry.name != gone.name)
                images[path] = replace(images[path], internal_snapshots=entries)
    deleted = replace(
        situation,
        tree=SnapshotTree.build(
            _survivors(facts, gone, effect), tree.parents[gone.name] if gone.name == tree.current else tree.current
        ),
        layers=replace(situation.layers, chains=_merged_chains(facts, effect), images=MappingProxyType(images)),
        disks=_merged_disks(facts, gone, effect),
        overlays_on=_merged_overlays_on(facts, effect),
    )
    files = _known_paths(facts, (*(merge.overlay for merge in effect.merges), *effect.removes))
    memory_file = memory_file_of(gone)
    if memory_file is not None and not leaks_memory_file(situation):
        files.add(memory_file)
    return _without_files(deleted, files)


def _survivors(facts: Facts, gone: Snapshot, effect: DeleteEffect) -> list[Snapshot]:
    tree = facts.situation.tree
    parent = tree.parents[gone.name]
    moved = {merge.overlay: merge.into for merge in effect.merges}
    survivors = []
    for snapshot in tree:
        if snapshot.name == gone.name:
            continue
        if tree.parents[snapshot.name] == gone.name:
            snapshot = replace(snapshot, parent=parent)
        if snapshot.name == parent and snapshot.revert_overlays:
            # From now on libvirt takes the overlays of the parent's last revert for its own.
            snapshot = replace(_with_overlays(snapshot, dict(snapshot.revert_overlays)), revert_overlays=())
        if any(disk.frozen is not None and facts.key(disk.frozen) in moved for disk in snapshot.disks):
            snapshot = replace(
                snapshot,
                disks=tuple(
                    replace(disk, frozen=moved.get(facts.key(disk.frozen), disk.frozen)) if disk.frozen else disk
                    for disk in snapshot.disks
                ),
            )
        survivors.append(snapshot)
    return survivors


def _merged_images(facts: Facts, effect: DeleteEffect) -> dict[str, Image]:
    images = dict(facts.situation.layers.images)
    for merge in effect.merges:
        overlay, base = images.get(merge.overlay), images.get(merge.into)
        if overlay is not None and base is not None:
            images[merge.into] = replace(base, allocated=_at_most(overlay.allocated, base.allocated))
        for path in facts.above.get(merge.overlay, ()):
            if path in images:
                images[path] = replace(
                    images[path], backing=merge.into, backing_format=None if base is None else base.format
                )
    return images


def _at_most(overlay: Figure, base: Figure) -> Figure:
    both = total([overlay, base])
    if both.bytes is None or overlay.bytes == 0:
        return both
    return Figure(both.bytes, Confidence.UPPER_BOUND, "both layers, as if they did not overlap")


def _merged_chains(facts: Facts, effect: DeleteEffect) -> tuple[DiskChain, ...]:
    merged = {merge.overlay for merge in effect.merges}
    return tuple(
        replace(chain, layers=tuple(layer for layer in chain.layers if facts.key(layer) not in merged))
        for chain in facts.situation.layers.chains
    )


def _merged_disks(facts: Facts, gone: Snapshot, effect: DeleteEffect) -> tuple[Disk, ...]:
    """The disks; one whose active layer was merged now writes to the layer below."""
    into = {merge.target: merge.into for merge in effect.merges if merge.overlay in facts.active}
    disks = []
    for disk in facts.situation.disks:
        if disk.target in into:
            held = disk_of(gone, disk.target)
            frozen_format = held.frozen_format if held is not None else ""
            disk = replace(disk, path=into[disk.target], format=frozen_format or disk.format)
        disks.append(disk)
    return tuple(disks)


def _merged_overlays_on(facts: Facts, effect: DeleteEffect) -> Mapping[str, frozenset[str]]:
    """What stood on a merged overlay stands on the layer below it."""
    overlays_on = dict(facts.situation.overlays_on)
    for merge in effect.merges:
        for base in [path for path in overlays_on if facts.key(path) == merge.overlay]:
            overlays_on[merge.into] = overlays_on.get(merge.into, frozenset()) | overlays_on.pop(base)
    return MappingProxyType(overlays_on)


# Merging by ourselves


def after_merge(situation: Situation, step: MergeLayers) -> Situation:
    """The situation once layers were merged. Their files are all still there."""
    facts = Facts(situation)
    top, merged = facts.key(step.layers[0]), facts.key(step.merged)
    gone = facts.keys(step.layers) - {merged}
    stack_after = step.stack_after
    bases = dict(pairwise(layer.path for layer in stack_after)) | {stack_after[-1].path: None}
    formats = {layer.path: layer.format for layer in step.stack}
    images = dict(situation.layers.images)
    for path, base in bases.items():
        if path in images:
            images[path] = replace(
                images[path], backing=base, backing_format=None if base is None else formats.get(base)
            )
    if merged in images:
        sizes = [images[path].allocated for path in step.layers if path in images]
        both = total(sizes)
        if both.bytes is not None:
            both = Figure(both.bytes, Confidence.UPPER_BOUND, "all merged layers, as if they did not overlap")
        shown = images[step.layers[0]] if step.layers[0] in images else images[merged]
        images[merged] = replace(images[merged], allocated=both, virtual_size=shown.virtual_size)
    chains = tuple(
        replace(chain, layers=tuple(layer for layer in chain.layers if facts.key(layer) not in gone))
        if top in facts.keys(chain.layers)
        else chain
        for chain in situation.layers.chains
    )
    overlays_on = dict(situation.overlays_on)
    # Only what QEMU has open is told of it: the one above those that were merged, or the one that took them in.
    told = (
        top if step.way is MergeWay.PULL else next((up for up, low in pairwise(_keys(facts, step)) if low == top), "")
    )
    for base in [path for path in overlays_on if facts.key(path) in gone]:
        overlays_on[base] = frozenset(path for path in overlays_on[base] if facts.key(path) != told)
    return replace(
        situation,
        layers=replace(situation.layers, chains=chains, images=MappingProxyType(images)),
        disks=tuple(
            replace(disk, path=step.merged, format=formats[step.merged])
            if disk.path is not None and facts.key(disk.path) in gone
            else disk
            for disk in situation.disks
        ),
        overlays_on=MappingProxyType({base: overlays for base, overlays in overlays_on.items() if overlays}),
    )


def _keys(facts: Facts, step: MergeLayers) -> list[str]:
    return [facts.key(layer.path) for layer in step.stack]


def after_record(situation: Situation, step: RecordLayers) -> Situation:
    """The situation once libvirt knows what was merged."""
    tree = situation.tree
    current = tree.current
    while current in step.forgotten:
        assert current is not None
        current = tree.parents[current]
    forgotten = frozenset(step.forgotten)
    survivors = [
        _as_told(snapshot, tree.parents[snapshot.name], step) for snapshot in tree if snapshot.name not in forgotten
    ]
    # What libvirt has on record of layers below may name some that are gone: those are not written down anew.
    recorded = {name: _as_recorded(disks) for name, disks in situation.recorded_disks.items() if name not in forgotten}
    return replace(situation, tree=SnapshotTree.build(survivors, current), recorded_disks=MappingProxyType(recorded))


def _as_told(snapshot: Snapshot, parent: str | None, step: RecordLayers) -> Snapshot:
    """What libvirt knows of a snapshot that stays. Mostly nothing else than before: there may be thousands."""
    name = snapshot.name
    if name in step.parents or snapshot.parent != parent:
        snapshot = replace(snapshot, parent=step.parents.get(name, parent))
    if name in step.overlays or any(disk.frozen in step.moved for disk in snapshot.disks):
        overlays = step.overlays.get(name, {})
        snapshot = replace(snapshot, disks=tuple(_moved(disk, step, overlays) for disk in snapshot.disks))
    if name in step.revert_overlays:
        snapshot = replace(snapshot, revert_overlays=tuple(step.revert_overlays[name].items()))
    return snapshot


def _moved(disk: SnapshotDisk, step: RecordLayers, overlays: Mapping[str, str]) -> SnapshotDisk:
    layer = step.moved.get(disk.frozen or "")
    if layer is not None:
        disk = replace(disk, frozen=layer.path, frozen_format=layer.format)
    return replace(disk, overlay=overlays.get(disk.target, disk.overlay))


# Saying something else


def after_describe(situation: Situation, step: DescribeSnapshot) -> Situation:
    """The situation once something else is said about a snapshot."""
    tree = situation.tree
    said = [each.with_remarks(step.applied_to(each.remarks)) if each.name == step.name else each for each in tree]
    return replace(situation, tree=SnapshotTree.build(said, tree.current))


def after_rename(situation: Situation, step: RenameSnapshot) -> Situation:
    """The situation once a snapshot has another name."""
    tree = situation.tree

    def named(name: str | None) -> str | None:
        return step.new_name if name == step.name else name

    renamed = [
        replace(each, name=named(each.name) or each.name, parent=named(tree.parents[each.name]))
        for each in tree
        if each.name != step.new_name  # half way there are both
    ]
    recorded = {named(name) or name: disks for name, disks in situation.recorded_disks.items()}
    return replace(
        situation,
        tree=SnapshotTree.build(renamed, named(tree.current)),
        recorded_disks=MappingProxyType(recorded),
    )


# Looking


def after_look(situation: Situation, step: MakeLook) -> Situation:
    """The situation once another machine stands on what a snapshot holds."""
    facts = Facts(situation)
    overlays_on, dependants = dict(situation.overlays_on), dict(situation.dependants)
    for target, base in step.bases.items():
        overlays_on[base.path] = overlays_on.get(base.path, frozenset()) | {step.disks[target]}
        for layer in facts.stack(base.path):
            dependants[layer] = dependants.get(layer, frozenset()) | {step.machine}
    return replace(
        situation,
        overlays_on=MappingProxyType(overlays_on),
        dependants=MappingProxyType(dependants),
        machine_names=situation.machine_names | {step.machine},
        existing_files=situation.existing_files | set(step.disks.values()),
    )


# Files


def _known_paths(facts: Facts, images: Iterable[str]) -> set[str]:
    """Every path under which these images are known."""
    wanted = set(images)
    return wanted | {path for path in facts.situation.layers.images if facts.key(path) in wanted}


def after_forgotten_memory(situation: Situation, step: ForgetMemory) -> Situation:
    """The situation once libvirt takes a snapshot for one of the disks only. The file is there still."""
    tree = situation.tree
    changed = [without_memory(each) if each.name == step.name else each for each in tree]
    return replace(situation, tree=SnapshotTree.build(changed, tree.current))


def without_memory(snapshot: Snapshot) -> Snapshot:
    """A snapshot that keeps what it holds of the disks: what these were when the memory was saved, and not frozen."""
    return replace(
        snapshot,
        state=DomainState.DISK_ONLY,
        memory=MemorySnapshot.NO,
        memory_file=None,
        annotations=replace(snapshot.annotations, consistency=Consistency.CRASH),
    )


def _without_files(situation: Situation, paths: set[str]) -> Situation:
    layers = situation.layers
    return replace(
        situation,
        layers=replace(
            layers,
            images=MappingProxyType({path: image for path, image in layers.images.items() if path not in paths}),
            memory_files=MappingProxyType(
                {path: size for path, size in layers.memory_files.items() if path not in paths}
            ),
        ),
        overlays_on=MappingProxyType(
            {base: left for base, overlays in situation.overlays_on.items() if (left := overlays - paths)}
        ),
        existing_files=situation.existing_files - paths,
    )
