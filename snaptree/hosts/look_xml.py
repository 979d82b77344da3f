"""The definition of a machine that looks at a snapshot, and the mark by which it is known to every administrator.

It is the machine as the snapshot recorded it, without what two machines can't have at once: its identity, devices of
the host, fixed ports, and files that a guest or QEMU writes to.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from snaptree.hosts.domain_xml import image_format, parse, set_source, source_path
from snaptree.model.errors import SnapTreeError
from snaptree.model.estate import LooksAt
from snaptree.plans.plan import MakeLook

LOOK_NAMESPACE: Final = "urn:snaptree:look:1"
"""The namespace of the mark in the `<metadata>` of a machine that looks at a snapshot."""

_MARK = f"{{{LOOK_NAMESPACE}}}looks-at"
_FILE = f"{{{LOOK_NAMESPACE}}}file"
_SNAPTREES_OWN = "{urn:snaptree:"
_QEMU = "{http://libvirt.org/schemas/domain/qemu/1.0}"
ET.register_namespace("snaptree-look", LOOK_NAMESPACE)

_SHARED_DEVICES: Final = (
    ("hostdev", "devices of the host"),
    ("interface[@type='hostdev']", "devices of the host"),
    ("interface[@type='vdpa']", "devices of the host"),
    ("interface[@type='vhostuser']", "network cards of another program"),
    ("filesystem", "directories of the host"),
    ("shmem", "shared memory"),
    ("memory[@model='nvdimm']", "persistent memory"),
    ("memory[@model='virtio-pmem']", "persistent memory"),
    ("lease", "leases"),
    ("tpm", "the TPM"),
    ("smartcard", "smart cards"),
    ("input[@type='passthrough']", "input devices of the host"),
    ("input[@type='evdev']", "input devices of the host"),
    ("redirdev[@type='tcp']", "redirected USB devices"),
)
"""What is left out, as paths below `<devices>`, and how that is called."""
_COMMAND_LINE: Final = (f"{_QEMU}commandline", "arguments given to QEMU itself")

_MAY_BE_SHARED: Final = re.compile(
    r"<(?:hostdev|filesystem|shmem|memory model|lease|tpm|smartcard|redirdev|qemu:|"
    r"(?:interface|input) type=.(?:hostdev|vdpa|vhostuser|passthrough|evdev))"
)
"""Most machines have nothing of the kind, and reading a text takes far longer than searching it."""
_CHARACTER_DEVICES: Final = ("serial", "parallel", "console", "channel")
_HARMLESS_BACKENDS: Final = frozenset({"pty", "null", "vc", "stdio", "spicevmc", "spiceport", "qemu-vdagent"})
"""Of character devices: those that name no file, port or socket of the host."""


@dataclass(frozen=True, slots=True)
class Original:
    """The machine that is looked at."""

    name: str
    uuid: str


# The mark


def read_mark(domain: ET.Element) -> LooksAt | None:
    """What a machine was made to look at; None if it was not, or is a copy of such a machine."""
    mark = domain.find(f"metadata/{_MARK}")
    if mark is None or mark.get("of") != domain.findtext("uuid"):
        return None
    return LooksAt(
        snapshot=mark.get("snapshot", ""),
        domain=mark.get("domain", ""),
        domain_uuid=mark.get("domain-uuid", ""),
        files=tuple(file.text for file in mark.findall(_FILE) if file.text),
    )


def _set_mark(domain: ET.Element, step: MakeLook, original: Original) -> None:
    metadata = domain.find("metadata")
    if metadata is None:
        metadata = ET.SubElement(domain, "metadata")
    # Neither what SnapTree noted in the snapshot, nor a mark of the machine that is looked at.
    for own in [child for child in metadata if child.tag.startswith(_SNAPTREES_OWN)]:
        metadata.remove(own)
    attributes = {"snapshot": step.snapshot, "domain": original.name, "domain-uuid": original.uuid}
    mark = ET.SubElement(metadata, _MARK, {"of": step.uuid, **attributes})
    for path in step.disks.values():
        ET.SubElement(mark, _FILE).text = path


# The definition


def shared_devices(snapshot_xml: str) -> tuple[str, ...]:
    """In words, what the machine had that a second one can't have at the same time. Empty if that can't be read."""
    if not _MAY_BE_SHARED.search(snapshot_xml):
        return ()
    try:
        domain = _recorded(snapshot_xml)
    except SnapTreeError:
        return ()
    return tuple(dict.fromkeys(words for _, _, words in _shared(domain)))


def _shared(domain: ET.Element) -> Iterator[tuple[ET.Element, ET.Element, str]]:
    """Elements that are left out, each with its parent and how it is called."""
    devices = domain.find("devices")
    if devices is not None:
        for path, words in _SHARED_DEVICES:
            yield from ((devices, found, words) for found in devices.findall(path))
    path, words = _COMMAND_LINE
    yield from ((domain, found, words) for found in domain.findall(path))


def _recorded(snapshot_xml: str) -> ET.Element:
    """The machine's definition as a snapshot recorded it: that of the next start, where it ran as another."""
    root = parse(snapshot_xml)
    domain = root.find("inactiveDomain")
    if domain is None:
        domain = root.find("domain")
    if domain is None:
        raise SnapTreeError("The snapshot does not say what its machine looked like.")
    domain.tag = "domain"
    return domain


def nvram_of(snapshot_xml: str) -> str | None:
    """The file of the UEFI variables that the machine had."""
    nvram = _recorded(snapshot_xml).find("os/nvram")
    if nvram is None:
        return None
    source = nvram.find("source")
    return (nvram.text or "").strip() or (None if source is None else source.get("file"))


