"""Snapshots as libvirt's XML, read and written. Only direct children count: `<domain>` has a `<name>` of its own."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import inf

from snaptree.hosts.domain_xml import image_format, memory_bytes, parse, read_definition, source_path
from snaptree.model.errors import SnapTreeError
from snaptree.model.estate import (
    Annotations,
    Consistency,
    DiskSnapshot,
    DomainState,
    Impact,
    Mark,
    MemorySnapshot,
    Remarks,
    Snapshot,
    SnapshotDisk,
)
from snaptree.plans.plan import TakeSnapshot
from snaptree.plans.situation import Disk

ANNOTATIONS_NAMESPACE = "urn:snaptree:snapshot:1"
"""The namespace of SnapTree's own element in the `<metadata>` of a snapshot's `<domain>`."""

_NS = f"{{{ANNOTATIONS_NAMESPACE}}}"
_ANNOTATIONS = f"metadata/{_NS}snapshot"
ET.register_namespace("snaptree", ANNOTATIONS_NAMESPACE)


def read_snapshot(name: str, xml: str) -> Snapshot:
    """Read one snapshot. Never raises: XML that can't be read gives a snapshot whose `problem` says so."""
    try:
        root, recorded = _read_what_matters(xml)
    except SnapTreeError as error:
        return Snapshot(
            name=name, parent=None, created=0, state=DomainState.UNKNOWN, problem=f"{error.summary} {error.details}"
        )
    memory = root.find("memory")
    return Snapshot(
        name=name,
        parent=root.findtext("parent/name"),
        created=_integer(root.findtext("creationTime")),
        state=_state(root.findtext("state")),
        description=root.findtext("description") or "",
        memory=MemorySnapshot.NO if memory is None else _memory(memory.get("snapshot")),
        memory_file=None if memory is None else memory.get("file"),
        nominal_memory=None if recorded is None else recorded.memory or None,
        disks=_disks(root, _NOTHING if recorded is None else recorded),
        revert_overlays=tuple(
            (disk.get("name", ""), path)
            for disk in root.findall("revertDisks/disk")
            if (path := source_path(disk)) is not None
        ),
        annotations=_NO_ANNOTATIONS if recorded is None else _annotations(recorded.annotations, name),
        delete_in_progress=root.find(".//snapshotDeleteInProgress") is not None,
        problem="" if recorded is not None else "it does not say what its machine looked like (no <domain>)",
    )


@dataclass(frozen=True, slots=True)
class _RecordedDomain:
    """What is read of a snapshot's `<domain>`. `memory` in bytes."""

    memory: int
    frozen: dict[str, tuple[str | None, str]]
    """By target of each disk: the layer that was frozen, and its format."""
    by_source: dict[str, str]
    """The targets by these layers."""
    annotations: dict[str, str] | None
    """The attributes of SnapTree's own element."""


_NO_ANNOTATIONS = Annotations()
_NOTHING = _RecordedDomain(0, {}, {}, None)
_DOMAIN = "\n  <domain "
_END_OF_METADATA = "\n    </metadata>"
_MEMORY = "\n    <memory "
_DEVICES = "\n    <devices>"
_END_OF_DISK = "\n      </disk>"
_END_OF_DOMAIN = "\n  </domain>"


def _read_what_matters(xml: str) -> tuple[ET.Element, _RecordedDomain | None]:
    """The `<domainsnapshot>`, perhaps without its `<domain>`, and what is read of that.

    Of a `<domain>` most is not read, and the snapshots of a machine tend to record the same one. So what lies between
    its memory and its devices, and after its last disk, is cut out, and equal texts are read once. libvirt's own
    indentation tells where that is. A text that is laid out otherwise is parsed whole.
    """
    domain = xml.find(_DOMAIN)
    end = xml.find(_END_OF_DOMAIN, domain)
    memory = xml.find(_MEMORY, max(domain, xml.rfind(_END_OF_METADATA, domain, end)), end)
    rest = xml.find("\n", memory + 1)
    devices = xml.find(_DEVICES, rest)
    disk = xml.rfind(_END_OF_DISK, devices, end)
    if 0 <= domain < memory < rest < devices < disk:
        try:
            recorded = _read_recorded(f"{xml[domain:rest]}{xml[devices:disk]}{_END_OF_DISK}</devices></domain>")
            return parse(f"{xml[:domain]}</domainsnapshot>"), recorded
        except SnapTreeError:
            pass
    root = parse(xml)
    element = root.find("domain")
    # Where none was recorded, libvirt shows one with nothing but the machine's UUID.
    return root, None if element is None or element.find("name") is None else _recorded(element)


@lru_cache(maxsize=256)
def _read_recorded(domain: str) -> _RecordedDomain:
    return _recorded(parse(domain))


def _recorded(domain: ET.Element) -> _RecordedDomain:
    frozen: dict[str, tuple[str | None, str]] = {}
    by_source: dict[str, str] = {}
    for disk in domain.findall("devices/disk"):
        target = disk.find("target")
        if target is not None and (name := target.get("dev")):
            path = source_path(disk)
            frozen[name] = path, image_format(disk)
            if path:
                by_source[path] = name
    element = domain.find(_ANNOTATIONS)
    return _RecordedDomain(memory_bytes(domain), frozen, by_source, None if element is None else dict(element.attrib))


