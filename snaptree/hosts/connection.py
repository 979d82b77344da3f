"""One connection to a libvirt host: opening it with credentials, what it can do, and hearing that it broke."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import libvirt

from snaptree.hosts import event_loop
from snaptree.hosts.errors import explain_open, explained
from snaptree.model.errors import ConnectionLostError, VanishedError
from snaptree.model.estate import Host

KEEPALIVE_SECONDS = 5
KEEPALIVE_COUNT = 4


@dataclass(frozen=True, slots=True)
class CredentialQuestion:
    """One thing that libvirt asks before it lets us in."""

    prompt: str
    is_secret: bool
    default: str = ""


AskCredentials = Callable[[list[CredentialQuestion]], "list[str] | None"]
"""Answers in the order asked, or None if the user gave up. Runs in the thread that opens the connection."""

_SECRET = (libvirt.VIR_CRED_PASSPHRASE, libvirt.VIR_CRED_NOECHOPROMPT)
_ANSWERABLE = [
    libvirt.VIR_CRED_USERNAME,
    libvirt.VIR_CRED_AUTHNAME,
    libvirt.VIR_CRED_ECHOPROMPT,
    libvirt.VIR_CRED_REALM,
    *_SECRET,
]


def is_embedded(uri: str) -> bool:
    """Whether the driver is inside this process (hosts/embedded.py)."""
    return urlsplit(uri).path == "/embed"


class _EmbeddedHandles:
    """libvirt's connections to drivers inside this process, each shared by all who open it.

    libvirt registers such a driver anew with every open, and has room for less than 20 in the life of a process
    ("Too many drivers, cannot register QEMU", 9.0 and 11.3).
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._handles: dict[tuple[str, int], Any] = {}
        self._users: Counter[Any] = Counter()

    def open(self, uri: str, flags: int) -> Any:
        with self._lock:
            handle = self._handles.get((uri, flags))
            if handle is None:
                handle = self._handles[uri, flags] = libvirt.openAuth(uri, [[], None, None], flags)
            self._users[handle] += 1
            return handle

    def close(self, handle: Any) -> None:
        with self._lock:
            self._users[handle] -= 1
            if not self._users[handle]:
                del self._users[handle]
                self._handles = {key: other for key, other in self._handles.items() if other is not handle}
                with suppress(libvirt.libvirtError):
                    handle.close()


_embedded = _EmbeddedHandles()


