"""`snaptree prune`: what goes and what stays of each machine and why, and one machine after the other."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from snaptree import words
from snaptree.hosts.connection import Connection
from snaptree.hosts.journal import Journal, journal_path
from snaptree.hosts.pruning import OutOfHoursError, begin_in_hours
from snaptree.model.errors import CancelledError, SnapTreeError
from snaptree.model.tree import SnapshotTree
from snaptree.plans.hours import Hours
from snaptree.plans.intention import Prune
from snaptree.plans.operation import Operation
from snaptree.plans.plan import Plan
from snaptree.plans.plan_json import plan_to_json
from snaptree.plans.policy import Policy
from snaptree.plans.prune import Pruning, hint_of_by_hand
from snaptree.plans.prune_many import PlannedPrune, in_turn, plan_prunes, unreadable
from snaptree.plans.situation import Situation
from snaptree.plans.totals import totals_of
from snaptree.plans.wording import listed
from snaptree.terminal.changing import agreed, situation_for, with_progress
from snaptree.terminal.complaint import complain
from snaptree.terminal.console import console, plain, print_json
from snaptree.terminal.plans import print_plan, result_json
from snaptree.terminal.table import Column, Cut, add_row, print_table

_OUT_OF_HOURS = "not begun at this hour"


def pruning_json(pruning: Pruning) -> dict[str, Any]:
    """What stands beside a plan in `prune --json`: what was decided on each snapshot, and how deep the chain is."""
    return {
        "depth": {"before": pruning.depth, "after": pruning.depth_after},
        "falls_short": pruning.falls_short,
        "needs_by_hand": pruning.needs_by_hand,
        "decisions": [
            {"name": decision.name, "keeps": decision.keeps, "reasons": list(decision.reasons)}
            for decision in pruning.decisions.values()
        ],
    }


def _print_decisions(out: Console, tree: SnapshotTree, pruning: Pruning, now: float) -> None:
    """Print what is decided on every snapshot of a machine."""
    columns = (
        Column("", cut=Cut.NOTHING),
        Column("Snapshot", turn=2, cut=Cut.MIDDLE, stays=True),
        Column("Age", right=True),
        Column("Why", turn=1, cut=Cut.END),
    )
    for name, decision in pruning.decisions.items():
        age = words.age(now - tree[name].created)
        add_row(columns, "kept" if decision.keeps else "goes", plain(name), age, plain(decision.reason))
    if pruning.decisions:
        print_table(out, columns)


def summary(pruning: Pruning) -> str:
    """What pruning a machine comes to, in one line: `35 of 41 snapshots go: frees 12.3 MiB, 42 layers become 7`."""
    goes, cost = len(pruning.goes), pruning.cost
    if not goes:
        return (
            f"all of its {words.count(len(pruning.decisions), 'snapshot')} stay"
            if pruning.decisions
            else "no snapshots"
        )
    parts = [f"frees {words.figure(cost.frees)}"]
    if cost.copies.bytes != 0:
        parts.append(f"copies {words.figure(cost.copies)}")
    if pruning.depth_after != pruning.depth:
        parts.append(f"{words.count(pruning.depth, 'layer')} become {pruning.depth_after}")
    verb = "goes" if goes == 1 else "go"
    return f"{goes} of {words.count(len(pruning.decisions), 'snapshot')} {verb}: {', '.join(parts)}"


@dataclass
class _Machine:
    """One machine to be pruned, and what came of that."""

    connection: Connection
    plan: Plan
    planned: PlannedPrune | None = None
    """None if it can't be looked at; then its plan says why."""
    operation: Operation | None = None
    not_begun: str = ""
    """Why it was not begun; empty if it was, or if nothing goes."""
    is_out_of_hours: bool = False
    """It was not begun because of the hours alone, which is what they are for and no failure."""

    @property
    def name(self) -> str:
        """The machine's name."""
        return self.plan.domain

    @property
    def not_pruned(self) -> str:
        """Why nothing goes that should, in a word or two; empty if all went, or nothing was to go."""
        error = None if self.operation is None else self.operation.error
        if self.planned is None:
            return "can't be looked at"
        if self.plan.is_refused:
            return "refused"
        if self.not_begun:
            return _OUT_OF_HOURS if self.is_out_of_hours else "not begun"
        return "" if error is None else "stopped" if isinstance(error, CancelledError) else "failed"

    def document(self) -> dict[str, Any]:
        """What `--json` says of it."""
        plan = plan_to_json(self.plan) if self.operation is None else result_json(self.plan, self.operation)
        pruning = {} if self.planned is None else pruning_json(self.planned.pruning)
        return plan | pruning | ({"not_begun": self.not_begun} if self.not_begun else {})


