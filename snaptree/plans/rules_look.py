"""Rules about machines that are made to look at a snapshot, and about removing them."""

from __future__ import annotations

import posixpath

from snaptree.model.estate import DiskSnapshot, DomainState, MemorySnapshot
from snaptree.plans.facts import disk_of, internal_images, takes_writes
from snaptree.plans.naming import machine_name_problem
from snaptree.plans.plan import Action, RemoveLook
from snaptree.plans.rule import TEST, Case, Evidence, Rule, Verdict, actions, by_the_planner, first, found
from snaptree.plans.rules_files import content_changed
from snaptree.plans.situation import Known
from snaptree.plans.wording import files_named, listed, machines_named, plain, quoted, snapshots_named

_LOOK = actions(Action.LOOK)
_UNLOOK = actions(Action.UNLOOK)


# Making one


def _test_driver(_case: Case) -> Evidence | None:
    return found()


def _holds_nothing(case: Case) -> Evidence | None:
    if case.snapshot is None:
        return None
    held = [disk for disk in case.snapshot.disks if disk.how in (DiskSnapshot.EXTERNAL, DiskSnapshot.INTERNAL)]
    return None if any(disk.frozen for disk in held) else found()


def _layers(case: Case) -> dict[str, None]:
    """All that the snapshot's content stands on, each once, as far as it is known."""
    if case.snapshot is None:
        return {}
    held = [disk.frozen for disk in case.snapshot.disks if disk.frozen and disk.how is not DiskSnapshot.NO]
    return {layer: None for top in held for layer in case.facts.stack(top)}


def _layer_missing(case: Case) -> Evidence | None:
    missing = [layer for layer in _layers(case) if layer in case.facts.missing]
    return found(files=files_named(missing)) if missing else None


def _layer_unreadable(case: Case) -> Evidence | None:
    return first(
        found(file=plain(layer), problem=plain(why.rstrip(".")))
        for layer in _layers(case)
        if (why := case.facts.unreadable.get(layer))
    )


def _encrypted(case: Case) -> Evidence | None:
    if case.look is None:
        return None
    recorded = case.situation.recorded_disks.get(case.look.snapshot, ())
    encrypted = [disk.target for disk in recorded if disk.is_encrypted and disk.target in case.look.disks]
    return found(disks=listed(plain(target) for target in encrypted)) if encrypted else None


def _nowhere(case: Case) -> Evidence | None:
    if case.look is None:
        return None
    directories = {posixpath.dirname(case.look.disks[target]) for target in case.look.bases}
    closed = directories - case.situation.takes_new_layers
    return found(directories=files_named(closed)) if closed else None


def _not_copied(case: Case) -> Evidence | None:
    if case.snapshot is None:
        return None
    return first(
        found(file=plain(path), problem=plain(why))
        for path in internal_images(case.snapshot)
        if (why := case.situation.why_not_copied.get(path))
    )


def _name_not_allowed(case: Case) -> Evidence | None:
    problem = "" if case.look is None else machine_name_problem(case.look.machine)
    return found(problem=problem) if problem else None


def _name_taken(case: Case) -> Evidence | None:
    if case.look is None or case.look.machine not in case.situation.machine_names:
        return None
    return found(machine=quoted(case.look.machine))


def _file_exists(case: Case) -> Evidence | None:
    if case.look is None:
        return None
    # A copy is there already when its machine is made.
    files = [case.look.disks[target] for target in case.look.bases]
    there = case.situation.existing_files.intersection(files)
    return found(files=files_named(there)) if there else None


def _without_memory(case: Case) -> Evidence | None:
    if case.snapshot is None or case.snapshot.state is DomainState.OFF:
        return None
    has_memory = case.snapshot.memory is not MemorySnapshot.NO
    return found(but=", not its memory" if has_memory else "")


