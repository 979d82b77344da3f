"""Changes of several machines together: one preview, one question, one result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import Any

from rich.console import Console

from snaptree import words
from snaptree.hosts.connection import Connection
from snaptree.hosts.group_running import GroupOutcome, run_group
from snaptree.hosts.journal import Journal, journal_path
from snaptree.model.errors import SnapTreeError
from snaptree.plans.group import GroupPlan
from snaptree.plans.intention import Take
from snaptree.plans.plan_json import plan_to_json
from snaptree.plans.situation import Situation
from snaptree.terminal.changing import agreed, situation_for, with_progress
from snaptree.terminal.complaint import complain
from snaptree.terminal.console import console, plain, print_json
from snaptree.terminal.plans import error_json, print_plan, result_json

MakeGroup = Callable[[Sequence[Situation]], GroupPlan]

_REFUSED = 3


def change_together(
    connection: Connection,
    uuids: Sequence[str],
    make: MakeGroup,
    *,
    as_json: bool,
    dry_run: bool,
    yes: bool,
    undoes: Mapping[str, int] | None = None,
) -> int:
    """Plan, show, ask, run; return the exit status. `undoes` are the journal's numbers of what it takes back."""
    plan = make([situation_for(connection, uuid, Take()) for uuid in uuids])
    only_plan = plan.is_refused or dry_run
    if not as_json:
        print_plan(console(), plan)
    elif only_plan:
        print_json(group_to_json(plan))
    for refusal in plan.refusals:
        complain(SnapTreeError(f"Refused: {refusal.reason}", hint=refusal.remedy))
    if only_plan:
        return _REFUSED if plan.is_refused else 0
    if not yes and not agreed():
        return _REFUSED
    with closing(Journal(journal_path(connection.uri))) as journal:
        outcome = with_progress(plan.machines, partial(run_group, connection, plan, journal=journal, undoes=undoes))
    if as_json:
        print_json(group_result_json(plan, outcome))
    if outcome.error is not None:
        raise outcome.error
    if not as_json:
        print_group_result(console(), outcome)
    return 0


def print_group_result(out: Console, outcome: GroupOutcome) -> None:
    """As `print_result`, for each machine."""
    out.print("Done.")
    for operation in outcome.members:
        if operation.impact is not None:
            out.print(plain(f"{operation.plan.domain}: {words.impact(operation.impact)}."), soft_wrap=False)
        if operation.remark:
            out.print(plain(f"{operation.plan.domain}: {operation.remark}"), style="yellow", soft_wrap=False)


def group_to_json(group: GroupPlan) -> dict[str, Any]:
    """The document of plans for several machines together: those of the machines under `machines`."""
    return {
        "action": group.action.value,
        "name": group.name,
        "group": next((plan.group for plan in group.members if plan.group), None),
        "machines": [plan_to_json(plan) for plan in group.members],
        "undo": group.undo is not None,
    }


def group_result_json(group: GroupPlan, outcome: GroupOutcome) -> dict[str, Any]:
    """The same with what came of it: of each machine, of what was taken back, and of all."""
    return group_to_json(group) | {
        "machines": [result_json(operation.plan, operation) for operation in outcome.members],
        "taken_back": [result_json(operation.plan, operation) for operation in outcome.taken_back],
        "error": error_json(outcome.error),
    }
