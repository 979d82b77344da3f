"""Real, tiny virtual machines on libvirt's embedded QEMU driver, and what every snapshot of them holds.

A process can have one embedded driver, so all tests of a run share one host; each test gets machines of its own in a
directory of its own, and they are gone after it.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import shutil
import subprocess
import tempfile
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape, quoteattr

import libvirt
import libvirt_qemu

from snaptree.hosts.connection import Connection
from snaptree.hosts.domain_xml import parse, read_definition
from snaptree.hosts.embedded import kill_machines, place_on_cpus, prepare_root, release_root
from snaptree.hosts.reading import read_tree
from snaptree.hosts.running import run_plan
from snaptree.hosts.situation import read_situation
from snaptree.images.files import ImageReader
from snaptree.model.estate import DiskSnapshot
from snaptree.model.tree import SnapshotTree
from snaptree.plans import rules
from snaptree.plans.draft import Draft
from snaptree.plans.intention import Delete, Intention, places_of
from snaptree.plans.operation import Operation
from snaptree.plans.plan import Action, DeleteSnapshot, Plan
from snaptree.plans.planner import make_plan

MIB = 2**20
DISK_SIZE = 8 * MIB
NOW = "Now"
"""The key of the running state among `Machine.contents`."""

_numbers = itertools.count(1)


class RealHost:
    """A host on which tests make machines: in `directory`, over `connection`."""

    directory: Path
    uri: str

    @property
    def connection(self) -> Connection:
        """The connection that the kit uses."""
        raise NotImplementedError

    def give(self, path: Path) -> None:
        """Let this host's QEMU write to a file that the test made."""

    def make_machine(
        self,
        *,
        name: str = "",
        disks: Sequence[str] = ("qcow2",),
        running: bool = True,
        extra_devices: str = "",
        backing: Path | None = None,
        directory: Path | None = None,
    ) -> Machine:
        """Define a machine with a disk of 8 MiB for each format in `disks` (vda, vdb, ...), and start it.

        `backing` lets its first disk stand on an image. Its files are in a new directory unless one is given.
        """
        name = name or f"vm{next(_numbers)}"
        if directory is None:
            directory = Path(tempfile.mkdtemp(prefix=f"{name}-"[:40], dir=self.directory))
            directory.chmod(0o755)
            self.give(directory)
        paths = []
        for number, image_format in enumerate(disks):
            path = directory / f"disk{number}.{image_format}"
            make_image(path, image_format, backing if number == 0 else None)
            self.give(path)
            paths.append((path, image_format))
        domain = self.connection.handle.defineXML(machine_xml(name, paths, extra_devices))
        machine = Machine(self.connection, name, domain.UUIDString(), directory)
        if running:
            domain.create()
        return machine


class EmbeddedHost(RealHost):
    """A host of its own inside this process: nothing outside its directory is used."""

    def __init__(self) -> None:
        # Not below pytest's directory: sockets in it need a short path.
        self.directory = Path(tempfile.mkdtemp(prefix="snaptree-test-"))
        self.directory.chmod(0o755)
        self.uri = prepare_root(self.directory)
        self._connection = Connection(self.uri)
        self._connection.open()

    @property
    def connection(self) -> Connection:
        """Open as long as the host is."""
        return self._connection

    def close(self) -> None:
        """Stop every machine and remove everything."""
        for domain in self.connection.handle.listAllDomains():
            remove(domain)
        self.connection.close()
        kill_machines(self.directory)
        release_root(self.directory)
        shutil.rmtree(self.directory)


def make_image(path: Path, image_format: str = "qcow2", backing: Path | None = None) -> Path:
    """Make an empty image of 8 MiB, or an overlay on `backing`."""
    based = [] if backing is None else ["-b", str(backing), "-F", "raw" if backing.suffix == ".raw" else "qcow2"]
    size = [] if backing is not None else [str(DISK_SIZE)]
    run_tool("qemu-img", "create", "-q", "-f", image_format, *based, str(path), *size)
    return path


def machine_xml(name: str, disks: Sequence[tuple[Path, str]], extra_devices: str = "") -> str:
    """A machine that only waits in its BIOS. Its disks are not flushed: what counts is what QEMU reads back."""
    devices = "".join(
        f"<disk type='file' device='disk'><driver name='qemu' type='{image_format}' cache='unsafe'/>"
        f"<source file={quoteattr(str(path))}/><target dev='vd{chr(ord('a') + number)}' bus='virtio'/></disk>"
        for number, (path, image_format) in enumerate(disks)
    )
    domain = ET.fromstring(f"""
        <domain type='qemu'>
          <name>{escape(name)}</name><memory unit='MiB'>8</memory><vcpu>1</vcpu>
          <os><type arch='x86_64' machine='pc'>hvm</type></os>
          <devices><controller type='usb' model='none'/><memballoon model='none'/>{devices}{extra_devices}</devices>
        </domain>""")
    place_on_cpus(domain)
    return ET.tostring(domain, encoding="unicode")


