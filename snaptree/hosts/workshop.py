"""Making machines with a history, on this computer: what the demo estate and the tests build with.

Nothing here serves real machines: it defines tiny ones without an operating system, writes to their disks from
outside and backdates their snapshots. What users ask for goes through plans instead.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import libvirt
import libvirt_qemu

from snaptree.hosts.connection import Connection
from snaptree.hosts.domain_xml import parse, source_path
from snaptree.hosts.embedded import place_on_cpus
from snaptree.hosts.errors import explained
from snaptree.hosts.snapshot_xml import with_annotations
from snaptree.model.errors import SnapTreeError
from snaptree.model.estate import Annotations, DiskSnapshot

MIB = 1 << 20
_REVERT_SPACING_SECONDS = 1.1
_TOOLS = {"qemu-system-x86_64": "qemu-system-x86", "qemu-img": "qemu-utils", "qemu-io": "qemu-utils"}
"""Programs needed, and the Debian packages they come in."""


def check_tools() -> None:
    """Raise SnapTreeError, naming what to install, unless QEMU and its tools are here."""
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if missing:
        packages = " ".join(sorted({_TOOLS[tool] for tool in missing}))
        raise SnapTreeError(
            f"{' and '.join(missing)} cannot be found: real machines need QEMU for x86_64 and its tools.",
            hint=f"Install them: on Debian and Ubuntu, apt install {packages}.",
        )


def run_tool(*command: str | Path, stdin_fd: int | None = None) -> str:
    """Run one of QEMU's tools and return what it printed. Raises SnapTreeError with what it complained about."""
    done = subprocess.run(  # noqa: S603  the tools' own names, arguments without a shell
        [str(part) for part in command],
        stdin=stdin_fd or subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise SnapTreeError(f"{command[0]} failed: {done.stderr.strip()}.", details=" ".join(map(str, command)))
    return done.stdout


def noise(seed: str, length: int) -> bytes:
    """Bytes that look random and are the same for the same seed."""
    return random.Random(seed).randbytes(length)  # noqa: S311  content to tell apart, nothing secret


def create_image(
    path: Path, size: int | None = None, *, backing: Path | None = None, image_format: str = "qcow2"
) -> None:
    """Create an image of `size` bytes, or an overlay of `backing` (a qcow2 image)."""
    command: list[str | Path] = ["qemu-img", "create", "-q", "-f", image_format]
    if backing is not None:
        command += ["-F", "qcow2", "-b", backing]
    command.append(path)
    if size is not None:
        command.append(str(size))
    run_tool(*command)


@dataclass(frozen=True, slots=True)
class NewDisk:
    """A disk to attach: an image that exists already."""

    image: Path
    target: str = "vda"
    bus: str = "virtio"
    image_format: str = "qcow2"


class Machine:
    """One machine, by the name it has on its host. All calls block."""

    def __init__(self, connection: Connection, name: str) -> None:
        self._connection = connection
        self.name = name
        self._last_revert = -_REVERT_SPACING_SECONDS
        with explained(f"looking for {name}"):
            self.handle: Any = connection.handle.lookupByName(name)

    @classmethod
    def define(
        cls, connection: Connection, name: str, disks: Sequence[NewDisk], *, memory: int = 16 * MIB, title: str = ""
    ) -> Machine:
        """Define a machine for software emulation, turned off."""
        check_tools()
        with explained(f"defining {name}"):
            connection.handle.defineXML(_domain_xml(name, disks, memory, title))
        return cls(connection, name)

    def start(self, *, paused: bool = False) -> None:
        """Turn it on."""
        with explained(f"starting {self.name}"):
            self.handle.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED if paused else 0)

    def stop(self) -> None:
        """Pull the plug, if it is on."""
        with explained(f"stopping {self.name}"):
            if self.handle.isActive():
                self.handle.destroy()

    def give_memory(self, size: int) -> None:
        """Let it have so many bytes of RAM from its next start on."""
        with explained(f"giving {self.name} memory"):
            for what in (libvirt.VIR_DOMAIN_MEM_MAXIMUM, 0):
                self.handle.setMemoryFlags(size // 1024, libvirt.VIR_DOMAIN_AFFECT_CONFIG | what)

    def remove(self) -> None:
        """Turn it off and forget it with everything libvirt knows of it; its files stay."""
        self.stop()
        with explained(f"removing {self.name}"):
            self.handle.undefineFlags(
                libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
                | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
                | libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
            )

    @property
    def is_active(self) -> bool:
        """Whether a QEMU process runs for it."""
        with explained(f"looking at {self.name}"):
            return bool(self.handle.isActive())

    # Its disks

    def active_images(self) -> dict[str, Path]:
        """The image that takes the writes now, by target."""
        return {target: Path(path) for target, (path, _format, _alias) in self._disks().items()}

    def write(self, target: str, offset: int, data: bytes, length: int | None = None) -> None:
        """Write `data` to a disk at `offset`, over and over until `length` bytes are written. Works on and off."""
        length = len(data) if length is None else length
        path, image_format, alias = self._disks()[target]
        pattern = os.memfd_create("snaptree-pattern")
        try:
            os.write(pattern, data)
            # QEMU reads it from this process: no file to clean up, and no path with spaces that qemu-io can't take.
            command = f"write -q -s /proc/{os.getpid()}/fd/{pattern} {offset} {length}"
            if alias:
                # What qemu-io says goes to QEMU's log there; the monitor only complains of unknown devices.
                said = self.monitor(f'qemu-io -d {_backend(alias)} "{command}"').strip()
            else:
                said = run_tool("qemu-io", "-f", image_format, "-c", command, path)
        finally:
            os.close(pattern)
        if said:
            raise SnapTreeError(f"Writing to {target} of {self.name} failed: {said}.", details=command)

    def flush(self) -> None:
        """Let what was written reach the image files; nothing to do when it is off."""
        for _path, _format, alias in self._disks().values():
            if alias:
                self.monitor(f'qemu-io -d {_backend(alias)} "flush"')

    def monitor(self, command: str) -> str:
        """Say something to QEMU's human monitor and return its answer."""
        with explained(f"talking to the QEMU of {self.name}"):
            answer: str = libvirt_qemu.qemuMonitorCommand(
                self.handle, command, libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP
            )
        return answer

    def wait_for_memory(self, address: int, value: int, *, seconds: float = 30) -> None:
        """Wait until the guest has put a 32-bit `value` at a physical `address`: its way to say that it is ready."""
        deadline = time.monotonic() + seconds
        while f"0x{value:08x}" not in self.monitor(f"xp /1wx {address:#x}"):
            if time.monotonic() > deadline:
                raise SnapTreeError(f"The guest of {self.name} did not start within {seconds:.0f} s.")
            time.sleep(0.05)

    def _disks(self) -> dict[str, tuple[str, str, str]]:
        """(path, format, alias) by target; the alias is empty when it is off."""
        with explained(f"reading the disks of {self.name}"):
            root = parse(self.handle.XMLDesc())
        disks = {}
        for disk in root.findall("devices/disk"):
            target, driver, alias = disk.find("target"), disk.find("driver"), disk.find("alias")
            path = source_path(disk)
            if target is not None and path is not None:
                disks[target.get("dev", "")] = (
                    path,
                    "raw" if driver is None else driver.get("type", "raw"),
                    "" if alias is None or not self.is_active else alias.get("name", ""),
                )
        return disks

    # Its snapshots

    def snapshot_names(self) -> list[str]:
        """All its snapshots, parents before children."""
        with explained(f"listing the snapshots of {self.name}"):
            return [
                snapshot.getName()
                for snapshot in self.handle.listAllSnapshots(libvirt.VIR_DOMAIN_SNAPSHOT_LIST_TOPOLOGICAL)
            ]

    def take(self, name: str, how: DiskSnapshot, *, note: str = "", memory_file: Path | None = None) -> None:
        """Take a snapshot of all disks. Internal ones hold the RAM when it runs; external ones in `memory_file`."""
        root = ET.Element("domainsnapshot")
        ET.SubElement(root, "name").text = name
        ET.SubElement(root, "description").text = note
        flags = 0
        if how is DiskSnapshot.EXTERNAL:
            if memory_file is not None:
                ET.SubElement(root, "memory", {"snapshot": "external", "file": str(memory_file)})
                flags = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_LIVE
            else:
                flags = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
        disks = ET.SubElement(root, "disks")
        for target in self._disks():
            ET.SubElement(disks, "disk", {"name": target, "snapshot": how.value})
        with explained(f"taking the snapshot {name} of {self.name}"):
            self.handle.snapshotCreateXML(ET.tostring(root, encoding="unicode"), flags)

    def take_external(self, name: str, *, note: str = "", memory_file: Path | None = None) -> None:
        """Freeze the active layers and put overlays on them."""
        self.take(name, DiskSnapshot.EXTERNAL, note=note, memory_file=memory_file)

    def take_internal(self, name: str, *, note: str = "") -> None:
        """Keep the state inside the qcow2 images, with the RAM when it runs."""
        self.take(name, DiskSnapshot.INTERNAL, note=note)

    def revert(self, name: str) -> None:
        """Go back to a snapshot. To an external one before libvirt 9.9 by hand, which needs the machine off."""
        with explained(f"reverting {self.name} to {name}"):
            snapshot = self.handle.snapshotLookupByName(name)
            external = parse(snapshot.getXMLDesc()).find("disks/disk[@snapshot='external']") is not None
            if external and not self._connection.host.external_snapshots:
                self._fork_by_hand(snapshot)
            else:
                if external:
                    self._space_out_reverts()
                self.handle.revertToSnapshot(snapshot)

    def _space_out_reverts(self) -> None:
        """libvirt names new overlays after the second, and cuts the old suffix: two in one second collide."""
        since = time.monotonic() - self._last_revert
        time.sleep(max(0.0, _REVERT_SPACING_SECONDS - since))
        self._last_revert = time.monotonic()

    def _fork_by_hand(self, snapshot: Any) -> None:
        """The way to an external revert before 9.9 (LIBVIRT.md, 9): new overlays, the old definition, CURRENT."""
        left_behind = self.active_images()
        xml = snapshot.getXMLDesc(libvirt.VIR_DOMAIN_SNAPSHOT_XML_SECURE)
        domain = parse(xml).find("domain")
        if domain is None or self.is_active:
            raise SnapTreeError(f"{self.name} must be off to go back to {snapshot.getName()} by hand.")
        for disk in domain.findall("devices/disk"):
            source, frozen = disk.find("source"), source_path(disk)
            if source is None or frozen is None:
                continue
            overlay = _unused(Path(frozen))
            create_image(overlay, backing=Path(frozen))
            source.set("file", str(overlay))
            for backing in disk.findall("backingStore"):
                disk.remove(backing)
        self._connection.handle.defineXML(ET.tostring(domain, encoding="unicode"))
        self.handle.snapshotCreateXML(
            xml, libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_CURRENT
        )
        for image in left_behind.values():
            image.unlink()  # as libvirt does: what came after the last snapshot is dropped

    def rewrite(self, name: str, *, created: int, annotations: Annotations | None = None) -> None:
        """Change when a snapshot was taken (seconds since 1970) and what SnapTree noted about it."""
        with explained(f"backdating {name} of {self.name}"):
            snapshot = self.handle.snapshotLookupByName(name)
            xml = snapshot.getXMLDesc(libvirt.VIR_DOMAIN_SNAPSHOT_XML_SECURE)
            if annotations is not None:
                xml = with_annotations(xml, annotations)
            root = parse(xml)
            element = root.find("creationTime")
            assert element is not None, "libvirt always says when"
            element.text = str(created)
            # Never CURRENT: it would drop <revertDisks> (LIBVIRT.md, 9). The current one stays current without.
            self.handle.snapshotCreateXML(
                ET.tostring(root, encoding="unicode"), libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE
            )


def list_machines(connection: Connection) -> list[Machine]:
    """All machines of a host."""
    with explained("listing the virtual machines"):
        names = [domain.name() for domain in connection.handle.listAllDomains()]
    return [Machine(connection, name) for name in names]


def _backend(alias: str) -> str:
    """The QOM path under which the monitor's qemu-io finds a disk."""
    path = f"/machine/peripheral/{alias}"
    return f"{path}/virtio-backend" if alias.startswith("virtio-disk") else path


def _unused(image: Path) -> Path:
    """A name for one more overlay of `image`."""
    number = 1
    while (overlay := image.with_name(f"{image.name}.fork{number}")).exists():
        number += 1
    return overlay


def _domain_xml(name: str, disks: Sequence[NewDisk], memory: int, title: str) -> str:
    root = ET.Element("domain", {"type": "qemu"})
    ET.SubElement(root, "name").text = name
    if title:
        ET.SubElement(root, "title").text = title
    ET.SubElement(root, "memory", {"unit": "bytes"}).text = str(memory)
    ET.SubElement(root, "vcpu").text = "1"
    os_element = ET.SubElement(root, "os")
    ET.SubElement(os_element, "type", {"arch": "x86_64", "machine": "pc"}).text = "hvm"
    features = ET.SubElement(root, "features")
    ET.SubElement(features, "acpi")
    devices = ET.SubElement(root, "devices")
    ET.SubElement(devices, "emulator").text = shutil.which("qemu-system-x86_64")
    for new in disks:
        disk = ET.SubElement(devices, "disk", {"type": "file", "device": "disk"})
        ET.SubElement(disk, "driver", {"name": "qemu", "type": new.image_format, "discard": "unmap"})
        ET.SubElement(disk, "source", {"file": str(new.image)})
        ET.SubElement(disk, "target", {"dev": new.target, "bus": new.bus})
    ET.SubElement(devices, "controller", {"type": "usb", "model": "none"})
    ET.SubElement(devices, "memballoon", {"model": "none"})
    video = ET.SubElement(devices, "video")
    ET.SubElement(video, "model", {"type": "vga", "vram": "1024"})
    place_on_cpus(root)
    return ET.tostring(root, encoding="unicode")
