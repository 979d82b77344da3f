"""Rules about reverting to a snapshot."""

from __future__ import annotations

import posixpath

from snaptree.model.costs import domain_costs
from snaptree.model.estate import Consistency, DiskSnapshot, DomainState, MemorySnapshot
from snaptree.plans.facts import (
    LIBVIRT_9_9,
    disk_of,
    is_external,
    is_part_of_memory,
    memory_file_of,
    takes_writes,
)
from snaptree.plans.plan import Action, ForkAtSnapshot, RevertToSnapshot, StateAfter
from snaptree.plans.rule import QEMU, TEST, Case, Evidence, Rule, Verdict, actions, found
from snaptree.plans.rules_names import images_inside, images_without
from snaptree.plans.rules_take import EMPTY_OVERLAY_BYTES
from snaptree.plans.situation import Disk, Known
from snaptree.plans.wording import files_named, listed, plain, quoted

_REVERT = actions(Action.REVERT)
_REVERT_OR_LOOK = actions(Action.REVERT, Action.LOOK)
_ANY_DRIVER = frozenset({QEMU, TEST})
_TABLES_AFTER_A_REVERT = {DiskSnapshot.EXTERNAL: EMPTY_OVERLAY_BYTES, DiskSnapshot.INTERNAL: 16 * 1024}
"""Bytes at most, of disks of usual size: those of a new layer, or of an image's one table that is never shared. What a
guest writes takes more."""


def _external_unsupported(case: Case) -> Evidence | None:
    is_able = case.situation.host.external_snapshots or case.forks
    return found() if case.external is not None and not is_able else None


def _nowhere_for_layers(case: Case) -> Evidence | None:
    if case.external is None or not case.forks:
        return None
    directories = {posixpath.dirname(disk.frozen) for disk in case.external.disks if disk.frozen}
    closed = directories - case.situation.takes_new_layers
    return found(directories=files_named(closed)) if closed else None


def _internal_broken(case: Case) -> Evidence | None:
    return found() if case.internal is not None and case.situation.host.internal_revert_broken else None


def _no_current(case: Case) -> Evidence | None:
    return found() if case.external is not None and case.tree.current is None and not case.forks else None


def _not_owner(case: Case) -> Evidence | None:
    if case.external is None or case.current is None or case.facts.current_owns_now or case.forks:
        return None
    return found(current=quoted(case.current.name))


def _recorded_overlays_wrong(case: Case) -> Evidence | None:
    """What libvirt would unlink must be exactly what is active, disk by disk."""
    if case.external is None or case.current is None or not is_external(case.current):
        return None
    active = {layers[0] for layers in case.facts.chains.values() if layers}
    stray = [path for path in case.unlinks if path not in active]
    if not stray:
        return None
    return found(current=quoted(case.current.name), files=files_named(stray), active=files_named(active))


def _memory_file_missing(case: Case) -> Evidence | None:
    if case.external is None:
        return None
    file = memory_file_of(case.external)
    return found(file=plain(file)) if file is not None and file in case.situation.missing_files else None


def _not_in_image(case: Case) -> Evidence | None:
    without = images_without(case)
    return found(files=files_named(without)) if without else None


def _recorded_disks(case: Case) -> tuple[Disk, ...]:
    return case.situation.recorded_disks.get(case.name or "", case.situation.disks)


def _not_regular_files(case: Case) -> Evidence | None:
    if case.external is None:
        return None
    others = [
        disk
        for disk in _recorded_disks(case)
        # For new layers of our own it does not matter what is in a drive.
        if disk.type != "file" and (not case.forks or disk.device not in ("cdrom", "floppy"))
    ]
    if not others:
        return None
    return found(
        disks=listed(f"{plain(disk.target)} ({plain(disk.device)}, {plain(disk.type)})" for disk in others),
    )


def _suspended_snapshot(case: Case) -> Evidence | None:
    return found() if case.snapshot is not None and case.snapshot.state is DomainState.SUSPENDED else None


def _bitmaps(case: Case) -> Evidence | None:
    if case.internal is None:
        return None
    images = [path for path, image in images_inside(case) if image.has_bitmaps]
    if images:
        return found(what=f"{files_named(images)} holds dirty bitmaps (marks of incremental backups)")
    if case.situation.checkpoints:
        names = listed(plain(name) for name in case.situation.checkpoints)
        return found(what=f"{plain(case.situation.domain.name)} has checkpoints ({names})")
    return None


