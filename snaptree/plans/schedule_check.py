"""What should be looked at of schedules: those that nothing runs, that fail, or that name nobody. Pure."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from snaptree.model.troubles import Kind, Severity, Trouble
from snaptree.plans.advice import Advice, advice_on
from snaptree.plans.policy import local_zone
from snaptree.plans.policy_file import Problem, told
from snaptree.plans.schedule import Schedule, hours_problem, who_is_missing
from snaptree.plans.timer_units import TimerState, unit_name
from snaptree.plans.wording import quoted

MISSED: Final = 3
"""Times that a schedule was to run and did not: two whole intervals."""
_SLACK: Final = 3_600
"""Seconds after the last of these in which a run may still begin: computers wake up, and timers wait a moment."""

HOURS_REMEDY: Final = "Let its “when” and its “between” meet in the file of policies."


@dataclass(frozen=True, slots=True)
class SeenSchedule:
    """A schedule of a host, as this computer knows it. Times in seconds since 1970, UTC."""

    schedule: Schedule
    timer: TimerState
    domains: tuple[str, ...] = ()
    """The names of all machines of its host."""
    started: float | None = None
    """Its last run; None if there was none, or nobody knows."""
    failure: str = ""
    """Why that failed, as a sentence."""
    is_under_way: bool = False
    due: tuple[float, ...] = ()
    """When it was to run next, `MISSED` times, after that run or since its timer was written. Empty: not known."""
    coming: tuple[float, ...] = ()
    """When it is to run from now on, as `hours_problem` wants it. Empty: not known, or nobody asks."""
    able_since: float | None = None
    """Since when systemd has been there to run it; None where it is not, or nobody knows."""
    asleep: float = 0.0
    """Seconds for which this computer may have been suspended meanwhile."""
    is_system: bool = True
    """Its timer is the system's, not a user's own."""


@dataclass(frozen=True, slots=True)
class BrokenSchedule:
    """A schedule of a host that has mistakes."""

    name: str
    where: str
    """The file that it stands in."""
    problems: tuple[Problem, ...]


def check_schedule(seen: SeenSchedule, now: float, zone: dt.tzinfo | None = None) -> Iterator[Advice]:
    """What there is to say about a schedule. `zone` is whose clock tells the times."""
    name = seen.schedule.name
    clock = zone or local_zone()
    if seen.failure:
        trouble = f"The last run of the schedule {quoted(name)} failed, {_told(seen.started, clock)}: {seen.failure}"
        yield _warning(
            Kind.SCHEDULE_FAILED,
            trouble,
            f"'snaptree run-schedule {name}' tries again. 'snaptree history' and"
            f" {_journal(seen)} -u {unit_name(name)} tell more.",
        )
    yield from _not_run(seen, now, clock)
    if missing := who_is_missing(seen.schedule.machines, seen.domains):
        remedy = "Mend its “machines” in the file of policies; 'snaptree list' says who is there."
        yield _warning(Kind.SCHEDULE_NAMES, f"The schedule {quoted(name)}: {missing}", remedy)
    if problem := hours_problem(seen.schedule, seen.coming, clock):
        yield _warning(Kind.SCHEDULE_HOURS, problem, HOURS_REMEDY)


def check_broken(broken: BrokenSchedule) -> Advice:
    """A schedule with mistakes does not run."""
    says = told(broken.where, broken.problems)
    return _warning(
        Kind.SCHEDULE_NOT_RUN,
        f"The schedule {quoted(broken.name)} has mistakes, so it does not run: {says}",
        "Mend them; 'snaptree policy check' says when all is well.",
    )


def _not_run(seen: SeenSchedule, now: float, clock: dt.tzinfo) -> Iterator[Advice]:
    """What keeps it from being run, if anything does."""
    name, was_missed = quoted(seen.schedule.name), _was_missed(seen, now)
    anew = f"'snaptree schedule add {seen.schedule.name}' writes it"
    timer = f"{unit_name(seen.schedule.name)}.timer"
    if seen.timer in (TimerState.MISSING, TimerState.WRITTEN) and (seen.started is None or was_missed):
        is_missing = seen.timer is TimerState.MISSING
        text = f"The schedule {name} has no timer" if is_missing else f"The timer of the schedule {name} is not enabled"
        remedy = f"{anew}." if is_missing else f"Enable it: {_systemctl(seen)} enable --now {timer}"
        yield _warning(Kind.SCHEDULE_NOT_RUN, f"{text}, so nothing runs it.", remedy)
    elif seen.timer is TimerState.OUTDATED:
        text = f"The timer of the schedule {name} has other times than the file of policies."
        yield _warning(Kind.SCHEDULE_NOT_RUN, text, f"{anew} anew.")
    elif seen.timer is TimerState.ENABLED and was_missed and not seen.is_under_way and _was_able(seen, now):
        ran = "never ran" if seen.started is None else f"did not run since {_told(seen.started, clock)}"
        text = f"The schedule {name} {ran}, and was to do so {MISSED} times by {_told(seen.due[-1], clock)}."
        lingering = "" if seen.is_system else " A user's timers need 'loginctl enable-linger' to run always."
        remedy = f"{_systemctl(seen)} status {timer} says how it is.{lingering}"
        yield _warning(Kind.SCHEDULE_NOT_RUN, text, remedy)


def _was_missed(seen: SeenSchedule, now: float) -> bool:
    return len(seen.due) == MISSED and now > seen.due[-1] + _SLACK


def _was_able(seen: SeenSchedule, now: float) -> bool:
    """Whether systemd had the time to run it since it was due, for what was missed is caught up on."""
    return seen.able_since is not None and now - seen.asleep > max(seen.due[-1], seen.able_since) + _SLACK


def _warning(kind: Kind, text: str, remedy: str) -> Advice:
    return advice_on(Trouble(Severity.WARNING, text, kind), remedy=remedy)


def _systemctl(seen: SeenSchedule) -> str:
    return "systemctl" if seen.is_system else "systemctl --user"


def _journal(seen: SeenSchedule) -> str:
    return "journalctl" if seen.is_system else "journalctl --user"


def _told(moment: float | None, clock: dt.tzinfo) -> str:
    local = dt.datetime.fromtimestamp(moment or 0, clock)
    return f"{local.day} {local:%b %Y, %H:%M}"
