"""Rules about taking a snapshot."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterable, Iterator

from snaptree.model.costs import domain_costs
from snaptree.model.estate import Consistency, DiskSnapshot, DomainState, MemorySnapshot
from snaptree.model.growth import Growth, growth_of
from snaptree.plans.facts import (
    LIBVIRT_9_3,
    LIBVIRT_10_9,
    internal_images,
    is_external,
    is_part_of_memory,
    is_same_snapshot,
    takes_writes,
)
from snaptree.plans.naming import file_name_is_too_long, name_problem
from snaptree.plans.plan import Action, Freeze
from snaptree.plans.rule import QEMU, TEST, Case, Evidence, Rule, Verdict, actions, first, found
from snaptree.plans.situation import Disk, Known
from snaptree.plans.wording import files_named, listed, machines_named, plain, quoted, size, snapshots_named

_TAKE = actions(Action.TAKE)
_NAMING = actions(Action.TAKE, Action.RENAME)
_ANY_DRIVER = frozenset({QEMU, TEST})

DEEPEST_CHAIN = 200
"""libvirt does not start a machine whose disk stands on more layers (QEMU_DOMAIN_STORAGE_SOURCE_MAX_DEPTH)."""
LONG_CHAIN = 25
LITTLE_ROOM = 2**30
"""Bytes free for the layers of a guest that runs, below which they are few."""
LITTLE_OF_DISKS = 0.05
"""For small disks fewer are enough: this part of what they show."""
EMPTY_OVERLAY_BYTES = 256 * 1024
"""A new qcow2 layer's header and tables; 192 KiB measured with QEMU 7.2 and 10.0."""


def _held(case: Case, how: DiskSnapshot) -> Iterator[Disk]:
    """The disks that the step holds in this way."""
    if case.take is not None:
        for disk in case.situation.disks:
            if case.take.disks.get(disk.target) is how:
                yield disk


def _broken_chain(case: Case) -> Evidence | None:
    """While the machine runs, QEMU has such a file open, and what it holds can be saved still."""
    if case.take is None or case.is_active:
        return None
    missing = {
        layer
        for target, how in case.take.disks.items()
        if how is not DiskSnapshot.NO
        for top in case.facts.chains.get(target, ())[:1]
        for layer in case.facts.missing_in_stack(top)
    }
    return found(files=files_named(missing)) if missing else None


def _left_out(case: Case) -> tuple[Disk, ...]:
    """Disks that a guest can change and the step does not hold."""
    return tuple(disk for disk in _held(case, DiskSnapshot.NO) if takes_writes(disk))


def _disks(condition: Callable[[Disk], bool], how: DiskSnapshot) -> Callable[[Case], Evidence | None]:
    """A condition that names the disks held in this way which are of some kind."""

    def find(case: Case) -> Evidence | None:
        disks = [disk for disk in _held(case, how) if condition(disk)]
        if not disks:
            return None
        return found(
            disks=listed(plain(disk.target) for disk in disks),
            formats=listed(sorted({plain(disk.format) for disk in disks})),
            types=listed(sorted({plain(disk.type) for disk in disks})),
        )

    return find


def _when_active(condition: Callable[[Case], Evidence | None]) -> Callable[[Case], Evidence | None]:
    return lambda case: condition(case) if case.is_active else None


def _name_not_allowed(case: Case) -> Evidence | None:
    if case.new_name is None:
        return None
    problem = name_problem(case.new_name, internal=case.takes_internal)
    return found(problem=problem) if problem else None


def _name_taken(case: Case) -> Evidence | None:
    if case.new_name is None or case.new_name not in case.tree:
        return None
    if case.snapshot is not None and is_same_snapshot(case.snapshot, case.tree[case.new_name]):
        return None  # a rename that was cut short, and goes on
    return found(snapshot=quoted(case.new_name))


def _name_in_image(case: Case) -> Evidence | None:
    if not case.takes_internal or case.name in case.tree:
        return None
    images = [
        disk.path
        for disk in _held(case, DiskSnapshot.INTERNAL)
        if disk.path
        and (image := case.facts.image(disk.path)) is not None
        and any(entry.name == case.name for entry in image.internal_snapshots)
    ]
    return found(files=files_named(images)) if images else None


