"""A real Linux guest with a real guest agent, under software emulation: it boots in about five seconds.

Debian's kernel, busybox and qemu-ga (packaging/guest-packages fetches them) in an initramfs. The disk is an ext4, to
which a writer appends rising numbers, each of them synced: what a snapshot holds can be told from them.
"""

from __future__ import annotations

import gzip
import json
import lzma
import os
import re
import shutil
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import libvirt_qemu

from tests.kit.machines import MIB, Machine, RealHost, run_tool

DISK_BYTES = 24 * MIB
MEMORY_BYTES = 128 * MIB
BOOT_SECONDS = 120
"""A computer that is busy with other tests is slow; left alone, it takes five."""
ANSWER_SECONDS = 60

_CHECKOUT = Path(__file__).parents[2]
_ENVIRONMENT = dict(os.environ)
"""Before tests move the user's cache elsewhere."""
_MODULES = (
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_blk",
    "virtio_console",
)
_AGENT = "name='org.qemu.guest_agent.0' state='connected'"
_PORT = "org.snaptree.shell"
_INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /run
for module in MODULES; do [ ! -e "/modules/$module.ko" ] || insmod "/modules/$module.ko"; done
until [ -e /dev/vda ] && grep -qs PORT /sys/class/virtio-ports/*/name; do sleep 0.02; done
mount -t ext4 /dev/vda /disk
for port in /sys/class/virtio-ports/*; do
    case $(cat "$port/name") in
    PORT) shell=/dev/${port##*/} ;;
    *) agent=/dev/${port##*/} ;;
    esac
done
start_agent() { qemu-ga -m virtio-serial -p "$agent" -t /run >/run/agent 2>&1 & }
write() {
    count=0
    while count=$((count + 1)); do
        echo $count >>/disk/counter
        sync /disk/counter
        echo $count >/run/next
        mv /run/next /run/count
    done
}
start_agent
write &
exec 3<>"$shell"
while :; do
    if read -r command <&3; then
        { eval "$command"; status=$?; echo; echo "== $status"; } >&3 2>&1
    else
        sleep 0.02 # nobody is connected
    fi
done
"""


@cache
def packages() -> Path:
    """The unpacked packages. Fails with what the script says if they can't be had."""
    done = subprocess.run(
        [_CHECKOUT / "packaging" / "guest-packages"], env=_ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"no packages for a real guest: {done.stderr}"
    return Path(done.stdout.strip())


@dataclass
class Guest(Machine):
    """A machine with a Linux in it."""

    def shell(self, command: str) -> str:
        """Run a command in the guest, as its root, and return what it printed. Fails the test if it fails."""
        with socket.socket(socket.AF_UNIX) as port:
            port.settimeout(ANSWER_SECONDS)
            port.connect(str(self.directory / "shell"))
            port.sendall(f"{command}\n".encode())
            said = ""
            while (end := re.search(r"\n== (\d+)\r?\n", said)) is None:
                part = port.recv(4096)
                assert part, f"{command}: the guest hung up after {said!r}"
                said += part.decode()
        assert end[1] == "0", f"{command}: {said}"
        return said[: end.start()].strip()

    def count(self) -> int:
        """The last number that the writer has synced."""
        return int(self.shell("cat /run/count 2>/dev/null || echo 0"))

    def wait_for_writes(self, more: int = 2) -> None:
        """Until the writer has gone on."""
        enough = self.count() + more
        wait_until(lambda: self.count() >= enough, "the writer does not go on")

    def agent(self, command: str) -> Any:
        """Ask the guest agent."""
        answer = libvirt_qemu.qemuAgentCommand(self.handle, json.dumps({"execute": command}), ANSWER_SECONDS, 0)
        return json.loads(answer)["return"]

    @property
    def is_frozen(self) -> bool:
        """Whether its file systems are frozen, as the agent sees it."""
        return bool(self.agent("guest-fsfreeze-status") == "frozen")

    def stop_agent(self) -> None:
        """Kill the agent, and wait until libvirt knows."""
        self.shell("kill -9 $(pidof qemu-ga)")
        wait_until(lambda: _AGENT not in self.handle.XMLDesc(), "the agent is still there")

    def start_agent(self) -> None:
        """Start it again, and wait until libvirt knows."""
        self.shell("start_agent")
        wait_until(lambda: _AGENT in self.handle.XMLDesc(), "no guest agent")


def wait_until(holds: Callable[[], bool], problem: str) -> None:
    """Ask again until it holds."""
    deadline = time.monotonic() + ANSWER_SECONDS
    while not holds():
        assert time.monotonic() < deadline, problem
        time.sleep(0.02)


def make_guest(host: RealHost, name: str = "guest") -> Guest:
    """Boot a guest on a host, and wait until its agent answers and its writer writes."""
    directory = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=host.directory))
    directory.chmod(0o755)
    host.give(directory)
    kernel = directory / "kernel"
    shutil.copy(_the_only("**/vmlinuz*"), kernel)
    initramfs = directory / "initramfs"
    initramfs.write_bytes(gzip.compress(_archive(), 1))
    disk = _make_disk(directory)
    for path in (kernel, initramfs, disk):
        path.chmod(0o644)
        host.give(path)
    domain = host.connection.handle.defineXML(_guest_xml(name, directory))
    guest = Guest(host.connection, name, domain.UUIDString(), directory)
    domain.create()
    deadline = time.monotonic() + BOOT_SECONDS
    while _AGENT not in domain.XMLDesc():
        has_failed = not domain.isActive() or time.monotonic() > deadline
        assert not has_failed, (directory / "console").read_text(errors="replace")
        time.sleep(0.05)
    guest.wait_for_writes()
    return guest


