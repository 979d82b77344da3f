"""What this computer knows of the schedules for a host: their timers, how they ended, and when they are due."""

from __future__ import annotations

import time

from snaptree.hosts.connection import Connection
from snaptree.hosts.reading import list_domains
from snaptree.hosts.schedule_runs import LastRun, last_run
from snaptree.hosts.timers import coming_times, manager_of, timer_of, times_after
from snaptree.plans.policy_file import PolicyFile
from snaptree.plans.schedule import Schedule
from snaptree.plans.schedule_check import MISSED, BrokenSchedule, SeenSchedule


def read_schedules(connection: Connection, policies: PolicyFile) -> tuple[SeenSchedule | BrokenSchedule, ...]:
    """Look at the schedules of a host, which they name by the very address of the connection. Blocking."""
    broken = [
        BrokenSchedule(name, policies.where, policies.refused["schedule", name])
        for name, address in policies.addresses.items()
        if address == connection.uri
    ]
    whole = [each for each in policies.schedules.values() if each.connect == connection.uri]
    names = tuple(domain.name for domain in list_domains(connection)) if whole else ()
    return (*broken, *(_look_at(each, names) for each in whole))


def _look_at(schedule: Schedule, domains: tuple[str, ...]) -> SeenSchedule:
    manager = manager_of(schedule.name)
    timer, written = timer_of(schedule, manager)
    last = last_run(schedule.name)
    since = written if last is None else max(written, last.finished or last.started)
    able_since = manager.runs_since
    return SeenSchedule(
        schedule,
        timer,
        domains,
        started=None if last is None else last.started,
        failure="" if last is None else _failure(last),
        is_under_way=last is not None and last.is_under_way,
        due=times_after(schedule.when, since, MISSED) if since else (),
        coming=coming_times(schedule),
        able_since=able_since,
        asleep=0.0 if able_since is None else _asleep(),
        is_system=manager.is_system,
    )


def _failure(last: LastRun) -> str:
    if last.finished is None:
        return "" if last.is_under_way else "it was cut short."
    return last.says if last.status else ""


def _asleep() -> float:
    """Seconds for which this computer was suspended since it was started. Source: clock_gettime(2)."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)