def prune_machines(
    machines: Sequence[tuple[Connection, str, str]],
    policy: Policy,
    *,
    by_hand: str,
    as_json: bool,
    is_one: bool,
    dry_run: bool,
    yes: bool,
    limit: int | None,
    between: Hours | None,
) -> int:
    """Plan for all, show all, ask once, run one after the other. Returns the exit status: 1 if any failed.

    What is not begun because of the hours alone is no failure.

    `machines` by UUID and name. `by_hand` says how the policy comes to look at what no schedule took, as a clause.
    `is_one`: just one was named, so that the document is that one's and no list. 3 if any was refused and none failed.
    Raises SnapTreeError if there is only one, and it can't be looked at.
    """
    # What libvirt merges itself can be neither slowed down nor stopped.
    found = _planned(machines, Prune(policy, by_own_jobs=limit is not None or between is not None, limit=limit))
    out = console()
    willing = [machine for machine in found if machine.plan.steps]
    hours = None if between is None else _hours(between, len(willing))
    if not as_json:
        for machine in found:
            _show(out, machine, by_hand)
        if len(found) > 1:
            _show_totals(out, found)
        if hours is not None and willing:
            out.print(hours["says"], soft_wrap=False)
    for machine in found:
        for refusal in machine.plan.refusals:
            kind = "refused" if machine.planned is not None else "not begun"
            complain(SnapTreeError(f"{machine.name}: {kind}: {refusal.reason}", hint=refusal.remedy))
    # Where nothing would be begun anyway, there is nothing to ask.
    is_time = hours is None or hours["are_now"]
    is_agreed = not dry_run and bool(willing) and is_time and (yes or agreed())
    if is_agreed:
        for machine in willing:
            _run(machine, limit, between)
    elif between is not None and not is_time and not dry_run:
        for machine in willing:  # all is said by what the hours mean
            machine.not_begun, machine.is_out_of_hours = f"It is not {between.in_words}.", True
    if as_json:
        documents = [machine.document() | {"hours": hours} for machine in found]
        print_json(documents[0] if is_one else documents)
    elif is_agreed:
        _show_outcome(out, found)
    reasons = {machine.not_pruned for machine in found} - {""}
    if reasons - {"refused", _OUT_OF_HOURS}:
        return 1
    return 3 if "refused" in reasons or (bool(willing) and not dry_run and is_time and not is_agreed) else 0


def _hours(between: Hours, machines: int) -> dict[str, Any]:
    """What the hours mean for so many machines, for documents and for people."""
    now = dt.datetime.now().astimezone()
    says = between.foretold(now, waits=False, machines=machines)
    if not between.allow(now):
        says += " A schedule is run at times of its own: snaptree schedule add."
    return {
        "from": f"{between.begin:%H:%M}",
        "to": f"{between.end:%H:%M}",
        "are_now": between.allow(now),
        "says": says,
    }


