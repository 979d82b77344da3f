"""Planning to look at a snapshot in a new machine, and to remove such a machine."""

from __future__ import annotations

import posixpath
import uuid
from types import MappingProxyType

from snaptree.model.costs import held_inside
from snaptree.model.estate import DiskSnapshot, Snapshot
from snaptree.model.figures import NOTHING, Figure, total
from snaptree.plans.draft import Draft, find_snapshot
from snaptree.plans.facts import Facts, memory_file_of
from snaptree.plans.intention import Look
from snaptree.plans.naming import look_name, look_nvram, look_path
from snaptree.plans.plan import (
    Action,
    CopyOut,
    Forecast,
    Layer,
    MakeLook,
    Plan,
    RemoveLook,
    StartLook,
    StopMachine,
    Undo,
)
from snaptree.plans.rules_look import LOOK_LACKS_ROOM
from snaptree.plans.rules_merge import lacks_room
from snaptree.plans.situation import Situation
from snaptree.plans.take import empty_layer
from snaptree.plans.wording import quoted


def plan_look(intention: Look, situation: Situation) -> Plan:
    """Plan a machine with a snapshot's disks. Raises VanishedError if the snapshot is gone.

    What the snapshot froze gets new layers, on which the machine writes. What lies inside an image is copied out of it,
    as nothing can stand on that.
    """
    snapshot = find_snapshot(situation, intention.snapshot)
    draft = Draft(Action.LOOK, situation)
    make = make_look(intention, snapshot, situation)
    copies = _copies(make, snapshot, situation)
    draft.judge(draft.case(make))
    copied = {copy.path: held_inside(situation.layers, copy.source.path, snapshot.name) for copy in copies}
    room = {path: total([copied.get(path, NOTHING), empty_layer()]) for path in make.disks.values()}
    _check_room(draft, make, room)
    if not draft.is_refused:
        for step in (*copies, make, *((StartLook(make.machine, make.uuid),) if intention.start else ())):
            draft.add_unjudged(step)
    undo = Undo(f"Remove the machine {quoted(make.machine)} again, with what was written in it.", removes=make.uuid)
    return draft.plan((snapshot.name,), Forecast(total(copied.values()), NOTHING, total(room.values())), undo)


def make_look(intention: Look, snapshot: Snapshot, situation: Situation) -> MakeLook:
    """The step that makes the machine. Its name is free unless the user chose it."""

    def paths(machine: str) -> dict[str, str]:
        held = (DiskSnapshot.EXTERNAL, DiskSnapshot.INTERNAL)
        return {
            disk.target: look_path(disk.frozen, machine, posixpath.basename(disk.target))
            for disk in snapshot.disks
            if disk.frozen and disk.how in held
        }

    machine = intention.machine
    taken = set(situation.machine_names)
    while not machine or (not intention.machine and situation.existing_files.intersection(paths(machine).values())):
        taken.add(machine)
        machine = look_name(situation.domain.name, snapshot.name, taken)
    bases = {
        disk.target: Layer(disk.frozen, disk.frozen_format or "raw")
        for disk in snapshot.disks
        if disk.frozen and disk.how is DiskSnapshot.EXTERNAL
    }
    copies_nvram = situation.nvram is not None and situation.copies_nvram
    return MakeLook(
        snapshot=snapshot.name,
        machine=machine,
        uuid=str(uuid.uuid5(uuid.UUID(situation.domain.uuid), f"{snapshot.name}/{machine}/{situation.now}")),
        disks=MappingProxyType(paths(machine)),
        bases=MappingProxyType(bases),
        connect_networks=intention.connect_networks,
        nvram=look_nvram(situation.nvram, machine) if copies_nvram and situation.nvram else None,
    )


def _copies(make: MakeLook, snapshot: Snapshot, situation: Situation) -> list[CopyOut]:
    """What has to be copied out of images before the machine can be made."""
    return [
        CopyOut(
            snapshot=snapshot.name,
            target=disk.target,
            source=Layer(disk.frozen, disk.frozen_format or "qcow2"),
            base=_base_of(disk.frozen, situation),
            path=make.disks[disk.target],
            copies=held_inside(situation.layers, disk.frozen, snapshot.name).bytes,
        )
        for disk in snapshot.disks
        if disk.frozen and disk.how is DiskSnapshot.INTERNAL
    ]


def _base_of(path: str, situation: Situation) -> Layer | None:
    image = situation.layers.images.get(path)
    if image is None or image.backing is None:
        return None
    below = situation.layers.images.get(image.backing)
    return Layer(image.backing, image.backing_format or ("raw" if below is None else below.format))


def _check_room(draft: Draft, make: MakeLook, room: dict[str, Figure]) -> None:
    """Refuse what does not fit into its directory, all new files there together."""
    directories: dict[str, int] = {}
    for path, figure in room.items():
        directory = posixpath.dirname(path)
        directories[directory] = directories.get(directory, 0) + (figure.bytes or 0)
        if evidence := lacks_room(draft.situation, path, directories[directory]):
            draft.refuse(LOOK_LACKS_ROOM.say(draft.case(make), evidence))


def plan_unlook(situation: Situation) -> Plan:
    """Plan to remove the machine itself, if it was made to look at a snapshot."""
    draft = Draft(Action.UNLOOK, situation)
    step = RemoveLook(own_files(situation))
    draft.judge(draft.case(step))
    if not draft.is_refused:
        if situation.domain.state.is_active:
            draft.add_unjudged(StopMachine())
        draft.add_unjudged(step)
    images, memory = situation.layers.images, situation.layers.memory_files
    frees = total(images[path].allocated if path in images else memory[path] for path in step.files)
    return draft.plan((), Forecast(NOTHING, frees, NOTHING), None)


def own_files(situation: Situation) -> tuple[str, ...]:
    """What was made for this machine, and what its own snapshots put on that: each before what it stands on."""
    looks_at = situation.layers.looks_at
    if looks_at is None:
        return ()
    facts = Facts(situation)
    made = facts.keys(looks_at.files)
    stacks = {path: tuple(facts.stack(path)) for path, image in situation.layers.images.items() if not image.is_missing}
    own = [path for path, stack in stacks.items() if made.intersection(stack)]
    memory_files = [memory_file_of(snapshot) for snapshot in situation.tree]
    there = [path for path in memory_files if path is not None and path not in situation.missing_files]
    return (*there, *sorted(own, key=lambda path: len(stacks[path]), reverse=True))
