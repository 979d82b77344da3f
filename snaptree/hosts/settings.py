"""The settings that libvirt's XML says, in words; what differs between two moments of a machine, and its raw XML.

Whatever is in a definition is compared. Left out is what is no setting: what libvirt adds while a machine runs,
addresses and ports that it chooses, and what SnapTree keeps in there. Layers come and go with snapshots:
`model.settings` judges the images of disks.
"""

from __future__ import annotations

import copy
import difflib
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, TypeVar

import libvirt

from snaptree.hosts.connection import Connection
from snaptree.hosts.domain_xml import parse_as_written, scaled_bytes, source_path
from snaptree.hosts.errors import explained
from snaptree.hosts.setting_words import CURRENT_MEMORY, MEMORY, attribute_at, has_layers, identity_of, parts_of
from snaptree.hosts.snapshot_xml import ANNOTATIONS_NAMESPACE
from snaptree.model.errors import SnapTreeError
from snaptree.model.settings import WHILE_RUNNING, Comparison, SettingChange, SharesLayers, compare


@dataclass(frozen=True, slots=True, eq=False)
class Recorded:
    """A machine at a moment: as it is defined, and as it ran if it did. Not to be changed."""

    definition: ET.Element
    running: ET.Element | None

    def ran_beside(self, other: Recorded) -> ET.Element | None:
        """As it ran, as far as that can be compared with another: what QEMU made of the CPU is not always recorded."""
        if self.running is None or other.running is None or other.running.find("cpu") is not None:
            return self.running
        return _without_cpu(self.running)

    def plugged(self) -> tuple[SettingChange, ...]:
        """Devices that came or went while it ran, of which its definition does not know."""
        if self.running is None:
            return ()
        defined, ran = (
            {(part.kind, part.name): part for part in parts_of(domain) if part.name and part.kind != "controller"}
            for domain in (self.definition, self.running)
        )
        return (
            *(SettingChange(part.title, None, part.summary) for key, part in ran.items() if key not in defined),
            *(SettingChange(part.title, part.summary, None) for key, part in defined.items() if key not in ran),
        )


# Reading


@lru_cache(maxsize=64)
def recorded_in(snapshot_xml: str) -> Recorded:
    """The machine that a snapshot recorded. Raises SnapTreeError if it did not, or can't be read."""
    root = parse_as_written(snapshot_xml)
    domain, inactive = root.find("domain"), root.find("inactiveDomain")
    if domain is None:
        raise SnapTreeError(f"The snapshot {root.findtext('name')} does not say what its machine looked like.")
    if inactive is None:
        return Recorded(_normal(domain), None)
    inactive.tag = "domain"
    return Recorded(_normal(inactive), _normal_running(domain, root.find("cookie/cpu")))


def recorded_now(domain: Any, text: str | None = None) -> Recorded:
    """A machine as it is, if known by the `text` that libvirt just gave. Raises SnapTreeError if it can't be read."""
    with explained("reading the settings of the virtual machine"):
        text = domain.XMLDesc() if text is None else text
        if parse_as_written(text).get("id") is None:  # only what runs has a number
            return recorded_as(text, None)
        return recorded_as(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE), text)


@lru_cache(maxsize=8)
def recorded_as(definition: str, running: str | None) -> Recorded:
    """A machine by its texts. Raises SnapTreeError if they can't be read."""
    if running is None:
        return Recorded(_normal(parse_as_written(definition)), None)
    live = parse_as_written(running)
    return Recorded(_normal(parse_as_written(definition)), _normal_running(live, live.find("cpu")))


def compare_moments(
    connection: Connection,
    uuid: str,
    before: str | None,
    after: str | None,
    same_disk: SharesLayers | None = None,
    *,
    with_xml: bool = True,
) -> Comparison:
    """Compare two snapshots, or a snapshot and *Now* (None). Raises VanishedError or SnapTreeError."""
    domain = connection.domain(uuid)

    def read(name: str | None) -> Recorded:
        if name is None:
            return recorded_now(domain)
        with explained(f"reading the snapshot {name}"):
            text = domain.snapshotLookupByName(name).getXMLDesc()
        return recorded_in(text)

    old, new = read(before), read(after)
    xml = xml_difference(old, new, before or "Now", after or "Now", same_disk) if with_xml else ()
    return Comparison(before, after, changes(old, new, same_disk), xml)


_Value = TypeVar("_Value")


