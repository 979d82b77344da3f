"""Timers of systemd: its units as files, and telling its manager of them where that runs."""

from __future__ import annotations

import datetime as dt
import os
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from platformdirs import user_config_path

from snaptree.hosts.journal import this_user
from snaptree.model.errors import SnapTreeError
from snaptree.plans.schedule import Schedule
from snaptree.plans.timer_units import Units, unit_name, units_of

_WANTS = "timers.target.wants"
_OUR_FILES = ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME")
"""What says where SnapTree's files are: a timer runs without the environment of who wrote it."""
_NEXT = re.compile(r"^\s*(?:\(in UTC\)|Next elapse): (?:\w+ )?(.*) UTC$", re.MULTILINE)


class TimerState(StrEnum):
    """What there is of a schedule's timer."""

    ENABLED = "enabled"
    WRITTEN = "written"
    """The units are there, but nothing starts them."""
    OUTDATED = "outdated"
    """They do not say what the schedule says."""
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class Manager:
    """The system's manager of units, or a user's."""

    is_system: bool
    directory: Path
    """Where its units are written."""

    @classmethod
    def ours(cls) -> Manager:
        """Root's timers are the system's; everybody else has their own."""
        if os.geteuid() == 0:
            return cls(True, Path("/etc/systemd/system"))
        return cls(False, user_config_path("systemd") / "user")

    @property
    def systemctl(self) -> tuple[str, ...]:
        """The command that speaks to it."""
        return ("systemctl",) if self.is_system else ("systemctl", "--user")

    @property
    def is_running(self) -> bool:
        """Whether systemd manages this computer (sd_booted(3)), and so may start units."""
        return Path("/run/systemd/system").is_dir() and shutil.which("systemctl") is not None

    @property
    def needs_lingering(self) -> bool:
        """Whether it ends when its user logs out."""
        return not self.is_system and not Path("/var/lib/systemd/linger", this_user()).exists()


def check_calendar(when: str) -> None:
    """Raise SnapTreeError if systemd does not understand a calendar expression. Without systemd, it may be anything."""
    said = _analyze(when)
    if said is not None and said.returncode != 0:
        raise SnapTreeError(
            f"“{when}” is no time that systemd knows: {said.stderr.strip()}.",
            hint="Write it like daily, hourly or *-*-* 02:00; systemd.time(7) has all.",
        )


def next_time(when: str) -> float | None:
    """When a calendar expression comes next, in seconds since 1970, UTC. None where nobody can say."""
    said = _analyze(when)
    found = None if said is None else _NEXT.findall(said.stdout)
    return dt.datetime.fromisoformat(f"{found[-1]}+00:00").timestamp() if found else None


def _analyze(when: str) -> subprocess.CompletedProcess[str] | None:
    program = shutil.which("systemd-analyze")
    if program is None:
        return None
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    try:
        return subprocess.run(  # noqa: S603  systemd's own program
            [program, "calendar", "--", when], capture_output=True, text=True, check=False, env=environment
        )
    except OSError:
        return None


def units_for(schedule: Schedule, policies: Path | None, manager: Manager) -> Units:
    """The units that run a schedule by this very program, with the files that it has now."""
    command = [sys.executable, "-m", "snaptree", "run-schedule", schedule.name]
    command += [] if policies is None else ["--file", str(policies.absolute())]
    environment = {key: os.environ[key] for key in _OUR_FILES if os.environ.get(key)}
    return units_of(schedule, command, environment, is_system=manager.is_system)


def write_units(units: Units, manager: Manager) -> None:
    """Write units. Raises SnapTreeError if that can't be done."""
    try:
        manager.directory.mkdir(parents=True, exist_ok=True)
        for name, text in units.files.items():
            (manager.directory / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise SnapTreeError(f"The units can't be written to {manager.directory}: {error}.") from error


def enable(schedule: str, manager: Manager) -> None:
    """Let systemd start a schedule's timer from now on. Raises SnapTreeError with what it says if it does not."""
    _tell(manager, "daemon-reload")
    _tell(manager, "enable", "--now", f"{unit_name(schedule)}.timer")


def remove_units(schedule: str, manager: Manager) -> bool:
    """Stop a schedule's timer and remove its units; whether there were any. Raises SnapTreeError if that fails.

    A run that is under way goes on to its end.
    """
    name = unit_name(schedule)
    files = [manager.directory / f"{name}{ending}" for ending in (".timer", ".service")]
    there = [file for file in files if file.exists()]
    if there and manager.is_running:
        with suppress(SnapTreeError):  # nobody runs it then
            _tell(manager, "disable", "--now", f"{name}.timer")
    try:
        (manager.directory / _WANTS / f"{name}.timer").unlink(missing_ok=True)
        for file in there:
            file.unlink()
    except OSError as error:
        raise SnapTreeError(f"The units of {schedule} can't be removed: {error}.") from error
    if there and manager.is_running:
        with suppress(SnapTreeError):
            _tell(manager, "daemon-reload")
    return bool(there)


def timer_state(units: Units, manager: Manager) -> TimerState:
    """What there is of units, by the files that systemd itself goes by."""
    for name, text in units.files.items():
        try:
            written = (manager.directory / name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return TimerState.MISSING
        if written != text:
            return TimerState.OUTDATED
    is_wanted = (manager.directory / _WANTS / f"{units.name}.timer").is_symlink()
    return TimerState.ENABLED if is_wanted else TimerState.WRITTEN


def _tell(manager: Manager, *words: str) -> None:
    try:
        subprocess.run(  # noqa: S603  systemd's own program
            [*manager.systemctl, *words], capture_output=True, text=True, check=True
        )
    except subprocess.CalledProcessError as error:
        said = " ".join(error.stderr.split()) or f"it ended with {error.returncode}"
        raise SnapTreeError(f"{' '.join([*manager.systemctl, *words])} failed: {said}") from error
    except OSError as error:
        raise SnapTreeError(f"systemctl can't be run: {error}.") from error
