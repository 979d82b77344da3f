"""Rules about deleting a snapshot."""

from __future__ import annotations

import posixpath
from collections.abc import Callable

from snaptree.model.estate import Annotations, DiskSnapshot, Mark
from snaptree.plans.facts import LIBVIRT_9_9, internal_images, is_external
from snaptree.plans.plan import Action
from snaptree.plans.rule import QEMU, TEST, Case, Evidence, Rule, Verdict, actions, first, found
from snaptree.plans.situation import Known
from snaptree.plans.wording import files_named, plain, quoted, size, snapshots_named

_DELETE = actions(Action.DELETE)
_OWN_JOBS = "SnapTree merges the layers by block jobs of its own."
_LAYER_STAYS = "SnapTree lets libvirt forget the snapshot, and leaves its layer where it is."
_ANY_DRIVER = frozenset({QEMU, TEST})
_MarkOf = Callable[[Annotations], Mark | None]


def _no_current(case: Case) -> Evidence | None:
    return found() if case.external is not None and case.tree.current is None else None


def _not_owner(case: Case) -> Evidence | None:
    if case.external is None or case.current is None or case.facts.current_owns_now:
        return None
    owners = sorted(case.facts.owners_of_now)
    return found(
        current=quoted(case.current.name),
        owners=f"They descend from {snapshots_named(owners)}." if owners else "They descend from none of them.",
    )


def _current_with_children(case: Case) -> Evidence | None:
    if case.external is None or case.name != case.tree.current:
        return None
    children = case.tree.children(case.external.name)
    return found(children=snapshots_named(children)) if children else None


def _fork(case: Case) -> Evidence | None:
    if case.external is None or case.name == case.tree.current:
        return None
    children = case.tree.children(case.external.name)
    return found(children=snapshots_named(children)) if len(children) > 1 else None


def _branch_not_in_use(case: Case) -> Evidence | None:
    if case.external is None or case.name in case.tree.path_to_current or case.tree.current is None:
        return None
    children = case.tree.children(case.external.name)
    return found(children=snapshots_named(case.tree.descendants(case.external.name))) if len(children) == 1 else None


def _leaf_not_in_use(case: Case) -> Evidence | None:
    if case.external is None or case.situation.host.external_snapshots or case.name in case.tree.path_to_current:
        return None
    return None if case.tree.children(case.external.name) else found()


def _taken_while_off(case: Case) -> Evidence | None:
    if case.external is None or case.is_active or case.situation.host.external_snapshots:
        return None
    return found() if case.effect.merges and case.tree.children(case.external.name) else None


def _parent_is_internal(case: Case) -> Evidence | None:
    if case.snapshot is None or not (case.name == case.tree.current or case.tree.children(case.snapshot.name)):
        return None
    parents = [
        parent.name
        for disk in case.snapshot.disks
        if disk.how is DiskSnapshot.EXTERNAL
        and (parent := case.facts.parent_for_disk(case.snapshot.name, disk.target)) is not None
        and not is_external(parent)
    ]
    return found(parents=snapshots_named(dict.fromkeys(parents))) if parents and case.external is not None else None


def _half_deleted_child(case: Case) -> Evidence | None:
    if case.external is None or not case.external.delete_in_progress:
        return None
    children = case.tree.children(case.external.name)
    return found(children=snapshots_named(children) or "the same snapshot")


def _image_not_in_use(case: Case) -> Evidence | None:
    if case.internal is None or not case.is_active or not case.facts.chains:
        return None
    elsewhere = [path for path in internal_images(case.internal) if case.facts.key(path) not in case.facts.active]
    return found(files=files_named(elsewhere)) if elsewhere else None


def _unrecorded_branch(case: Case) -> Evidence | None:
    """Branches not in use whose layers libvirt has to look up: it does so one level deep, and crashes on the answer."""
    if case.external is None or not case.effect.merges:
        return None
    names = [
        name
        for name in case.tree.descendants(case.external.name)
        if name not in case.tree.path_to_current and _has_unrecorded_layers(case, name)
    ]
    return found(branch=snapshots_named(names)) if names else None