def _planned(machines: Sequence[tuple[Connection, str, str]], intention: Prune) -> list[_Machine]:
    """Read all, decide on all, and plan for all: what was taken together is kept together."""
    read: list[tuple[Connection, Situation]] = []
    unread: list[_Machine] = []
    for connection, uuid, name in machines:
        try:
            read.append((connection, situation_for(connection, uuid, intention)))
        except SnapTreeError as error:
            if len(machines) == 1 or isinstance(error, CancelledError):
                raise
            plan = unreadable(connection.uri, uuid, name, error)
            unread.append(_Machine(connection, plan, not_begun=error.summary))
    planned = plan_prunes([(intention, situation) for _, situation in read])
    return [
        *(_Machine(connection, each.plan, each) for (connection, _), each in zip(read, planned, strict=True)),
        *unread,
    ]


def _show(out: Console, machine: _Machine, by_hand: str) -> None:
    if machine.planned is None:
        return
    situation, pruning = machine.planned.situation, machine.planned.pruning
    comes_to = "left out, as it is refused" if machine.plan.is_refused else summary(pruning)
    out.print(f"{plain(machine.name)}: {comes_to}", style="bold", soft_wrap=False)
    _print_decisions(out, situation.tree, pruning, situation.now)
    scope = machine.planned.intention.policy.scope
    for remark in (pruning.falls_short, hint_of_by_hand(scope, [pruning], by_hand)):
        if remark:
            out.print(remark, style="yellow", soft_wrap=False)
    if machine.plan.steps:
        print_plan(out, machine.plan)


def _show_totals(out: Console, found: Sequence[_Machine]) -> None:
    """Print what all plans together come to, and what is not known or left out."""
    going = [machine for machine in found if machine.plan.steps]
    together = in_turn(machine.plan for machine in found)
    totals = totals_of(together)
    count = sum(len(machine.plan.snapshots) for machine in going)
    verb = "goes" if count == 1 else "go"
    which = f"{words.count(count, 'snapshot')} of {words.count(len(going), 'machine')} {verb}"
    says = f"In all, {which}: {', '.join(words.totals(totals))}." if going else "In all, nothing goes."
    out.print(says, style="bold", soft_wrap=False)
    if left_out := together.left_out:
        names = listed(plain(plan.domain) for plan in left_out)
        others = "; the others go on without it" if len(left_out) == 1 else "; the others go on without them"
        verb = "is" if len(left_out) == 1 else "are"
        out.print(f"{names} {verb} left out{others if going else ''}.", style="yellow", soft_wrap=False)
    for sentence in totals.unknown:
        out.print(sentence, soft_wrap=False)


def _show_outcome(out: Console, found: Sequence[_Machine]) -> None:
    """Print of which machines what was to go is gone, and of which it is not."""
    done = [machine for machine in found if machine.operation is not None and not machine.not_pruned]
    if done:
        count = sum(len(machine.plan.snapshots) for machine in done)
        out.print(f"Done: {words.count(count, 'snapshot')} of {listed(plain(each.name) for each in done)} deleted.")
    if others := [f"{plain(machine.name)} ({machine.not_pruned})" for machine in found if machine.not_pruned]:
        out.print(f"Not pruned: {', '.join(others)}.", style="yellow", soft_wrap=False)


def _run(machine: _Machine, limit: int | None, between: Hours | None) -> None:
    """Prune one machine, and say what came of it. What goes wrong stops no other."""

    def run(**options: Any) -> Operation:
        with closing(Journal(journal_path(machine.connection.uri))) as journal:
            return begin_in_hours(between, machine.connection, machine.plan, journal=journal, **options).to_the_end()

    try:
        machine.operation = with_progress(machine.name, run, limit=limit)
    except OutOfHoursError as problem:  # they ended meanwhile; the end says so
        machine.not_begun, machine.is_out_of_hours = problem.summary, True
        return
    except SnapTreeError as problem:
        machine.not_begun = problem.summary
        complain(SnapTreeError(f"{machine.name}: not begun: {problem.summary}", hint=problem.hint))
        return
    error = machine.operation.error
    if isinstance(error, CancelledError):
        complain(SnapTreeError(f"{machine.name}: stopped: {error.summary}", hint=error.hint))
    elif error is not None:
        complain(SnapTreeError(f"{machine.name}: {error.summary}", hint=error.hint))
