"""All rules, and asking them: tooltip of a greyed button, refusal of the terminal and documentation come from here."""

from __future__ import annotations

from collections.abc import Iterable

from snaptree.model.estate import Snapshot
from snaptree.plans import (
    rules_any,
    rules_delete,
    rules_depth,
    rules_describe,
    rules_files,
    rules_look,
    rules_memory,
    rules_merge,
    rules_names,
    rules_plan,
    rules_revert,
    rules_take,
)
from snaptree.plans.facts import Facts
from snaptree.plans.plan import Action, Finding
from snaptree.plans.rule import Case, Rule, Verdict
from snaptree.plans.situation import Situation

RULES: tuple[Rule, ...] = (
    *rules_any.RULES,
    *rules_take.RULES,
    *rules_revert.RULES,
    *rules_delete.RULES,
    *rules_merge.RULES,
    *rules_memory.RULES,
    *rules_describe.RULES,
    *rules_names.RULES,
    *rules_files.RULES,
    *rules_depth.RULES,
    *rules_look.RULES,
    *rules_plan.RULES,
)
"""In the order in which a reader meets them: the first refusal is the one that a tooltip shows."""


def refusals(case: Case) -> tuple[Finding, ...]:
    """Every reason why this can't be done."""
    return _judge(case, (rule for rule in RULES if rule.forbids(case)))


def warnings(case: Case) -> tuple[Finding, ...]:
    """What somebody should know before doing it."""
    return _judge(case, (rule for rule in RULES if rule.verdict is Verdict.WARN))


def why_not(action: Action, situation: Situation, snapshot: Snapshot | str | None = None) -> Finding | None:
    """Why an action makes no sense now, for a greyed button's tooltip; None if it may be worth planning.

    Cheap, and works on what a window has at hand (`situation.glance`): rules that need more keep quiet, so a plan
    may still be refused. A cause that the safety snapshot before a revert removes is no reason here.
    """
    name = snapshot.name if isinstance(snapshot, Snapshot) else snapshot
    case = Case(situation, Facts(situation), action, name, before_safety=action is Action.REVERT)
    for rule in RULES:
        if action in rule.has_choice:
            continue
        if rule.forbids(case) and (finding := rule.judge(case)) is not None:
            return finding
    return None


def _judge(case: Case, rules: Iterable[Rule]) -> tuple[Finding, ...]:
    return tuple(finding for rule in rules if (finding := rule.judge(case)) is not None)
