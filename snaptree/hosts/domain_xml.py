"""What a domain's XML says about its disks, firmware and memory. Only direct children are read (LIBVIRT.md, 5)."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path
from xml.parsers import expat

from snaptree.model.errors import SnapTreeError
from snaptree.plans.situation import Disk

# libvirt's scaled integers: docs/formatdomain "memory unit".
_UNITS = {
    "b": 1, "bytes": 1, "k": 2**10, "KiB": 2**10, "KB": 10**3, "M": 2**20, "MiB": 2**20, "MB": 10**6,
    "G": 2**30, "GiB": 2**30, "GB": 10**9, "T": 2**40, "TiB": 2**40, "TB": 10**12,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class DomainDefinition:
    """The parts of a domain's XML that SnapTree reads. `memory` is in bytes."""

    disks: tuple[Disk, ...]
    chains: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]
    """Per target of a disk that holds data: (path, format) of each layer as listed, active first. Network disks list
    none; of a machine that is off the list may be partial."""
    discards: frozenset[str]
    """Targets of disks whose QEMU gives back to the host what an image frees (`<driver discard='unmap'>`)."""
    memory: int
    has_pflash: bool
    nvram_format: str | None
    nvram: str | None
    has_agent: bool
    """An agent channel exists and, for a running machine, the agent is connected."""


def parse(xml: str) -> ET.Element:
    """Parse libvirt's XML. Raises SnapTreeError if it is not XML."""
    try:
        return ET.fromstring(xml)  # noqa: S314  from the host's own libvirt; expat refuses entity bombs
    except ET.ParseError as error:
        raise SnapTreeError("The host sent XML that cannot be read.", details=str(error)) from error


def parse_as_written(xml: str) -> ET.Element:
    """As `parse`, for text that is sent back: names keep their prefixes, and namespaces are said where they were."""
    builder = ET.TreeBuilder()
    parser = expat.ParserCreate()
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(xml, True)
    except expat.ExpatError as error:
        raise SnapTreeError("The host sent XML that cannot be read.", details=str(error)) from error
    return builder.close()


def set_source(disk: ET.Element, path: str) -> None:
    """Let a `<disk>` or `<backingStore>` name another file or block device."""
    source = disk.find("source")
    if source is None:
        source = ET.SubElement(disk, "source")
    is_device = path.startswith("/dev/") or Path(path).is_block_device()
    disk.set("type", "block" if is_device else "file")
    for attribute in ("file", "dev"):
        source.attrib.pop(attribute, None)
    source.set("dev" if is_device else "file", path)


def set_layer(disk: ET.Element, path: str, image_format: str) -> None:
    """Let a `<disk>` write to another image, of that format."""
    set_source(disk, path)
    driver = disk.find("driver")
    if driver is None:
        driver = ET.Element("driver", {"name": "qemu"})
        disk.insert(0, driver)
    driver.set("type", image_format)


def listed_paths(disk: ET.Element) -> list[str]:
    """Every file or block device that a `<disk>` and the chain recorded in it name."""
    return [path for element in disk.iter() if (path := source_path(element)) is not None]


def read_definition(domain: ET.Element) -> DomainDefinition:
    """Read a `<domain>` element."""
    disk_elements = domain.findall("devices/disk")
    loader = domain.find("os/loader")
    nvram = domain.find("os/nvram")
    os_element = domain.find("os")
    return DomainDefinition(
        disks=tuple(_disk(element) for element in disk_elements),
        chains=tuple((_target(element), _listed_layers(element)) for element in disk_elements if _holds_data(element)),
        discards=frozenset(_target(element) for element in disk_elements if _discards(element)),
        memory=memory_bytes(domain),
        has_pflash=(loader is not None and loader.get("type") == "pflash")
        or (os_element is not None and os_element.get("firmware") == "efi"),
        nvram_format=None if nvram is None else nvram.get("format", "raw"),
        nvram=None if nvram is None else nvram.text,
        has_agent=any(
            target.get("name") == "org.qemu.guest_agent.0" and target.get("state", "connected") == "connected"
            for target in domain.findall("devices/channel/target")
        ),
    )


def source_path(disk: ET.Element) -> str | None:
    """The file or block device of a `<disk>`, `<backingStore>` or `<mirror>`; None for anything else."""
    source = disk.find("source")
    if source is None:
        return None
    return source.get("file") or source.get("dev")


def image_format(disk: ET.Element) -> str:
    """The recorded format of a `<disk>`: raw, libvirt's default, where none is; never probed."""
    driver = disk.find("driver")
    return "raw" if driver is None else driver.get("type", "raw")


def memory_bytes(domain: ET.Element) -> int:
    """The machine's RAM in bytes, 0 if it is not said."""
    element = domain.find("memory")
    return 0 if element is None else scaled_bytes(element) or 0


def scaled_bytes(element: ET.Element) -> int | None:
    """The size that an element's text and unit (KiB if it has none) say, in bytes; None if they say none."""
    text, unit = (element.text or "").strip(), _UNITS.get(element.get("unit", "KiB"))
    return int(text) * unit if text.isdecimal() and unit is not None else None


def _target(disk: ET.Element) -> str:
    target = disk.find("target")
    return "" if target is None else target.get("dev", "")


def _discards(disk: ET.Element) -> bool:
    driver = disk.find("driver")
    return driver is not None and driver.get("discard") == "unmap"


def _holds_data(disk: ET.Element) -> bool:
    """Whether a disk has content of its own: not an empty drive, and no medium in a CD-ROM or floppy drive."""
    return disk.get("device", "disk") in ("disk", "lun") and disk.find("source") is not None


def _disk(element: ET.Element) -> Disk:
    target = element.find("target")
    return Disk(
        target=_target(element),
        device=element.get("device", "disk"),
        type=element.get("type", "file"),
        format=image_format(element),
        path=source_path(element),
        bus="" if target is None else target.get("bus", ""),
        read_only=element.find("readonly") is not None,
        transient=element.find("transient") is not None,
        shareable=element.find("shareable") is not None,
        is_encrypted=element.find("encryption") is not None or element.find("source/encryption") is not None,
        records_chain=element.find("backingStore") is not None,
    )


def _listed_layers(disk: ET.Element) -> tuple[tuple[str, str], ...]:
    layers: list[tuple[str, str]] = []
    layer_format = image_format(disk)
    layer: ET.Element | None = disk
    while layer is not None:
        path = source_path(layer)
        if path is None:
            break
        layers.append((path, layer_format))
        layer = layer.find("backingStore")
        if layer is not None:
            format_element = layer.find("format")
            layer_format = "" if format_element is None else format_element.get("type", "")
    return tuple(layers)