class LazyMapping(Mapping[str, _Value]):
    """Values out of texts, worked out when first looked at. There is none where `read` raises SnapTreeError."""

    def __init__(self, texts: Mapping[str, str], read: Callable[[str], _Value]) -> None:
        self._texts = texts
        self._read = read
        self._known: dict[str, _Value] = {}

    def __getitem__(self, name: str) -> _Value:
        if name not in self._known:
            try:
                self._known[name] = self._read(self._texts[name])
            except SnapTreeError as error:
                raise KeyError(name) from error
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._texts)

    def __len__(self) -> int:
        return len(self._texts)


# Comparing


def changes(before: Recorded, after: Recorded, same_disk: SharesLayers | None = None) -> tuple[SettingChange, ...]:
    """What differs in the definitions, and then what differs besides of machines that run.

    Where one of the two does not run, devices that the other one has got or lost meanwhile.
    """
    defined = _compared(before.definition, after.definition, same_disk)
    return (*defined, *_besides(defined, before, after, same_disk))


def _compared(before: ET.Element, after: ET.Element, same_disk: SharesLayers | None) -> tuple[SettingChange, ...]:
    found = compare(parts_of(before), parts_of(after), same_disk)
    # Most machines are given all their memory: that is said once.
    given = [change for change in found if change.what == CURRENT_MEMORY and replace(change, what=MEMORY) in found]
    return tuple(change for change in found if change not in given)


def _besides(
    defined: tuple[SettingChange, ...], before: Recorded, after: Recorded, same_disk: SharesLayers | None
) -> list[SettingChange]:
    old, new = before.ran_beside(after), after.ran_beside(before)
    if old is not None and new is not None:
        running = _compared(old, new, same_disk)
    else:
        went = (SettingChange(change.what, change.after, change.before) for change in before.plugged())
        running = (*went, *after.plugged())
    told = {change.what for change in defined}
    return [replace(change, what=f"{WHILE_RUNNING}{change.what}") for change in running if change.what not in told]


def xml_difference(
    before: Recorded, after: Recorded, old_name: str, new_name: str, same_disk: SharesLayers | None = None
) -> tuple[str, ...]:
    """What differs in the definitions, as `diff -u` writes it, and in what ran, where that is more.

    Images that are layers of one disk are left out, like all that is no setting.
    """
    lines = _diff(before.definition, after.definition, old_name, new_name, same_disk)
    if not any(change.what.startswith(WHILE_RUNNING) for change in changes(before, after, same_disk)):
        return tuple(lines)
    old, new = before.ran_beside(after), after.ran_beside(before)
    if old is not None and new is not None:
        return (*lines, *_diff(old, new, f"{old_name} (running)", f"{new_name} (running)", same_disk))
    for moment, name in ((before, old_name), (after, new_name)):
        if moment.running is not None:
            defined, ran = _without_cpu(moment.definition), _without_cpu(moment.running)
            lines += _diff(defined, ran, f"{name} (defined)", f"{name} (running)", same_disk)
    return tuple(lines)


def _diff(
    before: ET.Element, after: ET.Element, old_name: str, new_name: str, same_disk: SharesLayers | None
) -> list[str]:
    old, new = copy.deepcopy(before), copy.deepcopy(after)
    news = {attribute_at(disk, "target@dev"): disk for disk in new.findall("devices/disk")}
    for disk in old.findall("devices/disk"):
        twin = news.get(attribute_at(disk, "target@dev"))
        if twin is None or not (has_layers(disk) and has_layers(twin)):
            continue
        one, other = source_path(disk), source_path(twin)
        if one and other and one != other and (same_disk is None or same_disk(one, other)):
            for each in (disk, twin):
                _forget_layer(each)
    return list(difflib.unified_diff(_lines(old), _lines(new), fromfile=old_name, tofile=new_name, lineterm=""))


def _without_cpu(domain: ET.Element) -> ET.Element:
    twin = copy.deepcopy(domain)
    for cpu in twin.findall("cpu"):
        twin.remove(cpu)
    return twin


def _lines(root: ET.Element) -> list[str]:
    ET.indent(root)
    return ET.tostring(root, encoding="unicode").splitlines()


def _forget_layer(disk: ET.Element) -> None:
    disk.attrib.pop("type", None)
    for tag, attributes in (("source", ("file", "dev")), ("driver", ("type",))):
        element = disk.find(tag)
        if element is not None:
            for attribute in attributes:
                element.attrib.pop(attribute, None)


# What is no setting

_OWN_CHANNEL = re.compile(r"/channel/(?:target/)?(?:domain-)?\d+-[^/]*/[^/]*$")
"""The socket of a channel that libvirt named after the running machine."""
_OWN_INTERFACE = re.compile(r"(?:vnet|macvtap|macvlan)\d+")


