"""What became of an interrupted operation: how far each kind of step is, by what is there now."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import libvirt

from snaptree.hosts.connection import Connection
from snaptree.hosts.describing import find_described, find_renamed
from snaptree.hosts.errors import explained
from snaptree.hosts.forgetting import find_forgotten
from snaptree.hosts.journal import Journal
from snaptree.hosts.layers import Images, live_chains
from snaptree.hosts.looking import is_made, is_started
from snaptree.hosts.merging import is_merged, is_stranded, is_unnoticed
from snaptree.hosts.reading import current_name
from snaptree.hosts.records import is_recorded
from snaptree.hosts.reverting import is_on
from snaptree.hosts.snapshot_xml import read_snapshot
from snaptree.hosts.taking import record_of
from snaptree.images.files import read_chain
from snaptree.model.errors import SnapTreeError
from snaptree.model.estate import DiskChain, DiskSnapshot, Snapshot, SnapshotKind
from snaptree.plans.naming import part_of
from snaptree.plans.operation import Operation, StepFound, StepState, half_deleted
from snaptree.plans.plan import (
    Action,
    CopyOut,
    DeleteSnapshot,
    DescribeSnapshot,
    DropManagedSave,
    EndOrphanedMerge,
    ForgetMemory,
    ForkAtSnapshot,
    FreezeFileSystems,
    Layer,
    MakeLook,
    MergeLayers,
    RecordLayers,
    RemoveLeftover,
    RemoveLook,
    RenameSnapshot,
    RevertToSnapshot,
    StartLook,
    Step,
    StopMachine,
    TakeSnapshot,
    ThawFileSystems,
)
from snaptree.plans.situation import Situation
from snaptree.plans.wording import files_named, listed, plain, quoted

_DONE = StepFound(StepState.DONE)
_NOT_BEGUN = StepFound(StepState.NOT_BEGUN)
_NOT_KNOWN = "and libvirt does not know of it"
_SHUT_DOWN = "while the machine runs: shut it down, and finish this then"


def with_operations(
    connection: Connection, situation: Situation, journal: Journal | None, *, recovers: bool = False
) -> Situation:
    """Add what the journal knows of a machine: what was interrupted on it, and what another program does to it.

    Whoever `recovers` it needs to know how far its steps are, too. Raises SnapTreeError if the host can't be read.
    """
    if journal is None:
        return situation
    uri, uuid = connection.uri, situation.domain.uuid
    unfinished = next(iter(journal.unfinished(host_uri=uri, domain_uuid=uuid)), None)
    found = None
    if recovers and unfinished is not None and unfinished.steps_done < len(unfinished.plan.steps):
        found = find_next_step(connection, connection.domain(uuid), unfinished)
    group = "" if unfinished is None or unfinished.plan.action is not Action.TAKE else unfinished.plan.group
    return replace(
        situation,
        unfinished=unfinished,
        found=found,
        group_is_torn=bool(group) and journal.is_torn(group),
        half_deleted=_half_deleted(journal, situation, uri),
        running_elsewhere=journal.running_elsewhere(uri, uuid),
    )


def _half_deleted(journal: Journal, situation: Situation, uri: str) -> frozenset[str]:
    """Snapshots that are still what an operation had begun to overwrite, and that somebody left as they were."""
    tree = situation.tree
    return frozenset(
        name
        for operation in journal.left(uri, situation.domain.uuid)
        for name in half_deleted(operation)
        if name in tree and tree[name].created <= operation.started
    )


def find_next_step(connection: Connection, domain: Any, operation: Operation) -> StepFound:
    """How far the first step of an operation is that is not known to be done."""
    begun = operation.steps_begun > operation.steps_done
    step = operation.plan.steps[operation.steps_done]
    return find_step(connection, domain, step, begun=begun, was_active=operation.was_active if begun else None)


def find_step(
    connection: Connection, domain: Any, step: Step, *, begun: bool, was_active: bool | None = None
) -> StepFound:
    """How far a step is. The one place that knows, for each kind of them.

    `begun` says that it may have acted already, `was_active` whether QEMU ran for the machine before it did.
    """
    with explained("looking how far the step is"):
        match step:
            case TakeSnapshot():
                return _find_take(connection, domain, step, begun=begun)
            case RevertToSnapshot():
                return _find_revert(connection, domain, step, begun=begun)
            case FreezeFileSystems() | ThawFileSystems():
                return _NOT_BEGUN  # what was frozen was thawed at the start, and thawing does no harm
            case StopMachine():
                return _NOT_BEGUN if domain.isActive() else _DONE
            case DropManagedSave():
                return _NOT_BEGUN if domain.hasManagedSaveImage() else _DONE
            case ForkAtSnapshot():
                return _find_fork(connection, domain, step, begun=begun)
            case DeleteSnapshot():
                return _find_delete(connection, domain, step, begun=begun, was_active=was_active)
            case EndOrphanedMerge():
                return _NOT_BEGUN if domain.isActive() else _DONE
            case MergeLayers():
                return _find_merge(connection, domain, step, begun=begun)
            case RecordLayers():
                return _find_record(connection, domain, step, begun=begun)
            case ForgetMemory():
                return find_forgotten(domain, step)
            case DescribeSnapshot():
                return find_described(domain, step)
            case RenameSnapshot():
                return find_renamed(connection, domain, step)
            case RemoveLeftover():
                is_here = connection.host.is_local
                return _DONE if is_here and not Path(step.path).exists() else _NOT_BEGUN
            case CopyOut():
                return _find_copy(connection, domain, step, begun=begun)
            case MakeLook():
                return _DONE if is_made(connection, step) else _find_files(connection, domain, step, begun=begun)
            case StartLook():
                return _DONE if is_started(connection, step) else _NOT_BEGUN
            case RemoveLook():
                return StepFound(StepState.HALF_WAY, "some of its files may be gone already") if begun else _NOT_BEGUN


def merging_disks(connection: Connection, domain: Any) -> tuple[str, ...]:
    """Disks of a machine with a block job."""
    return tuple(
        chain.target for chain in live_chains(connection, domain, top_only=True) if block_job(domain, chain.target)
    )


def block_job(domain: Any, target: str) -> dict[str, int]:
    """How far the block job of a disk is; empty where there is none."""
    try:
        info: dict[str, int] = domain.blockJobInfo(target) or {}
    except libvirt.libvirtError:
        return {}  # not running, or busy ending: then there is no progress to tell
    return info


def is_orphaned(domain: Any) -> bool:
    """Whether a paused machine is a QEMU that nobody looks after: libvirt itself does nothing with it now."""
    paused: int = libvirt.VIR_DOMAIN_PAUSED
    if domain.state()[0] != paused:
        return False
    try:
        # While libvirt deletes a snapshot it has no figures, and says so by an error.
        return bool(domain.jobInfo()[0] == libvirt.VIR_DOMAIN_JOB_NONE)
    except libvirt.libvirtError:
        return False


# One kind of step each


def _find_take(connection: Connection, domain: Any, step: TakeSnapshot, *, begun: bool) -> StepFound:
    current = current_name(domain)
    active = {chain.target: chain.active for chain in live_chains(connection, domain, top_only=True)}
    moved = [target for target, overlay in step.overlays.items() if active.get(target) == overlay]
    if any(snapshot.getName() == step.name for snapshot in domain.listAllSnapshots()):
        if current == step.name and len(moved) == len(step.overlays):
            return _DONE
        return _changed(f"{quoted(step.name)} exists, and is not what the machine descends from now")
    if current != step.expected_current:
        return _changed(f"the current snapshot is {_named(current)}, not {_named(step.expected_current)}")
    if moved:
        return _find_unrecorded(connection, domain, step, moved, begun=begun)
    return _find_files(connection, domain, step, begun=begun)


def _find_unrecorded(
    connection: Connection, domain: Any, step: TakeSnapshot, moved: list[str], *, begun: bool
) -> StepFound:
    """Disks that stand on the layers of a snapshot that libvirt does not list."""
    files = files_named(step.overlays[target] for target in moved)
    says = f"disk {listed(moved)} writes to {files} already, which no snapshot knows"
    if not begun or len(moved) < len(step.overlays):
        return _changed(says)
    try:
        record_of(connection, domain, step)
    except SnapTreeError as error:
        return _changed(f"{says}; and {error.summary}")
    return StepFound(StepState.HALF_WAY, says)


MakesFiles = TakeSnapshot | ForkAtSnapshot | CopyOut | MakeLook


def _find_files(connection: Connection, domain: Any, step: MakesFiles, *, begun: bool) -> StepFound:
    """A step that has come no further than making files, if that far."""
    left = list(files_made(connection, step))
    if not left:
        return _NOT_BEGUN
    if not begun:
        return _changed(f"{files_named(left)} exists by now")
    if used := _named_by_somebody(domain, left):
        return _changed(f"{files_named(used)} is in use")
    return StepFound(StepState.HALF_WAY, f"{files_named(left)} was left behind, and nothing refers to it")


def files_made(connection: Connection, step: MakesFiles) -> Iterator[str]:
    """Files that a step makes and that exist, as far as one can see from here."""
    if connection.host.is_local:
        yield from (path for path in _made_by(step) if path and Path(path).exists())


def _made_by(step: MakesFiles) -> tuple[str | None, ...]:
    match step:
        case TakeSnapshot():
            return (*step.overlays.values(), step.memory_file)
        case ForkAtSnapshot():
            return tuple(step.overlays.values())
        case CopyOut():
            return (part_of(step.path),)
        case MakeLook():
            return (*(step.disks[target] for target in step.bases), step.nvram)


def _named_by_somebody(domain: Any, paths: list[str]) -> list[str]:
    texts = [domain.XMLDesc(), *(snapshot.getXMLDesc() for snapshot in domain.listAllSnapshots())]
    return [path for path in paths if any(path in text for text in texts)]


def _find_copy(connection: Connection, domain: Any, step: CopyOut, *, begun: bool) -> StepFound:
    if not Path(step.path).exists():
        return _find_files(connection, domain, step, begun=begun)
    return _DONE if begun else _changed(f"{plain(step.path)} exists by now")


def _find_revert(connection: Connection, domain: Any, step: RevertToSnapshot, *, begun: bool) -> StepFound:
    current = current_name(domain)
    if current != step.name:
        if current == step.expected_current:
            return _NOT_BEGUN
        return _changed(f"the current snapshot is {_named(current)}, not {_named(step.expected_current)}")
    if step.name == step.expected_current:
        if begun:
            return _changed(f"nobody can say whether it was reverted to {quoted(step.name)} already")
        return _NOT_BEGUN
    snapshot = read_snapshot(step.name, domain.snapshotLookupByName(step.name).getXMLDesc())
    if snapshot.kind is SnapshotKind.INTERNAL:
        return _DONE
    active = {chain.target: chain.active for chain in live_chains(connection, domain, top_only=True)}
    if any(active.get(target) != overlay for target, overlay in snapshot.revert_overlays):
        return _changed(f"the disks do not stand on {quoted(step.name)}, though it is current")
    return _DONE


def _find_fork(connection: Connection, domain: Any, step: ForkAtSnapshot, *, begun: bool) -> StepFound:
    current = current_name(domain)
    if not is_on(domain, step):
        if current != step.expected_current:
            return _changed(f"the current snapshot is {_named(current)}, not {_named(step.expected_current)}")
        return _find_files(connection, domain, step, begun=begun)
    if current == step.name:
        return _DONE
    return StepFound(StepState.HALF_WAY, f"the machine is on its new layers, and libvirt still takes {_named(current)}")


def _find_delete(
    connection: Connection, domain: Any, step: DeleteSnapshot, *, begun: bool, was_active: bool | None
) -> StepFound:
    try:
        return _find_listed(connection, domain, step, begun=begun, was_active=was_active)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN_SNAPSHOT:
            return _DONE  # libvirt came to the end of it while we looked
        raise


def _find_listed(
    connection: Connection, domain: Any, step: DeleteSnapshot, *, begun: bool, was_active: bool | None
) -> StepFound:
    handle = next((each for each in domain.listAllSnapshots() if each.getName() == step.name), None)
    if handle is None:
        return _DONE
    if {child.getName() for child in handle.listAllChildren()} != set(step.expected_children):
        return _changed(f"{quoted(step.name)} has other children than when this was planned")
    if not (begun and step.merges):
        return _NOT_BEGUN
    jobs = merging_disks(connection, domain)
    if not jobs:
        snapshot = read_snapshot(step.name, handle.getXMLDesc())
        return _find_merged(connection, domain, snapshot, step) or StepFound(
            StepState.HALF_WAY, "it is listed still, and its layer may be merged in part"
        )
    if not is_orphaned(domain) or was_active:
        return StepFound(StepState.HALF_WAY, f"libvirt is merging disk {listed(jobs)} right now")
    if was_active is None:
        return _changed(
            f"the machine is paused with a merge of disk {listed(jobs)} that nobody finishes, and nobody knows whether"
            " it was off before"
        )
    return StepFound(
        StepState.HALF_WAY, f"the merge of disk {listed(jobs)} was left behind in a QEMU of its own", orphans=jobs
    )


def _find_merged(connection: Connection, domain: Any, snapshot: Snapshot, step: DeleteSnapshot) -> StepFound | None:
    """What QEMU merged to the end before libvirt noted it: libvirt can't delete that any more, but be told of it."""
    chains = live_chains(connection, domain)
    stacks = {chain.target: _stack(connection, chain) for chain in chains}
    disks = [disk for disk in snapshot.disks if disk.how is DiskSnapshot.EXTERNAL]
    merged = {
        disk.overlay: Layer(disk.frozen, disk.frozen_format)
        for disk in disks
        if disk.overlay is not None
        and disk.frozen in (layers := stacks.get(disk.target, ()))
        and disk.overlay not in layers
    }
    if not merged:
        return None
    says = f"QEMU merged {files_named(merged)} to the end, {_NOT_KNOWN}"
    if any(path in chain.layers for chain in chains for path in merged):
        # Its daemon died, and the new one goes by what the old one had noted. Off, all go by the images.
        return _changed(f"{says} {_SHUT_DOWN}")
    if len(merged) < len(disks) or snapshot.revert_overlays:
        return _changed(f"{says}: all content is there, but libvirt can't delete {quoted(snapshot.name)} any more")
    record = RecordLayers(
        moved=MappingProxyType(merged),
        removed=tuple(merged),
        parents=MappingProxyType(dict.fromkeys(step.expected_children, snapshot.parent)),
        overlays=MappingProxyType({}),
        revert_overlays=MappingProxyType({}),
        forgotten=(snapshot.name,),
    )
    left = [*merged, *([snapshot.memory_file] if snapshot.memory_file else [])]
    removes = [RemoveLeftover(path, "it belonged to the deleted snapshot") for path in left]
    return StepFound(StepState.HALF_WAY, says, instead=(record, *removes))