class Connection:
    """A libvirt connection. Calls may come from any thread; libvirt serves them side by side."""

    def __init__(self, uri: str, *, read_only: bool = False, ask: AskCredentials | None = None) -> None:
        self.uri = uri
        self.on_lost: Callable[[str], None] | None = None
        """Called in libvirt's event loop with the reason: queue it, do nothing else there."""
        self._read_only = read_only
        self._ask = ask
        self._handle: Any = None
        self._host: Host | None = None

    def open(self) -> Host:
        """Connect (blocking) and learn what the host can do. Raises SnapTreeError with what to check."""
        event_loop.start()
        flags = libvirt.VIR_CONNECT_RO if self._read_only else 0
        try:
            if is_embedded(self.uri):
                self._handle = _embedded.open(self.uri, flags)
            else:
                self._handle = libvirt.openAuth(self.uri, [_ANSWERABLE, self._answer, None], flags)
        except libvirt.libvirtError as error:
            raise explain_open(error, self.uri) from error
        with explained(f"looking at the host {self.uri}"):
            if not is_embedded(self.uri):
                self._handle.registerCloseCallback(self._closed, None)
                self._keep_alive()
            self._host = _read_host(self._handle, self.uri, self._read_only)
        return self._host

    def _keep_alive(self) -> None:
        """Let a dead link be noticed within seconds. Drivers inside the process have no link to watch."""
        try:
            self._handle.setKeepAlive(KEEPALIVE_SECONDS, KEEPALIVE_COUNT)
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_SUPPORT:
                raise

    def another(self) -> Connection:
        """A second one to the same host, opened (blocking) with the same credentials. Raises SnapTreeError."""
        connection = Connection(self.uri, read_only=self._read_only, ask=self._ask)
        connection.open()
        return connection

    def reader(self) -> Connection:
        """One to the same host for looking only, opened (blocking) without asking anybody. Raises SnapTreeError."""
        connection = Connection(self.uri, read_only=True)
        connection.open()
        return connection

    def close(self) -> None:
        """Let go of the connection; safe to call twice."""
        handle, self._handle = self._handle, None
        if handle is None:
            return
        if is_embedded(self.uri):
            _embedded.close(handle)
            return
        for let_go in (handle.unregisterCloseCallback, handle.close):
            with suppress(libvirt.libvirtError):  # a broken link has nothing left to let go of
                let_go()

    @property
    def host(self) -> Host:
        """What `open` learned."""
        if self._host is None:
            raise ConnectionLostError(f"Not connected to {self.uri}.")
        return self._host

    @property
    def handle(self) -> Any:
        """libvirt's own connection object, for the rooms that talk to libvirt."""
        if self._handle is None:
            raise ConnectionLostError(f"Not connected to {self.uri}.", hint="Connect again.")
        return self._handle

    def is_alive(self) -> bool:
        """Whether the link is believed to work."""
        try:
            return self._handle is not None and bool(self._handle.isAlive())
        except libvirt.libvirtError:
            return False

    def domain(self, uuid: str) -> Any:
        """libvirt's object for a machine. Raises VanishedError if it is gone."""
        with explained("looking for the virtual machine"):
            return self.handle.lookupByUUIDString(uuid)

    def domain_uuid(self, name: str) -> str:
        """The UUID of a machine by its name. Raises VanishedError, naming machines that exist."""
        with explained("listing the virtual machines"):
            names: dict[str, str] = {domain.name(): domain.UUIDString() for domain in self.handle.listAllDomains()}
        if name in names:
            return names[name]
        known = ", ".join(sorted(names)) or "none"
        raise VanishedError(f"No virtual machine is named '{name}' on {self.uri}.", hint=f"There are: {known}.")

    def _answer(self, credentials: list[list[Any]], _data: object) -> int:
        """libvirt's callback: fill in the fifth field of each credential, or return -1 to give up."""
        if self._ask is None:
            return -1
        answers = self._ask(
            [
                CredentialQuestion(
                    prompt=str(credential[1]), is_secret=credential[0] in _SECRET, default=str(credential[3] or "")
                )
                for credential in credentials
            ]
        )
        if answers is None:
            return -1
        for credential, answer in zip(credentials, answers, strict=True):
            credential[4] = answer
        return 0

    def _closed(self, _handle: object, reason: int, _data: object) -> None:
        words = {
            libvirt.VIR_CONNECT_CLOSE_REASON_ERROR: "an I/O error on the link",
            libvirt.VIR_CONNECT_CLOSE_REASON_EOF: "the daemon went away",
            libvirt.VIR_CONNECT_CLOSE_REASON_KEEPALIVE: "the host stopped answering",
            libvirt.VIR_CONNECT_CLOSE_REASON_CLIENT: "it was closed here",
        }
        if self.on_lost is not None:
            self.on_lost(words.get(reason, "the connection was closed"))


def _read_host(handle: Any, uri: str, read_only: bool) -> Host:
    hostname = str(handle.getHostname())
    version = int(handle.getLibVersion())
    is_local = _is_local(uri, hostname)
    return Host(
        uri=uri,
        hostname=hostname,
        driver=str(handle.getType()),
        libvirt_version=version,
        hypervisor_version=int(handle.getVersion()),
        read_only=read_only,
        is_local=is_local,
        # libvirt announces it per guest architecture, in <features> (since 9.9.0, both directions at once).
        external_snapshots="<externalSnapshot" in handle.getCapabilities(),
        internal_revert_broken=_internal_revert_is_broken(version, is_local),
    )


def _is_local(uri: str, hostname: str) -> bool:
    parts = urlsplit(uri)
    transport = parts.scheme.partition("+")[2]
    if transport not in ("", "unix"):
        return False
    return not parts.hostname or hostname == socket.gethostname()


def _internal_revert_is_broken(version: int, is_local: bool) -> bool:
    """libvirt 11.2.0 and 11.3.0 as released lose on internal reverts (GitLab #771); Debian mended 11.3.0-2.

    A remote host does not say which package it runs, so there the release is believed.
    """
    if version not in (11002000, 11003000):
        return False
    return not (is_local and version == 11003000 and _debian_revision() >= 2)


def _debian_revision() -> int:
    """The Debian revision of libvirt installed here (3 in 11.3.0-3+deb13u3), 0 if there is none."""
    dpkg_query = shutil.which("dpkg-query")
    if dpkg_query is None:
        return 0
    found = subprocess.run(  # noqa: S603  a fixed command line without anything of the user's in it
        [dpkg_query, "--show", "--showformat=${Version}", "libvirt-daemon-driver-qemu"],
        capture_output=True,
        text=True,
        check=False,
    )
    revision = re.search(r"-(\d+)[^-]*$", found.stdout)
    return int(revision.group(1)) if revision else 0