def left_half_deleted(case: Case) -> Evidence | None:
    """Whether what the snapshot holds is a mixture: it is marked so, or the journal says it."""
    is_marked = case.snapshot is not None and case.snapshot.annotations.half_deleted
    return found() if is_marked or case.name in case.situation.half_deleted else None


def _marked_doubtful(case: Case) -> Evidence | None:
    return found() if case.snapshot is not None and case.snapshot.annotations.doubtful else None


def _half_deleted(case: Case) -> Evidence | None:
    if case.external is None:
        return None
    parent = case.tree.parents[case.external.name]
    marked = parent is not None and case.tree[parent].delete_in_progress
    return found() if marked else None


def _present_lost(case: Case) -> Evidence | None:
    if case.safety is not None or case.snapshot is None:
        return None
    since = "now" if case.current is None else f"since {quoted(case.current.name)}"
    if not case.takes_back:
        return found(since=since, remedy="Take a safety snapshot first.")
    if not _may_be_written_to(case):
        return None
    back = quoted(case.snapshot.name)
    return found(since=since, remedy=f"To keep it, take a snapshot, then revert to {back} instead.")


def _may_be_written_to(case: Case) -> bool:
    """Whether the disks may hold anything that the current snapshot does not, besides what a revert itself writes."""
    disks = () if case.current is None else case.current.disks
    tables = sum(_TABLES_AFTER_A_REVERT.get(disk.how, 0) for disk in disks)
    written = domain_costs(case.tree, case.layers).now.bytes
    return written is None or written > tables


def _ends_off(case: Case) -> Evidence | None:
    if case.snapshot is None or case.state_after is not StateAfter.AS_CAPTURED:
        return None
    return found() if case.snapshot.state is DomainState.DISK_ONLY else None


def _memory_not_used(case: Case) -> Evidence | None:
    if case.snapshot is None or case.state_after is not StateAfter.OFF:
        return None
    return found() if case.snapshot.memory is not MemorySnapshot.NO else None


def _memory_of_another_time(case: Case) -> Evidence | None:
    """Once reverted to, libvirt records a disk that was left out as held: what was noted when it was taken tells."""
    if not isinstance(case.step, RevertToSnapshot | ForkAtSnapshot) or case.external is None:
        return None
    if case.state_after is StateAfter.OFF or case.external.memory is MemorySnapshot.NO:
        return None
    belongs = {disk.target for disk in _recorded_disks(case) if is_part_of_memory(disk)}
    left_out = [disk.target for disk in case.external.disks if disk.how is DiskSnapshot.NO and disk.target in belongs]
    if not left_out and case.external.annotations.consistency is not Consistency.CRASH:
        return None
    return found(disks=listed(plain(target) for target in left_out) or "a disk of the guest")


def _starts_anew(case: Case) -> Evidence | None:
    if case.snapshot is None or case.state_after not in (StateAfter.RUNNING, StateAfter.PAUSED):
        return None
    return found() if case.snapshot.memory is MemorySnapshot.NO else None


def _restarts(case: Case) -> Evidence | None:
    return found() if case.is_active else None


def _settings(case: Case) -> Evidence | None:
    if case.snapshot is None:
        return None
    changes = case.situation.settings.get(case.snapshot.name)
    if changes is None:
        return found(changes="what differs can't be told")
    return found(changes=listed(plain(change.what) for change in changes)) if changes else None


def _nvram_stays(case: Case) -> Evidence | None:
    if case.snapshot is None or not case.situation.has_pflash:
        return None
    was_saved = case.snapshot.memory is MemorySnapshot.INTERNAL and case.situation.nvram_format == "qcow2"
    return None if was_saved else found()


def _not_rolled_back(case: Case) -> Evidence | None:
    if case.external is None:
        return None
    writable = {disk.target for disk in case.situation.disks if takes_writes(disk)}
    left_out = [disk.target for disk in case.external.disks if disk.how is DiskSnapshot.NO and disk.target in writable]
    return found(disks=listed(plain(target) for target in left_out)) if left_out else None


def _added_since(case: Case) -> Evidence | None:
    if case.snapshot is None or not case.snapshot.disks:
        return None
    recorded = {disk.target for disk in case.situation.recorded_disks.get(case.snapshot.name, ())}
    recorded |= {disk.target for disk in case.snapshot.disks}
    added = [disk for disk in case.situation.disks if disk.target not in recorded and disk.path]
    if not added:
        return None
    return found(
        disks=listed(plain(disk.target) for disk in added),
        files=files_named(_left_of(case, disk) for disk in added),
    )


