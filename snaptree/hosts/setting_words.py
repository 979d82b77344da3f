"""What a machine's definition sets, in words: its parts, and every value in them.

What has no words of its own goes by its place in the XML: `driver@queues` of a disk, `memtune/hard_limit` of a machine.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from snaptree.hosts.domain_xml import image_format, scaled_bytes, source_path
from snaptree.model.settings import THERE, DiskImage, Part

MEMORY = "Memory"
CURRENT_MEMORY = "Current memory"
"""What of it the guest is given now."""

_MACHINE = "machine"


@dataclass(frozen=True, slots=True)
class _Kind:
    """How one kind of devices is spoken of. `identity` are paths of what tells them apart."""

    title: str
    identity: tuple[str, ...] = ()
    name_is: str = "name"


_KINDS = {
    "disk": _Kind("Disk", ("target@dev",), "target"),
    "interface": _Kind("Network interface", ("mac@address",), "MAC address"),
    "controller": _Kind("Controller", ("@type", "@index"), "number"),
    "graphics": _Kind("Graphics", ("@type",), "type"),
    "video": _Kind("Video"),
    "sound": _Kind("Sound"),
    "audio": _Kind("Audio", ("@id",), "number"),
    "input": _Kind("Input", ("@type", "@bus"), "type"),
    "channel": _Kind("Channel", ("target@name",)),
    "serial": _Kind("Serial port", ("target@port",), "number"),
    "parallel": _Kind("Parallel port", ("target@port",), "number"),
    "console": _Kind("Console", ("target@type", "target@port"), "number"),
    "filesystem": _Kind("File system", ("target@dir",), "target"),
    "hostdev": _Kind(
        "Host device",
        (
            "@type", "source@dev", "source@uuid", "source/vendor@id", "source/product@id", "source/adapter@name",
            "source/address@domain", "source/address@bus", "source/address@slot", "source/address@function",
            "source/address@device", "source/address@target", "source/address@unit", "source/address@uuid",
        ),
        "source",
    ),
    "tpm": _Kind("TPM"),
    "rng": _Kind("Random numbers"),
    "memballoon": _Kind("Memory balloon"),
    "watchdog": _Kind("Watchdog"),
    "panic": _Kind("Panic device", ("@model",), "model"),
    "memory": _Kind("Memory module"),
    "shmem": _Kind("Shared memory", ("@name",)),
    "redirdev": _Kind("USB redirection"),
    "smartcard": _Kind("Smart card"),
    "hub": _Kind("USB hub"),
    "vsock": _Kind("Socket to the host"),
    "iommu": _Kind("IOMMU"),
    "emulator": _Kind("Emulator"),
}  # fmt: skip

_DRIVES = {"cdrom": "CD-ROM", "floppy": "Floppy"}

_WORDS = {
    "@type": "type",
    "@device": "device",
    "@mode": "mode",
    "@model": "model",
    "@managed": "managed",
    "@action": "action",
    "model": "model",
    "model@type": "model",
    "model@name": "model",
    "driver@name": "driver",
    "driver@type": "format",
    "driver@cache": "cache",
    "driver@io": "I/O",
    "driver@discard": "discard",
    "driver@queues": "queues",
    "driver@iothread": "I/O thread",
    "target@bus": "bus",
    "target@dev": "device on the host",
    "target@tray": "tray",
    "target@type": "target",
    "target@port": "port",
    "source@file": "medium",
    "source@network": "network",
    "source@bridge": "bridge",
    "source@dev": "source",
    "source@dir": "source",
    "source@name": "source",
    "source@path": "source",
    "source@protocol": "protocol",
    "source@startupPolicy": "where its source is missing",
    "serial": "serial number",
    "wwn": "WWN",
    "readonly": "read-only",
    "shareable": "shareable",
    "transient": "transient",
    "boot@order": "boot order",
    "link@state": "link",
    "mtu@size": "MTU",
    "backend": "backend",
    "backend@model": "backend",
    "backend@type": "backend",
    "backend@version": "version",
    "rom@bar": "ROM",
    "filterref@filter": "filter",
    "listen@address": "address",
    "listen@type": "listens on",
    "@port": "port",
    "@autoport": "chosen port",
    "model@vram": "video memory (KiB)",
    "model@heads": "heads",
    "model/acceleration@accel3d": "3D acceleration",
}  # fmt: skip
"""Of devices."""

_MACHINE_WORDS = {
    "name": "Name",
    "uuid": "UUID",
    "title": "Title",
    "description": "Description",
    "memory": MEMORY,
    "currentMemory": CURRENT_MEMORY,
    "maxMemory": "Maximum memory",
    "maxMemory@slots": "Memory slots",
    "vcpu": "vCPUs",
    "vcpu@current": "Current vCPUs",
    "vcpu@cpuset": "vCPUs run on",
    "vcpu@placement": "vCPU placement",
    "iothreads": "I/O threads",
    "@type": "Hypervisor",
    "os/type": "Kind of machine",
    "os/type@machine": "Machine type",
    "os/type@arch": "Architecture",
    "os@firmware": "Firmware",
    "os/loader": "Firmware image",
    "os/loader@secure": "Firmware is secure",
    "os/firmware/feature[secure-boot]@enabled": "Secure boot",
    "os/firmware/feature[enrolled-keys]@enabled": "Secure boot keys enrolled",
    "os/nvram": "UEFI variables in",
    "os/nvram@template": "UEFI variables made from",
    "os/boot": "Boot order",
    "os/bootmenu@enable": "Boot menu",
    "os/kernel": "Kernel",
    "os/initrd": "Initial RAM disk",
    "os/cmdline": "Kernel arguments",
    "cpu@mode": "CPU mode",
    "cpu@match": "CPU match",
    "cpu@check": "CPU check",
    "cpu@migratable": "CPU migratable",
    "cpu/model": "CPU model",
    "cpu/vendor": "CPU vendor",
    "cpu/topology": "CPU topology",
    "clock@offset": "Clock",
    "clock@timezone": "Clock's time zone",
    "on_poweroff": "At power off",
    "on_reboot": "At reboot",
    "on_crash": "At a crash",
    "pm/suspend-to-mem@enabled": "Suspend to memory",
    "pm/suspend-to-disk@enabled": "Suspend to disk",
}

_PATTERNS = (
    (re.compile(r"cpu/feature\[(.*)\]@policy"), "CPU feature {0}"),
    (re.compile(r"clock/timer\[(.*)\]@(\w+)"), "Timer {0}: {1}"),
    (re.compile(r"features/([\w-]+)(?:@state)?"), "Feature {0}"),
    (re.compile(r"features/hyperv/([\w-]+)@state"), "Hyper-V feature {0}"),
    (re.compile(r"cputune/vcpupin\[(\d+)\]@cpuset"), "vCPU {0} runs on"),
)

_DEVICE_PATTERNS = (
    (re.compile(r"iotune/(total|read|write)_bytes_sec"), "{0} limit"),
    (re.compile(r"iotune/(total|read|write)_iops_sec"), "{0} limit, operations/s"),
    (re.compile(r"iotune/(\w+)"), "I/O limit {0}"),
    (re.compile(r"bandwidth/(inbound|outbound)@(\w+)"), "{0} bandwidth, {1}"),
)

_KEYS = {
    "feature": "name", "timer": "name", "env": "name", "entry": "name", "vcpupin": "vcpu", "vcpusched": "vcpus",
    "iothreadpin": "iothread", "iothread": "id", "cell": "id", "node": "id", "sibling": "id",
}  # fmt: skip
"""Elements of which there are several, and the attribute that tells them apart."""

_LEVELS = ("sockets", "dies", "clusters", "cores", "threads")
"""Of a CPU's topology, from the largest down."""