def _has_unrecorded_layers(case: Case, name: str) -> bool:
    recorded = {disk.target for disk in case.situation.recorded_disks.get(name, ()) if disk.records_chain}
    return any(
        disk.target not in recorded
        and disk.frozen is not None
        # Known to stand on nothing: there is nothing to look up.
        and case.facts.below.get(case.facts.key(disk.frozen), "unknown") is not None
        for disk in case.tree[name].disks
    )


def _disk_cannot_merge(case: Case) -> Evidence | None:
    merged = {merge.target for merge in case.effect.merges}
    return first(
        found(disk=plain(disk.target), why="is transient" if disk.transient else "is an SD card")
        for disk in case.situation.disks
        if disk.target in merged and (disk.transient or disk.bus == "sd")
    )


def _asked_for_alone(case: Case) -> bool:
    """Whether the user named just this one, or a window asks about it. An undo names none."""
    return case.step is None or case.batch == (case.name,)


def _not_alone(mark: _MarkOf) -> Callable[[Case], Evidence | None]:
    def find(case: Case) -> Evidence | None:
        if case.snapshot is None or mark(case.snapshot.annotations) is None or _asked_for_alone(case):
            return None
        # All that is marked, so that one refusal names it however many there are.
        together = case.batch or (case.snapshot.name,)
        marked = [name for name in together if name in case.tree and mark(case.tree[name].annotations) is not None]
        return found(marked=snapshots_named(marked), are="is" if len(marked) == 1 else "are")

    return find


def _alone(mark: _MarkOf) -> Callable[[Case], Evidence | None]:
    def find(case: Case) -> Evidence | None:
        if case.snapshot is None or (given := mark(case.snapshot.annotations)) is None or not _asked_for_alone(case):
            return None
        return found(by=f" by {plain(given.by)}" if given.by else "")

    return find


def _final(case: Case) -> Evidence | None:
    return found(names=snapshots_named(case.batch)) if case.batch else None


def _uncancellable(case: Case) -> Evidence | None:
    return found() if case.effect.merges else None


def _starts_qemu(case: Case) -> Evidence | None:
    return found() if case.effect.merges and not case.is_active else None


def _none_current_after(case: Case) -> Evidence | None:
    if case.name != case.tree.current or case.snapshot is None or case.tree.parents[case.snapshot.name] is not None:
        return None
    others = [other.name for other in case.tree if is_external(other) and other.name not in (case.name, *case.batch)]
    return found(others=snapshots_named(others)) if others else None


def _may_fill_disk(case: Case) -> Evidence | None:
    for merge in case.effect.merges:
        directory = posixpath.dirname(merge.into)
        free = case.situation.free_bytes.get(directory)
        image = case.facts.image(merge.overlay)
        grows = None if image is None else image.allocated.bytes
        if free is not None and grows is not None and grows > free:
            return found(
                directory=plain(directory),
                base=plain(merge.into),
                grows=size(grows),
                free=size(free),
            )
    return None


def _rules_of_mark(name: str, mark: _MarkOf, marked: str, how_off: str, meaning: str) -> tuple[Rule, Rule]:
    """What a mark does: nothing is deleted in passing that has it, and whoever asks for just that is told of it."""
    refused = Rule(
        id=name,
        actions=_DELETE,
        verdict=Verdict.REFUSE,
        condition=_not_alone(mark),
        reason=f"{{marked}} {{are}} {marked}, which protects from being deleted together with others, or by an undo.",
        remedy=f"Leave it out, {how_off}, or delete it on its own.",
        source=f"whoever marked it: {meaning}",
        needs=Known.TREE,
        drivers=_ANY_DRIVER,
    )
    warned = Rule(
        id=f"{name}-alone",
        actions=_DELETE,
        verdict=Verdict.WARN,
        condition=_alone(mark),
        reason=f"{{snapshot}} is {marked}{{by}}: {meaning}.",
        remedy="",
        source=f"whoever marked it: {meaning}",
        needs=Known.TREE,
        drivers=_ANY_DRIVER,
    )
    return refused, warned


