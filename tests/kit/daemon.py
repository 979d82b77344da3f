"""A libvirt daemon of the tests' own, with which connections are lost and regained for real.

It always runs in session mode without privileges: as the user who runs the tests, or as `nobody` for root. A daemon
run by root can't be kept apart from the computer's own machines: /var/lib/libvirt and /run/libvirt are compiled into
it, and only its sockets can be moved. Every XDG directory is private, so it finds no machines but those of the test.

Seen to work, as root and as an ordinary user: libvirtd 9.0 (Debian 12) and 11.3 (Debian 13), without /sys as well.

Connect by `qemu+unix:///session?socket=...` only: in a process that has opened the embedded driver, as these tests'
has, `qemu:///session` would end up there.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

from snaptree.hosts import reaper
from snaptree.hosts.connection import Connection
from snaptree.hosts.embedded import kill_machines
from tests.kit.machines import RealHost

START_SECONDS = 30

_CAPABILITIES = Path("cache", "libvirt", "qemu", "cache", "capabilities")
"""Where a daemon notes what each QEMU can do, after starting it to find out: seconds of work, each time the same."""


class _Capabilities:
    """What the first daemon of a run found out, for those after it."""

    def __init__(self) -> None:
        self._kept: tempfile.TemporaryDirectory[str] | None = None

    def keep(self, home: Path) -> None:
        """Keep what a daemon noted, if nobody did before."""
        if self._kept is None and (home / _CAPABILITIES).is_dir():
            self._kept = tempfile.TemporaryDirectory(prefix="snaptree-capabilities-")
            shutil.copytree(home / _CAPABILITIES, self._kept.name, dirs_exist_ok=True)

    def hand_on(self, home: Path) -> list[Path]:
        """Let a new daemon know. Returns what was made for that."""
        if self._kept is None:
            return []
        shutil.copytree(self._kept.name, home / _CAPABILITIES)
        parents = [home / parent for parent in _CAPABILITIES.parents if parent != Path()]
        return [*parents, home / _CAPABILITIES, *(home / _CAPABILITIES).iterdir()]


_capabilities = _Capabilities()


class LibvirtDaemon(RealHost):
    """A daemon that runs until it is stopped or killed; its machines outlive it. Can be started again."""

    def __init__(self) -> None:
        # The reaper also inherits the daemon's QEMU processes: libvirt need not wait for a slow init.
        reaper.start()
        self.directory = Path(tempfile.mkdtemp(prefix="snaptree-daemon-"))
        self.directory.chmod(0o755)
        self._user = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
        self._environment = self._make_home()
        program = find_daemon()
        assert program is not None, "neither libvirtd nor virtqemud is installed"
        self._program = program
        # The socket is named after the daemon: libvirtd's "libvirt-sock", virtqemud's "virtqemud-sock".
        name = {"libvirtd": "libvirt"}.get(Path(program).name, Path(program).name)
        self.socket = self.directory / "run" / "libvirt" / f"{name}-sock"
        self.uri = f"qemu+unix:///session?socket={quote(str(self.socket))}"
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None

    @property
    def connection(self) -> Connection:
        """A connection for making machines; opened when first asked for, and again after the daemon was gone."""
        if self._connection is None or not self._connection.is_alive():
            self._connection = Connection(self.uri)
            self._connection.open()
        return self._connection

    def start(self) -> None:
        """Start it and wait until it answers."""
        assert self._process is None, "it runs already"
        with (self.directory / "log").open("ab") as log:
            as_user: dict[str, Any] = {}
            if self._user is not None:
                as_user = {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": []}
            self._process = subprocess.Popen(
                [self._program], env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **as_user
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            assert self._process.poll() is None, f"it ended: {self.log()}"
            assert time.monotonic() < deadline, f"it did not start in {START_SECONDS} s: {self.log()}"
            time.sleep(0.02)

    def stop(self) -> None:
        """End it as `systemctl stop` does. Its machines run on."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Let it crash. Its machines run on."""
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        """Let it hang: it takes connections and answers nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    @property
    def is_running(self) -> bool:
        """Whether its process is there."""
        return self._process is not None and self._process.poll() is None

    def close(self) -> None:
        """End it with all its machines and files."""
        self.disconnect()
        self.kill()
        kill_machines(self.directory)
        _capabilities.keep(self.directory)
        shutil.rmtree(self.directory)

    def log(self) -> str:
        """What it complained about."""
        return (self.directory / "log").read_text(errors="replace")

    def disconnect(self) -> None:
        """Close `connection` until it is asked for again: each idle one slows the calls of the others down."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def virsh(self, *arguments: str) -> str:
        """Do something by virsh, as another administrator would. Returns what it printed."""
        done = subprocess.run(
            ["virsh", "--quiet", "--connect", self.uri, *arguments],
            env=self._environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"virsh {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def give(self, path: Path) -> None:
        """Let the daemon's QEMU write what root made."""
        if self._user is not None:
            os.chown(path, self._user.pw_uid, self._user.pw_gid)

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGCONT)
            process.send_signal(number)
            process.wait(START_SECONDS)

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            return client.connect_ex(str(self.socket)) == 0

    def _make_home(self) -> dict[str, str]:
        directories = {f"XDG_{name.upper()}_HOME": self.directory / name for name in ("config", "cache", "data")}
        directories |= {"XDG_RUNTIME_DIR": self.directory / "run", "HOME": self.directory}
        configuration = self.directory / "config" / "libvirt"
        for directory in (*directories.values(), configuration):
            directory.mkdir(exist_ok=True)
            self.give(directory)
        for path in _capabilities.hand_on(self.directory):
            self.give(path)
        # There is no virtlogd that could write QEMU's output.
        (configuration / "qemu.conf").write_text('stdio_handler = "file"\nsecurity_driver = "none"\n')
        kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        return kept | {name: str(path) for name, path in directories.items()}


def find_daemon() -> str | None:
    """The daemon for QEMU alone, or else the one for everything; in no ordinary user's PATH."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"))
    return shutil.which("virtqemud", path=path) or shutil.which("libvirtd", path=path)
