"""All rules, and asking them: tooltip of a greyed button, refusal of the terminal and documentation come from here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from snaptree.model.estate import Host, Snapshot
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
from snaptree.plans.plan import Action, DeleteSnapshot, Finding
from snaptree.plans.rule import Case, Rule, Verdict, by_the_planner
from snaptree.plans.situation import Known, Situation

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


@dataclass(frozen=True, slots=True)
class _Applying:
    """The rules that are about such an action on such a host, in their order."""

    refusing: tuple[Rule, ...]
    warning: tuple[Rule, ...]


def refusals(case: Case) -> tuple[Finding, ...]:
    """Every reason why this can't be done."""
    return _judge(case, _applying_to(case).refusing)


def warnings(case: Case) -> tuple[Finding, ...]:
    """What somebody should know before doing it."""
    return _judge(case, _applying_to(case).warning)


def why_not(action: Action, situation: Situation, snapshot: Snapshot | str | None = None) -> Finding | None:
    """Why an action makes no sense now, for a greyed button's tooltip; None if it may be worth planning.

    Cheap, and works on what a window has at hand (`situation.glance`): rules that need more keep quiet, so a plan
    may still be refused. A cause that the safety snapshot before a revert removes is no reason here.
    """
    name = snapshot.name if isinstance(snapshot, Snapshot) else snapshot
    case = Case(situation, Facts(situation), action, name, before_safety=action is Action.REVERT)
    for rule in _applying_to(case).refusing:
        if action not in rule.has_choice and (finding := rule.judge(case)) is not None:
            return finding
    return None


def _applying_to(case: Case) -> _Applying:
    by_libvirt = isinstance(case.step, DeleteSnapshot)
    return _applying(case.action, case.situation.host, case.situation.known, case.before_safety, by_libvirt)


@lru_cache
def _applying(action: Action, host: Host, known: Known, before_safety: bool, by_libvirt: bool) -> _Applying:
    """Looked up once for all the steps of a plan, and for all rows of a window."""
    asked = [rule for rule in RULES if rule.condition is not by_the_planner]
    rules = [rule for rule in asked if rule.applies_to(action, host, known, before_safety=before_safety)]
    return _Applying(
        tuple(rule for rule in rules if rule.forbids(action, by_libvirt=by_libvirt)),
        tuple(rule for rule in rules if rule.verdict is Verdict.WARN),
    )


def _judge(case: Case, rules: Iterable[Rule]) -> tuple[Finding, ...]:
    return tuple(finding for rule in rules if (finding := rule.judge(case)) is not None)