RULES = (
    Rule(
        id="delete-without-current",
        actions=_DELETE,
        verdict=Verdict.REFUSE,
        condition=_no_current,
        reason="libvirt knows no current snapshot of {vm}. Deleting an external one in this state crashes its"
        " daemon, or removes a layer in use.",
        remedy="Redefine the snapshot that the disks descend from as current (virsh snapshot-dumpxml {vm_arg} NAME"
        " --security-info > it.xml; virsh snapshot-create {vm_arg} it.xml --redefine --current).",
        source="lab on 11.3 and 12.8: delete of a non-leaf crashes the daemon, of the leaf in use loses data",
        needs=Known.TREE,
        another_way=_OWN_JOBS,
    ),
    Rule(
        id="delete-with-wrong-current",
        actions=_DELETE,
        verdict=Verdict.REFUSE,
        condition=_not_owner,
        reason="libvirt takes {current} for the current snapshot of {vm}, but the layers in use do not descend from"
        " it. {owners} Deleting would remove the wrong layers.",
        remedy="Redefine the snapshot that the disks descend from as current (virsh snapshot-dumpxml {vm_arg} NAME"
        " --security-info > it.xml; virsh snapshot-create {vm_arg} it.xml --redefine --current).",
        source="lab on 11.3 and 12.8: current wrongly set to a non-leaf, delete the leaf in use: data lost",
        needs=Known.LAYERS,
        another_way=_OWN_JOBS,
    ),
    Rule(
        id="current-with-children",
        actions=_DELETE,
        verdict=Verdict.REFUSE,
        condition=_current_with_children,
        reason="{snapshot} is the current snapshot and has descendants ({children}), so two futures stand on its"
        " layer. libvirt does not delete such external snapshots.",
        remedy="Delete what descends from it first, or revert to it: then only that future is left in use.",
        source="libvirt: 'deletion of active external snapshot that is not a leaf snapshot is not supported'",
        needs=Known.TREE,
        another_way=_OWN_JOBS,
    ),
    Rule(
        id="fork",
        actions=_DELETE,
        verdict=Verdict.REFUSE,
        condition=_fork,
        reason="More than one snapshot stands on the layer of {snapshot}: {children}. libvirt does not delete such"
        " external snapshots.",
        remedy="Delete all but one of them first.",
        source="libvirt: 'deletion of external disk snapshots with multiple children snapshots not supported'",
        needs=Known.TREE,
        another_way=_OWN_JOBS,
    ),
    Rule(
        id="branch-not-in-use",
        actions=_DELETE,
        verdict=Verdict.REFUSE,
        condition=_branch_not_in_use,
        reason="{snapshot} lies on a branch that {vm} does not use now, and is not the last one there ({children}"
        " descend from it). libvirt merges layers in use only.",
        remedy="Delete what descends from it too, or revert to a snapshot of that branch first.",
        source="libvirt: 'deletion of non-leaf external snapshot that is not in active chain is not supported'",
        needs=Known.TREE,
        another_way=_OWN_JOBS,
    ),
    Rule(
        id="unrecorded-branch",
        actions=_DELETE,
        verdict=Verdict.REFUSE,
        condition=_unrecorded_branch,
        reason="{snapshot} has descendants on a branch that {vm} does not use now ({branch}), and libvirt has not"
        " recorded their layers. Looking for them, its daemon crashes.",
        remedy="Delete {branch} first, from the leaves up, or keep {snapshot}.",
        source="lab on 11.3: external s1, s2, s3 taken off, revert to s2, external s4, delete s1: segmentation fault"
        " in qemuSnapshotDiskHasBackingDisk",
        since=LIBVIRT_9_9,
        another_way=_OWN_JOBS,
    ),
    Rule(
        id="leaf-not-in-use",
        actions=_DELETE,
        verdict=Verdict.REFUSE,
        condition=_leaf_not_in_use,
        reason="{snapshot} lies on a branch that {vm} does not use now, and libvirt {libvirt} can't delete it there.",
        remedy="Update libvirt to 9.9 or later.",
        source="lab on 9.0: inactive leaf refused",
        needs=Known.TREE,
        until=LIBVIRT_9_9,
        another_way="SnapTree removes its layer by itself, and lets libvirt forget it.",
    ),
    Rule(
        id="layers-made-while-off",
        actions=_DELETE,
        verdict=Verdict.REFUSE,
        condition=_taken_while_off,
        reason="libvirt {libvirt} can't merge below the newest layer while {vm} is off.",
        remedy="Start {vm}, delete {snapshot}, and shut it down again.",
        source="lab on 9.0: 'could not find base disk source in disk source chain'",
        until=LIBVIRT_9_9,
        another_way=_OWN_JOBS,
    ),
    Rule(
        id="parent-is-internal",
        actions=_DELETE,
        verdict=Verdict.REFUSE,
        condition=_parent_is_internal,
        reason="{snapshot} is external and stands on an internal one, {parents}. libvirt does not merge into an"
        " image that holds the parent.",
        remedy="Delete {parents} first, while {vm} is off, then {snapshot}.",
        source="libvirt: 'deleting external snapshot that has internal snapshot as parent not supported'",
        needs=Known.TREE,
        another_way=_LAYER_STAYS,
    ),
    Rule(
        id="finish-interrupted-delete",
        actions=_DELETE | actions(Action.DROP_MEMORY, Action.DESCRIBE, Action.RENAME),
        verdict=Verdict.REFUSE,
        condition=_half_deleted_child,
        reason="An earlier deletion below {snapshot} was cut short and has to be completed first.",
        remedy="Delete {children} again.",
        source="libvirt: 'snapshot disk was target of not completed snapshot delete'",
        needs=Known.TREE,
    ),
    Rule(
        id="image-not-in-use",
        actions=_DELETE,
        verdict=Verdict.REFUSE,
        condition=_image_not_in_use,
        reason="{snapshot} lies inside {files}, which is not the layer that {vm} writes to now; a running machine"
        " can't delete it there.",
        remedy="Shut {vm} down first.",
        source="libvirt 11: 'disk image for internal snapshot is not the same as disk image currently used by VM';"
        " 9.0 only forgets the snapshot and leaves its data behind",
        needs=Known.LAYERS,
    ),
    Rule(
        id="disk-cannot-merge",
        actions=_DELETE,
        verdict=Verdict.REFUSE,
        condition=_disk_cannot_merge,
        reason="Disk {disk} {why}, whose layers libvirt can't merge.",
        remedy="Attach the disk in another way first.",
        source="libvirt: block jobs are not supported on such disks",
        another_way=_OWN_JOBS,
    ),
    *_rules_of_mark(
        "pinned",
        lambda marks: marks.pinned,
        "pinned",
        "unpin it (by Unpin in the window, or snaptree unpin {vm_arg} NAME)",
        "someone wanted it kept",
    ),
    *_rules_of_mark(
        "known-good",
        lambda marks: marks.known_good,
        "marked as known good",
        "take its mark off (by Not Known Good in the window, or snaptree known-good {vm_arg} NAME --no)",
        "someone found the machine working there",
    ),
    Rule(
        id="delete-is-final",
        actions=_DELETE,
        verdict=Verdict.WARN,
        condition=_final,
        reason="{vm} can't go back to {names} afterwards; this can't be undone.",
        remedy="",
        source="a merge overwrites what the snapshot held",
        needs=Known.TREE,
        drivers=_ANY_DRIVER,
    ),
    Rule(
        id="cannot-be-cancelled",
        actions=_DELETE,
        verdict=Verdict.WARN,
        condition=_uncancellable,
        reason="Once libvirt has begun to merge a layer, it can't be stopped before it is done.",
        remedy="",
        source="lab: blockJobAbort blocks until the end, abortJob answers OK and is ignored",
        needs=Known.TREE,
    ),
    Rule(
        id="starts-qemu",
        actions=_DELETE,
        verdict=Verdict.WARN,
        condition=_starts_qemu,
        reason="{vm} is off: libvirt starts its QEMU paused to merge the layers, so its devices and networks must be"
        " there.",
        remedy="",
        source="libvirt merges through a running QEMU, which takes about 2 s even for tiny images",
        needs=Known.TREE,
    ),
    Rule(
        id="none-current-after",
        actions=_DELETE,
        verdict=Verdict.WARN,
        condition=_none_current_after,
        reason="Afterwards {vm} has no current snapshot, and until it has one again {others} can't be deleted.",
        remedy="Take a new external snapshot afterwards.",
        source="lab: deleting a current root leaves no current snapshot",
        needs=Known.TREE,
    ),
    Rule(
        id="merge-may-fill-disk",
        actions=_DELETE,
        verdict=Verdict.WARN,
        condition=_may_fill_disk,
        reason="Merging may let {base} grow by up to {grows}, and {directory} has {free} free.",
        remedy="Make room first: a merge that runs out of space leaves the disk half merged.",
        source="vdsm#352: no space left in a live merge",
    ),
)
