"""Snapshots as libvirt's XML, read and written. Only direct children count: `<domain>` has a `<name>` of its own."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from snaptree.hosts.domain_xml import image_format, memory_bytes, parse, read_definition, source_path
from snaptree.model.errors import SnapTreeError
from snaptree.model.estate import (
    Annotations,
    Consistency,
    DiskSnapshot,
    DomainState,
    MemorySnapshot,
    Snapshot,
    SnapshotDisk,
)
from snaptree.plans.plan import TakeSnapshot
from snaptree.plans.situation import Disk

ANNOTATIONS_NAMESPACE = "urn:snaptree:snapshot:1"
"""The namespace of SnapTree's own element in the `<metadata>` of a snapshot's `<domain>`."""

_NS = f"{{{ANNOTATIONS_NAMESPACE}}}"
ET.register_namespace("snaptree", ANNOTATIONS_NAMESPACE)


def read_snapshot(name: str, xml: str) -> Snapshot:
    """Read one snapshot. Never raises: XML that can't be read gives a snapshot whose `problem` says so."""
    try:
        root = _parse_what_matters(xml)
    except SnapTreeError as error:
        return Snapshot(
            name=name, parent=None, created=0, state=DomainState.UNKNOWN, problem=f"{error.summary} {error.details}"
        )
    domain = root.find("domain")
    memory = root.find("memory")
    return Snapshot(
        name=name,
        parent=root.findtext("parent/name"),
        created=_integer(root.findtext("creationTime")),
        state=_state(root.findtext("state")),
        description=root.findtext("description") or "",
        memory=MemorySnapshot.NO if memory is None else _memory(memory.get("snapshot")),
        memory_file=None if memory is None else memory.get("file"),
        nominal_memory=None if domain is None else memory_bytes(domain) or None,
        disks=_disks(root, domain),
        revert_overlays=tuple(
            (disk.get("name", ""), path)
            for disk in root.findall("revertDisks/disk")
            if (path := source_path(disk)) is not None
        ),
        annotations=Annotations() if domain is None else read_annotations(domain, name),
        delete_in_progress=root.find(".//snapshotDeleteInProgress") is not None,
        problem="" if domain is not None else "it does not say what its machine looked like (no <domain>)",
    )


_DEVICES = "\n    <devices>"
_END_OF_DISK = "\n      </disk>"
_END_OF_DOMAIN = "\n  </domain>"


def _parse_what_matters(xml: str) -> ET.Element:
    """Parse without what comes after the last disk of `<domain>`: more than half of the text, none of which is read.

    libvirt's own indentation tells where that is. A text that is laid out otherwise is parsed whole.
    """
    devices = xml.find(_DEVICES)
    disk = xml.rfind(_END_OF_DISK, devices, xml.find(_END_OF_DOMAIN, devices))
    if devices < 0 or disk < 0:
        return parse(xml)
    try:
        return parse(f"{xml[:disk]}{_END_OF_DISK}</devices></domain></domainsnapshot>")
    except SnapTreeError:
        return parse(xml)


def recorded_disks(xml: str) -> tuple[Disk, ...]:
    """The disks of the machine as a snapshot recorded it, drives without a medium included. Empty if it did not."""
    try:
        domain = parse(xml).find("domain")
    except SnapTreeError:
        return ()
    return () if domain is None else read_definition(domain).disks


def _integer(text: str | None) -> int:
    text = (text or "").strip()
    return int(text) if text.lstrip("-").isdigit() else 0


def _state(text: str | None) -> DomainState:
    try:
        return DomainState(text or "unknown")
    except ValueError:
        return DomainState.UNKNOWN


def _memory(text: str | None) -> MemorySnapshot:
    try:
        return MemorySnapshot(text or "no")
    except ValueError:
        return MemorySnapshot.NO


def _disk_snapshot(text: str | None) -> DiskSnapshot:
    try:
        return DiskSnapshot(text or "no")
    except ValueError:
        return DiskSnapshot.NO


