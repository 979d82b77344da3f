"""The units that let systemd run a schedule: a timer and the service that it starts, as text. Pure.

Source of what they say: systemd.timer(5), systemd.service(5), systemd.exec(5), and systemd.syntax(7) for quoting.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final
from urllib.parse import urlsplit

from snaptree.model.errors import SnapTreeError
from snaptree.plans.schedule import Schedule

_DELAY: Final = "2min"
"""Timers of many computers and schedules do not all begin in the same second."""

_SANDBOX: Final = """\
Nice=10
NoNewPrivileges=yes
ProtectSystem=full
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
LockPersonality=yes
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
"""
"""What SnapTree never needs. Images may lie in homes, in /tmp and on block devices: these stay as they are."""


class TimerState(StrEnum):
    """What there is of a schedule's timer."""

    ENABLED = "enabled"
    WRITTEN = "written"
    """The units are there, but nothing starts them."""
    OUTDATED = "outdated"
    """They do not say what the schedule says."""
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class Units:
    """Two files, by the names that systemd knows them by."""

    name: str
    """Of both, without the ending."""
    service: str
    timer: str

    @property
    def files(self) -> Mapping[str, str]:
        """Their texts by file name."""
        return {f"{self.name}.service": self.service, f"{self.name}.timer": self.timer}


def unit_name(schedule: str) -> str:
    """What the units of a schedule are called, without the ending."""
    return f"snaptree-{schedule}"


def units_of(schedule: Schedule, command: Sequence[str], environment: Mapping[str, str], *, is_system: bool) -> Units:
    """The units that run a command, the first word a full path, whenever it is time for a schedule.

    Raises SnapTreeError if systemd would not start that.

    `environment` is what the command needs to find the same files as here. `is_system`: of the system's manager.
    """
    if set(command[0]) & set("\"'\\"):
        raise SnapTreeError(
            f"systemd starts no program whose path has quotes or backslashes in it: {command[0]}.",
            hint="Install SnapTree elsewhere.",
        )
    return Units(
        unit_name(schedule.name), _service(schedule, command, environment, is_system=is_system), _timer(schedule)
    )


def _service(schedule: Schedule, command: Sequence[str], environment: Mapping[str, str], *, is_system: bool) -> str:
    lines = [f"Environment={_word(f'{key}={value}')}" for key, value in environment.items()]
    # The colon keeps systemd from replacing variables: their sign may be part of a path.
    lines.append(f"ExecStart=:{' '.join(map(_word, command))}")
    order = "After=libvirtd.service virtqemud.service network-online.target\n" if is_system else ""
    # A session's daemon is started by whoever connects first, and inherits all of this from that one.
    sandbox = _SANDBOX if is_system and urlsplit(schedule.connect).path == "/system" else ""
    return f"""\
# Written by 'snaptree schedule add {schedule.name}', which writes it anew.
[Unit]
Description=SnapTree's schedule {schedule.name}
{order}
[Service]
Type=oneshot
{chr(10).join(lines)}
# Asked so, it stops as soon as nothing is half done.
KillSignal=SIGINT
# A libvirt daemon that this starts, and machines that it started meanwhile, outlive it.
KillMode=process
{sandbox}"""


def calendar_line(schedule: Schedule) -> str:
    """The line of a timer that says when it runs a schedule."""
    return f"OnCalendar={schedule.when}"


def _timer(schedule: Schedule) -> str:
    return f"""\
# Written by 'snaptree schedule add {schedule.name}', which writes it anew.
[Unit]
Description=When SnapTree's schedule {schedule.name} runs

[Timer]
{calendar_line(schedule)}
# What was missed while the computer was off is caught up on.
Persistent=true
RandomizedDelaySec={_DELAY}

[Install]
WantedBy=timers.target
"""


def _word(text: str) -> str:
    """One word as systemd reads it back: quoted, with nothing in it that it would replace."""
    quoted = "".join(_escaped(character) for character in text)
    return f'"{quoted}"'


def _escaped(character: str) -> str:
    if character in '"\\':
        return f"\\{character}"
    if character == "%":
        return "%%"
    return character if character.isprintable() else "".join(f"\\x{byte:02x}" for byte in character.encode())