def parts_of(domain: ET.Element) -> tuple[Part, ...]:
    """The machine itself and its devices, with all that is set about them."""
    settings: dict[str, str] = {}
    parts = []
    for path, value in _leaves(domain, ""):
        if path.partition("/")[0].partition("@")[0] != "devices":
            _put(settings, _called(path, _MACHINE_WORDS, _PATTERNS), value)
    parts.append(Part(_MACHINE, "", "", MappingProxyType(settings)))
    for devices in domain.findall("devices"):
        parts += map(_device, devices)
    return tuple(parts)


def _device(device: ET.Element) -> Part:
    leaves = dict(_leaves(device, ""))
    image = None
    if has_layers(device):
        image = DiskImage(source_path(device) or "", image_format(device))
        for path in ("@type", "source@file", "source@dev", "driver@type"):
            leaves.pop(path, None)
    kind = _KINDS.get(device.tag, _Kind(device.tag))
    for path in kind.identity:
        leaves.pop(path, None)
    name = identity_of(device)
    title = _DRIVES.get(device.get("device", ""), kind.title) if device.tag == "disk" else kind.title
    settings: dict[str, str] = {}
    for path, value in leaves.items():
        _put(settings, _called(path, _WORDS, _DEVICE_PATTERNS), value)
    return Part(
        kind=device.tag,
        name=name,
        title=f"{title} {name}".rstrip(),
        settings=MappingProxyType(settings),
        summary=_summary(image, settings),
        name_is=kind.name_is,
        image=image,
    )