def _left_of(case: Case, disk: Disk) -> str:
    """The file that is there still when a disk is no more: a layer that only was in use goes."""
    path = disk.path or ""
    active, *below = case.facts.chains.get(disk.target) or (path,)
    goes = case.forks or active in case.unlinks
    return below[0] if goes and below and below[0] in case.facts.frozen_by else path


def _checkpoints_break(case: Case) -> Evidence | None:
    if case.external is None or not case.situation.checkpoints:
        return None
    return found(checkpoints=listed(plain(name) for name in case.situation.checkpoints))


def _left_behind(case: Case) -> Evidence | None:
    """Active layers that the machine leaves, that nothing refers to and that libvirt does not remove."""
    if case.snapshot is None or case.forks:
        return None
    stays = case.facts.keys(disk.frozen for disk in case.snapshot.disks) if case.internal is not None else frozenset()
    taken = set(case.unlinks) | stays
    left = [
        layers[0]
        for target, layers in case.facts.chains.items()
        if layers
        and disk_of(case.snapshot, target) is not None
        and layers[0] not in taken
        and layers[0] not in case.facts.internal_in
        and layers[0] not in case.facts.frozen_by
        and _is_writable_disk(case, target)
    ]
    return found(files=files_named(left)) if left else None


def _is_writable_disk(case: Case, target: str) -> bool:
    return any(disk.target == target and takes_writes(disk) for disk in case.situation.disks)


