"""libvirt's QEMU driver inside this process: `qemu:///embed?root=DIR`, no daemon, everything under DIR."""

from __future__ import annotations

import contextlib
import hashlib
import os
import select
import signal
import stat
import xml.etree.ElementTree as ET
from pathlib import Path
from urllib.parse import quote

from snaptree.hosts import reaper
from snaptree.model.errors import SnapTreeError

MAX_ROOT = 50
"""Bytes of a root's path that leave room for the monitor's socket, `lib/qemu/domain-ID-NAME/monitor.sock`, in 107."""

_KILL_SECONDS = 5
_ONLINE_CPUS = Path("/sys/devices/system/cpu/online")

_CONFIGURATION = """\
# Written by SnapTree: QEMU runs as you, and nothing outside this directory is used or changed.
user = "+{uid}"
group = "+{gid}"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
security_default_confined = 0
# No mount namespace: not possible in containers and chroots, and not needed for files of our own.
namespaces = []
cgroup_controllers = []
# As root libvirt would lift the limit on core files, which a root of fewer rights (sudo in a container) may not.
max_core = 0
# QEMU's output goes straight to files: virtlogd belongs to the system's libvirt.
stdio_handler = "file"
"""


def prepare_root(directory: Path) -> str:
    """Make `directory` fit to be the root of an embedded driver and return the URI that opens it.

    Only one process at a time can open it; its QEMU processes outlive that process. A path too long for the
    sockets inside is reached through a short symbolic link. Raises SnapTreeError if it can't be written.
    """
    reaper.start()
    directory = directory.absolute()
    configuration = directory / "etc" / "qemu.conf"
    try:
        configuration.parent.mkdir(parents=True, exist_ok=True)
        configuration.write_text(_CONFIGURATION.format(uid=os.geteuid(), gid=os.getegid()), encoding="utf-8")
        root = _make_root(directory)
    except OSError as error:
        raise SnapTreeError(
            f"Cannot write {error.filename or directory}: {error.strerror}.",
            hint="Choose a directory that you may write.",
            details=str(error),
        ) from error
    return f"qemu:///embed?root={quote(str(root))}"


def place_on_cpus(domain: ET.Element) -> None:
    """Say in a `<domain>` which CPUs it may use, where libvirt can't find out: in roots without /sys.

    libvirt 11 (seen: 11.3) asks /sys for the host's CPUs to place each thread of QEMU, takes the missing answer for
    a failure, and starts nothing: "An error occurred, but the cause is unknown". Elsewhere this does nothing.
    """
    if _ONLINE_CPUS.exists():
        return
    cpus = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    vcpu = domain.find("vcpu")
    if vcpu is None:
        vcpu = ET.SubElement(domain, "vcpu")
        vcpu.text = "1"
    vcpu.set("cpuset", cpus)
    tune = domain.find("cputune")
    if tune is None:
        tune = ET.SubElement(domain, "cputune")
    if tune.find("emulatorpin") is None:
        ET.SubElement(tune, "emulatorpin", {"cpuset": cpus})


def root_path(directory: Path) -> Path:
    """The path under which the driver knows `directory`: itself, or the short link to it if it is too long.

    The same each time, as running machines remember their paths.
    """
    directory = directory.absolute()
    if len(os.fsencode(directory)) <= MAX_ROOT:
        return directory
    return _link_directory() / hashlib.blake2b(os.fsencode(directory), digest_size=8).hexdigest()


def release_root(directory: Path) -> None:
    """Remove what `prepare_root` made outside of `directory`."""
    link = root_path(directory)
    if link != directory.absolute():
        link.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # others are in use
            link.parent.rmdir()


def kill_machines(directory: Path) -> None:
    """End every QEMU whose command line names a file under `directory`, where no libvirt is left to do so."""
    signs = [os.fsencode(root) + b"/" for root in {directory.absolute(), root_path(directory)}]
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        with contextlib.suppress(OSError):  # gone meanwhile, or not ours
            process = os.pidfd_open(int(entry.name))
            try:
                # The pidfd is held: the number can't have been given to another process since.
                program, *arguments = (entry / "cmdline").read_bytes().split(b"\0")
                is_qemu = Path(os.fsdecode(program)).name.startswith("qemu")
                if is_qemu and any(sign in argument for sign in signs for argument in arguments):
                    signal.pidfd_send_signal(process, signal.SIGKILL)
                    select.select([process], [], [], _KILL_SECONDS)
            finally:
                os.close(process)


def _make_root(directory: Path) -> Path:
    root = root_path(directory)
    if root == directory or (root.is_symlink() and root.readlink() == directory):
        return root
    place = root.parent
    place.mkdir(mode=0o700, exist_ok=True)
    found = place.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise SnapTreeError(
            f"{place} is not a directory of yours alone.", hint="Remove it, or use a shorter path for the demo estate."
        )
    root.unlink(missing_ok=True)
    root.symlink_to(directory)
    return root


def _link_directory() -> Path:
    """Where short links are: in a directory with a short path that only this user can write."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if runtime and len(os.fsencode(runtime)) <= MAX_ROOT - len("/snaptree/") - 16 and os.access(runtime, os.W_OK):
        return Path(runtime) / "snaptree"
    return Path("/tmp") / f"snaptree-{os.geteuid()}"  # noqa: S108  made so that nobody else can write it