def remove(domain: Any) -> None:
    """Stop and undefine a machine, whatever state it is in."""
    with _accepting(libvirt.VIR_ERR_NO_DOMAIN):
        with _accepting(libvirt.VIR_ERR_OPERATION_INVALID):  # its QEMU may have ended by itself
            domain.destroy()
        if domain.isPersistent():
            domain.undefineFlags(
                libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
                | libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
                | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
                | libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM
            )


@contextlib.contextmanager
def _accepting(code: int) -> Iterator[None]:
    """Let one kind of libvirt error pass."""
    try:
        yield
    except libvirt.libvirtError as error:
        if error.get_error_code() != code:
            raise


def run_tool(*command: str, accepting: Sequence[int] = (0,)) -> str:
    """Run one of QEMU's tools and return what it printed; its own words if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in accepting, f"{' '.join(command)}: {done.stdout}{done.stderr}"
    return done.stdout


def _is_qcow2(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"QFI\xfb"


@dataclass
class Machine:
    """A real machine in a test."""

    connection: Connection
    name: str
    uuid: str
    directory: Path

    @property
    def handle(self) -> Any:
        """Libvirt's object, for doing what virsh would do behind SnapTree's back."""
        return self.connection.domain(self.uuid)

    @property
    def is_running(self) -> bool:
        """Whether its QEMU runs."""
        return bool(self.handle.isActive())

    def tree(self) -> SnapshotTree:
        """Its snapshots."""
        return read_tree(self.connection, self.uuid)

    def active_layers(self) -> dict[str, Path]:
        """The image that each disk writes to."""
        definition = read_definition(parse(self.handle.XMLDesc()))
        return {target: Path(layers[0][0]) for target, layers in definition.chains}

    # Doing what SnapTree does

    def plan(self, intention: Intention) -> Plan:
        """Plan from a fresh reading."""
        return make_plan(intention, read_situation(self.connection, self.uuid, places_of(intention)))

    def spoken(self, intention: Intention) -> set[str]:
        """The rules that speak of a plan; of a delete, those about libvirt's own, whichever way the plan takes."""
        if not isinstance(intention, Delete):
            plan = self.plan(intention)
            return {finding.rule for finding in plan.refusals or plan.warnings}
        (name,) = intention.snapshots
        situation = read_situation(self.connection, self.uuid)
        own = DeleteSnapshot(name, situation.tree.children(name), merges=True)
        case = Draft(Action.DELETE, situation).case(own, batch=intention.snapshots)
        return {finding.rule for finding in (*rules.refusals(case), *rules.warnings(case))}

    def change(self, intention: Intention) -> Operation:
        """Plan and run; fails the test if the plan is refused or does not end well."""
        plan = self.plan(intention)
        assert not plan.is_refused, plan.refusals
        operation = run_plan(self.connection, plan)
        assert operation.error is None, f"{operation.error} {operation.error.details}"
        return operation

    # Doing what virsh does

    def virsh_take(self, name: str, *, flags: int = 0, memory: str = "", disks: str = "", note: str = "") -> None:
        """Take a snapshot behind SnapTree's back."""
        self.handle.snapshotCreateXML(
            f"<domainsnapshot><name>{name}</name><description>{note}</description>{memory}{disks}</domainsnapshot>",
            flags,
        )

    def virsh_take_disk_only(self, name: str) -> None:
        """Take an external snapshot of the disks behind SnapTree's back."""
        self.virsh_take(name, flags=libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY)

    # What the disks hold

    def write(
        self, seed: int, *, target: str = "vda", offset: int = 0, length: int = 64 * 1024, zeros: bool = False
    ) -> None:
        """Fill a part of a disk with a byte that `seed` chooses: through QEMU if it runs, else into the image.

        `zeros` lets it read as zeros without having any.
        """
        command = f"write {'-z' if zeros else f'-P {seed % 255 + 1}'} {offset} {length}"
        if self.is_running:
            self._qemu_io(target, command)
            self._qemu_io(target, "flush")
        else:
            path = self.active_layers()[target]
            run_tool("qemu-io", "-t", "unsafe", "-f", self._format(target), "-c", command, str(path))

    def _qemu_io(self, target: str, command: str) -> None:
        number = ord(target[-1]) - ord("a")
        device = f"/machine/peripheral/virtio-disk{number}/virtio-backend"
        answer = libvirt_qemu.qemuMonitorCommand(
            self.handle, f'qemu-io -d {device} "{command}"', libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP
        )
        assert "rror" not in answer, answer

    def _flush(self) -> None:
        """Let QEMU write down all it holds. One that is paused may have let go of its images: it does what it can."""
        if self.handle.state()[0] == libvirt.VIR_DOMAIN_PAUSED:
            libvirt_qemu.qemuMonitorCommand(self.handle, '{"execute": "stop"}', 0)
        else:
            for target in self.active_layers():
                self._qemu_io(target, "flush")

    def _format(self, target: str) -> str:
        definition = read_definition(parse(self.handle.XMLDesc()))
        return next(disk.format for disk in definition.disks if disk.target == target)

    def contents(self) -> dict[str, dict[str, str]]:
        """The oracle: a digest of every disk of every snapshot and of *Now*, as QEMU's own tool reads them."""
        if self.is_running:
            self._flush()
        found: dict[str, dict[str, str]] = {
            NOW: {target: digest(path, self._format(target)) for target, path in self.active_layers().items()}
        }
        for snapshot in self.tree():
            found[snapshot.name] = {
                disk.target: digest(
                    Path(disk.frozen),
                    disk.frozen_format,
                    snapshot.name if disk.how is DiskSnapshot.INTERNAL else None,
                )
                for disk in snapshot.disks
                if disk.how in (DiskSnapshot.INTERNAL, DiskSnapshot.EXTERNAL) and disk.frozen
            }
        return found

    def check_images(self, *, leaks: bool = False) -> None:
        """Fail unless QEMU finds every image of this machine consistent.

        One that was killed leaves `leaks`: clusters that belong to nobody.
        """
        for path in self.directory.iterdir():
            if _is_qcow2(path):
                run_tool("qemu-img", "check", "-q", "-U", "-f", "qcow2", str(path), accepting=(0, 3) if leaks else (0,))


