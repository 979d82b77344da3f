"""What a change prints: its plan beforehand, and what came of it."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from snaptree import words
from snaptree.model.errors import SnapTreeError
from snaptree.plans.operation import Operation
from snaptree.plans.plan import Plan
from snaptree.plans.plan_json import describe_step, plan_to_json
from snaptree.terminal.console import plain


def print_plan(out: Console, plan: Plan) -> None:
    """Print what a plan would do, what it costs and what to know. Refusals are the caller's to say."""
    for number, step in enumerate(plan.steps, start=1):
        out.print(f"{number}. {plain(describe_step(step))}")
    for warning in plan.warnings:
        more = f" {warning.remedy}" if warning.remedy and plan.recovers is not None else ""
        out.print(f"Note: {plain(warning.reason + more)}", style="yellow")
    if plan.steps:
        forecast = plan.forecast
        out.print(
            f"Frees {words.figure(forecast.frees)}, copies {words.figure(forecast.copies)}, "
            f"needs up to {words.figure(forecast.peak_extra)} meanwhile."
        )
        if forecast.seconds is not None:
            out.print(f"Takes {words.about(forecast.seconds)}.")
        out.print(f"Can be undone: {plain(plan.undo.text)}" if plan.undo else "This can't be undone.")


def result_json(plan: Plan, operation: Operation) -> dict[str, Any]:
    """The plan's document with what came of it under `result`."""
    return plan_to_json(plan) | {
        "result": {
            "state": operation.state.value,
            "steps_done": operation.steps_done,
            "seconds": None if operation.finished is None else round(operation.finished - operation.started, 3),
            "error": error_json(operation.error),
        }
    }


def error_json(error: SnapTreeError | None) -> dict[str, str] | None:
    """An error as it stands in documents."""
    return None if error is None else {"summary": error.summary, "hint": error.hint, "details": error.details}