def look_xml(
    snapshot_xml: str,
    step: MakeLook,
    original: Original,
    *,
    has_nvram: bool,
    is_there: Callable[[str], bool],
) -> str:
    """Define the machine. `has_nvram` says that `step.nvram` was made, `is_there` whether a medium still exists.

    Raises SnapTreeError if what the snapshot recorded is not what the plan was made for.
    """
    domain = _recorded(snapshot_xml)
    domain.attrib.pop("id", None)
    _set_identity(domain, step, original)
    for parent, found, _ in list(_shared(domain)):
        parent.remove(found)
    _set_firmware(domain, step.nvram if has_nvram else None)
    for label in domain.findall("seclabel[@type='dynamic']"):
        for child in [child for child in label if child.tag != "baselabel"]:
            label.remove(child)
    devices = domain.find("devices")
    if devices is None:
        raise SnapTreeError("The snapshot recorded a machine without devices.")
    for disk in devices.findall("disk"):
        _set_disk(devices, disk, step, is_there)
    for interface in devices.findall("interface"):
        _set_interface(interface, connected=step.connect_networks)
    for graphics in devices.findall("graphics"):
        _set_graphics(graphics)
    for tag in _CHARACTER_DEVICES:
        for device in devices.findall(tag):
            _set_character_device(devices, device)
    for rng in [rng for rng in devices.findall("rng") if rng.find("backend[@model='egd']") is not None]:
        devices.remove(rng)
    for cid in devices.findall("vsock/cid"):
        cid.attrib = {"auto": "yes"}
    return ET.tostring(domain, encoding="unicode")


def _set_identity(domain: ET.Element, step: MakeLook, original: Original) -> None:
    for tag, text in (
        ("name", step.machine),
        ("uuid", step.uuid),
        ("title", f"{original.name} as it was at {step.snapshot}"),
        ("description", f"SnapTree made this machine to look at the snapshot {step.snapshot} of {original.name}."),
    ):
        element = domain.find(tag)
        if element is None:
            element = ET.SubElement(domain, tag)
        element.text = " ".join(text.split())  # libvirt takes no line breaks in a title
    for genid in domain.findall("genid"):
        genid.text = None  # libvirt makes a new one
    for system in domain.findall("sysinfo/system"):
        for entry in system.findall("entry[@name='uuid']"):
            system.remove(entry)  # it has to be the machine's
    _set_mark(domain, step, original)


def _set_firmware(domain: ET.Element, nvram: str | None) -> None:
    """Give it UEFI variables of its own: those in a file, or such as libvirt makes from the firmware's template."""
    for element in domain.findall("os/nvram"):
        for source in element.findall("source"):
            element.remove(source)
        element.attrib.pop("type", None)
        element.text = nvram


def _set_disk(devices: ET.Element, disk: ET.Element, step: MakeLook, is_there: Callable[[str], bool]) -> None:
    target = disk.find("target")
    name = "" if target is None else target.get("dev", "")
    for tag in ("backingStore", "mirror", "shareable", "transient"):
        for child in disk.findall(tag):
            disk.remove(child)
    if name in step.disks:
        _check_base(disk, step, name)
        for source in disk.findall("source"):
            disk.remove(source)
        set_source(disk, step.disks[name])
        driver = disk.find("driver")
        if driver is None:
            driver = ET.SubElement(disk, "driver", {"name": "qemu"})
        driver.set("type", "qcow2")
    elif disk.get("device") in ("cdrom", "floppy"):
        path = source_path(disk)
        if path is not None and not is_there(path):
            for source in disk.findall("source"):
                disk.remove(source)
        if disk.find("readonly") is None:
            ET.SubElement(disk, "readonly")
    elif disk.find("readonly") is None:
        devices.remove(disk)


def _check_base(disk: ET.Element, step: MakeLook, target: str) -> None:
    base = step.bases.get(target)
    if base is not None and (source_path(disk), image_format(disk)) != (base.path, base.format):
        raise SnapTreeError(
            f"{step.snapshot} now says that disk {target} was {source_path(disk)}, not {base.path}.",
            hint="Someone else changed what libvirt knows of it. Nothing was made: plan again.",
        )


def _set_interface(interface: ET.Element, *, connected: bool) -> None:
    for tag in ("mac", "target", "portForward", "link"):
        for child in interface.findall(tag):
            interface.remove(child)
    for source in interface.findall("source"):
        source.attrib.pop("portid", None)
    for backend in interface.findall("backend"):
        backend.attrib.pop("logFile", None)
    for parameters in interface.findall("virtualport/parameters"):
        parameters.attrib.pop("interfaceid", None)
        parameters.attrib.pop("instanceid", None)
    if not connected:
        ET.SubElement(interface, "link", {"state": "down"})


def _set_graphics(graphics: ET.Element) -> None:
    """Let libvirt choose ports and sockets."""
    if graphics.get("type") in ("vnc", "spice", "rdp"):
        for attribute in ("port", "tlsPort", "websocket", "socket"):
            graphics.attrib.pop(attribute, None)
        graphics.set("autoport", "yes")
    for listen in graphics.findall("listen[@type='socket']"):
        listen.attrib.pop("socket", None)


def _set_character_device(devices: ET.Element, device: ET.Element) -> None:
    """One that wrote to a file, port or socket becomes a terminal; a channel's socket is libvirt's to name."""
    for tag in ("log", "alias"):
        for child in device.findall(tag):
            device.remove(child)
    kind = device.get("type", "pty")
    device.attrib.pop("tty", None)
    for child in [*device.findall("source"), *device.findall("protocol")]:
        if kind not in ("spiceport", "qemu-vdagent"):
            device.remove(child)
    if device.tag == "channel":
        if kind not in _HARMLESS_BACKENDS | {"unix"}:
            devices.remove(device)
    elif kind not in _HARMLESS_BACKENDS:
        device.set("type", "pty")
