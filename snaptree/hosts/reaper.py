"""Burying the QEMU processes of an embedded driver.

libvirt detaches every QEMU, so init inherits it and has to reap it. Until then libvirt takes the zombie for a
process that will not die: where PID 1 is no real init (containers, some sandboxes), stopping a machine waits
for up to 40 seconds and fails. So this process inherits them instead (PR_SET_CHILD_SUBREAPER) and reaps them.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_INTERVAL_SECONDS = 0.1
"""libvirt looks every 0.2 s whether a QEMU that it stopped is gone."""

_lock = threading.Lock()
_thread: threading.Thread | None = None


def start() -> None:
    """Reap stray QEMU processes from now on; once for the process, safe from any thread."""
    global _thread
    with _lock:
        if _thread is not None:
            return
        # Processes we inherit become children of the main thread (Linux: find_new_reaper).
        children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
        if not children.exists():  # a kernel without CONFIG_PROC_CHILDREN, or no /proc: leave it to init
            return
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        _thread = threading.Thread(target=_run, args=(children,), name="qemu-reaper", daemon=True)
        _thread.start()


def _run(children: Path) -> None:
    while True:
        for child in children.read_text(encoding="ascii").split():
            if _is_stray_qemu(child):
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(int(child), os.WNOHANG)
        time.sleep(_INTERVAL_SECONDS)


def _is_stray_qemu(pid: str) -> bool:
    """A dead QEMU that nobody waits for: libvirt moved it into a session of its own.

    Processes that libvirt or Python wait for themselves are in our session.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    # "pid (name) state ppid pgrp session ...": the name may hold spaces and brackets.
    name, _, rest = stat.partition("(")[2].rpartition(")")
    state, _parent, _group, session, *_ = rest.split()
    return state == "Z" and name.startswith("qemu") and int(session) != os.getsid(0)