RULES = (
    Rule(
        id="external-revert-unsupported",
        actions=_REVERT,
        verdict=Verdict.REFUSE,
        condition=_external_unsupported,
        reason="{snapshot} is external, and this host's hypervisor can't revert to external snapshots.",
        remedy="Copy the snapshot's layers to a machine of a host that can.",
        source="libvirt since 9.9 says so in its capabilities; before, SnapTree makes the new layers itself",
        needs=Known.TREE,
        since=LIBVIRT_9_9,
    ),
    Rule(
        id="nowhere-for-new-layers",
        actions=_REVERT,
        verdict=Verdict.REFUSE,
        condition=_nowhere_for_layers,
        reason="libvirt {libvirt} on this host can't revert to external snapshots, so SnapTree has to make new layers"
        " itself, and it can't make any in {directories}.",
        remedy="Make that directory a storage pool of the host (virsh pool-create-as NAME dir --target DIRECTORY), or"
        " let SnapTree run as someone who may write there. libvirt 9.9 and later need neither.",
        source="libvirt before 9.9: 'revert to external snapshot not supported yet' (code 67)",
        until=LIBVIRT_9_9,
    ),
    Rule(
        id="internal-revert-broken",
        actions=_REVERT,
        verdict=Verdict.REFUSE,
        condition=_internal_broken,
        reason="libvirt {libvirt} as it is installed here can't revert to internal snapshots: it stops {vm} and then"
        " fails.",
        remedy="Update libvirt on the host: later versions have the fix, and so have the packages of distributions.",
        source="GitLab #771: 11.2.0 and 11.3.0 as released; Debian's package has the fix since 11.3.0-2",
        needs=Known.TREE,
    ),
    Rule(
        id="revert-without-current",
        actions=_REVERT,
        verdict=Verdict.REFUSE,
        condition=_no_current,
        reason="libvirt knows no current snapshot of {vm}. Reverting to an external one in this state crashes its"
        " daemon.",
        remedy="Take an external snapshot first, which a revert with a safety snapshot does by itself.",
        source="lab on 11.3 and 12.8: the daemon crashes",
        needs=Known.TREE,
        mended_by_safety_snapshot=True,
    ),
    Rule(
        id="current-does-not-own-disks",
        actions=_REVERT,
        verdict=Verdict.REFUSE,
        condition=_not_owner,
        reason="libvirt takes {current} for the current snapshot of {vm}, but the layers in use do not descend from"
        " it. A revert would remove the wrong layers.",
        remedy="Take an external snapshot first, which a revert with a safety snapshot does by itself.",
        source="lab on 11.3 and 12.8: current wrongly set, revert elsewhere: data lost",
        needs=Known.LAYERS,
        mended_by_safety_snapshot=True,
    ),
    Rule(
        id="recorded-overlays-wrong",
        actions=_REVERT,
        verdict=Verdict.REFUSE,
        condition=_recorded_overlays_wrong,
        reason="A revert removes the layers that libvirt recorded for {current}: {files}. In use is {active}, so the"
        " wrong ones would go.",
        remedy="Take an external snapshot first, which a revert with a safety snapshot does by itself.",
        source="lab on 11.3 and 12.8: revertDisks dropped or out of date, then revert: data lost",
        needs=Known.LAYERS,
        mended_by_safety_snapshot=True,
    ),
    Rule(
        id="memory-file-missing",
        actions=_REVERT,
        verdict=Verdict.REFUSE,
        condition=_memory_file_missing,
        reason="The saved memory of {snapshot}, {file}, is missing. libvirt would stop {vm} before it notices.",
        remedy="Bring the file back from a backup, or choose another snapshot.",
        source="lab on 11.3 and 12.8: refused with the machine already killed",
    ),
    Rule(
        id="memory-of-another-time",
        actions=_REVERT,
        verdict=Verdict.REFUSE,
        condition=_memory_of_another_time,
        reason="The memory of {snapshot} was saved without {disks}. Brought back, it would meet a disk of another time,"
        " and the guest would ruin the file systems there.",
        remedy="Revert to the disks alone, and let {vm} be off (the state Off, or snaptree revert {vm_arg}"
        " {snapshot_arg} --off); started then, it is as after a power cut.",
        source="lab on 11.3: RAM comes back as it was, and the disk that was left out as it is now",
    ),
    Rule(
        id="not-in-image",
        actions=_REVERT_OR_LOOK,
        verdict=Verdict.REFUSE,
        condition=_not_in_image,
        reason="There is no snapshot {snapshot} in {files} any more, though libvirt lists it.",
        remedy="Choose another snapshot; what is left of {snapshot} is dropped by deleting it (snaptree delete {vm_arg}"
        " {snapshot_arg}).",
        source="libvirt stops the machine before QEMU looks for the snapshot",
        needs=Known.LAYERS,
    ),
    Rule(
        id="disk-type-blocks-revert",
        actions=_REVERT,
        verdict=Verdict.REFUSE,
        condition=_not_regular_files,
        reason="{vm} had {disks} when {snapshot} was taken. libvirt reverts to external snapshots only where every"
        " disk, CD-ROMs included, is a regular file, and it stops {vm} before it notices.",
        remedy="Copy the snapshot's layers to a new machine.",
        source="libvirt: 'source disk is not a regular file', after QEMU was stopped",
    ),
    Rule(
        id="snapshot-of-sleep",
        actions=_REVERT,
        verdict=Verdict.REFUSE,
        condition=_suspended_snapshot,
        reason="{snapshot} was taken of a machine that had put itself to sleep, and QEMU can't bring that back.",
        remedy="Choose another snapshot.",
        source="libvirt: 'qemu doesn't support reversion of snapshot taken in PMSUSPENDED state'",
        needs=Known.TREE,
    ),
    Rule(
        id="bitmaps-block-revert",
        actions=_REVERT,
        verdict=Verdict.REFUSE,
        condition=_bitmaps,
        reason="{what}: with them QEMU refuses to go back to an internal snapshot, after libvirt has stopped {vm}.",
        remedy="Delete the checkpoints first (virsh checkpoint-delete); the next backup is then a full one.",
        source="lab on 9.0, 11.3 and 12.8: refused, machine killed, and current moved all the same",
    ),
    Rule(
        id="half-deleted",
        actions=_REVERT_OR_LOOK,
        verdict=Verdict.REFUSE,
        condition=_half_deleted,
        reason="A deletion of {snapshot} or of a snapshot beside it was cut short, so its layer may hold half of"
        " another.",
        remedy="Repeat that deletion first; it then completes.",
        source="lab on 9.0, 11.3 and 12.8: interrupted deletes damage only the snapshot being deleted",
        needs=Known.TREE,
    ),
    Rule(
        id="left-half-deleted",
        actions=_REVERT_OR_LOOK,
        verdict=Verdict.REFUSE,
        condition=left_half_deleted,
        reason="A delete of {snapshot} was cut short when it had begun to overwrite its layer, and was left like that:"
        " what it holds is a mixture.",
        remedy="Delete {snapshot}: that completes it.",
        source="a commit writes into the layer that goes, from its first byte on",
        needs=Known.TREE,
    ),
    Rule(
        id="doubtful",
        actions=_REVERT_OR_LOOK,
        verdict=Verdict.WARN,
        condition=_marked_doubtful,
        reason="{snapshot} is marked as doubtful: a layer that it stands on was merged or written to by hand after it"
        " was taken, so it may show something else than was there.",
        remedy="Look whether it is what you want.",
        source="lab on 11.3 and 12.8: stale after a manual blockcommit, revert: wrong content, silently",
        needs=Known.TREE,
    ),
    Rule(
        id="present-state-is-lost",
        actions=_REVERT,
        verdict=Verdict.WARN,
        condition=_present_lost,
        reason="Everything {vm} did {since} is in no snapshot and is lost for good.",
        remedy="{remedy}",
        source="libvirt removes or leaves the layers in use",
        needs=Known.TREE,
        drivers=_ANY_DRIVER,
    ),
    Rule(
        id="ends-shut-off",
        actions=_REVERT,
        verdict=Verdict.WARN,
        condition=_ends_off,
        reason="{snapshot} holds the disks only: {vm} will be off, and starts as after a power cut.",
        remedy="To have it started, choose “Running” for afterwards (--running).",
        source="lab on 11.3 and 12.8: a running machine's disk-only snapshot ends shut off unless asked otherwise",
        needs=Known.TREE,
    ),
    Rule(
        id="memory-not-used",
        actions=_REVERT,
        verdict=Verdict.WARN,
        condition=_memory_not_used,
        reason="{snapshot} holds the memory of {vm} too, but {vm} will be off: its disks are those of a machine that"
        " was not shut down.",
        remedy="Revert to the state as captured.",
        source="a machine that is off has no memory",
        needs=Known.TREE,
    ),
    Rule(
        id="starts-anew",
        actions=_REVERT,
        verdict=Verdict.WARN,
        condition=_starts_anew,
        reason="{snapshot} holds no memory: {vm} starts from its disks, as after a shutdown or a power cut.",
        remedy="",
        source="a snapshot of the disks has no memory to go on from",
        needs=Known.TREE,
    ),
    Rule(
        id="machine-restarts",
        actions=_REVERT,
        verdict=Verdict.WARN,
        condition=_restarts,
        reason="{vm} is stopped and its QEMU replaced: consoles and network connections break.",
        remedy="",
        source="libvirt restarts QEMU for every revert since 7.10",
        needs=Known.TREE,
    ),
    Rule(
        id="settings-replaced",
        actions=_REVERT,
        verdict=Verdict.WARN,
        condition=_settings,
        reason="The settings of {vm} become those of {snapshot} too: {changes}.",
        remedy="",
        source="a snapshot holds the machine's definition, and a revert installs it",
    ),
    Rule(
        id="nvram-stays",
        actions=_REVERT,
        verdict=Verdict.WARN,
        condition=_nvram_stays,
        reason="The UEFI variables of {vm} (boot entries, Secure Boot keys) stay as they are now.",
        remedy="",
        source="lab on 9.0, 11.3 and 12.8; cloudstack#13013",
    ),
    Rule(
        id="disks-not-rolled-back",
        actions=_REVERT,
        verdict=Verdict.WARN,
        condition=_not_rolled_back,
        reason="Not part of {snapshot}: {disks}. What is there is not brought back to that moment, and a new layer"
        " goes over the image of then.",
        remedy="",
        source="lab on 11.3 and 12.8: the excluded disk is also overlaid and then recorded as external; SnapTree's own"
        " way does the first",
    ),
    Rule(
        id="disks-dropped",
        actions=_REVERT,
        verdict=Verdict.WARN,
        condition=_added_since,
        reason="Added after {snapshot} was taken: {disks}. {vm} will not have that any more; the file {files} stays.",
        remedy="",
        source="lab on 11.3 and 12.8: a disk added later is dropped from the machine, its file stays",
    ),
    Rule(
        id="checkpoints-break",
        actions=_REVERT,
        verdict=Verdict.WARN,
        condition=_checkpoints_break,
        reason="Incremental backups on the checkpoints {checkpoints} will fail after the revert, though they stay"
        " listed.",
        remedy="Make the next backup a full one.",
        source="a revert breaks bitmaps but leaves the checkpoints listed",
    ),
    Rule(
        id="layer-left-behind",
        actions=_REVERT,
        verdict=Verdict.WARN,
        condition=_left_behind,
        reason="{files}, in use now, stays on disk with nothing referring to it.",
        remedy="Remove it afterwards if nobody needs it.",
        source="lab on 11.3 and 12.8: a revert that leaves an internal snapshot orphans the old layer",
    ),
)
