"""`snaptree run-schedule`: what a timer starts. It takes, then prunes; nobody is asked."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from snaptree import words
from snaptree.hosts.connection import Connection
from snaptree.hosts.group_running import GroupOutcome, run_group
from snaptree.hosts.journal import Journal, journal_of, journal_path
from snaptree.hosts.notifying import notify
from snaptree.hosts.pruning import are_now
from snaptree.hosts.reading import list_domains
from snaptree.hosts.running import run_plan
from snaptree.hosts.schedule_runs import AlreadyRunningError, LastRun, begun_now, note_run, only_run
from snaptree.model.errors import CancelledError, SnapTreeError
from snaptree.plans.group import GroupPlan
from snaptree.plans.group_planning import plan_group_take
from snaptree.plans.intention import Prune, Take
from snaptree.plans.operation import Operation
from snaptree.plans.plan import Plan
from snaptree.plans.plan_json import plan_to_json
from snaptree.plans.planner import make_plan
from snaptree.plans.policy_file import PolicyFileError
from snaptree.plans.prune import Pruning, plan_pruning, pruning_of
from snaptree.plans.prune_many import keeping_groups
from snaptree.plans.schedule import Notify, Schedule, schedule_name_problem
from snaptree.plans.situation import Situation
from snaptree.plans.wording import listed
from snaptree.terminal.changing import situation_for, with_progress
from snaptree.terminal.complaint import complain
from snaptree.terminal.console import console, iso_time, plain, print_json
from snaptree.terminal.plans import error_json, print_plan, result_json
from snaptree.terminal.pruning import pruning_json, summary

STATUS_FAILED = 1
STATUS_REFUSED = 3
STATUS_RUNNING = 5
"""Another run of the same schedule is under way."""

WAIT_SECONDS = 15 * 60
"""How long a machine is waited for that another SnapTree is changing: schedules may well meet at full hours."""

Connected = Callable[[], AbstractContextManager[list[Connection]]]


def run_schedule(schedule: Schedule, connected: Connected, *, as_json: bool, dry_run: bool) -> int:
    """Do what a schedule says, and return the exit status: 0, or one of those above.

    1 if anything failed, 3 if nothing did but a rule refused something, 5 if another run is under way. What is left
    for other hours is no failure. Raises SnapTreeError if it can't be locked or noted.
    """
    run = _Run(schedule, dry_run, print_to=None if as_json else console())
    begun = begun_now()
    if dry_run:
        run.on_hosts(connected)
    else:
        try:
            with only_run(schedule.name):
                note_run(schedule.name, begun)
                run.on_hosts(connected)
                done = replace(begun, finished=time.time(), status=run.status, says=run.says)
                note_run(schedule.name, done)
        except AlreadyRunningError as error:
            complain(error)
            return STATUS_RUNNING
        _tell_the_desktop(schedule, done)
    if as_json:
        print_json(run.document(begun))
    elif run.error is None:  # else that is said already
        run.tell(run.says)
    return run.status


def tell_of_failure(schedule: str, error: SnapTreeError, *, dry_run: bool) -> None:
    """Tell the desktop that a schedule could not be begun, or be noted; and note that its file has mistakes."""
    if isinstance(error, PolicyFileError) and not dry_run and not schedule_name_problem(schedule):
        begun = begun_now()
        with suppress(SnapTreeError):
            note_run(schedule, replace(begun, finished=begun.started, status=STATUS_FAILED, says=str(error)))
    notify(f"The schedule {schedule} failed", str(error), is_urgent=True)


def _tell_the_desktop(schedule: Schedule, run: LastRun) -> None:
    if run.status and schedule.notify is not Notify.NEVER:
        notify(f"The schedule {schedule.name} failed", run.says, is_urgent=True)
    elif schedule.notify is Notify.ALWAYS:
        notify(f"The schedule {schedule.name} is done", run.says)


@dataclass
class _Change:
    """A change that was to be made to a machine: its plan, and what came of it."""

    plan: Plan | None = None
    pruning: Pruning | None = None
    operation: Operation | None = None
    taken_back: Operation | None = None
    """What took it back again, because another one of its group failed."""
    error: SnapTreeError | None = None
    """What went wrong."""
    left: str = ""
    """Why it is left, which is no failure."""
    is_out_of_hours: bool = False
    """The hours at which this may be done were not, or were over before it was done."""

    @property
    def is_refused(self) -> bool:
        """Whether a rule did not let it happen."""
        return self.plan is not None and self.plan.is_refused

    @property
    def is_done(self) -> bool:
        """Whether it was made, to its end."""
        return self.operation is not None and self.operation.error is None

    def document(self) -> dict[str, Any]:
        """What `--json` says of it."""
        document: dict[str, Any] = {}
        if self.plan is not None:
            document = plan_to_json(self.plan) if self.operation is None else result_json(self.plan, self.operation)
        if self.pruning is not None:
            document |= pruning_json(self.pruning)
        if self.taken_back is not None:
            document["taken_back"] = result_json(self.taken_back.plan, self.taken_back)
        return document | {"left": self.left or None, "error": error_json(self.error)}


@dataclass
class _Machine:
    """A machine of the schedule."""

    connection: Connection
    uuid: str
    name: str
    take: _Change | None = None
    prune: _Change | None = None

    @property
    def changes(self) -> list[_Change]:
        """What was to be done to it."""
        return [change for change in (self.take, self.prune) if change is not None]


@dataclass
class _Run:
    """A run of a schedule."""

    schedule: Schedule
    dry_run: bool
    print_to: Any
    """A console; None if nobody reads along."""
    machines: list[_Machine] = field(default_factory=list)
    error: SnapTreeError | None = None
    """What went wrong before there was any machine."""
    stop: threading.Event = field(default_factory=threading.Event)
    """Somebody asked it to end."""

    def tell(self, text: str) -> None:
        """Print a line."""
        if self.print_to is not None:
            self.print_to.print(plain(text), soft_wrap=False)

    # What is done

    def on_hosts(self, connected: Connected) -> None:
        """Do all of it."""
        try:
            with connected() as connections:
                self._find_machines(connections)
                # Taken first, all at about the same time: a prune may be long.
                for machines in self._by_connection(connections):
                    self._take_all(machines)
                for machines in self._by_connection(connections):
                    self._prune_all(machines)
        except SnapTreeError as error:
            self.error = error
            complain(error)

    def _find_machines(self, connections: Sequence[Connection]) -> None:
        self.machines = [
            _Machine(connection, domain.uuid, domain.name)
            for connection in connections
            for domain in list_domains(connection)
            if self.schedule.is_for(domain.name)
        ]
        if self.schedule.machines and not self.machines:
            raise SnapTreeError(
                f"No virtual machine is one of the schedule's: {', '.join(self.schedule.machines)}.",
                hint="See 'snaptree list', and mend the schedule.",
            )

    def _by_connection(self, connections: Sequence[Connection]) -> list[list[_Machine]]:
        return [[machine for machine in self.machines if machine.connection is each] for each in connections]

    def _take_all(self, machines: Sequence[_Machine]) -> None:
        """Take a snapshot of each machine of a host."""
        intention = self.schedule.taking
        if intention is None:
            return
        if self.schedule.together and machines:
            self._take_together(machines, intention)
            return
        for machine in machines:
            machine.take = self._attempt(machine, "not taken", partial(self._take, machine, intention))

    def _take(self, machine: _Machine, intention: Take, change: _Change) -> None:
        situation = self._situation_to_take(machine, intention, change)
        if change.left:
            return
        change.plan = make_plan(intention, situation)
        self._run(machine, change)
        if change.is_done:
            self.tell(f"{machine.name}: took {change.plan.snapshots[0]}")

    def _take_together(self, machines: Sequence[_Machine], intention: Take) -> None:
        """Take all machines of a host at one time, or none of them."""
        for machine in machines:
            self._wait_for(machine)  # for each, before one is read: what was read first is old if the last lets us wait
        members: dict[str, _Change] = {}
        situations: list[Situation] = []

        def look(machine: _Machine, change: _Change) -> None:
            situation = self._situation_to_take(machine, intention, change)
            if not change.left:
                situations.append(situation)

        for machine in machines:
            machine.take = self._attempt(machine, "not taken", partial(look, machine))
            if not machine.take.left:
                members[machine.name] = machine.take
        if members and len(situations) == len(members):
            try:
                self._run_group(machines[0].connection, plan_group_take(intention, situations), members)
            except SnapTreeError as error:
                for change in members.values():
                    change.error = change.error or error
                self._complain(listed(members), "not taken", error)
        without = listed(name for name, change in members.items() if change.error or change.is_refused)
        for name, change in members.items():
            self._say_refusals(name, "not taken", change)
            if without and not (change.error or change.is_refused):
                change.left = f"nothing is taken without {without}"
                self._say_left(name, "not taken", change)

    def _run_group(self, connection: Connection, group: GroupPlan, members: dict[str, _Change]) -> None:
        """Run plans together, if nothing is against one of them. Raises SnapTreeError if it failed."""
        for plan, change in zip(group.members, members.values(), strict=True):
            change.plan = plan
        if self._is_only_planned(group):
            return

        def run(**options: Any) -> GroupOutcome:
            with closing(Journal(journal_path(connection.uri))) as journal:
                return run_group(connection, group, journal=journal, **options)

        outcome = with_progress(group.machines, run, stop=self.stop)
        back = {operation.plan.domain_uuid: operation for operation in outcome.taken_back}
        for operation, (name, change) in zip(outcome.members, members.items(), strict=True):
            change.operation, change.error = operation, operation.error
            change.taken_back = back.get(operation.plan.domain_uuid)
            if change.is_done:
                self.tell(f"{name}: took {group.name}")
        if outcome.error is not None:
            raise outcome.error

    def _prune_all(self, machines: Sequence[_Machine]) -> None:
        """Prune each machine of a host, looked at again when its turn comes: those before may have taken hours."""
        for machine, intention in self._keeping_groups(machines):
            machine.prune = self._attempt(machine, "not pruned", partial(self._prune, machine, intention))

    def _keeping_groups(self, machines: Sequence[_Machine]) -> list[tuple[_Machine, Prune]]:
        """What is wanted of each machine that can be read: what was taken together stays together, or goes."""
        wanted: list[_Machine] = []
        read: list[tuple[Prune, Situation]] = []

        def look(machine: _Machine, intention: Prune, _change: _Change) -> None:
            read.append((intention, self._situation(machine, intention)))
            wanted.append(machine)

        for machine in machines:
            if (intention := self.schedule.pruning(machine.name)) is not None:
                machine.prune = self._attempt(machine, "not pruned", partial(look, machine, intention))
        return list(zip(wanted, keeping_groups(read), strict=True))

    def _prune(self, machine: _Machine, intention: Prune, change: _Change) -> None:
        situation = self._situation(machine, intention)
        change.pruning = pruning_of(intention, situation)
        change.plan = plan_pruning(intention, situation, change.pruning)
        self.tell(f"{machine.name}: {summary(change.pruning)}")
        between = self.schedule.between
        change.is_out_of_hours = not are_now(between)
        if change.plan.steps and between is not None and change.is_out_of_hours:
            change.left = f"it is not {between.in_words}"
        elif change.plan.steps:
            self._run(machine, change)

    def _attempt(self, machine: _Machine, failed: str, act: Callable[[_Change], None]) -> _Change:
        """Do something to a machine. What goes wrong is said, and stops no other."""
        change = _Change()
        try:
            if self.stop.is_set():
                raise CancelledError("The run was stopped before.")
            act(change)
        except SnapTreeError as error:
            change.error = error
        self._say_refusals(machine.name, failed, change)
        if change.error is not None:
            self._complain(machine.name, failed, change.error)
        self._say_left(machine.name, failed, change)
        return change

    def _say_refusals(self, name: str, failed: str, change: _Change) -> None:
        for refusal in () if change.plan is None else change.plan.refusals:
            self._complain(name, failed, SnapTreeError(f"refused: {refusal.reason}", hint=refusal.remedy))

    def _say_left(self, name: str, failed: str, change: _Change) -> None:
        if change.left:
            self.tell(f"{name}: {failed}: {change.left}")

    def _complain(self, name: str, failed: str, error: SnapTreeError) -> None:
        complain(SnapTreeError(f"{name}: {failed}: {error.summary}", hint=error.hint))

    def _situation_to_take(self, machine: _Machine, intention: Take, change: _Change) -> Situation:
        """As `_situation`; notes of a machine that is none of the user's why it is left."""
        situation = self._situation(machine, intention)
        if situation.layers.looks_at is not None and not self.schedule.machines:
            change.left = "it was made to look at a snapshot"
        return situation

    def _situation(self, machine: _Machine, intention: Take | Prune) -> Situation:
        """All that planning has to know, once nobody else changes the machine."""
        self._wait_for(machine)
        return situation_for(machine.connection, machine.uuid, intention)

    def _wait_for(self, machine: _Machine) -> None:
        """Wait as long as another SnapTree changes a machine. If that takes too long, the rules say what it means."""
        until = time.monotonic() + WAIT_SECONDS
        with journal_of(machine.connection.uri) as journal:
            while journal is not None and journal.running_elsewhere(machine.connection.uri, machine.uuid):
                if time.monotonic() >= until or self.stop.wait(1.0):
                    break

    def _run(self, machine: _Machine, change: _Change) -> None:
        """Run a plan, if nothing is against it."""
        plan = change.plan
        assert plan is not None
        if self._is_only_planned(plan):
            return
        is_prune = change.pruning is not None

        def run(*, cancelled: Callable[[], bool], **options: Any) -> Operation:
            def is_over() -> bool:
                return cancelled() or (is_prune and not are_now(self.schedule.between))

            with closing(Journal(journal_path(machine.connection.uri))) as journal:
                return run_plan(machine.connection, plan, journal=journal, cancelled=is_over, **options)

        limit = self.schedule.limit if is_prune else None
        change.operation = with_progress(machine.name, run, limit=limit, stop=self.stop)
        change.error = change.operation.error
        if self.schedule.between is not None and isinstance(change.error, CancelledError) and not self.stop.is_set():
            change.left, change.error = f"stopped, as it is not {self.schedule.between.in_words} any more", None
            change.is_out_of_hours = True

    def _is_only_planned(self, plan: Plan | GroupPlan) -> bool:
        """Whether a plan is not to be run. A dry run prints it."""
        if self.dry_run and self.print_to is not None:
            print_plan(self.print_to, plan)
        return self.dry_run or plan.is_refused

    # What came of it

    @property
    def status(self) -> int:
        """The exit status."""
        changes = [change for machine in self.machines for change in machine.changes]
        if self.error is not None or self.stop.is_set() or any(change.error for change in changes):
            return STATUS_FAILED
        return STATUS_REFUSED if any(change.is_refused for change in changes) else 0

    @property
    def says(self) -> str:
        """What came of it: `3 snapshots taken, 12 deleted; not all done: db-01`, as a sentence."""
        if self.error is not None:
            return str(self.error)
        taken = sum(machine.take is not None and machine.take.is_done for machine in self.machines)
        pruned = [machine.prune for machine in self.machines if machine.prune is not None and machine.prune.is_done]
        deleted = sum(len(change.plan.snapshots) for change in pruned if change.plan is not None)
        failed = [
            machine.name
            for machine in self.machines
            if any(change.error or change.is_refused for change in machine.changes)
        ]
        wrong = f"; not all done: {', '.join(failed)}" if failed else ""
        dry = " This was a dry run." if self.dry_run else ""
        return f"{words.count(taken, 'snapshot')} taken, {deleted:,} deleted{wrong}.{self._says_of_hours}{dry}"

    @property
    def _says_of_hours(self) -> str:
        """What its hours kept it from, as a sentence with a blank before; empty if that is nothing."""
        prunes = {machine.name: machine.prune for machine in self.machines if machine.prune is not None}
        late = [name for name, prune in prunes.items() if prune.is_out_of_hours]
        if self.schedule.between is None or not late:
            return ""
        what = "nothing" if len(late) == len(prunes) else f"not all of {listed(late)}"
        return f" It was not {self.schedule.between.in_words}, so {what} was pruned."

    def document(self, begun: LastRun) -> dict[str, Any]:
        """What `--json` says of all."""
        return {
            "schedule": self.schedule.name,
            "started": iso_time(begun.started),
            "status": self.status,
            "says": self.says,
            "error": error_json(self.error),
            "machines": [
                {
                    "host": machine.connection.uri,
                    "domain": machine.name,
                    "take": None if machine.take is None else machine.take.document(),
                    "prune": None if machine.prune is None else machine.prune.document(),
                }
                for machine in self.machines
            ],
        }
