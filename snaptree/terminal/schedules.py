"""`snaptree schedule`: schedules in the file of policies, their timers for systemd, and what is known of both."""

from __future__ import annotations

import os
import re
from argparse import Namespace
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from rich.console import Console

from snaptree import words
from snaptree.demo import is_demo
from snaptree.hosts.connection import Connection
from snaptree.hosts.policies import load_policies, policies_in, policies_path, policies_text, write_policies
from snaptree.hosts.reading import list_domains
from snaptree.hosts.schedule_runs import LastRun, forget, last_run
from snaptree.hosts.timers import (
    Manager,
    enable,
    manager_of,
    next_time,
    note_place,
    noted_places,
    remove_units,
    timer_state,
    units_for,
    write_units,
)
from snaptree.model.errors import SnapTreeError
from snaptree.plans.plan import Freeze
from snaptree.plans.policy_edit import with_table, without_table
from snaptree.plans.policy_file import PolicyFile, PolicyFileError, Problem
from snaptree.plans.schedule import DEFAULT_HOST, Schedule, schedule_name_problem, who_is_missing
from snaptree.plans.timer_units import TimerState, unit_name
from snaptree.terminal.complaint import complain
from snaptree.terminal.console import console, iso_time, plain, print_json
from snaptree.terminal.policies import mistakes_json, warn_of_hours, warn_of_mistakes
from snaptree.terminal.policy_options import keep_table, size_text
from snaptree.terminal.table import Column, Cut, add_row, print_table

Connected = Callable[[str], AbstractContextManager[list[Connection]]]
"""Connects to the host with an address, to look at it."""

_TIMERS = {
    TimerState.ENABLED: "enabled",
    TimerState.WRITTEN: "not enabled",
    TimerState.OUTDATED: "says something else",
    TimerState.MISSING: "none",
}


def add_schedule(options: Namespace, connected: Connected) -> int:
    """Write a schedule into the file, and its timer; of one that is in the file, the timer only. The exit status."""
    path, manager = options.file or policies_path(), _manager(options)
    text = policies_text(path) or ""
    before = policies_in(text, path)
    values = _table_of(options)
    text = _with_schedule(options.name, values, text, before) if values else text
    file = policies_in(text, path)
    _refuse_what_was_typed(options.name, before, file)
    schedule = _known(options.name, file)
    if is_demo(schedule.connect):
        raise never_for_a_demo()
    warn_of_mistakes(file)
    units = units_for(schedule, options.file, manager)
    _look_for_machines(schedule, connected)
    warn_of_hours([schedule])
    if values:
        write_policies(path, text)
        console().print(f"The schedule {schedule.name} is written to {plain(str(path))}.")
    is_elsewhere = options.units_in is not None
    if is_elsewhere:
        note_place(schedule.name, manager.directory)
    write_units(units, manager)
    console().print(f"Its timer and service are in {plain(str(manager.directory))}.")
    return _enable(schedule, manager, is_elsewhere=is_elsewhere)


def never_for_a_demo() -> SnapTreeError:
    """A schedule outlives a demo estate, and would be one more that has it open."""
    return SnapTreeError("A schedule is never for a demo estate.", hint="Give the address of a host: --connect URI.")


def list_schedules(options: Namespace, *, as_json: bool) -> int:
    """Print all schedules with their timers and last runs, and those with mistakes. The exit status: 1 if any has."""
    try:
        file = load_policies(options.file)
    except PolicyFileError as error:
        if as_json:
            where = str(options.file or policies_path())
            print_json([{"schedule": None, "mistakes": mistakes_json(where, error.problems)}])
        raise
    found = [(each, _state(each, options)) for each in file.schedules.values()]
    broken = {place[1]: problems for place, problems in file.refused.items() if place[0] == "schedule" and place[1:]}
    warn_of_mistakes(file)
    if as_json:
        mistakes = {name: mistakes_json(file.where, problems) for name, problems in broken.items()}
        documents = [_schedule_json(schedule, state) for schedule, state in found]
        print_json([*documents, *({"schedule": name, "mistakes": each} for name, each in mistakes.items())])
    elif found or broken:
        _print_list(console(), found)
        for name, problems in broken.items():
            says = " ".join(map(str, problems))
            console().print(plain(f"{name} has mistakes, so it does not run: {says}"), style="yellow", soft_wrap=False)
    elif not file.problems:
        console().print(f"There are no schedules in {plain(str(options.file or policies_path()))}.")
    for schedule, state in found:
        if state in (TimerState.OUTDATED, TimerState.MISSING):
            complain(
                SnapTreeError(
                    f"The timer of {schedule.name} {_ASTRAY[state]}.",
                    hint=f"'snaptree schedule add {schedule.name}' writes it anew.",
                )
            )
    return 1 if file.problems else 0


