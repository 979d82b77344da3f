"""What `snaptree history` prints: what was done, by whom, and what came of it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from rich.console import Console

from snaptree import words
from snaptree.plans.operation import Operation, OperationState, how_far, last_undoable
from snaptree.plans.plan import Action
from snaptree.plans.plan_words import describe_plan
from snaptree.terminal.console import iso_time, plain
from snaptree.terminal.plans import error_json, impact_json
from snaptree.terminal.table import Column, Cut, add_row, print_table


def undoable(operations: Collection[Operation]) -> set[tuple[str, int]]:
    """Operations that can be taken back now: of each machine's, the last, if at all."""
    machines = {(operation.plan.host_uri, operation.plan.domain_uuid) for operation in operations}
    found = set()
    for host, uuid in machines:
        last = last_undoable((each for each in operations if each.plan.host_uri == host), uuid)
        if last is not None:
            found.add((host, last.id))
    return found


def history_json(operations: Sequence[Operation]) -> list[dict[str, Any]]:
    """The document of `history --json`, newest first."""
    can_undo = undoable(operations)
    return [
        {
            "id": operation.id,
            "host": operation.plan.host_uri,
            "domain": operation.plan.domain,
            "uuid": operation.plan.domain_uuid,
            "action": operation.plan.action.value,
            "snapshots": list(operation.plan.snapshots),
            "who": operation.who or None,
            "started": iso_time(operation.started),
            "finished": None if operation.finished is None else iso_time(operation.finished),
            "state": operation.state.value,
            "steps": len(operation.plan.steps),
            "steps_done": operation.steps_done,
            "unfinished": operation.is_unfinished,
            "group": operation.plan.group or None,
            "schedule": operation.plan.schedule or None,
            "settled_by": None if operation.settled is None else operation.settled.by,
            "undone": operation.undone,
            "can_undo": (operation.plan.host_uri, operation.id) in can_undo,
            "impact": impact_json(operation.impact),
            "remark": operation.remark,
            "error": error_json(operation.error),
        }
        for operation in operations
    ]


def print_history(out: Console, operations: Sequence[Operation]) -> None:
    """Print operations, newest first."""
    if not operations:
        out.print("Nothing was done yet.")
        return
    can_undo = undoable(operations)
    hosts = {operation.plan.host_uri for operation in operations}
    host = Column("Host", turn=1, cut=Cut.MIDDLE)
    columns = [
        Column("When"),
        Column("Virtual machine", short_title="VM", turn=4, cut=Cut.MIDDLE, stays=True),
        Column("What", turn=3, cut=Cut.MIDDLE, stays=True),
        Column("By", turn=2, cut=Cut.END),
        Column("Undo"),
        host,
        Column("Result", turn=5, cut=Cut.END, stays=True),
    ]
    for operation in operations:
        plan = operation.plan
        add_row(
            columns,
            words.moment(operation.started),
            plain(plan.domain),
            plain(describe_plan(plan)),
            plain(operation.who) or words.UNKNOWN,
            "yes" if (plan.host_uri, operation.id) in can_undo else "",
            plain(plan.host_uri),
            plain(result(operation)),
        )
    print_table(out, [column for column in columns if column is not host or len(hosts) > 1])


def result(operation: Operation) -> str:
    """What came of an operation."""
    done = how_far(operation)
    why = "" if operation.error is None else f": {operation.error.summary}"
    match operation.state:
        case OperationState.DONE:
            return "done, and taken back since" if operation.undone else f"done{_came_to(operation)}"
        case OperationState.INTERRUPTED:
            return f"interrupted {done}{_settled(operation)}{why}"
        case OperationState.FAILED | OperationState.CANCELLED:
            return f"{operation.state.value} {done}{why}"
        case _:
            return operation.state.value


def _came_to(operation: Operation) -> str:
    impact = operation.impact if operation.plan.action is Action.TAKE else None
    did = "" if impact is None else f": {words.impact(impact)}"
    return f"{did}. {operation.remark}" if operation.remark else did


def _settled(operation: Operation) -> str:
    if operation.settled is None:
        return ", unfinished" if operation.is_unfinished else ""
    if operation.settled.how is Action.FINISH:
        return ", taken up again"
    return ", left as it was" if operation.settled.how is Action.LEAVE else ""
