"""Helper machines: paused QEMUs that merge layers which no running machine has open (LIBVIRT.md, section 9).

A helper is transient, has one disk and no network, and its guest never runs a single instruction. It says in its own
XML whose it is and what for, so that one that a crash left behind is known as such, to us and to whoever finds it.
"""

from __future__ import annotations

import logging
import re
import socket
import threading
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import libvirt

from snaptree.hosts.connection import Connection, is_embedded
from snaptree.hosts.domain_xml import parse, set_source
from snaptree.hosts.embedded import place_on_cpus
from snaptree.hosts.errors import explained
from snaptree.hosts.journal import is_running, this_process

if TYPE_CHECKING:
    from snaptree.plans.plan import Layer, MergeLayers

TARGET: Final = "vda"
"""The helper's only disk."""

_NAME = re.compile(r"snaptree-merge-[0-9a-f]{12}")
_NAMESPACE = "urn:snaptree:helper:1"
_HELPER = f"{{{_NAMESPACE}}}helper"
ET.register_namespace("snaptree-helper", _NAMESPACE)

_MEMORY_MIB = 64  # never touched: nothing runs in it
_ENDING_SECONDS = 0.1

_at_work: Final[set[str]] = set()
"""UUIDs of the helpers that this process uses."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Helper:
    """A helper machine that exists now."""

    uuid: str
    name: str
    domain_uuid: str
    """The machine whose layers it merges."""
    target: str
    """That machine's disk."""
    is_left: bool | None
    """Whether the SnapTree that made it is gone, or done with it. None: made on another computer, nobody here knows."""


def may_be_helper(name: str) -> bool:
    """Whether a machine is named like a helper. One that is persistent is none, whatever its name."""
    return _NAME.fullmatch(name) is not None


def is_helper(domain: Any) -> bool:
    """Whether a machine is a helper rather than a user's. Raises libvirtError if it is gone."""
    return may_be_helper(domain.name()) and not domain.isPersistent()


@contextmanager
def helper_machine(connection: Connection, domain: Any, step: MergeLayers) -> Iterator[Any]:
    """A paused machine that has a step's stack as its disk `TARGET`; it is gone afterwards, its images flushed.

    Raises SnapTreeError if it can't be started.
    """
    with explained("starting the helper machine that merges"):
        flags = libvirt.VIR_DOMAIN_START_PAUSED
        if not is_embedded(connection.uri):  # "Domain autodestroy not supported for embedded drivers yet"
            flags |= libvirt.VIR_DOMAIN_START_AUTODESTROY
        helper = connection.handle.createXML(_helper_xml(connection, domain, step), flags)
    _at_work.add(helper.UUIDString())
    try:
        yield helper
    finally:
        _at_work.discard(helper.UUIDString())
        with explained("ending the helper machine that merged"):
            _end(helper)


def helpers(connection: Connection, domain_uuid: str | None = None) -> tuple[Helper, ...]:
    """The helpers on a host, or those of one machine: at work, or left behind by a SnapTree that crashed.

    Raises SnapTreeError if the host can't be read.
    """
    with explained("looking for helper machines"):
        found = [
            helper
            for handle in connection.handle.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_TRANSIENT)
            if may_be_helper(handle.name()) and (helper := _read(handle)) is not None
        ]
    return tuple(helper for helper in found if domain_uuid in (None, helper.domain_uuid))


def left_helpers(connection: Connection, domain_uuid: str | None = None) -> tuple[Helper, ...]:
    """Those of `helpers` with whom certainly no SnapTree works any more."""
    return tuple(helper for helper in helpers(connection, domain_uuid) if helper.is_left)


def end_helper(connection: Connection, helper: Helper) -> None:
    """Stop what a helper does, and the helper: its images show what they showed before. No harm if it is gone."""
    with explained(f"ending the helper machine {helper.name}"), _gone_is_fine():
        handle = connection.handle.lookupByUUIDString(helper.uuid)
        with suppress(libvirt.libvirtError):  # no job, or one that ends just now
            handle.blockJobAbort(TARGET)
        _end(handle)


def _end(handle: Any) -> None:
    """Let its QEMU write down all that it holds, and end. Killed, it would lose the tables of an image just merged.

    libvirt asks QEMU to end, and gives up waiting long before a slow disk has taken in what there is to write.
    """
    with _gone_is_fine():
        while True:
            try:
                handle.destroyFlags(libvirt.VIR_DOMAIN_DESTROY_GRACEFUL)
            except libvirt.libvirtError as error:
                if error.get_error_code() not in (libvirt.VIR_ERR_SYSTEM_ERROR, libvirt.VIR_ERR_OPERATION_TIMEOUT):
                    raise
                _log.debug("%s still ends: %s", handle.name(), error)
                threading.Event().wait(_ENDING_SECONDS)
            else:
                return