def _new_files(case: Case) -> tuple[str, ...]:
    if case.take is None:
        return ()
    return tuple(path for path in (*case.take.overlays.values(), case.take.memory_file) if path)


def _file_exists(case: Case) -> Evidence | None:
    existing = [path for path in _new_files(case) if path in case.situation.existing_files]
    return found(files=files_named(existing)) if existing else None


def _file_name_too_long(case: Case) -> Evidence | None:
    return first(found(file=plain(path)) for path in _new_files(case) if file_name_is_too_long(path))


def _directories(paths: Iterable[str | None]) -> dict[str, None]:
    return dict.fromkeys(posixpath.dirname(path) for path in paths if path)


def _asked_for(case: Case) -> tuple[str, ...]:
    """Directories that new files go into because the user said so."""
    new = _directories(_new_files(case))
    return tuple(place for place in case.places if place in new)


def _place_is_missing(case: Case) -> Evidence | None:
    places = [place for place in _asked_for(case) if not _can_be(case, place)]
    return found(directories=files_named(places)) if places else None


def _can_be(case: Case, place: str) -> bool:
    return posixpath.isabs(place) and case.situation.places.get(place, True)


def _place_is_unseen(case: Case) -> Evidence | None:
    unseen = [place for place in _asked_for(case) if place not in case.situation.places]
    return found(directories=files_named(unseen)) if unseen else None


def _place_is_unused(case: Case) -> Evidence | None:
    if case.take is None:
        return None
    asked = _asked_for(case)
    unused = [place for place in case.places if place not in asked]
    why = "it lies inside the images" if case.takes_internal else "it saves no memory"
    return found(directories=files_named(unused), why=why) if unused else None


def _no_space_for_layers(case: Case) -> Evidence | None:
    if case.take is None:
        return None
    layers = [posixpath.dirname(path) for path in case.take.overlays.values()]
    for directory in dict.fromkeys(layers):
        free, needed = case.situation.free_bytes.get(directory), layers.count(directory) * EMPTY_OVERLAY_BYTES
        if free is not None and free < needed:
            return found(directory=plain(directory), free=size(free), needed=size(needed))
    return None


def _soon_full(case: Case) -> Evidence | None:
    """Less than what a guest that runs writes in a day, or than a small part of its disks; never more than those."""
    if case.take is None or not case.is_active:
        return None
    growth: Growth | None = None
    for directory in _directories(case.take.overlays.values()):
        free = case.situation.free_bytes.get(directory)
        held = [disk for disk in _held(case, DiskSnapshot.EXTERNAL) if disk.target in case.take.overlays]
        images = [case.facts.image(disk.path or "") for disk in held]
        most = sum(image.virtual_size or 0 for image in images if image is not None)
        if free is None or free >= most:
            continue
        growth = growth or growth_of(case.tree, domain_costs(case.tree, case.layers), case.situation.now)
        day = 0 if growth is None else growth.bytes_per_day
        if free < max(day, min(most * LITTLE_OF_DISKS, LITTLE_ROOM)):
            what = f"wrote {size(day)} a day of late" if free < day else f"has disks of {size(most)}"
            return found(directory=plain(directory), free=size(free), what=what)
    return None


def _may_not_end(case: Case) -> Evidence | None:
    written, saved = case.situation.dirty_rate, case.situation.speed.saving_rate
    if case.take is None or not case.take.live or written is None or saved is None or written < saved:
        return None
    return found(written=size(written), saved=size(saved))


def _nothing_to_hold(case: Case) -> Evidence | None:
    if case.take is None or any(how is not DiskSnapshot.NO for how in case.take.disks.values()):
        return None
    return found()


def _unknown_disk(case: Case) -> Evidence | None:
    if case.take is None:
        return None
    there = {disk.target for disk in case.situation.disks}
    unknown = [plain(target) for target in case.take.disks if target not in there]
    return found(disks=listed(unknown), there=listed(sorted(plain(target) for target in there))) if unknown else None


def _internal_leaves_out(case: Case) -> Evidence | None:
    left_out = _left_out(case)
    if not case.takes_internal or not left_out or _nothing_to_hold(case) is not None:
        return None
    return found(disks=listed(plain(disk.target) for disk in left_out))


