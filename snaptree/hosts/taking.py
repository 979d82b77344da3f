"""A snapshot that was taken in part: the disks write to its new layers, and whoever was to record it died before.

Then all that it holds is there. libvirt is told of it as it would have noted it itself.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping
from typing import Any

import libvirt

from snaptree.hosts.connection import Connection
from snaptree.hosts.domain_xml import parse, parse_as_written, read_definition, set_layer, source_path
from snaptree.hosts.errors import explained
from snaptree.hosts.layers import Images
from snaptree.hosts.reading import current_name
from snaptree.hosts.snapshot_xml import take_xml
from snaptree.images.files import open_local, read_chain
from snaptree.images.read_at import BadImageError
from snaptree.images.saved_memory import read_memory_header
from snaptree.model.errors import SnapTreeError
from snaptree.model.estate import Consistency, DomainState
from snaptree.plans.plan import Layer, TakeSnapshot

_INACTIVE = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE


def record_take(connection: Connection, domain: Any, step: TakeSnapshot, *, created: float) -> None:
    """Let libvirt know of a snapshot whose layers are in use, and make it the current one. `created`: seconds, UTC.

    Raises SnapTreeError if it can't be known in full (see `record_of`), or libvirt does not list it so afterwards.
    """
    text = record_of(connection, domain, step, created=created)
    # CURRENT is for a new one only: on one that there is already it drops <revertDisks> (LIBVIRT.md, 9).
    flags = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_CURRENT
    with explained(f"recording the snapshot {step.name}"):
        domain.snapshotCreateXML(text, flags)
    if current_name(domain) != step.name:
        raise SnapTreeError(
            f"{step.name} was recorded, but libvirt does not take it for the current snapshot.",
            hint="Do not revert to or delete snapshots of this machine before you know why.",
        )


def record_of(connection: Connection, domain: Any, step: TakeSnapshot, *, created: float = 0.0) -> str:
    """The full XML of a snapshot whose layers are in use, with the machine as it was when it was taken.

    Raises SnapTreeError, with all in its summary, if a layer or the saved memory is not what it has to be.
    """
    frozen = {target: _below(connection, target, path) for target, path in step.overlays.items()}
    root = parse(take_xml(step))
    ET.SubElement(root, "state").text = _state(domain, step)
    ET.SubElement(root, "creationTime").text = str(int(created))
    if step.expected_current is not None:
        ET.SubElement(ET.SubElement(root, "parent"), "name").text = step.expected_current
    if step.memory_file is not None:
        root.append(_as_saved(connection, step.memory_file, frozen))
    else:
        root.append(_before(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE), step, frozen))
    inactive = _before(domain.XMLDesc(_INACTIVE), step, frozen)
    if step.consistency is not Consistency.OFFLINE:
        inactive.tag = "inactiveDomain"
        root.append(inactive)
    return ET.tostring(root, encoding="unicode")


def _below(connection: Connection, target: str, overlay: str) -> Layer:
    """The layer that was in use until an overlay took over: that was new then, and stands on nothing else."""
    images = read_chain(overlay, "qcow2", Images(connection).read_image).images
    if len(images) < 2 or images[1].problem or images[1].is_missing:
        raise SnapTreeError(f"the layer below {overlay} (disk {target}) can't be read")
    return Layer(images[1].path, images[1].format)


def _state(domain: Any, step: TakeSnapshot) -> str:
    if step.consistency is Consistency.OFFLINE:
        return DomainState.OFF.value
    if step.memory_file is None:
        return DomainState.DISK_ONLY.value
    try:
        with open_local(step.memory_file) as file:
            was_running = read_memory_header(file).was_running
    except (OSError, BadImageError):  # not ours to read: whether it came so far as to resume
        was_running = domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING
    return (DomainState.RUNNING if was_running else DomainState.PAUSED).value


def _as_saved(connection: Connection, memory_file: str, frozen: Mapping[str, Layer]) -> ET.Element:
    """The machine as it was saved with its memory. libvirt reads it from no file that was not written to its end."""
    try:
        text = connection.handle.saveImageGetXMLDesc(memory_file, libvirt.VIR_DOMAIN_SAVE_IMAGE_XML_SECURE)
    except libvirt.libvirtError as error:
        message = str(error.get_error_message()).rstrip(".")
        raise SnapTreeError(f"the saved memory {memory_file} can't be used ({message})") from error
    saved = parse_as_written(text)
    disks = {disk.target: disk.path for disk in read_definition(saved).disks}
    for target, layer in frozen.items():
        if disks.get(target) != layer.path:
            raise SnapTreeError(f"{memory_file} was saved when disk {target} was {disks.get(target)}, not {layer.path}")
    return saved


def _before(text: str, step: TakeSnapshot, frozen: Mapping[str, Layer]) -> ET.Element:
    """The machine as libvirt describes it now, but on the layers that it stood on before."""
    domain = parse_as_written(text)
    for disk in domain.findall("devices/disk"):
        element = disk.find("target")
        target = "" if element is None else element.get("dev", "")
        if target not in frozen:
            continue
        if source_path(disk) != step.overlays[target]:
            raise SnapTreeError(f"the next start would write to {source_path(disk)}, not {step.overlays[target]}")
        layer, chain = frozen[target], disk.find("backingStore")
        set_layer(disk, layer.path, layer.format)
        if chain is not None:
            below = chain.find("backingStore")
            disk.remove(chain)
            if below is not None:
                disk.append(below)
    return domain