def _normal_running(domain: ET.Element, cpu: ET.Element | None) -> ET.Element:
    """As `_normal`, of a machine that runs, with what QEMU made of its CPU; without any if that is not known.

    Where its screens listen is left out: libvirt fills in what its own configuration says.
    """
    running = _without_cpu(_normal(domain))
    if cpu is not None:
        running.append(copy.deepcopy(cpu))
    for listen in running.findall("devices/graphics/listen"):
        listen.attrib.pop("address", None)
    return running


def _normal(domain: ET.Element) -> ET.Element:
    """A copy without what is no setting."""
    domain = copy.deepcopy(domain)
    for element in domain.iter():
        element.text, element.tail = (element.text or "").strip(), (element.tail or "").strip()
        if "unit" in element.attrib and (size := scaled_bytes(element)) is not None:
            element.text, unit = (str(size // 1024), "KiB") if size % 1024 == 0 else (str(size), "bytes")
            element.set("unit", unit)
    for attribute in [name for name in domain.attrib if name == "id" or name.startswith("xmlns")]:
        del domain.attrib[attribute]
    _drop_own_metadata(domain)
    for element in list(domain):
        match element.tag:
            case "resource" if element.findtext("partition") == "/machine":
                domain.remove(element)
            case "seclabel" if element.get("type") == "dynamic" and element.find("baselabel") is None:
                domain.remove(element)
            case "genid":
                element.text = None  # libvirt makes another one with each revert
    devices = domain.find("devices")
    if devices is not None:
        for device in devices:
            _drop_live(device)
        places = {tag: number for number, tag in reversed(list(enumerate(each.tag for each in devices)))}
        devices[:] = sorted(devices, key=lambda device: (places[device.tag], identity_of(device)))
    return domain


def _drop_own_metadata(domain: ET.Element) -> None:
    metadata = domain.find("metadata")
    if metadata is None:
        return
    for element in list(metadata):
        prefix, colon, _ = element.tag.rpartition(":")
        declared = f"xmlns{colon}{prefix}"
        if ANNOTATIONS_NAMESPACE in (element.get(declared), metadata.get(declared)):
            metadata.remove(element)
    for name in [name for name, value in metadata.attrib.items() if value == ANNOTATIONS_NAMESPACE]:
        del metadata.attrib[name]
    if not len(metadata):
        domain.remove(metadata)


def _drop_live(device: ET.Element) -> None:
    """Take out of a device what libvirt adds or chooses."""
    for child in list(device):
        is_own_alias = child.tag == "alias" and not child.get("name", "").startswith("ua-")
        if is_own_alias or child.tag in ("address", "backingStore", "mirror"):
            device.remove(child)
    source, target = device.find("source"), device.find("target")
    match device.tag:
        case "disk" if source is not None:
            source.attrib.pop("index", None)
        case "interface":
            if target is not None and _OWN_INTERFACE.fullmatch(target.get("dev", "")):
                target.attrib.pop("dev")
                _remove_if_empty(device, target)
            if source is not None:
                source.attrib.pop("portid", None)
                if device.get("type") == "network":
                    source.attrib.pop("bridge", None)
        case "graphics":
            _drop_chosen_ports(device)
        case "console" | "serial" | "parallel" | "channel":
            device.attrib.pop("tty", None)
            if target is not None:
                target.attrib.pop("state", None)
            is_own = device.get("type") == "pty" or _OWN_CHANNEL.search(attribute_at(device, "source@path"))
            if source is not None and is_own:
                device.remove(source)
        case "hostdev" if source is not None and source.find("vendor") is not None:
            for address in source.findall("address"):
                source.remove(address)
        case "vsock":
            cid = device.find("cid")
            if cid is not None and cid.get("auto") == "yes":
                cid.attrib.pop("address", None)


def _drop_chosen_ports(graphics: ET.Element) -> None:
    if graphics.get("autoport") == "yes":
        for name in ("port", "tlsPort", "websocket"):
            graphics.attrib.pop(name, None)
    listens = graphics.findall("listen")
    if listens:
        graphics.attrib.pop("listen", None)  # says the same as the first of them
    for listen in listens:
        if listen.get("type") == "network":
            listen.attrib.pop("address", None)
        elif listen.get("type") == "socket" and "/domain-" in listen.get("socket", ""):
            listen.attrib.pop("socket", None)


def _remove_if_empty(parent: ET.Element, element: ET.Element) -> None:
    if not element.attrib and not len(element):
        parent.remove(element)