def _stack(connection: Connection, chain: DiskChain) -> tuple[str, ...]:
    """What a disk stands on by its images' own account. libvirt makes no overlay but qcow2."""
    if chain.active is None:
        return ()
    return tuple(image.path for image in read_chain(chain.active, "qcow2", Images(connection).read_image).images)


def _find_merge(connection: Connection, domain: Any, step: MergeLayers, *, begun: bool) -> StepFound:
    """What was begun is gone on with, even if it looks done: QEMU may not have written all of it down."""
    if not begun:
        return _NOT_BEGUN
    if is_merged(connection, domain, step):
        return StepFound(StepState.HALF_WAY, "it is merged, and only has to be made sure of")
    if step.is_live and domain.isActive() and block_job(domain, step.target):
        return StepFound(StepState.HALF_WAY, "it goes on in the machine's QEMU")
    if is_unnoticed(connection, domain, step):
        return _changed(f"QEMU merged {files_named(step.layers)} to the end, {_NOT_KNOWN} {_SHUT_DOWN}")
    if is_stranded(connection, domain, step):
        return _changed("the machine does not run any more, in which layers were merged; all of them are still there")
    return StepFound(StepState.HALF_WAY, "it may be merged in part, and all that it merges is still there")


def _find_record(connection: Connection, domain: Any, step: RecordLayers, *, begun: bool) -> StepFound:
    if not begun:
        return _NOT_BEGUN
    if is_recorded(connection, domain.UUIDString(), step):
        return _DONE
    return StepFound(StepState.HALF_WAY, "libvirt may know a part of it")


def _changed(problem: str) -> StepFound:
    return StepFound(StepState.CHANGED, problem)


def _named(snapshot: str | None) -> str:
    return "none" if snapshot is None else quoted(snapshot)