def _left_out(case: Case) -> Evidence | None:
    if case.look is None or case.snapshot is None:
        return None
    recorded = case.situation.recorded_disks.get(case.snapshot.name, case.situation.disks)
    missing = [disk for disk in recorded if takes_writes(disk) and disk.target not in case.look.disks]
    if not missing:
        return None
    reasons = {
        disk.target: "not part of the snapshot"
        if (held := disk_of(case.snapshot, disk.target)) is None or held.how is DiskSnapshot.NO
        else "not a file that can be followed"
        for disk in missing
    }
    return found(disks=listed(f"{plain(target)} ({why})" for target, why in reasons.items()))


def _devices_left_out(case: Case) -> Evidence | None:
    devices = case.situation.shared_devices.get(case.name or "", ())
    return found(devices=listed(plain(device) for device in devices)) if case.look is not None and devices else None


def _networks_off(case: Case) -> Evidence | None:
    if case.look is None or case.look.connect_networks:
        return None
    return found(machine=plain(case.look.machine))


def _networks_on(case: Case) -> Evidence | None:
    return found() if case.look is not None and case.look.connect_networks else None


def _nvram_anew(case: Case) -> Evidence | None:
    if case.look is None or not case.situation.has_pflash:
        return None
    return found(new_or_copied="made anew" if case.look.nvram is None else "a copy of those of now")


def _keeps_layers(case: Case) -> Evidence | None:
    return found() if case.look is not None and case.look.bases else None


# Removing one


def _no_look(case: Case) -> Evidence | None:
    return found() if case.layers.looks_at is None else None


def _transient(case: Case) -> Evidence | None:
    return None if case.situation.domain.is_persistent else found()


def _own_files(case: Case) -> tuple[str, ...]:
    return case.step.files if isinstance(case.step, RemoveLook) else ()


def _needed_by_others(case: Case) -> Evidence | None:
    own = _own_files(case)
    for file in own:
        if machines := case.facts.dependants.get(case.facts.key(file)):
            return found(file=plain(file), who=machines_named(machines))
        if overlays := case.facts.others_above(file, own):
            return found(file=plain(file), who=files_named(overlays))
    return None


def _keeps_disks(case: Case) -> Evidence | None:
    if not isinstance(case.step, RemoveLook):
        return None
    own = case.facts.keys(case.step.files)
    others = [disk.path for disk in case.situation.disks if takes_writes(disk) and disk.path]
    kept = [path for path in others if case.facts.key(path) not in own]
    return found(files=files_named(kept)) if kept else None


def _loses(case: Case) -> Evidence | None:
    return found(snapshots=f", with its snapshots ({snapshots_named(case.tree.snapshots)})" if len(case.tree) else "")


def _is_stopped(case: Case) -> Evidence | None:
    return found() if case.is_active else None


LOOK_LACKS_ROOM = Rule(
    id="look-lacks-room",
    actions=_LOOK,
    verdict=Verdict.REFUSE,
    condition=by_the_planner,
    reason="{file} takes up to {grows}, and there is only {free} free in {directory}.",
    remedy="Make room there first.",
    source="QEMU stops in the middle of a copy when a file system is full",
)

