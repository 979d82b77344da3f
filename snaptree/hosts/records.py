"""Letting libvirt know what merges of our own did: it records nothing of them itself (LIBVIRT.md, 2 and 9)."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import libvirt

from snaptree.hosts.connection import Connection
from snaptree.hosts.domain_xml import listed_paths, parse_as_written, set_layer, set_source, source_path
from snaptree.hosts.errors import explained
from snaptree.hosts.reading import current_name
from snaptree.hosts.snapshot_xml import stands_on
from snaptree.model.errors import ChangedMeanwhileError, SnapTreeError
from snaptree.plans.plan import RecordLayers

_Texts = Mapping[str, str]
"""Snapshots by name, each as libvirt wrote it, passwords included."""


def record_layers(connection: Connection, uuid: str, step: RecordLayers) -> None:
    """Carry out a step; what was recorded before is left alone, so that doing it again does nothing more.

    Raises ChangedMeanwhileError before it changes anything if others changed what it would write; SnapTreeError if
    libvirt refuses, or lists something else afterwards.
    """
    domain = connection.domain(uuid)
    step = _without_the_unknown(connection, step)
    found = _Found.read(domain)
    wanted = _Wanted.of(found, step)
    _check(found, wanted, step)
    _redefine(domain, wanted)
    if wanted.definition is not None:
        with explained("recording where the machine's layers are"):
            connection.handle.defineXML(wanted.definition)
    for name in step.forgotten:
        if name in found.texts:
            with explained(f"letting libvirt forget {name}"):
                domain.snapshotLookupByName(name).delete(libvirt.VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY)
    # With a current snapshot, libvirt 9.9 and later also takes the parent's <revertDisks> away.
    _redefine(domain, _Wanted.of(_Found.read(domain), step))
    _verify(domain, wanted, step)


def _redefine(domain: Any, wanted: _Wanted) -> None:
    for name in wanted.in_order:
        if name in wanted.snapshots:
            # Never with CURRENT, which drops <revertDisks>: what is current stays it (LIBVIRT.md, 9).
            with explained(f"recording where the layers of {name} are"):
                domain.snapshotCreateXML(wanted.snapshots[name], libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE)


def is_recorded(connection: Connection, uuid: str, step: RecordLayers) -> bool:
    """Whether libvirt knows all that a step would tell it. Raises SnapTreeError if that can't be read."""
    step = _without_the_unknown(connection, step)
    found = _Found.read(connection.domain(uuid))
    wanted = _Wanted.of(found, step)
    return not wanted.snapshots and wanted.definition is None and found.texts.keys().isdisjoint(step.forgotten)


def _without_the_unknown(connection: Connection, step: RecordLayers) -> RecordLayers:
    """libvirt before 9.9, which can't revert to external snapshots, has no `<revertDisks>`."""
    return step if connection.host.external_snapshots else replace(step, revert_overlays={})


