"""Letting libvirt take a snapshot with memory for one of the disks only.

libvirt refuses to redefine a snapshot of a running machine as one of its disks ("cannot change between online and
offline snapshot state"). With the memory left out and the state kept it does take it, and then kills the machine when
it is reverted to (11.3). So the snapshot is recorded anew, and what descends from it follows.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from snaptree.hosts.connection import Connection
from snaptree.hosts.describing import take_over
from snaptree.hosts.domain_xml import parse
from snaptree.hosts.errors import explained
from snaptree.hosts.leftovers import prove_unneeded
from snaptree.hosts.reading import current_name, read_tree
from snaptree.hosts.snapshot_xml import read_snapshot, with_annotations
from snaptree.model.errors import ChangedMeanwhileError, SnapTreeError
from snaptree.model.estate import MemorySnapshot, Snapshot
from snaptree.plans.aftermath import without_memory
from snaptree.plans.describe import renaming
from snaptree.plans.operation import StepFound, StepState
from snaptree.plans.plan import ForgetMemory
from snaptree.plans.wording import quoted


def forget_memory(connection: Connection, domain: Any, step: ForgetMemory) -> None:
    """Carry out a step, or go on with one that was cut short. Nothing of the images is touched.

    Raises ChangedMeanwhileError before it changes anything if the snapshot is another one by now, or somebody else
    needs its memory; SnapTreeError if libvirt refuses, or lists something else afterwards.
    """
    before = _Listed.read(domain)
    found = _look(before, step)
    if found.state is StepState.CHANGED:
        raise ChangedMeanwhileError(found.says)
    if _holds_memory(before.snapshots.get(step.name)):
        prove_unneeded(connection, domain, step.memory_file, except_for=(step.name,))
        _record_as(connection, domain, step.name, step.stand_in)
    if step.stand_in in _Listed.read(domain).snapshots:
        _record_as(connection, domain, step.stand_in, step.name)
    after = _Listed.read(domain)
    if after.shape(step) != before.shape(step) or _look(after, step).state is not StepState.DONE:
        raise SnapTreeError(
            f"libvirt was told that {step.name} holds the disks only, but lists something else now.",
            hint="No file was removed. Look at the tree before you go on.",
        )


def find_forgotten(domain: Any, step: ForgetMemory) -> StepFound:
    """How far a step is. Raises libvirtError."""
    return _look(_Listed.read(domain), step)


def _look(listed: _Listed, step: ForgetMemory) -> StepFound:
    snapshot = listed.snapshots.get(step.name)
    has_stand_in = step.stand_in in listed.snapshots
    if snapshot is None and not has_stand_in:
        return StepFound(StepState.CHANGED, f"{quoted(step.name)} is gone")
    if _holds_memory(snapshot) and snapshot is not None and snapshot.memory_file != step.memory_file:
        return StepFound(StepState.CHANGED, f"the memory of {quoted(step.name)} is in another file by now")
    if has_stand_in:
        return StepFound(StepState.HALF_WAY, f"libvirt has it on record as {quoted(step.stand_in)} for the moment")
    return StepFound(StepState.NOT_BEGUN if _holds_memory(snapshot) else StepState.DONE)


def _holds_memory(snapshot: Snapshot | None) -> bool:
    return snapshot is not None and snapshot.memory is not MemorySnapshot.NO


@dataclass(frozen=True, slots=True)
class _Listed:
    """What libvirt lists now."""

    snapshots: Mapping[str, Snapshot]
    current: str | None

    @classmethod
    def read(cls, domain: Any) -> _Listed:
        with explained("reading what libvirt has on record"):
            texts = {handle.getName(): handle.getXMLDesc() for handle in domain.listAllSnapshots()}
            return cls({name: read_snapshot(name, text) for name, text in texts.items()}, current_name(domain))

    def shape(self, step: ForgetMemory) -> tuple[Mapping[str, str | None], str | None]:
        """Who descends from whom, and which is current: the stand-in is the snapshot itself."""
        own = {step.stand_in: step.name}
        parents = {own.get(each.name, each.name): own.get(each.parent or "", each.parent) for each in self._each()}
        return parents, own.get(self.current or "", self.current)

    def _each(self) -> list[Snapshot]:
        return sorted(self.snapshots.values(), key=lambda each: each.name)


def _record_as(connection: Connection, domain: Any, old: str, new: str) -> None:
    """Let a snapshot without memory take the place of `old` in the tree. Doing it again completes it."""
    step = renaming(read_tree(connection, domain.UUIDString()), old, new)
    take_over(connection, domain, step, lambda text: _without_memory(text, old, new))


def _without_memory(text: str, old: str, new: str) -> str:
    root = parse(text)
    snapshot = without_memory(read_snapshot(old, text))
    for tag, words in (("name", new), ("state", snapshot.state.value)):
        element = root.find(tag)
        assert element is not None, "libvirt writes both"
        element.text = words
    memory = root.find("memory")
    if memory is not None:
        memory.attrib.clear()
        memory.set("snapshot", snapshot.memory.value)
    for cookie in root.findall("cookie"):
        root.remove(cookie)  # what QEMU needs to know to load that memory
    return with_annotations(ET.tostring(root, encoding="unicode"), snapshot.annotations)
