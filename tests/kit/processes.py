"""Looking at the processes of this computer."""

from __future__ import annotations

import os
from pathlib import Path


def qemu_processes(place: Path) -> list[int]:
    """The QEMUs that have something below a directory on their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                program, *arguments = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:  # it ended meanwhile
                continue
            is_qemu = Path(os.fsdecode(program)).name.startswith("qemu")
            if is_qemu and any(os.fsencode(place) + b"/" in argument for argument in arguments):
                found.append(int(entry.name))
    return found


def give_way(pid: int) -> None:
    """Let a process wait for all others: then what it works at is still under way when a busy test looks."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.setpriority(os.PRIO_PROCESS, int(thread.name), 19)
