"""The runs of a schedule: one at a time, and how the last one ended. Files in the user's state directory."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from platformdirs import user_state_path

from snaptree.hosts.journal import is_running, this_process
from snaptree.model.errors import SnapTreeError


class AlreadyRunningError(SnapTreeError):
    """Another run of the same schedule is under way."""


@dataclass(frozen=True, slots=True)
class LastRun:
    """The latest run of a schedule. Times in seconds since 1970, UTC."""

    started: float
    owner_pid: int
    owner_started: float
    """Of the process, as `is_running` of the journal knows it."""
    finished: float | None = None
    status: int | None = None
    """The exit status."""
    says: str = ""
    """What came of it, as a sentence."""

    @property
    def is_under_way(self) -> bool:
        """Whether it goes on. One that neither does so nor has an end was cut short."""
        return self.finished is None and is_running(self.owner_pid, self.owner_started)


def state_file(schedule: str, ending: str) -> Path:
    """A file of what is known of a schedule."""
    return user_state_path("snaptree") / "schedules" / f"{schedule}{ending}"


@contextmanager
def only_run(schedule: str) -> Iterator[None]:
    """Be the only run of a schedule. The kernel ends that with the process, however it ends.

    Raises AlreadyRunningError if another one is under way, SnapTreeError if there is no place for the lock.
    """
    path = state_file(schedule, ".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise SnapTreeError(f"The lock {path} can't be made: {error}.", hint="Look at the directory.") from error
    try:
        _lock(lock, schedule)
        yield
    finally:
        os.close(lock)


def _lock(lock: int, schedule: str) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise AlreadyRunningError(
            f"The schedule {schedule} is running already.", hint="Nothing was done. Wait until that run has ended."
        ) from error
    except OSError as error:
        raise SnapTreeError(
            f"The schedule {schedule} can't be locked against a second run: {error}.",
            hint="Put the state directory (XDG_STATE_HOME) on a file system that has locks.",
        ) from error


def note_run(schedule: str, run: LastRun) -> None:
    """Write down how far a run is. Raises SnapTreeError if that can't be done."""
    path = state_file(schedule, ".json")
    part = path.with_suffix(".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        part.write_text(json.dumps(asdict(run)), encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise SnapTreeError(f"The run can't be noted in {path}: {error}.", hint="Look at the directory.") from error


def last_run(schedule: str) -> LastRun | None:
    """The latest run of a schedule; None if there was none, or nobody knows."""
    try:
        return LastRun(**json.loads(state_file(schedule, ".json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def forget(schedule: str) -> None:
    """Forget a schedule that is no more; but not the lock, which a run may hold."""
    for ending in (".json", ".units"):
        with suppress(OSError):
            state_file(schedule, ending).unlink(missing_ok=True)


def begun_now() -> LastRun:
    """A run that begins now."""
    return LastRun(time.time(), *this_process())
