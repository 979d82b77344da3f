"""`snaptree run-schedule`: what a timer starts. It takes, then prunes, one machine after another; nobody is asked."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field, replace
from typing import Any

from snaptree import words
from snaptree.hosts.connection import Connection
from snaptree.hosts.journal import Journal, journal_of, journal_path
from snaptree.hosts.notifying import notify
from snaptree.hosts.pruning import are_now
from snaptree.hosts.reading import list_domains
from snaptree.hosts.running import run_plan
from snaptree.hosts.schedule_runs import AlreadyRunningError, LastRun, begun_now, note_run, only_run
from snaptree.model.errors import CancelledError, SnapTreeError
from snaptree.plans.intention import Prune, Take
from snaptree.plans.operation import Operation
from snaptree.plans.plan import Plan
from snaptree.plans.plan_json import plan_to_json
from snaptree.plans.planner import make_plan
from snaptree.plans.prune import Pruning, plan_pruning, pruning_of
from snaptree.plans.schedule import Notify, Schedule
from snaptree.plans.situation import Situation
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
    else:
        run.tell(run.says)
    return run.status


def tell_of_failure(schedule: str, error: SnapTreeError) -> None:
    """Tell the desktop that a schedule could not be begun, or be noted."""
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
    error: SnapTreeError | None = None
    """What went wrong."""
    left: str = ""
    """Why it is left, which is no failure."""

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
                for machine in self.machines:
                    self._take(machine)
                for machine in self.machines:
                    self._prune(machine)
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

    def _take(self, machine: _Machine) -> None:
        intention = self.schedule.taking
        if intention is None:
            return

        def act(change: _Change) -> None:
            situation = self._situation(machine, intention)
            if situation.layers.looks_at is not None and not self.schedule.machines:
                change.left = "it was made to look at a snapshot"
                return
            change.plan = make_plan(intention, situation)
            self._run(machine, change)
            if change.is_done:
                self.tell(f"{machine.name}: took {change.plan.snapshots[0]}")

        machine.take = self._attempt(machine, "not taken", act)

    def _prune(self, machine: _Machine) -> None:
        intention = self.schedule.pruning(machine.name)
        if intention is None:
            return

        def act(change: _Change) -> None:
            situation = self._situation(machine, intention)
            change.pruning = pruning_of(intention, situation)
            change.plan = plan_pruning(intention, situation, change.pruning)
            self.tell(f"{machine.name}: {summary(change.pruning)}")
            if change.plan.steps and self._is_too_late():
                change.left = f"it is not between {self.schedule.between}"
            elif change.plan.steps:
                self._run(machine, change)

        machine.prune = self._attempt(machine, "not pruned", act)

    def _attempt(self, machine: _Machine, failed: str, act: Callable[[_Change], None]) -> _Change:
        """Do something to a machine. What goes wrong is said, and stops no other."""
        change = _Change()
        try:
            if self.stop.is_set():
                raise CancelledError("The run was stopped before.")
            act(change)
        except SnapTreeError as error:
            change.error = error
        if change.is_refused and change.plan is not None:
            for refusal in change.plan.refusals:
                self._complain(machine, failed, SnapTreeError(f"refused: {refusal.reason}", hint=refusal.remedy))
        if change.error is not None:
            self._complain(machine, failed, change.error)
        if change.left:
            self.tell(f"{machine.name}: {failed}: {change.left}")
        return change

    def _complain(self, machine: _Machine, failed: str, error: SnapTreeError) -> None:
        complain(SnapTreeError(f"{machine.name}: {failed}: {error.summary}", hint=error.hint))

    def _situation(self, machine: _Machine, intention: Take | Prune) -> Situation:
        """All that planning has to know, once nobody else changes the machine."""
        until = time.monotonic() + WAIT_SECONDS
        with journal_of(machine.connection.uri) as journal:
            while journal is not None and journal.running_elsewhere(machine.connection.uri, machine.uuid):
                if time.monotonic() >= until or self.stop.wait(1.0):
                    break  # the rules say what that means
        return situation_for(machine.connection, machine.uuid, intention)

    def _run(self, machine: _Machine, change: _Change) -> None:
        """Run a plan, if nothing is against it."""
        plan = change.plan
        assert plan is not None
        if self.dry_run and self.print_to is not None:
            print_plan(self.print_to, plan)
        if self.dry_run or plan.is_refused:
            return
        is_prune = change.pruning is not None

        def run(*, cancelled: Callable[[], bool], **options: Any) -> Operation:
            def is_over() -> bool:
                return cancelled() or (is_prune and self._is_too_late())

            with closing(Journal(journal_path(machine.connection.uri))) as journal:
                return run_plan(machine.connection, plan, journal=journal, cancelled=is_over, **options)

        limit = self.schedule.limit if is_prune else None
        change.operation = with_progress(machine.name, run, limit=limit, stop=self.stop)
        change.error = change.operation.error
        if isinstance(change.error, CancelledError) and not self.stop.is_set():
            change.left, change.error = f"stopped, as it is not between {self.schedule.between} any more", None

    def _is_too_late(self) -> bool:
        """Whether this is no hour for pruning."""
        return not are_now(self.schedule.between)

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
        return f"{words.count(taken, 'snapshot')} taken, {deleted:,} deleted{wrong}.{dry}"

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
