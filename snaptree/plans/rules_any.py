"""Rules about the connection, the machine and its jobs, whatever is to be changed."""

from __future__ import annotations

import re

from snaptree.model.estate import DomainState, MemorySnapshot, Snapshot, SnapshotKind
from snaptree.plans.facts import QEMU_10
from snaptree.plans.operation import interruption
from snaptree.plans.plan import Action
from snaptree.plans.rule import QEMU, TEST, Case, Evidence, Rule, Verdict, actions, found
from snaptree.plans.situation import Known
from snaptree.plans.wording import listed, plain, quoted, shell_word

_REVERT_OVERLAY = re.compile(r"\.[0-9]{9,}$")
_ANY_DRIVER: frozenset[str] = frozenset()
_CHANGES = actions(Action.TAKE, Action.REVERT, Action.DELETE, Action.DROP_MEMORY)
_ANY_CHANGE = _CHANGES | actions(Action.DESCRIBE, Action.RENAME, Action.LOOK, Action.UNLOOK)
"""libvirt's own deletes hold on to what a change of a note would replace."""


def _read_only(case: Case) -> Evidence | None:
    return found() if case.situation.host.read_only else None


def _unfinished(case: Case) -> Evidence | None:
    unfinished = case.situation.unfinished
    return None if unfinished is None else found(interruption=interruption(unfinished).rstrip("."))


def _running_elsewhere(case: Case) -> Evidence | None:
    other = case.situation.running_elsewhere
    return None if other is None else found(who=f" of {plain(other.who)}" if other.who else "")


def _driver_unknown(case: Case) -> Evidence | None:
    return None if case.situation.host.driver in (QEMU, TEST) else found()


def _state_unknown(case: Case) -> Evidence | None:
    return found() if case.situation.domain.state is DomainState.UNKNOWN else None


def _is_left_by_interrupted_delete(case: Case) -> bool:
    return case.situation.domain.state is DomainState.PAUSED and any(
        snapshot.delete_in_progress for snapshot in case.tree
    )


def _block_job(case: Case) -> Evidence | None:
    jobs = case.situation.block_jobs
    return found(disks=listed(jobs)) if jobs and case.situation.domain.state is not DomainState.PAUSED else None


def _block_job_while_paused(case: Case) -> Evidence | None:
    """Libvirt marks what a delete merges into: where that is the lowest layer, it has nothing to mark."""
    jobs = case.situation.block_jobs
    is_paused = case.situation.domain.state is DomainState.PAUSED
    return found(disks=listed(jobs)) if jobs and is_paused and not _is_left_by_interrupted_delete(case) else None


def _orphaned_delete_job(case: Case) -> Evidence | None:
    jobs = case.situation.block_jobs
    return found(disks=listed(jobs)) if jobs and _is_left_by_interrupted_delete(case) else None


def _managed_save(case: Case) -> Evidence | None:
    if not case.situation.domain.has_managed_save:
        return None
    vm = shell_word(case.situation.domain.name)
    if case.action is Action.REVERT:
        snapshot = shell_word(case.name or "")
        return found(drop=f"the box in the preview, or snaptree revert {vm} {snapshot} --drop-managed-save")
    if case.takes_external or case.external is not None or case.merge is not None:
        return found(drop=f"virsh managedsave-remove {vm}")
    return None


def _transient(case: Case) -> Evidence | None:
    return None if case.situation.domain.is_persistent else found()


def _unreadable_snapshot(case: Case) -> Evidence | None:
    if case.snapshot is None or not case.snapshot.problem:
        return None
    return found(problem=case.snapshot.problem.rstrip("."))


def _mixed(case: Case) -> Evidence | None:
    return found() if case.snapshot is not None and case.snapshot.kind is SnapshotKind.MIXED else None


def _touches_images(case: Case) -> bool:
    """Whether that fails if QEMU has let go of the images: before QEMU 10 it still puts new layers on them."""
    if case.take is None:
        return bool(case.effect.merges) or (case.merge is not None and case.merge.is_live)
    is_new = case.situation.host.hypervisor_version >= QEMU_10
    return is_new or case.take.memory is MemorySnapshot.EXTERNAL


def _images_let_go(case: Case) -> Evidence | None:
    return found() if case.situation.images_let_go and _touches_images(case) else None