def _on_a_base(how: DiskSnapshot) -> Callable[[Case], Evidence | None]:
    """A condition that finds disks held in this way whose images other machines read too."""

    def find(case: Case) -> Evidence | None:
        machines = {disk.path: case.facts.dependants.get(case.facts.key(disk.path or "")) for disk in _held(case, how)}
        bases = {path: names for path, names in machines.items() if path and names}
        if not bases:
            return None
        return found(files=files_named(bases), machines=machines_named(frozenset().union(*bases.values())))

    return find


def _uefi_internal(case: Case) -> Evidence | None:
    return found() if case.takes_internal and case.situation.has_pflash else None


def _uefi_internal_raw_running(case: Case) -> Evidence | None:
    return _uefi_internal(case) if case.situation.nvram_format != "qcow2" else None


def _nvram_not_saved(case: Case) -> Evidence | None:
    if case.take is None or not case.situation.has_pflash:
        return None
    is_saved = case.takes_internal and case.is_active and case.situation.nvram_format == "qcow2"
    return None if is_saved else found()


def _has_no_path(disk: Disk) -> bool:
    return disk.type != "file" or disk.path is None


def _suspended(case: Case) -> Evidence | None:
    return found() if case.situation.domain.state is DomainState.SUSPENDED else None


def _must_freeze(case: Case) -> bool:
    return case.take is not None and case.take.quiesce is Freeze.REQUIRED


def _quiesce_without_agent(case: Case) -> Evidence | None:
    return found() if _must_freeze(case) and not case.situation.has_agent else None


def _not_running(case: Case) -> Evidence | None:
    state = case.situation.domain.state
    return None if state is DomainState.RUNNING else found(state=state.value)


def _quiesce_not_running(case: Case) -> Evidence | None:
    return _not_running(case) if _must_freeze(case) else None


def _not_frozen(case: Case) -> Evidence | None:
    """Freezing was asked for if possible, the guest is there, and it is not possible."""
    if (
        case.take is None
        or case.take.quiesce is not Freeze.IF_POSSIBLE
        or case.take.consistency is not Consistency.CRASH
    ):
        return None
    if not case.situation.has_agent:
        return found(why="its guest agent does not answer")
    return found(why=f"it is {case.situation.domain.state.value}")


def _quiesce_with_memory(case: Case) -> Evidence | None:
    if case.take is None or case.take.quiesce is Freeze.NO:
        return None
    return found() if case.take.memory is not MemorySnapshot.NO or case.takes_internal else None


def _live_not_running(case: Case) -> Evidence | None:
    return _not_running(case) if case.take is not None and case.take.live else None


def _live_without_memory_file(case: Case) -> Evidence | None:
    if case.take is None or not case.take.live or not case.is_active:
        return None
    return found() if case.take.memory is not MemorySnapshot.EXTERNAL else None


def _test_driver_external(case: Case) -> Evidence | None:
    return found() if case.takes_external else None


def _checkpoints_off(case: Case) -> Evidence | None:
    if case.is_active or not case.takes_external or not case.situation.checkpoints:
        return None
    return found(checkpoints=listed(plain(name) for name in case.situation.checkpoints))


def _no_space_for_memory(case: Case) -> Evidence | None:
    if case.take is None or case.take.memory is MemorySnapshot.NO:
        return None
    images = [disk.path for disk in _held(case, DiskSnapshot.INTERNAL) if disk.path]
    file = case.take.memory_file or (images[0] if images else None)
    if file is None:
        return None
    directory = posixpath.dirname(file)
    free = case.situation.free_bytes.get(directory)
    if free is None or free >= case.situation.memory_bytes:
        return None
    return found(
        directory=plain(directory),
        free=size(free),
        memory=size(case.situation.memory_bytes),
        otherwise="" if case.take.safety else ", or take a snapshot of the disks only",
    )


def _too_deep(at_least: int) -> Callable[[Case], Evidence | None]:
    def find(case: Case) -> Evidence | None:
        if case.take is None:
            return None
        depths = [(len(case.facts.chains.get(target, ())), target) for target in case.take.overlays]
        deepest, target = max(depths, default=(0, ""))
        return found(disk=plain(target), layers=str(deepest + 1)) if deepest + 1 >= at_least else None

    return find


