"""`snaptree prune`: what goes and what stays of each machine and why, and one machine after the other."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from snaptree import words
from snaptree.hosts.connection import Connection
from snaptree.hosts.journal import Journal, journal_path
from snaptree.hosts.pruning import begin_in_hours
from snaptree.model.errors import CancelledError, SnapTreeError
from snaptree.model.tree import SnapshotTree
from snaptree.plans.hours import Hours
from snaptree.plans.intention import Prune
from snaptree.plans.operation import Operation
from snaptree.plans.plan import Plan
from snaptree.plans.plan_json import plan_to_json
from snaptree.plans.policy import Policy
from snaptree.plans.prune import Pruning
from snaptree.plans.prune_many import in_turn, plan_prunes
from snaptree.plans.situation import Situation
from snaptree.terminal.changing import agreed, situation_for, with_progress
from snaptree.terminal.complaint import complain
from snaptree.terminal.console import console, plain, print_json
from snaptree.terminal.plans import print_plan, result_json
from snaptree.terminal.table import Column, Cut, add_row, print_table


def pruning_json(pruning: Pruning) -> dict[str, Any]:
    """What stands beside a plan in `prune --json`: what was decided on each snapshot, and how deep the chain is."""
    return {
        "depth": {"before": pruning.depth, "after": pruning.depth_after},
        "falls_short": pruning.falls_short,
        "decisions": [
            {"name": decision.name, "keeps": decision.keeps, "reasons": list(decision.reasons)}
            for decision in pruning.decisions.values()
        ],
    }


def print_pruning(out: Console, domain: str, tree: SnapshotTree, pruning: Pruning, now: float) -> None:
    """Print what is decided on every snapshot of a machine, and what it comes to."""
    out.print(f"{plain(domain)}: {summary(pruning)}", style="bold", soft_wrap=False)
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
    if pruning.falls_short:
        out.print(pruning.falls_short, style="yellow", soft_wrap=False)


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
    situation: Situation
    pruning: Pruning
    plan: Plan
    operation: Operation | None = None
    not_begun: str = ""
    """Why it was not begun; empty if it was, or if nothing goes."""

    @property
    def name(self) -> str:
        """The machine's name."""
        return self.situation.domain.name

    def document(self) -> dict[str, Any]:
        """What `--json` says of it."""
        plan = plan_to_json(self.plan) if self.operation is None else result_json(self.plan, self.operation)
        return plan | pruning_json(self.pruning) | ({"not_begun": self.not_begun} if self.not_begun else {})


def prune_machines(
    machines: Sequence[tuple[Connection, str]],
    policy: Policy,
    *,
    as_json: bool,
    is_one: bool,
    dry_run: bool,
    yes: bool,
    limit: int | None,
    between: Hours | None,
) -> int:
    """Plan for all, show all, ask once, run one after the other. Returns the exit status: 1 if any failed.

    `is_one`: just one was named, so that the document is that one's and no list. 3 if any was refused and none failed.
    """
    # What libvirt merges itself can be neither slowed down nor stopped.
    found = _planned(machines, Prune(policy, by_own_jobs=limit is not None or between is not None, limit=limit))
    out = console()
    if not as_json:
        for machine in found:
            _show(out, machine)
        if len(found) > 1:
            out.print(_in_all(found), style="bold", soft_wrap=False)
    willing = [machine for machine in found if machine.plan.steps]
    for machine in found:
        for refusal in machine.plan.refusals:
            complain(SnapTreeError(f"{machine.name}: refused: {refusal.reason}", hint=refusal.remedy))
    is_agreed = not dry_run and bool(willing) and (yes or agreed())
    if is_agreed:
        for machine in willing:
            _run(machine, limit, between)
    if as_json:
        documents = [machine.document() for machine in found]
        print_json(documents[0] if is_one else documents)
    if any(machine.not_begun or (machine.operation and machine.operation.error) for machine in found):
        return 1
    is_refused = any(machine.plan.is_refused for machine in found) or (bool(willing) and not dry_run and not is_agreed)
    return 3 if is_refused else 0


def _planned(machines: Sequence[tuple[Connection, str]], intention: Prune) -> list[_Machine]:
    """Read all, decide on all, and plan for all: what was taken together is kept together."""
    read = [(intention, situation_for(connection, uuid, intention)) for connection, uuid in machines]
    return [
        _Machine(connection, planned.situation, planned.pruning, planned.plan)
        for (connection, _), planned in zip(machines, plan_prunes(read), strict=True)
    ]


def _show(out: Console, machine: _Machine) -> None:
    situation = machine.situation
    print_pruning(out, machine.name, situation.tree, machine.pruning, situation.now)
    if machine.plan.steps:
        print_plan(out, machine.plan)


def _in_all(found: Sequence[_Machine]) -> str:
    """What all plans together come to, as a sentence."""
    going = [machine for machine in found if machine.plan.steps]
    if not going:
        return "In all, nothing goes."
    count = sum(len(machine.pruning.goes) for machine in going)
    forecast = in_turn(machine.plan for machine in going).forecast
    verb = "goes" if count == 1 else "go"
    which = f"{words.count(count, 'snapshot')} of {words.count(len(going), 'machine')} {verb}"
    return f"In all, {which}: frees {words.figure(forecast.frees)}, copies {words.figure(forecast.copies)}."


def _run(machine: _Machine, limit: int | None, between: Hours | None) -> None:
    """Prune one machine, and say what came of it. What goes wrong stops no other."""

    def run(**options: Any) -> Operation:
        with closing(Journal(journal_path(machine.connection.uri))) as journal:
            return begin_in_hours(between, machine.connection, machine.plan, journal=journal, **options).to_the_end()

    try:
        machine.operation = with_progress(machine.name, run, limit=limit)
    except SnapTreeError as problem:
        machine.not_begun = problem.summary
        complain(SnapTreeError(f"{machine.name}: not begun: {problem.summary}", hint=problem.hint))
        return
    error = machine.operation.error
    if isinstance(error, CancelledError):
        complain(SnapTreeError(f"{machine.name}: stopped: {error.summary}", hint=error.hint))
    elif error is not None:
        complain(SnapTreeError(f"{machine.name}: {error.summary}", hint=error.hint))