def _summary(image: DiskImage | None, settings: Mapping[str, str]) -> str:
    known = [] if image is None else [str(image)]
    known += [what if value == THERE else f"{what} {value}" for what, value in settings.items() if what in _SUMMED_UP]
    return ", ".join(known) or THERE


_SUMMED_UP = frozenset(_WORDS.values()) - {"driver", "type", "device"}


def identity_of(device: ET.Element) -> str:
    """What tells a device from others of its kind; empty if nothing does."""
    kind = _KINDS.get(device.tag)
    values = [] if kind is None else [value for path in kind.identity if (value := attribute_at(device, path))]
    pci = [value.removeprefix("0x") for value in values[-4:]]
    if device.tag == "hostdev" and values[0] == "pci" and len(values) == 5:
        return "pci {}:{}:{}.{}".format(*pci)
    return " ".join(values)


def attribute_at(element: ET.Element, path: str) -> str:
    """An attribute by the path of its element: `target@dev`, `@type`."""
    where, _, attribute = path.partition("@")
    found = element.find(where) if where else element
    return "" if found is None else found.get(attribute, "")


def has_layers(device: ET.Element) -> bool:
    """Whether a device is a disk with an image that a snapshot may cover by a layer."""
    return (
        device.tag == "disk"
        and device.get("device", "disk") in ("disk", "lun")
        and device.get("type", "file") in ("file", "block")
        and source_path(device) is not None
    )


def _called(path: str, known: Mapping[str, str], patterns: tuple[tuple[re.Pattern[str], str], ...]) -> str:
    if path in known:
        return known[path]
    for pattern, words in patterns:
        if (match := pattern.fullmatch(path)) is not None:
            return words.format(*match.groups())
    return path


def _put(settings: dict[str, str], what: str, value: str) -> None:
    """Set what may be called like something else that is set."""
    while what in settings:
        what += "'"
    settings[what] = value


# Leaves


def _leaves(element: ET.Element, path: str) -> Iterator[tuple[str, str]]:
    """Every value in an element: its text, its attributes, and those of all below it, by path."""
    attributes = dict(element.attrib)
    text = _text(element, attributes)
    if text or (path and not attributes and not len(element)):
        yield path, text or THERE
    yield from ((f"{path}@{name}", value) for name, value in attributes.items())
    children = list(element)
    if element.tag == "os" and (boots := element.findall("boot")):
        yield f"{path}/boot", ", ".join(boot.get("dev", "") for boot in boots)
        children = [child for child in children if child not in boots]
    seen: Counter[str] = Counter()
    for child in children:
        key = _KEYS.get(child.tag, "")
        step = f"{child.tag}[{child.get(key)}]" if key in child.attrib else child.tag
        seen[step] += 1
        below = f"{path}/{step}" if path else step
        if seen[step] > 1:
            below += f"#{seen[step]}"
        leaves = [(leaf, value) for leaf, value in _leaves(child, below) if leaf != f"{below}@{key}"]
        yield from leaves or [(below, THERE)]


def _text(element: ET.Element, attributes: dict[str, str]) -> str:
    """What an element says itself, in words, taking the attributes that belong to it."""
    text = " ".join(filter(None, [(element.text or "").strip(), *((child.tail or "").strip() for child in element)]))
    if "unit" in attributes and (size := scaled_bytes(element)) is not None:
        del attributes["unit"]
        return exact_size(size)
    if element.tag.endswith(("_bytes_sec", "_bytes_sec_max")) and text.isdecimal():
        return f"{exact_size(int(text))}/s"
    if element.tag == "topology":
        levels = sorted(attributes, key=lambda level: (_LEVELS.index(level) if level in _LEVELS else 9, level))
        numbers = [(level, attributes.pop(level)) for level in levels]
        return ", ".join(f"{number} {level[:-1] if number == '1' else level}" for level, number in numbers)
    return text


def exact_size(number: int) -> str:
    """Bytes in the largest unit that leaves no fraction: sizes that differ never look the same."""
    for unit, name in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if number and number % unit == 0:
            return f"{number // unit:,} {name}"
    return f"{number:,} bytes"
