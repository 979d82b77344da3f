"""What a change prints: its plan beforehand, and what came of it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Console

from snaptree import words
from snaptree.model.errors import SnapTreeError
from snaptree.model.estate import Impact
from snaptree.plans.group import GroupPlan
from snaptree.plans.operation import Operation
from snaptree.plans.plan import Action, Forecast, Plan
from snaptree.plans.plan_json import plan_to_json
from snaptree.plans.plan_words import steps_in_words
from snaptree.plans.totals import totals_of
from snaptree.terminal.console import plain


def print_plan(out: Console, plan: Plan | GroupPlan) -> None:
    """Print what a plan would do, what it costs and what to know. Refusals are the caller's to say."""
    if isinstance(plan, GroupPlan):
        lines = []
        for part in plan.members:
            lines += [(f"{part.domain}:", "bold"), *_what_happens(part)] if part.steps else []
        asks_again = False
        recovers = False
    else:
        lines = _what_happens(plan)
        asks_again = plan.only_describes and plan.action is Action.UNDO
        recovers = plan.recovers is not None
    is_any = bool(lines)
    for warning in plan.warnings:
        more = f" {warning.remedy}" if warning.remedy and recovers else ""
        lines.append((f"Note: {warning.reason}{more}", "yellow"))
    if is_any:
        lines += _costs(plan.forecast)
        lines += [(sentence, "") for sentence in totals_of(plan).unknown]
        if plan.undo is not None:
            lines.append((f"Can be undone: {plan.undo.text}", ""))
        elif not plan.warns_of_finality and not asks_again:
            lines.append(("This can't be undone.", ""))
    for line, style in lines:
        # A screen wraps between words, a pipe not at all.
        out.print(plain(line), style=style, soft_wrap=False)


def _what_happens(plan: Plan) -> list[tuple[str, str]]:
    lines = []
    if plan.action is Action.DELETE and len(plan.snapshots) > 1:  # a prune has told of each
        lines.append((f"{words.count(len(plan.snapshots), 'snapshot')} go: {', '.join(plan.snapshots)}", ""))
    lines += [(f"{number} {text}", "") for number, text in steps_in_words(plan.steps)]
    if plan.settings:
        lines.append(("Settings that change back:", ""))
        lines += [(f"  {words.setting(change)}", "") for change in plan.settings]
    return lines


def _costs(forecast: Forecast) -> list[tuple[str, str]]:
    lines = []
    parts = (
        ("frees {}", forecast.frees),
        ("copies {}", forecast.copies),
        ("needs {} meanwhile", forecast.peak_extra),
    )
    costs = [text.format(words.figure(figure)) for text, figure in parts if figure.bytes != 0]
    if forecast.likely_extra is not None:
        costs.append(f"of which it will likely write {words.size(forecast.likely_extra)}")
    if forecast.seconds is not None:
        costs.append(f"takes {words.about(forecast.seconds)}")
    if costs:
        sentence = ", ".join(costs)
        lines.append((f"{sentence[0].upper()}{sentence[1:]}.", ""))
    if forecast.growth:
        lines.append((f"Afterwards the disks grow by about {words.size(forecast.growth)} a day, as they did.", ""))
    if forecast.free is not None:
        lines.append((f"{words.size(forecast.free)} are free where it goes.", ""))
    if forecast.pause_seconds:
        still = words.about(forecast.pause_seconds)
        lines.append((f"The guest stands still or is off for {still} of that.", ""))
    return lines


def print_result(out: Console, operation: Operation) -> None:
    """Print that it is done, and what came of it that nobody could know before."""
    # That of a safety snapshot is no news beside the revert itself.
    impact = operation.impact if operation.plan.action is Action.TAKE else None
    out.print("Done." if impact is None else f"Done. It {words.impact(impact)}.")
    if operation.remark:
        out.print(plain(operation.remark), style="yellow", soft_wrap=False)


def impact_json(impact: Impact | None) -> dict[str, float | None] | None:
    """What taking a snapshot did, as it stands in documents: seconds and bytes, null where it was not measured."""
    if impact is None:
        return None
    return {key: round(value, 3) if isinstance(value, float) else value for key, value in asdict(impact).items()}


def result_json(plan: Plan, operation: Operation) -> dict[str, Any]:
    """The plan's document with what came of it under `result`."""
    return plan_to_json(plan) | {
        "result": {
            "state": operation.state.value,
            "steps_done": operation.steps_done,
            "seconds": None if operation.finished is None else round(operation.finished - operation.started, 3),
            "impact": impact_json(operation.impact),
            "remark": operation.remark,
            "error": error_json(operation.error),
        }
    }


def error_json(error: SnapTreeError | None) -> dict[str, str] | None:
    """An error as it stands in documents."""
    return None if error is None else {"summary": error.summary, "hint": error.hint, "details": error.details}