_ASTRAY = {
    TimerState.OUTDATED: "does not say what the file says now",
    TimerState.MISSING: "is not there, so nothing runs it",
}


def remove_schedule(options: Namespace) -> int:
    """Take a schedule out of the file, and remove its units wherever they are. What it took stays. The exit status."""
    path, name = options.file or policies_path(), options.name
    if problem := schedule_name_problem(name):
        raise SnapTreeError(problem)
    text = policies_text(path) or ""
    file = policies_in(text, path)
    is_known = name in file.schedules or ("schedule", name) in file.refused
    without = without_table(text, ("schedule", name)) if is_known else text
    manager = _manager(options)
    directories = dict.fromkeys([manager.directory, Manager.ours().directory, *noted_places(name)])
    removed = [unit for place in directories for unit in remove_units(name, replace(manager, directory=place))]
    if not is_known and not removed:
        raise SnapTreeError(f"There is no schedule “{plain(name)}”.", hint="See 'snaptree schedule list'.")
    if is_known:
        write_policies(path, without)
    forget(name)
    for unit in removed:
        console().print(f"{plain(str(unit))} is removed.")
    console().print(f"The schedule {name} is removed. What it took is kept; by hand, it can be pruned as ever.")
    return 0


def _known(name: str, file: PolicyFile) -> Schedule:
    """A schedule of the file, or what to do if there is none. Raises PolicyFileError if it has mistakes."""
    file.require("schedule", name)
    if name not in file.schedules:
        raise SnapTreeError(
            f"There is no schedule “{plain(name)}” yet.", hint="Say when it runs (--when daily), and what it does."
        )
    return file.schedules[name]


def _with_schedule(name: str, values: dict[str, Any], text: str, file: PolicyFile) -> str:
    """The text of a file with a new schedule."""
    if problem := schedule_name_problem(name):
        raise SnapTreeError(problem)
    if name in file.schedules or ("schedule", name) in file.refused:
        raise SnapTreeError(
            f"There is a schedule {name} already.",
            hint=f"Change it in {file.where} and run 'snaptree schedule add {name}', or remove it first.",
        )
    return with_table(text, ("schedule", name), values)


def _refuse_what_was_typed(name: str, before: PolicyFile, file: PolicyFile) -> None:
    """Raise SnapTreeError if a new schedule has mistakes: whoever typed it knows of options, and of no lines yet."""
    typed = [each for each in file.refused.get(("schedule", name), ()) if each not in before.problems]
    if typed:
        raise SnapTreeError(
            f"The schedule {name} is not added: {' '.join(map(_in_options, typed))}",
            hint="'snaptree schedule add --help' says what can be given.",
        )


_OPTIONS = {"machines": "VM", "name": "--snapshot-name", "keep-forks": "--drop-forks"}
"""What says something of a schedule on the command line, where that is no option named as in the file."""


_SAID = re.compile(r'([a-z-]+) = "([^"]*)"(?: or "([^"]*)")?')
"""What the file says, as mistakes propose it."""


def _in_options(problem: Problem) -> str:
    """A mistake, in words of the command line instead of the file's."""
    option = _OPTIONS.get(problem.key, f"--{problem.key}") if problem.key else ""
    text = _SAID.sub(lambda said: f"--{said[1]} {' or '.join(filter(None, said.groups()[1:]))}", problem.text)
    text = text.replace(f"“{problem.key}”", option).replace("“take”", "--take")
    return f"{text[0].upper()}{text[1:]}" if option in text else f"{option}: {text}"


def _look_for_machines(schedule: Schedule, connected: Connected) -> None:
    """Tell which of its machines are not there. Raises SnapTreeError if none is, and the host can be asked."""
    if not schedule.machines:
        return
    try:
        with connected(schedule.connect) as (connection,):
            names = [domain.name for domain in list_domains(connection)]
    except SnapTreeError as error:
        complain(SnapTreeError(f"warning: whether its machines are there is not known: {error.summary}"))
        return
    missing = who_is_missing(schedule.machines, names)
    if missing and not any(map(schedule.is_for, names)):
        raise SnapTreeError(
            f"{missing} So it would do nothing.", hint=f"'snaptree list -c {schedule.connect}' says who is there."
        )
    if missing:
        complain(SnapTreeError(f"warning: {missing}", hint="It runs without, until there is one."))