def _images_maybe_let_go(case: Case) -> Evidence | None:
    """Paused, and perhaps since its memory was saved or loaded; nobody can say whether it was resumed between."""
    situation, tree = case.situation, case.situation.tree
    if situation.domain.state is not DomainState.PAUSED or case.current is None or situation.images_let_go:
        return None
    # Snapshots of the disks alone, taken since, leave it as it is, and don't say whether it ran.
    line = (case.current.name, *tree.ancestors(case.current.name))
    last = next((tree[name] for name in line if tree[name].memory is not MemorySnapshot.NO), None)
    if last is None or last.memory is not MemorySnapshot.EXTERNAL or not _touches_images(case):
        return None
    if last.state is not DomainState.PAUSED and not _was_reverted_to(last):
        return None
    return found(current=quoted(last.name))


def _was_reverted_to(snapshot: Snapshot) -> bool:
    """Whether the layer in use after a revert is noted in it, which is named by the second."""
    overlays = [disk.overlay or "" for disk in snapshot.disks]
    return bool(snapshot.revert_overlays) or any(_REVERT_OVERLAY.search(overlay) for overlay in overlays)


RULES = (
    Rule(
        id="read-only-connection",
        actions=_ANY_CHANGE,
        verdict=Verdict.REFUSE,
        condition=_read_only,
        reason="The connection to the host is read-only, so nothing can be changed.",
        remedy="Connect again without read-only.",
        source="libvirt refuses every change on a read-only connection",
        needs=Known.TREE,
        drivers=_ANY_DRIVER,
    ),
    Rule(
        id="unknown-driver",
        actions=_ANY_CHANGE,
        verdict=Verdict.REFUSE,
        condition=_driver_unknown,
        reason="Snapshots are changed on QEMU and KVM hosts only; this host's driver is {driver}.",
        remedy="Use the tools that come with {driver}.",
        source="nothing here was tried with other drivers",
        needs=Known.TREE,
        drivers=_ANY_DRIVER,
    ),
    Rule(
        id="unfinished-operation",
        actions=_ANY_CHANGE,
        verdict=Verdict.REFUSE,
        condition=_unfinished,
        reason="{interruption}. What it left half done would be in the way of anything else.",
        remedy="Finish it, or leave it as it is: above the tree in the window, or by snaptree recover {vm_arg}.",
        source="the journal: the operation has begun, and has no end",
        needs=Known.TREE,
        drivers=_ANY_DRIVER,
    ),
    Rule(
        id="another-snaptree",
        actions=_ANY_CHANGE,
        verdict=Verdict.REFUSE,
        condition=_running_elsewhere,
        reason="Another SnapTree{who} is changing {vm} right now.",
        remedy="Wait until it has ended.",
        source="the journal: the program that runs the operation is alive",
        needs=Known.TREE,
        drivers=_ANY_DRIVER,
    ),
    Rule(
        id="state-unknown",
        actions=_CHANGES,
        verdict=Verdict.REFUSE,
        condition=_state_unknown,
        reason="libvirt can't say whether {vm} is running, and what is safe depends on that.",
        remedy="Find out on the host what became of {vm} (virsh domstate {vm_arg}), then refresh.",
        source="libvirt refuses snapshots of a machine without a state",
        needs=Known.TREE,
        drivers=_ANY_DRIVER,
    ),
    Rule(
        id="block-job-running",
        actions=_ANY_CHANGE,
        verdict=Verdict.REFUSE,
        condition=_block_job,
        reason="A block job (a merge, copy or backup) is running on disk {disks} of {vm}.",
        remedy="Wait until it has finished; virsh blockjob {vm_arg} DISK shows how far it is.",
        source="libvirt: 'domain has active block job', 'disk already in active block job'",
    ),
    Rule(
        id="block-job-while-paused",
        actions=_ANY_CHANGE,
        verdict=Verdict.REFUSE,
        condition=_block_job_while_paused,
        reason="{vm} is paused, with a block job (a merge, copy or backup) on disk {disks}.",
        remedy="Wait until it has finished; virsh blockjob {vm_arg} DISK shows how far it is. But if {vm} was off"
        " before and the job does not get on, a deletion was cut short: do not resume {vm}, stop the job (virsh"
        " blockjob {vm_arg} DISK --abort), end the machine (virsh destroy {vm_arg}), then delete that snapshot again.",
        source="lab on 11.3: daemon killed while it merged the lowest layer of a machine that was off",
    ),
    Rule(
        id="orphaned-delete-job",
        actions=_ANY_CHANGE,
        verdict=Verdict.REFUSE,
        condition=_orphaned_delete_job,
        reason="A deletion was cut short while it merged disk {disks}: {vm} is the paused QEMU that it left behind,"
        " with a merge that nobody finishes.",
        remedy="Do not resume {vm}. Stop the merge (virsh blockjob {vm_arg} DISK --abort), end the machine (virsh"
        " destroy {vm_arg}) if it was off before, then delete the same snapshot again.",
        source="lab on 9.0, 11.3 and 12.8: daemon killed while it merged a machine that was off",
    ),
    Rule(
        id="managed-save",
        actions=_CHANGES - {Action.DROP_MEMORY},
        verdict=Verdict.REFUSE,
        condition=_managed_save,
        reason="{vm} was put to sleep by a managed save. Started again, its saved memory would meet disks that it"
        " does not know, and its file systems would be damaged.",
        remedy="Start {vm}, or throw the saved state away ({drop}).",
        source="lab on 9.0, 11.3 and 12.8: managed save, external snapshot, start: the machine writes to the old disk",
        needs=Known.TREE,
        has_choice=actions(Action.REVERT),
    ),
    Rule(
        id="images-let-go",
        actions=actions(Action.TAKE, Action.DELETE),
        verdict=Verdict.REFUSE,
        condition=_images_let_go,
        reason="{vm} will be paused with its memory just saved or loaded; until it resumes, its QEMU does not touch"
        " the images.",
        remedy="Resume {vm} for a moment, and go on then.",
        source="lab on QEMU 10.0: 'Inactive node can't be a backing child of active'; on 7.2, after saving: 'Block node"
        " is read-only' and 'Can't migrate the vm that was paused due to previous migration'",
    ),
    Rule(
        id="images-maybe-let-go",
        actions=actions(Action.TAKE, Action.DELETE),
        verdict=Verdict.WARN,
        condition=_images_maybe_let_go,
        reason="{vm} is paused, perhaps since the memory of {current} was saved or loaded. If it was not resumed since,"
        " its QEMU does not touch the images, and this fails without doing harm.",
        remedy="Resume {vm} for a moment first.",
        source="lab on QEMU 10.0: 'Inactive node can't be a backing child of active'; on 7.2, after saving: 'Block node"
        " is read-only' and 'Can't migrate the vm that was paused due to previous migration'",
    ),
    Rule(
        id="transient-machine",
        actions=actions(Action.TAKE, Action.REVERT),
        verdict=Verdict.REFUSE,
        condition=_transient,
        reason="{vm} is transient: once it stops, libvirt forgets it and its snapshots, and the next start from the"
        " old definition writes to layers that snapshots have frozen.",
        remedy="Make it persistent first (virsh dumpxml {vm_arg} > vm.xml; virsh define vm.xml).",
        source="libvirt drops a transient domain's snapshot metadata when it stops",
        needs=Known.TREE,
    ),
    Rule(
        id="unreadable-snapshot",
        actions=_ANY_CHANGE - actions(Action.TAKE, Action.UNLOOK),
        verdict=Verdict.REFUSE,
        condition=_unreadable_snapshot,
        reason="What libvirt recorded about {snapshot} can't be understood ({problem}), so nobody can say what would"
        " be lost.",
        remedy="Look at it with virsh snapshot-dumpxml {vm_arg} {snapshot_arg}.",
        source="a snapshot without <domain> has no rollback information",
        needs=Known.TREE,
        drivers=_ANY_DRIVER,
    ),
    Rule(
        id="mixed-snapshot",
        actions=actions(Action.REVERT, Action.DELETE, Action.DROP_MEMORY),
        verdict=Verdict.REFUSE,
        condition=_mixed,
        reason="{snapshot} is partly inside an image and partly a frozen layer. libvirt treats it as if it were all"
        " external, and would bring back or delete only that part.",
        remedy="Copy what you need from its images by hand; today's libvirt does not make such snapshots any more.",
        source="libvirt source: virDomainSnapshotIsExternal",
        needs=Known.TREE,
    ),
)