def needs_recovery(image: Path) -> bool:
    """Whether the ext4 in a raw image was in use: mounted, its journal must be replayed (INCOMPAT_RECOVER)."""
    with image.open("rb") as file:
        file.seek(1024)
        superblock = file.read(1024)
    assert superblock[56:58] == b"\x53\xef", "no ext4"
    return bool(int.from_bytes(superblock[96:100], "little") & 0x4)


def check_clean(image: Path) -> None:
    """Fail unless the ext4 in a raw image has nothing to mend."""
    run_tool(_sbin("e2fsck"), "-fn", str(image))


def numbers_in(image: Path) -> list[int]:
    """What the writer had written, as a raw image has it, once its journal was replayed."""
    run_tool(_sbin("e2fsck"), "-fy", str(image), accepting=(0, 1))
    return [int(line) for line in run_tool(_sbin("debugfs"), "-R", "cat /counter", str(image)).split()]


def raw_copy(layer: Path, to: Path) -> Path:
    """What a guest would read from a layer, as a raw image."""
    run_tool("qemu-img", "convert", "-U", "-O", "raw", str(layer), str(to))
    return to


def _make_disk(directory: Path) -> Path:
    raw, disk = directory / "disk.raw", directory / "disk.qcow2"
    raw.touch()
    os.truncate(raw, DISK_BYTES)
    run_tool(_sbin("mkfs.ext4"), "-q", "-O", "^resize_inode", "-m", "0", str(raw))
    run_tool("qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(disk))
    raw.unlink()
    return disk


def _sbin(program: str) -> str:
    found = shutil.which(program, path=os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin")))
    assert found is not None, f"{program} is not installed (e2fsprogs)"
    return found


def _guest_xml(name: str, directory: Path) -> str:
    def path(file: str) -> str:
        return quoteattr(str(directory / file))

    return f"""
        <domain type='qemu'>
          <name>{name}</name><memory>{MEMORY_BYTES // 1024}</memory><vcpu>1</vcpu>
          <os>
            <type arch='x86_64' machine='pc'>hvm</type>
            <kernel>{directory / "kernel"}</kernel><initrd>{directory / "initramfs"}</initrd>
            <cmdline>console=ttyS0 quiet panic=-1 mitigations=off tsc=unstable</cmdline>
          </os>
          <features><acpi/></features>
          <devices>
            <controller type='usb' model='none'/><memballoon model='none'/>
            <disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='unsafe'/>
              <source file={path("disk.qcow2")}/><target dev='vda' bus='virtio'/></disk>
            <serial type='file'><source path={path("console")}/></serial>
            <channel type='unix'><source mode='bind' path={path("agent")}/>
              <target type='virtio' name='org.qemu.guest_agent.0'/></channel>
            <channel type='unix'><source mode='bind' path={path("shell")}/>
              <target type='virtio' name='{_PORT}'/></channel>
          </devices>
        </domain>"""


# The initramfs


def _the_only(pattern: str) -> Path:
    (found,) = packages().glob(pattern)
    return found


@cache
def _archive() -> bytes:
    """An initramfs in cpio's "newc" format (Linux: Documentation/driver-api/early-userspace/buffer-format.rst)."""
    files: dict[str, tuple[int, bytes]] = {
        "init": (0o755, _INIT.replace("MODULES", " ".join(_MODULES)).replace("PORT", _PORT).encode()),
        "bin/busybox": (0o755, _the_only("**/bin/busybox").read_bytes()),
    }
    agent = _the_only("**/sbin/qemu-ga")
    files["bin/qemu-ga"] = 0o755, agent.read_bytes()
    for library in _libraries(agent):
        files[str(library).lstrip("/")] = 0o755, library.read_bytes()
    for module in _MODULES:
        for path in packages().glob(f"**/{module}.ko*"):  # or it is built in
            data = path.read_bytes()
            files[f"modules/{module}.ko"] = 0o644, lzma.decompress(data) if path.suffix == ".xz" else data
    directories = {"proc", "sys", "dev", "run", "disk", "var", "var/run", "etc"}
    for name in files:
        directories |= {str(parent) for parent in Path(name).parents if str(parent) != "."}
    entries = [(name, stat.S_IFDIR | 0o755, b"") for name in sorted(directories)]
    entries += [(name, stat.S_IFREG | mode, data) for name, (mode, data) in files.items()]
    body = b"".join(_member(number, *entry) for number, entry in enumerate(entries, start=1))
    return body + _member(0, "TRAILER!!!", 0, b"")


def _member(number: int, name: str, mode: int, data: bytes) -> bytes:
    fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
    return _padded(head) + _padded(data)


def _padded(part: bytes) -> bytes:
    return part + bytes(-len(part) % 4)


def _libraries(program: Path) -> Iterator[Path]:
    """This computer's libraries for a program of the same release: QEMU itself needs those of its guest agent."""
    said = run_tool("ldd", str(program))
    assert "not found" not in said, said
    for path in re.findall(r"(/\S+) \(0x", said):
        yield Path(path)
