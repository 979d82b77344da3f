"""Machines with very many snapshots, made fast: their metadata is redefined, their images are written as files.

Everything that libvirt, virsh, virt-manager and SnapTree read is really there: the machine is an ordinary one, its
snapshots have all that a real one's XML has (3.5 KB each), the snapshot tables are in the qcow2 images, the layers are
on the disk. Only the guest's data is missing.
"""

from __future__ import annotations

import contextlib
import random
import struct
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import libvirt

from tests.kit.daemon import LibvirtDaemon

FIRST_SNAPSHOT = 1_700_000_000
"""When the oldest was taken, in seconds since 1970; each next one is an hour younger."""

_MACHINE = """
<domain type='qemu'>
  <name>{name}</name>
  <description>Runs what a department depends on; ask before you stop it.</description>
  <memory unit='MiB'>{memory}</memory><vcpu>2</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type><boot dev='hd'/></os>
  <features><acpi/><apic/></features>
  <clock offset='utc'><timer name='rtc' tickpolicy='catchup'/><timer name='hpet' present='no'/></clock>
  <on_crash>destroy</on_crash>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' discard='unmap'/><source file='{image}'/><target dev='vda' bus='virtio'/>
    </disk>
    <controller type='scsi' model='virtio-scsi'/>
    <interface type='user'><model type='virtio'/></interface>
    <console type='pty'/>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <input type='tablet' bus='usb'/>
    <graphics type='vnc'><listen type='none'/></graphics>
    <video><model type='vga'/></video>
    <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
  </devices>
</domain>
"""

_SNAPSHOT = """
<domainsnapshot>
  <name>{name}</name>
  <description>{description}</description>
  <state>{state}</state>
  {parent}
  <creationTime>{created}</creationTime>
  <memory snapshot='{memory}'/>
  <disks>{disk}</disks>
  {domain}
</domainsnapshot>
"""


@contextlib.contextmanager
def running_daemon() -> Iterator[LibvirtDaemon]:
    """A libvirt daemon that virsh, virt-manager and SnapTree may all use at once; gone afterwards with all it has."""
    daemon = LibvirtDaemon()
    try:
        images = _images(daemon)
        images.mkdir()
        daemon.give(images)
        daemon.start()
        yield daemon
    finally:
        daemon.close()


def define_machine(daemon: LibvirtDaemon, name: str, image: Path | None = None, *, memory: int = 64) -> Any:
    """Define a machine on one qcow2 disk, an empty one by default. `memory` is in MiB."""
    image = image or _create_image(daemon, f"{name}.qcow2")
    xml = _MACHINE.format(name=escape(name), image=escape(str(image)), memory=memory)
    return daemon.connection.handle.defineXML(xml)


def _images(daemon: LibvirtDaemon) -> Path:
    return daemon.directory / "images"


def _create_image(daemon: LibvirtDaemon, name: str, backing: Path | None = None) -> Path:
    path = _images(daemon) / name
    on = ["-F", "qcow2", "-b", str(backing)] if backing else []
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *on, str(path), "1G"], check=True)
    daemon.give(path)
    return path


def write_as_guest(domain: Any, size: int) -> None:
    """Fill `size` MiB of a running machine's disk, as its guest might have; the machine is off meanwhile."""
    domain.destroy()
    disk = ET.fromstring(domain.XMLDesc()).find("devices/disk/source")
    assert disk is not None
    write = f"write -q -P {random.randrange(1, 256)} 0 {size}M"
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", write, disk.attrib["file"]], check=True)
    domain.create()


def _parent_in_tree(number: int) -> int | None:
    """The parent of a snapshot, both by number: one long history, and every forty a fresh start from further back."""
    if number == 0:
        return None
    return number - 1 if number % 40 else number - 12


def add_internal(daemon: LibvirtDaemon, name: str, count: int) -> None:
    """A machine that is off, with `count` internal snapshots with memory, all in its one image."""
    image = _create_image(daemon, f"{name}.qcow2")
    _write_snapshot_table(image, count)
    domain = define_machine(daemon, name, image)
    recorded = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE | libvirt.VIR_DOMAIN_XML_INACTIVE)
    for number in range(count):
        redefine(
            domain, number, _parent_in_tree(number), state="running", memory="internal",
            disk="<disk name='vda' snapshot='internal'/>", recorded=recorded, current=number == count - 1,
        )  # fmt: skip