def _disks(root: ET.Element, domain: ET.Element | None) -> tuple[SnapshotDisk, ...]:
    """Join `<disks>` (how, overlay) with the disks of `<domain>` (the layer that was frozen)."""
    frozen: dict[str, tuple[str | None, str]] = {}
    by_source: dict[str, str] = {}
    for disk in () if domain is None else domain.findall("devices/disk"):
        target = disk.find("target")
        if target is not None and (name := target.get("dev")):
            frozen[name] = source_path(disk), image_format(disk)
            if path := source_path(disk):
                by_source[path] = name
    disks = []
    for disk in root.findall("disks/disk"):
        # A name may also be the path of the disk's source (formatsnapshot: "name").
        name = disk.get("name", "")
        name = by_source.get(name, name)
        how = _disk_snapshot(disk.get("snapshot"))
        overlay = source_path(disk) if how is DiskSnapshot.EXTERNAL else None
        layer, layer_format = frozen.get(name, (None, ""))
        disks.append(SnapshotDisk(target=name, how=how, frozen=layer, frozen_format=layer_format, overlay=overlay))
    return tuple(disks)


def read_annotations(domain: ET.Element, name: str) -> Annotations:
    """What SnapTree wrote about the snapshot `name` into its `<domain>`; empty for foreign ones.

    A revert carries the element into the machine's own definition, and from there into whatever snapshot
    another program takes next. So the element names the snapshot it speaks of, and only that one believes it.
    """
    element = domain.find(f"metadata/{_NS}snapshot")
    if element is None or element.get("of") != name:
        return Annotations()
    consistency = element.get("consistency")
    return Annotations(
        pinned=element.get("pinned") == "yes",
        known_good=element.get("known-good") == "yes",
        consistency=Consistency(consistency) if consistency in set(Consistency) else None,
        taken_by=element.get("taken-by", ""),
        safety=element.get("safety") == "yes",
    )


def _annotations_element(annotations: Annotations, name: str) -> ET.Element:
    element = ET.Element(f"{_NS}snapshot", {"of": name})
    for key, value in (
        ("pinned", "yes" if annotations.pinned else ""),
        ("known-good", "yes" if annotations.known_good else ""),
        ("consistency", annotations.consistency.value if annotations.consistency else ""),
        ("taken-by", annotations.taken_by),
        ("safety", "yes" if annotations.safety else ""),
    ):
        if value:
            element.set(key, value)
    return element


def with_annotations(snapshot_xml: str, annotations: Annotations) -> str:
    """Put SnapTree's element into `<domain>` and `<inactiveDomain>` of a snapshot's full (XML_SECURE) text.

    Both, because a revert of a running machine takes `<inactiveDomain>` as its persistent definition. The
    rest of the text is kept as libvirt wrote it. An element that an earlier revert carried along goes.
    """
    root = parse(snapshot_xml)
    name = root.findtext("name") or ""
    for tag in ("domain", "inactiveDomain"):
        domain = root.find(tag)
        if domain is None:
            continue
        metadata = domain.find("metadata")
        if metadata is None:
            metadata = ET.Element("metadata")
            # After the name and UUID, where libvirt itself writes it.
            domain.insert(2, metadata)
        for old in metadata.findall(f"{_NS}snapshot"):
            metadata.remove(old)
        metadata.append(_annotations_element(annotations, name))
    return ET.tostring(root, encoding="unicode")


def take_xml(step: TakeSnapshot) -> str:
    """The `<domainsnapshot>` that asks libvirt for what a step says. Every disk is named."""
    root = ET.Element("domainsnapshot")
    ET.SubElement(root, "name").text = step.name
    if step.description:
        ET.SubElement(root, "description").text = step.description
    memory = ET.SubElement(root, "memory", {"snapshot": step.memory.value})
    if step.memory_file is not None:
        memory.set("file", step.memory_file)
    disks = ET.SubElement(root, "disks")
    for target, how in step.disks.items():
        disk = ET.SubElement(disks, "disk", {"name": target, "snapshot": how.value})
        if target in step.overlays:
            disk.set("type", "file")
            ET.SubElement(disk, "driver", {"type": "qcow2"})
            ET.SubElement(disk, "source", {"file": step.overlays[target]})
    return ET.tostring(root, encoding="unicode")
