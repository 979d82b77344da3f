"""Telling a user's desktop: by the session bus, if there is one (org.freedesktop.Notifications)."""

from __future__ import annotations

import html
import os
import shutil
import subprocess
from pathlib import Path

_SECONDS = 10
_DESKTOP_ENTRY = "org.snaptree.SnapTree"
"""The icon is called so, too."""


def notify(summary: str, body: str, *, is_urgent: bool = False) -> bool:
    """Show a notification; whether that was done. There may be no desktop, nobody at it, or no bus: never an error.

    By systemd's own busctl: PySide6 can't write an unsigned number, which the call has (`replaces_id`).
    """
    program = shutil.which("busctl")
    if program is None or not _has_session_bus():
        return False
    service = "org.freedesktop.Notifications"
    call = ["call", service, "/org/freedesktop/Notifications", service, "Notify", "susssasa{sv}i"]
    hints = ["2", "desktop-entry", "s", _DESKTOP_ENTRY, "urgency", "y", "2" if is_urgent else "1"]
    # The body may hold markup, which names of machines are not.
    values = ["SnapTree", "0", _DESKTOP_ENTRY, summary, html.escape(body, quote=False), "0", *hints, "-1"]
    try:
        done = subprocess.run(  # noqa: S603  systemd's own program
            [program, "--user", f"--timeout={_SECONDS}", "--", *call, *values],
            capture_output=True,
            check=False,
            timeout=2 * _SECONDS,
        )
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _has_session_bus() -> bool:
    if os.environ.get("DBUS_SESSION_BUS_ADDRESS"):
        return True
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return bool(runtime) and Path(str(runtime), "bus").exists()