def add_external(daemon: LibvirtDaemon, name: str, count: int) -> None:
    """A machine that is off, with a straight chain of `count` external snapshots: `count` + 1 layers."""
    layers = [_create_image(daemon, f"{name}.qcow2")]
    overlays = _Overlays(daemon, layers[0])
    for number in range(count):
        layers.append(overlays.create(layers[0].with_suffix(f".{snapshot_name(number)}"), backing=layers[-1]))
    domain = define_machine(daemon, name, layers[-1])
    recorded = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE | libvirt.VIR_DOMAIN_XML_INACTIVE)
    for number in range(count):
        overlay = escape(str(layers[number + 1]))
        redefine(
            domain, number, number - 1 if number else None, state="shutoff", memory="no", current=number == count - 1,
            disk="<disk name='vda' snapshot='external' type='file'><driver type='qcow2'/>"
            f"<source file='{overlay}'/></disk>",
            recorded=recorded.replace(escape(str(layers[-1])), escape(str(layers[number]))),
        )  # fmt: skip


def redefine(
    domain: Any, number: int, parent: int | None, *, state: str, memory: str, disk: str, recorded: str, current: bool
) -> None:
    """Let libvirt know of a snapshot; `disk` is what is in its `<disks>`, `recorded` the machine as it was."""
    xml = _SNAPSHOT.format(
        name=snapshot_name(number),
        description=f"Automatic, before the nightly update number {number}",
        state=state,
        parent="" if parent is None else f"<parent><name>{snapshot_name(parent)}</name></parent>",
        created=FIRST_SNAPSHOT + 3600 * number,
        memory=memory,
        disk=disk,
        domain=recorded,
    )
    flags = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE
    domain.snapshotCreateXML(xml, flags | (libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_CURRENT if current else 0))


def snapshot_name(number: int) -> str:
    """What the snapshot of that number is called."""
    return f"auto-{number + 1:05}"


def snapshot_number(name: str) -> int:
    """The number of the snapshot that is called so."""
    return int(name.removeprefix("auto-")) - 1


# qcow2, as in QEMU's docs/interop/qcow2.rst: where the header says what, and an entry of the snapshot table.
_BACKING_OFFSET, _CLUSTER_BITS, _L1_SIZE, _NB_SNAPSHOTS = 8, 20, 36, 60
_SNAPSHOT_ENTRY = struct.Struct(">QIHHIIQII")


def _write_snapshot_table(image: Path, count: int) -> None:
    """Give an empty image `count` internal snapshots, which share its empty L1 table and have 32 MiB of RAM."""
    with image.open("r+b") as file:
        header = file.read(104)
        (l1_size, l1_offset) = struct.unpack_from(">IQ", header, _L1_SIZE)
        (cluster_bits,) = struct.unpack_from(">I", header, _CLUSTER_BITS)
        (virtual_size,) = struct.unpack_from(">Q", header, 24)
        end = file.seek(0, 2)
        start = -(-end >> cluster_bits) << cluster_bits
        table = bytearray()
        for number in range(count):
            identifier, name = str(number + 1).encode(), snapshot_name(number).encode()
            extra = struct.pack(">QQQ", 32 * 2**20, virtual_size, 0)
            table += _SNAPSHOT_ENTRY.pack(
                l1_offset, l1_size, len(identifier), len(name), FIRST_SNAPSHOT + 3600 * number, 0, 0, 0, len(extra)
            )
            table += extra + identifier + name
            table += bytes(-len(table) % 8)
        file.seek(start)
        file.write(table)
        file.seek(_NB_SNAPSHOTS)
        file.write(struct.pack(">IQ", count, start))


class _Overlays:
    """Empty overlays by the thousand: one is made by qemu-img, the others are its copies with another backing file."""

    def __init__(self, daemon: LibvirtDaemon, base: Path) -> None:
        self._daemon = daemon
        template = _create_image(daemon, f"{base.stem}.template", backing=base)
        self._size = template.stat().st_size
        content = template.read_bytes()
        template.unlink()
        cluster = 1 << int.from_bytes(content[_CLUSTER_BITS : _CLUSTER_BITS + 4], "big")
        clusters = ((offset, content[offset : offset + cluster]) for offset in range(0, len(content), cluster))
        self._clusters = [(offset, data.rstrip(b"\0")) for offset, data in clusters if any(data)]

    def create(self, path: Path, backing: Path) -> Path:
        with path.open("w+b") as file:
            for offset, data in self._clusters:
                file.seek(offset)
                file.write(data)
            file.truncate(self._size)
            file.seek(_BACKING_OFFSET)
            (offset,) = struct.unpack(">Q", file.read(8))
            file.write(struct.pack(">I", len(bytes(backing))))
            file.seek(offset)
            file.write(bytes(backing))
        self._daemon.give(path)
        return path