_digests: dict[tuple[str | None, object], str] = {}
"""By internal snapshot, and the images with their times of change."""


def wait_for_the_next_second() -> None:
    """libvirt names the layer of an external revert after the second: two in one would be one."""
    second = int(time.time())
    while int(time.time()) == second:
        threading.Event().wait(0.02)


_DIGEST_BLOCK = 64 * 1024


def digest(path: Path, image_format: str, internal_snapshot: str | None = None) -> str:
    """SHA-256 of what a guest would read from an image, or from an internal snapshot in it.

    Images that did not change are not read again.
    """
    chain = ImageReader().read_chain(str(path), image_format)
    stats = [(Path(image.path).stat(), image.format) for image in chain.images if not image.is_missing]
    key = (
        internal_snapshot,
        tuple(
            (each.st_dev, each.st_ino, each.st_mtime_ns, each.st_ctime_ns, each.st_size, each.st_blocks, given)
            for each, given in stats
        ),
    )
    if key not in _digests:
        _digests[key] = _read_digest(path, image_format, internal_snapshot)
    return _digests[key]


def _read_digest(path: Path, image_format: str, internal_snapshot: str | None) -> str:
    descriptor, copy = tempfile.mkstemp(prefix="snaptree-digest-")
    os.close(descriptor)
    try:
        what = [] if internal_snapshot is None else ["-l", f"snapshot.name={internal_snapshot}"]
        run_tool("qemu-img", "convert", "-U", "-f", image_format, "-O", "raw", *what, str(path), copy)
        return digest_of_raw(Path(copy))
    finally:
        Path(copy).unlink()


def digest_of_raw(path: Path) -> str:
    """SHA-256 of a raw image: of its size, and of each block that is not all zeros with its place.

    Holes are zeros, and are not read: most of a test's disk is one.
    """
    found = hashlib.sha256()
    zeros = bytes(_DIGEST_BLOCK)
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        found.update(b"%d" % size)
        place = 0
        while place < size:
            try:
                data = os.lseek(file.fileno(), place, os.SEEK_DATA)
            except OSError:  # ENXIO: there is none any more
                break
            place = max(place, data // _DIGEST_BLOCK * _DIGEST_BLOCK)
            hole = os.lseek(file.fileno(), data, os.SEEK_HOLE)
            while place < hole:
                block = os.pread(file.fileno(), _DIGEST_BLOCK, place)
                if block != zeros[: len(block)]:
                    found.update(b"@%d:" % place)
                    found.update(block)
                place += _DIGEST_BLOCK
    return found.hexdigest()


def unchanged(before: Mapping[str, object], after: Mapping[str, object], *gone: str) -> bool:
    """Whether everything but what was meant to go is still there, with the same content."""
    return {name: content for name, content in before.items() if name not in gone} == dict(after)