def _table_of(options: Namespace) -> dict[str, Any]:
    """What the options say of a schedule, as the file does; empty if they say nothing."""
    said = {
        "when": options.when,
        "machines": options.vms,
        "take": options.take,
        "together": options.together,
        "quiesce": None if options.quiesce == Freeze.NO.value else options.quiesce,
        "name": options.snapshot_name,
        "note": options.note,
        "policy": options.policy,
        "limit": None if options.limit is None else size_text(options.limit),
        "between": None if options.between is None else str(options.between),
        "notify": options.notify,
    }
    table = {key: value for key, value in said.items() if value} | keep_table(options)
    hosts = getattr(options, "connect", [])
    if not table and not hosts:
        return {}
    # The timer will not have this terminal's environment.
    return {"connect": hosts[0] if hosts else os.environ.get("LIBVIRT_DEFAULT_URI") or DEFAULT_HOST} | table


def _manager(options: Namespace) -> Manager:
    """The manager of units, with the directory that was named."""
    ours = Manager.ours()
    return ours if options.units_in is None else replace(ours, directory=options.units_in.absolute())


def _state(schedule: Schedule, options: Namespace) -> TimerState:
    manager = manager_of(schedule.name) if options.units_in is None else _manager(options)
    return timer_state(units_for(schedule, options.file, manager), manager)


def _enable(schedule: Schedule, manager: Manager, *, is_elsewhere: bool) -> int:
    """Enable a timer where that can be done, and say how where it can't. The exit status."""
    out = console()
    how = f"{' '.join(manager.systemctl)} enable --now {unit_name(schedule.name)}.timer"
    if is_elsewhere or not manager.is_running:
        where = "Nothing is enabled yet" if is_elsewhere else "systemd does not run here, so nothing is enabled"
        out.print(f"{where}. Where it runs, enable it: {how}")
        return 0
    try:
        enable(schedule.name, manager)
    except SnapTreeError as error:
        complain(SnapTreeError(f"The timer is not enabled: {error.summary}.", hint=f"Try yourself: {how}"))
        return 1
    coming = next_time(schedule.when)
    soon = "" if coming is None else f" It runs next on {words.moment(coming)}, or soon after."
    out.print(f"It is enabled.{soon}")
    if manager.needs_lingering:
        out.print("It only runs while you are logged in. To let it run always: loginctl enable-linger")
    return 0


def _schedule_json(schedule: Schedule, state: TimerState) -> dict[str, Any]:
    last, coming = last_run(schedule.name), next_time(schedule.when)
    return {
        "schedule": schedule.name,
        "when": schedule.when,
        "next": None if coming is None else iso_time(coming),
        "timer": state.value,
        "connect": schedule.connect,
        "machines": list(schedule.machines),
        "take": None if schedule.take is None else schedule.take.value,
        "together": schedule.together,
        "quiesce": schedule.quiesce.value,
        "prunes": schedule.policy is not None,
        "limit": schedule.limit,
        "between": None if schedule.between is None else str(schedule.between),
        "last": None if last is None else _last_json(last),
        "mistakes": [],
    }


def _last_json(last: LastRun) -> dict[str, Any]:
    return {
        "started": iso_time(last.started),
        "finished": None if last.finished is None else iso_time(last.finished),
        "running": last.is_under_way,
        "status": last.status,
        "says": last.says,
    }


def _print_list(out: Console, found: list[tuple[Schedule, TimerState]]) -> None:
    if not found:
        return
    columns = (
        Column("Schedule", turn=4, cut=Cut.MIDDLE, stays=True),
        Column("When", turn=2, cut=Cut.END),
        Column("Does", turn=1, cut=Cut.END),
        Column("Timer"),
        Column("Next"),
        Column("Last"),
        Column("What came of it", turn=5, cut=Cut.END, stays=True),
    )
    for schedule, state in found:
        last, coming = last_run(schedule.name), next_time(schedule.when)
        add_row(
            columns,
            schedule.name,
            plain(schedule.when),
            _what_it_does(schedule),
            _TIMERS[state],
            words.UNKNOWN if coming is None else words.moment(coming),
            "never" if last is None else words.moment(last.started),
            "" if last is None else plain(_came_to(last)),
        )
    print_table(out, columns)


def _what_it_does(schedule: Schedule) -> str:
    takes = "takes together" if schedule.together else "takes"
    done = (takes if schedule.take is not None else "", "prunes" if schedule.policy is not None else "")
    return ", ".join(filter(None, done))


def _came_to(last: LastRun) -> str:
    if last.finished is None:
        return "is running" if last.is_under_way else "was cut short"
    return last.says