def _cannot_come_back(case: Case) -> Evidence | None:
    """Neither by libvirt nor by SnapTree's own steps."""
    if case.take is None or not case.takes_external or case.situation.host.external_snapshots:
        return None
    directories = {posixpath.dirname(disk.path) for disk in _held(case, DiskSnapshot.EXTERNAL) if disk.path}
    closed = directories - case.situation.takes_new_layers
    return found(directories=files_named(closed)) if closed else None


def _external_on_internal(case: Case) -> Evidence | None:
    if case.take is None:
        return None
    frozen = case.facts.keys(disk.path for disk in _held(case, DiskSnapshot.EXTERNAL))
    inside = [
        snapshot.name
        for snapshot in case.tree
        if not is_external(snapshot) and case.facts.keys(internal_images(snapshot)) & frozen
    ]
    return found(internal=snapshots_named(inside), files=files_named(frozen)) if inside else None


def _internal_on_external(case: Case) -> Evidence | None:
    if not case.takes_internal:
        return None
    below = [
        base.name
        for disk in _held(case, DiskSnapshot.INTERNAL)
        if (base := case.facts.base_of_now(disk.target)) is not None
    ]
    return found(external=snapshots_named(dict.fromkeys(below))) if below else None


def _no_memory_to_save(case: Case) -> Evidence | None:
    return found() if case.take is not None and case.wants_memory and not case.is_active else None


def _excluded(case: Case) -> Evidence | None:
    left_out = _left_out(case)
    if not left_out or not case.takes_external or _memory_without_disk(case) is not None:
        return None
    return found(disks=listed(plain(disk.target) for disk in left_out))


def _memory_without_disk(case: Case) -> Evidence | None:
    if case.take is None or case.take.memory is not MemorySnapshot.EXTERNAL:
        return None
    left_out = [disk for disk in _left_out(case) if is_part_of_memory(disk)]
    return found(disks=listed(plain(disk.target) for disk in left_out)) if left_out else None


