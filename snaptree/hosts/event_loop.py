"""libvirt's event loop: one for the process, in a thread of its own, for as long as the process lives."""

from __future__ import annotations

import threading

import libvirt

_lock = threading.Lock()
_thread: threading.Thread | None = None


def start() -> None:
    """Start the loop unless it runs. Must come before the first connection is opened; safe from any thread.

    It never stops: libvirt offers no way to replace a loop, and connections hang without one.
    """
    global _thread
    with _lock:
        if _thread is not None:
            return
        # Errors reach us as exceptions; without a handler libvirt prints each of them to stderr as well.
        libvirt.registerErrorHandler(_ignore, None)
        libvirt.virEventRegisterDefaultImpl()
        _thread = threading.Thread(target=_run, name="libvirt-events", daemon=True)
        _thread.start()


def _ignore(_context: object, _error: object) -> None:
    """Take libvirt's error report away from stderr."""


def _run() -> None:
    while True:
        libvirt.virEventRunDefaultImpl()