@contextmanager
def _gone_is_fine() -> Iterator[None]:
    try:
        yield
    except libvirt.libvirtError as error:
        if error.get_error_code() not in (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID):
            raise


def _read(handle: Any) -> Helper | None:
    """What a machine says of itself; None if it is no helper, or gone."""
    try:
        element = parse(handle.XMLDesc()).find(f"metadata/{_HELPER}")
        if element is None:
            return None
        return Helper(
            uuid=handle.UUIDString(),
            name=handle.name(),
            domain_uuid=element.get("of", ""),
            target=element.get("disk", ""),
            is_left=_is_left(handle.UUIDString(), element),
        )
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return None
        raise


def _is_left(helper: str, element: ET.Element) -> bool | None:
    if element.get("computer") != socket.gethostname():
        return None
    try:
        owner = int(element.get("process", "")), float(element.get("started", ""))
    except ValueError:
        return None
    return helper not in _at_work if owner == this_process() else not is_running(*owner)


def _helper_xml(connection: Connection, domain: Any, step: MergeLayers) -> str:
    """A machine like the one whose layers it merges, in what decides whether QEMU starts and may open them."""
    own = parse(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
    root = ET.Element("domain", {"type": own.get("type", "qemu")})
    ET.SubElement(root, "name").text = f"snaptree-merge-{uuid.uuid4().hex[:12]}"
    description = f"SnapTree merges layers of {domain.name()} in this paused helper, which ends by itself."
    ET.SubElement(root, "description").text = description
    process, started = this_process()
    ET.SubElement(
        ET.SubElement(root, "metadata"),
        _HELPER,
        {
            "of": domain.UUIDString(),
            "disk": step.target,
            "way": step.way.value,
            "into": step.merged,
            "computer": socket.gethostname(),
            "process": str(process),
            "started": str(started),
        },
    )
    ET.SubElement(root, "memory", {"unit": "MiB"}).text = str(_MEMORY_MIB)
    ET.SubElement(root, "vcpu").text = "1"
    own_type = own.find("os/type")
    kind = ET.SubElement(ET.SubElement(root, "os"), "type")
    kind.text = "hvm" if own_type is None else own_type.text
    for attribute in ("arch", "machine"):
        if own_type is not None and (value := own_type.get(attribute)):
            kind.set(attribute, value)
    cpu = own.find("cpu")
    if cpu is not None and cpu.get("mode") == "host-passthrough":  # on ARM, KVM knows no other
        ET.SubElement(root, "cpu", {"mode": "host-passthrough"})
    devices = ET.SubElement(root, "devices")
    if emulator := own.findtext("devices/emulator"):
        ET.SubElement(devices, "emulator").text = emulator
    devices.append(_disk(step.stack, _caching(own, step.target)))
    ET.SubElement(devices, "controller", {"type": "usb", "model": "none"})
    ET.SubElement(devices, "memballoon", {"model": "none"})
    root.extend(_security_label(label) for label in own.findall("seclabel"))
    if is_embedded(connection.uri):
        place_on_cpus(root)
    return ET.tostring(root, encoding="unicode")


def _caching(domain: ET.Element, target: str) -> dict[str, str]:
    """How the machine's own QEMU reads and writes that disk: whoever chose it had a reason, as with O_DIRECT."""
    for disk in domain.findall("devices/disk"):
        named, driver = disk.find("target"), disk.find("driver")
        if named is not None and driver is not None and named.get("dev") == target:
            return {name: value for name in ("cache", "io") if (value := driver.get(name))}
    return {}


def _disk(stack: Sequence[Layer], caching: dict[str, str]) -> ET.Element:
    """A disk whose chain is said to the bottom, so that no format is guessed and no header believed."""
    disk = ET.Element("disk", {"device": "disk"})
    ET.SubElement(disk, "driver", {"name": "qemu", "type": stack[0].format, **caching})
    set_source(disk, stack[0].path)
    upper = disk
    for layer in stack[1:]:
        upper = ET.SubElement(upper, "backingStore")
        ET.SubElement(upper, "format", {"type": layer.format})
        set_source(upper, layer.path)
    ET.SubElement(upper, "backingStore")
    ET.SubElement(disk, "target", {"dev": TARGET, "bus": "virtio"})
    return disk


def _security_label(label: ET.Element) -> ET.Element:
    """The same for the helper, but for a label that libvirt makes for each machine as it starts."""
    copy = ET.Element("seclabel", label.attrib)
    for child in label:
        if label.get("type") != "dynamic" or child.tag == "baselabel":
            ET.SubElement(copy, child.tag).text = child.text
    return copy
