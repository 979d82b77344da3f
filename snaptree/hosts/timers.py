"""Timers of systemd: its units as files, and telling its manager of them where that runs."""

from __future__ import annotations

import datetime as dt
import json
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from platformdirs import user_config_path

from snaptree.hosts.journal import this_user
from snaptree.hosts.schedule_runs import state_file
from snaptree.model.errors import SnapTreeError
from snaptree.model.text import shell_word
from snaptree.plans.calendar import calendar_problem, no_time
from snaptree.plans.schedule import ENOUGH_TIMES, Schedule
from snaptree.plans.timer_units import TimerState, Units, calendar_line, unit_name, units_of

_WANTS = "timers.target.wants"
_OUR_FILES = ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME")
"""What says where SnapTree's files are: a timer runs without the environment of who wrote it."""
_PATIENCE = 20
"""Seconds that systemd may take to answer; it takes a hundredth of one."""
_NEXT = re.compile(r"^\s*(?:\(in UTC\)|Next elapse|Iter\S* #\d+): (?:\w+ )?(.*) UTC$", re.MULTILINE)


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
    def runs_since(self) -> float | None:
        """Since when it starts units, in seconds since 1970; None where it does not run, or nobody knows."""
        own = Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}")
        runtime = Path("/run") if self.is_system else own
        try:
            return (runtime / "systemd" / "private").stat().st_mtime if self.is_running else None
        except OSError:
            return None

    @property
    def needs_lingering(self) -> bool:
        """Whether it ends when its user logs out."""
        return not self.is_system and not Path("/var/lib/systemd/linger", this_user()).exists()


def time_problem(when: str) -> str:
    """Why systemd takes this for no calendar expression; empty if it takes it. Asked where it is, else guessed."""
    said = _analyze(when)
    return calendar_problem(when) if said is None else no_time(when) if said.returncode else ""


def next_time(when: str) -> float | None:
    """When a calendar expression comes next, in seconds since 1970, UTC. None where nobody can say."""
    return next(iter(_times_in(_analyze(when))), None)


def times_after(when: str, moment: float, count: int) -> tuple[float, ...]:
    """When a calendar expression comes next after a moment, so many times. None of them where nobody can say."""
    return tuple(_times_in(_analyze(when, f"--base-time=@{int(moment)}", f"--iterations={count}")))


def coming_times(schedule: Schedule) -> tuple[float, ...]:
    """When a schedule runs from now on, as `hours_problem` wants it; nobody is asked where that has no hours."""
    return () if schedule.between is None else times_after(schedule.when, time.time(), ENOUGH_TIMES)


def _times_in(said: subprocess.CompletedProcess[str] | None) -> list[float]:
    found = [] if said is None else _NEXT.findall(said.stdout)
    return [dt.datetime.fromisoformat(f"{each}+00:00").timestamp() for each in found]


def _analyze(when: str, *options: str) -> subprocess.CompletedProcess[str] | None:
    """What systemd says of a calendar expression; None where it can't be asked."""
    program = shutil.which("systemd-analyze")
    if program is None or "\0" in when:
        return None
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    command = [program, "calendar", *options, "--", when]
    try:
        return subprocess.run(  # noqa: S603  systemd's own program
            command, capture_output=True, text=True, check=False, env=environment, timeout=_PATIENCE
        )
    except (OSError, subprocess.TimeoutExpired):
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
        raise SnapTreeError(
            f"The units can't be written to {manager.directory}: {error.strerror}.",
            hint="Let this account write there, or name another directory: --units-in DIR.",
        ) from error


def enable(schedule: str, manager: Manager) -> None:
    """Let systemd start a schedule's timer from now on. Raises SnapTreeError with what it says if it does not."""
    _tell(manager, "daemon-reload")
    _tell(manager, "enable", "--now", f"{unit_name(schedule)}.timer")


