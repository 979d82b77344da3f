"""libvirt's errors in words an administrator can act on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import libvirt

from snaptree.model.errors import (
    AccessDeniedError,
    ConnectionLostError,
    ReadOnlyError,
    SnapTreeError,
    VanishedError,
)

_GONE = {
    libvirt.VIR_ERR_NO_DOMAIN: "the virtual machine is not there any more",
    libvirt.VIR_ERR_NO_DOMAIN_SNAPSHOT: "the snapshot is not there any more",
}

# What libvirt's remote driver says when the link, not the call, is what failed.
_LINK_BROKE = (
    "client socket is closed",
    "connection closed",
    "connection was closed",
    "End of file while reading data",
    "connection is not open",
    "keepalive",
    "Broken pipe",
    "Connection reset by peer",
    "the connection is already closed",
)

_HINTS: tuple[tuple[str, str], ...] = (
    (
        "cannot acquire state change lock",
        "Another operation holds this machine. Wait for it to end, then try again.",
    ),
    (
        "No space left on device",
        "Free some space on the file system that holds the images, then try again.",
    ),
    (
        "Permission denied",
        "Check that QEMU's user may write the images and their directory. On Debian and Ubuntu AppArmor "
        "denies QEMU writing to backing files before libvirt 12.1: see the kernel's log for 'apparmor=\"DENIED\"'.",
    ),
    (
        'Failed to get "write" lock',
        "Another QEMU process has this image open: another machine uses it, or a helper was left running.",
    ),
    (
        "nesting too deep",
        "libvirt 10.8 to 11.10 starts no machine on more than 25 layers (mended in 12.0): the chain must be shorter.",
    ),
    (
        "libvirt_iohelper",
        "libvirt's helper that writes saved memory is not installed: on Debian 13 it is in libvirt-daemon-common.",
    ),
    ("already exists", "Choose another name, or move the existing file away."),
)


def explain(error: libvirt.libvirtError, doing: str) -> SnapTreeError:
    """Turn a libvirt error that happened while `doing` something into the error that people see."""
    code = error.get_error_code()
    message = (error.get_error_message() or str(error)).strip()
    details = f"libvirt error {code}: {message}"
    if code in _GONE:
        return VanishedError(
            f"{_capital(doing)} failed: {_GONE[code]}.",
            hint="Someone else may have removed it; the list is read again.",
            details=details,
        )
    if code == libvirt.VIR_ERR_OPERATION_DENIED and "read only" in message.lower():
        return ReadOnlyError(
            f"{_capital(doing)} is not possible over a read-only connection.",
            hint="Connect with an account that may manage virtual machines.",
            details=details,
        )
    if any(sign.lower() in message.lower() for sign in _LINK_BROKE):
        return ConnectionLostError(
            f"{_capital(doing)} failed: the connection to the host was lost.",
            hint="What the host was doing goes on there; it is looked at again once connected.",
            details=details,
        )
    return SnapTreeError(f"{_capital(doing)} failed: {message.rstrip('.')}.", hint=hint_for(message), details=details)


def hint_for(message: str) -> str:
    """What to do about what libvirt or QEMU said; empty if nothing is known."""
    return next((hint for sign, hint in _HINTS if sign.lower() in message.lower()), "")


def explain_open(error: libvirt.libvirtError, uri: str) -> SnapTreeError:
    """Turn the failure to connect into what is wrong with the address, the daemon or the permission.

    A ConnectionLostError is worth trying again (nobody answers there yet), an AccessDeniedError worth trying read-only.
    """
    code = error.get_error_code()
    message = (error.get_error_message() or str(error)).strip()
    kind = SnapTreeError
    if code in _DENIED or (_is_unreachable(message) and "Permission denied" in message):
        kind = AccessDeniedError
    elif _is_unreachable(message):
        kind = ConnectionLostError
    return kind(
        f"Cannot connect to {uri}: {message.rstrip('.')}.",
        hint=_open_hint(code, message, uri),
        details=f"libvirt error {code}: {message}",
    )


_DENIED = (
    libvirt.VIR_ERR_AUTH_FAILED,
    libvirt.VIR_ERR_AUTH_CANCELLED,
    libvirt.VIR_ERR_AUTH_UNAVAILABLE,
    libvirt.VIR_ERR_ACCESS_DENIED,
)


def _is_unreachable(message: str) -> bool:
    return "Failed to connect socket" in message or "unable to connect to" in message.lower()


# What keeps an embedded driver (hosts/embedded.py) from opening.
_EMBEDDED_HINTS: tuple[tuple[str, str], ...] = (
    (
        "Failed to acquire pid file",
        "Another process has this directory open, such as virsh or another SnapTree: end that one first.",
    ),
    (
        "already open with path",
        "A process can open one embedded driver: start another SnapTree for the other directory.",
    ),
    (
        "Failed to parse user",
        "Run by root, libvirt's QEMU driver wants that account: install libvirt-daemon-system, or use an ordinary "
        "user's account.",
    ),
)


def _open_hint(code: int, message: str, uri: str) -> str:
    for sign, hint in _EMBEDDED_HINTS:
        if sign in message:
            return hint
    if code in _DENIED:
        return "Check the user name and password, or join the group that may manage libvirt (often 'libvirt')."
    if _is_unreachable(message):
        if "Permission denied" in message:
            return "Your account may not use this libvirt: join the group 'libvirt' and log in again, or use qemu:///session."
        return (
            "The libvirt daemon is not running there. Start it (systemctl start libvirtd, or virtqemud.socket), "
            "or check the address."
        )
    if "ssh" in uri and "End of file" in message:
        return "SSH did not get through: try 'ssh' to that host in a terminal; it needs a key or an agent."
    if "Missing URI parameter 'root'" in message or ("no connection driver available" in message and "+unix" in uri):
        return (
            "libvirt's embedded driver, on which the demo estate runs, takes this process's local connections for "
            "itself. Start SnapTree without the demo for the machines of this computer."
        )
    if "no connection driver available" in message or code == libvirt.VIR_ERR_NO_CONNECT:
        return "Check the address; for this computer's system machines it is qemu:///system."
    if code == libvirt.VIR_ERR_INVALID_ARG:
        return "Check how the address is written: driver[+transport]://[user@][host]/path, such as qemu:///system."
    return "Check the address, and that libvirt runs there: 'virsh -c URI list' must work too."


@contextmanager
def explained(doing: str) -> Iterator[None]:
    """Let libvirt errors of the block leave it as `SnapTreeError`; `doing` is a phrase like "reading web-01"."""
    try:
        yield
    except libvirt.libvirtError as error:
        raise explain(error, doing) from error


def _capital(phrase: str) -> str:
    return phrase[:1].upper() + phrase[1:]
