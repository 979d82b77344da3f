"""The one door: an intention and a situation in, a plan or its refusals out."""

from __future__ import annotations

from snaptree.plans.delete import plan_delete
from snaptree.plans.describe import plan_describe, plan_rename
from snaptree.plans.drop_memory import plan_drop_memory
from snaptree.plans.facts import is_external
from snaptree.plans.intention import (
    Delete,
    Describe,
    DropMemory,
    Intention,
    Look,
    Prune,
    Recover,
    Rename,
    Revert,
    Take,
    TakeBack,
    Unlook,
)
from snaptree.plans.look import plan_look, plan_unlook
from snaptree.plans.plan import Plan
from snaptree.plans.prune import plan_prune
from snaptree.plans.recovery import plan_recovery
from snaptree.plans.revert import plan_revert, plan_take_back
from snaptree.plans.situation import Situation
from snaptree.plans.take import plan_take


def make_plan(intention: Intention, situation: Situation) -> Plan:
    """Plan what the user wants, or say by which rules it can't be.

    Raises VanishedError if a snapshot that the intention names is gone, SnapTreeError if it names nothing
    or if there is nothing to recover.
    """
    match intention:
        case Take():
            return plan_take(intention, situation)
        case Revert():
            return plan_revert(intention, situation)
        case Delete():
            return plan_delete(intention, situation)
        case Prune():
            return plan_prune(intention, situation)
        case DropMemory():
            return plan_drop_memory(intention, situation)
        case Describe():
            return plan_describe(intention, situation)
        case Rename():
            return plan_rename(intention, situation)
        case TakeBack():
            return plan_take_back(intention, situation)
        case Recover():
            return plan_recovery(intention, situation)
        case Look():
            return plan_look(intention, situation)
        case Unlook():
            return plan_unlook(situation)


def needs_analysis(intention: Intention, situation: Situation) -> bool:
    """Whether a plan's figures depend on what lies in the clusters of the images."""
    if isinstance(intention, Look):
        snapshot = situation.tree.snapshots.get(intention.snapshot)
        return snapshot is not None and not is_external(snapshot)
    return isinstance(intention, Delete | Prune | TakeBack)
