"""Saying something else about a snapshot: its note, its marks, its name. Its content stays where it is.

libvirt edits a snapshot by REDEFINE of its whole text, passwords included, and never with CURRENT for one that exists:
that drops `<revertDisks>` (LIBVIRT.md, 5 and 9).
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable
from typing import Any

import libvirt

from snaptree.hosts.connection import Connection
from snaptree.hosts.domain_xml import parse
from snaptree.hosts.errors import explained
from snaptree.hosts.reading import current_name
from snaptree.hosts.records import is_recorded, record_layers
from snaptree.hosts.snapshot_xml import read_snapshot, with_annotations, with_remarks
from snaptree.model.errors import ChangedMeanwhileError, SnapTreeError
from snaptree.model.estate import Snapshot
from snaptree.plans.facts import is_same_snapshot
from snaptree.plans.operation import StepFound, StepState
from snaptree.plans.plan import DescribeSnapshot, RenameSnapshot
from snaptree.plans.wording import quoted


def describe(domain: Any, step: DescribeSnapshot) -> None:
    """Carry out a step. What is said already is left alone, and so is what it does not change.

    Raises ChangedMeanwhileError, before it changes anything, if somebody said something else since it was planned;
    VanishedError if the snapshot is gone; SnapTreeError if libvirt refuses, or lists something else afterwards.
    """
    found = find_described(domain, step)
    if found.state is StepState.CHANGED:
        raise ChangedMeanwhileError(found.says)
    if found.state is StepState.DONE:
        return
    text = _text(domain, step.name)
    wanted = step.applied_to(read_snapshot(step.name, text).remarks)
    with explained(f"changing what is said about {step.name}"):
        domain.snapshotCreateXML(with_remarks(text, wanted), libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE)
    if _read(domain, step.name).remarks != wanted:
        raise SnapTreeError(
            f"libvirt took what was said about {step.name}, but lists something else.",
            hint="Refresh, and look at what is said about it.",
        )


def find_described(domain: Any, step: DescribeSnapshot) -> StepFound:
    """How far the step is. It is done at once, or not at all. Raises VanishedError if the snapshot is gone."""
    said = _read(domain, step.name).remarks
    if step.disputed(said):
        return StepFound(StepState.CHANGED, f"the note or a mark of {quoted(step.name)} is another by now")
    return StepFound(StepState.DONE if step.applied_to(said) == said else StepState.NOT_BEGUN)


def check_unmarked(domain: Any, names: Iterable[str]) -> None:
    """Raise ChangedMeanwhileError if somebody has marked one of these snapshots. Those that are gone have no mark."""
    with explained("looking for marks"):
        listed = {snapshot.getName(): snapshot for snapshot in domain.listAllSnapshots()}
        texts = {name: listed[name].getXMLDesc() for name in names if name in listed}
    for name, text in texts.items():
        marks = read_snapshot(name, text).annotations
        if marks.pinned is not None or marks.known_good is not None:
            raise ChangedMeanwhileError(f"somebody has marked {quoted(name)} to be kept")


def rename(connection: Connection, domain: Any, step: RenameSnapshot) -> None:
    """Carry out a step, or what is missing of one that was cut short.

    Raises ChangedMeanwhileError, before it changes anything, if others changed the tree around it; SnapTreeError if
    libvirt refuses, or lists something else afterwards.
    """
    found = find_renamed(connection, domain, step)
    if found.state is StepState.CHANGED:
        raise ChangedMeanwhileError(found.says)
    if found.state is StepState.DONE:
        return
    take_over(connection, domain, step, lambda text: _renamed(text, step))


def take_over(connection: Connection, domain: Any, step: RenameSnapshot, described: Callable[[str], str]) -> None:
    """Let the new name take the place of the old one in the tree; doing it again completes it.

    `described` makes the new text of the old one. Raises as `record_layers`.
    """
    names = _names(domain)
    if step.name in names:
        flags = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE
        if current_name(domain) == step.name:
            # Now, while both are there: when libvirt forgets the current one, it takes its parent to be current.
            # From then on only the new one tells which layers are in use since the last revert: the old loses them.
            flags |= libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_CURRENT
        if step.new_name not in names or flags & libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_CURRENT:
            text = described(_text(domain, step.name))
            with explained(f"letting libvirt know {step.name} as {step.new_name}"):
                domain.snapshotCreateXML(text, flags)
    record_layers(connection, domain.UUIDString(), step.records)


def find_renamed(connection: Connection, domain: Any, step: RenameSnapshot) -> StepFound:
    """How far the step is. Raises SnapTreeError if that can't be read."""
    names = _names(domain)
    if step.name not in names and step.new_name not in names:
        return StepFound(StepState.CHANGED, f"{quoted(step.name)} is gone")
    if step.name not in names:
        is_done = is_recorded(connection, domain.UUIDString(), step.records)
        return StepFound(StepState.DONE) if is_done else _half_way(step)
    if step.new_name in names:
        if is_same_snapshot(_read(domain, step.name), _read(domain, step.new_name)):
            return _half_way(step)
        return StepFound(StepState.CHANGED, f"another snapshot is named {quoted(step.new_name)} by now")
    snapshot = _read(domain, step.name)
    with explained(f"looking for what stands on {step.name}"):
        children = {child.getName() for child in domain.snapshotLookupByName(step.name).listAllChildren()}
    if children != set(step.children) or snapshot.parent != step.parent:
        return StepFound(StepState.CHANGED, f"{quoted(step.name)} has another parent or other children by now")
    if dict(snapshot.revert_overlays) != dict(step.revert_overlays.get(step.new_name, {})):
        return StepFound(StepState.CHANGED, f"{quoted(step.name)} was reverted to meanwhile")
    return StepFound(StepState.NOT_BEGUN)


def _half_way(step: RenameSnapshot) -> StepFound:
    return StepFound(StepState.HALF_WAY, f"libvirt knows {quoted(step.new_name)}, and not yet all that belongs to it")


def _names(domain: Any) -> set[str]:
    with explained("looking for snapshots"):
        return {snapshot.getName() for snapshot in domain.listAllSnapshots()}


def _text(domain: Any, name: str) -> str:
    with explained(f"reading the snapshot {name}"):
        text: str = domain.snapshotLookupByName(name).getXMLDesc(libvirt.VIR_DOMAIN_SNAPSHOT_XML_SECURE)
    return text


def _read(domain: Any, name: str) -> Snapshot:
    return read_snapshot(name, _text(domain, name))


def _renamed(text: str, step: RenameSnapshot) -> str:
    """The snapshot's text under its new name, which SnapTree's own element has to say too."""
    annotations = read_snapshot(step.name, text).annotations
    root = parse(text)
    name = root.find("name")
    assert name is not None, "libvirt lists every snapshot with its name"
    name.text = step.new_name
    return with_annotations(ET.tostring(root, encoding="unicode"), annotations)