RULES = (
    Rule(
        id="look-needs-qemu",
        actions=_LOOK | _UNLOOK,
        verdict=Verdict.REFUSE,
        condition=_test_driver,
        reason="libvirt's test driver has machines, but no images, so there is nothing to look at.",
        remedy="Connect to a QEMU host.",
        source="the test driver keeps snapshots in memory",
        needs=Known.TREE,
        drivers=frozenset({TEST}),
    ),
    Rule(
        id="look-holds-nothing",
        actions=_LOOK,
        verdict=Verdict.REFUSE,
        condition=_holds_nothing,
        reason="{snapshot} holds no disk in a file, so there is nothing that a new machine could show.",
        remedy="Choose another snapshot.",
        source="a snapshot may leave all disks out, and disks on a network are no files",
        needs=Known.TREE,
    ),
    Rule(
        id="look-layer-missing",
        actions=_LOOK,
        verdict=Verdict.REFUSE,
        condition=_layer_missing,
        reason="What {snapshot} held can't be shown, because this is missing: {files}.",
        remedy="Bring the file back from a backup, or choose another snapshot.",
        source="a qcow2 image without its base is lost",
        needs=Known.LAYERS,
    ),
    Rule(
        id="look-layer-unreadable",
        actions=_LOOK,
        verdict=Verdict.REFUSE,
        condition=_layer_unreadable,
        reason="{file} can't be read ({problem}), so nobody can say whether it still shows what {snapshot} held.",
        remedy="Connect with an account that may read the images, or put them into a storage pool.",
        source="what a layer stands on is said in its header alone",
        needs=Known.LAYERS,
    ),
    Rule(
        id="look-content-changed",
        actions=_LOOK,
        verdict=Verdict.REFUSE,
        condition=content_changed,
        reason="The layers below {snapshot} are not those it was taken on: {files} may hold other data by now, and"
        " that is what a new machine would show.",
        remedy="Choose another snapshot.",
        source="lab on 11.3 and 12.8: after a manual blockcommit a snapshot's layers hold something else",
        needs=Known.LAYERS,
    ),
    Rule(
        id="look-encrypted",
        actions=_LOOK,
        verdict=Verdict.REFUSE,
        condition=_encrypted,
        reason="Disk {disks} is encrypted, and SnapTree makes no layers on encrypted images.",
        remedy="Make an overlay by hand (qemu-img create with the secret of {vm}).",
        source="an overlay needs the secret of its base, and one of its own",
    ),
    Rule(
        id="look-nowhere-for-layers",
        actions=_LOOK,
        verdict=Verdict.REFUSE,
        condition=_nowhere,
        reason="The new machine writes to layers of its own over those of {snapshot}, and SnapTree can't make any in"
        " {directories}.",
        remedy="Make that directory a storage pool of the host (virsh pool-create-as NAME dir --target DIRECTORY), or"
        " let SnapTree run as someone who may write there, with qemu-img installed (qemu-utils, qemu-img).",
        source="layers are made by qemu-img, or by libvirt as volumes of a pool",
    ),
    Rule(
        id="look-not-copied-out",
        actions=_LOOK,
        verdict=Verdict.REFUSE,
        condition=_not_copied,
        reason="{snapshot} lies inside {file} and would have to be copied out, which is not possible: {problem}.",
        remedy="Run SnapTree on the host, as someone who may read and write there, with qemu-img installed"
        " (qemu-utils, qemu-img).",
        source="libvirt copies volumes as they are now, and no snapshot out of them",
    ),
    Rule(
        id="look-name-not-allowed",
        actions=_LOOK,
        verdict=Verdict.REFUSE,
        condition=_name_not_allowed,
        reason="{problem}",
        remedy="Choose another name.",
        source="the machine's files are named after it",
    ),
    Rule(
        id="look-name-taken",
        actions=_LOOK,
        verdict=Verdict.REFUSE,
        condition=_name_taken,
        reason="There is a machine named {machine} already.",
        remedy="Choose another name.",
        source="libvirt: 'domain already exists'",
    ),
    Rule(
        id="look-file-exists",
        actions=_LOOK,
        verdict=Verdict.REFUSE,
        condition=_file_exists,
        reason="{files} exists already, and is never overwritten.",
        remedy="Choose another name for the machine.",
        source="a file that is there may be somebody's",
    ),
    Rule(
        id="look-without-memory",
        actions=_LOOK,
        verdict=Verdict.WARN,
        condition=_without_memory,
        reason="The new machine has the disks of {snapshot}{but}: it starts as after a power cut.",
        remedy="",
        source="saved memory belongs to the machine that it was saved of",
        needs=Known.TREE,
    ),
    Rule(
        id="look-networks-off",
        actions=_LOOK,
        verdict=Verdict.WARN,
        condition=_networks_off,
        reason="Its network cards are new ones, and their cables are unplugged.",
        remedy="",
        source="two machines with the same addresses and names disturb each other",
    ),
    Rule(
        id="look-networks-on",
        actions=_LOOK,
        verdict=Verdict.WARN,
        condition=_networks_on,
        reason="The new machine is on the network beside {vm}. Its guest believes that it is {vm}: what has fixed"
        " addresses, sends mail or runs on a schedule does so twice.",
        remedy="Leave its networks unplugged.",
        source="only the MAC addresses differ",
    ),
    Rule(
        id="look-disks-left-out",
        actions=_LOOK,
        verdict=Verdict.WARN,
        condition=_left_out,
        reason="The new machine is without disk {disks}.",
        remedy="",
        source="what is not in a snapshot is not as it was then",
    ),
    Rule(
        id="look-devices-left-out",
        actions=_LOOK,
        verdict=Verdict.WARN,
        condition=_devices_left_out,
        reason="The new machine is without what {vm} can't share: {devices}.",
        remedy="",
        source="two machines that use one device or directory damage it or each other",
    ),
    Rule(
        id="look-nvram",
        actions=_LOOK,
        verdict=Verdict.WARN,
        condition=_nvram_anew,
        reason="Its UEFI variables (boot entries, Secure Boot keys) are {new_or_copied}, not those of {snapshot}.",
        remedy="",
        source="external snapshots don't hold the firmware's variables",
    ),
    Rule(
        id="look-keeps-layers",
        actions=_LOOK,
        verdict=Verdict.WARN,
        condition=_keeps_layers,
        reason="The new machine stands on what {snapshot} holds: as long as it is there, these layers stay, also if"
        " {snapshot} is deleted.",
        remedy="",
        source="other machines' layers are neither written nor removed: rule machines-depend",
    ),
    LOOK_LACKS_ROOM,
    Rule(
        id="unlook-no-look",
        actions=_UNLOOK,
        verdict=Verdict.REFUSE,
        condition=_no_look,
        reason="SnapTree did not make {vm} to look at a snapshot, so it does not remove it.",
        remedy="If nobody needs {vm}, undefine it by virsh.",
        source="the machine's own XML carries no such mark, or that of another machine",
        needs=Known.LAYERS,
    ),
    Rule(
        id="unlook-transient",
        actions=_UNLOOK,
        verdict=Verdict.REFUSE,
        condition=_transient,
        reason="{vm} is transient: once it stops, nobody knows any more which files were made for it.",
        remedy="Make it persistent first (virsh dumpxml {vm_arg} > vm.xml; virsh define vm.xml).",
        source="somebody undefined it while it ran",
        needs=Known.TREE,
    ),
    Rule(
        id="unlook-needed",
        actions=_UNLOOK,
        verdict=Verdict.REFUSE,
        condition=_needed_by_others,
        reason="{file} can't be removed, because {who} stands on it.",
        remedy="Remove that first if nobody needs it.",
        source="a qcow2 image without its base is lost",
    ),
    Rule(
        id="unlook-loses",
        actions=_UNLOOK,
        verdict=Verdict.WARN,
        condition=_loses,
        reason="What was written in {vm} since it was made is lost for good{snapshots}. This can't be undone.",
        remedy="",
        source="its files are removed",
        needs=Known.TREE,
    ),
    Rule(
        id="unlook-stops",
        actions=_UNLOOK,
        verdict=Verdict.WARN,
        condition=_is_stopped,
        reason="{vm} runs: it is turned off at once, like pulling the plug.",
        remedy="",
        source="files that QEMU has open are not removed",
        needs=Known.TREE,
    ),
    Rule(
        id="unlook-keeps",
        actions=_UNLOOK,
        verdict=Verdict.WARN,
        condition=_keeps_disks,
        reason="{files} was not made for {vm}, and stays.",
        remedy="",
        source="the machine's mark says which files were made for it",
    ),
)