RULES = (
    Rule(
        id="memory-without-disk",
        actions=_TAKE,
        verdict=Verdict.WARN,
        condition=_memory_without_disk,
        reason="Do not count on the memory of {snapshot}: it is saved without {disks}. Brought back, it would meet a"
        " disk of another time, and the guest would ruin the file systems there. So a revert with this memory is"
        " refused; without it, {vm} starts as after a power cut, and {disks} stays as it is.",
        remedy="Leave no disk out, or take the disks only.",
        source="lab on 11.3: RAM comes back as it was, and the disk that was left out as it is now",
    ),
    Rule(
        id="nothing-to-take",
        actions=_TAKE,
        verdict=Verdict.REFUSE,
        condition=_broken_chain,
        reason="{vm} stands on {files}, which is missing: a snapshot would hold disks that nobody can read.",
        remedy="Bring the file back from a backup, or remove the disk from {vm}.",
        source="qemu-img makes an overlay on a chain that is broken further down, and libvirt records it",
        needs=Known.LAYERS,
    ),
    Rule(
        id="name-not-allowed",
        actions=_NAMING,
        verdict=Verdict.REFUSE,
        condition=_name_not_allowed,
        reason="{problem}",
        remedy="Choose another that says what the snapshot is for, such as before-upgrade.",
        source="lab: with other names libvirt moves the disks and then fails, machines do not start again, or a"
        " revert brings back another snapshot",
        needs=Known.TREE,
        drivers=_ANY_DRIVER,
    ),
    Rule(
        id="name-taken",
        actions=_NAMING,
        verdict=Verdict.REFUSE,
        condition=_name_taken,
        reason="{vm} already has a snapshot named {snapshot}.",
        remedy="Choose another name.",
        source="names are the keys of snapshots",
        needs=Known.TREE,
        drivers=_ANY_DRIVER,
    ),
    Rule(
        id="name-in-image",
        actions=_TAKE,
        verdict=Verdict.REFUSE,
        condition=_name_in_image,
        reason="An internal snapshot named {snapshot} lies in {files} already, which libvirt does not list. QEMU"
        " would overwrite it.",
        remedy="Choose another name, or delete the old one if nobody needs it (qemu-img snapshot -d {snapshot_arg}"
        " FILE).",
        source="QEMU's savevm deletes an older snapshot of the same name",
        needs=Known.LAYERS,
    ),
    Rule(
        id="file-exists",
        actions=_TAKE,
        verdict=Verdict.REFUSE,
        condition=_file_exists,
        reason="A new layer can't be made where a file exists already: {files}.",
        remedy="Choose another name, or move that file away if nothing needs it any more.",
        source="libvirt: 'external snapshot file for disk already exists and is not a block device'",
    ),
    Rule(
        id="file-name-too-long",
        actions=_TAKE,
        verdict=Verdict.REFUSE,
        condition=_file_name_too_long,
        reason="The name of the new file {file} is too long for a file system.",
        remedy="Choose a shorter name.",
        source="lab: libvirt moves the disk to the new layer before it fails to write down the snapshot",
    ),
    Rule(
        id="place-missing",
        actions=_TAKE,
        verdict=Verdict.REFUSE,
        condition=_place_is_missing,
        reason="New files of {vm} can't go into a directory that its host does not have: {directories}.",
        remedy="Make it first, or choose another one, by its full path.",
        source="libvirt: 'failed to create file', 'Could not create'",
    ),
    Rule(
        id="place-unused",
        actions=_TAKE,
        verdict=Verdict.REFUSE,
        condition=_place_is_unused,
        reason="Nothing of {snapshot} would go into {directories}, for {why}.",
        remedy="Choose another kind of snapshot, or name no directory.",
        source="the user asked for a file that is not made",
    ),
    Rule(
        id="place-unseen",
        actions=_TAKE,
        verdict=Verdict.WARN,
        condition=_place_is_unseen,
        reason="{directories} can't be looked at from here: whether it is there, has room and no such file already,"
        " libvirt alone will tell.",
        remedy="Make that directory a storage pool of the host.",
        source="directories of other hosts are known only as storage pools",
    ),
    Rule(
        id="no-space-for-layers",
        actions=_TAKE,
        verdict=Verdict.REFUSE,
        condition=_no_space_for_layers,
        reason="{directory} has {free} free, and the new layers take {needed} there at once.",
        remedy="Make room, or put the layers somewhere else.",
        source="QEMU stops a guest, or fails its writes, when a layer can't grow",
    ),
    Rule(
        id="little-room-for-layers",
        actions=_TAKE,
        verdict=Verdict.WARN,
        condition=_soon_full,
        reason="{directory} has {free} free, and {vm} {what}: from now on all that it writes takes room there. When it"
        " is full, the guest stops, or its writes fail.",
        remedy="Make room there, or put the layers somewhere else.",
        source="QEMU stops a guest, or fails its writes, when a layer can't grow",
    ),
    Rule(
        id="live-may-not-end",
        actions=_TAKE,
        verdict=Verdict.WARN,
        condition=_may_not_end,
        reason="The guest writes to its memory faster ({written} a second) than that can be saved here ({saved} a"
        " second): saving it may not end until somebody pauses {vm}.",
        remedy="Let the guest pause while it is saved, or try when it has less to do.",
        source="QEMU saves again what changed meanwhile, until what is left takes less than its downtime limit",
    ),
    Rule(
        id="nothing-to-hold",
        actions=_TAKE,
        verdict=Verdict.REFUSE,
        condition=_nothing_to_hold,
        reason="{vm} has no disk left that a snapshot could hold.",
        remedy="Leave fewer disks out, or add a disk to {vm} first.",
        source="libvirt: 'nothing selected for snapshot'",
    ),
    Rule(
        id="unknown-disk",
        actions=_TAKE,
        verdict=Verdict.REFUSE,
        condition=_unknown_disk,
        reason="{vm} has no disk {disks}; its disks are {there}.",
        remedy="Name disks by their target, as virsh domblklist {vm_arg} shows them.",
        source="a disk that does not exist can't be left out",
        drivers=_ANY_DRIVER,
    ),
    Rule(
        id="internal-needs-qcow2",
        actions=_TAKE,
        verdict=Verdict.REFUSE,
        condition=_disks(lambda disk: disk.format != "qcow2", DiskSnapshot.INTERNAL),
        reason="Only qcow2 images can hold snapshots inside, and {disks} has another format ({formats}).",
        remedy="Take an external snapshot instead (disks only, or disks and memory).",
        source="libvirt: 'internal snapshot for disk unsupported for storage type'",
    ),
    Rule(
        id="internal-needs-a-file",
        actions=_TAKE,
        verdict=Verdict.REFUSE,
        condition=_disks(lambda disk: disk.type not in ("file", "block"), DiskSnapshot.INTERNAL),
        reason="Disks of type {types} can't hold snapshots inside: {disks}.",
        remedy="Use the snapshots of the storage itself for that disk.",
        source="libvirt: 'internal inactive snapshots are not supported on disks of this type'",
    ),
    Rule(
        id="internal-needs-all-disks",
        actions=_TAKE,
        verdict=Verdict.REFUSE,
        condition=_internal_leaves_out,
        reason="An internal snapshot must hold every disk that the guest can write to. Left out: {disks}.",
        remedy="Leave no disk out, or take an external snapshot.",
        source="libvirt: 'internal and full system snapshots require all disks to be selected for snapshot'",
    ),
    Rule(
        id="internal-in-a-base",
        actions=_TAKE,
        verdict=Verdict.REFUSE,
        condition=_on_a_base(DiskSnapshot.INTERNAL),
        reason="An internal snapshot is written into {files}, which disks of {machines} stand on as well: QEMU refuses"
        " that while one of them runs, and a revert to it would damage them.",
        remedy="Take it on new layers (disks only, or disks and memory): they leave {files} as it is.",
        source="lab on 9.0 and 11.3: 'Failed to get \"write\" lock'; a revert changes what stands on the image",
    ),
    Rule(
        id="layers-on-a-base",
        actions=_TAKE,
        verdict=Verdict.WARN,
        condition=_on_a_base(DiskSnapshot.EXTERNAL),
        reason="Disks of {machines} stand on {files} as well. That stays as it is: from {snapshot} on, {vm} writes to"
        " new layers.",
        remedy="",
        source="a layer that a snapshot froze takes no more writes",
    ),
    Rule(
        id="uefi-internal",
        actions=_TAKE,
        verdict=Verdict.REFUSE,
        condition=_uefi_internal,
        reason="{vm} starts by UEFI, and libvirt {libvirt} takes no internal snapshots of such machines.",
        remedy="Take an external snapshot instead.",
        source="libvirt before 9.3: 'internal snapshots of a VM with pflash based firmware are not supported'",
        until=LIBVIRT_9_3,
    ),
    Rule(
        id="uefi-internal-running",
        actions=_TAKE,
        verdict=Verdict.REFUSE,
        condition=_when_active(_uefi_internal),
        reason="{vm} starts by UEFI, and libvirt {libvirt} takes internal snapshots of such machines only while they"
        " are off.",
        remedy="Take an external snapshot instead, or shut {vm} down first.",
        source="libvirt 9.3 to 10.8",
        since=LIBVIRT_9_3,
        until=LIBVIRT_10_9,
    ),
    Rule(
        id="uefi-internal-raw-nvram",
        actions=_TAKE,
        verdict=Verdict.REFUSE,
        condition=_when_active(_uefi_internal_raw_running),
        reason="The UEFI variables of {vm} lie in a raw file, which can't hold a snapshot while the machine runs.",
        remedy="Take an external snapshot instead, shut {vm} down first, or convert its NVRAM to qcow2.",
        source="libvirt since 10.9: running internal snapshots need qcow2 NVRAM",
        since=LIBVIRT_10_9,
    ),
    Rule(
        id="nvram-not-saved",
        actions=_TAKE,
        verdict=Verdict.WARN,
        condition=_nvram_not_saved,
        reason="The UEFI variables of {vm} (boot entries, Secure Boot keys) are not part of this snapshot.",
        remedy="Copy the NVRAM file as well if they matter.",
        source="lab on 9.0, 11.3 and 12.8; cloudstack#13013",
    ),
    Rule(
        id="external-needs-a-file",
        actions=_TAKE,
        verdict=Verdict.REFUSE,
        condition=_disks(_has_no_path, DiskSnapshot.EXTERNAL),
        reason="Disks of type {types} have no directory beside them for a new layer, and libvirt would not revert to"
        " such a snapshot: {disks}.",
        remedy="Leave {disks} out, or use the snapshots of the storage itself.",
        source="libvirt: 'cannot generate external snapshot name', 'source disk is not a regular file'",
    ),
    Rule(
        id="external-passthrough",
        actions=_TAKE,
        verdict=Verdict.REFUSE,
        condition=_when_active(_disks(lambda disk: disk.device == "lun", DiskSnapshot.EXTERNAL)),
        reason="A SCSI device handed through to the guest can't be given a new layer: {disks}.",
        remedy="Leave {disks} out.",
        source="libvirt: 'external active snapshots are not supported on scsi passthrough devices'",
    ),
    Rule(
        id="external-shared-disk",
        actions=_TAKE,
        verdict=Verdict.REFUSE,
        condition=_disks(lambda disk: disk.shareable, DiskSnapshot.EXTERNAL),
        reason="Shared with other machines, which would go on writing to the layer that this snapshot froze: {disks}.",
        remedy="Leave {disks} out.",
        source="libvirt: 'shared access for disk requires use of supported storage format'",
    ),
    Rule(
        id="external-transient-disk",
        actions=_TAKE,
        verdict=Verdict.REFUSE,
        condition=_disks(lambda disk: disk.transient, DiskSnapshot.EXTERNAL),
        reason="The changes of a transient disk go when {vm} stops, and libvirt can't give it another layer: {disks}.",
        remedy="Leave {disks} out.",
        source="libvirt: block jobs and snapshots are not supported on transient disks",
    ),
    Rule(
        id="external-sd-card",
        actions=_TAKE,
        verdict=Verdict.REFUSE,
        condition=_when_active(_disks(lambda disk: disk.bus == "sd", DiskSnapshot.EXTERNAL)),
        reason="The layers of an SD card can't be changed while {vm} runs: {disks}.",
        remedy="Shut {vm} down first.",
        source="libvirt: block jobs are not supported on disks of bus 'sd'",
    ),
    Rule(
        id="machine-suspended",
        actions=_TAKE,
        verdict=Verdict.REFUSE,
        condition=_suspended,
        reason="{vm} has put itself to sleep (suspend to RAM), and QEMU can't take snapshots of that.",
        remedy="Wake it up first (virsh dompmwakeup {vm_arg}).",
        source="libvirt: 'qemu doesn't support taking snapshots of PMSUSPENDED guests'",
        needs=Known.TREE,
    ),
    Rule(
        id="quiesce-not-running",
        actions=_TAKE,
        verdict=Verdict.REFUSE,
        condition=_quiesce_not_running,
        reason="{vm} is not running ({state}), so its guest agent can't freeze anything.",
        remedy="Take the snapshot without freezing, or resume {vm} first.",
        source="libvirt: 'domain is not running'",
    ),
    Rule(
        id="quiesce-without-agent",
        actions=_TAKE,
        verdict=Verdict.REFUSE,
        condition=_quiesce_without_agent,
        reason="The guest agent of {vm} does not answer, and only it can freeze the guest's file systems.",
        remedy="Install and start qemu-guest-agent in the guest, or take the snapshot without freezing.",
        source="libvirt: errors 74 and AGENT_UNRESPONSIVE",
    ),
    Rule(
        id="not-frozen",
        actions=_TAKE,
        verdict=Verdict.WARN,
        condition=_not_frozen,
        reason="The file systems of {vm} can't be frozen now, for {why}: a revert will be like switching it on after a"
        " power cut.",
        remedy="",
        source="the user allowed it (Freeze.IF_POSSIBLE)",
    ),
    Rule(
        id="live-not-running",
        actions=_TAKE,
        verdict=Verdict.REFUSE,
        condition=_live_not_running,
        reason="{vm} is not running ({state}), so there is no guest that could run on meanwhile.",
        remedy="Take the snapshot without asking for a live one.",
        source="libvirt: 'live snapshot creation is supported only during full system snapshots'",
    ),
    Rule(
        id="live-without-memory-file",
        actions=_TAKE,
        verdict=Verdict.REFUSE,
        condition=_live_without_memory_file,
        reason="Only where the memory goes into a file of its own can the guest run on while it is saved.",
        remedy="Take an external snapshot with the memory, or do not ask for a live one.",
        source="libvirt: 'live snapshot creation is supported only during full system snapshots'; LIVE and internal"
        " exclude each other",
    ),
    Rule(
        id="quiesce-with-memory",
        actions=_TAKE,
        verdict=Verdict.REFUSE,
        condition=_quiesce_with_memory,
        reason="File systems are frozen only for snapshots of the disks alone; with the memory saved too there is no"
        " need to.",
        remedy="Choose either frozen file systems or saved memory.",
        source="libvirt: QUIESCE requires DISK_ONLY",
    ),
    Rule(
        id="test-driver-external",
        actions=_TAKE,
        verdict=Verdict.REFUSE,
        condition=_test_driver_external,
        reason="libvirt's test driver has no disk-only and no external snapshots.",
        remedy="Take an internal one.",
        source="libvirt's test driver: DISK_ONLY is not supported",
        drivers=frozenset({TEST}),
    ),
    Rule(
        id="checkpoints-off",
        actions=_TAKE,
        verdict=Verdict.REFUSE,
        condition=_checkpoints_off,
        reason="{vm} has checkpoints ({checkpoints}), and while it is off libvirt can't carry them over to a new"
        " layer.",
        remedy="Start {vm} first, or take an internal snapshot.",
        source="lab on 11.3 and 12.8: offline external create is refused while a checkpoint exists",
    ),
    Rule(
        id="no-space-for-memory",
        actions=_TAKE,
        verdict=Verdict.REFUSE,
        condition=_no_space_for_memory,
        reason="{directory} has {free} free, and the memory of {vm} may take {memory} there.",
        remedy="Make room{otherwise}.",
        source="a file system that runs full stops every machine on it",
    ),
    Rule(
        id="chain-too-deep",
        actions=_TAKE,
        verdict=Verdict.REFUSE,
        condition=_too_deep(DEEPEST_CHAIN + 1),
        reason="Disk {disk} would stand on {layers} layers, and libvirt starts no machine with more than 200.",
        remedy="Delete old snapshots first.",
        source="libvirt source: the depth of a backing chain is limited to 200",
    ),
    Rule(
        id="long-chain",
        actions=_TAKE,
        verdict=Verdict.WARN,
        condition=_too_deep(LONG_CHAIN),
        reason="Disk {disk} will stand on {layers} layers. Long chains read slowly, and each layer is a file more to"
        " lose.",
        remedy="Delete old snapshots that nobody needs.",
        source="QEMU asks each layer in turn for what a guest reads",
    ),
    Rule(
        id="no-way-back",
        actions=_TAKE,
        verdict=Verdict.WARN,
        condition=_cannot_come_back,
        reason="libvirt {libvirt} on this host can't revert to external snapshots, and SnapTree, which then does it"
        " itself, can make no new layers in {directories}.",
        remedy="Make that directory a storage pool of the host, or take an internal snapshot.",
        source="libvirt before 9.9: 'revert to external snapshot not supported yet'",
    ),
    Rule(
        id="external-on-internal",
        actions=_TAKE,
        verdict=Verdict.WARN,
        condition=_external_on_internal,
        reason="Inside {files}: {internal}. Once {snapshot} has frozen that layer, a revert to what is inside would"
        " overwrite {snapshot} and is refused, and libvirt can't delete {snapshot} as long as anything is inside.",
        remedy="Take an internal snapshot instead, as the tree has them so far.",
        source="lab: internal, then external: revert to the internal one gives the external one the wrong content",
    ),
    Rule(
        id="internal-on-external",
        actions=_TAKE,
        verdict=Verdict.WARN,
        condition=_internal_on_external,
        reason="While {snapshot} exists inside the active layer, {external} can't be deleted: merging that layer"
        " would lose {snapshot}.",
        remedy="Take an external snapshot instead, as the tree has them so far.",
        source="lab: deleting an external snapshot loses the internal ones in its overlay",
    ),
    Rule(
        id="no-memory-to-save",
        actions=_TAKE,
        verdict=Verdict.WARN,
        condition=_no_memory_to_save,
        reason="{vm} is off, so there is no memory to save: the snapshot holds its disks.",
        remedy="",
        source="a machine that is off has no RAM",
        needs=Known.TREE,
    ),
    Rule(
        id="disk-left-out",
        actions=_TAKE,
        verdict=Verdict.WARN,
        condition=_excluded,
        reason="Not part of {snapshot}: {disks}. A revert does not bring that back to this moment, but gives it a"
        " new layer too.",
        remedy="Leave no disk out if {vm} is to come back as a whole.",
        source="lab on 11.3 and 12.8: an excluded disk is overlaid at the revert and then recorded as external",
    ),
)