def recorded_disks(xml: str) -> tuple[Disk, ...]:
    """The disks of the machine as a snapshot recorded it, drives without a medium included. Empty if it did not."""
    try:
        domain = parse(xml).find("domain")
    except SnapTreeError:
        return ()
    return () if domain is None else read_definition(domain).disks


def stands_on(xml: str) -> str:
    """A snapshot's text without the overlays that took over from it: it does not need these, only who uses them."""
    root = parse(xml)
    for disks in root.findall("disks"):
        root.remove(disks)
    return ET.tostring(root, encoding="unicode")


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


def _disks(root: ET.Element, recorded: _RecordedDomain) -> tuple[SnapshotDisk, ...]:
    """Join `<disks>` (how, overlay) with the disks of `<domain>` (the layer that was frozen)."""
    disks = []
    for disk in root.findall("disks/disk"):
        # A name may also be the path of the disk's source (formatsnapshot: "name").
        name = disk.get("name", "")
        name = recorded.by_source.get(name, name)
        how = _disk_snapshot(disk.get("snapshot"))
        overlay = source_path(disk) if how is DiskSnapshot.EXTERNAL else None
        layer, layer_format = recorded.frozen.get(name, (None, ""))
        disks.append(SnapshotDisk(target=name, how=how, frozen=layer, frozen_format=layer_format, overlay=overlay))
    return tuple(disks)


def read_annotations(domain: ET.Element, name: str) -> Annotations:
    """What SnapTree wrote about the snapshot `name` into its `<domain>`; empty for foreign ones.

    A revert carries the element into the machine's own definition, and from there into whatever snapshot
    another program takes next. So the element names the snapshot it speaks of, and only that one believes it.
    """
    element = domain.find(_ANNOTATIONS)
    return _annotations(None if element is None else element.attrib, name)


def _annotations(attributes: Mapping[str, str] | None, name: str) -> Annotations:
    if attributes is None or attributes.get("of") != name:
        return _NO_ANNOTATIONS
    consistency = attributes.get("consistency")
    return Annotations(
        pinned=_mark(attributes, "pinned"),
        known_good=_mark(attributes, "known-good"),
        consistency=Consistency(consistency) if consistency in set(Consistency) else None,
        taken_by=attributes.get("taken-by", ""),
        safety=attributes.get("safety") == "yes",
        impact=_impact(attributes),
        group=attributes.get("group", ""),
        schedule=attributes.get("schedule", ""),
        half_deleted=attributes.get("half-deleted") == "yes",
        doubtful=attributes.get("doubtful") == "yes",
    )


def _mark(attributes: Mapping[str, str], key: str) -> Mark | None:
    if attributes.get(key) != "yes":
        return None
    return Mark(attributes.get(f"{key}-by", ""), max(0, _integer(attributes.get(f"{key}-at"))))


def _impact(attributes: Mapping[str, str]) -> Impact | None:
    seconds = _seconds(attributes.get("took"))
    if seconds is None:
        return None
    wrote = attributes.get("wrote")
    return Impact(
        seconds,
        paused=_seconds(attributes.get("paused")),
        frozen=_seconds(attributes.get("frozen")),
        wrote=None if wrote is None else max(0, _integer(wrote)),
    )


def _seconds(text: str | None) -> float | None:
    """A time that somebody may have written by hand."""
    try:
        seconds = float(text or "")
    except ValueError:
        return None
    return seconds if 0 <= seconds < inf else None


def _annotations_element(annotations: Annotations, name: str) -> ET.Element:
    attributes = {
        "of": name,
        **_mark_attributes("pinned", annotations.pinned),
        **_mark_attributes("known-good", annotations.known_good),
        "consistency": annotations.consistency.value if annotations.consistency else "",
        "taken-by": annotations.taken_by,
        "safety": "yes" if annotations.safety else "",
        **_impact_attributes(annotations.impact),
        "group": annotations.group,
        "schedule": annotations.schedule,
        "half-deleted": "yes" if annotations.half_deleted else "",
        "doubtful": "yes" if annotations.doubtful else "",
    }
    return ET.Element(f"{_NS}snapshot", {key: value for key, value in attributes.items() if value})


def _mark_attributes(key: str, mark: Mark | None) -> dict[str, str]:
    if mark is None:
        return {}
    return {key: "yes", f"{key}-by": mark.by, f"{key}-at": str(mark.at) if mark.at else ""}


def _impact_attributes(impact: Impact | None) -> dict[str, str]:
    if impact is None:
        return {}
    seconds = {"took": impact.seconds, "paused": impact.paused, "frozen": impact.frozen}
    attributes = {key: f"{value:.3f}" for key, value in seconds.items() if value is not None}
    return attributes if impact.wrote is None else attributes | {"wrote": str(impact.wrote)}


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


def with_remarks(snapshot_xml: str, remarks: Remarks) -> str:
    """Put a note and marks into a snapshot's full (XML_SECURE) text. All else that SnapTree wrote of it stays."""
    root = parse(snapshot_xml)
    snapshot = read_snapshot(root.findtext("name") or "", snapshot_xml)
    for old in root.findall("description"):
        root.remove(old)
    if remarks.note:
        note = ET.Element("description")
        note.text = remarks.note
        root.insert(1, note)
    text = ET.tostring(root, encoding="unicode")
    annotations = snapshot.with_remarks(remarks).annotations
    return text if annotations == snapshot.annotations else with_annotations(text, annotations)


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