def remove_units(schedule: str, manager: Manager) -> list[Path]:
    """Stop a schedule's timer and remove its units, which are returned. Raises SnapTreeError if that fails.

    A run that is under way goes on to its end.
    """
    name = unit_name(schedule)
    there = [file for file in _files(schedule, manager) if file.exists()]
    if there and manager.is_running:
        with suppress(SnapTreeError):  # nobody runs it then
            _tell(manager, "disable", "--now", f"{name}.timer")
    try:
        (manager.directory / _WANTS / f"{name}.timer").unlink(missing_ok=True)
        for file in there:
            file.unlink()
    except OSError as error:
        left = " ".join(shell_word(str(file)) for file in there if file.exists())
        raise SnapTreeError(
            f"The units of {schedule} in {manager.directory} can't be removed: {error.strerror}.",
            hint=f"Remove them as somebody who may, then try again: rm {left}",
        ) from error
    if there and manager.is_running:
        with suppress(SnapTreeError):
            _tell(manager, "daemon-reload")
    return there


def _files(schedule: str, manager: Manager) -> list[Path]:
    return [manager.directory / f"{unit_name(schedule)}{ending}" for ending in (".timer", ".service")]


def note_place(schedule: str, directory: Path) -> None:
    """Remember that units of a schedule are in a directory that nobody would look into. Raises SnapTreeError."""
    path = state_file(schedule, ".units")
    places = dict.fromkeys([*map(str, noted_places(schedule)), str(directory)])
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.write_text(json.dumps([*places]), encoding="utf-8")
    except OSError as error:
        raise SnapTreeError(
            f"Where the units are can't be noted in {path}: {error.strerror}.", hint="Look at the directory."
        ) from error


def noted_places(schedule: str) -> list[Path]:
    """Directories into which units of a schedule were written, other than the manager's own."""
    try:
        return [Path(place) for place in json.loads(state_file(schedule, ".units").read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):
        return []


def manager_of(schedule: str) -> Manager:
    """Our manager, with the directory in which a schedule's timer is; its own if there is none."""
    ours = Manager.ours()
    places = [replace(ours, directory=place) for place in (ours.directory, *noted_places(schedule))]
    return next((place for place in places if _files(schedule, place)[0].exists()), ours)


def timer_state(units: Units, manager: Manager) -> TimerState:
    """What there is of units, by the files that systemd itself goes by."""
    for name, text in units.files.items():
        try:
            written = (manager.directory / name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return TimerState.MISSING
        if written != text:
            return TimerState.OUTDATED
    return _enabled(units.name, manager)


def timer_of(schedule: Schedule, manager: Manager) -> tuple[TimerState, float]:
    """What there is of a schedule's timer, whichever program it was that wrote it; and since when, 0 if never.

    Programs move, and have other directories: what counts is that there are units, and when they run.
    """
    timer, service = _files(schedule.name, manager)
    try:
        text, written = timer.read_text(encoding="utf-8"), timer.stat().st_mtime
    except (OSError, UnicodeDecodeError):
        return TimerState.MISSING, 0.0
    if not service.exists():
        return TimerState.MISSING, 0.0
    if calendar_line(schedule) not in text.splitlines():
        return TimerState.OUTDATED, written
    enabled = [link.lstat().st_mtime for link in _links(timer.stem, manager) if link.is_symlink()]
    return _enabled(timer.stem, manager), max([written, *enabled])


def _enabled(name: str, manager: Manager) -> TimerState:
    is_wanted = any(link.is_symlink() for link in _links(name, manager))
    return TimerState.ENABLED if is_wanted else TimerState.WRITTEN


def _links(name: str, manager: Manager) -> list[Path]:
    """What enables a timer: units may be elsewhere, systemctl puts it into its own directory."""
    directories = dict.fromkeys([manager.directory, Manager.ours().directory])
    return [directory / _WANTS / f"{name}.timer" for directory in directories]


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