@dataclass(frozen=True, slots=True)
class _Found:
    """What libvirt has on record now."""

    texts: _Texts
    parents: Mapping[str, str | None]
    current: str | None
    definition: str | None
    """None for a machine that is gone once it stops."""

    @classmethod
    def read(cls, domain: Any) -> _Found:
        with explained("reading what libvirt has on record"):
            texts = {
                snapshot.getName(): snapshot.getXMLDesc(libvirt.VIR_DOMAIN_SNAPSHOT_XML_SECURE)
                for snapshot in domain.listAllSnapshots(libvirt.VIR_DOMAIN_SNAPSHOT_LIST_TOPOLOGICAL)
            }
            definition = None
            if domain.isPersistent():
                definition = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE)
            current = current_name(domain)
        parents = {name: parse_as_written(text).findtext("parent/name") for name, text in texts.items()}
        return cls(texts, parents, current, definition)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What libvirt shall have on record: of snapshots and machine only what is to change."""

    snapshots: _Texts
    definition: str | None
    in_order: tuple[str, ...]
    """The snapshots that stay, those first that others descend from."""
    parents: Mapping[str, str | None]
    current: str | None

    @classmethod
    def of(cls, found: _Found, step: RecordLayers) -> _Wanted:
        texts = {
            name: wanted
            for name, text in found.texts.items()
            if name not in step.forgotten and (wanted := _rewritten_snapshot(name, text, step)) is not None
        }
        parents = {
            name: step.parents.get(name, parent) for name, parent in found.parents.items() if name not in step.forgotten
        }
        current = found.current
        while current is not None and current in step.forgotten:
            current = found.parents.get(current)
        definition = None if found.definition is None else _rewritten_domain(found.definition, step)
        return cls(texts, definition, _parents_first(parents), parents, current)


def _parents_first(parents: Mapping[str, str | None]) -> tuple[str, ...]:
    order: dict[str, None] = {}
    for name in parents:
        line: list[str] = []
        above: str | None = name
        while above is not None and above in parents and above not in order and above not in line:
            line.append(above)
            above = parents[above]
        order |= dict.fromkeys(reversed(line))
    return tuple(order)


def _check(found: _Found, wanted: _Wanted, step: RecordLayers) -> None:
    for name in (*step.parents, *step.overlays, *step.revert_overlays):
        if name not in found.texts:
            raise ChangedMeanwhileError(f"the snapshot {name} is gone")
    for name, parent in wanted.parents.items():
        if parent is not None and parent in step.forgotten:
            raise ChangedMeanwhileError(f"the snapshot {name} has been taken on {parent}")
        if parent is not None and parent not in wanted.parents:
            raise ChangedMeanwhileError(f"the snapshot {parent}, on which {name} stands, is gone")
    followed = {*wanted.parents.values(), wanted.current}
    for name in wanted.in_order:
        text = wanted.snapshots.get(name, found.texts[name])
        # libvirt goes on naming the overlay of a snapshot that it left, and makes a new one when it comes back.
        if named := _named(text if name in followed else stands_on(text)) & set(step.removed):
            raise ChangedMeanwhileError(f"the snapshot {name} refers to {min(named)}")
    definition = wanted.definition or found.definition
    if definition is not None and (named := _named(definition) & set(step.removed)):
        raise ChangedMeanwhileError(f"the machine refers to {min(named)}")


def _verify(domain: Any, wanted: _Wanted, step: RecordLayers) -> None:
    now = _Found.read(domain)
    differing = _Wanted.of(now, step)
    problem = ""
    if now.parents != wanted.parents:
        problem = "it lists other snapshots, or others' children"
    elif now.current != wanted.current:
        problem = f"its current snapshot is {now.current or 'none'}, not {wanted.current or 'none'}"
    elif differing.snapshots or differing.definition is not None:
        changed = ", ".join(differing.snapshots) or "the machine"
        problem = f"it did not take in where the layers of {changed} are"
    if problem:
        raise SnapTreeError(
            f"libvirt was told of the merged layers, but {problem}.",
            hint="No file was removed. Look at the tree before you go on.",
        )


def _named(text: str) -> set[str]:
    return set(listed_paths(parse_as_written(text)))


def _rewritten_snapshot(name: str, text: str, step: RecordLayers) -> str | None:
    """A snapshot's text as it shall be; None if it is so already."""
    root = parse_as_written(text)
    changed = [_move_disks(domain, step) for tag in ("domain", "inactiveDomain") for domain in root.findall(tag)]
    for disk in root.findall("disks/disk"):
        overlay = step.overlays.get(name, {}).get(disk.get("name", ""))
        if overlay is not None and source_path(disk) != overlay:
            set_source(disk, overlay)
            changed.append(True)
    if name in step.revert_overlays:
        changed.append(_set_revert_overlays(root, step.revert_overlays[name]))
    if name in step.parents:
        changed.append(_set_parent(root, step.parents[name]))
    return ET.tostring(root, encoding="unicode") if any(changed) else None


def _rewritten_domain(text: str, step: RecordLayers) -> str | None:
    """A machine's definition as it shall be; None if it is so already."""
    root = parse_as_written(text)
    return ET.tostring(root, encoding="unicode") if _move_disks(root, step) else None


def _move_disks(domain: ET.Element, step: RecordLayers) -> bool:
    """Let the disks of a `<domain>` name where their content is now. Returns whether anything was to change."""
    changed = False
    stale = {*step.moved, *step.removed}
    for disk in domain.findall("devices/disk"):
        path = source_path(disk)
        recorded = disk.find("backingStore")
        # A chain that goes through what is no more: libvirt would open it instead of what the images say.
        if recorded is not None and not stale.isdisjoint(listed_paths(disk)):
            disk.remove(recorded)
            changed = True
        if path is not None and path in step.moved:
            layer = step.moved[path]
            set_layer(disk, layer.path, layer.format)
            changed = True
    return changed


def _set_revert_overlays(root: ET.Element, overlays: Mapping[str, str]) -> bool:
    element = root.find("revertDisks")
    disks = [] if element is None else element.findall("disk")
    if {disk.get("name", ""): source_path(disk) for disk in disks} == dict(overlays):
        return False
    kept = {disk.get("name", ""): disk for disk in disks}
    if element is not None:
        root.remove(element)
    if not overlays:
        return True
    element = ET.Element("revertDisks")
    for target, path in overlays.items():
        disk = kept.get(target)
        if disk is None:
            disk = ET.Element("disk", {"name": target, "snapshot": "external"})
            ET.SubElement(disk, "driver", {"type": "qcow2"})
        set_source(disk, path)
        element.append(disk)
    before = root.find("disks")
    root.insert(len(root) if before is None else list(root).index(before) + 1, element)
    return True


def _set_parent(root: ET.Element, parent: str | None) -> bool:
    """Let a `<domainsnapshot>` descend from another one, or from none. Returns whether anything was to change."""
    if root.findtext("parent/name") == parent:
        return False
    element = root.find("parent")
    if element is not None:
        root.remove(element)
    if parent is not None:
        element = ET.Element("parent")
        ET.SubElement(element, "name").text = parent
        root.insert(1, element)
    return True
